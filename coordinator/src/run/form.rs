//! How a generation is allocated: see what is there, put, see again; who meets a rival withdraws.

use std::time::Duration;

use synfire_shared::checkpoint::{ManifestName, manifest_name_of};
use synfire_shared::generation::{Generation, GenerationName, Survey};
use synfire_shared::protocol::Start;

use super::{Level, Run, Stage, TELL};
use crate::ended::Ended;
use crate::event::{Action, Counter, Loss, Stored};
use crate::live::{GRACE, Live};
use crate::pool::{self, Pool};

/// After what fails it is waited so long, twice as long each time.
const RETRY: Duration = Duration::from_secs(1);
/// At most.
const MAX_RETRY: Duration = Duration::from_secs(16);
/// Two coordinators that meet wait differently long, up to so many milliseconds more.
const JITTER_MS: u64 = 4000;

/// What is to be done in the run folder, one after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Errand {
    /// What is under way.
    under_way: Option<Task>,
    /// What comes next, in a generation's allocation.
    next: Option<Task>,
    /// Somebody speaks of a generation that is not known here.
    is_unsure: bool,
    not_before: Duration,
    failures: u32,
}

#[derive(Clone, Debug)]
enum Task {
    /// Which generations there are, and whether one may train.
    Learn,
    /// Where to start.
    Find,
    /// This generation is put.
    Put(Box<Generation>, String),
    /// Whether nobody else put one, and the start is still the newest checkpoint.
    Check(Box<Generation>, String),
    /// It was not to be.
    Withdraw(GenerationName),
}

impl Errand {
    /// What the run folder holds is to be read again.
    pub(super) fn learn(&mut self) {
        self.is_unsure = true;
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_none() && self.next.is_none()
    }

    /// Whether the generation of this number may be one that another coordinator put beside ours.
    pub(super) fn puts(&self, number: u64) -> bool {
        let tasks = [&self.under_way, &self.next];
        tasks.into_iter().flatten().any(|task| match task {
            Task::Put(generation, _) | Task::Check(generation, _) => {
                generation.generation == number
            }
            Task::Learn | Task::Find | Task::Withdraw(_) => false,
        })
    }
}

impl Run {
    /// Whether enough processes are there.
    pub(super) fn gather(&mut self) {
        let Stage::Gathering { since } = self.stage else {
            return;
        };
        if self.pool.all().next().is_none() {
            // Nobody is there whose settings count.
            self.identity = None;
            self.stage = Stage::Gathering { since: None };
            return;
        }
        if let Some(reason) = self.failed_too_often() {
            self.finish(&reason, 1);
            return;
        }
        let (now, policy) = (self.now(), &self.policy);
        let there = self.pool.eligible(policy.ranks, now).len();
        let since = since.unwrap_or(now);
        self.stage = Stage::Gathering { since: Some(since) };
        let has_waited = now.saturating_sub(since) >= policy.wait;
        let is_all = there == policy.ranks as usize;
        let is_enough = is_all || has_waited && there >= policy.min_ranks as usize;
        if is_enough && self.pause().is_none() && self.errand.is_idle() {
            self.stage = Stage::Forming;
            self.errand.next = Some(Task::Find);
        } else if now.saturating_sub(self.told) >= TELL {
            self.told = now;
            let missing = self.missing().join("; ");
            self.log(Level::Warn, format!("waiting for {missing}"));
        }
    }

    /// Starts what is to be done, if nothing is under way.
    pub(super) fn run_errands(&mut self) {
        let now = self.now();
        if self.errand.under_way.is_some() || now < self.errand.not_before {
            return;
        }
        let is_unsure = self.errand.is_unsure || matches!(self.stage, Stage::Reading);
        let task = match self.errand.next.take() {
            Some(task) => task,
            None if is_unsure && !matches!(self.stage, Stage::Over { .. }) => Task::Learn,
            None => return,
        };
        let action = match &task {
            Task::Learn | Task::Find | Task::Check(..) => Action::Survey,
            Task::Put(generation, _) => Action::PutGeneration(generation.clone()),
            Task::Withdraw(name) => Action::WithdrawGeneration(*name),
        };
        self.actions.push(action);
        self.errand.under_way = Some(task);
    }

