//! The thread that writes: training hands over copies and goes on.

use super::commit::Target;
use super::state::Snapshot;
use super::{BAD_SAMPLES, CheckpointError, Identity, METRICS, REPORT, TUNING};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use synfire_shared::checkpoint::{Hits, ManifestName};
use synfire_shared::run;

/// Warnings that are kept until somebody asks.
const MAX_WARNINGS: usize = 16;
/// Attempts that are kept until somebody asks.
const MAX_ATTEMPTS: usize = 1024;

/// A checkpoint that was written, or was not.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// How long that took.
    pub seconds: f64,
    /// Its bytes; nothing where it failed.
    pub bytes: Option<u64>,
    /// Its manifest.
    pub manifest: ManifestName,
    /// The epoch in which training goes on from it.
    pub epoch: u32,
    /// The test set, where it was evaluated there.
    pub test: Option<Hits>,
}

/// Why a checkpoint could not be written.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    /// In words.
    pub reason: String,
    /// Whether the same may go well another time.
    pub may_pass: bool,
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
    pub failure: Option<Failure>,
    /// Whether another process writes to the folder now.
    pub is_taken_over: bool,
    /// Whether that is a later generation of ranks.
    pub is_superseded: bool,
    /// What has gone wrong since somebody asked.
    pub warnings: Vec<String>,
    /// Checkpoints since somebody asked.
    pub attempts: Vec<Attempt>,
}

impl Written {
    /// Why nothing more is written to this folder, if so.
    pub fn taken_over(&self, folder: &str) -> Option<CheckpointError> {
        let folder = folder.to_owned();
        match (self.is_taken_over, self.is_superseded) {
            (false, _) => None,
            (true, true) => Some(CheckpointError::Superseded { folder }),
            (true, false) => Some(CheckpointError::TakenOver { folder }),
        }
    }
}

/// What is to be written. Of the lines and of the page the newest is enough, so nobody waits to
/// hand them over.
#[derive(Debug, Default)]
struct Waiting {
    /// All lines so far.
    lines: Option<Bytes>,
    checkpoint: Option<Box<Snapshot>>,
    page: Option<Bytes>,
    /// All lines about bad samples so far.
    bad_samples: Option<Bytes>,
    /// What was found out about the run's ranks.
    tuning: Option<Bytes>,
    /// Nothing more will come.
    is_closed: bool,
    /// Nobody will write any more.
    is_over: bool,
}

/// One thing to write.
pub(super) enum Job {
    Lines(Bytes),
    Checkpoint(Box<Snapshot>),
    Page(Bytes),
    BadSamples(Bytes),
    Tuning(Bytes),
}

impl Waiting {
    /// Lines first: a checkpoint never exists without the lines before it, if they can be written.
    fn next(&mut self) -> Option<Job> {
        let lines = self.lines.take().map(Job::Lines);
        lines
            .or_else(|| self.checkpoint.take().map(Job::Checkpoint))
            .or_else(|| self.bad_samples.take().map(Job::BadSamples))
            .or_else(|| self.tuning.take().map(Job::Tuning))
            .or_else(|| self.page.take().map(Job::Page))
    }
}

/// Where training and the writing thread meet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Inbox {
    pub(super) fn put_lines(&self, lines: Bytes) {
        self.change(|waiting| waiting.lines = Some(lines));
    }

    pub(super) fn put_page(&self, page: Bytes) {
        self.change(|waiting| waiting.page = Some(page));
    }

    pub(super) fn put_bad_samples(&self, lines: Bytes) {
        self.change(|waiting| waiting.bad_samples = Some(lines));
    }

    pub(super) fn put_tuning(&self, text: Bytes) {
        self.change(|waiting| waiting.tuning = Some(text));
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut lock(&self.waiting));
        self.changed.notify_all();
    }

    fn wait_until(&self, holds: impl Fn(&Waiting) -> bool) -> MutexGuard<'_, Waiting> {
        let waiting = lock(&self.waiting);
        let waited = self.changed.wait_while(waiting, |waiting| !holds(waiting));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// The next thing to write; nothing when no more will come.
    fn take(&self) -> Option<Job> {
        let has_work = |w: &Waiting| {
            let texts = [&w.lines, &w.page, &w.bad_samples, &w.tuning];
            w.checkpoint.is_some() || texts.iter().any(|text| text.is_some())
        };
        let job = self.wait_until(|w| has_work(w) || w.is_closed).next();
        self.changed.notify_all();
        job
    }
}

