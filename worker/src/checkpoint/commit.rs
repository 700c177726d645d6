//! How a checkpoint is written: parts first, manifest last; and what is deleted then.

use super::error::{is_lost, stored, unread};
use super::lock::Lock;
use super::state::Snapshot;
use super::store::Store;
use super::{CHECKPOINTS, CheckpointError, Identity};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use synfire_shared::checkpoint::{
    Digest, FORMAT, Hits, MAX_MANIFEST_BYTES, Manifest, Part, VERSION, manifest_name,
    manifest_number, part_name, part_number, superseded,
};
use synfire_shared::run;

/// The end of the name of a damaged checkpoint's manifest.
const ASIDE: &str = ".damaged";

/// A run folder that this process may write to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) store: Arc<dyn Store>,
    pub(super) lock: Lock,
    /// What messages call it.
    pub(super) shown: String,
}

impl Target {
    /// Writes, if the folder is still this process's own.
    pub(super) fn put(&self, name: &str, bytes: Bytes) -> Result<(), CheckpointError> {
        self.lock.check()?;
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
        let number = snapshot.position.batches_done;
        let (mut parts, mut total) = (BTreeMap::new(), 0);
        for (kind, bytes) in snapshot.parts()? {
            let sha256 = Digest::of(&bytes);
            let part = Part {
                name: part_name(number, kind, sha256),
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
            generation: None,
            parts,
            seal: Digest::default(),
        };
        let bytes = manifest.sealed().to_bytes();
        total += bytes.len() as u64;
        self.put(&key_of(number), bytes.into())?;
        Ok(total)
    }

    /// Deletes checkpoints whose place newer ones took, never the one that was just written; and
    /// parts that no manifest names. Nothing where a manifest cannot be read now: its checkpoint may
    /// be the best one.
    pub(super) fn prune(
        &self,
        kept: Option<(run::Checkpoint, u64)>,
    ) -> Result<(), CheckpointError> {
        let names = self.store.list(CHECKPOINTS);
        let names = names.map_err(|e| stored("list", &self.name(CHECKPOINTS), e))?;
        let mut manifests = BTreeMap::new();
        for number in names.iter().filter_map(|name| manifest_number(name)) {
            match manifest_of(&*self.store, number) {
                Ok(manifest) => manifests.insert(number, manifest),
                Err(e) => return Err(unread(&self.name(&key_of(number)), e)),
            };
        }
        // A damaged checkpoint that was put aside may still be mended by hand.
        let aside = names.iter().filter_map(|name| name.strip_suffix(ASIDE));
        let aside: BTreeSet<u64> = aside.filter_map(manifest_number).collect();
        // What another process has put since then may have no manifest yet.
        self.lock.check()?;
        if let Some((keep, newest)) = kept {
            let accuracies = manifests.iter().map(|(&number, manifest)| {
                let test = manifest.as_ref().and_then(|manifest| manifest.test);
                (number, test.map(Hits::share))
            });
            let accuracies = accuracies.collect();
            for number in superseded(&accuracies, keep.keep_last, keep.keep_best) {
                if number != newest {
                    self.delete(&manifest_name(number))?;
                    manifests.remove(&number);
                }
            }
        }
        for name in &names {
            let Some(number) = part_number(name).filter(|number| !aside.contains(number)) else {
                continue;
            };
            let is_named = match manifests.get(&number) {
                None => false,
                // What it names cannot be told.
                Some(None) => true,
                Some(Some(manifest)) => manifest.parts.values().any(|part| part.name == *name),
            };
            if !is_named {
                self.delete(name)?;
            }
        }
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<(), CheckpointError> {
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
pub(super) fn manifest_of(store: &dyn Store, number: u64) -> io::Result<Option<Manifest>> {
    match store.get(&key_of(number), MAX_MANIFEST_BYTES) {
        Ok(bytes) => Ok(Manifest::parse(&bytes).ok()),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a damaged checkpoint's manifest aside, under a name that is none.
pub(super) fn set_aside(store: &dyn Store, number: u64) -> Result<(), CheckpointError> {
    let key = key_of(number);
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

fn key_of(number: u64) -> String {
    format!("{CHECKPOINTS}/{}", manifest_name(number))
}
