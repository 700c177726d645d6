//! Random faults: processes are killed, started again, stopped and woken at keyed moments.

use crate::processes::{DEADLINE, Group, Process};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};
use synfire_shared::checkpoint::ManifestName;
use synfire_shared::random::mix;

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of a worker, which is started again.
    Kill(usize),
    /// A worker stands still, and goes on.
    Pause(usize),
    /// A worker stands still and is killed then.
    PauseAndKill(usize),
    /// `kill -9` of the coordinator, which is started again.
    Coordinator,
}

/// What is to be done later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cure {
    Start(usize),
    Wake(usize),
    Kill(usize),
    Coordinator,
}

/// What happened.
#[derive(Debug, Default)]
pub(crate) struct Happened {
    pub(crate) kills: u64,
    pub(crate) pauses: u64,
    pub(crate) coordinators: u64,
    /// All manifests that were there at any time that was looked.
    pub(crate) seen: BTreeSet<ManifestName>,
}

/// A group whose processes fail.
pub(crate) struct Faults<'g, 'a> {
    group: &'g mut Group<'a>,
    cures: Vec<(Instant, Cure)>,
    happened: Happened,
    begin: Instant,
}

impl<'g, 'a> Faults<'g, 'a> {
    /// The group's run must not end by itself: how many batches a machine does meanwhile is its own
    /// affair.
    pub(crate) fn new(group: &'g mut Group<'a>) -> Self {
        Self {
            group,
            cures: Vec::new(),
            happened: Happened::default(),
            begin: Instant::now(),
        }
    }

    /// So many faults, of which the last are cured, too; then the run is stopped, saved.
    pub(crate) fn play(mut self, faults: u64, key: u64) -> Happened {
        for landed in 0..faults {
            // Keyed: the same moments as far as a clock can give them.
            let draw = mix(key ^ mix(landed));
            let before = self.look();
            if draw.is_multiple_of(4) {
                // While others still recover.
                self.wait_until(Instant::now() + ms(draw / 16 % 1500));
            } else {
                self.wait_for_batches(before + 1 + draw / 16 % 16);
                self.wait_until(Instant::now() + ms(draw / 65536 % 40));
            }
            self.strike(draw / (1 << 32));
        }
        while !self.cures.is_empty() {
            self.look();
        }
        let before = self.look();
        self.wait_for_batches(before + 3);
        self.stop();
        self.happened
    }

    /// To all of them, because one that was just woken may not belong to the others yet.
    fn stop(&mut self) {
        for worker in &self.group.workers {
            worker.signal("TERM");
        }
        for worker in &mut self.group.workers {
            let code = worker.code();
            assert_eq!(code, Some(143), "{}", worker.log());
        }
    }

    /// Whether a process can be struck.
    fn is_well(&self, worker: usize) -> bool {
        let has = |cure| self.cures.iter().any(|(_, other)| *other == cure);
        !has(Cure::Start(worker)) && !has(Cure::Wake(worker)) && !has(Cure::Kill(worker))
    }

    fn strike(&mut self, draw: u64) {
        let ranks = self.group.workers.len();
        let worker = usize::try_from(draw / 16).unwrap_or(0) % ranks;
        let fault = match draw % 10 {
            0..4 => Fault::Kill(worker),
            4..6 => Fault::Pause(worker),
            6 => Fault::PauseAndKill(worker),
            _ => Fault::Coordinator,
        };
        let is_down = self.cures.iter().any(|(_, c)| *c == Cure::Coordinator);
        let fault = if is_down && fault == Fault::Coordinator {
            Fault::Kill(worker)
        } else {
            fault
        };
        if fault != Fault::Coordinator {
            // What it waits for comes first.
            while !self.is_well(worker) {
                self.look();
            }
        }
        let draw = draw / 1024;
        let (cure, after) = match fault {
            Fault::Kill(worker) => {
                self.group.workers[worker].kill();
                self.happened.kills += 1;
                (Cure::Start(worker), draw % 500)
            }
            Fault::Pause(worker) => {
                self.group.workers[worker].signal("STOP");
                self.happened.pauses += 1;
                // Some are so short that nobody notices.
                let after = if draw.is_multiple_of(2) { 0 } else { 4500 };
                (Cure::Wake(worker), after + draw / 4 % 1500)
            }
            Fault::PauseAndKill(worker) => {
                self.group.workers[worker].signal("STOP");
                self.happened.pauses += 1;
                (Cure::Kill(worker), draw % 6000)
            }
            Fault::Coordinator => {
                self.group.coordinator.kill();
                self.happened.coordinators += 1;
                (Cure::Coordinator, draw % 2000)
            }
        };
        let (seconds, batches) = (self.begin.elapsed().as_secs(), self.group.folder.newest());
        println!("{seconds} s, batch {batches}: {fault:?}, cured after {after} ms");
        self.cures.push((Instant::now() + ms(after), cure));
    }

    /// Cures what is due and looks at what is there. Returns the batches before the newest manifest.
    fn look(&mut self) -> u64 {
        let now = Instant::now();
        let is_due = |(due, _): &mut (Instant, Cure)| *due <= now;
        let due: Vec<_> = self.cures.extract_if(.., is_due).collect();
        for (_, cure) in due {
            match cure {
                Cure::Start(worker) => self.group.start_worker(worker),
                Cure::Wake(worker) => self.group.workers[worker].signal("CONT"),
                Cure::Coordinator => self.group.start_coordinator(),
                Cure::Kill(worker) => {
                    self.group.workers[worker].kill();
                    self.happened.kills += 1;
                    self.group.start_worker(worker);
                }
            }
        }
        for worker in 0..self.group.workers.len() {
            if self.is_well(worker) && self.group.workers[worker].has_ended() {
                let worker = &mut self.group.workers[worker];
                assert_eq!(worker.code(), Some(0), "{}", worker.log());
            }
        }
        thread::sleep(Duration::from_millis(1));
        let manifests = self.group.folder.manifests();
        let newest = manifests.last().map_or(0, |m| m.batches_done);
        self.happened.seen.extend(manifests);
        newest
    }

    fn wait_until(&mut self, when: Instant) {
        while Instant::now() < when {
            self.look();
        }
    }

    fn wait_for_batches(&mut self, batches: u64) {
        let begin = Instant::now();
        while self.look() < batches {
            if begin.elapsed() < DEADLINE {
                continue;
            }
            let workers = self.group.workers.iter();
            let mut logs: Vec<String> = workers.map(Process::log).collect();
            logs.push(self.group.coordinator.log());
            panic!("no checkpoint after {batches}:\n{}", logs.join("\n---\n"));
        }
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
