//! How a checkpoint is written: parts first, manifest last; and what is deleted then.

use super::error::{is_lost, stored, unread};
use super::lineage::{Line, newest_number};
use super::lock::Lock;
use super::state::Snapshot;
use super::store::Store;
use super::{CHECKPOINTS, CheckpointError, Identity};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use synfire_shared::checkpoint::{
    Digest, FORMAT, Hits, MAX_MANIFEST_BYTES, Manifest, ManifestName, Part, VERSION,
    manifest_of_name, manifest_of_part, part_name, superseded,
};
use synfire_shared::run;

/// The end of the name of a damaged checkpoint's manifest.
const ASIDE: &str = ".damaged";

/// A run folder that this process may write to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) store: Arc<dyn Store>,
    pub(super) lock: Lock,
    /// The generation of ranks that this process writes for; 0 where there has never been one.
    pub(super) generation: u64,
    /// What messages call it.
    pub(super) shown: String,
}

impl Target {
    /// Asks whether the folder is still this process's own.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        self.lock.check()?;
        self.check_newest(newest_number(&*self.store, &self.shown)?)
    }

    /// Asks whether this is the newest generation. The number is enough: of two with the same one
    /// at most one has begun, since each looked for the other behind its own put.
    fn check_newest(&self, newest: u64) -> Result<(), CheckpointError> {
        if newest > self.generation {
            let folder = self.shown.clone();
            return Err(CheckpointError::Superseded { folder });
        }
        Ok(())
    }

    /// Whether there may be another process that still writes although this one took its place.
    pub(super) fn may_be_disturbed(&self) -> bool {
        self.generation > 0 || matches!(self.lock, Lock::Lease(_))
    }

    /// Writes, if the folder is still this process's own.
    pub(super) fn put(&self, name: &str, bytes: Bytes) -> Result<(), CheckpointError> {
        self.check()?;
        self.put_unseen(name, bytes)
    }

    /// Writes what nobody reads before something else names it.
    fn put_unseen(&self, name: &str, bytes: Bytes) -> Result<(), CheckpointError> {
        let put = self.store.put(name, bytes);
        put.map_err(|e| stored("write", &self.name(name), e))
    }

    /// Writes a checkpoint. Returns its bytes.
    pub(super) fn commit(
        &self,
        identity: &Identity,
        snapshot: &Snapshot,
    ) -> Result<u64, CheckpointError> {
        let name = self.manifest(snapshot.position.batches_done);
        let (mut parts, mut total) = (BTreeMap::new(), 0);
        for (kind, bytes) in snapshot.parts()? {
            let sha256 = Digest::of(&bytes);
            let part = Part {
                name: part_name(name, kind, sha256),
                bytes: bytes.len() as u64,
                sha256,
            };
            self.put_unseen(&format!("{CHECKPOINTS}/{}", part.name), bytes.into())?;
            total += part.bytes;
            parts.insert(kind.to_owned(), part);
        }
        let manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            written_by: env!("CARGO_PKG_VERSION").into(),
            position: snapshot.position,
            configuration: Digest::of_settings(&identity.settings),
            settings: identity.settings.clone(),
            data: identity.data,
            test: snapshot.test,
            generation: Some(self.generation).filter(|&generation| generation > 0),
            parts,
            seal: Digest::default(),
        };
        let bytes = manifest.sealed().to_bytes();
        total += bytes.len() as u64;
        self.put(&key_of(name), bytes.into())?;
        // A later generation that began meanwhile may not have seen it: only now it counts for sure.
        self.check()?;
        Ok(total)
    }

    /// The manifest of a checkpoint that this process writes.
    pub(super) fn manifest(&self, batches_done: u64) -> ManifestName {
        ManifestName {
            batches_done,
            generation: self.generation,
        }
    }

    /// Deletes checkpoints whose place newer ones took or that do not count, never the one that was
    /// just written; and parts that no manifest names. Nothing where a manifest cannot be read now:
    /// its checkpoint may be the best one. Nothing of a later generation, whenever this process
    /// comes to it.
    pub(super) fn prune(
        &self,
        kept: Option<(run::Checkpoint, ManifestName)>,
    ) -> Result<(), CheckpointError> {
        let names = self.store.list(CHECKPOINTS);
        let names = names.map_err(|e| stored("list", &self.name(CHECKPOINTS), e))?;
        let line = Line::read(&*self.store, &self.shown)?;
        // Of a later one that is withdrawn meanwhile nothing must be believed.
        self.check_newest(line.newest())?;
        let mut manifests = BTreeMap::new();
        for name in names.iter().filter_map(|name| manifest_of_name(name)) {
            match manifest_of(&*self.store, name) {
                Ok(manifest) => manifests.insert(name, manifest),
                Err(e) => return Err(unread(&self.name(&key_of(name)), e)),
            };
        }
        if let Some((keep, newest)) = kept {
            for name in out_of_place(&manifests, &line, keep) {
                if name != newest {
                    self.delete(name, &name.to_string())?;
                    manifests.remove(&name);
                }
            }
        }
        for (of, name) in unnamed(&names, &manifests) {
            self.delete(of, name)?;
        }
        Ok(())
    }

    /// Deletes a manifest, or a part of one. What a later generation has put is none of this
    /// process's business: it may have no manifest yet, or one that this process has not seen.
    fn delete(&self, of: ManifestName, name: &str) -> Result<(), CheckpointError> {
        if of.generation > self.generation {
            return Ok(());
        }
        // As late as can be: in the time behind it a process may be stopped, and the newer one may
        // have begun at what is deleted here.
        self.check()?;
        let name = format!("{CHECKPOINTS}/{name}");
        let deleted = self.store.delete(&name);
        deleted.map_err(|e| stored("delete", &self.name(&name), e))
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.shown)
    }
}

