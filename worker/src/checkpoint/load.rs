//! A checkpoint read and checked, older ones where newer are damaged.

use super::error::{is_lost, unread};
use super::state::{self, Loaded};
use super::{CHECKPOINTS, CheckpointError, Identity, RunFolder};
use crate::trace::file;
use synfire_shared::checkpoint::{Digest, MAX_MANIFEST_BYTES, Manifest, ManifestName};

impl RunFolder {
    /// Reads one checkpoint and checks every byte of it; given an identity, that it is its own.
    ///
    /// # Errors
    /// If it is damaged, of another version, or of another run.
    pub fn load(
        &self,
        manifest: ManifestName,
        identity: Option<&Identity>,
    ) -> Result<Loaded, CheckpointError> {
        let key = format!("{CHECKPOINTS}/{manifest}");
        let name = format!("{}/{key}", self.shown);
        let asked = manifest;
        let bytes = self.store().get(&key, MAX_MANIFEST_BYTES);
        let bytes = bytes.map_err(|e| unread(&name, e))?;
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
            manifest: asked,
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
        let key = format!("{CHECKPOINTS}/{}", part.name);
        let bytes = self.store().get(&key, part.bytes);
        let bytes = bytes.map_err(|error| {
            if is_lost(&error) {
                refused(&part.name, format!("cannot be read: {error}"))
            } else {
                unread(&format!("{}/{key}", self.shown), error)
            }
        })?;
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
    /// is none at all. Each damaged one is told to `warn`, with its manifest.
    ///
    /// # Errors
    /// If one is of another run or version, or all are damaged.
    pub fn newest_good(
        &self,
        identity: Option<&Identity>,
        warn: &mut dyn FnMut(ManifestName, String),
    ) -> Result<Option<Loaded>, CheckpointError> {
        let manifests = self.checkpoints()?;
        let mut newest = None;
        for &manifest in manifests.iter().rev() {
            match self.load(manifest, identity) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) if error.is_damage() => {
                    warn(manifest, format!("{error}; the next older one is tried"));
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
            count: manifests.len(),
            newest,
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
