//! A run folder and its checkpoints, on the local file system for now: everything goes through
//! [`store::Store`], where other kinds of folders have their place.
//!
//! # Layout
//!
//! - [`store`]: where a folder lies: put at once or not at all, get, list, delete.
//! - [`state`]: what a checkpoint saves of a node, copied out and back in.
//! - [`writer`]: the thread that writes, and deletes what newer checkpoints take the place of.
//! - `error`: why a folder or a checkpoint cannot be used.
//! - this file: [`RunFolder`]: opening, loading, refusing; the lines of `metrics.jsonl`.
//!
//! What a checkpoint is, is in [`synfire_shared::checkpoint`].

mod error;
pub mod state;
pub mod store;
pub mod writer;

use crate::trace::file;
pub use error::CheckpointError;
use error::stored;
use state::{Loaded, Snapshot};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use store::{LocalStore, Store};
use synfire_shared::Run;
use synfire_shared::checkpoint::{
    Digest, MAX_MANIFEST_BYTES, Manifest, manifest_name, manifest_number,
};
use writer::{Job, Writer, Written};

/// The folder of checkpoints in a run folder.
const CHECKPOINTS: &str = "checkpoints";
/// One line of JSON per epoch.
const METRICS: &str = "metrics.jsonl";
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
}

/// A folder with a run's results, to read from.
#[derive(Debug)]
pub struct RunFolder {
    store: Arc<LocalStore>,
    shown: String,
}

impl RunFolder {
    /// The folder at a path or `file://` URL; nothing is touched yet.
    ///
    /// # Errors
    /// If the location is of another kind.
    pub fn at(location: &str) -> Result<Self, CheckpointError> {
        let path = location.strip_prefix("file://").unwrap_or(location);
        if path.contains("://") || path.is_empty() {
            let location = location.to_owned();
            return Err(CheckpointError::Location { location });
        }
        let store = Arc::new(LocalStore::new(PathBuf::from(path)));
        let shown = path.to_owned();
        Ok(Self { store, shown })
    }

    /// The folder and, where the location is that of a manifest, which checkpoint.
    ///
    /// # Errors
    /// If the location is of another kind.
    pub fn of_checkpoint(location: &str) -> Result<(Self, Option<u64>), CheckpointError> {
        let (folder, name) = location.rsplit_once('/').unwrap_or((".", location));
        let Some(number) = manifest_number(name) else {
            return Ok((Self::at(location)?, None));
        };
        Ok((Self::at(&format!("{folder}/.."))?, Some(number)))
    }

