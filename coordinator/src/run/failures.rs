//! Generations that fail one after the other.
//!
//! What counts is a generation of which a rank says that it cannot go on, before any batch was trained
//! beyond its start: the next one would most likely end the same way. It begins after a pause that doubles,
//! and after so many in a row the run is over.
//!
//! What does not count: ranks that were killed, or were not heard of, or stood still. These are faults of
//! machines, which whoever starts processes there knows how to limit, and a run must outlive any number
//! of them. A rank whose connection to another one broke blames that one: if its process does not come
//! back it was killed; if it does, the two cannot reach each other. A damaged checkpoint does not
//! count either, as the next generation starts from another one.

use std::time::Duration;

use super::{Level, Run};

/// The pause after the first failure; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// At most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Failures since a batch was trained.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    in_a_row: u32,
    /// The next generation does not begin before.
    paused_until: Duration,
}

impl Run {
    /// A generation that trains ends the row.
    pub(super) fn forgive(&mut self) {
        if self.live().is_some_and(|live| live.has_progressed) {
            self.failures.in_a_row = 0;
        }
    }

    /// Counts the newest generation, if it failed. Returns why the run is over, if that is too often.
    pub(super) fn failed_too_often(&mut self) -> Option<String> {
        let (now, pool) = (self.now(), &self.pool);
        let ended = self.ended.front_mut()?;
        if ended.is_counted || !ended.is_own_failure(|process| pool.has(process)) {
            return None;
        }
        ended.is_counted = true;
        let (number, reason) = (ended.generation, ended.reason.clone());
        self.failures.in_a_row += 1;
        let count = self.failures.in_a_row;
        if count >= self.policy.max_failures {
            let generations = if count == 1 {
                "a generation".to_owned()
            } else {
                format!("{count} generations in a row")
            };
            return Some(format!(
                "{generations} failed before a batch was trained; the last error: generation \
                 {number}: {reason}"
            ));
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (count - 1).min(8));
        let pause = pause.min(LONGEST_PAUSE);
        self.failures.paused_until = now + pause;
        self.log(
            Level::Warn,
            format!(
                "generation {number} failed before it had trained a batch, {count} of at most {} in \
                 a row: the next one waits for {} s",
                self.policy.max_failures,
                pause.as_secs()
            ),
        );
        None
    }

    /// The pause after failures, as a line for who waits, while it lasts.
    pub(super) fn pause(&self) -> Option<String> {
        let left = self.failures.paused_until.checked_sub(self.now())?;
        let line = format!(
            "{:.0} s after a generation that failed",
            left.as_secs_f64().ceil()
        );
        (!left.is_zero()).then_some(line)
    }
}
