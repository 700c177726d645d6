//! A group of one: the mean of its numbers is its numbers.

use std::sync::Arc;
use std::time::Duration;

use synfire_shared::ids::{Rank, World};

use super::pending::{Board, Driver, Outcome, Ticket, check_bytes, check_root, check_values};
use super::{Collective, CollectiveError, Interrupt, Pending, Wire};

/// The group of a run that has one rank. Nothing travels and no bit changes.
#[derive(Debug)]
pub struct Solo {
    board: Arc<Board>,
}

/// Nobody works here: results are there when a wait begins.
struct Nobody;

impl Driver for Nobody {
    fn expired(&self, _: u64, _: Duration) {}
    fn interrupted(&self) {}
}

impl Solo {
    /// A group of one.
    pub fn new() -> Self {
        Self {
            board: Board::new(),
        }
    }

    fn done(&self, outcome: Outcome) -> Result<Ticket, CollectiveError> {
        let sequence = self.board.open()?;
        self.board.finish(sequence, outcome);
        Ok(Ticket::new(&self.board, Arc::new(Nobody), sequence))
    }
}

impl Default for Solo {
    fn default() -> Self {
        Self::new()
    }
}

impl Collective for Solo {
    fn name(&self) -> String {
        "solo".into()
    }

    fn rank(&self) -> Rank {
        Rank(0)
    }

    fn world(&self) -> World {
        World(1)
    }

    fn start_mean(&mut self, values: Vec<f32>, _: Wire) -> Result<Pending, CollectiveError> {
        check_values(&values)?;
        Ok(Pending::new(self.done(Outcome::Values(values))?))
    }

    fn broadcast(&mut self, from: Rank, values: &mut [f32]) -> Result<(), CollectiveError> {
        check_root(from, 1)?;
        check_values(values)?;
        self.board.failure().map_or(Ok(()), Err)
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
        check_bytes(bytes)?;
        self.done(Outcome::Gathered(vec![bytes.to_vec()]))?
            .gathered()
    }

    fn set_deadline(&mut self, deadline: Duration) {
        self.board.set_deadline(deadline);
    }

    fn abort(&mut self, reason: &str) {
        self.board.fail(CollectiveError::Left {
            rank: self.rank(),
            reason: reason.into(),
        });
    }

    fn interrupt(&self) -> Interrupt {
        Interrupt::new(&self.board, Arc::new(Nobody))
    }
}
