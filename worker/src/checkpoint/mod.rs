//! A run folder and its checkpoints, on a disk or in an object store: everything goes through
//! [`store::Store`].
//!
//! # Layout
//!
//! - [`store`]: where a folder lies: put at once or not at all, get, list, delete.
//! - `lock`: one writer at a time; `lease`: the same in an object store.
//! - this file: [`RunFolder`]: where it is, what it has, and how a run begins to write to it.
//! - `lineage`: the generations of ranks that wrote to it, and which checkpoints count.
//! - `load`: a checkpoint read and checked, older ones where newer are damaged.
//! - [`state`]: what a checkpoint saves of a node, copied out and back in.
//! - [`recording`]: what a run hands over to be written.
//! - `writer`: the thread that writes; `commit`: how it writes a checkpoint, and deletes what newer
//!   ones take the place of.
//! - `error`: why a folder or a checkpoint cannot be used.
//! - `late`, a test: processes that are stopped at any moment and write too late.
//!
//! What a checkpoint is, is in [`synfire_shared::checkpoint`].

mod commit;
mod error;
#[cfg(test)]
mod late;
mod lease;
mod lineage;
mod load;
mod lock;
pub mod recording;
pub mod state;
pub mod store;
mod writer;

use commit::{Target, set_aside};
pub use error::CheckpointError;
use error::stored;
use lock::Lock;
use recording::Earlier;
pub use recording::{Page, Recording};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use store::{LocalStore, Store};
use synfire_shared::Run;
use synfire_shared::checkpoint::{Digest, ManifestName, manifest_of_name};
use synfire_shared::storage;
pub use writer::{Attempt, Failure, Written};

/// The folder of checkpoints in a run folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// One line of JSON per epoch.
const METRICS: &str = "metrics.jsonl";
/// The epochs so far, to look at.
const REPORT: &str = "report.html";
/// A line of JSON for each sample that could not be used.
const BAD_SAMPLES: &str = "bad_samples.jsonl";
/// What was found out about a run's ranks.
const TUNING: &str = "ranks.json";
/// A larger one was not written by a run.
const MAX_TUNING_BYTES: u64 = 1 << 16;
/// The checked configuration.
const CONFIG: &str = "config.toml";
/// The program's version.
const VERSION: &str = "version.txt";
/// Larger metrics are not of a run.
const MAX_METRICS_BYTES: u64 = 1 << 30;
/// A larger configuration was not written by [`Run::to_toml`].
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What the numbers of a run depend on; a checkpoint is resumed with the same alone.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Of [`Run::settings`].
    pub settings: BTreeMap<String, String>,
    /// The digest of the training set.
    pub data: Digest,
    /// The digest of the order of samples.
    pub plan: Digest,
    /// The most ranks that can share a batch.
    pub lanes: u32,
    /// The samples of a batch.
    pub batch: u32,
    /// The run folder, as it was written.
    pub folder: Option<String>,
}

/// Where a run folder lies.
#[derive(Clone, Debug)]
enum Place {
    Disk(Arc<LocalStore>),
    Objects(Arc<storage::Store>),
}

/// A folder with a run's results, to read from.
#[derive(Debug)]
pub struct RunFolder {
    place: Place,
    shown: String,
}

/// Where a run starts to write.
#[derive(Clone, Debug, Default)]
pub struct Begin {
    /// The checkpoint that it starts from.
    pub start: Option<ManifestName>,
    /// The epoch in which it starts.
    pub epoch: u32,
    /// The lines of the metrics that the checkpoint has, if it is one of this folder: the file may
    /// be another generation's.
    pub lines: Option<String>,
    /// Checkpoints that are damaged.
    pub damaged: Vec<ManifestName>,
}

/// The right to write to a run folder, which one process has at a time.
#[derive(Debug)]
pub struct Writable {
    folder: RunFolder,
    lock: Lock,
    /// The generation of ranks that it is of, if it is of one.
    generation: Option<u64>,
}

impl RunFolder {
    /// The folder at a path or URL; nothing is touched yet.
    ///
    /// # Errors
    /// If it is no URL of a known kind, or its store cannot be opened.
    pub fn at(location: &str) -> Result<Self, CheckpointError> {
        if location.is_empty() {
            return Err(CheckpointError::Nowhere);
        }
        if let Some(folder) = storage::folder_of(location)? {
            let shown = folder.display().to_string();
            let shown = shown.trim_end_matches('/').to_owned();
            return Ok(Self {
                // One's own way of writing, of which is known that a power cut loses nothing.
                place: Place::Disk(Arc::new(LocalStore::new(folder))),
                shown: if shown.is_empty() { "/".into() } else { shown },
            });
        }
        let store = storage::Store::open(location)?;
        let shown = store.url().trim_end_matches('/').to_owned();
        let place = Place::Objects(Arc::new(store));
        Ok(Self { place, shown })
    }