/// The writing thread. Dropping it waits until all is written that was handed over.
#[derive(Debug)]
pub(super) struct Writer {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
    written: Arc<Mutex<Written>>,
}

impl Writer {
    /// # Panics
    /// When the operating system gives no thread.
    pub(super) fn start(target: Target, identity: Identity, keep: run::Checkpoint) -> Self {
        let (inbox, written) = <(Arc<Inbox>, Arc<Mutex<Written>>)>::default();
        let (jobs, outcome) = (Arc::clone(&inbox), Arc::clone(&written));
        let work = move || write_all(&target, &identity, keep, &jobs, &outcome);
        let thread = thread::Builder::new()
            .name("checkpoints".into())
            .spawn(work);
        Self {
            inbox,
            thread: Some(thread.expect("the operating system gives a thread")),
            written,
        }
    }

    pub(super) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// Whether a copy would be taken without waiting: one may wait beside the one being written.
    pub(super) fn has_room(&self) -> bool {
        lock(&self.inbox.waiting).checkpoint.is_none()
    }

    /// Hands over a checkpoint; waits while another one waits.
    ///
    /// # Panics
    /// When the thread panicked.
    pub(super) fn save(&self, snapshot: Snapshot) {
        let room = |w: &Waiting| w.checkpoint.is_none() || w.is_over;
        let mut waiting = self.inbox.wait_until(room);
        assert!(!waiting.is_over, "the writing thread lives");
        waiting.checkpoint = Some(Box::new(snapshot));
        drop(waiting);
        self.inbox.changed.notify_all();
    }

    /// What has gone wrong since the last question.
    pub(super) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.written).warnings)
    }

    /// What has become of checkpoints since the last question.
    pub(super) fn take_attempts(&self) -> Vec<Attempt> {
        std::mem::take(&mut lock(&self.written).attempts)
    }

    /// Why nothing more is written to this folder, if so.
    pub(super) fn taken_over(&self, folder: &str) -> Option<CheckpointError> {
        lock(&self.written).taken_over(folder)
    }

    /// Waits until all is written.
    pub(super) fn finish(mut self) -> Written {
        self.stop();
        lock(&self.written).clone()
    }

    fn stop(&mut self) {
        self.inbox.change(|waiting| waiting.is_closed = true);
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

/// The values stay true whoever panics beside them.
fn lock<T>(values: &Mutex<T>) -> MutexGuard<'_, T> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells who waits for room that none will come, however the thread ends.
struct Over<'a>(&'a Inbox);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.change(|waiting| waiting.is_over = true);
    }
}

fn write_all(
    target: &Target,
    identity: &Identity,
    keep: run::Checkpoint,
    inbox: &Inbox,
    outcome: &Mutex<Written>,
) {
    let _over = Over(inbox);
    let mut work = Work {
        target,
        identity,
        keep,
        outcome,
        texts: BTreeMap::new(),
    };
    while let Some(job) = inbox.take() {
        work.write(job);
    }
    work.end();
}

/// What the writing thread does.
pub(super) struct Work<'a> {
    pub(super) target: &'a Target,
    pub(super) identity: &'a Identity,
    pub(super) keep: run::Checkpoint,
    pub(super) outcome: &'a Mutex<Written>,
    /// What was written last under the names that all generations share. A process whose place this
    /// one took may be stopped right before a put, which then comes at any time: so they are put
    /// again behind every checkpoint and in the end.
    pub(super) texts: BTreeMap<&'static str, Bytes>,
}

