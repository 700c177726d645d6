//! A rank 0 that is stopped at a chosen moment, replaced, and woken: nothing that it writes counts.
//!
//! The server holds back what it writes at that moment. Both generations write the same numbers,
//! so what is compared is who starts from what.

use crate::folder::{Folder, Scratch};
use crate::pack;
use crate::processes::{Group, Process, synfire, train, wait_for};
use crate::s3::{Hold, Server, When};
use std::sync::Arc;
use synfire_shared::checkpoint::{ManifestName, manifest_of_name, manifest_of_part};

/// Pictures, of which a batch has 16: ten batches are an epoch.
const PICTURES: u32 = 160;
const BATCHES: u64 = 400;
/// What is held back belongs to a checkpoint of at least so many batches.
const LATE: u64 = 20;

/// The arguments of a run that reads from the server.
fn arguments(scratch: &Scratch, folder: &Folder<'_>, batches: u64) -> Vec<String> {
    let cache = format!("data.cache={}", scratch.path("cache").display());
    let sets = [
        "run.epochs=99",
        "data.source=packed",
        "data.path=s3://bucket/data",
        &cache,
        "checkpoint.keep_last=2",
    ];
    let mut arguments = train(folder, batches);
    for set in sets {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    arguments
}

/// The manifest of the folder `run` that a key names, or that of which it is a part.
fn manifest_of_key(key: &str) -> Option<ManifestName> {
    let name = key.strip_prefix("run/checkpoints/")?;
    manifest_of_name(name).or_else(|| manifest_of_part(name))
}

/// Whether a key is that of a manifest of this generation.
fn is_manifest(key: &str, generation: u64) -> bool {
    let is_part = key
        .strip_prefix("run/checkpoints/")
        .is_some_and(|name| manifest_of_part(name).is_some());
    !is_part && manifest_of_key(key).is_some_and(|m| m.generation == generation)
}

/// A run whose rank 0 stands still in the middle of a request.
struct Stopped<'a> {
    group: Group<'a>,
    server: &'a Server,
    folder: Folder<'a>,
    hold: Arc<Hold>,
    /// How often the others have given up a generation.
    over: usize,
}

impl<'a> Stopped<'a> {
    /// Stops rank 0 at the first put of such a key.
    fn at(
        server: &'a Server,
        scratch: &Scratch,
        when: When,
        is_it: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let hold = server.hold(when, move |method, key| method == "PUT" && is_it(key));
        let folder = Folder::Store(server, "run".to_owned());
        let arguments = arguments(scratch, &folder, BATCHES);
        let group = Group::start(folder.clone(), 2, arguments, scratch.path("logs"));
        wait_for("nothing is held back", || hold.key().is_some());
        group.workers[0].signal("STOP");
        Self {
            group,
            server,
            folder,
            hold,
            over: 0,
        }
    }

    /// Waits until rank 0 is given up and starts another process in its place.
    fn replace(&mut self) -> Process {
        self.over += 1;
        let rank_1 = &self.group.workers[1];
        wait_for("rank 0 is not missed", || {
            rank_1.log().matches("joining again").count() >= self.over
        });
        self.group.replace_worker(0)
    }

    /// Waits until this generation has written a checkpoint of at least so many batches.
    fn wait_for(&self, generation: u64, batches: u64) {
        wait_for("the next generation does not get on", || {
            let mut manifests = self.folder.manifests().into_iter();
            manifests.any(|m| m.generation == generation && m.batches_done >= batches)
        });
    }

    /// Where a generation started.
    fn start(&self, generation: u64) -> ManifestName {
        let generations = self.folder.generations();
        let start = generations[&generation].start.as_ref();
        manifest_of_name(&start.expect("a checkpoint").manifest).unwrap()
    }

    /// The keys that were put since then.
    fn put_since(&self, count: usize) -> Vec<String> {
        self.server.put_keys().split_off(count)
    }

    /// Wakes the old rank 0 and waits until it is done with its generation; what was put meanwhile.
    fn wake(&self, old: &Process) -> Vec<String> {
        let before = self.server.put_keys().len();
        old.signal("CONT");
        // Of the coordinator or, where its writer looks at the folder first, of that.
        old.wait_until_it_says_one_of(&[
            "generation 1 is over: ",
            "a later generation of ranks trains in ",
        ]);
        self.put_since(before)
    }

