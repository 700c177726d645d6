//! What comes too late harms nothing: a process is stopped before any one of its operations, another
//! generation takes its place, trains on and writes, and then the first one is woken.

use super::commit::{Target, manifest_of};
use super::lineage::{self, begin_alone};
use super::lock::Lock;
use super::state::Snapshot;
use super::store::Store;
use super::store::tests::SmallDisk;
use super::writer::{Job, Work, Written};
use super::{CHECKPOINTS, CheckpointError, Identity, METRICS, REPORT};
use crate::trace::file::{TraceFile, TraceTensor};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use synfire_shared::checkpoint::{Digest, ManifestName, Position, manifest_of_name};
use synfire_shared::generation::{FOLDER, Generation, GenerationName};
use synfire_shared::{protocol, run};

fn identity() -> Identity {
    Identity {
        settings: BTreeMap::from([("run.seed".to_owned(), "1".to_owned())]),
        data: Digest::of(b"data"),
        plan: Digest::of(b"plan"),
        lanes: 4,
        batch: 4,
        folder: None,
    }
}

/// The same numbers after the same batches, whoever trains.
fn snapshot(batches_done: u64) -> Box<Snapshot> {
    let tensor = TraceTensor::f32(&[4], vec![batches_done as f32; 4]);
    let file = TraceFile {
        tensors: BTreeMap::from([("w".to_owned(), tensor)]),
        ..TraceFile::default()
    };
    Box::new(Snapshot {
        position: Position {
            epoch: 0,
            batch: batches_done,
            update: batches_done,
            batches_done,
        },
        test: None,
        weights: file.clone(),
        state: file,
        progress: b"{}".into(),
    })
}

/// A process that writes to a folder.
struct Process {
    target: Target,
    outcome: Mutex<Written>,
    texts: BTreeMap<&'static str, Bytes>,
}

impl Process {
    fn new(store: Arc<dyn Store>, generation: u64) -> Self {
        Self {
            target: Target {
                store,
                lock: Lock::None,
                generation,
                shown: "run".into(),
            },
            outcome: Mutex::default(),
            texts: BTreeMap::new(),
        }
    }

    fn write(&mut self, job: Job) {
        self.work(|work| work.write(job));
    }

    fn end(&mut self) {
        self.work(|work| work.end());
    }

    fn work(&mut self, act: impl FnOnce(&mut Work<'_>)) {
        let keep = run::Checkpoint {
            every_minutes: 1.0,
            every_batches: None,
            keep_last: 1,
            keep_best: false,
        };
        let mut work = Work {
            target: &self.target,
            identity: &identity(),
            keep,
            outcome: &self.outcome,
            texts: std::mem::take(&mut self.texts),
        };
        act(&mut work);
        self.texts = work.texts;
    }

    fn save(&mut self, batches_done: u64) {
        self.write(Job::Checkpoint(snapshot(batches_done)));
    }
}

type Meanwhile = Box<dyn FnOnce() + Send>;

/// The store of a process that is stopped right before one of its operations.
struct Stopping {
    inner: Arc<SmallDisk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    operations: usize,
    /// Before which operation somebody else acts, and what is done then.
    meanwhile: Option<(usize, Meanwhile)>,
    /// What this process has changed since then.
    late: Option<Vec<String>>,
    /// A put that fails, once.
    fails: Option<String>,
}

impl std::fmt::Debug for Stopping {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Stopping")
    }
}

impl Stopping {
    fn step(&self, change: Option<&str>) {
        let mut state = self.state.lock().unwrap();
        let here = state.operations;
        state.operations += 1;
        if let Some((_, meanwhile)) = state.meanwhile.take_if(|(at, _)| *at == here) {
            meanwhile();
            state.late = Some(Vec::new());
        }
        if let (Some(late), Some(change)) = (&mut state.late, change) {
            late.push(change.to_owned());
        }
    }
}

impl Store for Stopping {
    fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.step(Some(name));
        let failing = self.state.lock().unwrap().fails.take_if(|at| at == name);
        if failing.is_some() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.put(name, bytes)
    }

    fn get(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.step(None);
        self.inner.get(name, limit)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.step(None);
        self.inner.list(folder)
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.step(Some(&format!("-{name}")));
        self.inner.delete(name)
    }
}

