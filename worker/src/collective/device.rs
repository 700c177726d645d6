//! Averages of numbers that lie in the memory of GPUs, without a way through the host's.

use std::fmt;

use super::{CollectiveError, Wire};

/// A range of numbers in a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// Where it lies, as the device counts.
    pub address: u64,
    /// How many numbers.
    pub length: usize,
    /// What they are, and how they travel.
    pub wire: Wire,
    /// By which this rank's are multiplied before they are added to the others'. Of bf16 only 1: a
    /// factor would be rounded to bf16 itself.
    pub factor: f32,
}

/// What of a group of ranks works on numbers of their GPUs. Every rank makes the same calls in the same
/// order, with pieces of the same lengths.
///
/// Nothing waits on the host: the order is that of streams. A rank that does not come holds back the
/// streams of all others; a thread notices, and ends what is under way at the deadline. Numbers that
/// were under way have no meaning then, and the next call says so. So whoever has waited for the GPU asks
/// [`OnDevice::check`] before what it holds is used.
pub trait OnDevice {
    /// Starts the sums over all ranks of these pieces, in place, behind what was given to the stream
    /// `compute` before. They travel together.
    ///
    /// # Errors
    ///
    /// If the group is over.
    ///
    /// # Panics
    ///
    /// If a piece of bf16 has a factor other than 1.
    fn start(&mut self, compute: u64, pieces: &[Piece]) -> Result<Started, CollectiveError>;

    /// What is given to the stream `compute` from now on comes after these sums.
    ///
    /// # Errors
    ///
    /// If the group is over.
    fn join(&mut self, compute: u64, started: Started) -> Result<(), CollectiveError>;

    /// That nothing has failed. Where something has, it asks the other ranks who is missing, which may
    /// take some seconds.
    ///
    /// # Errors
    ///
    /// Why the group is over.
    fn check(&mut self) -> Result<(), CollectiveError>;

    /// Waits for all sums that were started.
    ///
    /// # Errors
    ///
    /// As [`OnDevice::check`].
    fn wait(&mut self) -> Result<(), CollectiveError>;
}

/// Sums that are under way, until the stream of computation waits for them.
#[must_use = "the stream of computation does not wait for them without `join`"]
pub struct Started {
    #[cfg(feature = "nccl")]
    pub(super) events: std::sync::Arc<super::nccl::Events>,
}

impl fmt::Debug for Started {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Started")
    }
}
