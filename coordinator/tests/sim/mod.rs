//! A world in which a history is played: virtual time, processes, messages, a store.
//!
//! # Layout
//!
//! - `script`: a history as plain text; `random`: histories drawn by chance.
//! - this file: the queue of what happens, and the faults.
//! - `network`: coordinators, messages to and from them, what they do in the store.
//! - `process`: workers: they join, beat, leave. `group`: ranks that train in lock step, and write.
//! - `judge`: what must never happen; `store`: generations and checkpoints.

mod group;
mod judge;
mod network;
mod process;
pub(crate) mod random;
mod script;
mod store;

use std::collections::BTreeMap;

use group::Group;
use judge::Judge;
use network::Coordinator;
use process::{Mode, Process};
use random::Chance;
pub(crate) use script::{Fault, Script};
use store::Store;
use synfire_coordinator::{Event, Reply, Stored};
use synfire_shared::protocol::Leave;

/// After the last fault a run with enough live workers finishes within this time.
const BOUND: u64 = 240_000;
/// What comes after the end is watched for so long.
const AFTERWARDS: u64 = 10_000;

/// What a history came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) histories: u64,
    pub(crate) generations: u64,
    pub(crate) finished_at: Option<u64>,
    pub(crate) over: Option<String>,
    pub(crate) reasons: Vec<String>,
    pub(crate) coordinator_starts: u64,
    /// Batches of a generation that had a successor already.
    pub(crate) stale_batches: u64,
    /// Manifests that did not count when they were written.
    pub(crate) stale_manifests: u64,
    /// Ranks that saw in time that they had been taken over.
    pub(crate) taken_over: u64,
    /// Allocations in which another coordinator or a newer checkpoint was met.
    pub(crate) conflicts: u64,
    /// Starts from an older checkpoint because the newest was damaged.
    pub(crate) damaged_starts: u64,
    pub(crate) lost_ranks: u64,
    /// Ranks whose training thread hung, and that were named.
    pub(crate) hung: u64,
    pub(crate) refused: u64,
    pub(crate) abandoned: u64,
    pub(crate) worlds_changed: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.generations += other.generations;
        self.coordinator_starts += other.coordinator_starts;
        self.stale_batches += other.stale_batches;
        self.stale_manifests += other.stale_manifests;
        self.taken_over += other.taken_over;
        self.conflicts += other.conflicts;
        self.damaged_starts += other.damaged_starts;
        self.lost_ranks += other.lost_ranks;
        self.hung += other.hung;
        self.refused += other.refused;
        self.abandoned += other.abandoned;
        self.worlds_changed += other.worlds_changed;
    }

    /// What has to happen now and then.
    pub(crate) fn counts(&self) -> [(&'static str, u64); 11] {
        [
            ("generations", self.generations),
            ("coordinator starts", self.coordinator_starts),
            ("stale batches", self.stale_batches),
            ("stale manifests", self.stale_manifests),
            ("taken over", self.taken_over),
            ("conflicts", self.conflicts),
            ("damaged starts", self.damaged_starts),
            ("lost ranks", self.lost_ranks),
            ("hung", self.hung),
            ("abandoned", self.abandoned),
            ("worlds changed", self.worlds_changed),
        ]
    }
}

/// Something that happens at its time.
#[derive(Clone, Debug)]
enum What {
    Fault(Fault),
    Start(usize),
    CoordinatorStarts,
    CoordinatorEnds(usize),
    Tick(usize),
    ToCoordinator(usize, Event),
    ToProcess(usize, Reply),
    StoreActs(usize, network::Work),
    StoreAnswers(usize, Stored),
    /// A put that was taken for failed lands.
    Lands(network::Work),
    Ask(usize),
    Beat(usize, u64),
    LeaveAgain(usize, Leave, u32),
    Step(usize),
    PeerLost(usize, usize, u32),
    Write(usize, usize, group::Writing),
}

/// The world.
struct Sim {
    script: Script,
    now: u64,
    queue: BTreeMap<(u64, u64), What>,
    sequence: u64,
    chance: Chance,
    store: Store,
    store_fails_until: u64,
    coordinators: Vec<Coordinator>,
    clock_jump: i64,
    processes: Vec<Process>,
    /// The process in each place.
    places: Vec<Option<usize>>,
    groups: Vec<Group>,
    /// Processes by the number of the message that they wait for.
    waiting: BTreeMap<u64, usize>,
    judge: Judge,
    is_told: bool,
}

/// Plays a history; what must not happen is an error. With `is_told` every step is printed.
pub(crate) fn play(script: &Script, is_told: bool) -> Result<Outcome, String> {
    let mut sim = Sim::new(script, is_told);
    sim.judge.outcome.histories = 1;
    while let Some(((at, _), what)) = sim.queue.pop_first() {
        sim.now = sim.now.max(at);
        sim.happens(what);
        if let Some(fault) = sim.judge.fault.take() {
            return Err(format!("at {} ms: {fault}", sim.now));
        }
        let outcome = &mut sim.judge.outcome;
        if outcome
            .finished_at
            .is_some_and(|end| sim.now > end + AFTERWARDS)
        {
            break;
        }
        if outcome.over.is_some() && outcome.finished_at.is_none() {
            sim.judge.over_without_finish(&sim.store, &sim.script)?;
            return Ok(sim.judge.outcome);
        }
        if sim.now > sim.script.calm + BOUND {
            let places: Vec<_> = sim
                .places
                .iter()
                .flatten()
                .map(|&p| &sim.processes[p])
                .collect();
            return Err(format!("not finished at {} ms: {places:?}", sim.now));
        }
    }
    sim.judge.end(&sim.store)?;
    Ok(sim.judge.outcome)
}

