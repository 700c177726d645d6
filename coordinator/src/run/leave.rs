//! Who goes, and why.

use synfire_shared::protocol::{Done, Leave, Reason, Refusal, shortened};

use super::{Level, Run, Stage};
use crate::ended::{Ended, place};
use crate::event::{Loss, Reply, ReplyId};

impl Run {
    pub(super) fn leave(&mut self, id: ReplyId, leave: &Leave) {
        if let Err(malformed) = leave.check() {
            self.refuse(id, Refusal::Malformed, &malformed.to_string());
            return;
        }
        self.reply(id, Reply::Done(Done {}));
        let now = self.now();
        let live = self
            .live_mut()
            .filter(|live| live.number() == leave.generation);
        let seat = live.and_then(|live| {
            let at = live.seat_of(&leave.process)?;
            let seat = &mut live.seats[at];
            let is_first = seat.left.is_none();
            seat.left.get_or_insert_with(|| leave.reason.clone());
            seat.heard = now;
            is_first.then_some(at)
        });
        match seat {
            Some(at) => {
                self.note_damage(&leave.reason);
                self.left(at, &leave.reason);
            }
            None => self.left_late(leave),
        }
    }

    fn note_damage(&mut self, reason: &Reason) {
        let start = self.live().and_then(|live| live.generation.start.as_ref());
        if let (Reason::DamagedStart { manifest, .. }, Some(start)) = (reason, start)
            && *manifest == start.manifest
        {
            self.damaged.insert(manifest.clone());
        }
    }

    /// A rank of the generation that trains left it.
    fn left(&mut self, at: usize, reason: &Reason) {
        let Stage::Live(live) = &mut self.stage else {
            return;
        };
        let (number, member) = (live.number(), live.seats[at].member.clone());
        let place = place(&member);
        match reason {
            // Said once the last checkpoint is written; what the others still write does no harm.
            Reason::Finished => {
                self.finish("the run is finished", 0);
            }
            Reason::Stopped { signal } => {
                live.is_ending = true;
                self.log(Level::Info, format!("{place} stopped on signal {signal}"));
            }
            Reason::Failed { .. } | Reason::DamagedStart { .. } if live.is_ending => {}
            Reason::Failed { message, lost } => {
                let members = live.members();
                let mut ended = Ended::new(number, Loss::Failed, String::new(), members);
                ended.report(member.rank, *lost, message);
                self.end(ended);
            }
            Reason::DamagedStart { manifest, message } => {
                // One checkpoint fewer to start from: that comes to an end.
                let start = live.generation.start.as_ref();
                let is_new = start.is_some_and(|start| start.manifest == *manifest);
                let reason = format!("{place} found {manifest} damaged: {message}");
                let reason = shortened(&reason);
                let members = live.members();
                let ended = Ended::new(number, Loss::DamagedStart, reason, members);
                self.end(if is_new { ended } else { ended.gave_up() });
            }
        }
    }

    /// A member of a generation that is over already may know more of why it is.
    fn left_late(&mut self, leave: &Leave) {
        if leave.generation > self.newest {
            self.errand.learn();
        }
        let mut ended = self.ended.iter_mut();
        let Some(ended) = ended.find(|ended| ended.generation == leave.generation) else {
            return;
        };
        let Some(reporter) = ended.rank_of(&leave.process) else {
            return;
        };
        if let (Reason::DamagedStart { manifest, .. }, Some(start)) = (&leave.reason, &ended.start)
            && manifest == start
        {
            self.damaged.insert(manifest.clone());
            return;
        }
        let is_newest = leave.generation == self.newest;
        match &leave.reason {
            Reason::Failed { message, lost } => ended.report(reporter, *lost, message),
            // It was not heard of, and came to the end nevertheless.
            Reason::Finished if is_newest && matches!(self.stage, Stage::Gathering { .. }) => {
                self.finish("the run is finished", 0);
            }
            Reason::Finished | Reason::Stopped { .. } | Reason::DamagedStart { .. } => {}
        }
    }
}
