//! Ranks with a GPU each: gradients are averaged where they lie, by NCCL, while earlier layers compute.
//!
//! NCCL moves nothing but numbers of GPUs. All else (bytes, numbers of the host, whether ranks are still
//! there) goes over a group on the host, of MPI or of the coordinator's connections, beside which this
//! stands: it carried the id as well.
//!
//! - Sums run on a stream of their own. It waits, on the GPU, for the gradients; computation waits, on
//!   the GPU, for the sums. The host waits for neither; it waits until NCCL has brought a sum on its
//!   stream: some microseconds up to a fraction of a millisecond, and longer the first time, when NCCL
//!   connects the ranks.
//! - The order in which NCCL adds is its own: bits differ from those of other groups, not between ranks.
//!   In bf16 it rounds at each addition.
//! - NCCL does not say who is missing. After a deadline or a lost connection all ranks that are well
//!   answer a roll call of the group on the host; who does not is named. Before that the coordinator's
//!   heartbeats may have found out, and interrupt that group, which is noticed here.
//! - A rank that is killed may show as an error of the system or of NCCL itself: the group on the host is
//!   asked before a rank takes it for its own.
//! - What NCCL does with unequal lengths is undefined: whoever uses this has to agree on them before.
//!
//! # Layout
//!
//! - `opening`: how the ranks find each other.
//! - `library`: NCCL's functions.
//! - `communicator`: what is done with them.
//! - `driver`: streams and events.
//! - `watchdog`: the thread that notices what does not end.
//! - this file: [`Nccl`].

mod communicator;
mod driver;
mod library;
mod opening;
mod watchdog;

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use synfire_shared::ids::{Rank, World};

use super::device::{OnDevice, Piece, Started};
use super::{Collective, CollectiveError, Interrupt, Pending, Solo, Wire, rank_of};
use driver::{Context, Lent, Stream};
pub(super) use watchdog::Events;
use watchdog::{Verdict, Watched};

/// How long the others may take to answer a roll call once they know of it; less where the deadline is
/// shorter.
const ROLL_CALL: Duration = Duration::from_secs(10);

/// How long the group on the host may take to notice that a rank is gone, where this rank alone asks.
const QUESTION: Duration = Duration::from_secs(3);

/// The answer to a roll call of a rank that is well.
const PRESENT: &[u8] = b"roll call";

/// Characters of another rank's reason that are told.
const REASON: usize = 1000;

/// The first rank that has answered a roll call with trouble of its own.
fn gave_up(all: &[Vec<u8>]) -> Option<CollectiveError> {
    let rank = all.iter().position(|answer| answer != PRESENT)?;
    let reason = String::from_utf8_lossy(&all[rank]);
    Some(CollectiveError::Left {
        rank: rank_of(rank),
        reason: reason.chars().take(REASON).collect(),
    })
}

/// One rank of a group whose gradients lie on GPUs, beside a group on the host.
pub struct Nccl {
    host: Box<dyn Collective>,
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
    stream: Stream,
    context: Arc<Context>,
    events: Vec<Arc<Events>>,
    /// Why the group is over, once it was asked for.
    over: Option<CollectiveError>,
    version: String,
}

impl Nccl {
    /// Connects the GPUs of all ranks of a group on the host, whose place in `host` this takes: every
    /// rank calls it, with the number of its own GPU. After an error `host` is what it was, so that the
    /// others can be told.
    ///
    /// # Errors
    ///
    /// `Group` if a rank has no NCCL that will do, or not a GPU of its own; `Deadline` or `Device` if the
    /// ranks cannot be connected by then; and every way in which the group on the host fails.
    pub fn join(
        host: &mut Box<dyn Collective>,
        gpu: u32,
        deadline: Duration,
    ) -> Result<(), CollectiveError> {
        let (communicator, context) = opening::open(&mut **host, gpu, deadline)?;
        let broken = |reason| CollectiveError::Device { reason };
        let stream = Stream::new(&context).map_err(broken)?;
        let version = communicator.version();
        let watched = Watched::new(communicator, &context, host.interrupt(), deadline);
        let watched = Arc::new(watched);
        let its = Arc::clone(&watched);
        let thread = thread::Builder::new()
            .name("nccl watchdog".into())
            .spawn(move || its.run())
            .map_err(|error| CollectiveError::io("the thread that watches NCCL", error))?;
        host.set_deadline(deadline);
        let beside = std::mem::replace(host, Box::new(Solo::new()));
        *host = Box::new(Self {
            host: beside,
            watched,
            thread: Some(thread),
            stream,
            context,
            events: Vec::new(),
            over: None,
            version,
        });
        Ok(())
    }

    /// Events that nobody uses.
    fn events(&mut self) -> Result<Arc<Events>, String> {
        let unused = |events: &&Arc<Events>| Arc::strong_count(events) == 1;
        if let Some(events) = self.events.iter().find(unused) {
            return Ok(Arc::clone(events));
        }
        let event = || driver::Event::new(&self.context);
        let events = Arc::new(Events {
            before: event()?,
            after: event()?,
        });
        self.events.push(Arc::clone(&events));
        Ok(events)
    }

    /// Brings sums on their streams.
    fn enqueue(&mut self, compute: Lent, pieces: &[Piece]) -> Result<Arc<Events>, Verdict> {
        let broken = |reason| Verdict::Certain(CollectiveError::Device { reason });
        self.context.enter().map_err(broken)?;
        let events = self.events().map_err(broken)?;
        compute.record(&events.before).map_err(broken)?;
        self.stream.wait_for(&events.before).map_err(broken)?;
        let watched = &*self.watched;
        let explained = |trouble| watched.explain(trouble);
        let communicator = &watched.communicator;
        let is_there = communicator.reduce(pieces, self.stream.raw());
        if !is_there.map_err(explained)? {
            let gives_up = || watched.verdict().is_some();
            let settled = communicator.settle(watched.deadline(), &gives_up);
            settled.map_err(explained)?;
        }
        self.stream.record(&events.after).map_err(broken)?;
        Ok(events)
    }

