//! One rank of a generation that a coordinator forms: it joins, trains, and joins again when a
//! generation is over.

use super::super::temporary::Temporary;
use super::super::train::{Job, Outcome};
use super::parent::Parent;
use super::{Seat, identity};
use crate::collective::tcp::Tcp;
use crate::collective::{Collective, CollectiveError, Interrupt};
use crate::control::{self, Control, ControlError, Joined, Membership, Notice, Waiting};
use crate::data::Source;
use crate::train::{Beat, Event, Generation, Options, Phase, Pulse, TrainError};
use anyhow::{Context as _, ensure};
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use synfire_shared::checkpoint::manifest_of_name;
use synfire_shared::ids::Rank;
use synfire_shared::protocol::{self, Assignment, JoinRequest, PROTOCOL, Reason};

/// For the ranks of a generation to connect to each other.
const CONNECT: Duration = Duration::from_secs(30);

/// How the ranks of a generation average.
pub(in super::super) enum Means {
    /// Over connections of their own, in every generation anew.
    Tcp,
    /// By what `mpirun` has set up, once: there is no second generation.
    #[cfg(feature = "mpi")]
    Mpi(Option<Box<dyn Collective>>),
}

/// What the thread of the heartbeats tells the training thread.
#[derive(Default)]
struct Told {
    /// Why the generation is over.
    abandoned: Option<String>,
    interrupt: Option<Interrupt>,
}

/// Shared by both threads.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<Told>>);

impl Line {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The generation is over: whoever waits for others waits no more.
    fn abandon(&self, reason: String) {
        let mut told = self.told();
        if let Some(interrupt) = &told.interrupt {
            interrupt.interrupt(reason.clone());
        }
        told.abandoned = Some(reason);
    }

    /// Who is to be interrupted.
    fn watch(&self, interrupt: Interrupt) {
        let mut told = self.told();
        if let Some(reason) = &told.abandoned {
            interrupt.interrupt(reason.clone());
        }
        told.interrupt = Some(interrupt);
    }
}

/// Trains as a rank until the run is over.
pub(in super::super) fn run_member(
    seat: &Seat,
    means: &mut Means,
    job: &Job<'_>,
) -> anyhow::Result<ExitCode> {
    let mut member = Member::new(seat, job)?;
    loop {
        match member.generation(means)? {
            Ended::Over(code) => return Ok(code),
            // Under mpirun the job ends: what it has set up is gone with a rank.
            Ended::Again { reason, .. } if matches!(means, Means::Tcp) => {
                job.tell_warning(&format!("{reason}; joining again"));
            }
            // Nor does who was told to stop wait to save where a peer is gone.
            Ended::Again { .. } if member.stop.load(Ordering::Relaxed) != 0 => {
                let signal = member.stop.load(Ordering::Relaxed);
                return Ok(super::super::train::stopped_by(signal));
            }
            Ended::Again { reason, passes } => {
                ensure!(passes, reason);
                return Err(Temporary(reason).into());
            }
        }
    }
}

/// How a generation ended for this rank.
enum Ended {
    Over(ExitCode),
    Again {
        reason: String,
        /// Whether another try may mend it.
        passes: bool,
    },
}

struct Member<'a> {
    job: &'a Job<'a>,
    seat: &'a Seat,
    source: Source,
    request: JoinRequest,
    control: Control,
    stop: Arc<AtomicUsize>,
}

impl<'a> Member<'a> {
    fn new(seat: &'a Seat, job: &'a Job<'a>) -> anyhow::Result<Self> {
        // A launcher's signal ends this process at once until there is something to be saved.
        let parent = seat.with_parent.then(Parent::watch).transpose()?;
        let source = Source::open(&job.run.data, job.run.seed)?;
        let stop = Job::stop_flag()?;
        if let Some(parent) = parent {
            parent.stop_by(&stop);
        }
        let request = JoinRequest {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            process: control::process_id()?,
            host: control::host(),
            pid: std::process::id(),
            rank: seat.place.rank,
            world: seat.place.world,
            identity: identity(&job.run, &source)?,
            collective: None,
            metrics: job.metrics_address(),
            left: 0,
        };
        Ok(Self {
            control: Control::new(&seat.coordinator)?,
            job,
            seat,
            source,
            request,
            stop,
        })
    }

