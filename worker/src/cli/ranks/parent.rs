//! What a launcher tells its ranks, over their standard input.

use std::io::BufRead;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The launcher, which holds the other end of standard input.
#[derive(Clone, Default)]
pub(super) struct Parent(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// What a signal sets; nothing as long as it ends this process.
    stop: Option<Arc<AtomicUsize>>,
}

impl Parent {
    /// Waits for a signal over standard input, or for its end, which is as SIGTERM: the first ends this
    /// process, until [`Parent::stop_by`].
    pub(super) fn watch() -> anyhow::Result<Self> {
        let parent = Self::default();
        let told = parent.clone();
        let wait = move || {
            let signal = signal_of(std::io::stdin().lock());
            if told.tell(signal) {
                process::exit(128 + i32::from(signal));
            }
        };
        let thread = std::thread::Builder::new().name("parent".into());
        thread.spawn(wait)?;
        Ok(parent)
    }

    /// From now on signals set this, if it is not set.
    pub(super) fn stop_by(&self, stop: &Arc<AtomicUsize>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.stop = Some(Arc::clone(stop));
    }

    /// Returns whether this process is to end at once.
    fn tell(&self, signal: u8) -> bool {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(stop) = &told.stop else {
            return true;
        };
        let signal = usize::from(signal);
        let _ = stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        false
    }
}

/// The first signal that a launcher tells of, one byte each.
fn signal_of(told: impl BufRead) -> u8 {
    let mut signals = told.bytes().map_while(Result::ok);
    let known = signals.find(|signal| [2, 15].contains(signal));
    known.unwrap_or(15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_tells_the_signal_or_is_gone() {
        assert_eq!(signal_of(&[2][..]), 2);
        assert_eq!(signal_of(&[15, 2][..]), 15);
        assert_eq!(signal_of(&[9, b'\n', 2][..]), 2);
        assert_eq!(signal_of(&[9][..]), 15);
        assert_eq!(signal_of(std::io::empty()), 15);
    }

    #[test]
    fn a_signal_ends_the_process_until_there_is_something_to_save() {
        let parent = Parent::default();
        assert!(parent.tell(2));
        let stop = Arc::new(AtomicUsize::new(0));
        parent.stop_by(&stop);
        assert!(!parent.tell(2) && !parent.tell(15));
        assert_eq!(stop.load(Ordering::Relaxed), 2);
    }
}
