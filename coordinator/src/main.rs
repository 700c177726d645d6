//! The `synfire-coordinator` command.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is what the command prints"
)]

use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser};
use signal_hook::consts::{SIGINT, SIGTERM};
use synfire_coordinator::serve::{Tls, draw_token};
use synfire_coordinator::{MAX_FAILURES, Options, Policy, Server, View};
use synfire_shared::storage::Store;
use synfire_shared::token::{self, Token};
use tracing_subscriber::EnvFilter;

/// The exit status of a command line that is not understood (`EX_USAGE` of sysexits.h).
const WRONG_USAGE: u8 = 64;
/// [`View::status`] of a run that was given up: not finished, and not stopped.
const GIVEN_UP: u8 = 1;
/// The folder of checkpoints in a run folder.
const CHECKPOINTS: &str = "checkpoints";
/// Between two looks at signals and at the run.
const LOOK: Duration = Duration::from_millis(100);
/// Until the end with --until-over, once nobody is expected any more.
const LINGER: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  On this machine, two ranks, with a token that is printed:
    synfire-coordinator --run runs/a --ranks 2

  For other machines, which know the token from a file and trust ca.pem:
    synfire-coordinator --listen 0.0.0.0:9470 --run s3://bucket/a --ranks 4 --min-ranks 3 \\
        --token-file token --tls-cert cert.pem --tls-key key.pem

  What runs, a checkpoint now, and the end of the run:
    curl -H \"Authorization: Bearer $SYNFIRE_TOKEN\" http://127.0.0.1:9470/v1/status
    curl -H \"Authorization: Bearer $SYNFIRE_TOKEN\" http://127.0.0.1:9470/v1/directive \\
        -d '{\"order\": \"save\"}'
    curl -H \"Authorization: Bearer $SYNFIRE_TOKEN\" http://127.0.0.1:9470/v1/directive \\
        -d '{\"order\": \"stop\", \"signal\": 15}'

SIGINT and SIGTERM stop the coordinator alone: workers go on, and a coordinator that is started
again with the same --run, address and token takes them back.";

/// Decides who trains a run as which rank, notices who is lost, and starts again from the newest
/// checkpoint. Its page at / shows the run; /metrics and /v1/targets are for Prometheus.
#[derive(Debug, Parser)]
#[command(
    name = "synfire-coordinator",
    version,
    max_term_width = 100,
    after_help = EXAMPLES
)]
struct Arguments {
    /// Where to listen, as IP:PORT; a port alone means 127.0.0.1, port 0 any that is free
    #[arg(long, value_name = "ADDR", value_parser = address, default_value = "127.0.0.1:9470")]
    listen: SocketAddr,
    /// The run folder that the workers have, as run.folder: a path, file://, s3://, gs:// or az://
    #[arg(long, value_name = "URL")]
    run: String,
    /// The number of ranks wanted, 1 to 64
    #[arg(long, value_name = "N")]
    ranks: u32,
    /// The fewest ranks that train; by default all are waited for
    #[arg(long, value_name = "M")]
    min_ranks: Option<u32>,
    /// For so many seconds more than the fewest ranks are waited for
    #[arg(long, value_name = "S", default_value_t = 60)]
    wait: u32,
    /// A rank whose training makes no progress for so many seconds, or ten of its slowest time
    /// steps if that is longer, is lost
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    deadline: u32,
    /// So many generations in a row in which a rank fails before a batch is trained end the run
    #[arg(long, value_name = "N", default_value_t = MAX_FAILURES, value_parser = clap::value_parser!(u32).range(1..))]
    max_failures: u32,
    /// The file with the token that workers show; without the file one is drawn and written there.
    /// By default the token is that of the environment (`SYNFIRE_TOKEN`), or is drawn and printed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Serve HTTPS with this certificate, in PEM form, with those that sign it behind it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// End once the run is over, with status 0, or 1 if it was given up (--max-failures); by default
    /// the coordinator stays to say so
    #[arg(long)]
    until_over: bool,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let wanted = "want a port, or an IP address with a port, as in 127.0.0.1:9470 or [::1]:9470";
    text.parse().map_err(|_| wanted.into())
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("SYNFIRE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
    let parsed = Arguments::try_parse().and_then(|arguments| {
        let policy = policy(&arguments)?;
        Ok((arguments, policy))
    });
    let (arguments, policy) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 });
        }
    };
    run(&arguments, policy).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn policy(arguments: &Arguments) -> Result<Policy, clap::Error> {
    let policy = Policy {
        ranks: arguments.ranks,
        min_ranks: arguments.min_ranks.unwrap_or(arguments.ranks),
        wait: Duration::from_secs(arguments.wait.into()),
        deadline: Duration::from_secs(arguments.deadline.into()),
        max_failures: arguments.max_failures,
        version: env!("CARGO_PKG_VERSION").into(),
        takes_back: true,
        folder: Some(arguments.run.clone()),
    };
    let kind = clap::error::ErrorKind::ValueValidation;
    policy
        .checked()
        .map_err(|error| Arguments::command().error(kind, error))
}