impl Sim {
    fn new(script: &Script, is_told: bool) -> Self {
        let mut sim = Self {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            chance: Chance::new(script.seed.wrapping_add(77)),
            store: Store::default(),
            store_fails_until: 0,
            coordinators: Vec::new(),
            clock_jump: 0,
            processes: Vec::new(),
            places: vec![None; script.places.len()],
            groups: Vec::new(),
            waiting: BTreeMap::new(),
            judge: Judge::default(),
            is_told,
            script: script.clone(),
        };
        sim.coordinator_starts();
        for (place, (_, at)) in script.places.iter().enumerate() {
            sim.at(*at, What::Start(place));
        }
        for (at, fault) in &script.faults {
            sim.at(*at, What::Fault(*fault));
        }
        sim
    }

    /// In so many milliseconds.
    fn after(&mut self, ms: u64, what: What) {
        self.at(self.now + ms, what);
    }

    fn at(&mut self, time: u64, what: What) {
        self.sequence += 1;
        self.queue.insert((time, self.sequence), what);
    }

    fn tell(&self, text: impl FnOnce() -> String) {
        if self.is_told {
            println!("{:>7} {}", self.now, text());
        }
    }

    fn is_calm(&self) -> bool {
        self.now >= self.script.calm
    }

    fn happens(&mut self, what: What) {
        match what {
            What::Fault(fault) => self.fault(fault),
            What::Start(place) => self.start(place),
            What::CoordinatorStarts if self.coordinators.iter().any(|c| c.is_up) => {}
            What::CoordinatorStarts => self.coordinator_starts(),
            What::CoordinatorEnds(at) => self.coordinators[at].is_up = false,
            What::Tick(at) => self.tick(at),
            What::ToCoordinator(at, event) => self.reaches_coordinator(at, event),
            What::ToProcess(process, reply) => self.reaches_process(process, reply),
            What::StoreActs(at, work) => self.store_acts(at, work),
            What::StoreAnswers(at, stored) => {
                self.reaches_coordinator(at, Event::Stored(stored));
            }
            What::Lands(work) => self.lands(work),
            What::Ask(process) => self.ask(process),
            What::Beat(process, generation) => self.beat(process, generation),
            What::LeaveAgain(process, leave, tries) => self.leave_again(process, leave, tries),
            What::Step(group) => self.step(group),
            What::PeerLost(process, group, rank) => self.peer_lost(process, group, rank),
            What::Write(process, group, writing) => self.write(process, group, writing),
        }
    }

    fn fault(&mut self, fault: Fault) {
        self.tell(|| format!("fault: {fault:?}"));
        let process = match fault {
            Fault::Kill(place)
            | Fault::Cut(place)
            | Fault::Stop(place, _)
            | Fault::Part(place, _)
            | Fault::Hang(place)
            | Fault::Signal(place) => self.places.get(place).copied().flatten(),
            _ => None,
        };
        let now = self.now;
        match (fault, process) {
            (Fault::Kill(_), Some(process)) => self.dies(process, true),
            (Fault::Cut(_), Some(process)) => self.dies(process, false),
            (Fault::Stop(_, ms), Some(process)) => self.processes[process].stopped_until = now + ms,
            (Fault::Part(_, ms), Some(process)) => self.processes[process].parted_until = now + ms,
            (Fault::Hang(_), Some(process)) => self.hangs(process),
            (Fault::Signal(_), Some(process)) => self.signalled(process),
            (Fault::Crash(ms), _) => {
                self.coordinators.iter_mut().for_each(|c| c.is_up = false);
                self.after(ms, What::CoordinatorStarts);
            }
            (Fault::Second(ms), _) => {
                let first = self.coordinators.len() - 1;
                self.coordinator_starts();
                self.after(ms, What::CoordinatorEnds(first));
            }
            (Fault::Freeze(ms), _) => {
                self.coordinators
                    .iter_mut()
                    .for_each(|c| c.frozen_until = now + ms);
            }
            (Fault::Jump(ms), _) => self.clock_jump += ms,
            (Fault::Damage, _) => self.store.damage(),
            (Fault::StoreFails(ms), _) => self.store_fails_until = now + ms,
            (_, None) => {}
        }
    }

    /// The process in a place starts, if none runs there.
    fn start(&mut self, place: usize) {
        let runs = self.places[place].is_some_and(|p| self.processes[p].mode.is_alive());
        if runs {
            return;
        }
        let process = self.processes.len();
        let rank = self.script.places[place].0;
        self.processes.push(Process::new(place, rank));
        self.places[place] = Some(process);
        self.tell(|| format!("process {process} starts in place {place}"));
        self.after(1, What::Ask(process));
    }

    /// The process of a place ended: another one is started there.
    fn restart(&mut self, process: usize) {
        let place = self.processes[process].place;
        self.processes[process].mode = Mode::Dead;
        if !self.script.is_bare {
            let ms = self.chance.between(300, 4000);
            self.after(ms, What::Start(place));
        }
    }
}
