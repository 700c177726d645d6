//! `synfire launch`: the ranks of a run on this machine, with the coordinator in this process.
//!
//! # Layout
//!
//! - this file: ranks are started, looked after and ended.
//! - `rank`: the process of one of them.
//! - `display`: what is shown of them.

mod display;
mod rank;

use super::temporary::Temporary;
use super::{say, train};
use anyhow::{Context as _, bail, ensure};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use display::Display;
use rank::{End, Rank, Start, shown};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::net::SocketAddr;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use synfire_coordinator::serve::draw_token;
use synfire_coordinator::{MAX_FAILURES, Options, Policy, Server, View};
use synfire_shared::protocol::Order;
use synfire_shared::storage::Store;

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
command goes on. A rank that dies, stands still or ends with status 75 (a store out of reach, say)
is started again, and all go on from the newest checkpoint in run.folder; any other failure of a
rank ends the launch. Ranks average their gradients over tcp, which is for one machine: across
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
        max_failures: MAX_FAILURES,
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
    let threads = (run.threads == 0).then(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        (cores / arguments.ranks as usize).max(1)
    });
    let mut launch = Launch {
        arguments,
        start: Start {
            command: arguments.command.clone(),
            url: server.url(),
            token: server.token().clone(),
            has_metrics: inner.has_metrics(),
            threads,
        },
        server,
        signal,
        display,
        ranks: Vec::new(),
        restarts: 0,
    };
    let result = launch.attend();
    launch.end();
    result
}

struct Launch<'a> {
    arguments: &'a Arguments,
    start: Start,
    server: Server,
    signal: Arc<AtomicUsize>,
    display: Display,
    ranks: Vec<Rank>,
    restarts: u32,
}

impl Launch<'_> {
    /// Starts all ranks and looks after them until the run is over.
    fn attend(&mut self) -> anyhow::Result<ExitCode> {
        for rank in 0..self.arguments.ranks {
            let started = self.start.rank(rank, &self.display)?;
            self.ranks.push(started);
        }
        let (mut told, mut ending) = (None, None);
        loop {
            let signal = self.signal.swap(0, Ordering::Relaxed);
            // A second signal does not wait for a checkpoint.
            if signal != 0 && told.is_some() {
                return Ok(train::stopped_by(signal));
            }
            // A rank that was stopped stops the run.
            let signal = Some(signal).filter(|&signal| signal != 0);
            if let (None, Some(signal)) = (told, signal.or_else(|| self.stopped_rank())) {
                told = Some(signal);
                let order = Order::Stop {
                    signal: i32::try_from(signal).unwrap_or(SIGTERM),
                };
                // The ranks are told by the coordinator, all after the same batch, and by the signal,
                // for those that do not train yet.
                let _ = self.server.order(order);
                self.ranks.iter_mut().for_each(|rank| rank.tell(signal));
            }
            let view = self.server.view();
            self.display.show(&view);
            for rank in &mut self.ranks {
                rank.reap()?;
            }
            // All ranks finish together, whatever of it the coordinator has heard.
            let is_finished = self.ends().any(|(_, status)| status.success());
            let goes_on = told.is_none() && view.reason.is_none() && !is_finished;
            if goes_on {
                self.kill_silent(&view);
                self.restart()?;
            }
            // They may have ended all at once, and been started again.
            if self.ranks.iter().all(|rank| rank.ended.is_some()) {
                return outcome(self.last_ends(), told);
            }
            if !goes_on && ending.get_or_insert_with(Instant::now).elapsed() > END {
                bail!(
                    "the ranks did not end within {} s of the signal or of the end of the run: they \
                     are killed; the newest checkpoint is intact",
                    END.as_secs()
                );
            }
            thread::sleep(LOOK);
        }
    }

    /// The signal that a rank ended on.
    fn stopped_rank(&self) -> Option<usize> {
        self.ends().find_map(|(_, status)| match End::of(status) {
            End::Stopped(signal) => Some(signal),
            End::Success | End::Passing | End::Failed(_) => None,
        })
    }

    /// The ranks that have ended, and how.
    fn ends(&self) -> impl Iterator<Item = (u32, ExitStatus)> {
        let ranks = self.ranks.iter();
        ranks.filter_map(|rank| Some((rank.number, rank.ended?)))
    }

    /// How those have ended that the others did not go on without.
    fn last_ends(&self) -> impl Iterator<Item = (u32, ExitStatus)> + Clone {
        let ranks = self.ranks.iter().filter(|rank| !rank.is_given_up);
        ranks.filter_map(|rank| Some((rank.number, rank.ended?)))
    }

    /// Kills a rank that ended the newest generation by standing still, unless it is back.
    fn kill_silent(&mut self, view: &View) {
        let Some(lost) = view.ended.first().and_then(|ended| ended.lost.as_ref()) else {
            return;
        };
        let is_back = view.members.iter().any(|m| m.member.pid == lost.pid)
            || view.waiting.iter().any(|waiting| waiting.pid == lost.pid);
        let of_pid = |rank: &&mut Rank| rank.process() == lost.pid && rank.ended.is_none();
        if let (false, Some(rank)) = (is_back, self.ranks.iter_mut().find(of_pid)) {
            rank.kill();
        }
    }

    /// Starts ranks again that have ended without success.
    fn restart(&mut self) -> anyhow::Result<()> {
        for index in 0..self.ranks.len() {
            let Some(status) = self.ranks[index].ended else {
                continue;
            };
            let number = self.ranks[index].number;
            let how = shown(status);
            match End::of(status) {
                // Where it was stopped so are the others, after the same batch.
                End::Success | End::Stopped(_) => continue,
                End::Failed(code) => return Err(failed(number, code)),
                End::Passing => {}
            }
            if self.restarts >= self.arguments.max_restarts {
                let min_ranks = self.arguments.min_ranks.unwrap_or(self.arguments.ranks);
                let left = self.ranks.iter().filter(|rank| rank.ended.is_none());
                if left.count() >= min_ranks as usize {
                    self.ranks[index].is_given_up = true;
                    continue;
                }
                let text = format!(
                    "rank {number} ended with {how}, after {} restarts (--max-restarts): the same \
                     command goes on from the newest checkpoint",
                    self.restarts
                );
                return Err(Temporary(text).into());
            }
            self.restarts += 1;
            let (count, most) = (self.restarts, self.arguments.max_restarts);
            self.display.warn(&format!(
                "rank {number} ended with {how}: started again ({count} of {most} restarts)"
            ));
            let again = self.start.rank(number, &self.display)?;
            std::mem::replace(&mut self.ranks[index], again).end();
        }
        Ok(())
    }

    /// Ends what still runs, at once.
    fn end(mut self) {
        self.ranks
            .iter_mut()
            .filter(|rank| rank.ended.is_none())
            .for_each(Rank::kill);
        self.ranks.iter_mut().for_each(Rank::end);
        self.display.finish();
        self.server.stop();
    }
}

