//! What the caller's side and the thread of a rank share.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::Waker;

use super::super::CollectiveError;
use super::super::pending::{Call, Driver};

/// How long a rank that leaves tries to tell the others.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// What the caller's side asks of the thread.
pub(super) enum Command {
    Call(Call),
    /// A wait for this call took longer than the deadline.
    Expired {
        sequence: u64,
        deadline: Duration,
    },
    /// The group is over for this rank.
    Fail(CollectiveError),
    /// No more calls come.
    Close,
}

/// What the caller and the thread share.
pub(super) struct Link {
    commands: Mutex<VecDeque<Command>>,
    waker: Waker,
    /// Whether all that will be written is.
    flushed: (Mutex<bool>, Condvar),
}

impl Link {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            commands: Mutex::default(),
            waker,
            flushed: (Mutex::new(false), Condvar::new()),
        }
    }

    pub(super) fn commands(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn send(&self, command: Command) {
        self.commands().push_back(command);
        self.wake();
    }

    pub(super) fn wake(&self) {
        // A wake that fails would be noticed at the deadline; there is no better way to tell.
        let _ = self.waker.wake();
    }

    pub(super) fn flush(&self) {
        *self
            .flushed
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.flushed.1.notify_all();
    }

    pub(super) fn wait_until_flushed(&self) {
        let flushed = self.flushed.0.lock();
        let flushed = flushed.unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .flushed
            .1
            .wait_timeout_while(flushed, FAREWELL, |f| !*f);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Driver for Link {
    fn expired(&self, sequence: u64, deadline: Duration) {
        self.send(Command::Expired { sequence, deadline });
    }

    fn interrupted(&self) {
        self.wake();
    }
}
