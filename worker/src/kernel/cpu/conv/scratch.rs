//! Buffers that calls share, so that none of them allocates once sizes are known.
use crate::kernel::cpu::simd::lists::Lists;
use std::sync::{Mutex, PoisonError};

/// Buffers shared by all convolutions of a back end; they grow at first use and never shrink.
#[derive(Debug, Default)]
pub struct ConvScratch {
    /// Inputs or errors with their borders, or transformed.
    pub(super) padded: Buffer,
    /// Errors in another layout.
    pub(super) errors: Buffer,
    /// Partial weight gradients.
    pub(super) sums: Buffer,
    /// Positions of spikes.
    pub(super) lists: Lists,
    /// One buffer per thread of the pool.
    pub(super) slots: Slots,
}

/// A buffer whose values start at a cache line: vectors that cross lines take twice as long.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    const LINE: usize = 64;

    /// All values, and perhaps a few more.
    pub(super) fn values(&self) -> &[f32] {
        &self.0[self.0.as_ptr().align_offset(Self::LINE).min(self.0.len())..]
    }

    /// The first `len` values, made at first use; what they hold is undefined.
    pub(super) fn grown(&mut self, len: usize) -> &mut [f32] {
        let room = len + Self::LINE / size_of::<f32>();
        if self.0.len() < room {
            self.0.resize(room, 0.0);
        }
        let start = self.0.as_ptr().align_offset(Self::LINE);
        &mut self.0[start..start + len]
    }
}

/// One buffer per thread: what a task leaves in its core's cache, the next one finds there.
/// Results must not depend on what a buffer holds, hence not on the thread.
#[derive(Debug, Default)]
pub(crate) struct Slots(Vec<Mutex<Buffer>>);

impl Slots {
    /// Makes all buffers that the current pool can use.
    pub(super) fn grown(&mut self, len: usize) -> &Self {
        let threads = rayon::current_num_threads();
        if self.0.len() < threads {
            self.0.resize_with(threads, Mutex::default);
        }
        for slot in &mut self.0 {
            slot.get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .grown(len);
        }
        self
    }

    /// Lends this thread's buffer to a task that itself starts no others.
    pub(crate) fn with(&self, len: usize, task: impl FnOnce(&mut [f32])) {
        let index = rayon::current_thread_index().unwrap_or(0) % self.0.len();
        let mut slot = self.0[index].lock().unwrap_or_else(PoisonError::into_inner);
        task(slot.grown(len));
    }
}
