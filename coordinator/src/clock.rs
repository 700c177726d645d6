//! Time that stands still while this process does.

use std::time::Duration;

/// The most that passes between two events. Ticks come more often, so a longer pause is one of this
/// process (stopped, suspended, swapped out), in which nobody could be heard.
const MOST: Duration = Duration::from_secs(1);

/// Counts the time in which messages could arrive.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clock {
    last: Option<Duration>,
    now: Duration,
}

impl Clock {
    /// The caller's clock shows this. It may jump, forwards and back.
    pub(crate) fn show(&mut self, time: Duration) {
        let passed = self.last.map_or(Duration::ZERO, |l| time.saturating_sub(l));
        self.now += passed.min(MOST);
        self.last = Some(time);
    }

    /// The time that counts.
    pub(crate) fn now(&self) -> Duration {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_no_silence() {
        let mut clock = Clock::default();
        for (shown, counted) in [
            (500, 0),
            (750, 250),
            (90_000, 1250),
            (100, 1250),
            (350, 1500),
        ] {
            clock.show(Duration::from_millis(shown));
            assert_eq!(clock.now(), Duration::from_millis(counted));
        }
    }
}