fn manifests(store: &SmallDisk) -> BTreeSet<ManifestName> {
    let names = store.list(CHECKPOINTS).unwrap();
    names.iter().filter_map(|n| manifest_of_name(n)).collect()
}

/// The checkpoints that count, each of them whole.
fn counting(store: &SmallDisk) -> Vec<ManifestName> {
    let names = lineage::checkpoints(store, "run").unwrap();
    for &name in &names {
        let manifest = manifest_of(store, name).unwrap().unwrap();
        for part in manifest.parts.values() {
            let bytes = store.get(&format!("{CHECKPOINTS}/{}", part.name), part.bytes);
            let bytes = bytes.unwrap_or_else(|e| panic!("{} of {name}: {e}", part.name));
            assert_eq!(Digest::of(&bytes), part.sha256);
        }
    }
    names
}

/// Puts a generation as a coordinator does.
fn begin(store: &dyn Store, number: u64, start: Option<ManifestName>) {
    let identity = identity();
    let member = protocol::Member {
        rank: 0,
        process: format!("{number:032x}"),
        host: "node".into(),
        pid: 7,
        collective: None,
        metrics: None,
    };
    let identity = protocol::Identity {
        configuration: Digest::of_settings(&identity.settings),
        settings: identity.settings,
        data: identity.data,
        plan: identity.plan,
        lanes: identity.lanes,
        batch: identity.batch,
        folder: None,
    };
    let start = start.map(|start| protocol::Start {
        manifest: start.to_string(),
        batches_done: start.batches_done,
    });
    let name = GenerationName { number, nonce: 1 };
    let generation = Generation::new(name, vec![member], identity, start);
    store
        .put(&name.key(), generation.to_bytes().into())
        .unwrap();
}

/// Who takes the place of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    Ranks,
    Alone,
}

/// What the first process does: one checkpoint fails behind its parts, which are swept away then.
fn first(process: &mut Process, store: &Stopping) {
    process.write(Job::Lines("first 1".into()));
    process.save(10);
    process.save(20);
    process.write(Job::Page("first 1".into()));
    let name = process.target.manifest(30);
    store.state.lock().unwrap().fails = Some(format!("{CHECKPOINTS}/{name}"));
    process.save(30);
    process.write(Job::Lines("first 2".into()));
    process.save(40);
    process.write(Job::Page("first 2".into()));
    process.end();
}

/// What a later generation does until the first process wakes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    who: Later,
    number: u64,
    /// Batches between its checkpoints.
    step: u64,
    /// Its checkpoints.
    saves: u64,
}

/// A later generation starts from what counts and trains on.
fn later(store: &Arc<SmallDisk>, plan: Plan) -> (Process, u64) {
    let number = plan.number;
    let start = counting(store).last().copied();
    match plan.who {
        Later::Ranks => begin(&**store, number, start),
        Later::Alone => {
            let store: Arc<dyn Store> = Arc::<SmallDisk>::clone(store);
            let begun = begin_alone(&store, "run", number - 1, &identity(), (start, &[])).unwrap();
            assert_eq!(begun, number);
        }
    }
    let mut process = Process::new(Arc::<SmallDisk>::clone(store), number);
    process.write(Job::Lines("later".into()));
    let start = start.map_or(0, |start| start.batches_done);
    for save in 1..=plan.saves {
        process.save(start + save * plan.step);
    }
    process.write(Job::Page("later".into()));
    (process, start)
}

/// That what all generations share is the later one's.
fn assert_texts(store: &SmallDisk, case: &str) {
    for name in [METRICS, REPORT] {
        assert_eq!(store.get(name, 99).unwrap(), b"later", "{name}: {case}");
    }
}

/// What was seen to come too late, of all moments.
#[derive(Debug, Default)]
struct Seen {
    manifests: usize,
    deletions: usize,
    texts: usize,
}

