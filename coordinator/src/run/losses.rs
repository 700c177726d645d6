//! Ranks that are lost, and the end of a generation.

use std::collections::BTreeMap;

use synfire_shared::protocol::{Reason, shortened};

use super::{Level, Run, Stage};
use crate::ended::{Ended, place};
use crate::event::{Counter, Loss};

/// Of as many generations it is known why they are over.
const ENDED: usize = 8;

impl Run {
    pub(super) fn look_for_losses(&mut self) {
        let (now, others) = (self.now(), self.pool.heard());
        let Stage::Live(live) = &self.stage else {
            return;
        };
        let (number, members) = (live.number(), live.members());
        let lost = live.lost(now, self.policy.deadline, others);
        if let Some((at, loss, reason)) = lost {
            if live.is_ending && loss == Loss::Silent {
                // The others are not disturbed.
                let message = reason.clone();
                let lost = None;
                if let Stage::Live(live) = &mut self.stage {
                    live.seats[at].left = Some(Reason::Failed { message, lost });
                }
                self.log(Level::Warn, reason);
            } else {
                let member = live.seats[at].member.clone();
                let ended = Ended::new(number, loss, shortened(&reason), members);
                self.end(ended.of(member));
            }
            return;
        }
        if live.staying().next().is_none() {
            let stopped = live.seats.iter().find_map(|seat| match &seat.left {
                Some(Reason::Stopped { signal }) => Some(format!(
                    "{} was stopped by signal {signal}",
                    place(&seat.member)
                )),
                _ => None,
            });
            let reason = stopped.unwrap_or_else(|| "all ranks left".into());
            self.end(Ended::new(number, Loss::Stopped, reason, members));
        }
    }

    /// The ranks that processes had in the generation before.
    pub(super) fn ranks_before(&self) -> BTreeMap<String, u32> {
        let members = self
            .ended
            .front()
            .into_iter()
            .flat_map(|ended| &ended.members);
        members.map(|(m, _)| (m.process.clone(), m.rank)).collect()
    }

    /// The generation that trains is over: all of its ranks are told so when they are heard.
    pub(super) fn end(&mut self, ended: Ended) {
        let start = self.live().and_then(|live| live.generation.start.as_ref());
        let mut ended = ended.from(start.map(|start| start.manifest.clone()));
        ended.has_progressed = self.live().is_some_and(|live| live.has_progressed);
        let was_heard = self
            .live()
            .is_none_or(|live| live.seats.iter().any(|seat| seat.has_beaten));
        if !was_heard && self.pool.all().next().is_none() {
            // Of a generation that nobody was heard of, nobody need train the same.
            self.identity = None;
        }
        self.count(Counter::Lost(ended.loss));
        let text = format!("generation {} is over: {}", ended.generation, ended.reason);
        self.log(Level::Warn, text);
        self.ended.push_front(ended);
        self.ended.truncate(ENDED);
        self.is_save_wanted = false;
        self.stage = Stage::Gathering { since: None };
        self.told = self.now();
        if self.stop.is_some() {
            self.finish_stopped();
        }
    }
}
