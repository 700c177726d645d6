//! Ranks that train in lock step; the first of them writes checkpoints.

use synfire_coordinator::Event;
use synfire_shared::checkpoint::{ManifestName, manifest_name_of};
use synfire_shared::protocol::{Assignment, Checkpoint, Phase, Reason, Status};

use super::judge::{BATCHES, epoch_of};
use super::process::{Mode, name_of, process_of};
use super::store::{History, Learnt};
use super::{Sim, What};

/// A checkpoint is written after so many batches.
const EVERY: usize = 3;
/// The ranks wait so long for one another.
const DEADLINE: u64 = 12_000;

/// What a checkpoint's writing has come to.
#[derive(Clone, Debug)]
pub(crate) enum Writing {
    /// Is this generation still the newest?
    Look(History),
    /// The manifest is put.
    Put(History),
    /// Is it still the newest? Then the checkpoint counts.
    LookAgain(History),
}

/// The ranks of a generation, as they know each other.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) number: u64,
    pub(crate) secret: String,
    pub(super) members: Vec<usize>,
    is_there: Vec<bool>,
    is_gone: Vec<bool>,
    /// A member went without a word: the others wait for it.
    is_cut: Vec<bool>,
    /// What the weights have come of, the same on all ranks.
    pub(crate) history: History,
    pub(crate) is_stopping: bool,
    began: u64,
    progress: u64,
    /// Who has waited for another one since the last batch.
    waits: Vec<bool>,
    is_writing: bool,
    /// As much is in a checkpoint that counts.
    saved: usize,
    update: u64,
}

impl Group {
    pub(crate) fn new(assignment: &Assignment, now: u64) -> Self {
        let world = assignment.members.len();
        Self {
            number: assignment.generation,
            secret: assignment.secret.clone(),
            members: assignment
                .members
                .iter()
                .map(|m| process_of(&m.process))
                .collect(),
            is_there: vec![false; world],
            is_gone: vec![false; world],
            is_cut: vec![false; world],
            history: History::new(),
            is_stopping: false,
            began: now,
            progress: now,
            waits: vec![false; world],
            is_writing: false,
            saved: 0,
            update: 0,
        }
    }

    fn is_whole(&self) -> bool {
        self.is_there.iter().all(|there| *there)
    }

    pub(crate) fn is_training(&self) -> bool {
        self.is_whole() && !self.is_done()
    }

    /// All batches are learnt from, or a signal came: what is left is to write.
    fn is_done(&self) -> bool {
        self.history.len() as u64 == BATCHES
    }

    fn status(&self, now: u64, is_hung: bool, waits: bool, is_ending: bool) -> Status {
        let batches_done = self.history.len() as u64;
        // Who hangs did something after the others began to wait for it: its age does not tell.
        let since = self.progress + if is_hung { 400 } else { 0 };
        Status {
            phase: match (self.is_whole(), self.is_done() || is_ending) {
                (false, _) => Phase::Starting,
                (true, false) => Phase::Training,
                (true, true) => Phase::Ending,
            },
            epoch: epoch_of(batches_done),
            batches_done,
            batches_in_all: BATCHES,
            update: self.update,
            busy_seconds: now.saturating_sub(since) as f64 / 1000.0,
            waits,
            ..Status::default()
        }
    }
}

impl Sim {
    /// What a rank of a group says of itself.
    pub(crate) fn status_of(&self, process: usize, group: usize, rank: u32) -> Status {
        let g = &self.groups[group];
        let is_hung = self.processes[process].hung_since.is_some();
        let mut others = (0..g.members.len()).filter(|&other| other != rank as usize);
        let waits = g.is_training()
            && !is_hung
            && (g.waits[rank as usize] || others.any(|o| !self.is_running(group, o)));
        // Where all run, what is left of a stop is to write.
        let is_ending = g.is_stopping && !is_hung && !waits;
        g.status(self.now, is_hung, waits, is_ending)
    }