/// One history: the first process is stopped before this operation. False where it has fewer.
fn play(at: usize, plan: Plan, seen: &mut Seen) -> bool {
    let first_number = plan.number - 1;
    let disk = Arc::new(SmallDisk::new(1 << 20));
    if first_number > 0 {
        begin(&*disk, first_number, None);
    }
    let taken = Arc::new(Mutex::new(None));
    let (store, into) = (Arc::clone(&disk), Arc::clone(&taken));
    let meanwhile: Meanwhile = Box::new(move || {
        *into.lock().unwrap() = Some(later(&store, plan));
    });
    let stopping = Arc::new(Stopping {
        inner: Arc::clone(&disk),
        state: Mutex::new(State {
            meanwhile: Some((at, meanwhile)),
            ..State::default()
        }),
    });
    let mut process = Process::new(Arc::<Stopping>::clone(&stopping), first_number);
    first(&mut process, &stopping);
    let Some((mut later, start)) = taken.lock().unwrap().take() else {
        return false;
    };
    let case = format!("stopped before {at}, then {plan:?}");

    // Of what others read it does at most the one thing that it was about to do.
    let late = stopping.state.lock().unwrap().late.take().unwrap();
    let is_unseen = |name: &&String| {
        let name = name.strip_prefix("checkpoints/");
        name.is_some_and(|name| manifest_of_name(name).is_none())
    };
    let changes: Vec<&String> = late.iter().filter(|name| !is_unseen(name)).collect();
    assert!(changes.len() <= 1, "{case}: {changes:?}");
    for change in changes {
        let is_text = [METRICS, REPORT].contains(&change.as_str());
        seen.texts += usize::from(is_text);
        seen.deletions += usize::from(change.starts_with('-'));
        let is_manifest = change.starts_with(CHECKPOINTS);
        let of_it = |m: &ManifestName| m.generation == first_number && m.batches_done > start;
        if is_manifest && manifests(&disk).iter().any(of_it) {
            seen.manifests += 1;
        }
    }

    // Nor does it say of a checkpoint that it is written, if it does not count.
    for attempt in &process.outcome.lock().unwrap().attempts {
        let counts = attempt.manifest.batches_done <= start;
        assert!(counts || attempt.bytes.is_none(), "{case}: {attempt:?}");
    }

    check_later(&mut later, &disk, (plan, start), &case);
    true
}

/// The later one's checkpoints are whole and the newest, whatever has landed beside them.
fn check_later(later: &mut Process, disk: &Arc<SmallDisk>, (plan, start): (Plan, u64), case: &str) {
    let Plan {
        number,
        step,
        saves,
        ..
    } = plan;
    let newest = |after: u64| ManifestName {
        batches_done: start + after * step,
        generation: number,
    };
    assert_eq!(counting(disk).last(), Some(&newest(saves)), "{case}");
    let strays = counting(disk);
    let is_late = |m: &&ManifestName| m.generation < number && m.batches_done > start;
    assert_eq!(strays.iter().find(is_late), None, "{case}");
    // Either puts the texts right.
    if step == 1 {
        later.end();
        assert_texts(disk, case);
    }
    later.save(start + (saves + 1) * step);
    assert_texts(disk, case);
    assert_eq!(counting(disk), [newest(saves + 1)], "{case}");
    // And of all manifests, what came late is swept away.
    assert_eq!(
        Vec::from_iter(manifests(disk)),
        [newest(saves + 1)],
        "{case}"
    );
    assert!(!later.outcome.lock().unwrap().is_taken_over, "{case}");
    // Nothing is left that no manifest names.
    let named = manifest_of(&**disk, newest(saves + 1))
        .unwrap()
        .unwrap()
        .parts
        .len();
    let names = disk.list(CHECKPOINTS).unwrap();
    assert_eq!(names.len(), 1 + named, "{case}: {names:?}");
}

#[test]
fn whenever_a_process_is_stopped_what_it_writes_then_does_not_count() {
    for (number, who) in [(1, Later::Ranks), (2, Later::Ranks), (2, Later::Alone)] {
        // The same batches as the first one, and fewer than it had done. After one checkpoint the
        // parts that the first one sweeps away have the digests of those that the newest has.
        for (step, saves) in [(10, 1), (10, 2), (1, 2)] {
            let plan = Plan {
                who,
                number,
                step,
                saves,
            };
            let mut seen = Seen::default();
            let moments = (0..).take_while(|&at| play(at, plan, &mut seen));
            let moments = moments.count();
            assert!(moments > 60, "{moments}");
            // All of it has come too late: manifests of 10, 20 and 40, and of 30 not.
            assert_eq!(seen.manifests, 3, "{seen:?} of {moments}");
            assert!(seen.deletions > 8 && seen.texts > 3, "{seen:?}");
        }
    }
}