    /// Joins one generation and trains in it.
    fn generation(&mut self, means: &mut Means) -> anyhow::Result<Ended> {
        let listener = self.listener(means)?;
        let address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        self.request.collective = address;
        let assignment = match self.join()? {
            Some(Joined::Start(assignment)) => assignment,
            Some(Joined::Over { reason, status }) => {
                ensure!(status != 1, "the run is over: {reason}");
                self.job.tell_note(&format!("the run is over: {reason}"));
                return Ok(Ended::Over(ExitCode::from(status)));
            }
            None => {
                let signal = self.stop.load(Ordering::Relaxed);
                return Ok(Ended::Over(super::super::train::stopped_by(signal)));
            }
        };
        let (line, save) = (Line::default(), Arc::new(AtomicBool::new(false)));
        let membership = self.membership(&assignment, &line, &save)?;
        let stops = || self.why_not(&line);
        let collective = match connect(&assignment, listener, means, &stops) {
            Ok(collective) => collective,
            // It would be the same in every generation.
            Err(error @ CollectiveError::Group { .. }) => {
                let message = error.to_string();
                let lost = None;
                let _ = membership.leave(Reason::Failed { message, lost });
                return Err(error.into());
            }
            Err(error) => return Ok(self.failed(membership, &line, &error.into())),
        };
        line.watch(collective.interrupt());
        let (pulse, report) = (membership.report(), membership.report());
        let options = Options {
            generation: Some(generation_of(&assignment)),
            source: Some(self.source.clone()),
            stop: Arc::clone(&self.stop),
            save: Arc::clone(&save),
            pulse: Arc::new(Pulse::to(move |beat| {
                pulse.set(|status| copy(*beat, status));
            })),
            ..Options::default()
        };
        let told = Some((assignment.rank, assignment.world, assignment.generation));
        let mut see = |event: &Event| {
            if let Event::CheckpointEnded {
                bytes: Some(_),
                manifest,
                epoch,
                ..
            } = event
            {
                save.store(false, Ordering::Relaxed);
                report.checkpoint(manifest.to_string(), manifest.batches_done, *epoch);
            }
        };
        let outcome = self.job.train(&options, Some(collective), told, &mut see);
        self.left(membership, &line, outcome)
    }

    /// Says farewell after training, and tells what comes next.
    fn left(
        &self,
        membership: Membership,
        line: &Line,
        outcome: anyhow::Result<Outcome>,
    ) -> anyhow::Result<Ended> {
        let error = match outcome {
            Ok(outcome) => {
                let reason = match outcome {
                    Outcome::Finished => Reason::Finished,
                    Outcome::Stopped(signal) => Reason::Stopped {
                        signal: i32::try_from(signal).unwrap_or(15),
                    },
                };
                if let Err(error) = membership.leave(reason) {
                    self.job.tell_warning(&error.to_string());
                }
                return Ok(Ended::Over(outcome.code()));
            }
            Err(error) => error,
        };
        let of_training = error.downcast_ref::<TrainError>();
        if let Some(error) = of_training
            && (is_of_the_group(error) || line.told().abandoned.is_some())
        {
            return Ok(self.failed(membership, line, error));
        }
        let (message, lost) = (format!("{error:#}"), None);
        let _ = membership.leave(Reason::Failed { message, lost });
        Err(error)
    }

    /// The listener for the other ranks, where they connect to it.
    fn listener(&self, means: &Means) -> anyhow::Result<Option<TcpListener>> {
        match means {
            Means::Tcp => {
                let listener = TcpListener::bind((self.seat.bind, 0));
                let listener = listener.with_context(|| format!("--bind {}", self.seat.bind));
                listener.map(Some)
            }
            #[cfg(feature = "mpi")]
            Means::Mpi(_) => Ok(None),
        }
    }

