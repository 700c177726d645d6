//! The thread that writes: training hands over copies and goes on.

use super::CheckpointError;
use super::error::stored;
use super::state::Snapshot;
use super::store::Store;
use super::{CHECKPOINTS, Identity, METRICS, readable_manifest};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use synfire_shared::checkpoint::{
    Digest, FORMAT, Hits, Manifest, Part, VERSION, manifest_name, manifest_number, part_name,
    part_number, superseded,
};
use synfire_shared::run;

/// Copies that may wait beside the one being written.
const QUEUE: usize = 1;
/// Warnings that are kept until somebody asks.
const MAX_WARNINGS: usize = 16;

/// What is to be written.
pub(super) enum Job {
    Checkpoint(Box<Snapshot>),
    /// All lines so far.
    Metrics(Vec<u8>),
}

/// What has been written.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Checkpoints that exist, or did until newer ones took their place.
    pub checkpoints: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Bytes of the newest one.
    pub bytes: u64,
    /// Batches before the newest one.
    pub newest: Option<u64>,
    /// Why the newest attempt failed, if it did.
    pub failure: Option<String>,
    warnings: Vec<String>,
    waiting: usize,
}

/// The writing thread. Dropping it waits until all is written that was handed over.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    written: Arc<Mutex<Written>>,
}

impl Writer {
    /// # Panics
    /// When the operating system gives no thread.
    pub(super) fn start(store: Arc<dyn Store>, identity: Identity, keep: run::Checkpoint) -> Self {
        let written = Arc::new(Mutex::new(Written::default()));
        let (jobs, inbox) = sync_channel(QUEUE);
        let outcome = Arc::clone(&written);
        let work = move || write_all(&*store, &identity, keep, &inbox, &outcome);
        let thread = thread::Builder::new()
            .name("checkpoints".into())
            .spawn(work);
        Self {
            jobs: Some(jobs),
            thread: Some(thread.expect("the operating system gives a thread")),
            written,
        }
    }

    /// Whether a copy would be taken without waiting.
    pub(super) fn has_room(&self) -> bool {
        lock(&self.written).waiting <= QUEUE
    }

    /// Hands over; waits while the queue is full.
    ///
    /// # Panics
    /// When the thread panicked.
    pub(super) fn hand_over(&self, job: Job) {
        lock(&self.written).waiting += 1;
        let jobs = self.jobs.as_ref().expect("it is there until the drop");
        assert!(jobs.send(job).is_ok(), "the writing thread lives");
    }

