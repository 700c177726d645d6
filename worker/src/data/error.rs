//! What can be wrong with data, and what to do about it.

use std::io;
use std::path::PathBuf;

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
    /// The data set inside the program does not decode.
    #[error("the built-in data set is damaged ({reason}): install synfire again")]
    BuiltIn {
        /// What did not hold.
        reason: String,
    },
}
