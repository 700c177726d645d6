//! What is under way, and how a wait for it ends.
//!
//! A member of a group has one `Board`: the calls it has started, in order, with what came of
//! them. Whoever does the work pins results there; the caller waits in front of it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{CollectiveError, DEFAULT_DEADLINE, MAX_GATHER_BYTES, MAX_VALUES, Wire};
use synfire_shared::ids::Rank;

/// How long whoever works gets to say who was missing, after a deadline.
const VERDICT: Duration = Duration::from_secs(2);

/// A call that every rank makes.
#[derive(Debug)]
pub(super) enum Call {
    Mean { values: Vec<f32>, wire: Wire },
    Broadcast { values: Vec<f32>, from: Rank },
    Gather { bytes: Vec<u8> },
}

impl Call {
    /// What all ranks must have asked for alike.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Mean { wire, .. } => match wire {
                Wire::F32 => "a mean in f32".into(),
                Wire::Bf16 => "a mean in bf16".into(),
            },
            Self::Broadcast { from, .. } => format!("a broadcast from {from}"),
            Self::Gather { .. } => "a gather".into(),
        }
    }

    /// Of numbers or bytes.
    pub(super) fn length(&self) -> usize {
        match self {
            Self::Mean { values, .. } | Self::Broadcast { values, .. } => values.len(),
            Self::Gather { bytes } => bytes.len(),
        }
    }
}

/// What comes back from it.
#[derive(Debug)]
pub(super) enum Outcome {
    Values(Vec<f32>),
    Gathered(Vec<Vec<u8>>),
}

/// Whoever works for a board.
pub(super) trait Driver: Send + Sync {
    /// A wait for this call took longer than the deadline. Soon after the board must have failed
    /// with [`CollectiveError::Deadline`].
    fn expired(&self, sequence: u64, deadline: Duration);

    /// The board has failed by another hand.
    fn interrupted(&self);
}

/// The calls of one member, in order.
#[derive(Debug)]
pub(super) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The calls from `first` on; those before it are over and taken.
    slots: VecDeque<Slot>,
    first: u64,
    failure: Option<CollectiveError>,
    deadline: Duration,
}

#[derive(Debug)]
enum Slot {
    Open,
    Done(Outcome),
    /// Under way, but nobody waits for it any more.
    Dropped,
    /// Ended, and taken or dropped.
    Over,
}

