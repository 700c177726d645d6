//! Notices that sums do not end, because a rank does not come or something has failed, and ends them.
//!
//! NCCL's sums wait on the GPU, for as long as it takes, and all that stands behind them with them; and
//! training may wait for the GPU. So a thread looks after them: whether they have ended, whether NCCL
//! or the group on the host has failed, and how long a sum has waited for other ranks. That time counts
//! from when all before it has ended on this rank: a slow time step of its own is no fault of others.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::{CollectiveError, Interrupt};
use super::communicator::{Communicator, Trouble};
use super::driver::{Context, Event};

/// Between two looks while something is under way.
const LOOK: Duration = Duration::from_millis(5);

/// Where sums lie on streams.
pub(in super::super) struct Events {
    /// What comes before them, on the stream of computation.
    pub(super) before: Event,
    /// Their end, on the stream of communication.
    pub(super) after: Event,
}

/// Why the group is over.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// It is known.
    Certain(CollectiveError),
    /// Another rank is missing, and the others may know which.
    Missing(CollectiveError),
    /// This rank has failed, or another one has; the group on the host may know.
    Unclear(CollectiveError),
}

/// What the thread and the caller share.
pub(super) struct Watched {
    pub(super) communicator: Communicator,
    context: Arc<Context>,
    /// The group on the host.
    host: Interrupt,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// In the order of their streams.
    under_way: VecDeque<UnderWay>,
    deadline: Duration,
    verdict: Option<Verdict>,
    /// No more come.
    closed: bool,
}

struct UnderWay {
    events: Arc<Events>,
    /// When nothing but other ranks was left to wait for.
    since: Option<Instant>,
}

impl Watched {
    pub(super) fn new(
        communicator: Communicator,
        context: &Arc<Context>,
        host: Interrupt,
        deadline: Duration,
    ) -> Self {
        Self {
            communicator,
            context: Arc::clone(context),
            host,
            state: Mutex::new(State {
                under_way: VecDeque::new(),
                deadline,
                verdict: None,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(super) fn set_deadline(&self, deadline: Duration) {
        self.lock().deadline = deadline;
    }

    pub(super) fn deadline(&self) -> Duration {
        self.lock().deadline
    }

    /// Why the group is over, if it is.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        let verdict = self.lock().verdict.clone();
        verdict.or_else(|| self.host.failure().map(Verdict::Certain))
    }

    /// Looks after sums that are on their streams.
    pub(super) fn watch(&self, events: Arc<Events>) {
        let since = None;
        self.lock().under_way.push_back(UnderWay { events, since });
        self.changed.notify_all();
    }

    /// The thread ends once nothing is under way.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The group is over, and what is under way with it. The first verdict stays; it is known before
    /// any sum is cut short.
    pub(super) fn end(&self, verdict: Verdict) {
        self.lock().verdict.get_or_insert(verdict);
        self.communicator.abort();
        self.changed.notify_all();
    }

    /// What is to be said of trouble with a call of NCCL.
    pub(super) fn explain(&self, trouble: Trouble) -> Verdict {
        match trouble {
            Trouble::Remote(reason) => Verdict::Missing(CollectiveError::Device { reason }),
            Trouble::Unclear(reason) => Verdict::Unclear(CollectiveError::Device { reason }),
            Trouble::Own(reason) => Verdict::Certain(CollectiveError::Device { reason }),
            Trouble::Late => Verdict::Missing(CollectiveError::Deadline {
                seconds: self.deadline().as_secs_f64(),
                missing: Vec::new(),
            }),
            Trouble::Aborted => self.verdict().unwrap_or_else(|| {
                let reason = "its communicator has ended".into();
                Verdict::Certain(CollectiveError::Device { reason })
            }),
        }
    }

    /// The thread.
    pub(super) fn run(&self) {
        if let Err(reason) = self.context.enter() {
            self.end(Verdict::Certain(CollectiveError::Device { reason }));
        }
        loop {
            let mut state = self.lock();
            while state.under_way.is_empty() && !state.closed {
                let paused = self.changed.wait(state);
                state = paused.unwrap_or_else(PoisonError::into_inner);
            }
            if state.under_way.is_empty() {
                return;
            }
            drop(state);
            self.look();
            let state = self.lock();
            let paused = self.changed.wait_timeout(state, LOOK);
            drop(paused.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// One look at all.
    fn look(&self) {
        loop {
            let oldest = self.lock().under_way.front().map(|o| Arc::clone(&o.events));
            let Some(oldest) = oldest else { return };
            match oldest.after.is_done() {
                Ok(true) => drop(self.lock().under_way.pop_front()),
                Ok(false) => break,
                // The GPU itself has failed: nothing on it ends any more.
                Err(reason) => {
                    self.lock().under_way.clear();
                    return self.end(Verdict::Certain(CollectiveError::Device { reason }));
                }
            }
        }
        if self.lock().verdict.is_some() {
            return;
        }
        if let Some(failure) = self.host.failure() {
            return self.end(Verdict::Certain(failure));
        }
        if let Err(trouble) = self.communicator.look() {
            return self.end(self.explain(trouble));
        }
        if self.is_late() {
            self.end(self.explain(Trouble::Late));
        }
    }

    /// Whether the oldest sum has waited for other ranks for longer than the deadline.
    fn is_late(&self) -> bool {
        let mut state = self.lock();
        let deadline = state.deadline;
        let Some(oldest) = state.under_way.front_mut() else {
            return false;
        };
        // An error of the GPU is seen at the sum's end.
        if !oldest.events.before.is_done().unwrap_or(false) {
            return false;
        }
        oldest.since.get_or_insert_with(Instant::now).elapsed() > deadline
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
