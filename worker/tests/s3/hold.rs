//! Requests that are held back until a test lets them go.

use std::sync::{Condvar, Mutex, MutexGuard};

/// Where a request is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Nothing is done yet.
    Before,
    /// All is done, but the answer is not sent.
    Behind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No such request has come.
    Awaited,
    Held,
    Released,
    /// The connection ends; what was not done is not done.
    GivenUp,
}

/// Of a method and a key: whether it is such a request.
type Kind = Box<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// A hold on the first request of a kind.
pub(crate) struct Hold {
    pub(super) when: When,
    is_it: Kind,
    state: Mutex<(State, String)>,
    changed: Condvar,
}

impl Hold {
    pub(super) fn new(
        when: When,
        is_it: impl Fn(&str, &str) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self {
            when,
            is_it: Box::new(is_it),
            state: Mutex::new((State::Awaited, String::new())),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (State, String)> {
        self.state.lock().unwrap()
    }

    fn set(&self, state: State) {
        self.lock().0 = state;
        self.changed.notify_all();
    }

    /// Whether it is the first request of the kind, which is this hold's then.
    pub(super) fn takes(&self, method: &str, key: &str) -> bool {
        let mut state = self.lock();
        let takes = state.0 == State::Awaited && (self.is_it)(method, key);
        if takes {
            *state = (State::Held, key.to_owned());
        }
        takes
    }

    /// Waits until it is let go; whether it is to be done.
    pub(super) fn wait(&self) -> bool {
        let held = |state: &mut (State, String)| state.0 == State::Held;
        let state = self.changed.wait_while(self.lock(), held).unwrap();
        state.0 == State::Released
    }

    /// The key of the request that is held back, once there is one.
    pub(crate) fn key(&self) -> Option<String> {
        let state = self.lock();
        (state.0 != State::Awaited).then(|| state.1.clone())
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        self.set(State::Released);
    }

    /// Ends its connection.
    pub(crate) fn give_up(&self) {
        self.set(State::GivenUp);
    }
}
