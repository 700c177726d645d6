//! Why a run folder or a checkpoint cannot be used.

use crate::trace::TraceError;
use crate::weights::WeightsError;
use std::error::Error;
use std::io;
use synfire_shared::checkpoint::{Digest, ManifestError};
use synfire_shared::generation::GenerationError;
use synfire_shared::storage::{StorageError, system_error_may_pass};

/// Why a run folder or a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// No place at all.
    #[error("the run folder's name is empty: give a path or a URL")]
    Nowhere,
    /// A manifest of which it cannot be told to which run it belongs.
    #[error("{location}: a checkpoint lies in the folder checkpoints/ of a run folder")]
    Location {
        /// What was given.
        location: String,
    },
    /// No URL of a known kind, or its store cannot be opened or reached.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Another process writes to the folder.
    #[error(
        "another process is writing to {folder}: wait until it has ended, or give another \
         run.folder"
    )]
    InUse {
        /// The folder.
        folder: String,
    },
    /// Another process has taken the folder over.
    #[error(
        "another process has taken over {folder}, or its owner.json was deleted: this run stops and \
         writes no more; what was committed is intact"
    )]
    TakenOver {
        /// The folder.
        folder: String,
    },
    /// A later generation of ranks has begun.
    #[error(
        "a later generation of ranks trains in {folder}: this one stops and writes no more; what was \
         committed is intact"
    )]
    Superseded {
        /// The folder.
        folder: String,
    },
    /// A generation says nothing.
    #[error(
        "{name}: {source}; restore it from a copy, or delete it if no process that was started \
         before it still runs"
    )]
    Generation {
        /// The object.
        name: String,
        /// What is wrong with it.
        #[source]
        source: GenerationError,
    },
    /// The store does not do what it should.
    #[error("cannot {what} {name}")]
    Store {
        /// What it should do.
        what: &'static str,
        /// With what.
        name: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// What says nothing about a checkpoint: it may be whole.
    #[error(
        "{name} cannot be read now: {source}; that does not mean that it is damaged: try again when \
         it can be read"
    )]
    NotNow {
        /// The manifest or part.
        name: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A manifest is refused.
    #[error("checkpoint {name}: {source}")]
    Manifest {
        /// The checkpoint.
        name: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A checkpoint of another configuration.
    #[error(
        "checkpoint {name} is of another configuration: {differences}; give it the same one, or \
         another run.folder to start anew"
    )]
    Settings {
        /// The checkpoint.
        name: String,
        /// The keys that differ, with both values.
        differences: String,
    },
    /// A checkpoint of other data.
    #[error(
        "checkpoint {name} is of other training data (SHA-256 {saved}, here {here}): give it the \
         same data, or another run.folder to start anew"
    )]
    Data {
        /// The checkpoint.
        name: String,
        /// Of its data.
        saved: Digest,
        /// Of the data of this run.
        here: Digest,
    },
    /// A part is missing or not what the manifest says.
    #[error("checkpoint {name} is damaged: its part {part} {reason}")]
    Part {
        /// The checkpoint.
        name: String,
        /// The part.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// Tensors that are not the network's.
    #[error("checkpoint {name}: {source}")]
    Tensors {
        /// The checkpoint.
        name: String,
        /// Which.
        #[source]
        source: Box<WeightsError>,
    },
    /// Progress that the training loop cannot read.
    #[error("checkpoint {name}: its progress cannot be read: {reason}")]
    Progress {
        /// The checkpoint.
        name: String,
        /// Why.
        reason: String,
    },
    /// A copy that cannot be written as a file.
    #[error(transparent)]
    Encode(#[from] TraceError),
    /// Every checkpoint is damaged.
    #[error(
        "none of the {count} checkpoints in {folder} can be used (newest: {newest}); to start \
         anew, give another run.folder"
    )]
    NoneGood {
        /// The folder.
        folder: String,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        newest: String,
    },
    /// A checkpoint that lies behind what the run's own folder has.
    #[error(
        "checkpoint {name} is older than {newest}, the newest in the run's own folder, whose later \
         metrics would be lost: give another run.folder, or resume from the newest with \
         --resume auto"
    )]
    Older {
        /// The checkpoint.
        name: String,
        /// The newest good one in the folder.
        newest: String,
    },
    /// A new run in the folder of another.
    #[error(
        "{folder} has the checkpoints of a run: resume it with --resume auto, or give another \
         run.folder"
    )]
    Occupied {
        /// The folder.
        folder: String,
    },
    /// Nothing to resume from.
    #[error(
        "there is no checkpoint in {folder}: give a run folder, or a manifest in its checkpoints"
    )]
    Nothing {
        /// The folder.
        folder: String,
    },
    /// The run's last checkpoint is not there.
    #[error("the last checkpoint is not written, the one before is intact: {reason}")]
    LastNotWritten {
        /// Why.
        reason: String,
        /// Whether the same may go well another time.
        may_pass: bool,
    },
}

