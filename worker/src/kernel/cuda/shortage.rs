//! What memory was not there for.
//!
//! The device does nothing more then, but calls still come until the batch is over. What they ask for is
//! noted, so that the largest batch that fits is told of a whole batch and not of the first call that failed.

use super::arenas::Arenas;
use super::device::{CudaError, MOST_WORKSPACE, Memory};
use super::{CudaKernels, Purpose};
use crate::kernel::Shortage;

/// What is left of the memory that there is, as one in so many bytes, for what nobody asks us for: rounding
/// to pages, code of kernels and of cuDNN that is loaded when first used, recorded graphs.
const LEFT: u64 = 32;

/// Bytes that were there when memory was first out, and those asked for in vain since.
#[derive(Debug)]
pub(super) struct Missing {
    held: u64,
    free: u64,
    /// By purpose, the most.
    scratch: [u64; super::PURPOSES],
    /// The arenas, which are as large for any batch.
    arenas: u64,
    /// Everything else.
    others: u64,
}

impl CudaKernels {
    /// Keeps why everything is in vain from here on, unless that is known.
    pub(super) fn fail(&mut self, error: CudaError) {
        if self.failure.is_some() {
            return;
        }
        if error.is_about_memory() {
            // What had been taken beside it was given back since.
            let free = self.device.memory_info().map_or(0, |(free, _)| free);
            self.missing = Some(Missing {
                held: self.device.allocated(),
                free,
                scratch: [0; super::PURPOSES],
                arenas: 0,
                others: 0,
            });
            // Nothing may be done with addresses of memory that is not there.
            self.device.halt();
        }
        self.failure = Some(error);
    }

    /// Notes scratch that is not there.
    pub(super) fn lacks_scratch(&mut self, purpose: Purpose, bytes: u64) {
        if let Some(missing) = &mut self.missing {
            let most = &mut missing.scratch[purpose as usize];
            *most = bytes.max(*most);
        }
    }

    /// Notes arenas that are not there.
    pub(super) fn lacks_arenas(&mut self, bytes: u64) {
        if let Some(missing) = &mut self.missing {
            missing.arenas += bytes;
        }
    }

    /// Notes other memory that is not there.
    pub(super) fn lacks(&mut self, bytes: u64) {
        if let Some(missing) = &mut self.missing {
            missing.others += bytes;
        }
    }

    /// Whether calls need not even say what they would take.
    pub(super) fn is_in_vain(&self) -> bool {
        let asks = self.missing.is_some() && self.arenas.is_some();
        self.has_failed() && !asks
    }

    /// What there is and what is needed, if memory is what has failed.
    pub(super) fn what_is_short(&self) -> Option<Shortage> {
        let missing = self.missing.as_ref()?;
        let held = |purpose: usize| {
            self.scratch.rooms[purpose]
                .as_ref()
                .map_or(0, Memory::bytes)
        };
        let scratch = |purpose: usize| held(purpose).max(missing.scratch[purpose]);
        // A room goes before a larger one takes its place.
        let grown = (0..super::PURPOSES).map(|purpose| scratch(purpose) - held(purpose));
        let grown: u64 = grown.sum();
        // Sums over a batch are cut into at most so many parts, cuDNN's workspace is bounded by our choice
        // of algorithms: it may grow with the batch, but counts as if it did not, which errs on the safe side.
        let of = |purpose: Purpose| scratch(purpose as usize);
        let workspace = of(Purpose::Workspace).min(MOST_WORKSPACE as u64);
        let staged = of(Purpose::Host) + of(Purpose::Tables);
        let fixed = staged + of(Purpose::Partials) + of(Purpose::Filter) + workspace;
        let there = missing.held + missing.free;
        Some(Shortage {
            available: there - there / LEFT,
            needed: missing.held + grown + missing.arenas + missing.others,
            fixed: fixed + missing.arenas + self.arenas.as_ref().map_or(0, Arenas::bytes),
        })
    }
}