    /// The folder and, where the location is that of a manifest, which checkpoint.
    ///
    /// # Errors
    /// As [`Self::at`], or if a URL's manifest lies in no folder `checkpoints`.
    pub fn of_checkpoint(location: &str) -> Result<(Self, Option<ManifestName>), CheckpointError> {
        let (folder, name) = location.rsplit_once('/').unwrap_or((".", location));
        let Some(manifest) = manifest_of_name(name) else {
            return Ok((Self::at(location)?, None));
        };
        let run = match folder.strip_suffix(CHECKPOINTS) {
            Some("") => ".".into(),
            Some("/") => "/".into(),
            Some(run) if run.ends_with('/') => run[..run.len() - 1].to_owned(),
            _ if folder.contains("://") => {
                let location = storage::Store::open(location)?.url().to_owned();
                return Err(CheckpointError::Location { location });
            }
            _ => format!("{folder}/.."),
        };
        Ok((Self::at(&run)?, Some(manifest)))
    }

    /// The folder's name in messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn store(&self) -> &dyn Store {
        match &self.place {
            Place::Disk(store) => &**store,
            Place::Objects(store) => &**store,
        }
    }

    /// The configuration that the run was started with, as text.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn config(&self) -> Result<String, CheckpointError> {
        let name = format!("{}/{CONFIG}", self.shown);
        let bytes = self.store().get(CONFIG, MAX_CONFIG_BYTES);
        let bytes = bytes.map_err(|e| stored("read", &name, e))?;
        String::from_utf8(bytes).map_err(|e| stored("read", &name, io::Error::other(e)))
    }

    /// The checkpoints that exist and count, oldest first.
    ///
    /// # Errors
    /// If the folder cannot be listed, or a generation is damaged.
    pub fn checkpoints(&self) -> Result<Vec<ManifestName>, CheckpointError> {
        lineage::checkpoints(self.store(), &self.shown)
    }

    /// The right to write as rank 0 of a generation, as long as there is no later one. Who else has
    /// the right does not matter: a process that stands still would keep it.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn of_generation(self, generation: u64) -> Result<Writable, CheckpointError> {
        match &self.place {
            Place::Disk(store) => {
                let made = std::fs::create_dir_all(store.root());
                made.map_err(|e| stored("make", &self.shown, e))?;
            }
            // Some stores can be read alone.
            Place::Objects(store) => drop(storage::Store::create(store.url())?),
        }
        Ok(Writable {
            folder: self,
            lock: Lock::None,
            generation: Some(generation),
        })
    }

    /// Takes the right to write, for as long as the result lives. What must be known of a wait is
    /// told.
    ///
    /// # Errors
    /// [`CheckpointError::InUse`] if another process has it; others if the folder cannot be
    /// written.
    pub fn lock(self, tell: &mut dyn FnMut(String)) -> Result<Writable, CheckpointError> {
        let lock = match &self.place {
            Place::Disk(store) => Lock::of_folder(store.root(), tell)?,
            Place::Objects(store) => {
                // Some stores can be read alone.
                storage::Store::create(store.url())?;
                Lock::Lease(lease::Lease::take(store, tell)?)
            }
        };
        Ok(Writable {
            folder: self,
            lock,
            generation: None,
        })
    }
}

impl RunFolder {
    fn shared_store(&self) -> Arc<dyn Store> {
        match &self.place {
            Place::Disk(store) => Arc::<LocalStore>::clone(store),
            Place::Objects(store) => Arc::<storage::Store>::clone(store),
        }
    }
}

impl Writable {
    /// The folder, to read from.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Puts the manifest of a damaged checkpoint aside, if an older one counts: where there is none, a run
    /// must not begin anew as if nothing had been. Returns whether there is an older one.
    ///
    /// # Errors
    /// If the folder cannot be read or written, or is another's.
    pub fn put_aside(&self, damaged: ManifestName) -> Result<bool, CheckpointError> {
        let (store, shown) = (self.folder.shared_store(), &self.folder.shown);
        let counting = lineage::checkpoints(&*store, shown)?;
        let has_older = counting.iter().any(|manifest| *manifest < damaged);
        let newest = lineage::newest_number(&*store, shown)?;
        if self.generation.is_some_and(|own| newest > own) {
            let folder = shown.clone();
            return Err(CheckpointError::Superseded { folder });
        }
        if has_older {
            set_aside(&*store, damaged)?;
        }
        Ok(has_older)
    }

