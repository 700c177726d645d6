//! Where a run is, for threads that watch it: a look costs training nothing.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What training does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It has not begun.
    #[default]
    Starting,
    /// It learns.
    Training,
    /// It goes through the test set.
    Testing,
}

/// Where training is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Beat {
    /// What it does.
    pub phase: Phase,
    /// The epoch, from 0.
    pub epoch: u32,
    /// Batches done in the epoch.
    pub batch: u64,
    /// Batches done in the run.
    pub batches_done: u64,
    /// Batches of the run.
    pub batches_in_all: u64,
    /// Updates of the weights.
    pub update: u64,
    /// Images of the newest batch per second, over all ranks.
    pub images_per_second: f64,
    /// The mean loss of the epoch, as far as it was told.
    pub loss: f64,
    /// The slowest time step so far, without waits for other ranks.
    pub slowest_step_seconds: f64,
}

/// The newest beat, and when it was.
#[derive(Debug)]
pub struct Pulse(Mutex<(Beat, Instant)>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new((Beat::default(), Instant::now())))
    }
}

impl Pulse {
    /// Shows progress.
    pub fn beat(&self, change: impl FnOnce(&mut Beat)) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut now.0);
        now.1 = Instant::now();
    }

    /// Where training is, and for how long it has been there.
    pub fn look(&self) -> (Beat, Duration) {
        let now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (now.0, now.1.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_the_newest_beat() {
        let pulse = Pulse::default();
        pulse.beat(|beat| beat.batch = 3);
        let (beat, since) = pulse.look();
        assert_eq!((beat.batch, beat.phase), (3, Phase::Starting));
        assert!(since < Duration::from_secs(60));
    }
}
