//! `synfire launch`: the ranks of a run on this machine, with the coordinator in this process.
//!
//! # Layout
//!
//! - this file: ranks are started, looked after and ended.
//! - `display`: what is shown of them.

mod display;

use super::{say, train};
use anyhow::{Context as _, bail, ensure};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use display::Display;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use synfire_coordinator::serve::draw_token;
use synfire_coordinator::{Options, Policy, Server, View};
use synfire_shared::protocol::Order;
use synfire_shared::storage::Store;
use synfire_shared::token;

/// Between two looks at ranks and signals.
const LOOK: Duration = Duration::from_millis(100);
/// For the ranks to end once the run is over or they were told to stop, before they are killed.
const END: Duration = Duration::from_mins(10);
const OWN_COORDINATOR: &str = "synfire launch has a coordinator of its own: leave out --coordinator, \
                               --token-file and --rank, and start it without mpirun";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  synfire launch -n 2 -- train mine.toml
  synfire launch -n 4 --max-restarts 10 -- train mine.toml --set run.folder=runs/1
  synfire launch -n 4 --min-ranks 3 -- train mine.toml --set run.folder=s3://bucket/runs/1

Each rank is a process of its own with run.threads threads, by default its part of the cores.
SIGINT (Ctrl-C) or SIGTERM ends the run on all ranks after the batch at hand, saved, and the same
command goes on. A rank that dies or stands still is started again, and all go on from the newest
checkpoint in run.folder. Ranks average their gradients over tcp, which is for one machine: across
machines use mpirun.")]
pub(super) struct Arguments {
    /// How many ranks
    #[arg(short = 'n', long, value_name = "N")]
    ranks: u32,
    /// The fewest ranks that train on where others cannot be started again; by default all are needed
    #[arg(long, value_name = "M")]
    min_ranks: Option<u32>,
    /// How many ranks may be started again, all in all
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_restarts: u32,
    /// Where the coordinator listens: its page, its metrics, and Prometheus' list of all ranks
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// What each rank runs: train, with its arguments
    #[arg(last = true, required = true, value_name = "train ...")]
    command: Vec<String>,
}

#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true)]
struct Inner {
    #[command(subcommand)]
    verb: InnerVerb,
}

#[derive(Debug, clap::Subcommand)]
enum InnerVerb {
    /// Train a network
    Train(train::Arguments),
}

/// What each rank runs, and with how many others.
fn parsed(arguments: &Arguments) -> Result<(train::Arguments, Policy), clap::Error> {
    let Inner {
        verb: InnerVerb::Train(inner),
    } = Inner::try_parse_from(&arguments.command)?;
    let wrong = |kind, text: &str| Inner::command().error(kind, text);
    if inner.name_company() {
        return Err(wrong(ErrorKind::ArgumentConflict, OWN_COORDINATOR));
    }
    let policy = Policy {
        ranks: arguments.ranks,
        min_ranks: arguments.min_ranks.unwrap_or(arguments.ranks),
        wait: Duration::from_secs(10),
        deadline: Duration::from_mins(1),
        takes_back: false,
        version: env!("CARGO_PKG_VERSION").into(),
        folder: None,
    };
    let policy = policy.checked();
    let policy = policy.map_err(|e| wrong(ErrorKind::ValueValidation, &e.to_string()))?;
    Ok((inner, policy))
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (inner, policy) = match parsed(arguments) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            let code = if error.use_stderr() {
                super::WRONG_USAGE
            } else {
                0
            };
            return Ok(ExitCode::from(code));
        }
    };
    let run = inner.run()?;
    ensure!(inner.is_without_company()?, OWN_COORDINATOR);
    let policy = Policy {
        folder: run.folder.clone(),
        deadline: run
            .ranks
            .deadline_seconds
            .map_or(policy.deadline, Duration::from_secs_f64),
        ..policy
    };
    let store = match &run.folder {
        Some(folder) => Store::create(folder).context("run.folder")?,
        None => Store::in_memory(),
    };
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGINT, SIGTERM] {
        let value = usize::try_from(number).expect("numbers of signals are small");
        signal_hook::flag::register_usize(number, Arc::clone(&signal), value)?;
    }
    let display = Display::new();
    let options = Options {
        listen: arguments.listen,
        token: draw_token()?,
        tls: None,
        policy,
        observer: Some(Box::new(display.observer())),
    };
    let server = Server::start(options, store, crate::checkpoint::CHECKPOINTS)?;
    say!("coordinator at {}", server.url());
    let threads = run.threads;
    let mut launch = Launch {
        arguments,
        server,
        signal,
        display,
        has_metrics: inner.has_metrics(),
        threads: if threads == 0 {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            Some((cores / arguments.ranks as usize).max(1))
        } else {
            None
        },
        ranks: Vec::new(),
        restarts: 0,
    };
    let result = launch.attend();
    launch.end();
    result
}