    pub(super) fn stored(&mut self, stored: Stored) {
        let Some(task) = self.errand.under_way.take() else {
            return;
        };
        if let Stored::Failed { reason } = stored {
            let wait = RETRY
                .saturating_mul(1 << self.errand.failures.min(8))
                .min(MAX_RETRY);
            self.errand.failures += 1;
            self.errand.not_before = self.now() + wait;
            self.errand.next = Some(task);
            let seconds = wait.as_secs();
            self.log(Level::Warn, format!("{reason}; tried again in {seconds} s"));
            return;
        }
        self.errand.failures = 0;
        match (task, stored) {
            (Task::Learn, Stored::Surveyed { survey, nonce, .. }) => {
                self.errand.is_unsure = false;
                if !matches!(self.stage, Stage::Reading) {
                    self.errand.not_before = self.now() + RETRY;
                }
                self.learnt(*survey, nonce);
            }
            (
                Task::Find,
                Stored::Surveyed {
                    survey,
                    nonce,
                    secret,
                },
            ) => {
                self.found(*survey, nonce, secret);
            }
            (Task::Put(generation, secret), Stored::Put) => {
                self.errand.next = Some(Task::Check(generation, secret));
            }
            (Task::Check(generation, secret), Stored::Surveyed { survey, nonce, .. }) => {
                self.checked(*generation, secret, *survey, nonce);
            }
            (Task::Withdraw(_), Stored::Withdrawn) => {}
            (task, stored) => panic!("{stored:?} is no outcome of {task:?}"),
        }
    }

    /// A later generation than is known here may train: its ranks are waited for.
    fn learnt(&mut self, survey: Survey, nonce: u64) {
        let number = survey.number();
        if number <= self.newest {
            if matches!(self.stage, Stage::Reading) {
                self.nobody_trains();
            }
            return;
        }
        self.newest = number;
        if matches!(self.stage, Stage::Over { .. }) {
            return;
        }
        if let Stage::Live(live) = &self.stage {
            let reason = "another coordinator began a later one".into();
            let ended = Ended::new(live.number(), Loss::TakenOver, reason, live.members());
            self.end(ended);
        }
        if !self.policy.takes_back {
            // Whoever wrote for it writes in vain once the next one is there.
            self.nobody_trains();
            return;
        }
        let jitter = Duration::from_millis(nonce % JITTER_MS);
        let live = Live::found(survey.newest, self.now(), self.now() + GRACE + jitter);
        if let Some(live) = live {
            self.waits_for(live);
        } else {
            // It was withdrawn since it was listed.
            self.stage = Stage::Gathering { since: None };
        }
    }

    /// A generation that was found may train: it is not stopped, whatever this coordinator would have
    /// begun in its place.
    fn waits_for(&mut self, live: Live) {
        let (number, world) = (live.number(), live.seats.len());
        let text = format!("generation {number} is in the run folder: its ranks are waited for");
        self.log(Level::Info, text);
        let (ranks, min_ranks) = (self.policy.ranks, self.policy.min_ranks);
        if !(min_ranks as usize..=ranks as usize).contains(&world) {
            let text = format!(
                "it has {world} ranks, and {min_ranks} to {ranks} are wanted here: it goes on as it \
                 is, the next one will have as many as are wanted"
            );
            self.log(Level::Warn, text);
        }
        self.stage = Stage::Live(live);
        self.believe_live();
    }

    /// What the generation that trains trains is what all do.
    pub(super) fn believe_live(&mut self) {
        let Some(live) = self.live() else { return };
        if self.identity.as_ref() != Some(&live.generation.identity) {
            self.identity = Some(live.generation.identity.clone());
            // Who was admitted before is going to train something else, and is told so when it asks.
            self.pool = Pool::default();
        }
    }

