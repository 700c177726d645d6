//! Groups of ranks that average their numbers, in host memory or between GPUs.
//!
//! Every implementation is held to one suite, `tests/collectives.rs` (for MPI,
//! `worker/tests/mpi.rs`): what it computes, and how it fails.
//!
//! # Layout
//!
//! - [`error`]: the ways in which a group fails.
//! - [`pending`]: what is under way, and how a wait for it ends.
//! - [`bf16`]: numbers of 16 bits.
//! - `mean`: sums in rank order, one definition for all who sum.
//! - [`solo`]: a group of one.
//! - [`threads`]: ranks in one process; the reference.
//! - [`tcp`]: ranks on one machine, without MPI.
//! - `mpi`, with the feature of that name: ranks of an MPI job.
//! - [`device`]: averages of numbers that lie on GPUs.
//! - [`place`]: which of its machine's ranks one is.
//! - `nccl`, with the feature of that name: GPUs, beside one of the groups above.
//! - `opening`: what the ranks of MPI agree on before numbers move.
//! - [`environment`]: whether this process is one of an MPI job.

pub mod bf16;
pub mod device;
pub mod environment;
pub mod error;
mod mean;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
// Its tests need no MPI.
#[cfg(any(test, feature = "mpi"))]
#[cfg_attr(
    not(feature = "mpi"),
    allow(dead_code, reason = "only its tests are used")
)]
mod opening;
pub mod pending;
pub mod place;
pub mod solo;
pub mod tcp;
pub mod threads;

use std::time::Duration;

use synfire_shared::ids::{Rank, World};

use device::OnDevice;
pub use error::CollectiveError;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use pending::{Interrupt, Pending};
pub use solo::Solo;
pub use tcp::Tcp;
pub use threads::Threads;

/// How long a call waits for the others unless [`Collective::set_deadline`] says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_mins(1);

/// The most bytes that a rank may give to [`Collective::gather`]: 64 MiB.
pub const MAX_GATHER_BYTES: usize = 64 << 20;

/// The most numbers in one mean or broadcast: 4 GiB of f32.
pub const MAX_VALUES: usize = 1 << 30;

/// How numbers travel. Sums are formed in f32, but those between GPUs in what travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wire {
    /// As they are.
    F32,
    /// Rounded to bf16 (to nearest, ties to even) before they travel; the mean is rounded once more,
    /// so that all ranks have the same. In a group of one nothing travels and nothing is rounded.
    Bf16,
}

/// A group of ranks that can average. Every rank makes the same calls in the same order.
///
/// The mean is the sum in rank order, in f32, times 1/W, with the same bits in `solo`, `threads` and
/// `tcp`; MPI chooses an order of its own. An error ends the group: every later call gives it again.
/// Means that were complete before can still be waited for.
pub trait Collective: Send {
    /// What this is, for people: "tcp", "mpi (Open MPI 4.1.4)".
    fn name(&self) -> String;

    /// This member's rank.
    fn rank(&self) -> Rank;

    /// How many ranks the group has.
    fn world(&self) -> World;

    /// Starts the mean over all ranks of these numbers and returns at once. The very same `Vec`
    /// comes back from [`Pending::wait`], so that nothing need be allocated per call. Several may be
    /// under way; they end in the order of their start.
    ///
    /// # Errors
    ///
    /// If the group is over, or there are more than [`MAX_VALUES`] numbers.
    fn start_mean(&mut self, values: Vec<f32>, wire: Wire) -> Result<Pending, CollectiveError>;

    /// Gives every rank what `from` holds. The others' `values` must be as many.
    ///
    /// # Errors
    ///
    /// As [`Pending::wait`]; or `from` is no rank of this group.
    fn broadcast(&mut self, from: Rank, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Gives every rank the bytes of every rank, by rank. Lengths may differ, each at most
    /// [`MAX_GATHER_BYTES`].
    ///
    /// # Errors
    ///
    /// As [`Pending::wait`]; or there are too many bytes.
    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError>;

    /// How long a wait may take before it is an error; counted from the call that waits.
    fn set_deadline(&mut self, deadline: Duration);

    /// Tells the others, as far as can be, that this rank gives up and why. It waits a second for
    /// that at most. Under MPI it ends the whole job and does not return.
    fn abort(&mut self, reason: &str);

    /// What another thread can use to end this rank's waits at once.
    fn interrupt(&self) -> Interrupt;

    /// What of the group works on numbers where they lie on GPUs; nothing where numbers lie on the host.
    fn on_device(&mut self) -> Option<&mut dyn OnDevice> {
        None
    }
}

/// The rank of this place among all.
pub(crate) fn rank_of(place: usize) -> Rank {
    Rank(u32::try_from(place).expect("a world fits into u32"))
}
