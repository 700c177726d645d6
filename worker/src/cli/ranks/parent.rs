//! What a launcher tells its ranks, over their standard input.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stops on the signals that the launcher tells over standard input, and as if by SIGTERM when that ends:
/// the launcher holds its other end.
pub(super) fn end_with_parent(stop: Arc<AtomicUsize>) -> anyhow::Result<()> {
    let wait = move || {
        let signal = signal_of(std::io::stdin().lock());
        let _ = stop.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
    };
    let thread = std::thread::Builder::new().name("parent".into());
    thread.spawn(wait)?;
    Ok(())
}

/// The first signal that a launcher tells of, one byte each.
fn signal_of(told: impl BufRead) -> usize {
    let mut signals = told.bytes().map_while(Result::ok);
    let known = signals.find(|signal| [2, 15].contains(signal));
    usize::from(known.unwrap_or(15))
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
}
