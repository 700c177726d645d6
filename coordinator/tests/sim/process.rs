//! Workers: they join, beat, leave.

use std::collections::BTreeMap;

use synfire_coordinator::{Event, Reply};
use synfire_shared::checkpoint::{Digest, manifest_of_name};
use synfire_shared::protocol::{
    Assignment, Directive, Heartbeat, Identity, JoinRequest, JoinResponse, Leave, PROTOCOL, Reason,
};

use super::group::Group;
use super::judge::BATCH;
use super::store::History;
use super::{Sim, What};

/// The number that the machine gives to the first process.
pub(crate) const FIRST_PID: usize = 100;

/// What a process does.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Mode {
    /// It asks to be a rank.
    Joining,
    /// It is this rank of a group.
    Member(usize, u32),
    /// It says that it goes; then it joins again, or ends.
    Leaving {
        generation: u64,
        ends: bool,
    },
    /// It ended by itself: the run is over.
    Done,
    Dead,
}

impl Mode {
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self, Self::Dead)
    }
}

/// A worker's process.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) place: usize,
    pub(crate) rank: Option<u32>,
    pub(crate) mode: Mode,
    /// The newest generation that it left.
    pub(crate) left: u64,
    pub(crate) stopped_until: u64,
    pub(crate) parted_until: u64,
    pub(crate) hung_since: Option<u64>,
}

impl Process {
    pub(crate) fn new(place: usize, rank: Option<u32>) -> Self {
        Self {
            place,
            rank,
            mode: Mode::Joining,
            left: 0,
            stopped_until: 0,
            parted_until: 0,
            hung_since: None,
        }
    }
}

fn identity() -> Identity {
    Identity {
        configuration: Digest::of_settings(&BTreeMap::new()),
        settings: BTreeMap::new(),
        data: Digest::default(),
        plan: Digest::default(),
        lanes: BATCH,
        batch: BATCH,
        folder: None,
    }
}

pub(crate) fn name_of(process: usize) -> String {
    format!("{process:032x}")
}

pub(crate) fn process_of(name: &str) -> usize {
    usize::from_str_radix(name, 16).expect("it is one of ours")
}

impl Sim {
    /// Whether a process stands still; then the same happens when it goes on.
    pub(crate) fn is_postponed(&mut self, process: usize, what: What) -> bool {
        let until = self.processes[process].stopped_until;
        if until > self.now {
            self.at(until, what);
            return true;
        }
        false
    }

    /// It asks every half second until it is told to do something else.
    pub(crate) fn ask(&mut self, process: usize) {
        if self.processes[process].mode != Mode::Joining
            || self.is_postponed(process, What::Ask(process))
        {
            return;
        }
        let Process {
            place, rank, left, ..
        } = self.processes[process];
        let request = JoinRequest {
            protocol: PROTOCOL,
            version: "0.1.0".into(),
            process: name_of(process),
            host: format!("host-{place}"),
            pid: u32::try_from(process + FIRST_PID).unwrap(),
            rank,
            world: None,
            identity: identity(),
            collective: None,
            metrics: None,
            left,
        };
        self.send(process, |id| Event::Join(id, Box::new(request.clone())));
        self.after(500, What::Ask(process));
    }

    /// A heartbeat every second, also while the training thread hangs.
    pub(crate) fn beat(&mut self, process: usize, generation: u64) {
        let Mode::Member(group, rank) = self.processes[process].mode else {
            return;
        };
        if self.groups[group].number != generation
            || self.is_postponed(process, What::Beat(process, generation))
        {
            return;
        }
        let status = self.status_of(process, group, rank);
        let heartbeat = Heartbeat {
            process: name_of(process),
            generation,
            status,
        };
        self.send(process, |id| Event::Heartbeat(id, heartbeat.clone()));
        self.after(1000, What::Beat(process, generation));
    }

    pub(crate) fn reaches_process(&mut self, process: usize, reply: Reply) {
        if !self.processes[process].mode.is_alive() {
            return;
        }
        if self.is_postponed(process, What::ToProcess(process, reply.clone())) {
            return;
        }
        match reply {
            Reply::Join(response) => self.joined(process, response),
            Reply::Directive(Directive::Abandon { reason }) => self.abandons(process, &reason),
            Reply::Directive(Directive::Stop { .. } | Directive::Save | Directive::Continue) => {}
            Reply::Done(_) => self.leaving_is_known(process),
            Reply::Refused(refused) => {
                let is_joining = self.processes[process].mode == Mode::Joining;
                // It tells why and ends; whoever started it tries again.
                if is_joining {
                    self.tell(|| format!("process {process} is refused: {}", refused.reason));
                    self.judge.outcome.reasons.push(refused.reason);
                    self.restart(process);
                }
            }
        }
    }

    fn joined(&mut self, process: usize, response: JoinResponse) {
        if self.processes[process].mode != Mode::Joining {
            return;
        }
        match response {
            JoinResponse::Wait { .. } => {}
            JoinResponse::Over { reason, .. } => {
                self.judge.outcome.over.get_or_insert(reason);
                self.processes[process].mode = Mode::Done;
            }
            JoinResponse::Start(assignment) => {
                // A late answer may be of a generation that it has left.
                if assignment.generation > self.processes[process].left {
                    self.starts(process, &assignment);
                }
            }
        }
    }