#[test]
fn who_fails_to_write_and_finds_a_later_generation_writes_no_more() {
    for at in 0.. {
        let disk = Arc::new(SmallDisk::new(1 << 20));
        begin(&*disk, 1, None);
        let store = Arc::new(Stopping {
            inner: Arc::clone(&disk),
            state: Mutex::default(),
        });
        let mut process = Process::new(Arc::<Stopping>::clone(&store), 1);
        process.save(10);
        let manifest = format!("{CHECKPOINTS}/{}", process.target.manifest(20));
        {
            let mut state = store.state.lock().unwrap();
            let start = counting(&disk).last().copied();
            let here = Arc::clone(&disk);
            let meanwhile: Meanwhile = Box::new(move || begin(&*here, 2, start));
            state.meanwhile = Some((state.operations + at, meanwhile));
            state.fails = Some(manifest.clone());
        }
        process.save(20);
        let late = store.state.lock().unwrap().late.take();
        if late.expect("a checkpoint has more operations").first() != Some(&manifest) {
            continue;
        }
        assert!(process.outcome.lock().unwrap().is_superseded);
        let before = disk.files.lock().unwrap().clone();
        process.save(30);
        process.end();
        assert!(before == *disk.files.lock().unwrap());
        return;
    }
}

#[test]
fn who_begins_alone_leaves_out_no_checkpoint_that_was_written_meanwhile() {
    let disk = Arc::new(SmallDisk::new(1 << 20));
    begin(&*disk, 1, None);
    let mut ranks = Process::new(Arc::<SmallDisk>::clone(&disk), 1);
    ranks.save(10);
    let found = counting(&disk).last().copied();
    // Between the choice of a start and the generation.
    ranks.save(20);
    let store: Arc<dyn Store> = Arc::<SmallDisk>::clone(&disk);
    let newer = ranks.target.manifest(20);
    let begun = |damaged: &[ManifestName]| {
        let identity = identity();
        begin_alone(&store, "run", 1, &identity, (found, damaged))
    };
    let error = begun(&[]).unwrap_err();
    assert!(matches!(error, CheckpointError::InUse { .. }), "{error}");
    assert_eq!(counting(&disk), [newer]);
    ranks.save(30);
    assert!(!ranks.outcome.lock().unwrap().is_taken_over);
    // One that is damaged is left out.
    let newest = ranks.target.manifest(30);
    assert_eq!(begun(&[newer, newest]).unwrap(), 2);
}

#[test]
fn whenever_a_checkpoint_is_written_who_begins_alone_withdraws_or_it_does_not_count() {
    let mut seen = BTreeSet::new();
    for at in 0.. {
        let disk = Arc::new(SmallDisk::new(1 << 20));
        begin(&*disk, 1, None);
        let mut ranks = Process::new(Arc::<SmallDisk>::clone(&disk), 1);
        ranks.save(10);
        let start = counting(&disk).last().copied();
        let written = Arc::new(Mutex::new(None));
        let into = Arc::clone(&written);
        let meanwhile: Meanwhile = Box::new(move || {
            ranks.save(30);
            *into.lock().unwrap() = Some(ranks);
        });
        let store: Arc<dyn Store> = Arc::new(Stopping {
            inner: Arc::clone(&disk),
            state: Mutex::new(State {
                meanwhile: Some((at, meanwhile)),
                ..State::default()
            }),
        });
        let begun = begin_alone(&store, "run", 1, &identity(), (start, &[]));
        let Some(ranks) = written.lock().unwrap().take() else {
            break;
        };
        let is_whole = !ranks.outcome.lock().unwrap().is_taken_over;
        assert_eq!(is_whole, begun.is_err(), "before {at}: {begun:?}");
        let counts = counting(&disk).contains(&ranks.target.manifest(30));
        assert_eq!(counts, is_whole, "before {at}: {begun:?}");
        // Who withdraws leaves nothing behind.
        let was_put = matches!(disk.list(FOLDER), Ok(names) if names.len() > 1);
        assert_eq!(was_put, begun.is_ok(), "before {at}");
        seen.insert(is_whole);
    }
    assert_eq!(seen.len(), 2);
}