    /// The folder's name in messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The configuration that the run was started with, as text.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn config(&self) -> Result<String, CheckpointError> {
        let name = format!("{}/{CONFIG}", self.shown);
        let bytes = self.store.get(CONFIG, MAX_CONFIG_BYTES);
        let bytes = bytes.map_err(|e| stored("read", &name, e))?;
        String::from_utf8(bytes).map_err(|e| stored("read", &name, io::Error::other(e)))
    }

    /// The checkpoints that exist, oldest first.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<u64>, CheckpointError> {
        let names = self.store.list(CHECKPOINTS);
        let names = names.map_err(|e| stored("list", &self.shown, e))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| manifest_number(n)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads one checkpoint and checks every byte of it; given an identity, that it is its own.
    ///
    /// # Errors
    /// If it is damaged, of another version, or of another run.
    pub fn load(
        &self,
        number: u64,
        identity: Option<&Identity>,
    ) -> Result<Loaded, CheckpointError> {
        let name = format!("{}/{CHECKPOINTS}/{}", self.shown, manifest_name(number));
        let key = format!("{CHECKPOINTS}/{}", manifest_name(number));
        let bytes = self.store.get(&key, MAX_MANIFEST_BYTES);
        let bytes = bytes.map_err(|e| stored("read", &name, e))?;
        let manifest = Manifest::parse(&bytes).map_err(|source| CheckpointError::Manifest {
            name: name.clone(),
            source,
        })?;
        if let Some(identity) = identity {
            check_identity(&name, &manifest, identity)?;
        }
        let weights = self.part(&name, &manifest, state::WEIGHTS)?;
        let optimiser = self.part(&name, &manifest, state::STATE)?;
        Ok(Loaded {
            weights: file::parse(&weights, &name)?,
            state: file::parse(&optimiser, &name)?,
            progress: self.part(&name, &manifest, state::PROGRESS)?,
            position: manifest.position,
            name,
        })
    }

    fn part(
        &self,
        name: &str,
        manifest: &Manifest,
        kind: &str,
    ) -> Result<Vec<u8>, CheckpointError> {
        let refused = |part: &str, reason: String| CheckpointError::Part {
            name: name.to_owned(),
            part: part.to_owned(),
            reason,
        };
        let part = manifest.parts.get(kind);
        let part = part.ok_or_else(|| refused(kind, "is not in the manifest".into()))?;
        let bytes = self
            .store
            .get(&format!("{CHECKPOINTS}/{}", part.name), part.bytes);
        let bytes = bytes.map_err(|e| refused(&part.name, format!("cannot be read: {e}")))?;
        if bytes.len() as u64 != part.bytes {
            let (got, want) = (bytes.len(), part.bytes);
            let reason = format!("has {got} bytes, {want} were written: it is cut off");
            return Err(refused(&part.name, reason));
        }
        if Digest::of(&bytes) != part.sha256 {
            let reason = "does not have the SHA-256 that was written: it is altered";
            return Err(refused(&part.name, reason.into()));
        }
        Ok(bytes)
    }

    /// The newest checkpoint that is whole, older ones where newer are damaged; nothing where there
    /// is none at all. Each damaged one is told to `warn`, with its number.
    ///
    /// # Errors
    /// If one is of another run or version, or all are damaged.
    pub fn newest_good(
        &self,
        identity: Option<&Identity>,
        warn: &mut dyn FnMut(u64, String),
    ) -> Result<Option<Loaded>, CheckpointError> {
        let numbers = self.checkpoints()?;
        let mut newest = None;
        for &number in numbers.iter().rev() {
            match self.load(number, identity) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) if error.is_damage() => {
                    warn(number, format!("{error}; the next older one is tried"));
                    newest.get_or_insert(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let Some(newest) = newest else {
            return Ok(None);
        };
        Err(CheckpointError::NoneGood {
            folder: self.shown.clone(),
            count: numbers.len(),
            newest,
        })
    }

    /// Puts a damaged checkpoint's manifest aside, under a name that is none.
    fn set_aside(&self, number: u64) -> Result<(), CheckpointError> {
        let name = format!("{CHECKPOINTS}/{}", manifest_name(number));
        let aside = || {
            let bytes = self.store.get(&name, MAX_MANIFEST_BYTES)?;
            self.store.put(&format!("{name}.damaged"), &bytes)
        };
        // Where it cannot even be read, taking it away is what remains.
        let _ = aside();
        self.store
            .delete(&name)
            .map_err(|e| stored("delete", &name, e))
    }

    /// Starts to write: configuration and version now, the metrics of the epochs before `epoch`
    /// kept; checkpoints of `damaged` numbers are put aside.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn begin(
        self,
        run: &Run,
        identity: Identity,
        epoch: u32,
        damaged: &[u64],
    ) -> Result<Recording, CheckpointError> {
        for folder in ["", CHECKPOINTS] {
            self.store
                .clean(folder)
                .map_err(|e| stored("clean", &self.shown, e))?;
        }
        for &number in damaged {
            self.set_aside(number)?;
        }
        let metrics = match self.store.get(METRICS, MAX_METRICS_BYTES) {
            Ok(bytes) => lines_before(&bytes, epoch),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(stored("read", METRICS, error)),
        };
        let version = concat!("synfire ", env!("CARGO_PKG_VERSION"), "\n");
        for (name, bytes) in [
            (CONFIG, run.to_toml().as_bytes()),
            (VERSION, version.as_bytes()),
            (METRICS, &metrics),
        ] {
            let shown = format!("{}/{name}", self.shown);
            self.store
                .put(name, bytes)
                .map_err(|e| stored("write", &shown, e))?;
        }
        let store: Arc<dyn Store> = self.store;
        Ok(Recording {
            writer: Writer::start(store, identity, run.checkpoint),
            shown: self.shown,
            metrics,
        })
    }
}

