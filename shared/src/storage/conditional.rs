//! Writes that expect what they find: of two writers who expect the same, one is refused.

use bytes::Bytes;
use object_store::{Error, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};

use super::{StorageError, Store, repeat, wait};

/// A state of an object, as its store tells it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    e_tag: Option<String>,
    version: Option<String>,
}

/// What a write expects to find.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// No object of that name.
    Absent,
    /// The object as it was when it was read.
    Unchanged(&'a Version),
}

/// How a write ended that expected something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is written.
    Written,
    /// Another state was found; nothing is written.
    Refused,
    /// The store cannot tell; nothing is written.
    Unsupported,
}

impl Store {
    /// [`Store::get`], with which state of the object it is.
    ///
    /// # Errors
    ///
    /// As [`Store::get`].
    pub fn get_with_version(
        &self,
        key: &str,
        limit_bytes: u64,
    ) -> Result<(Bytes, Version), StorageError> {
        let location = self.location(key)?;
        let read = repeat(self.deadline, || async {
            let object = self.objects.get(&location).await?;
            let bytes = object.meta.size;
            if bytes > limit_bytes {
                return Ok(Err(bytes));
            }
            let version = Version {
                e_tag: object.meta.e_tag.clone(),
                version: object.meta.version.clone(),
            };
            Ok(Ok((object.bytes().await?, version)))
        });
        let read = wait(read).map_err(|e| self.failed("read", key, &e))?;
        read.map_err(|bytes| StorageError::TooLarge {
            object: self.name(key),
            bytes,
            limit_bytes,
        })
    }

    /// Writes an object if what is there is what is expected.
    ///
    /// # Errors
    ///
    /// [`StorageError::Request`].
    pub fn put_if(
        &self,
        key: &str,
        bytes: impl Into<Bytes>,
        expected: Expected<'_>,
    ) -> Result<Outcome, StorageError> {
        let location = self.location(key)?;
        let mode = match expected {
            Expected::Absent => PutMode::Create,
            Expected::Unchanged(Version { e_tag: None, .. }) => return Ok(Outcome::Unsupported),
            Expected::Unchanged(version) => PutMode::Update(UpdateVersion {
                e_tag: version.e_tag.clone(),
                version: version.version.clone(),
            }),
        };
        let options = PutOptions::from(mode);
        let put = self
            .objects
            .put_opts(&location, bytes.into().into(), options);
        match wait(put) {
            Ok(_) => Ok(Outcome::Written),
            Err(
                Error::AlreadyExists { .. }
                | Error::Precondition { .. }
                | Error::NotModified { .. }
                | Error::NotFound { .. },
            ) => Ok(Outcome::Refused),
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                Ok(Outcome::Unsupported)
            }
            Err(source) => Err(self.failed("write", key, &source)),
        }
    }
}