impl Work<'_> {
    pub(super) fn write(&mut self, job: Job) {
        if lock(self.outcome).is_taken_over {
            // The folder is another's; training will have been told.
            return;
        }
        let result = match job {
            Job::Checkpoint(snapshot) => {
                let (target, outcome) = (self.target, self.outcome);
                let result = checkpoint(target, self.identity, self.keep, &snapshot, outcome);
                result.and_then(|()| self.put_again())
            }
            Job::Lines(lines) => self.put(METRICS, lines),
            Job::Page(page) => self.put(REPORT, page),
            Job::BadSamples(lines) => self.put(BAD_SAMPLES, lines),
            Job::Tuning(text) => self.put(TUNING, text),
        };
        self.note(result);
    }

    /// Nothing more will come.
    pub(super) fn end(&self) {
        if !lock(self.outcome).is_taken_over {
            self.note(self.put_again());
        }
    }

    fn put(&mut self, name: &'static str, text: Bytes) -> Result<(), CheckpointError> {
        if self.target.may_be_disturbed() {
            self.texts.insert(name, text.clone());
        }
        self.target.put(name, text)
    }

    fn put_again(&self) -> Result<(), CheckpointError> {
        let mut texts = self.texts.iter();
        texts.try_for_each(|(name, text)| self.target.put(name, text.clone()))
    }

    /// Keeps what has gone wrong until somebody asks.
    fn note(&self, result: Result<(), CheckpointError>) {
        let Err(error) = result else {
            return;
        };
        let mut written = lock(self.outcome);
        if error.is_taken_over() {
            written.is_taken_over = true;
            written.is_superseded = matches!(error, CheckpointError::Superseded { .. });
        } else if written.warnings.len() < MAX_WARNINGS {
            let warning = format!("{}; training goes on", shown(&error));
            written.warnings.push(warning);
        }
    }
}

fn checkpoint(
    target: &Target,
    identity: &Identity,
    keep: run::Checkpoint,
    snapshot: &Snapshot,
    outcome: &Mutex<Written>,
) -> Result<(), CheckpointError> {
    let (begin, number) = (Instant::now(), snapshot.position.batches_done);
    let result = target.commit(identity, snapshot);
    let attempt = Attempt {
        seconds: begin.elapsed().as_secs_f64(),
        bytes: result.as_ref().ok().copied(),
        manifest: target.manifest(number),
        epoch: snapshot.position.epoch,
        test: snapshot.test,
    };
    // Room is made after a failure too: its parts belong to nothing.
    let kept = result.as_ref().ok();
    let kept = kept.map(|_| (keep, target.manifest(number)));
    let pruned = match &result {
        Err(error) if error.is_taken_over() => Ok(()),
        _ => target.prune(kept),
    };
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
            written.failure = Some(Failure {
                reason: shown(error),
                may_pass: error.may_pass(),
            });
        }
    }
    if written.attempts.len() < MAX_ATTEMPTS {
        written.attempts.push(attempt);
    }
    drop(written);
    match pruned {
        // Nothing more is to be written, whatever has failed before.
        Err(error) if error.is_taken_over() => Err(error),
        pruned => result.and(pruned),
    }
}