/// A checkpoint's manifest; nothing where it is damaged or gone.
///
/// # Errors
/// If it cannot be read now.
pub(super) fn manifest_of(store: &dyn Store, name: ManifestName) -> io::Result<Option<Manifest>> {
    match store.get(&key_of(name), MAX_MANIFEST_BYTES) {
        Ok(bytes) => Ok(Manifest::parse(&bytes).ok()),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a damaged checkpoint's manifest aside, under a name that is none.
pub(super) fn set_aside(store: &dyn Store, name: ManifestName) -> Result<(), CheckpointError> {
    let key = key_of(name);
    let bytes = match store.get(&key, MAX_MANIFEST_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // No manifest is so large; the empty name still keeps the parts.
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Vec::new(),
        Err(error) => return Err(stored("put aside", &key, error)),
    };
    let copied = store.put(&format!("{key}{ASIDE}"), bytes.into());
    copied.map_err(|e| stored("put aside", &key, e))?;
    store.delete(&key).map_err(|e| stored("delete", &key, e))
}

fn key_of(name: ManifestName) -> String {
    format!("{CHECKPOINTS}/{name}")
}

const fn first_of(batches_done: u64) -> ManifestName {
    ManifestName {
        batches_done,
        generation: 0,
    }
}

const fn last_of(batches_done: u64) -> ManifestName {
    ManifestName {
        batches_done,
        generation: u64::MAX,
    }
}

/// The parts that no manifest names, with the checkpoints that they were written for.
fn unnamed<'a>(
    names: &'a [String],
    manifests: &BTreeMap<ManifestName, Option<Manifest>>,
) -> Vec<(ManifestName, &'a str)> {
    // A damaged checkpoint that was put aside may still be mended by hand.
    let aside = names.iter().filter_map(|name| name.strip_suffix(ASIDE));
    let aside = aside.filter_map(manifest_of_name);
    let aside: BTreeSet<u64> = aside.map(|name| name.batches_done).collect();
    let is_named = |number: u64, name: &str| {
        let mut all = manifests.range(first_of(number)..=last_of(number));
        // What a damaged manifest names cannot be told.
        all.any(|(_, manifest)| {
            manifest.as_ref().is_none_or(|manifest| {
                let mut parts = manifest.parts.values();
                parts.any(|part| part.name == name)
            })
        })
    };
    let parts = names
        .iter()
        .filter_map(|name| Some((manifest_of_part(name)?, name.as_str())));
    let parts = parts
        .filter(|(of, name)| !aside.contains(&of.batches_done) && !is_named(of.batches_done, name));
    parts.collect()
}

/// The manifests whose place newer ones took, or that do not count.
fn out_of_place(
    manifests: &BTreeMap<ManifestName, Option<Manifest>>,
    line: &Line,
    keep: run::Checkpoint,
) -> Vec<ManifestName> {
    let (mut accuracies, mut newest) = (BTreeMap::new(), BTreeMap::new());
    // By age: of two after the same batch the later generation's stays.
    for (&name, manifest) in manifests.iter().filter(|(name, _)| line.counts(**name)) {
        let test = manifest.as_ref().and_then(|manifest| manifest.test);
        accuracies.insert(name.batches_done, test.map(Hits::share));
        newest.insert(name.batches_done, name);
    }
    for number in superseded(&accuracies, keep.keep_last, keep.keep_best) {
        newest.remove(&number);
    }
    let stays = |name: &ManifestName| newest.get(&name.batches_done) == Some(name);
    let names = manifests.keys().copied();
    names.filter(|name| !stays(name)).collect()
}
