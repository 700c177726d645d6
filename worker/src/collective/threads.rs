//! Ranks in one process: the reference for what a group computes, and a group for tests.
//!
//! Whoever comes last computes for all, in rank order.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use synfire_shared::ids::{Rank, World};

use super::pending::{Board, Call, Driver, Outcome, Ticket, check_bytes, check_root, check_values};
use super::{Collective, CollectiveError, Interrupt, Pending, Wire, mean, rank_of};

/// A group of `world` ranks in this process, in rank order; each is moved to its thread.
///
/// # Panics
///
/// If `world` is 0.
pub fn group(world: usize) -> Vec<Threads> {
    assert!(world > 0, "a group has a rank");
    let group = Arc::new(Group {
        boards: (0..world).map(|_| Board::new()).collect(),
        state: Mutex::new(State {
            rounds: VecDeque::new(),
            first: 0,
            gone: vec![false; world],
        }),
    });
    let member = |rank| Threads {
        seat: Arc::new(Seat {
            group: Arc::clone(&group),
            rank,
        }),
    };
    (0..world).map(member).collect()
}

/// One rank of a group in this process. Dropping it is what the death of a process is elsewhere.
pub struct Threads {
    seat: Arc<Seat>,
}

struct Seat {
    group: Arc<Group>,
    rank: usize,
}

struct Group {
    boards: Vec<Arc<Board>>,
    state: Mutex<State>,
}

struct State {
    /// The rounds from `first` on that some rank has called for and some rank has not.
    rounds: VecDeque<Round>,
    first: u64,
    gone: Vec<bool>,
}

/// By rank, its call.
type Round = Vec<Option<Call>>;

impl Threads {
    fn call(&self, call: Call) -> Result<Ticket, CollectiveError> {
        let Seat { group, rank } = &*self.seat;
        let mut state = group.lock();
        let board = &group.boards[*rank];
        let sequence = board.open()?;
        let index = usize::try_from(sequence - state.first).expect("rounds are in memory");
        if index == state.rounds.len() {
            let round = (0..group.boards.len()).map(|_| None).collect();
            state.rounds.push_back(round);
        }
        state.rounds[index][*rank] = Some(call);
        // Ranks call in order, so the oldest round is complete first.
        while state.rounds.front().is_some_and(is_complete) {
            let round = state.rounds.pop_front().expect("it was just looked at");
            group.finish(state.first, round.into_iter().flatten().collect());
            state.first += 1;
        }
        group.notice_the_gone(&state);
        Ok(Ticket::new(board, self.driver(), sequence))
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::<Seat>::clone(&self.seat)
    }

    fn board(&self) -> &Arc<Board> {
        &self.seat.group.boards[self.seat.rank]
    }
}

fn is_complete(round: &Round) -> bool {
    round.iter().all(Option::is_some)
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, sequence: u64, calls: Vec<Call>) {
        match outcomes(calls) {
            Ok(outcomes) => {
                for (board, outcome) in self.boards.iter().zip(outcomes) {
                    board.finish(sequence, outcome);
                }
            }
            Err(fault) => {
                for (rank, board) in self.boards.iter().enumerate() {
                    board.fail(fault.seen_by(rank));
                }
            }
        }
    }

    /// Who waits for a rank that is gone learns it.
    fn notice_the_gone(&self, state: &State) {
        for round in &state.rounds {
            let absent = |&rank: &usize| state.gone[rank] && round[rank].is_none();
            let Some(rank) = (0..round.len()).find(absent) else {
                continue;
            };
            let waiting = round.iter().zip(&self.boards);
            for (_, board) in waiting.filter(|(call, _)| call.is_some()) {
                board.fail(CollectiveError::Lost {
                    rank: rank_of(rank),
                    reason: "its thread has dropped it".into(),
                });
            }
        }
    }
}

/// What keeps a round from having a result.
enum Fault {
    Unequal(Vec<u64>),
    /// The calls, by rank.
    OutOfStep(Vec<String>),
}

impl Fault {
    fn seen_by(&self, rank: usize) -> CollectiveError {
        match self {
            Self::Unequal(lengths) => CollectiveError::Unequal {
                lengths: lengths.clone(),
            },
            Self::OutOfStep(calls) => out_of_step(calls, rank),
        }
    }
}

