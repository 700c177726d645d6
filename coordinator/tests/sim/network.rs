//! Coordinators, messages to and from them, and what they do in the store.

use std::time::Duration;

use synfire_coordinator::{Action, Counter, Event, Policy, Reply, Run, Stored};
use synfire_shared::generation::{Generation, GenerationName};

use super::process::{FIRST_PID, Mode};
use super::{Sim, What};

/// A coordinator's process.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) run: Run,
    pub(crate) is_up: bool,
    pub(crate) frozen_until: u64,
    /// The generation that it allocates.
    put: Option<Box<Generation>>,
}

/// What a coordinator does in the store.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Survey,
    Put(Box<Generation>),
    Withdraw(GenerationName),
}

impl Sim {
    pub(crate) fn coordinator_starts(&mut self) {
        let mut policy = Policy::new(self.script.ranks, "0.1.0").unwrap();
        policy.min_ranks = self.script.min_ranks;
        policy.wait = Duration::from_secs(self.script.wait_seconds);
        policy.deadline = Duration::from_secs(8);
        let at = self.coordinators.len();
        self.coordinators.push(Coordinator {
            run: Run::new(policy.checked().unwrap()),
            is_up: true,
            frozen_until: 0,
            put: None,
        });
        self.judge.outcome.coordinator_starts += 1;
        self.tell(|| format!("coordinator {at} starts"));
        self.after(0, What::Tick(at));
    }

    pub(crate) fn tick(&mut self, at: usize) {
        if !self.coordinators[at].is_up {
            return;
        }
        let next = self.coordinators[at].frozen_until.max(self.now + 250);
        self.at(next, What::Tick(at));
        self.reaches_coordinator(at, Event::Tick);
    }

    /// Whether a message gets lost, doubled, late: when its copies arrive.
    fn arrivals(&mut self) -> Vec<u64> {
        let (lost, doubled) = (self.script.lost, self.script.doubled);
        let is_calm = self.is_calm();
        if !is_calm && self.chance.percent(lost) {
            return Vec::new();
        }
        let mut delays = vec![self.chance.between(1, 40)];
        if !is_calm && self.chance.percent(doubled) {
            delays.push(self.chance.between(1, 3000));
        }
        if !is_calm && self.chance.percent(self.script.late) {
            delays[0] = self.chance.between(500, 9000);
        }
        delays
    }

    /// A process sends a message to the coordinator, or to one of two.
    pub(crate) fn send(&mut self, process: usize, event_of: impl Fn(u64) -> Event) {
        if self.processes[process].parted_until > self.now {
            return;
        }
        let up = (0..self.coordinators.len())
            .rev()
            .filter(|&at| self.coordinators[at].is_up);
        let up: Vec<usize> = up.collect();
        let Some(&newest) = up.first() else {
            return;
        };
        let to = if self.chance.percent(80) {
            newest
        } else {
            up[up.len() - 1]
        };
        for delay in self.arrivals() {
            self.sequence += 1;
            let id = self.sequence;
            self.waiting.insert(id, process);
            self.after(delay, What::ToCoordinator(to, event_of(id)));
        }
    }