/// A rank's process.
struct Rank {
    number: u32,
    child: Child,
    /// The rank ends when this does.
    _stdin: Option<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

struct Launch<'a> {
    arguments: &'a Arguments,
    server: Server,
    signal: Arc<AtomicUsize>,
    display: Display,
    has_metrics: bool,
    /// Threads of a rank, where the run leaves it open.
    threads: Option<usize>,
    ranks: Vec<Rank>,
    restarts: u32,
}

impl Launch<'_> {
    /// Starts all ranks and looks after them until the run is over.
    fn attend(&mut self) -> anyhow::Result<ExitCode> {
        for rank in 0..self.arguments.ranks {
            let started = self.start(rank)?;
            self.ranks.push(started);
        }
        let mut told = None;
        loop {
            let signal = self.signal.swap(0, Ordering::Relaxed);
            // A second signal does not wait for a checkpoint.
            if signal != 0 && told.is_some() {
                return Ok(train::stopped_by(signal));
            }
            // A rank that was stopped stops the run.
            let signal = Some(signal).filter(|&signal| signal != 0);
            if let (None, Some(signal)) = (told, signal.or_else(|| self.stopped_rank())) {
                told = Some((signal, Instant::now()));
                let order = Order::Stop {
                    signal: i32::try_from(signal).unwrap_or(SIGTERM),
                };
                // The ranks are told by the coordinator, all after the same batch, and by the signal,
                // for those that do not train yet.
                let _ = self.server.order(order);
                self.forward(signal);
            }
            let view = self.server.view();
            self.display.show(&view);
            self.reap()?;
            if self.ranks.iter().all(|rank| rank.ended.is_some()) {
                return self.outcome(told.map(|(signal, _)| signal));
            }
            let is_late = told.is_some_and(|(_, when)| when.elapsed() > END);
            if is_late {
                bail!(
                    "the ranks did not end within {} s of the signal: they are killed; the newest \
                     checkpoint is intact",
                    END.as_secs()
                );
            }
            if told.is_none() && view.reason.is_none() {
                self.kill_silent(&view);
                self.restart()?;
            }
            thread::sleep(LOOK);
        }
    }

    fn start(&self, rank: u32) -> anyhow::Result<Rank> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let mut command = Command::new(program);
        command.args(&self.arguments.command);
        command.args(["--coordinator", &self.server.url(), "--with-parent"]);
        command.args(["--rank", &rank.to_string()]);
        if !self.has_metrics {
            command.args(["--metrics-addr", "127.0.0.1:0"]);
        }
        if let Some(threads) = self.threads {
            command.args(["--set", &format!("run.threads={threads}")]);
        }
        command.env(token::VARIABLE, self.server.token().reveal());
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C reaches this process alone, which tells the ranks.
        command.process_group(0);
        let mut child = command.spawn().context("a rank cannot be started")?;
        let mut readers = Vec::new();
        let out = child
            .stdout
            .take()
            .map(|out| Box::new(out) as Box<dyn Read + Send>);
        let err = child
            .stderr
            .take()
            .map(|err| Box::new(err) as Box<dyn Read + Send>);
        for (source, is_error) in [(out, false), (err, true)] {
            let Some(source) = source else { continue };
            let display = self.display.clone();
            let read = move || {
                for line in BufReader::new(source).split(b'\n') {
                    let Ok(line) = line else { return };
                    display.line(rank, &String::from_utf8_lossy(&line), is_error);
                }
            };
            let reader = thread::Builder::new().name(format!("rank-{rank}"));
            readers.push(reader.spawn(read)?);
        }
        Ok(Rank {
            number: rank,
            _stdin: child.stdin.take(),
            child,
            readers,
            ended: None,
        })
    }

    /// Sends a signal to all ranks.
    fn forward(&self, signal: usize) {
        for rank in self.ranks.iter().filter(|rank| rank.ended.is_none()) {
            send(signal, rank.child.id());
        }
    }

    /// The signal that a rank ended on.
    fn stopped_rank(&self) -> Option<usize> {
        let mut codes = self.ranks.iter().filter_map(|rank| rank.ended?.code());
        codes.find_map(stop_signal)
    }

    /// Learns which ranks have ended.
    fn reap(&mut self) -> anyhow::Result<()> {
        for rank in self.ranks.iter_mut().filter(|rank| rank.ended.is_none()) {
            rank.ended = rank
                .child
                .try_wait()
                .context("a rank cannot be waited for")?;
        }
        Ok(())
    }

    /// Kills a rank that ended the newest generation by standing still, unless it is back.
    fn kill_silent(&mut self, view: &View) {
        let Some(lost) = view.ended.first().and_then(|ended| ended.lost.as_ref()) else {
            return;
        };
        let is_back = view.members.iter().any(|m| m.member.pid == lost.pid)
            || view.waiting.iter().any(|waiting| waiting.pid == lost.pid);
        let of_pid = |rank: &&mut Rank| rank.child.id() == lost.pid && rank.ended.is_none();
        if let (false, Some(rank)) = (is_back, self.ranks.iter_mut().find(of_pid)) {
            // Standing still is no reason not to be killed.
            let _ = rank.child.kill();
        }
    }

    /// Starts ranks again that have ended without success.
    fn restart(&mut self) -> anyhow::Result<()> {
        for index in 0..self.ranks.len() {
            let Some(status) = self.ranks[index].ended else {
                continue;
            };
            if status.success() {
                continue;
            }
            let rank = self.ranks[index].number;
            let how = shown(status);
            match status.code() {
                // What a configuration or data set is to blame for happens again.
                Some(code) if stop_signal(code).is_none() => return Err(failed(rank, code)),
                // It was stopped: so are the others, after the same batch.
                Some(_) => continue,
                None => {}
            }
            if self.restarts >= self.arguments.max_restarts {
                let min_ranks = self.arguments.min_ranks.unwrap_or(self.arguments.ranks);
                let left = self.ranks.iter().filter(|rank| rank.ended.is_none());
                if left.count() >= min_ranks as usize {
                    continue;
                }
                bail!(
                    "rank {rank} ended with {how}, after {} restarts (--max-restarts): the same \
                     command goes on from the newest checkpoint",
                    self.restarts
                );
            }
            self.restarts += 1;
            let (count, most) = (self.restarts, self.arguments.max_restarts);
            self.display.warn(&format!(
                "rank {rank} ended with {how}: started again ({count} of {most} restarts)"
            ));
            let again = self.start(rank)?;
            let old = std::mem::replace(&mut self.ranks[index], again);
            old.readers
                .into_iter()
                .for_each(|reader| drop(reader.join()));
        }
        Ok(())
    }

    /// How the run ended, all ranks having done so.
    fn outcome(&self, signal: Option<usize>) -> anyhow::Result<ExitCode> {
        let statuses = || {
            self.ranks
                .iter()
                .filter_map(|rank| Some((rank.number, rank.ended?)))
        };
        if statuses().any(|(_, status)| status.success()) {
            return Ok(ExitCode::SUCCESS);
        }
        let codes = || statuses().filter_map(|(rank, status)| Some((rank, status.code()?)));
        let signal = signal.or_else(|| codes().find_map(|(_, code)| stop_signal(code)));
        if let Some(signal) = signal {
            return Ok(train::stopped_by(signal));
        }
        match codes().next() {
            Some((rank, code)) => Err(failed(rank, code)),
            None => Ok(ExitCode::FAILURE),
        }
    }

    /// Ends what still runs.
    fn end(mut self) {
        for rank in &mut self.ranks {
            if rank.ended.is_none() {
                let _ = rank.child.kill();
                let _ = rank.child.wait();
            }
        }
        for reader in self.ranks.into_iter().flat_map(|rank| rank.readers) {
            let _ = reader.join();
        }
        self.display.finish();
        self.server.stop();
    }
}

/// Sends a signal to a process of ours.
fn send(signal: usize, process: u32) {
    // The shell's command: a system call of one's own would be unsafe code.
    let signal = format!("-{signal}");
    let sent = Command::new("kill")
        .args([&signal, &process.to_string()])
        .status();
    if let Err(error) = sent {
        tracing::warn!(%error, "a rank could not be told of the signal");
    }
}

/// The signal that an exit status tells of.
fn stop_signal(code: i32) -> Option<usize> {
    let signal = [SIGINT, SIGTERM].into_iter().find(|s| code == 128 + s)?;
    usize::try_from(signal).ok()
}

fn failed(rank: u32, code: i32) -> anyhow::Error {
    anyhow::anyhow!("rank {rank} ended with status {code}: see its error above")
}

fn shown(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".into(),
    }
}
