//! Where a run is, for threads that watch it: a look costs training nothing.

use std::sync::{Mutex, PoisonError};

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
    /// It waits until the last checkpoint is written, or for other ranks behind a test.
    Ending,
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
    /// Whether it waits for other ranks.
    pub waits: bool,
}

/// Who is told of every beat, on the training thread, which must not be held up.
type Listener = Box<dyn Fn(&Beat) + Send + Sync>;

/// The newest beat.
#[derive(Default)]
pub struct Pulse {
    now: Mutex<Beat>,
    listener: Option<Listener>,
}

impl std::fmt::Debug for Pulse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pulse").field(&self.look()).finish()
    }
}

impl Pulse {
    /// A pulse of which somebody is told.
    pub fn to(listener: impl Fn(&Beat) + Send + Sync + 'static) -> Self {
        Self {
            now: Mutex::default(),
            listener: Some(Box::new(listener)),
        }
    }

    /// Shows progress.
    pub fn beat(&self, change: impl FnOnce(&mut Beat)) {
        let beat = {
            let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut now);
            *now
        };
        if let Some(listener) = &self.listener {
            listener(&beat);
        }
    }

    /// Where training is.
    pub fn look(&self) -> Beat {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_the_newest_beat_and_a_listener_every_one() {
        let (tell, told) = std::sync::mpsc::sync_channel(2);
        let tell = Mutex::new(tell);
        let pulse = Pulse::to(move |beat| tell.lock().unwrap().send(beat.batch).unwrap());
        for batch in [3, 4] {
            pulse.beat(|beat| beat.batch = batch);
        }
        assert_eq!(
            (pulse.look().batch, pulse.look().phase),
            (4, Phase::Starting)
        );
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [3, 4]);
    }
}