    pub(crate) fn reaches_coordinator(&mut self, at: usize, event: Event) {
        let coordinator = &mut self.coordinators[at];
        if !coordinator.is_up {
            return;
        }
        if coordinator.frozen_until > self.now {
            let until = coordinator.frozen_until;
            self.at(until, What::ToCoordinator(at, event));
            return;
        }
        let shown = 1_000_000 + i64::try_from(self.now).unwrap() + self.clock_jump;
        let shown = Duration::from_millis(u64::try_from(shown).unwrap_or(0));
        let actions = coordinator.run.handle(shown, event);
        for action in actions {
            self.act(at, action);
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        match action {
            Action::Reply(id, reply) => {
                let Some(process) = self.waiting.remove(&id) else {
                    self.judge.fault = Some(format!("message {id} is answered twice"));
                    return;
                };
                self.judge.outcome.refused += u64::from(matches!(reply, Reply::Refused(_)));
                let lost = self.processes[process].parted_until > self.now;
                for delay in self.arrivals().into_iter().filter(|_| !lost) {
                    self.after(delay, What::ToProcess(process, reply.clone()));
                }
            }
            Action::Survey => self.store_starts(at, Work::Survey),
            Action::PutGeneration(generation) => {
                self.coordinators[at].put = Some(generation.clone());
                self.store_starts(at, Work::Put(generation));
            }
            Action::WithdrawGeneration(name) => self.store_starts(at, Work::Withdraw(name)),
            Action::Log(level, text) => {
                self.tell(|| format!("coordinator {at}: {level:?}: {text}"));
                if text.contains(" made no progress for ") && !text.contains("all ranks say") {
                    self.is_blamed(&text);
                }
                self.judge.outcome.reasons.push(text);
            }
            Action::Count(Counter::Generation) => {
                let generation = self.coordinators[at].put.take().expect("it was put");
                self.judge.begins(&generation, &self.store);
            }
            Action::Count(Counter::Lost(_)) => self.judge.outcome.lost_ranks += 1,
            Action::Count(Counter::Conflict) => self.judge.outcome.conflicts += 1,
            Action::Count(_) => {}
        }
    }

    /// Where the training thread of a rank hangs it is named, and not one that waits for it.
    fn is_blamed(&mut self, text: &str) {
        let pid = text.split("(pid ").nth(1).and_then(|t| t.split(')').next());
        let process = pid.and_then(|pid| pid.parse::<usize>().ok()).unwrap() - FIRST_PID;
        let blamed = &self.processes[process];
        if blamed.hung_since.is_some() {
            self.judge.outcome.hung += 1;
            return;
        }
        let Mode::Member(group, _) = blamed.mode else {
            return;
        };
        let hangs = |process: &&usize| self.processes[**process].hung_since.is_some();
        if let Some(culprit) = self.groups[group].members.iter().find(hangs) {
            let text = format!("{text}: but it waits for process {culprit}");
            self.judge.fault = Some(text);
        }
    }

    fn store_starts(&mut self, at: usize, work: Work) {
        let slow = !self.is_calm() && self.chance.percent(self.script.slow);
        let ms = if slow {
            self.chance.between(1000, 6000)
        } else {
            self.chance.between(2, 120)
        };
        self.after(ms, What::StoreActs(at, work));
    }

    pub(crate) fn store_fails(&mut self) -> bool {
        self.now < self.store_fails_until && !self.is_calm() && self.chance.percent(50)
    }

    pub(crate) fn store_acts(&mut self, at: usize, work: Work) {
        if self.store_fails() {
            if self.chance.percent(50) {
                let ms = self.chance.between(0, 4000);
                self.after(ms, What::Lands(work));
            }
            let reason = "the store did not answer".to_owned();
            self.after(5, What::StoreAnswers(at, Stored::Failed { reason }));
            return;
        }
        let stored = match &work {
            Work::Survey => Stored::Surveyed {
                survey: Box::new(self.store.survey()),
                nonce: self.chance.next(),
                secret: self.chance.next().to_string(),
            },
            Work::Put(_) => Stored::Put,
            Work::Withdraw(_) => Stored::Withdrawn,
        };
        self.lands(work);
        let ms = self.chance.between(1, 60);
        self.after(ms, What::StoreAnswers(at, stored));
    }

    pub(crate) fn lands(&mut self, work: Work) {
        match work {
            Work::Survey => {}
            Work::Put(generation) => {
                self.tell(|| format!("generation {} is put", generation.name()));
                self.store
                    .generations
                    .insert(generation.name(), *generation);
            }
            Work::Withdraw(name) => {
                self.store.generations.remove(&name);
            }
        }
    }
}