fn run(arguments: &Arguments, policy: Policy) -> anyhow::Result<ExitCode> {
    let store = Store::create(&arguments.run).context("--run")?;
    let tls = match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls::read(certificate, key)?),
        _ => None,
    };
    let has_tls = tls.is_some();
    let (token, is_drawn) = token(arguments.token_file.as_deref())?;
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGINT, SIGTERM] {
        let value = usize::try_from(number).expect("numbers of signals are small");
        signal_hook::flag::register_usize(number, Arc::clone(&signal), value)?;
    }
    let options = Options {
        listen: arguments.listen,
        token,
        tls,
        policy,
        observer: None,
    };
    let server = Server::start(options, store, CHECKPOINTS)?;
    say(&format!(
        "coordinator of {} at {}",
        arguments.run,
        server.url()
    ))?;
    if is_drawn {
        let hint = "to keep it over a restart, give --token-file";
        say(&format!(
            "workers need SYNFIRE_TOKEN={} ({hint})",
            server.token().reveal()
        ))?;
    }
    if !has_tls && !server.address().ip().is_loopback() {
        tracing::warn!(
            "other machines reach this address and the token travels unencrypted: give --tls-cert \
             and --tls-key, unless the network is your own"
        );
    }
    let ended = wait(&server, &signal, arguments.until_over);
    if let Ended::Signal(number) = ended {
        tracing::info!(signal = number, "the coordinator stops; workers go on");
    }
    // A run that was given up is not one that ended.
    let is_given_up = matches!(ended, Ended::Over) && server.view().status == GIVEN_UP;
    server.stop();
    Ok(if is_given_up {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

enum Ended {
    Signal(usize),
    Over,
}

/// Waits for a signal or, if so wanted, for the end of the run.
fn wait(server: &Server, signal: &AtomicUsize, until_over: bool) -> Ended {
    let mut over_since = None;
    loop {
        let number = signal.load(Ordering::Relaxed);
        if number != 0 {
            return Ended::Signal(number);
        }
        if until_over && is_done(&server.view()) {
            let since = over_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= LINGER {
                return Ended::Over;
            }
        } else {
            over_since = None;
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether the run is over and no rank still writes.
fn is_done(view: &View) -> bool {
    const SILENT_SECONDS: f64 = 10.0;
    let mut members = view.members.iter();
    view.reason.is_some() && members.all(|m| m.has_left || m.silent_seconds > SILENT_SECONDS)
}

/// The token, and whether it was drawn and is to be printed.
fn token(file: Option<&Path>) -> anyhow::Result<(Token, bool)> {
    if let Some(path) = file {
        if path.exists() {
            return Ok((Token::read(path)?, false));
        }
        let token = match from_environment()? {
            Some(token) => token,
            None => draw_token()?,
        };
        write(path, &token).with_context(|| format!("cannot write {}", path.display()))?;
        tracing::info!(path = %path.display(), "the token is written");
        return Ok((token, false));
    }
    match from_environment()? {
        Some(token) => Ok((token, false)),
        None => Ok((draw_token()?, true)),
    }
}

fn from_environment() -> anyhow::Result<Option<Token>> {
    let text = std::env::var_os(token::VARIABLE).filter(|text| !text.is_empty());
    let Some(text) = text else {
        return Ok(None);
    };
    let token = Token::new(&text.to_string_lossy(), token::VARIABLE);
    Ok(Some(token?))
}

/// Writes a file that its owner alone can read.
fn write(path: &Path, token: &Token) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{}", token.reveal())
}

/// Prints a line at once, for who reads the output of a process that stays.
fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