    /// Waits for a place; nothing where a signal came.
    fn join(&mut self) -> anyhow::Result<Option<Joined>> {
        let (stop, job) = (Arc::clone(&self.stop), self.job);
        let mut last = None;
        let joined = self
            .control
            .join(&self.request, self.seat.waits, &mut |waiting| {
                if last.as_ref() != Some(&said(waiting)) {
                    job.tell_note(&said(waiting));
                    last = Some(said(waiting));
                }
                if stop.load(Ordering::Relaxed) == 0 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
        match joined {
            Ok(joined) => Ok(Some(joined)),
            Err(ControlError::Interrupted) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts the heartbeats.
    fn membership(
        &self,
        assignment: &Assignment,
        line: &Line,
        save: &Arc<AtomicBool>,
    ) -> anyhow::Result<Membership> {
        let (line, save, stop) = (line.clone(), Arc::clone(save), Arc::clone(&self.stop));
        let warn = self.job.warner();
        let is_rank_0 = self.seat.is_rank_0_the_coordinator;
        let notify = move |notice| match notice {
            Notice::Save => save.store(true, Ordering::Relaxed),
            Notice::Stop { signal } => {
                let signal = usize::try_from(signal).unwrap_or(15);
                let _ = stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
            }
            Notice::Abandon { reason } => line.abandon(reason),
            Notice::Unreachable { seconds, reason } if is_rank_0 => line.abandon(format!(
                "rank 0, which has the coordinator, has not answered for {seconds} s ({reason})"
            )),
            Notice::Unreachable { seconds, reason } => warn(&format!(
                "the coordinator has not answered for {seconds} s ({reason}); training goes on"
            )),
            Notice::Reachable => warn("the coordinator answers again"),
        };
        let process = &self.request.process;
        let member = self
            .control
            .member(process, assignment.generation, Box::new(notify));
        Ok(member?)
    }

    /// Why this rank does not wait for others, if so.
    fn why_not(&self, line: &Line) -> Option<String> {
        let is_stopped = self.stop.load(Ordering::Relaxed) != 0;
        let stopped = is_stopped.then(|| "it was told to stop".to_owned());
        line.told().abandoned.clone().or(stopped)
    }

    /// The generation is over for this rank: tells why, unless the coordinator did.
    fn failed(&self, membership: Membership, line: &Line, error: &TrainError) -> Ended {
        if let Some(reason) = line.told().abandoned.take() {
            return Ended::Again {
                reason,
                passes: true,
            };
        }
        let message = format!("{:#}", anyhow::Error::msg(error.to_string()));
        let reason = match error {
            TrainError::DamagedStart { manifest, .. } => Reason::DamagedStart {
                manifest: manifest.to_string(),
                message: message.clone(),
            },
            TrainError::Ranks(error) => Reason::Failed {
                lost: lost(error),
                message: message.clone(),
            },
            TrainError::Data(_)
            | TrainError::Node(_)
            | TrainError::Checkpoint(_)
            | TrainError::Weights(_)
            | TrainError::Disagree { .. }
            | TrainError::BatchTooLarge { .. }
            | TrainError::Device { .. }
            | TrainError::Evaluation { .. }
            | TrainError::Fault { .. } => Reason::Failed {
                lost: None,
                message: message.clone(),
            },
        };
        if let Err(error) = membership.leave(reason) {
            self.job.tell_warning(&error.to_string());
        }
        let passes = !matches!(error, TrainError::DamagedStart { has_older, .. } if !has_older);
        let reason = message;
        Ended::Again { reason, passes }
    }
}

/// The generation as training knows it.
fn generation_of(assignment: &Assignment) -> Generation {
    let start = assignment.start.as_ref();
    Generation {
        number: assignment.generation,
        start: start.and_then(|start| manifest_of_name(&start.manifest)),
    }
}

/// Whether another generation may go better.
fn is_of_the_group(error: &TrainError) -> bool {
    match error {
        // What ranks differ in, they differ in again.
        TrainError::Ranks(error) => matches!(
            error,
            CollectiveError::Lost { .. }
                | CollectiveError::Deadline { .. }
                | CollectiveError::Left { .. }
                | CollectiveError::Interrupted { .. }
                | CollectiveError::Device { .. }
                | CollectiveError::Io { .. }
        ),
        TrainError::DamagedStart { .. } => true,
        TrainError::Checkpoint(error) => error.is_taken_over(),
        TrainError::Data(_)
        | TrainError::Node(_)
        | TrainError::Weights(_)
        | TrainError::Disagree { .. }
        | TrainError::BatchTooLarge { .. }
        // Its process has to be started anew.
        | TrainError::Device { .. }
        | TrainError::Evaluation { .. }
        | TrainError::Fault { .. } => false,
    }
}

/// The rank that is lost, as far as an error says.
fn lost(error: &CollectiveError) -> Option<u32> {
    let rank = match error {
        CollectiveError::Lost { rank, .. } | CollectiveError::Left { rank, .. } => Some(rank),
        CollectiveError::Deadline { missing, .. } => missing.first(),
        CollectiveError::Unequal { .. }
        | CollectiveError::OutOfStep { .. }
        | CollectiveError::Interrupted { .. }
        | CollectiveError::TooLong { .. }
        | CollectiveError::Group { .. }
        | CollectiveError::Device { .. }
        | CollectiveError::Io { .. } => None,
    };
    rank.map(|rank| rank.0)
}

/// What is waited for, in one line.
fn said(waiting: &Waiting) -> String {
    match waiting {
        Waiting::Coordinator { reason } => format!("waiting for the coordinator: {reason}"),
        Waiting::Ranks { missing, .. } if missing.is_empty() => "waiting for a place".into(),
        Waiting::Ranks { missing, .. } => format!("waiting: {}", missing.join("; ")),
    }
}

/// Connects the ranks of a generation.
fn connect(
    assignment: &Assignment,
    listener: Option<TcpListener>,
    means: &mut Means,
    stops: &dyn Fn() -> Option<String>,
) -> Result<Box<dyn Collective>, CollectiveError> {
    let group = |reason: String| CollectiveError::Group { reason };
    match means {
        Means::Tcp => {
            let addresses: Option<Vec<SocketAddr>> = assignment
                .members
                .iter()
                .map(|member| member.collective)
                .collect();
            let addresses =
                addresses.ok_or_else(|| group("a rank has no address to connect to".into()))?;
            let own = &assignment.members[assignment.rank as usize];
            if let Some(other) = assignment.members.iter().find(|m| m.host != own.host)
                && addresses.iter().any(|address| address.ip().is_loopback())
            {
                return Err(group(format!(
                    "{} and {} are two machines, and ranks that average over tcp are meant for one: \
                     start them with mpirun",
                    own.host, other.host
                )));
            }
            let listener = listener.ok_or_else(|| group("nothing listens".into()))?;
            let rank = Rank(assignment.rank);
            let secret = &assignment.secret;
            let tcp = Tcp::connect_unless(stops, rank, &addresses, listener, secret, CONNECT)?;
            Ok(Box::new(tcp))
        }
        #[cfg(feature = "mpi")]
        Means::Mpi(collective) => collective
            .take()
            .ok_or_else(|| group("mpirun sets ranks up once".into())),
    }
}

fn copy(beat: Beat, status: &mut protocol::Status) {
    status.phase = match beat.phase {
        Phase::Starting => protocol::Phase::Starting,
        Phase::Training => protocol::Phase::Training,
        Phase::Testing => protocol::Phase::Testing,
        Phase::Ending => protocol::Phase::Ending,
    };
    status.epoch = beat.epoch;
    status.batch = beat.batch;
    status.batches_done = beat.batches_done;
    status.batches_in_all = beat.batches_in_all;
    status.update = beat.update;
    status.images_per_second = beat.images_per_second;
    status.loss = beat.loss;
    status.slowest_step_seconds = beat.slowest_step_seconds;
    status.waits = beat.waits;
}
