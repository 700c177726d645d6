//! Time steps: one that is repeated, the newest of them, and the errors that belong to each.

use super::Buffer;

/// Whether batch norm uses the batch's statistics and moves the running ones, or uses those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Batch statistics; running statistics move (of several ranks' networks: later, by
    /// [`Kernels::apply_moments`](super::Kernels::apply_moments)); dropout on.
    Train,
    /// Running statistics; nothing moves; dropout off.
    Evaluate,
}

/// What a network does again with the same slots of the same buffers, the same shapes and the same calls:
/// in every batch, and every few time steps of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Repeat {
    /// Whether it may be recorded and done again: not where the host looks at what is computed.
    pub may_record: bool,
    /// In training: forward, loss, backward and update of a time step; else forward and loss.
    pub is_training: bool,
    /// The first time step that is like this one (`Plan::first_like`).
    pub like: usize,
    /// Whether ranks tell each other the words of a batch in it.
    pub ends_batch: bool,
}

/// The newest `len` time steps, `newest` among them: `newest - len + 1 ..= newest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The newest time step.
    pub newest: usize,
    /// How many time steps.
    pub len: usize,
}

impl Window {
    /// Its time steps, newest first.
    pub fn newest_first(self) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |age| self.newest - age)
    }

    /// Only its newest time step.
    #[must_use]
    pub fn newest_only(self) -> Self {
        Self { len: 1, ..self }
    }
}

/// Errors that arrive from above: a buffer and the time steps for which something arrived.
///
/// For time steps outside `steps` the error is 0 and the buffer holds nothing of meaning
/// (Algorithm 1, line 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errors {
    /// Where they lie.
    pub buffer: Buffer,
    /// The time steps that have one: the newest of the window, or all of it.
    pub steps: Window,
}

/// Where errors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorsOut {
    /// The buffer.
    pub buffer: Buffer,
    /// Add to what is there (another reader of the value came first) instead of overwriting it.
    pub accumulate: bool,
}