    /// What has gone wrong since the last question.
    pub(super) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.written).warnings)
    }

    /// Waits until all is written.
    pub(super) fn finish(mut self) -> Written {
        self.stop();
        lock(&self.written).clone()
    }

    fn stop(&mut self) {
        self.jobs = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        if let Err(panic) = thread.join()
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The counts stay true whoever panics beside them.
fn lock(written: &Mutex<Written>) -> MutexGuard<'_, Written> {
    written.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_all(
    store: &dyn Store,
    identity: &Identity,
    keep: run::Checkpoint,
    inbox: &Receiver<Job>,
    outcome: &Mutex<Written>,
) {
    for job in inbox {
        let result = match job {
            Job::Checkpoint(snapshot) => {
                let number = snapshot.position.batches_done;
                let result = commit(store, identity, &snapshot);
                // Room is made after a failure too: its parts belong to nothing.
                let kept = result.as_ref().ok().map(|_| (keep, number));
                let pruned = prune(store, kept);
                let mut written = lock(outcome);
                match &result {
                    Ok(bytes) => {
                        written.checkpoints += 1;
                        written.bytes = *bytes;
                        written.newest = Some(number);
                        written.failure = None;
                    }
                    Err(error) => {
                        written.failures += 1;
                        written.failure = Some(shown(error));
                    }
                }
                result.and(pruned)
            }
            Job::Metrics(lines) => store
                .put(METRICS, &lines)
                .map_err(|e| stored("write", METRICS, e)),
        };
        let mut written = lock(outcome);
        written.waiting -= 1;
        if let Err(error) = result
            && written.warnings.len() < MAX_WARNINGS
        {
            let warning = format!("{}; training goes on", shown(&error));
            written.warnings.push(warning);
        }
    }
}

/// An error with what caused it.
fn shown(error: &CheckpointError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Writes a checkpoint: parts first, manifest last. Returns its bytes.
fn commit(
    store: &dyn Store,
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
        let name = format!("{CHECKPOINTS}/{}", part.name);
        store
            .put(&name, &bytes)
            .map_err(|e| stored("write", &name, e))?;
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
        parts,
        seal: Digest::default(),
    };
    let bytes = manifest.sealed().to_bytes();
    let name = format!("{CHECKPOINTS}/{}", manifest_name(number));
    store
        .put(&name, &bytes)
        .map_err(|e| stored("write", &name, e))?;
    Ok(total + bytes.len() as u64)
}

/// Deletes checkpoints whose place newer ones took, never the one that was just written; and parts
/// that no manifest names.
fn prune(store: &dyn Store, kept: Option<(run::Checkpoint, u64)>) -> Result<(), CheckpointError> {
    let names = store
        .list(CHECKPOINTS)
        .map_err(|e| stored("list", CHECKPOINTS, e))?;
    let delete = |name: &str| {
        let name = format!("{CHECKPOINTS}/{name}");
        store.delete(&name).map_err(|e| stored("delete", &name, e))
    };
    let mut manifests = BTreeMap::new();
    for number in names.iter().filter_map(|name| manifest_number(name)) {
        manifests.insert(number, readable_manifest(store, number));
    }
    if let Some((keep, newest)) = kept {
        let accuracies = manifests.iter().map(|(&number, manifest)| {
            (
                number,
                manifest.as_ref().and_then(|m| m.test.map(Hits::share)),
            )
        });
        let accuracies = accuracies.collect();
        for number in superseded(&accuracies, keep.keep_last, keep.keep_best) {
            if number != newest {
                delete(&manifest_name(number))?;
                manifests.remove(&number);
            }
        }
    }
    for name in &names {
        let Some(number) = part_number(name) else {
            continue;
        };
        let is_named = match manifests.get(&number) {
            None => false,
            // What it names cannot be told.
            Some(None) => true,
            Some(Some(manifest)) => manifest.parts.values().any(|part| part.name == *name),
        };
        if !is_named {
            delete(name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::SmallDisk;
    use super::*;
    use crate::trace::file::{TraceFile, TraceTensor};
    use std::sync::atomic::Ordering;
    use synfire_shared::checkpoint::Position;

    fn snapshot(number: u64, correct: Option<u64>) -> Job {
        let tensor = TraceTensor::f32(&[100], vec![number as f32; 100]);
        let file = TraceFile {
            tensors: BTreeMap::from([("w".to_owned(), tensor)]),
            ..TraceFile::default()
        };
        Job::Checkpoint(Box::new(Snapshot {
            position: Position {
                epoch: 0,
                batch: number,
                update: number,
                batches_done: number,
            },
            test: correct.map(|correct| Hits {
                correct,
                samples: 9,
            }),
            weights: file.clone(),
            state: file,
            progress: b"{}".into(),
        }))
    }

    fn writer(store: &Arc<SmallDisk>, keep_last: usize) -> Writer {
        let identity = Identity {
            settings: BTreeMap::new(),
            data: Digest::of(b"data"),
        };
        let keep = run::Checkpoint {
            every_minutes: 1.0,
            every_batches: None,
            keep_last,
            keep_best: true,
        };
        Writer::start(Arc::<SmallDisk>::clone(store), identity, keep)
    }

    fn manifests(store: &SmallDisk) -> Vec<u64> {
        let names = store.list(CHECKPOINTS).unwrap();
        names
            .iter()
            .filter_map(|name| manifest_number(name))
            .collect()
    }

    /// Every manifest that is there with all its parts, and nothing else.
    fn assert_whole(store: &SmallDisk) {
        let mut named = Vec::new();
        for number in manifests(store) {
            let manifest = readable_manifest(store, number).unwrap();
            named.push(manifest_name(number));
            for part in manifest.parts.values() {
                let name = format!("{CHECKPOINTS}/{}", part.name);
                let bytes = store.get(&name, part.bytes).unwrap();
                assert_eq!(Digest::of(&bytes), part.sha256);
                named.push(part.name.clone());
            }
        }
        named.sort();
        assert_eq!(store.list(CHECKPOINTS).unwrap(), named);
    }

    #[test]
    fn the_newest_and_the_best_stay() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let writer = writer(&store, 2);
        for (number, accuracy) in [(1, Some(9)), (2, Some(5)), (3, None), (4, Some(7))] {
            writer.hand_over(snapshot(number, accuracy));
        }
        let written = writer.finish();
        assert_eq!((written.checkpoints, written.failures), (4, 0));
        assert_eq!(manifests(&store), [1, 3, 4]);
        assert_whole(&store);
    }

    #[test]
    fn a_full_disk_loses_nothing_that_was_committed() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let first = writer(&store, 3);
        first.hand_over(snapshot(1, None));
        assert_eq!(first.finish().newest, Some(1));
        let before = store.files.lock().unwrap().clone();
        let used: usize = before.values().map(Vec::len).sum();
        // Full after any number of further bytes: in the first part, between parts, at the end.
        for room in (0..).step_by(97) {
            store
                .capacity
                .store((used + room) as u64, Ordering::Relaxed);
            let second = writer(&store, 3);
            second.hand_over(snapshot(2, None));
            let written = second.finish();
            assert_whole(&store);
            for (name, bytes) in &before {
                assert!(
                    store.files.lock().unwrap().get(name) == Some(bytes),
                    "{name}"
                );
            }
            if written.failures == 0 {
                assert!(room > 500, "{room}");
                break;
            }
            assert_eq!((written.newest, written.failures), (None, 1));
            let failure = written.failure.unwrap();
            assert!(failure.contains("cannot write"), "{failure}");
            assert_eq!(manifests(&store), [1]);
        }
        assert_eq!(manifests(&store), [1, 2]);
    }

    #[test]
    fn a_newer_number_that_was_there_does_not_push_out_what_is_written() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let first = writer(&store, 1);
        first.hand_over(snapshot(9, None));
        drop(first);
        let second = writer(&store, 1);
        second.hand_over(snapshot(5, None));
        assert_eq!(second.finish().newest, Some(5));
        assert_eq!(manifests(&store), [5, 9]);
        assert_whole(&store);
    }
}
