//! Why weights cannot be read or written.

use crate::trace::TraceError;
use synfire_shared::storage::StorageError;

/// Why weights cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file is no safetensors file, or cannot be read or written.
    #[error(transparent)]
    File(#[from] TraceError),
    /// The file cannot be fetched.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is none of `torch.save` with weights.
    #[error("{file} cannot be read as a file of torch.save: {reason}")]
    Torch {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// Its tensors are not those of the network.
    #[error("{file} was not saved from this model, width and number of classes: {differences}")]
    Misfit {
        /// The file.
        file: String,
        /// What is missing, not known, of another shape; the first of each.
        differences: String,
    },
    /// Only the readout does not fit.
    #[error(
        "{file} was not saved for this number of classes: its {name} has shape {got:?}, the \
         network's has {want:?}; init.skip_readout = true takes all but the readout, which then \
         starts at random"
    )]
    Readout {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// What fits.
        want: Vec<usize>,
    },
    /// Two tensors of the file are one of the network.
    #[error("{file}: {name:?} is there twice, under the names of two programs")]
    Twice {
        /// The file.
        file: String,
        /// The network's tensor.
        name: String,
    },
    /// A tensor of a checkpoint has another size.
    #[error("{file}: tensor {name:?} has {got} numbers, the network's has {want}")]
    Size {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
        /// Numbers in the file.
        got: usize,
        /// Numbers that fit.
        want: usize,
    },
    /// A tensor that must be there is not.
    #[error("{file} has no tensor {name:?}; was it saved from this model?")]
    Missing {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
    /// A tensor holds whole numbers.
    #[error("{file}: tensor {name:?} holds whole numbers, weights are f32")]
    Integers {
        /// The file.
        file: String,
        /// The tensor.
        name: String,
    },
}
