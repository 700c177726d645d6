//! What can be wrong with data, and what to do about it.

use std::io;
use std::path::PathBuf;

use synfire_shared::dataset::IndexError;
use synfire_shared::shard_plan::{PlanError, ShareError};
use synfire_shared::storage::StorageError;

use super::picture::PictureError;

/// A fault in a data set's files: the place, the numbers and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file or folder that must be there is not.
    #[error("{} is missing: {remedy}", path.display())]
    Missing {
        /// The file or folder looked for.
        path: PathBuf,
        /// What to put there.
        remedy: &'static str,
    },
    /// The operating system refused to read a file.
    #[error("cannot read {}: check that it is a readable file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any file of its kind.
    #[error(
        "{} has more than {limit_bytes} bytes, the limit: is it a data set of this kind, unpacked?",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes a file of this kind may have.
        limit_bytes: u64,
    },
    /// A file does not hold a whole number of records, at least one.
    #[error(
        "{} has {len_bytes} bytes, which is no positive multiple of {record_bytes}, the bytes of a \
         record: fetch or unpack it again",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        len_bytes: usize,
        /// The length of one record.
        record_bytes: usize,
    },
    /// A record's label is no class of the set.
    #[error(
        "{}: record {record_index} has label {label}, but the classes are 0 to {}: fetch it again, \
         and check that it is of CIFAR-10 and not of CIFAR-100",
        path.display(),
        classes - 1
    )]
    Label {
        /// The file.
        path: PathBuf,
        /// The record, counted from 0.
        record_index: usize,
        /// The label found.
        label: u8,
        /// The number of classes, at least 1.
        classes: usize,
    },
    /// The ranks cannot share the batches.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The data set inside the program does not decode.
    #[error("the built-in data set is damaged ({reason}): install synfire again")]
    BuiltIn {
        /// What did not hold.
        reason: String,
    },
    /// The store of a packed set cannot be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The index of a packed set is not one.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// There is no index where a packed set should be.
    #[error(
        "there is no index.json in {url}: give the folder that `synfire pack` has written, or pack \
         a data set into it"
    )]
    NoIndex {
        /// Where it was looked for.
        url: String,
    },
    /// A shard is not what the index says.
    #[error("{name}: {reason}: pack the data set again, or copy the shard again")]
    Shard {
        /// The shard.
        name: String,
        /// What does not hold.
        reason: String,
    },
    /// A sample of a packed set is no picture of the set.
    #[error(
        "{name} cannot be used; with data.on_bad_sample = \"replace\" such samples are replaced, \
         counted and listed"
    )]
    Sample {
        /// The shard, and the sample in it.
        name: String,
        /// What is wrong.
        #[source]
        source: PictureError,
    },
    /// So many samples in a row are bad that none is near to take their place.
    #[error("{name} and the {tries} samples after it cannot be used: pack the data set again")]
    AllBad {
        /// The shard, and the sample in it.
        name: String,
        /// The samples that were tried in its place.
        tries: u32,
        /// What is wrong with the first.
        #[source]
        source: PictureError,
    },
    /// The set has more samples than can be ordered, or the batch is too large.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// `AutoAugment` for images of one size.
    #[error(
        "data.augment = \"autoaugment\" is for packed sets of pictures of any size: use \
         \"standard\" here"
    )]
    AutoAugment,
    /// The set's pictures have no shape that a network can take.
    #[error("{name}: {reason}")]
    Unusable {
        /// The set.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The cache's folder cannot be made or read.
    #[error(
        "cannot use the cache {}: set data.cache to a folder on a local disk, or data.cache_gib \
         to 0",
        path.display()
    )]
    Cache {
        /// The folder.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}