/// How the run ended, all ranks having done so.
fn outcome(
    ends: impl Iterator<Item = (u32, ExitStatus)> + Clone,
    told: Option<usize>,
) -> anyhow::Result<ExitCode> {
    let mut signal = told;
    let mut is_finished = false;
    let mut passing = None;
    for (rank, status) in ends {
        match End::of(status) {
            End::Success => is_finished = true,
            End::Stopped(by) => signal = signal.or(Some(by)),
            End::Failed(code) => return Err(failed(rank, code)),
            End::Passing => passing = passing.or(Some((rank, status))),
        }
    }
    // A rank that failed says that something was not done, whatever the others did.
    if let Some((rank, status)) = passing {
        let remedy = match status.code() {
            Some(_) => "see its error above",
            None => "the same command goes on from the newest checkpoint",
        };
        let text = format!("rank {rank} ended with {}: {remedy}", shown(status));
        return Err(Temporary(text).into());
    }
    if is_finished {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(signal.map_or(ExitCode::FAILURE, train::stopped_by))
}

fn failed(rank: u32, code: i32) -> anyhow::Error {
    anyhow::anyhow!("rank {rank} ended with status {code}: see its error above")
}

#[cfg(test)]
mod tests {
    use super::super::temporary;
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    /// The exit status of a run whose ranks ended so.
    fn of(ends: &[(u32, ExitStatus)], told: Option<usize>) -> ExitCode {
        outcome(ends.iter().copied(), told).unwrap_or_else(|error| temporary::code(&error))
    }

    #[test]
    fn a_run_ends_as_its_ranks_do() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        let killed = ExitStatus::from_raw(9);
        for (first, second, told, code) in [
            (exited(0), exited(0), None, 0),
            (exited(143), exited(143), None, 143),
            (exited(130), exited(130), Some(2), 130),
            // Told of it, but done.
            (exited(0), exited(0), Some(2), 0),
            // Something was not done, a file of weights for example.
            (exited(75), exited(0), None, 75),
            (killed, exited(0), None, 75),
            (exited(0), exited(1), None, 1),
            (exited(75), exited(1), None, 1),
            (exited(143), exited(75), Some(15), 75),
        ] {
            let ends = [(0, first), (1, second)];
            assert_eq!(of(&ends, told), ExitCode::from(code), "{ends:?} {told:?}");
        }
        // All others were given up.
        assert_eq!(of(&[(1, exited(0))], None), ExitCode::SUCCESS);
    }
}
