//! A set into its shards: in parallel, and again from where a killed run stopped.
//!
//! Each finished shard has a small journal beside it, written after the shard; the index comes
//! last and the journals go. So an index always tells of shards that are all there.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use synfire_shared::dataset::{INDEX_NAME, Index, LIMIT_BYTES, LeftOut, Shard, Split};
use synfire_shared::storage::Store;

use super::error::PackError;
use super::set::Set;
use super::shard::{self, Made, Part};

/// The folder of the journals.
const JOURNALS: &str = ".partial";
/// Says which set the target holds, or will hold.
const PLAN_NAME: &str = ".plan.json";
const JOURNAL_LIMIT_BYTES: u64 = 1 << 30;

/// How to pack.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The size of a shard, about.
    pub shard_bytes: u64,
    /// Whether another set in the target may be replaced.
    pub overwrite: bool,
}

/// How far packing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Samples done, those of earlier runs included.
    pub samples_done: u64,
    /// Samples done by earlier runs.
    pub samples_resumed: u64,
    /// All samples.
    pub samples_in_all: u64,
}

/// What came of packing.
#[derive(Debug, Clone)]
pub struct Report {
    /// The index that was written.
    pub index: Index,
    /// Shards that an earlier run had finished.
    pub shards_resumed: usize,
    /// Archives whose MD5 is that of the official ones.
    pub official: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Journal {
    plan: String,
    shard: Shard,
    left_out: Vec<LeftOut>,
}

#[derive(Serialize, Deserialize)]
struct Plan {
    plan: String,
}

/// Packs `set` into `out`; the same set gives the same bytes, killed in between or not.
///
/// One process at a time may pack into a target.
///
/// # Errors
///
/// [`PackError::Occupied`] when `out` holds another set, [`PackError::Digest`] for an archive that is
/// not the official one, and whatever reading and writing gives.
///
/// # Panics
///
/// Never: no thread of it panics.
pub fn pack(
    set: &Set,
    out: &Store,
    options: Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, PackError> {
    let digest = set.digest(options.shard_bytes);
    let parts = shard::plan(set, options.shard_bytes);
    if let Some(index) = begin(out, &digest, options.overwrite)? {
        return Ok(Report {
            shards_resumed: parts.len(),
            official: Vec::new(),
            index,
        });
    }
    let finished = resume(out, &digest, &parts)?;
    let shards_resumed = finished.iter().flatten().count();
    // Archives are hashed while their ranges are read; without the right digest there is no index.
    let (made, official) = std::thread::scope(|scope| {
        let checked = scope.spawn(|| set.check_archives());
        let made = make_all(set, out, &digest, &parts, finished, progress);
        (made, checked.join().expect("hashing does not panic"))
    });
    let (made, official) = (made?, official?);
    let index = index_of(set, &parts, made);
    index.check(&out.name(INDEX_NAME))?;
    out.put(INDEX_NAME, index.to_bytes())?;
    clean(out)?;
    Ok(Report {
        index,
        shards_resumed,
        official,
    })
}

/// The index, when the target already holds all of this set; else the target is made ready.
fn begin(out: &Store, digest: &str, overwrite: bool) -> Result<Option<Index>, PackError> {
    sweep(out);
    let plan = if out.head(PLAN_NAME)?.is_some() {
        let bytes = out.get(PLAN_NAME, JOURNAL_LIMIT_BYTES)?;
        serde_json::from_slice::<Plan>(&bytes).ok()
    } else {
        None
    };
    let is_same = plan.is_some_and(|plan| plan.plan == digest);
    if out.head(INDEX_NAME)?.is_some() {
        if is_same {
            let bytes = out.get(INDEX_NAME, LIMIT_BYTES)?;
            let index = Index::parse(&bytes, &out.name(INDEX_NAME))?;
            clean(out)?;
            return Ok(Some(index));
        }
        if !overwrite {
            return Err(PackError::Occupied {
                out: out.url().into(),
            });
        }
        out.delete(INDEX_NAME)?;
    }
    if !is_same {
        // Journals and shards of another plan would never be looked at again.
        clean(out)?;
        for entry in out.list("")? {
            if is_shard(&entry.key) {
                out.delete(&entry.key)?;
            }
        }
    }
    let plan = Plan {
        plan: digest.into(),
    };
    out.put(PLAN_NAME, json(&plan))?;
    Ok(None)
}

/// What earlier runs have finished, by part.
fn resume(out: &Store, digest: &str, parts: &[Part]) -> Result<Vec<Option<Made>>, PackError> {
    let listed = out.list(JOURNALS)?;
    let sizes: std::collections::BTreeMap<String, u64> = out
        .list("")?
        .into_iter()
        .map(|entry| (entry.key, entry.bytes))
        .collect();
    let read = |part: &Part| -> Result<Option<Made>, PackError> {
        let key = journal_key(part);
        if listed
            .binary_search_by(|e| e.key.as_str().cmp(&key))
            .is_err()
        {
            return Ok(None);
        }
        let bytes = out.get(&key, JOURNAL_LIMIT_BYTES)?;
        let Ok(journal) = serde_json::from_slice::<Journal>(&bytes) else {
            return Ok(None);
        };
        let num_samples = journal.shard.len() + journal.left_out.len();
        let is_whole = journal.plan == digest
            && journal.shard.path == part.path
            && num_samples == part.items.len()
            && sizes.get(&part.path) == Some(&journal.shard.bytes);
        Ok(is_whole.then_some(Made {
            shard: journal.shard,
            left_out: journal.left_out,
        }))
    };
    parts.iter().map(read).collect()
}

fn make_all(
    set: &Set,
    out: &Store,
    digest: &str,
    parts: &[Part],
    finished: Vec<Option<Made>>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Made>, PackError> {
    let samples_in_all = parts.iter().map(|part| part.items.len() as u64).sum();
    let resumed = parts
        .iter()
        .zip(&finished)
        .filter(|(_, made)| made.is_some());
    let samples_resumed = resumed.map(|(part, _)| part.items.len() as u64).sum();
    let samples_done = AtomicU64::new(samples_resumed);
    let done = || {
        progress(Progress {
            samples_done: samples_done.fetch_add(1, Ordering::Relaxed) + 1,
            samples_resumed,
            samples_in_all,
        });
    };
    let make = |(part, finished): (&Part, Option<Made>)| -> Result<Made, PackError> {
        if let Some(made) = finished {
            return Ok(made);
        }
        let (made, tar) = shard::make(set, part, &done)?;
        out.put(&part.path, tar)?;
        let journal = Journal {
            plan: digest.into(),
            shard: made.shard.clone(),
            left_out: made.left_out.clone(),
        };
        out.put(&journal_key(part), json(&journal))?;
        Ok(made)
    };
    parts.par_iter().zip(finished).map(make).collect()
}

fn index_of(set: &Set, parts: &[Part], made: Vec<Made>) -> Index {
    let mut splits = [Vec::new(), Vec::new()];
    let mut left_out = set.left_out.clone();
    for (part, made) in parts.iter().zip(made) {
        splits[part.split].push(made.shard);
        left_out.extend(made.left_out);
    }
    let [train, test] = splits.map(Split::new);
    Index {
        name: set.name.clone(),
        classes: set.classes.clone(),
        train,
        test,
        left_out,
        normalise: set.normalise.clone(),
        channels: set.channels,
        shape: set.shape,
    }
}

/// Removes the journals.
fn clean(out: &Store) -> Result<(), PackError> {
    for entry in out.list(JOURNALS)? {
        out.delete(&entry.key)?;
    }
    if let Some(folder) = out.folder() {
        // The folder may not be there.
        let _ = std::fs::remove_dir(folder.join(JOURNALS));
    }
    Ok(())
}

/// Removes what writes to a folder left that were killed: `<name>#<number>`.
fn sweep(out: &Store) {
    let Some(folder) = out.folder() else {
        return;
    };
    for folder in [folder.to_owned(), folder.join(JOURNALS)] {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let parts = name.to_str().and_then(|name| name.rsplit_once('#'));
            let is_ours = parts.is_some_and(|(name, number)| {
                let name = name.strip_suffix(".json").unwrap_or(name);
                (is_shard(name) || matches!(name, "index" | ".plan"))
                    && number.bytes().all(|digit| digit.is_ascii_digit())
            });
            if is_ours {
                // What cannot be removed only takes space.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn is_shard(name: &str) -> bool {
    let number = |prefix| name.strip_prefix(prefix)?.strip_suffix(".tar");
    let number = number("train-").or_else(|| number("test-"));
    number.is_some_and(|n| n.len() >= 6 && n.bytes().all(|digit| digit.is_ascii_digit()))
}

fn journal_key(part: &Part) -> String {
    format!("{JOURNALS}/{}.json", part.path)
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and lists are always JSON")
}
