//! What can go wrong with a store.

use std::io;

use super::Reason;
use super::reason::is_forbidden;

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The URL is of no known kind, or carries credentials.
    #[error("{url}: {reason}")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The store cannot be opened as it is configured.
    #[error("cannot open {url}: check it, and the credentials in the environment")]
    Open {
        /// The store.
        url: String,
        /// Its reason.
        #[source]
        source: Reason,
    },
    /// A variable of the environment is not what it should be.
    #[error("{variable} is {value:?}: give whole seconds from 1 to 3600")]
    Environment {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
    },
    /// No such object.
    #[error("{object} is not there: check the path or URL")]
    NotFound {
        /// The object.
        object: String,
    },
    /// An object is larger than the reader takes.
    #[error("{object} has {bytes} bytes, more than {limit_bytes}, the limit")]
    TooLarge {
        /// The object.
        object: String,
        /// Its length.
        bytes: u64,
        /// The most that is read.
        limit_bytes: u64,
    },
    /// A request failed, after its retries.
    #[error(
        "cannot {action} {object}: check that the store is reachable, writable and \
         not full, and the credentials in the environment right"
    )]
    Request {
        /// What was tried.
        action: &'static str,
        /// The object.
        object: String,
        /// The store's reason.
        #[source]
        source: Reason,
    },
}

/// Whether what the operating system says of a file may pass: not that it is not there, is not ours or is
/// none. Looks into errors of stores.
pub fn system_error_may_pass(error: &io::Error) -> bool {
    if let Some(error) = error.get_ref()
        && let Some(error) = error.downcast_ref::<StorageError>()
    {
        return error.may_pass();
    }
    let is_none = matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::InvalidFilename
    );
    !is_none && !is_forbidden(error.kind())
}

impl StorageError {
    /// Whether the same may go well another time: the store could not be reached, or is full.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Request { source, .. } => !source.is_refusal(),
            Self::Url { .. }
            | Self::Open { .. }
            | Self::Environment { .. }
            | Self::NotFound { .. }
            | Self::TooLarge { .. } => false,
        }
    }
}