fn check_identity(
    name: &str,
    manifest: &Manifest,
    identity: &Identity,
) -> Result<(), CheckpointError> {
    let (saved, here) = (&manifest.settings, &identity.settings);
    let shown = |value: Option<&String>| value.map_or("not set".to_owned(), Clone::clone);
    let keys = saved
        .keys()
        .chain(here.keys().filter(|key| !saved.contains_key(*key)));
    let differences: Vec<String> = keys
        .filter(|key| saved.get(*key) != here.get(*key))
        .map(|key| {
            let (there, here) = (shown(saved.get(key)), shown(here.get(key)));
            format!("{key} is {there} there, {here} here")
        })
        .collect();
    let name = name.to_owned();
    if !differences.is_empty() {
        let differences = differences.join(", ");
        return Err(CheckpointError::Settings { name, differences });
    }
    if manifest.data != identity.data {
        let (saved, here) = (manifest.data, identity.data);
        return Err(CheckpointError::Data { name, saved, here });
    }
    Ok(())
}

/// A manifest that can be read, whatever is wrong where it cannot.
fn readable_manifest(store: &dyn Store, number: u64) -> Option<Manifest> {
    let name = format!("{CHECKPOINTS}/{}", manifest_name(number));
    let bytes = store.get(&name, MAX_MANIFEST_BYTES).ok()?;
    Manifest::parse(&bytes).ok()
}

/// The whole lines of epochs before this one, up to the first line that is no such.
fn lines_before(metrics: &[u8], epoch: u32) -> Vec<u8> {
    #[derive(serde::Deserialize)]
    struct Line {
        epoch: u32,
    }
    let is_before = |line: &&[u8]| {
        let read = serde_json::from_slice::<Line>(line);
        line.ends_with(b"\n") && read.is_ok_and(|line| line.epoch < epoch)
    };
    let lines = metrics.split_inclusive(|&byte| byte == b'\n');
    lines.take_while(is_before).collect::<Vec<_>>().concat()
}

/// A run folder that a run writes to.
#[derive(Debug)]
pub struct Recording {
    writer: Writer,
    shown: String,
    metrics: Vec<u8>,
}

impl Recording {
    /// Whether a checkpoint would be taken without waiting for older ones.
    pub fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    /// Hands over a checkpoint; it is written while training goes on.
    pub fn save(&mut self, snapshot: Snapshot) {
        self.writer.hand_over(Job::Checkpoint(Box::new(snapshot)));
    }

    /// Hands over a line of the metrics, without its end.
    pub fn add_line(&mut self, line: &str) {
        self.metrics.extend(line.as_bytes());
        self.metrics.push(b'\n');
        self.writer.hand_over(Job::Metrics(self.metrics.clone()));
    }

    /// What has gone wrong since the last question.
    pub fn take_warnings(&self) -> Vec<String> {
        self.writer.take_warnings()
    }

    /// The folder's name in messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Waits until all is written.
    pub fn finish(self) -> Written {
        self.writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_keep_whole_lines_of_earlier_epochs() {
        let text = b"{\"epoch\":0,\"a\":1}\n{\"epoch\":1}\n{\"epoch\":2}\n{\"epoch\":3";
        assert_eq!(lines_before(text, 2), &text[..30]);
        assert_eq!(lines_before(text, 3), &text[..42]);
        assert_eq!(lines_before(text, 9), &text[..42]);
        assert!(lines_before(text, 0).is_empty() && lines_before(b"\xff\n", 5).is_empty());
    }

    #[test]
    fn locations_are_paths_and_file_urls() {
        assert_eq!(RunFolder::at("file:///a/b").unwrap().shown(), "/a/b");
        for other in ["s3://bucket/run", "http://x", "", "file://"] {
            let error = RunFolder::at(other).unwrap_err().to_string();
            assert!(error.contains("not built yet"), "{error}");
        }
        let (folder, number) = RunFolder::of_checkpoint("r/checkpoints/000000000060.json").unwrap();
        assert_eq!((folder.shown(), number), ("r/checkpoints/..", Some(60)));
        assert_eq!(RunFolder::of_checkpoint("r").unwrap().1, None);
    }
}
