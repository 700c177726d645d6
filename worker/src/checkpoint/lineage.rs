//! The generations of ranks that have written to a run folder, and which checkpoints count.

use super::error::stored;
use super::store::Store;
use super::{CHECKPOINTS, CheckpointError, Identity};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use synfire_shared::checkpoint::{Digest, ManifestName, manifest_of_name};
use synfire_shared::generation::{FOLDER, Generation, GenerationName, Lineage, Link, MAX_BYTES};
use synfire_shared::protocol;

/// What a run folder says of generations.
#[derive(Debug, Default)]
pub(super) struct Line {
    newest: u64,
    lineage: Lineage,
}

impl Line {
    /// Reads all of them.
    pub(super) fn read(store: &dyn Store, shown: &str) -> Result<Self, CheckpointError> {
        Self::read_but(store, shown, None)
    }

    /// Reads all of them but one.
    fn read_but(
        store: &dyn Store,
        shown: &str,
        but: Option<GenerationName>,
    ) -> Result<Self, CheckpointError> {
        let mut links: Vec<Link> = Vec::new();
        for name in names(store, shown)? {
            if Some(name) == but {
                continue;
            }
            let key = name.key();
            let bytes = match store.get(&key, MAX_BYTES) {
                Ok(bytes) => bytes,
                // Withdrawn since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(stored("read", &format!("{shown}/{key}"), error)),
            };
            let generation = Generation::parse_named(name, &bytes);
            let generation = generation.map_err(|source| CheckpointError::Generation {
                name: format!("{shown}/{key}"),
                source,
            })?;
            links.push(generation.link());
        }
        Ok(Self {
            newest: links.iter().map(|link| link.name.number).max().unwrap_or(0),
            lineage: Lineage::of(links),
        })
    }

    /// The highest number of a generation; 0 of none.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether a checkpoint counts.
    pub(super) fn counts(&self, manifest: ManifestName) -> bool {
        self.lineage.counts(manifest)
    }
}

fn names(store: &dyn Store, shown: &str) -> Result<Vec<GenerationName>, CheckpointError> {
    let names = store.list(FOLDER);
    let names = names.map_err(|e| stored("list", &format!("{shown}/{FOLDER}"), e))?;
    Ok(names
        .iter()
        .filter_map(|name| GenerationName::parse(name))
        .collect())
}

/// The highest number of a generation, without a look inside; 0 of none.
pub(super) fn newest_number(store: &dyn Store, shown: &str) -> Result<u64, CheckpointError> {
    let numbers = names(store, shown)?.into_iter().map(|name| name.number);
    Ok(numbers.max().unwrap_or(0))
}

/// Bits that no other process has, for each word.
pub(super) fn drawn(word: u64) -> u64 {
    RandomState::new().hash_one(word)
}

/// A generation of this process alone, after all that there are: what it writes counts, and what a
/// process of an older generation writes from now on does not. `damaged` checkpoints may be newer
/// than its start.
pub(super) fn begin_alone(
    store: &Arc<dyn Store>,
    shown: &str,
    newest: u64,
    identity: &Identity,
    (start, damaged): (Option<ManifestName>, &[ManifestName]),
) -> Result<u64, CheckpointError> {
    let process = format!("{:016x}{:016x}", drawn(1), drawn(2));
    let member = protocol::Member {
        rank: 0,
        process,
        host: "alone".into(),
        pid: std::process::id(),
        collective: None,
        metrics: None,
    };
    let identity = protocol::Identity {
        configuration: Digest::of_settings(&identity.settings),
        settings: identity.settings.clone(),
        data: identity.data,
        plan: identity.plan,
        lanes: identity.lanes,
        batch: identity.batch,
        folder: identity.folder.clone(),
    };
    let named = start.map(|start| protocol::Start {
        manifest: start.to_string(),
        batches_done: start.batches_done,
    });
    let name = GenerationName {
        number: newest + 1,
        nonce: drawn(0),
    };
    // What somebody wrote after the start was chosen counts already.
    let newest = start.map_or(0, |start| start.batches_done);
    let is_left_out = || -> Result<bool, CheckpointError> {
        let counting = counting(&**store, shown, Some(name))?;
        let mut manifests = counting.iter();
        Ok(manifests.any(|m| m.batches_done > newest && !damaged.contains(m)))
    };
    let folder = shown.to_owned();
    // Whoever writes is not disturbed by a generation that is withdrawn at once.
    if is_left_out()? {
        return Err(CheckpointError::InUse { folder });
    }
    let generation = Generation::new(name, vec![member], identity, named);
    let key = name.key();
    let put = store.put(&key, generation.to_bytes().into());
    put.map_err(|e| stored("write", &format!("{shown}/{key}"), e))?;
    let withdraw = |error: CheckpointError| {
        let deleted = store.delete(&key);
        let deleted = deleted.map_err(|e| stored("delete", &format!("{shown}/{key}"), e));
        deleted.map_or_else(Err, |()| Err(error))
    };
    // Who puts and then looks sees every rival that will not see it.
    let has_rival = |other: &GenerationName| *other != name && other.number >= name.number;
    if names(&**store, shown)?.iter().any(has_rival) {
        return withdraw(CheckpointError::Superseded { folder });
    }
    if is_left_out()? {
        return withdraw(CheckpointError::InUse { folder });
    }
    Ok(name.number)
}

/// The checkpoints of a folder that count, oldest first.
pub(super) fn checkpoints(
    store: &dyn Store,
    shown: &str,
) -> Result<Vec<ManifestName>, CheckpointError> {
    counting(store, shown, None)
}

/// Those that count, as if one generation were not there.
fn counting(
    store: &dyn Store,
    shown: &str,
    but: Option<GenerationName>,
) -> Result<Vec<ManifestName>, CheckpointError> {
    let names = store.list(CHECKPOINTS);
    let names = names.map_err(|e| stored("list", shown, e))?;
    let line = Line::read_but(store, shown, but)?;
    let mut manifests: Vec<ManifestName> = names
        .iter()
        .filter_map(|name| manifest_of_name(name))
        .filter(|&manifest| line.counts(manifest))
        .collect();
    manifests.sort_unstable();
    Ok(manifests)
}