    /// A rank is ready to train.
    pub(crate) fn arrives(&mut self, group: usize, rank: u32) {
        let now = self.now;
        let g = &mut self.groups[group];
        if !g.is_there.iter().any(|there| *there) {
            (g.began, g.progress) = (now, now);
            self.after(100, What::Step(group));
        }
        let g = &mut self.groups[group];
        g.is_there[rank as usize] = true;
        if g.is_whole() {
            g.progress = now;
            g.saved = g.history.len();
        }
        // Some are gone already.
        let gone: Vec<usize> = (0..g.members.len())
            .filter(|&r| g.is_gone[r] && !g.is_cut[r])
            .collect();
        let process = g.members[rank as usize];
        for lost in gone {
            self.after(
                200,
                What::PeerLost(process, group, u32::try_from(lost).unwrap()),
            );
        }
    }

    /// A rank leaves its group; the others notice unless its host is gone.
    pub(crate) fn goes(&mut self, group: usize, rank: u32, is_noticed: bool) {
        let g = &mut self.groups[group];
        g.is_gone[rank as usize] = true;
        g.is_cut[rank as usize] = !is_noticed;
        if !is_noticed {
            return;
        }
        let peers = g.members.clone();
        for peer in peers {
            let ms = self.chance.between(20, 700);
            self.after(ms, What::PeerLost(peer, group, rank));
        }
    }

    pub(crate) fn peer_lost(&mut self, process: usize, group: usize, rank: u32) {
        let Mode::Member(its, own) = self.processes[process].mode else {
            return;
        };
        if its != group || own == rank || self.processes[process].hung_since.is_some() {
            return;
        }
        if self.is_postponed(process, What::PeerLost(process, group, rank)) {
            return;
        }
        let message = "the connection was closed".into();
        let lost = Some(rank);
        self.leaves(process, Reason::Failed { message, lost }, false);
    }

    fn is_running(&self, group: usize, rank: usize) -> bool {
        let g = &self.groups[group];
        let process = &self.processes[g.members[rank]];
        !g.is_gone[rank] && process.stopped_until <= self.now && process.hung_since.is_none()
    }

    /// The ranks learn from a batch, if all of them can; or end.
    pub(crate) fn step(&mut self, group: usize) {
        let g = &self.groups[group];
        let world = g.members.len();
        if g.is_gone.iter().all(|gone| *gone) {
            return;
        }
        let idle = (0..world).find(|&r| !g.is_there[r] || !self.is_running(group, r));
        if let Some(idle) = idle {
            let since = if g.is_whole() { g.progress } else { g.began };
            let waits = (0..world).map(|r| self.is_running(group, r)).collect();
            self.groups[group].waits = waits;
            if self.now > since + DEADLINE {
                self.deadline(group, idle);
            }
            self.after(200, What::Step(group));
            return;
        }
        if g.is_done() || g.is_stopping {
            self.ends(group);
            return;
        }
        self.learns(group);
        let ms = self.chance.between(250, 600);
        self.after(ms, What::Step(group));
    }

    fn learns(&mut self, group: usize) {
        let now = self.now;
        let g = &mut self.groups[group];
        let world = u32::try_from(g.members.len()).unwrap();
        let batch = g.history.len() as u64;
        let generation = g.number;
        g.history.push(Learnt {
            batch,
            generation,
            world,
        });
        (g.progress, g.update) = (now, 4 * (batch + 1));
        g.waits.fill(false);
        let (history, is_time) = (g.history.clone(), g.history.len().is_multiple_of(EVERY));
        self.judge.learns(generation, &history);
        if is_time {
            self.writes(group);
        }
    }

    /// All ranks that still run give up waiting for one of them.
    fn deadline(&mut self, group: usize, idle: usize) {
        let members = self.groups[group].members.clone();
        for (rank, process) in members.into_iter().enumerate() {
            let is_member =
                self.processes[process].mode == Mode::Member(group, u32::try_from(rank).unwrap());
            if is_member && self.is_running(group, rank) {
                let lost = Some(u32::try_from(idle).unwrap());
                let message = "the deadline passed".into();
                self.leaves(process, Reason::Failed { message, lost }, false);
            }
        }
    }