    fn starts(&mut self, process: usize, assignment: &Assignment) {
        assignment.check().unwrap();
        let Assignment {
            generation, rank, ..
        } = *assignment;
        let member = &assignment.members[rank as usize];
        assert_eq!(member.process, name_of(process));
        let known = self
            .groups
            .iter()
            .position(|group| group.secret == assignment.secret);
        let group = known.unwrap_or_else(|| {
            self.groups.push(Group::new(assignment, self.now));
            self.groups.len() - 1
        });
        self.tell(|| format!("process {process} is rank {rank} of generation {generation}"));
        self.processes[process].mode = Mode::Member(group, rank);
        self.beat(process, generation);
        if let Some(start) = &assignment.start {
            let name = manifest_of_name(&start.manifest).unwrap();
            if self.store.damaged.contains(&name) {
                self.judge.outcome.damaged_starts += 1;
                let reason = Reason::DamagedStart {
                    manifest: start.manifest.clone(),
                    message: "a part is cut off".into(),
                };
                self.leaves(process, reason, false);
                return;
            }
            let history = self.store.manifests.get(&name).cloned();
            self.groups[group].history = history.expect("it is there");
        } else {
            self.groups[group].history = History::new();
        }
        self.arrives(group, rank);
    }

    /// It gives up its place in its group, if it has one.
    fn gives_up(&mut self, process: usize) -> Option<u64> {
        let Mode::Member(group, rank) = self.processes[process].mode else {
            return None;
        };
        self.goes(group, rank, true);
        let number = self.groups[group].number;
        let left = &mut self.processes[process].left;
        *left = (*left).max(number);
        Some(number)
    }

    pub(crate) fn leaves(&mut self, process: usize, reason: Reason, ends: bool) {
        let Some(generation) = self.gives_up(process) else {
            return;
        };
        self.tell(|| format!("process {process} leaves generation {generation}: {reason:?}"));
        self.processes[process].mode = Mode::Leaving { generation, ends };
        let leave = Leave {
            process: name_of(process),
            generation,
            reason,
        };
        self.leave_again(process, leave, 0);
    }

    pub(crate) fn leave_again(&mut self, process: usize, leave: Leave, tries: u32) {
        let Mode::Leaving { generation, .. } = self.processes[process].mode else {
            return;
        };
        let again = What::LeaveAgain(process, leave.clone(), tries);
        if generation != leave.generation || self.is_postponed(process, again) {
            return;
        }
        if tries == 4 {
            self.leaving_is_known(process);
            return;
        }
        self.send(process, |id| Event::Leave(id, leave.clone()));
        self.after(600, What::LeaveAgain(process, leave, tries + 1));
    }

    /// The coordinator knows that it leaves, or cannot be told.
    fn leaving_is_known(&mut self, process: usize) {
        let Mode::Leaving { ends, .. } = self.processes[process].mode else {
            return;
        };
        if ends && self.judge.outcome.finished_at.is_some() {
            self.processes[process].mode = Mode::Done;
        } else if ends {
            self.restart(process);
        } else {
            self.processes[process].mode = Mode::Joining;
            self.after(0, What::Ask(process));
        }
    }

    fn abandons(&mut self, process: usize, reason: &str) {
        let Mode::Member(group, _) = self.processes[process].mode else {
            return;
        };
        // A late answer may be of a generation that it has left.
        let number = self.groups[group].number;
        if !reason.starts_with(&format!("generation {number} is over")) {
            return;
        }
        self.tell(|| format!("process {process} abandons: {reason}"));
        self.judge.outcome.abandoned += 1;
        self.judge.outcome.reasons.push(reason.to_owned());
        self.gives_up(process);
        if self.processes[process].hung_since.is_some() {
            self.restart(process);
            return;
        }
        self.processes[process].mode = Mode::Joining;
        self.after(0, What::Ask(process));
    }

    /// The process ends without a word; do its peers notice?
    pub(crate) fn dies(&mut self, process: usize, is_noticed: bool) {
        if !self.processes[process].mode.is_alive() || self.processes[process].mode == Mode::Done {
            return;
        }
        if let Mode::Member(group, rank) = self.processes[process].mode {
            self.goes(group, rank, is_noticed);
        }
        self.restart(process);
    }

    pub(crate) fn hangs(&mut self, process: usize) {
        if let Mode::Member(group, _) = self.processes[process].mode
            && self.groups[group].is_training()
        {
            let now = self.now;
            self.processes[process].hung_since.get_or_insert(now);
        }
    }

    pub(crate) fn signalled(&mut self, process: usize) {
        match self.processes[process].mode {
            Mode::Member(group, _) => self.groups[group].is_stopping = true,
            Mode::Joining => self.restart(process),
            Mode::Leaving { .. } | Mode::Done | Mode::Dead => {}
        }
    }
}