    /// Whether what messages call so lies in it.
    pub fn has(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.folder.shown);
        rest.is_some_and(|rest| rest.starts_with('/'))
    }

    /// Starts to write, from a checkpoint or anew: configuration and version now, the metrics of the
    /// epochs before its own kept; damaged checkpoints are put aside.
    ///
    /// # Errors
    /// If the folder cannot be written, or is another's.
    pub fn begin(
        self,
        run: &Run,
        identity: Identity,
        begin: Begin,
    ) -> Result<Recording, CheckpointError> {
        let shown = self.folder.shown.clone();
        let store = self.folder.shared_store();
        let newest = lineage::newest_number(&*store, &shown)?;
        let generation = match self.generation {
            Some(generation) => generation,
            None if newest == 0 => 0,
            None => lineage::begin_alone(
                &store,
                &shown,
                newest,
                &identity,
                (begin.start, &begin.damaged),
            )?,
        };
        let target = Target {
            store,
            lock: self.lock,
            generation,
            shown,
        };
        // Whoever comes too late leaves everything as it is.
        target.check()?;
        if let Place::Disk(store) = &self.folder.place {
            for folder in ["", CHECKPOINTS] {
                let cleaned = store.clean(folder);
                cleaned.map_err(|e| stored("clean", &target.shown, e))?;
            }
        }
        for &manifest in &begin.damaged {
            set_aside(&*target.store, manifest)?;
        }
        let earlier = |name: &str| match target.store.get(name, MAX_METRICS_BYTES) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(stored("read", &format!("{}/{name}", target.shown), error)),
        };
        let lines = begin.lines.map(String::into_bytes);
        let lines = lines.map_or_else(|| earlier(METRICS), Ok)?;
        let metrics = recording::lines_before(&lines, begin.epoch);
        let bad_samples = recording::lines(&earlier(BAD_SAMPLES)?);
        // It can be found out again.
        let tuning = target.store.get(TUNING, MAX_TUNING_BYTES).ok();
        let version = concat!("synfire ", env!("CARGO_PKG_VERSION"), "\n");
        for (name, bytes) in [
            (CONFIG, run.to_toml().into()),
            (VERSION, version.into()),
            (METRICS, metrics.clone().into()),
        ] {
            target.put(name, bytes)?;
        }
        let keep = run.checkpoint;
        Ok(Recording::start(
            target,
            identity,
            keep,
            Earlier {
                metrics,
                bad_samples,
                tuning,
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_paths_and_urls_of_stores() {
        assert_eq!(RunFolder::at("file:///a/b").unwrap().shown(), "/a/b");
        assert_eq!(RunFolder::at("a/b/").unwrap().shown(), "a/b");
        assert_eq!(RunFolder::at("/").unwrap().shown(), "/");
        let remote = RunFolder::at("http://127.0.0.1:1/runs/1/").unwrap();
        assert_eq!(remote.shown(), "http://127.0.0.1:1/runs/1");
        for (wrong, reason) in [
            ("", "empty"),
            ("ftp://x/y", "use a path"),
            ("s3://key:secret@bucket/run", "credentials"),
        ] {
            let error = RunFolder::at(wrong).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = remote.lock(&mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("only read"), "{error}");
    }

    #[test]
    fn a_manifest_names_its_run_folder() {
        let of = |location: &str| {
            let (folder, number) = RunFolder::of_checkpoint(location).unwrap();
            (folder.shown().to_owned(), number.map(|n| n.batches_done))
        };
        let name = "000000000060.json";
        for (location, folder) in [
            ("r/checkpoints", "r"),
            ("checkpoints", "."),
            ("/checkpoints", "/"),
            ("elsewhere", "elsewhere/.."),
            ("r/mycheckpoints", "r/mycheckpoints/.."),
            ("http://127.0.0.1:1/r/checkpoints", "http://127.0.0.1:1/r"),
        ] {
            let (shown, number) = of(&format!("{location}/{name}"));
            assert_eq!((&*shown, number), (folder, Some(60)), "{location}");
        }
        assert_eq!(of(name), ("./..".into(), Some(60)));
        assert_eq!(of("r"), ("r".into(), None));
        let error = RunFolder::of_checkpoint(&format!("http://127.0.0.1:1/r/{name}"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("checkpoints/"), "{error}");
    }
}
