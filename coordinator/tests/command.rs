//! The command: what it wants, what it prints, how it stops.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "what is only called by tests is a test, too"
)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};

use support::*;

fn command(folder: &Folder, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synfire-coordinator"));
    command
        .env_remove("SYNFIRE_TOKEN")
        .env_remove("SYNFIRE_LOG");
    command.args(["--run", folder.0.join("run").to_str().unwrap()]);
    command
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A coordinator that is killed when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts; the lines that it prints, until it listens.
    fn start(mut command: Command) -> (Self, SocketAddr, impl Iterator<Item = String>) {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        let first = lines.next().unwrap();
        let (_, url) = first.split_once("http://").unwrap();
        (Self(child), url.parse().unwrap(), lines)
    }

    /// Sends a signal; the exit status.
    fn signal(mut self, signal: &str) -> Option<i32> {
        let id = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        self.0.wait().unwrap().code()
    }
}

#[test]
fn wrong_usage_is_told_with_status_64() {
    let folder = Folder::new();
    for (arguments, part) in [
        (&[][..], "--ranks"),
        (&["--ranks", "0"], "1 to 64"),
        (&["--ranks", "2", "--min-ranks", "3"], "give 1 to 2"),
        (&["--ranks", "2", "--listen", "localhost"], "127.0.0.1:9470"),
        (&["--ranks", "2", "--tls-cert", "x"], "--tls-key"),
        (&["--ranks", "2", "--deadline", "0"], "--deadline"),
        (&["--ranks", "2", "--nonsense"], "--nonsense"),
    ] {
        let output = command(&folder, arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains(part), "{part}: {said}");
    }
    let output = command(&folder, &["--help"]).output().unwrap();
    assert!(output.status.success());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("Examples:")
    );
}

#[test]
fn what_cannot_be_used_is_an_error_that_names_it() {
    let folder = Folder::new();
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listening.local_addr().unwrap().to_string();
    let short = folder.0.join("short");
    std::fs::write(&short, "abc").unwrap();
    let short = short.to_str().unwrap();
    for (arguments, part) in [
        (&["--token-file", short][..], short),
        (&["--token-file", "/nowhere/token"], "/nowhere/token"),
        (
            &["--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k"],
            "/nowhere/c",
        ),
        (&["--run", "s3://key:geheim@bucket/run"], "--run"),
    ] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--ranks", "1", "--listen", "0"]);
        let mut command = command(&folder, &[]);
        if arguments.contains(&"--run") {
            command = Command::new(env!("CARGO_BIN_EXE_synfire-coordinator"));
        }
        let output = command.args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(part) && !said.contains("geheim"),
            "{part}: {said}"
        );
    }
    let output = command(&folder, &["--ranks", "1", "--listen", &taken])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&taken), "{said}");
}

#[test]
fn a_token_is_drawn_printed_or_kept_where_nobody_else_reads_it() {
    let folder = Folder::new();
    let (running, address, mut lines) =
        { Running::start(command(&folder, &["--ranks", "1", "--listen", "0"])) };
    assert!(address.ip().is_loopback());
    let line = lines.next().unwrap();
    let token = line.split("SYNFIRE_TOKEN=").nth(1).unwrap();
    let token = token.split(' ').next().unwrap();
    let shown = format!("Authorization: Bearer {token}\r\n");
    assert_eq!(ask(address, "GET /v1/status", &shown, "").status, 200);
    assert_eq!(ask(address, "GET /v1/status", &bearer(), "").status, 401);
    assert_eq!(running.signal("-TERM"), Some(0));

    let file = folder.0.join("token");
    let arguments = [
        "--ranks",
        "1",
        "--listen",
        "0",
        "--token-file",
        file.to_str().unwrap(),
    ];
    let (running, address, _) = Running::start(command(&folder, &arguments));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    let shown = format!("Authorization: Bearer {}\r\n", token.trim());
    assert_eq!(ask(address, "GET /v1/status", &shown, "").status, 200);
    assert_eq!(running.signal("-INT"), Some(0));
    // Once more: the file's token is taken.
    let (_running, address, _) = Running::start(command(&folder, &arguments));
    assert_eq!(ask(address, "GET /v1/status", &shown, "").status, 200);
}

#[test]
fn it_ends_with_the_run_where_that_is_wanted() {
    let folder = Folder::new();
    let mut command = command(&folder, &["--ranks", "1", "--listen", "0", "--until-over"]);
    command.env("SYNFIRE_TOKEN", TOKEN);
    let (mut running, address, _) = Running::start(command);
    let mut fake = Fake::new(1, None);
    fake.request.identity.folder = Some(folder.0.join("run").display().to_string());
    fake.request.version = env!("CARGO_PKG_VERSION").into();
    let generation = form(address, &[&fake]);
    let leave = serde_json::json!({
        "process": fake.process(), "generation": generation, "reason": {"kind": "finished"},
    });
    assert_eq!(post(address, "/v1/leave", &leave.to_string()).status, 200);
    assert_eq!(fake.join(address).json()["answer"], "over");
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
