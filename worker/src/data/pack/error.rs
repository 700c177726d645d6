//! What can go wrong when a data set is packed.

use synfire_shared::dataset::IndexError;
use synfire_shared::storage::StorageError;

/// Why a data set was not packed: the place and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Source or target could not be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The source lacks a file.
    #[error("{place} has no {file}: {remedy}")]
    Missing {
        /// The source.
        place: String,
        /// The file looked for.
        file: String,
        /// What to give instead.
        remedy: &'static str,
    },
    /// A file of the source is not what it should be.
    #[error("{file}: {reason}: fetch it again, and check that it belongs to this data set")]
    Damaged {
        /// The file.
        file: String,
        /// What does not hold.
        reason: String,
    },
    /// An official archive has another digest.
    #[error(
        "{file} has MD5 {found}, but the official archive of this name has {expected}: fetch it \
         again; if it is meant to differ, unpack or rename it, or give --unofficial for ImageNet"
    )]
    Digest {
        /// The archive.
        file: String,
        /// The digest of its bytes.
        found: String,
        /// The digest of the official one.
        expected: &'static str,
    },
    /// The classes cannot be told.
    #[error("{place}: {reason}")]
    Classes {
        /// The source or the list of classes.
        place: String,
        /// What does not hold and what to do.
        reason: String,
    },
    /// The target holds another data set.
    #[error(
        "{out} already holds another packed data set: give another --out, or --overwrite to \
         replace it"
    )]
    Occupied {
        /// The target.
        out: String,
    },
    /// Not one picture of the training part can be used.
    #[error("{place}: no picture to train on: {remedy}")]
    Empty {
        /// The source.
        place: String,
        /// What to give instead.
        remedy: &'static str,
    },
    /// The picture could not be made into a PNG.
    #[error("cannot make a PNG of {sample}: this is a fault of synfire, please report it")]
    Encode {
        /// The sample.
        sample: String,
        /// The encoder's reason.
        #[source]
        source: png::EncodingError,
    },
    /// What was made does not form an index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

impl PackError {
    /// A fault of one of the source's files.
    pub(super) fn damaged(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged {
            file: file.into(),
            reason: reason.into(),
        }
    }
}