    /// Why the group is over, if it is; asks the others who is missing, if that is not known.
    fn fault(&mut self) -> Option<CollectiveError> {
        if self.over.is_none() {
            self.over = Some(match self.watched.verdict()? {
                Verdict::Certain(error) => error,
                Verdict::Missing(error) => self.roll_call(error),
                Verdict::Unclear(error) => self.ask(error),
            });
        }
        self.over.clone()
    }

    /// All ranks that are well come here. After a deadline that is at about the same time: they waited for
    /// the same sum. A lost connection one rank may notice at once, and another at its deadline. If all
    /// come, it remains open who it was.
    fn roll_call(&mut self, error: CollectiveError) -> CollectiveError {
        let deadline = self.watched.deadline();
        let patience = if matches!(error, CollectiveError::Deadline { .. }) {
            deadline.min(ROLL_CALL)
        } else {
            deadline.saturating_add(ROLL_CALL)
        };
        self.host.set_deadline(patience);
        let missing = match self.host.gather(PRESENT) {
            Err(CollectiveError::Deadline { missing, .. }) if !missing.is_empty() => missing,
            Err(
                known @ (CollectiveError::Lost { .. }
                | CollectiveError::Left { .. }
                | CollectiveError::Interrupted { .. }),
            ) => return known,
            Ok(all) => return gave_up(&all).unwrap_or(error),
            Err(_) => return error,
        };
        let seconds = if let CollectiveError::Deadline { seconds, .. } = error {
            seconds
        } else {
            patience.as_secs_f64()
        };
        CollectiveError::Deadline { seconds, missing }
    }

    /// Whether another rank is gone: that would be why. The others do not know of the question, so who does
    /// not answer may be well. Where a roll call is under way it hears what this rank has.
    fn ask(&mut self, error: CollectiveError) -> CollectiveError {
        self.host
            .set_deadline(self.watched.deadline().min(QUESTION));
        match self.host.gather(error.to_string().as_bytes()) {
            Err(
                known @ (CollectiveError::Lost { .. }
                | CollectiveError::Left { .. }
                | CollectiveError::Interrupted { .. }),
            ) => known,
            Ok(_) | Err(_) => error,
        }
    }

    fn alive(&mut self) -> Result<(), CollectiveError> {
        self.fault().map_or(Ok(()), Err)
    }
}

impl OnDevice for Nccl {
    fn start(&mut self, compute: u64, pieces: &[Piece]) -> Result<Started, CollectiveError> {
        self.alive()?;
        let compute = Lent::new(compute);
        match self.enqueue(compute, pieces) {
            Ok(events) => {
                self.watched.watch(Arc::clone(&events));
                Ok(Started { events })
            }
            Err(verdict) => {
                self.watched.end(verdict);
                self.alive()?;
                unreachable!("the group was just ended");
            }
        }
    }

    fn join(&mut self, compute: u64, started: Started) -> Result<(), CollectiveError> {
        self.alive()?;
        let waited = self.context.enter();
        let waited = waited.and_then(|()| Lent::new(compute).wait_for(&started.events.after));
        if let Err(reason) = waited {
            let error = CollectiveError::Device { reason };
            self.watched.end(Verdict::Certain(error));
        }
        self.alive()
    }

    fn check(&mut self) -> Result<(), CollectiveError> {
        self.alive()
    }

    fn wait(&mut self) -> Result<(), CollectiveError> {
        self.alive()?;
        if let Err(reason) = self.context.enter().and_then(|()| self.stream.wait()) {
            let error = CollectiveError::Device { reason };
            self.watched.end(Verdict::Certain(error));
        }
        self.alive()
    }
}

impl Collective for Nccl {
    fn name(&self) -> String {
        format!("nccl {} beside {}", self.version, self.host.name())
    }

    fn rank(&self) -> Rank {
        self.host.rank()
    }

    fn world(&self) -> World {
        self.host.world()
    }

    fn start_mean(&mut self, values: Vec<f32>, wire: Wire) -> Result<Pending, CollectiveError> {
        self.alive()?;
        self.host.start_mean(values, wire)
    }

    fn broadcast(&mut self, from: Rank, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.alive()?;
        self.host.broadcast(from, values)
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        self.alive()?;
        self.host.gather(bytes)
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.host.set_deadline(deadline);
        self.watched.set_deadline(deadline);
    }

    fn abort(&mut self, reason: &str) {
        let left = CollectiveError::Left {
            rank: self.rank(),
            reason: reason.into(),
        };
        // The others are told first: of MPI this does not return.
        self.host.abort(reason);
        self.watched.end(Verdict::Certain(left));
    }

    /// It interrupts the group on the host, which is noticed here.
    fn interrupt(&self) -> Interrupt {
        self.host.interrupt()
    }

    fn on_device(&mut self) -> Option<&mut dyn OnDevice> {
        Some(self)
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.watched.verdict().is_some() || thread::panicking() {
            self.watched.communicator.abort();
        }
        // What is under way ends, or is ended at the deadline.
        self.watched.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.context.enter().is_ok() {
            self.watched.communicator.close();
        }
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Nccl({:?})", self.host.name())
    }
}