impl Board {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                slots: VecDeque::new(),
                first: 0,
                failure: None,
                deadline: DEFAULT_DEADLINE,
            }),
            changed: Condvar::new(),
        })
    }

    /// A place for one more call: its number, counted from 0.
    pub(super) fn open(&self) -> Result<u64, CollectiveError> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        state.slots.push_back(Slot::Open);
        Ok(state.first + state.slots.len() as u64 - 1)
    }

    /// What came of a call. After a failure it is dropped, like what nobody waits for.
    pub(super) fn finish(&self, sequence: u64, outcome: Outcome) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return;
        }
        let slot = state.slot(sequence);
        match slot {
            Slot::Open => *slot = Slot::Done(outcome),
            Slot::Dropped => *slot = Slot::Over,
            Slot::Done(_) | Slot::Over => unreachable!("call {sequence} ended twice"),
        }
        state.sweep();
        drop(state);
        self.changed.notify_all();
    }

    /// The end of the group for this member; the first failure stays.
    pub(super) fn fail(&self, error: CollectiveError) {
        self.lock().failure.get_or_insert(error);
        self.changed.notify_all();
    }

    pub(super) fn failure(&self) -> Option<CollectiveError> {
        self.lock().failure.clone()
    }

    pub(super) fn set_deadline(&self, deadline: Duration) {
        self.lock().deadline = deadline;
    }

    /// What came of the call, when it has.
    fn wait(&self, sequence: u64, driver: &dyn Driver) -> Result<Outcome, CollectiveError> {
        let began = Instant::now();
        let mut asked = false;
        let mut state = self.lock();
        loop {
            if let Some(result) = state.take(sequence) {
                return result;
            }
            let deadline = state.deadline;
            let grace = if asked { VERDICT } else { Duration::ZERO };
            let limit = deadline.saturating_add(grace);
            let left = limit.saturating_sub(began.elapsed());
            if !left.is_zero() {
                state = self.pause(state, left);
                continue;
            }
            drop(state);
            if asked {
                self.fail(CollectiveError::Deadline {
                    seconds: deadline.as_secs_f64(),
                    missing: Vec::new(),
                });
            } else {
                asked = true;
                driver.expired(sequence, deadline);
            }
            state = self.lock();
        }
    }

    fn pause<'a>(&self, state: MutexGuard<'a, State>, left: Duration) -> MutexGuard<'a, State> {
        let paused = self.changed.wait_timeout(state, left);
        paused.unwrap_or_else(PoisonError::into_inner).0
    }

    fn forget(&self, sequence: u64) {
        let mut state = self.lock();
        if sequence < state.first {
            // It was taken, and the end of a later call has swept it away since.
            return;
        }
        let slot = state.slot(sequence);
        *slot = match slot {
            Slot::Open => Slot::Dropped,
            Slot::Done(_) | Slot::Dropped | Slot::Over => Slot::Over,
        };
        state.sweep();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The slot of a call that is not yet taken.
    fn slot(&mut self, sequence: u64) -> &mut Slot {
        let index = sequence.checked_sub(self.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let slot = index.and_then(|index| self.slots.get_mut(index));
        slot.expect("a call has its slot until it is taken")
    }

    /// The result, if there is one; of what is not complete, the failure.
    fn take(&mut self, sequence: u64) -> Option<Result<Outcome, CollectiveError>> {
        let failure = self.failure.clone();
        let slot = self.slot(sequence);
        if matches!(slot, Slot::Done(_)) {
            let Slot::Done(outcome) = std::mem::replace(slot, Slot::Over) else {
                unreachable!("it was just looked at");
            };
            return Some(Ok(outcome));
        }
        failure.map(Err)
    }

    fn sweep(&mut self) {
        while matches!(self.slots.front(), Some(Slot::Over)) {
            self.slots.pop_front();
            self.first += 1;
        }
    }
}

/// One call of a member, until its result is taken.
pub(super) struct Ticket {
    board: Arc<Board>,
    driver: Arc<dyn Driver>,
    sequence: u64,
}

impl Ticket {
    pub(super) fn new(board: &Arc<Board>, driver: Arc<dyn Driver>, sequence: u64) -> Self {
        let board = Arc::clone(board);
        Self {
            board,
            driver,
            sequence,
        }
    }

    pub(super) fn values(self) -> Result<Vec<f32>, CollectiveError> {
        match self.board.wait(self.sequence, &*self.driver)? {
            Outcome::Values(values) => Ok(values),
            Outcome::Gathered(_) => unreachable!("values were asked for"),
        }
    }

    pub(super) fn gathered(self) -> Result<Vec<Vec<u8>>, CollectiveError> {
        match self.board.wait(self.sequence, &*self.driver)? {
            Outcome::Gathered(bytes) => Ok(bytes),
            Outcome::Values(_) => unreachable!("bytes were asked for"),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.board.forget(self.sequence);
    }
}

/// A mean that is under way. Dropping it does not wait: the mean goes on, its result is dropped.
#[must_use = "the numbers come back from `wait`"]
pub struct Pending(Ticket);

impl Pending {
    pub(super) fn new(ticket: Ticket) -> Self {
        Self(ticket)
    }

    /// The mean, in the `Vec` that was given.
    ///
    /// # Errors
    ///
    /// Every way in which a group fails; see [`CollectiveError`].
    pub fn wait(self) -> Result<Vec<f32>, CollectiveError> {
        self.0.values()
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pending({})", self.0.sequence)
    }
}

/// Ends the waits of one rank, from any thread.
#[derive(Clone)]
pub struct Interrupt {
    board: Arc<Board>,
    driver: Arc<dyn Driver>,
}

impl Interrupt {
    pub(super) fn new(board: &Arc<Board>, driver: Arc<dyn Driver>) -> Self {
        let board = Arc::clone(board);
        Self { board, driver }
    }

    /// The wait that is under way, and every later call, ends with
    /// [`CollectiveError::Interrupted`], unless the group failed before.
    pub fn interrupt(&self, reason: String) {
        self.board.fail(CollectiveError::Interrupted { reason });
        self.driver.interrupted();
    }

    /// Why the group is over for this rank, if it is.
    #[cfg(feature = "nccl")]
    pub(super) fn failure(&self) -> Option<CollectiveError> {
        self.board.failure()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Interrupt")
    }
}

pub(super) fn check_values(values: &[f32]) -> Result<(), CollectiveError> {
    check_length(values.len(), MAX_VALUES, "numbers")
}

pub(super) fn check_bytes(bytes: &[u8]) -> Result<(), CollectiveError> {
    check_length(bytes.len(), MAX_GATHER_BYTES, "bytes")
}

fn check_length(length: usize, limit: usize, unit: &'static str) -> Result<(), CollectiveError> {
    if length > limit {
        let (length, limit) = (length as u64, limit as u64);
        return Err(CollectiveError::TooLong {
            length,
            limit,
            unit,
        });
    }
    Ok(())
}

/// That `from` is a rank of a group of `world`.
pub(super) fn check_root(from: Rank, world: usize) -> Result<(), CollectiveError> {
    if from.0 as usize >= world {
        return Err(CollectiveError::Group {
            reason: format!("a broadcast from {from} in a group of {world}"),
        });
    }
    Ok(())
}