fn out_of_step(calls: &[String], rank: usize) -> CollectiveError {
    let differs = |other: &usize| calls[*other] != calls[rank];
    // Somebody differs from rank 0, and rank 0 from them.
    let other = (0..calls.len()).find(differs).unwrap_or_default();
    CollectiveError::OutOfStep {
        rank: rank_of(other),
        theirs: calls[other].clone(),
        ours: calls[rank].clone(),
    }
}

/// The reference: what a round gives to each rank.
fn outcomes(calls: Vec<Call>) -> Result<Vec<Outcome>, Fault> {
    let names: Vec<String> = calls.iter().map(Call::name).collect();
    if names.iter().any(|name| *name != names[0]) {
        return Err(Fault::OutOfStep(names));
    }
    let lengths: Vec<u64> = calls.iter().map(|call| call.length() as u64).collect();
    let (mut parts, mut gathered) = (Vec::new(), Vec::new());
    let (mut how, mut root) = (Wire::F32, None);
    for call in calls {
        match call {
            Call::Mean { values, wire } => {
                parts.push(values);
                how = wire;
            }
            Call::Broadcast { values, from } => {
                parts.push(values);
                root = Some(from.0 as usize);
            }
            Call::Gather { bytes } => gathered.push(bytes),
        }
    }
    if parts.is_empty() {
        let copy = |_| Outcome::Gathered(gathered.clone());
        return Ok((0..gathered.len()).map(copy).collect());
    }
    if lengths.iter().any(|&length| length != lengths[0]) {
        return Err(Fault::Unequal(lengths));
    }
    match root {
        Some(root) => {
            let source = std::mem::take(&mut parts[root]);
            parts
                .iter_mut()
                .filter(|part| !part.is_empty())
                .for_each(|part| {
                    part.copy_from_slice(&source);
                });
            parts[root] = source;
        }
        None => mean::replace_by_mean(&mut parts, how),
    }
    Ok(parts.into_iter().map(Outcome::Values).collect())
}

impl Driver for Seat {
    fn expired(&self, sequence: u64, deadline: Duration) {
        let state = self.group.lock();
        let round = sequence
            .checked_sub(state.first)
            .and_then(|index| state.rounds.get(usize::try_from(index).ok()?));
        // If the round is complete by now, so is the wait.
        let Some(round) = round else { return };
        let missing = (0..round.len()).filter(|&rank| round[rank].is_none());
        self.group.boards[self.rank].fail(CollectiveError::Deadline {
            seconds: deadline.as_secs_f64(),
            missing: missing.map(rank_of).collect(),
        });
    }

    fn interrupted(&self) {}
}

impl Collective for Threads {
    fn name(&self) -> String {
        "threads".into()
    }

    fn rank(&self) -> Rank {
        rank_of(self.seat.rank)
    }

    fn world(&self) -> World {
        World(rank_of(self.seat.group.boards.len()).0)
    }

    fn start_mean(&mut self, values: Vec<f32>, wire: Wire) -> Result<Pending, CollectiveError> {
        check_values(&values)?;
        Ok(Pending::new(self.call(Call::Mean { values, wire })?))
    }

    fn broadcast(&mut self, from: Rank, values: &mut [f32]) -> Result<(), CollectiveError> {
        check_root(from, self.seat.group.boards.len())?;
        check_values(values)?;
        let call = Call::Broadcast {
            values: values.to_vec(),
            from,
        };
        values.copy_from_slice(&self.call(call)?.values()?);
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_bytes(bytes)?;
        let bytes = bytes.to_vec();
        self.call(Call::Gather { bytes })?.gathered()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.board().set_deadline(deadline);
    }

    fn abort(&mut self, reason: &str) {
        for board in &self.seat.group.boards {
            board.fail(CollectiveError::Left {
                rank: self.rank(),
                reason: reason.into(),
            });
        }
    }

    fn interrupt(&self) -> Interrupt {
        Interrupt::new(self.board(), self.driver())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let group = &self.seat.group;
        let mut state = group.lock();
        state.gone[self.seat.rank] = true;
        group.notice_the_gone(&state);
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Threads({})", self.seat.rank)
    }
}
