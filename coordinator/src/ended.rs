//! Why a generation is over.

use synfire_shared::protocol::{Member, shortened};

use crate::event::Loss;

/// A generation that ended before the run did.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) generation: u64,
    pub(crate) loss: Loss,
    /// Why, with the culprit named.
    pub(crate) reason: String,
    /// Its ranks, with the updates that each had done.
    pub(crate) members: Vec<(Member, u64)>,
    /// The manifest that it started from.
    pub(crate) start: Option<String>,
    /// The rank that was not heard of, or made no progress.
    pub(crate) lost: Option<Member>,
    /// Whether a rank said that it cannot go on.
    has_given_up: bool,
    /// Whether a batch was trained beyond its start.
    pub(crate) has_progressed: bool,
    /// Whether it counts as a failure already.
    pub(crate) is_counted: bool,
    /// A rank that is blamed by another one, which may itself have been left by a third.
    blamed: Option<u32>,
}

impl Ended {
    /// A generation that is over for this reason.
    pub(crate) fn new(
        generation: u64,
        loss: Loss,
        reason: String,
        members: Vec<(Member, u64)>,
    ) -> Self {
        Self {
            generation,
            loss,
            reason,
            members,
            start: None,
            lost: None,
            has_given_up: false,
            has_progressed: false,
            is_counted: false,
            blamed: None,
        }
    }

    /// The same, of a generation that started from this manifest.
    pub(crate) fn from(self, start: Option<String>) -> Self {
        Self { start, ..self }
    }

    /// The same, where this rank was not heard of or made no progress.
    pub(crate) fn of(self, lost: Member) -> Self {
        Self {
            lost: Some(lost),
            ..self
        }
    }

    /// The same, where a rank said that it cannot go on.
    pub(crate) fn gave_up(self) -> Self {
        Self {
            has_given_up: true,
            ..self
        }
    }

    /// Whether it failed by itself, and would again: a rank gave up, and not because another one was
    /// killed. That one does not come back; one that another cannot reach does.
    pub(crate) fn is_own_failure(&self, is_back: impl Fn(&str) -> bool) -> bool {
        let blamed = self.blamed.and_then(|rank| self.members.get(rank as usize));
        let is_killed = blamed.is_some_and(|(member, _)| !is_back(&member.process));
        self.has_given_up && !self.has_progressed && !is_killed
    }

    /// The rank of a process.
    pub(crate) fn rank_of(&self, process: &str) -> Option<u32> {
        let found = self.members.iter().find(|(m, _)| m.process == process);
        found.map(|(member, _)| member.rank)
    }

    /// A rank says that it lost another one, or that it failed by itself.
    pub(crate) fn report(&mut self, reporter: u32, lost: Option<u32>, message: &str) {
        let is_first = self.reason.is_empty();
        // Who lost the culprit points to it; what the culprit itself lost is nearer the cause.
        if !is_first && self.blamed != Some(reporter) {
            return;
        }
        let shown = |rank: u32| {
            self.members
                .get(rank as usize)
                .map(|(m, u)| describe(m, *u))
        };
        let Some(by) = shown(reporter) else { return };
        self.has_given_up = true;
        let lost = lost.filter(|&lost| lost != reporter);
        self.reason = match lost.and_then(shown) {
            Some(culprit) => format!("{culprit} was lost, says rank {reporter}: {message}"),
            None => format!("{by} gave up: {message}"),
        };
        self.reason = shortened(&self.reason);
        self.blamed = lost;
    }
}

/// A rank, as messages call it.
pub(crate) fn describe(member: &Member, update: u64) -> String {
    format!("{}, after update {update},", place(member))
}

/// A rank and where it is.
pub(crate) fn place(member: &Member) -> String {
    format!(
        "rank {} on {} (pid {})",
        member.rank, member.host, member.pid
    )
}