    /// Waits for the end, which is that of a run without faults.
    fn finish(mut self, scratch: &Scratch) {
        self.group.finish();
        let whole = Folder::Store(self.server, "whole".to_owned());
        let arguments = arguments(scratch, &whole, BATCHES);
        let logs = scratch.path("whole-logs");
        Group::start(whole.clone(), 2, arguments, logs).finish();
        assert_eq!(self.folder.bits(), whole.bits());
        assert_eq!(self.folder.numbers(), whole.numbers());
        let report = self.folder.text("report.html");
        let end = format!("{BATCHES} of {BATCHES} batches: finished");
        assert!(report.contains(&end), "{report}");
        // What came late is swept away.
        let newest = self.folder.generations().into_keys().next_back();
        for manifest in self.folder.manifests() {
            assert_eq!(Some(manifest.generation), newest, "{manifest}");
        }
    }
}

fn is_late_manifest(key: &str) -> bool {
    is_manifest(key, 1) && manifest_of_key(key).is_some_and(|m| m.batches_done >= LATE)
}

/// Stops rank 0 while it puts a manifest. A second generation trains on and has put none when the
/// first one's appears: it is the newest by its number.
fn late_manifest<'a>(
    server: &'a Server,
    scratch: &Scratch,
) -> (Stopped<'a>, Process, ManifestName, Arc<Hold>) {
    pack(server, scratch, PICTURES);
    let mut stopped = Stopped::at(server, scratch, When::Before, is_late_manifest);
    let key = stopped.hold.key().unwrap();
    let late = manifest_of_key(&key).unwrap();
    let second = server.hold(When::Before, |method, key| {
        method == "PUT" && is_manifest(key, 2)
    });
    let old = stopped.replace();
    wait_for("the second generation does not get on", || {
        second.key().is_some()
    });
    let start = stopped.start(2);
    assert!(start.batches_done < late.batches_done, "{start} {late}");
    assert!(!stopped.folder.manifests().contains(&late));
    stopped.hold.release();
    wait_for("it does not appear", || {
        stopped.folder.manifests().contains(&late)
    });
    assert_eq!(stopped.folder.manifests().last(), Some(&late));
    (stopped, old, late, second)
}

#[test]
fn a_manifest_that_comes_late_starts_no_generation() {
    let (server, scratch) = (Server::start(), Scratch::new("late-ranks"));
    let (mut stopped, old, late, second) = late_manifest(&server, &scratch);
    stopped.group.workers[0].kill();
    second.give_up();
    drop(stopped.replace());
    stopped.wait_for(3, 1);
    assert_eq!(stopped.start(3), stopped.start(2), "not from {late}");
    let put = stopped.wake(&old);
    assert!(
        put.iter()
            .all(|key| manifest_of_key(key).is_none_or(|m| m.generation == 3)),
        "{put:?}"
    );
    stopped.finish(&scratch);
}

#[test]
fn a_process_alone_does_not_start_from_a_manifest_that_comes_late() {
    let (server, scratch) = (Server::start(), Scratch::new("late-alone"));
    let (mut stopped, old, late, second) = late_manifest(&server, &scratch);
    stopped.group.coordinator.kill();
    for worker in &mut stopped.group.workers {
        worker.kill();
    }
    second.give_up();
    let start = stopped.start(2);
    // Nor does anybody else take it for the newest.
    let mut evaluate = synfire(&stopped.folder);
    evaluate.args(["evaluate", "--checkpoint", &stopped.folder.location()]);
    let evaluated = crate::finished(evaluate);
    assert!(evaluated.contains(&start.to_string()), "{evaluated}");

    let mut alone = synfire(&stopped.folder);
    alone.args(arguments(&scratch, &stopped.folder, BATCHES));
    let mut alone = Process::start(alone, &scratch.path("alone.log"));
    stopped.wait_for(3, 1);
    assert_eq!(stopped.start(3), start);
    // It looks behind its put, and learns that it is over.
    old.signal("CONT");
    old.wait_until_it_says("a later generation of ranks trains");
    assert_eq!(alone.code(), Some(0), "{}", alone.log());
    let log = alone.log();
    let resumed = log.lines().find(|line| line.contains("resumed from"));
    assert!(
        resumed.is_some_and(|line| line.contains(&start.to_string())),
        "{log}"
    );
    assert_eq!(stopped.folder.bits().0, BATCHES);
    assert!(!stopped.folder.manifests().contains(&late));
}