/// An error with what caused it.
fn shown(error: &CheckpointError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::CHECKPOINTS;
    use super::super::commit::{manifest_of, set_aside};
    use super::super::lease::{Lease, OWNER};
    use super::super::lock::Lock;
    use super::super::store::Store;
    use super::super::store::tests::SmallDisk;
    use super::*;
    use crate::trace::file::{TraceFile, TraceTensor};
    use std::sync::atomic::Ordering;
    use synfire_shared::checkpoint::{
        Digest, ManifestName, Position, manifest_name, manifest_number,
    };
    use synfire_shared::storage;

    fn snapshot(number: u64, correct: Option<u64>) -> Snapshot {
        let tensor = TraceTensor::f32(&[100], vec![number as f32; 100]);
        let file = TraceFile {
            tensors: BTreeMap::from([("w".to_owned(), tensor)]),
            ..TraceFile::default()
        };
        Snapshot {
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
        }
    }

    fn writer(store: &Arc<SmallDisk>, keep_last: usize) -> Writer {
        start(Arc::<SmallDisk>::clone(store), Lock::None, keep_last)
    }

    fn start(store: Arc<dyn Store>, lock: Lock, keep_last: usize) -> Writer {
        let identity = Identity {
            settings: BTreeMap::new(),
            data: Digest::of(b"data"),
            plan: Digest::of(b"plan"),
            lanes: 4,
            batch: 4,
            folder: None,
        };
        let keep = run::Checkpoint {
            every_minutes: 1.0,
            every_batches: None,
            keep_last,
            keep_best: true,
        };
        let target = Target {
            store,
            lock,
            generation: 0,
            shown: "run".into(),
        };
        Writer::start(target, identity, keep)
    }

    fn alone(batches_done: u64) -> ManifestName {
        ManifestName {
            batches_done,
            generation: 0,
        }
    }

    fn manifests(store: &dyn Store) -> Vec<u64> {
        let names = store.list(CHECKPOINTS).unwrap();
        names
            .iter()
            .filter_map(|name| manifest_number(name))
            .collect()
    }

    /// Every manifest that is there with all its parts, and nothing else.
    fn assert_whole(store: &dyn Store) {
        let mut named = Vec::new();
        for number in manifests(store) {
            let manifest = manifest_of(store, alone(number)).unwrap().unwrap();
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
        let stores: [Arc<dyn Store>; 2] = [
            Arc::new(SmallDisk::new(1 << 20)),
            Arc::new(storage::Store::in_memory()),
        ];
        for store in stores {
            let writer = start(Arc::clone(&store), Lock::None, 2);
            for (number, accuracy) in [(1, Some(9)), (2, Some(5)), (3, None), (4, Some(7))] {
                writer.save(snapshot(number, accuracy));
            }
            let written = writer.finish();
            assert_eq!((written.checkpoints, written.failures), (4, 0));
            let bytes: Vec<_> = written.attempts.iter().map(|a| a.bytes.unwrap()).collect();
            assert_eq!((bytes.len(), bytes[3]), (4, written.bytes));
            assert_eq!(manifests(&*store), [1, 3, 4]);
            assert_whole(&*store);
        }
    }

    #[test]
    fn who_has_lost_the_folder_writes_no_more() {
        let store = Arc::new(storage::Store::in_memory());
        let lease = Lease::take(&store, &mut |warning| panic!("{warning}")).unwrap();
        let writer = start(Arc::<storage::Store>::clone(&store), Lock::Lease(lease), 1);
        writer.save(snapshot(1, None));
        while writer.take_attempts().is_empty() {
            thread::yield_now();
        }
        storage::Store::put(&store, OWNER, "somebody else").unwrap();
        writer.save(snapshot(2, None));
        writer.save(snapshot(3, None));
        writer.inbox().put_lines("lines".into());
        writer.inbox().put_page("page".into());
        let written = writer.finish();
        assert!(written.is_taken_over);
        assert_eq!((written.checkpoints, written.newest), (1, Some(1)));
        assert_eq!(manifests(&*store), [1]);
        for name in [METRICS, REPORT] {
            assert!(Store::get(&*store, name, 99).is_err(), "{name}");
        }
        let owner = Store::get(&*store, OWNER, 99).unwrap();
        assert_eq!(owner, b"somebody else");
    }

    #[test]
    fn only_the_newest_lines_and_page_are_written() {
        let store = Arc::new(storage::Store::in_memory());
        let writer = start(Arc::<storage::Store>::clone(&store), Lock::None, 1);
        for count in 0..100 {
            writer.inbox().put_lines(format!("lines {count}").into());
            writer.inbox().put_page(format!("page {count}").into());
        }
        assert!(writer.finish().warnings.is_empty());
        assert_eq!(Store::get(&*store, METRICS, 99).unwrap(), b"lines 99");
        assert_eq!(Store::get(&*store, REPORT, 99).unwrap(), b"page 99");
    }

    #[test]
    fn a_full_disk_loses_nothing_that_was_committed() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let first = writer(&store, 3);
        first.save(snapshot(1, None));
        assert_eq!(first.finish().newest, Some(1));
        let before = store.files.lock().unwrap().clone();
        let used: usize = before.values().map(Vec::len).sum();
        // Full after any number of further bytes: in the first part, between parts, at the end.
        for room in (0..).step_by(97) {
            store
                .capacity
                .store((used + room) as u64, Ordering::Relaxed);
            let second = writer(&store, 3);
            second.save(snapshot(2, None));
            let written = second.finish();
            assert_whole(&*store);
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
            assert!(failure.reason.contains("cannot write"), "{failure:?}");
            assert!(failure.may_pass, "a disk that is full: {failure:?}");
            assert_eq!(manifests(&*store), [1]);
        }
        assert_eq!(manifests(&*store), [1, 2]);
    }

    #[test]
    fn a_newer_number_that_was_there_does_not_push_out_what_is_written() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let first = writer(&store, 1);
        first.save(snapshot(9, None));
        drop(first);
        let second = writer(&store, 1);
        second.save(snapshot(5, None));
        assert_eq!(second.finish().newest, Some(5));
        assert_eq!(manifests(&*store), [5, 9]);
        assert_whole(&*store);
    }

    #[test]
    fn what_cannot_be_read_now_is_not_deleted() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let first = writer(&store, 1);
        for (number, accuracy) in [(1, Some(9)), (2, Some(5))] {
            first.save(snapshot(number, accuracy));
        }
        drop(first);
        assert_eq!(manifests(&*store), [1, 2]);
        store.is_unreadable.store(true, Ordering::Relaxed);
        let second = writer(&store, 1);
        second.save(snapshot(3, None));
        let written = second.finish();
        assert_eq!((written.newest, written.failures), (Some(3), 0));
        let [warning] = &written.warnings[..] else {
            panic!("{:?}", written.warnings);
        };
        assert!(warning.contains("cannot be read now"), "{warning}");
        store.is_unreadable.store(false, Ordering::Relaxed);
        // The best is still there, and is kept when all can be read.
        assert_eq!(manifests(&*store), [1, 2, 3]);
        assert_whole(&*store);
        let third = writer(&store, 1);
        third.save(snapshot(4, None));
        drop(third);
        assert_eq!(manifests(&*store), [1, 4]);
        assert_whole(&*store);
    }

    #[test]
    fn a_damaged_checkpoint_is_put_aside_whole_or_not_at_all() {
        let store = Arc::new(SmallDisk::new(1 << 20));
        let first = writer(&store, 1);
        first.save(snapshot(1, None));
        drop(first);
        let files = || store.files.lock().unwrap().clone();
        let (before, name) = (files(), format!("{CHECKPOINTS}/{}", manifest_name(1)));
        let used: usize = before.values().map(Vec::len).sum();
        store.capacity.store(used as u64, Ordering::Relaxed);
        let full = set_aside(&*store, alone(1)).unwrap_err().to_string();
        assert!(full.contains("cannot put aside"), "{full}");
        store.capacity.store(1 << 20, Ordering::Relaxed);
        store.is_unreadable.store(true, Ordering::Relaxed);
        assert!(set_aside(&*store, alone(1)).is_err());
        store.is_unreadable.store(false, Ordering::Relaxed);
        assert_eq!(files(), before);

        set_aside(&*store, alone(1)).unwrap();
        set_aside(&*store, alone(1)).unwrap();
        let second = writer(&store, 1);
        second.save(snapshot(2, None));
        drop(second);
        // Its parts stay, so that it can be mended.
        let after = files();
        assert_eq!(after[&format!("{name}.damaged")], before[&name]);
        assert!(!after.contains_key(&name));
        for (part, bytes) in before.iter().filter(|(part, _)| **part != name) {
            assert!(after.get(part) == Some(bytes), "{part}");
        }
    }
}
