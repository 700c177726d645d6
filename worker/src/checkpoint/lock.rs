//! One writer at a time: what keeps a second process out of a run folder.
//!
//! On a disk it is a lock of the operating system, which ends with the process that has it. In an
//! object store it is a [`Lease`].

use super::CheckpointError;
use super::error::stored;
use super::lease::Lease;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

/// The file that is locked. It stays: taking it away could take it from under another process.
const LOCK: &str = "lock";

/// The right to write to a run folder, until it is dropped.
#[derive(Debug)]
pub(super) enum Lock {
    /// The kernel has it written down.
    File(#[expect(dead_code, reason = "it is held, not read")] File),
    /// A file system without locks.
    None,
    Lease(Lease),
}

impl Lock {
    /// Locks a folder of this machine, which is made. Where its file system has no locks, that is
    /// told.
    pub(super) fn of_folder(
        folder: &Path,
        tell: &mut dyn FnMut(String),
    ) -> Result<Self, CheckpointError> {
        let shown = folder.display().to_string();
        let open = || {
            fs::create_dir_all(folder)?;
            let mut options = File::options();
            options.create(true).truncate(false).write(true);
            options.open(folder.join(LOCK))
        };
        let file = open().map_err(|e| stored("lock", &shown, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self::File(file)),
            Err(TryLockError::WouldBlock) => Err(CheckpointError::InUse { folder: shown }),
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                tell(format!(
                    "the file system of {shown} has no locks: nothing keeps a second process \
                     from writing to it"
                ));
                Ok(Self::None)
            }
            Err(TryLockError::Error(error)) => Err(stored("lock", &shown, error)),
        }
    }

    /// Asks whether the folder is still this process's own.
    ///
    /// # Errors
    /// [`CheckpointError::TakenOver`] if it is not; another if that cannot be told.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        match self {
            Self::File(_) | Self::None => Ok(()),
            Self::Lease(lease) => lease.check(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_writer_until_it_is_dropped() {
        let folder = std::env::temp_dir().join(format!("synfire-lock-{}", std::process::id()));
        let take = || Lock::of_folder(&folder, &mut |warning| panic!("{warning}"));
        let first = take().unwrap();
        first.check().unwrap();
        let error = take().unwrap_err();
        assert!(matches!(error, CheckpointError::InUse { .. }), "{error}");
        drop(first);
        drop(take().unwrap());
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        let error = take().unwrap_err().to_string();
        assert!(error.contains("cannot lock"), "{error}");
        fs::remove_file(&folder).unwrap();
    }
}
