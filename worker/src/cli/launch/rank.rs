//! The process of one rank: started, told of a signal, ended.

use super::super::temporary::TEMPORARY;
use super::display::Display;
use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use synfire_shared::token::{self, Token};

/// What all ranks are started with.
pub(super) struct Start {
    /// The verb with its arguments.
    pub(super) command: Vec<String>,
    /// Where the coordinator is.
    pub(super) url: String,
    pub(super) token: Token,
    /// Whether the arguments say where metrics are served.
    pub(super) has_metrics: bool,
    /// Threads of a rank, where the run leaves it open.
    pub(super) threads: Option<usize>,
}

/// A rank's process.
pub(super) struct Rank {
    pub(super) number: u32,
    child: Child,
    /// The rank ends when this does, and stops on the signals that are written to it.
    stdin: Option<ChildStdin>,
    readers: Vec<JoinHandle<()>>,
    pub(super) ended: Option<ExitStatus>,
    /// The others go on without it: how it ended is not how the run did.
    pub(super) is_given_up: bool,
}

impl Start {
    /// Starts a rank.
    ///
    /// # Errors
    /// If the operating system gives no process or thread.
    pub(super) fn rank(&self, number: u32, display: &Display) -> anyhow::Result<Rank> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let mut command = Command::new(program);
        command.args(&self.command);
        command.args(["--coordinator", &self.url, "--with-parent"]);
        command.args(["--rank", &number.to_string()]);
        if !self.has_metrics {
            command.args(["--metrics-addr", "127.0.0.1:0"]);
        }
        if let Some(threads) = self.threads {
            command.args(["--set", &format!("run.threads={threads}")]);
        }
        command.env(token::VARIABLE, self.token.reveal());
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C reaches the launcher alone, which tells the ranks.
        command.process_group(0);
        let mut child = command.spawn().context("a rank cannot be started")?;
        let out = child.stdout.take();
        let out = out.map(|out| Box::new(out) as Box<dyn Read + Send>);
        let err = child.stderr.take();
        let err = err.map(|err| Box::new(err) as Box<dyn Read + Send>);
        let mut rank = Rank {
            number,
            stdin: child.stdin.take(),
            child,
            readers: Vec::new(),
            ended: None,
            is_given_up: false,
        };
        for (source, is_error) in [(out, false), (err, true)] {
            let Some(source) = source else { continue };
            let display = display.clone();
            let read = move || {
                for line in BufReader::new(source).split(b'\n') {
                    let Ok(line) = line else { return };
                    display.line(number, &String::from_utf8_lossy(&line), is_error);
                }
            };
            let reader = thread::Builder::new().name(format!("rank-{number}"));
            match reader.spawn(read) {
                Ok(reader) => rank.readers.push(reader),
                Err(error) => {
                    rank.end();
                    return Err(error.into());
                }
            }
        }
        Ok(rank)
    }
}

impl Rank {
    /// Its number on this machine.
    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Tells it of a signal. That it has ended is no error.
    pub(super) fn tell(&mut self, signal: usize) {
        if let (Some(stdin), Ok(signal)) = (&mut self.stdin, u8::try_from(signal)) {
            // One byte always has room.
            let _ = stdin.write_all(&[signal]);
        }
    }

    /// Learns whether it has ended.
    ///
    /// # Errors
    /// If the operating system does not know the process.
    pub(super) fn reap(&mut self) -> anyhow::Result<()> {
        if self.ended.is_none() {
            let ended = self.child.try_wait();
            self.ended = ended.context("a rank cannot be waited for")?;
        }
        Ok(())
    }

    /// Kills it: standing still is no reason not to be killed.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Ends it if it still runs, and waits until all that it said is shown.
    pub(super) fn end(&mut self) {
        if self.ended.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// What follows from how a rank ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The run is finished for it.
    Success,
    /// It was stopped by this signal, as all are.
    Stopped(usize),
    /// It was killed, or another try may mend what happened: it may be started again.
    Passing,
    /// What a configuration or data set is to blame for happens again.
    Failed(i32),
}

impl End {
    /// What an exit status means.
    pub(super) fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Success,
            None => Self::Passing,
            Some(code) if code == i32::from(TEMPORARY) => Self::Passing,
            Some(code) => stop_signal(code).map_or(Self::Failed(code), Self::Stopped),
        }
    }
}

/// The signal that an exit status tells of.
fn stop_signal(code: i32) -> Option<usize> {
    let signal = [SIGINT, SIGTERM].into_iter().find(|s| code == 128 + s)?;
    usize::try_from(signal).ok()
}

/// An exit status in words.
pub(super) fn shown(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_a_reason_to_start_again() {
        // As the operating system packs them: the exit status above the signal.
        let of = |code: i32| End::of(ExitStatus::from_raw(code << 8));
        assert_eq!(of(0), End::Success);
        assert_eq!(of(130), End::Stopped(2));
        assert_eq!(of(143), End::Stopped(15));
        assert_eq!(of(75), End::Passing);
        for code in [1, 2, 64, 101, 134] {
            assert_eq!(of(code), End::Failed(code));
        }
        assert_eq!(End::of(ExitStatus::from_raw(9)), End::Passing);
    }
}