impl CheckpointError {
    /// Whether the folder is another's now.
    pub fn is_taken_over(&self) -> bool {
        matches!(self, Self::TakenOver { .. } | Self::Superseded { .. })
    }

    /// Whether the same may go well another time.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Storage(error) => error.may_pass(),
            Self::Store { source, .. } => system_error_may_pass(source),
            Self::NotNow { .. } => true,
            Self::LastNotWritten { may_pass, .. } => *may_pass,
            Self::Nowhere
            | Self::Location { .. }
            | Self::InUse { .. }
            | Self::TakenOver { .. }
            | Self::Superseded { .. }
            | Self::Generation { .. }
            | Self::Manifest { .. }
            | Self::Settings { .. }
            | Self::Data { .. }
            | Self::Part { .. }
            | Self::Tensors { .. }
            | Self::Progress { .. }
            | Self::Encode(_)
            | Self::NoneGood { .. }
            | Self::Older { .. }
            | Self::Occupied { .. }
            | Self::Nothing { .. } => false,
        }
    }

    /// Whether an older checkpoint may be whole where this one is not.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Part { .. } => true,
            // A manifest that is gone or is none; everything else of a disk may pass.
            Self::Store { source, .. } => is_lost(source),
            Self::Storage(error) => !is_out_of_reach(error),
            Self::Manifest { source, .. } => matches!(source, ManifestError::Damaged { .. }),
            Self::Nowhere
            | Self::Location { .. }
            | Self::InUse { .. }
            | Self::TakenOver { .. }
            | Self::Superseded { .. }
            | Self::Generation { .. }
            | Self::NotNow { .. }
            | Self::Settings { .. }
            | Self::Data { .. }
            | Self::Tensors { .. }
            | Self::Progress { .. }
            | Self::Encode(_)
            | Self::NoneGood { .. }
            | Self::Older { .. }
            | Self::Occupied { .. }
            | Self::Nothing { .. }
            | Self::LastNotWritten { .. } => false,
        }
    }
}

/// An error of a store; one of an object store tells all that there is to tell.
pub(super) fn stored(what: &'static str, name: &str, source: io::Error) -> CheckpointError {
    match source.downcast::<StorageError>() {
        Ok(error) => error.into(),
        Err(source) => {
            let name = name.to_owned();
            CheckpointError::Store { what, name, source }
        }
    }
}

/// An error while a part of a checkpoint or its manifest is read.
pub(super) fn unread(name: &str, source: io::Error) -> CheckpointError {
    let inner = source.get_ref();
    let tells_all = inner.is_some_and(<dyn Error + Send + Sync>::is::<StorageError>);
    if tells_all || is_lost(&source) {
        return stored("read", name, source);
    }
    let name = name.to_owned();
    CheckpointError::NotNow { name, source }
}

/// Whether it is certain that what was written is not there, of what a read came upon.
pub(super) fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidData
    )
}

/// Whether the store could not be asked, which says nothing about what it has.
pub(super) fn is_out_of_reach(error: &StorageError) -> bool {
    !matches!(
        error,
        StorageError::NotFound { .. } | StorageError::TooLarge { .. }
    )
}
