//! Generations in a run folder.

use std::collections::BTreeMap;

use super::{FOLDER, Generation, GenerationError, GenerationName, Link, MAX_BYTES, Survey};
use crate::checkpoint::manifest_of_name;
use crate::storage::{Entry, StorageError, Store};

/// Why generations cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store did not do it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An object that says nothing, so that nobody knows which checkpoints count.
    #[error(
        "{object}: {source}; restore it from a copy, or delete it if no process that was started \
         before it still runs"
    )]
    Damaged {
        /// Its name.
        object: String,
        /// What is wrong with it.
        source: GenerationError,
    },
}

/// The generations of a run folder, each read once.
#[derive(Debug)]
pub struct Generations {
    store: Store,
    checkpoints: String,
    known: BTreeMap<GenerationName, Generation>,
    links: BTreeMap<GenerationName, Link>,
}

impl Generations {
    /// Those of the run folder `store`, whose checkpoints lie in its folder `checkpoints`.
    pub fn new(store: Store, checkpoints: &str) -> Self {
        Self {
            store,
            checkpoints: checkpoints.to_owned(),
            known: BTreeMap::new(),
            links: BTreeMap::new(),
        }
    }

    /// What is there now.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: the store does not answer, or an object is damaged.
    pub fn survey(&mut self) -> Result<Survey, StoreError> {
        // Manifests first: then no manifest is seen whose generation is not.
        let manifests = self.store.list_folder(&self.checkpoints)?;
        let names = names(&self.store.list_folder(FOLDER)?);
        let newest = names.iter().map(|name| name.number).max();
        self.known.retain(|name, _| Some(name.number) == newest);
        self.links.retain(|name, _| names.contains(name));
        let mut survey = Survey::default();
        for name in names {
            let is_newest = Some(name.number) == newest;
            let known = self.links.get(&name).copied();
            let link = match known.filter(|_| !is_newest || self.known.contains_key(&name)) {
                Some(link) => Some(link),
                None => self.read(name, is_newest)?,
            };
            survey.links.extend(link);
            if let Some(generation) = self.known.get(&name).filter(|_| is_newest) {
                survey.newest.push(generation.clone());
            }
        }
        let manifests = manifests.iter().filter_map(|entry| named(&entry.key));
        survey.manifests = manifests.filter_map(manifest_of_name).collect();
        Ok(survey)
    }

    /// Absent where it was withdrawn since it was listed.
    fn read(&mut self, name: GenerationName, is_newest: bool) -> Result<Option<Link>, StoreError> {
        let bytes = match self.store.get(&name.key(), MAX_BYTES) {
            Ok(bytes) => bytes,
            Err(StorageError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |source| StoreError::Damaged {
            object: self.store.name(&name.key()),
            source,
        };
        let generation = Generation::parse_named(name, &bytes).map_err(damaged)?;
        let link = generation.link();
        self.links.insert(name, link);
        if is_newest {
            self.known.insert(name, generation);
        }
        Ok(Some(link))
    }

    /// Puts a generation; again does no harm.
    ///
    /// # Errors
    ///
    /// [`StoreError::Storage`]; it may be there nevertheless, or appear later.
    pub fn put(&self, generation: &Generation) -> Result<(), StoreError> {
        let key = generation.name().key();
        Ok(self.store.put(&key, generation.to_bytes())?)
    }

    /// Takes one back whose number a rival has too.
    ///
    /// # Errors
    ///
    /// [`StoreError::Storage`].
    pub fn withdraw(&self, name: GenerationName) -> Result<(), StoreError> {
        Ok(self.store.delete(&name.key())?)
    }
}

/// The highest number of a generation in a run folder, 0 of none: who wrote a checkpoint, or is
/// about to, and sees a higher one than its own has been taken over.
///
/// # Errors
///
/// [`StorageError`]: the store does not answer.
pub fn newest_number(store: &Store) -> Result<u64, StorageError> {
    let names = names(&store.list_folder(FOLDER)?);
    Ok(names.iter().map(|name| name.number).max().unwrap_or(0))
}

fn names(entries: &[Entry]) -> Vec<GenerationName> {
    let names = entries.iter().filter_map(|entry| named(&entry.key));
    names.filter_map(GenerationName::parse).collect()
}

fn named(key: &str) -> Option<&str> {
    Some(key.rsplit_once('/')?.1)
}