    /// The last checkpoint is written, then all ranks leave together.
    fn ends(&mut self, group: usize) {
        let g = &self.groups[group];
        if g.saved < g.history.len() {
            self.writes(group);
            self.after(100, What::Step(group));
            return;
        }
        let (generation, history, is_done) = (g.number, g.history.clone(), g.is_done());
        let members = g.members.clone();
        for process in members {
            if is_done {
                self.judge.finishes(generation, &history, self.now);
                self.leaves(process, Reason::Finished, true);
            } else {
                self.leaves(process, Reason::Stopped { signal: 15 }, true);
            }
        }
    }

    /// Rank 0 begins to write what has been learnt, unless it is at it.
    fn writes(&mut self, group: usize) {
        let g = &mut self.groups[group];
        if std::mem::replace(&mut g.is_writing, true) {
            return;
        }
        let (process, history) = (g.members[0], g.history.clone());
        self.write_later(process, group, Writing::Look(history));
    }

    fn write_later(&mut self, process: usize, group: usize, writing: Writing) {
        let slow = !self.is_calm() && self.chance.percent(2 * self.script.slow);
        let ms = if slow {
            self.chance.between(500, 6000)
        } else {
            self.chance.between(5, 150)
        };
        self.after(ms, What::Write(process, group, writing));
    }

    pub(crate) fn write(&mut self, process: usize, group: usize, writing: Writing) {
        let number = self.groups[group].number;
        let is_member =
            matches!(self.processes[process].mode, Mode::Member(its, _) if its == group);
        if !is_member {
            // A put that is under way when its process ends, or gives up, may still land.
            if let (Writing::Put(history), true) = (writing, self.chance.percent(50)) {
                self.manifest_lands(number, history);
            }
            return;
        }
        if self.is_postponed(process, What::Write(process, group, writing.clone())) {
            return;
        }
        if self.store_fails() {
            self.groups[group].is_writing = false;
            if let (Writing::Put(history), true) = (writing, self.chance.percent(50)) {
                self.manifest_lands(number, history);
            }
            return;
        }
        let is_taken_over = self.store.newest_number() > number;
        match writing {
            Writing::Look(_) | Writing::LookAgain(_) if is_taken_over => {
                self.judge.outcome.taken_over += 1;
                let message = "a newer generation is in the run folder".into();
                let lost = None;
                self.leaves(process, Reason::Failed { message, lost }, false);
            }
            Writing::Look(history) => self.write_later(process, group, Writing::Put(history)),
            Writing::Put(history) => {
                self.manifest_lands(number, history.clone());
                self.write_later(process, group, Writing::LookAgain(history));
            }
            Writing::LookAgain(history) => {
                self.groups[group].is_writing = false;
                self.groups[group].saved = history.len();
                self.judge.confirms(ManifestName {
                    batches_done: history.len() as u64,
                    generation: number,
                });
                self.reports(process, number, history.len() as u64);
            }
        }
    }

    fn manifest_lands(&mut self, generation: u64, history: History) {
        let name = ManifestName {
            batches_done: history.len() as u64,
            generation,
        };
        self.tell(|| format!("{name:?} is put"));
        let lineage = synfire_shared::generation::Lineage::of(self.store.survey().links);
        self.judge.outcome.stale_manifests += u64::from(!lineage.counts(name));
        self.store.manifests.insert(name, history);
    }

    fn reports(&mut self, process: usize, generation: u64, batches_done: u64) {
        let checkpoint = Checkpoint {
            process: name_of(process),
            generation,
            manifest: manifest_name_of(batches_done, Some(generation)),
            batches_done,
            epoch: epoch_of(batches_done),
        };
        self.send(process, |id| Event::Checkpoint(id, checkpoint.clone()));
    }
}