    /// The run folder is read, and no generation of it is waited for.
    fn nobody_trains(&mut self) {
        self.stage = Stage::Gathering { since: None };
        if self.stop.is_some() {
            self.finish_stopped();
        }
    }

    /// The generation that is to be put, if enough processes are still there.
    fn found(&mut self, survey: Survey, nonce: u64, secret: String) {
        if !matches!(self.stage, Stage::Forming) {
            return;
        }
        if survey.number() > self.newest {
            self.learnt(survey, nonce);
            return;
        }
        let start = self.newest_counting(&survey, None);
        if start.is_none() && survey.newest_counting(None, &|_| false).is_some() {
            self.finish(
                "all checkpoints are damaged: restore one, or start again in another run.folder",
                1,
            );
            return;
        }
        let before = self.ranks_before();
        let chosen = self.pool.eligible(self.policy.ranks, self.now());
        let identity = self.identity.clone();
        let (Some(identity), true) = (identity, chosen.len() >= self.policy.min_ranks as usize)
        else {
            self.stage = Stage::Gathering { since: None };
            return;
        };
        let members = pool::members(&chosen, self.policy.ranks, &before);
        let number = self.newest + 1;
        let start = start.map(|manifest| Start {
            manifest: manifest_name_of(manifest.batches_done, Some(manifest.generation)),
            batches_done: manifest.batches_done,
        });
        let name = GenerationName { number, nonce };
        let generation = Generation::new(name, members, identity, start);
        self.errand.next = Some(Task::Put(Box::new(generation), secret));
    }

    fn newest_counting(
        &self,
        survey: &Survey,
        but: Option<GenerationName>,
    ) -> Option<ManifestName> {
        let is_damaged = |manifest: ManifestName| {
            let generation = Some(manifest.generation);
            let name = manifest_name_of(manifest.batches_done, generation);
            self.damaged.contains(&name)
        };
        survey.newest_counting(but, &is_damaged)
    }

    /// The generation begins, if nobody else began one and nothing newer was written meanwhile.
    fn checked(&mut self, generation: Generation, secret: String, mut survey: Survey, nonce: u64) {
        let name = generation.name();
        let has_rival = survey.has_rival(name);
        let newest = self
            .newest_counting(&survey, Some(name))
            .map(|m| m.batches_done);
        let is_newest = newest == generation.start.as_ref().map(|start| start.batches_done);
        if matches!(self.stage, Stage::Forming) && !has_rival && is_newest {
            self.begin(generation, secret);
            return;
        }
        self.count(Counter::Conflict);
        self.errand.next = Some(Task::Withdraw(name));
        if !matches!(self.stage, Stage::Forming) {
            return;
        }
        if has_rival {
            let text = format!("another coordinator was met at generation {}", name.number);
            self.log(Level::Warn, text);
            // What the other one put may train.
            survey.newest.retain(|generation| generation.name() != name);
            self.learnt(survey, nonce);
        } else {
            self.stage = Stage::Gathering { since: None };
        }
        self.newest = self.newest.max(name.number);
    }

    fn begin(&mut self, generation: Generation, secret: String) {
        let (number, now) = (generation.generation, self.now());
        let asked = |process: &str| {
            let mut waiting = self.pool.all().filter(|w| w.process == process);
            waiting.next().map_or(now, |w| w.asked)
        };
        let asked: Vec<Duration> = generation
            .members
            .iter()
            .map(|m| asked(&m.process))
            .collect();
        let world = generation.members.len();
        let from = generation
            .start
            .as_ref()
            .map_or("the beginning", |s| s.manifest.as_str());
        let text = format!("generation {number} of {world} ranks begins from {from}");
        for member in &generation.members {
            self.pool.remove(&member.process);
        }
        self.newest = number;
        self.begun += 1;
        self.stage = Stage::Live(Live::begun(generation, secret, &asked));
        self.count(Counter::Generation);
        self.log(Level::Info, text);
    }
}