#[test]
fn who_is_woken_between_parts_and_manifest_writes_none() {
    let (server, scratch) = (Server::start(), Scratch::new("late-parts"));
    pack(&server, &scratch, PICTURES);
    // The last of the parts.
    let mut stopped = Stopped::at(&server, &scratch, When::Behind, |key| {
        let is_late = manifest_of_key(key).is_some_and(|m| m.batches_done >= LATE);
        is_late && key.ends_with("progress.json")
    });
    let late = manifest_of_key(&stopped.hold.key().unwrap()).unwrap();
    let old = stopped.replace();
    stopped.wait_for(2, late.batches_done);
    stopped.hold.release();
    let put = stopped.wake(&old);
    let of_first = |key: &&String| manifest_of_key(key).is_some_and(|m| m.generation == 1);
    assert_eq!(put.iter().find(of_first), None);
    stopped.finish(&scratch);
}

#[test]
fn who_is_woken_between_its_manifest_and_the_look_behind_it_writes_no_more() {
    let (server, scratch) = (Server::start(), Scratch::new("late-look"));
    pack(&server, &scratch, PICTURES);
    let mut stopped = Stopped::at(&server, &scratch, When::Behind, is_late_manifest);
    let late = manifest_of_key(&stopped.hold.key().unwrap()).unwrap();
    let old = stopped.replace();
    stopped.wait_for(2, late.batches_done + 1);
    // It was there in time.
    assert_eq!(stopped.start(2), late);
    stopped.hold.release();
    let put = stopped.wake(&old);
    let of_first = |key: &&String| manifest_of_key(key).is_some_and(|m| m.generation == 1);
    assert_eq!(put.iter().find(of_first), None);
    stopped.finish(&scratch);
}

#[test]
fn metrics_that_come_late_are_put_right() {
    let (server, scratch) = (Server::start(), Scratch::new("late-metrics"));
    pack(&server, &scratch, PICTURES);
    // Those of the first epochs: the first put is empty, at the start.
    let puts = std::sync::atomic::AtomicU64::new(0);
    let mut stopped = Stopped::at(&server, &scratch, When::Before, move |key| {
        let is_it = key == "run/metrics.jsonl";
        is_it && puts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 20
    });
    let old = stopped.replace();
    let at = stopped.folder.newest();
    stopped.wait_for(2, at + 25);
    let lines = || stopped.folder.text("metrics.jsonl").lines().count();
    let (before, count) = (lines(), server.put_keys().len());
    // Nobody writes beside it until it has been seen.
    let second = server.hold(When::Before, |method, key| {
        method == "PUT" && key == "run/metrics.jsonl"
    });
    wait_for("the second generation does not get on", || {
        second.key().is_some()
    });
    stopped.hold.release();
    wait_for("it does not appear", || {
        let put = stopped.put_since(count);
        put.iter().any(|key| key == "run/metrics.jsonl")
    });
    assert!(lines() < before, "{before} lines and no less");
    second.release();
    stopped.wake(&old);
    stopped.finish(&scratch);
}

#[test]
fn a_resume_has_the_lines_of_its_checkpoint_whatever_the_file_says() {
    let (server, scratch) = (Server::start(), Scratch::new("late-lines"));
    pack(&server, &scratch, PICTURES);
    let folder = Folder::Store(&server, "run".to_owned());
    for (batches, ranks) in [(35, 2), (55, 2), (72, 1)] {
        let arguments = arguments(&scratch, &folder, batches);
        if ranks == 1 {
            let mut alone = synfire(&folder);
            alone.args(&arguments);
            crate::finished(alone);
        } else {
            let logs = scratch.path(&format!("logs-{batches}"));
            Group::start(folder.clone(), ranks, arguments, logs).finish();
        }
        let epochs = folder.numbers().into_iter();
        let epochs: Vec<u64> = epochs.map(|line| line["epoch"].as_u64().unwrap()).collect();
        assert_eq!(epochs, (0..=batches / 10).collect::<Vec<u64>>());
        // As one that was superseded would leave it.
        let text = folder.text("metrics.jsonl");
        let first = text.split_inclusive('\n').next().unwrap();
        server.alter("run/metrics.jsonl", first.as_bytes());
    }
}