/// Lets two threads act in a given order, operation by operation.
#[derive(Debug)]
struct Turns {
    /// Who has the next turns, from the end; who has ended has none.
    order: Mutex<(Vec<usize>, [bool; 2])>,
    changed: Condvar,
}

impl Turns {
    fn end(&self, who: usize) {
        self.order.lock().unwrap().1[who] = true;
        self.changed.notify_all();
    }
}

/// The store of one of the two.
#[derive(Debug)]
struct InTurns {
    inner: Arc<SmallDisk>,
    turns: Arc<Turns>,
    who: usize,
    progress: Mutex<Progress>,
}

/// How far one of the two is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Nothing,
    Newest,
    Put,
}

impl InTurns {
    fn then<T>(&self, is_put: bool, act: impl FnOnce(&SmallDisk) -> T) -> T {
        let before = {
            let mut progress = self.progress.lock().unwrap();
            let before = *progress;
            if is_put {
                *progress = Progress::Put;
            } else if before == Progress::Nothing {
                *progress = Progress::Newest;
            }
            before
        };
        // What it looks at between the newest number and the put decides nothing about the other one.
        if before == Progress::Newest && !is_put {
            return act(&self.inner);
        }
        let order = self.turns.order.lock().unwrap();
        let waits = |(order, ended): &mut (Vec<usize>, [bool; 2])| {
            !ended[1 - self.who] && order.last().is_some_and(|&next| next != self.who)
        };
        let mut order = self.turns.changed.wait_while(order, waits).unwrap();
        let done = act(&self.inner);
        order.0.pop();
        self.turns.changed.notify_all();
        done
    }
}

impl Store for InTurns {
    fn put(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.then(true, |disk| disk.put(name, bytes))
    }

    fn get(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        self.then(false, |disk| disk.get(name, limit))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.then(false, |disk| disk.list(folder))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.then(false, |disk| disk.delete(name))
    }
}

/// All orders of four operations of each of two.
fn orders() -> Vec<Vec<usize>> {
    let of_bits = |bits: u32| (0..8).map(|at| (bits >> at & 1) as usize).collect();
    let all = (0..256_u32).filter(|bits| bits.count_ones() == 4);
    all.map(of_bits).collect()
}

#[test]
fn of_two_that_begin_alone_at_once_at_most_one_goes_on() {
    let mut outcomes = BTreeSet::new();
    for order in orders() {
        let disk = Arc::new(SmallDisk::new(1 << 20));
        begin(&*disk, 1, None);
        let turns = Arc::new(Turns {
            order: Mutex::new((order.clone(), [false; 2])),
            changed: Condvar::new(),
        });
        let starts = [0, 1].map(|who| {
            let (inner, turns) = (Arc::clone(&disk), Arc::clone(&turns));
            thread::spawn(move || {
                let store: Arc<dyn Store> = Arc::new(InTurns {
                    inner,
                    turns: Arc::clone(&turns),
                    who,
                    progress: Mutex::new(Progress::Nothing),
                });
                let newest = lineage::newest_number(&*store, "run").unwrap();
                let begun = begin_alone(&store, "run", newest, &identity(), (None, &[]));
                turns.end(who);
                begun
            })
        });
        let begun = starts.map(|start| start.join().unwrap());
        let goes_on = |begun: &Result<u64, CheckpointError>| match begun {
            Ok(number) => {
                let process = Process::new(Arc::<SmallDisk>::clone(&disk), *number);
                process.target.check().is_ok()
            }
            Err(error) => {
                assert!(error.is_taken_over(), "{error}");
                false
            }
        };
        let going = begun.iter().filter(|begun| goes_on(begun)).count();
        assert!(going <= 1, "{order:?}: {begun:?}");
        // Who has withdrawn has left nothing that would stop the other one or a later one.
        let left = disk.list(FOLDER).unwrap().len();
        let begun = begun.iter().filter(|begun| begun.is_ok()).count();
        assert_eq!(left, 1 + begun, "{order:?}");
        outcomes.insert((begun, going));
    }
    // One after the other, one alone, and none where both have put before either looked.
    assert_eq!(Vec::from_iter(outcomes), [(0, 0), (1, 1), (2, 1)]);
}
