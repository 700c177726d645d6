//! What can go wrong between a worker and its coordinator.

use std::io;
use std::path::PathBuf;
use synfire_shared::protocol::Refusal;

/// Why a worker cannot join, or could not tell the coordinator something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The coordinator's URL is none.
    #[error("--coordinator {url}: {reason}; give http://HOST:PORT or https://HOST:PORT")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The file with the certificates to trust cannot be read.
    #[error("cannot read the certificates to trust from {}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system gives no thread, no event queue or no TLS.
    #[error("cannot set up connections to the coordinator: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers: {reason}")]
    Random {
        /// Why.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "no coordinator answers at {url} after {seconds} s ({reason}): start synfire-coordinator \
         there, or correct --coordinator"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// For how long it was tried.
        seconds: u64,
        /// What the last attempt gave.
        reason: String,
    },
    /// The token is not the coordinator's.
    #[error(
        "the coordinator at {url} refuses the token: set SYNFIRE_TOKEN, or the token file, to what \
         the coordinator was started with"
    )]
    Token {
        /// Where.
        url: String,
    },
    /// The coordinator does not take this worker.
    #[error("the coordinator at {url} refuses this worker: {reason}")]
    Refused {
        /// Where.
        url: String,
        /// The kind of reason.
        code: Refusal,
        /// The reason.
        reason: String,
    },
    /// What answers speaks something else.
    #[error("what answers at {url} is no coordinator of this version: {reason}")]
    Answer {
        /// Where.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// Other ranks did not come.
    #[error(
        "after {seconds} s there still are missing: {}; start them, or let the coordinator begin \
         without them (--min-ranks)",
        missing.join("; ")
    )]
    Missing {
        /// For how long they were waited for.
        seconds: u64,
        /// Who or what.
        missing: Vec<String>,
    },
    /// The caller wanted to wait no longer.
    #[error("interrupted while waiting for the other ranks")]
    Interrupted,
}
