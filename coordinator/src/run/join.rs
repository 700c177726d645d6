//! Who asks to be a rank.

use std::time::Duration;

use synfire_shared::protocol::{JoinRequest, JoinResponse, Refusal};

use super::{Level, Run, Stage};
use crate::admit;
use crate::ended::{Ended, place};
use crate::event::{Counter, Loss, Reply, ReplyId};
use crate::live::Live;
use crate::pool::Waiting;

/// Who is heard of so much later than another process asked for its rank has it for good.
const ALIVE: Duration = Duration::from_secs(1);
/// Who asks for so long, and shows no other sign of life, is no rank of a generation that was begun before
/// the coordinator restarted: of one that was just told, a question may still be under way.
const MISSED: Duration = Duration::from_secs(2);

impl Run {
    pub(super) fn join(&mut self, id: ReplyId, request: &JoinRequest) {
        if let Some(reason) = self.over() {
            let reason = reason.to_owned();
            let status = self.status();
            self.reply(id, Reply::Join(JoinResponse::Over { reason, status }));
            return;
        }
        if let Some(refused) = admit::refusal(&self.policy, self.identity.as_ref(), request) {
            self.pool.remove(&request.process);
            let host: String = request
                .host
                .chars()
                .take(80)
                .flat_map(char::escape_debug)
                .collect();
            let (pid, reason) = (request.pid, &refused.reason);
            let text = format!("a process on {host} (pid {pid}) was refused: {reason}");
            self.log(Level::Warn, text);
            self.refuse(id, refused.code, &refused.reason);
            return;
        }
        if request.left > self.newest {
            self.errand.learn();
        }
        if let Some(answer) = self.member_asks(request) {
            self.reply(id, Reply::Join(answer));
            return;
        }
        let (now, rank) = (self.now(), request.rank);
        let JoinRequest {
            process, identity, ..
        } = request;
        if self.pool.ask(request, now) {
            self.count(Counter::Join);
        }
        if let Some(reason) = rank.and_then(|rank| self.taken(rank, process)) {
            self.pool.remove(process);
            self.refuse(id, Refusal::RankTaken, &reason);
            return;
        }
        self.identity.get_or_insert_with(|| identity.clone());
        let answer = self.wait(rank, process);
        self.reply(id, Reply::Join(answer));
    }

    /// The answer to a process that is a rank of the generation that trains; absent where it is none,
    /// or no longer.
    fn member_asks(&mut self, request: &JoinRequest) -> Option<JoinResponse> {
        let now = self.now();
        let Stage::Live(live) = &mut self.stage else {
            return None;
        };
        let at = live.seat_of(&request.process)?;
        let (number, seat) = (live.number(), &mut live.seats[at]);
        let has_left = request.left >= number;
        if has_left && live.is_ending {
            // It waits for the others to be done.
            let (message, lost) = ("it joins again".to_owned(), None);
            let failed = synfire_shared::protocol::Reason::Failed { message, lost };
            seat.left.get_or_insert(failed);
            return None;
        }
        if has_left {
            let place = place(&seat.member);
            let reason = format!("{place} left it and joins again");
            let ended = Ended::new(number, Loss::Failed, reason, live.members());
            self.end(ended.gave_up());
            return None;
        }
        // It asks again because the answer was lost, or the message comes late.
        let (has_beaten, place) = (seat.has_beaten, place(&seat.member));
        if let Some(assignment) = live.assignment(at) {
            if !has_beaten {
                live.seats[at].heard = now;
            }
            return Some(JoinResponse::Start(assignment));
        }
        // After a restart of the coordinator nobody can tell the secret to one that missed it. Who keeps
        // asking does not train, and without it the others cannot begin.
        let first = *live.seats[at].asked.get_or_insert(now);
        if has_beaten || now < first + MISSED {
            return Some(waits(live));
        }
        let reason = format!("{place} was not told of it before the coordinator restarted");
        let ended = Ended::new(number, Loss::Failed, reason, live.members());
        self.end(ended);
        None
    }

    /// Why a process cannot have this rank, once its holder shows that it lives.
    fn taken(&self, rank: u32, process: &str) -> Option<String> {
        let since = self.pool.since(process)?;
        let lives = |heard: Duration| heard > since + ALIVE;
        let by_member = self
            .member_with(rank, process)
            .filter(|seat| seat.has_beaten && lives(seat.heard));
        if let Some(seat) = by_member {
            let place = place(&seat.member);
            return Some(format!(
                "{place} trains: a second process cannot be rank {rank}"
            ));
        }
        let by_other = self.pool.holder(rank, process, self.now());
        let other = by_other.filter(|w| w.since <= since && lives(w.asked))?;
        let Waiting { host, pid, .. } = other;
        Some(format!(
            "a process on {host} (pid {pid}) asked for rank {rank} before"
        ))
    }

    fn member_with(&self, rank: u32, process: &str) -> Option<&crate::live::Seat> {
        let Stage::Live(live) = &self.stage else {
            return None;
        };
        // Where ranks are missing the others closed up: they have none that they asked for.
        let is_whole = live.seats.len() == self.policy.ranks as usize;
        let mut seats = live.staying().map(|(_, seat)| seat);
        seats.find(|s| is_whole && s.member.rank == rank && s.member.process != process)
    }

    fn wait(&self, rank: Option<u32>, process: &str) -> JoinResponse {
        if let (Stage::Live(live), Some(rank)) = (&self.stage, rank)
            && let Some(seat) = self.member_with(rank, process)
        {
            let seconds = self.now().saturating_sub(seat.heard).as_secs_f64();
            let place = place(&seat.member);
            let held = format!("{place}, last heard of {seconds:.1} s ago, to be gone or alive");
            let JoinResponse::Wait { mut missing, .. } = waits(live) else {
                unreachable!("it is told to wait")
            };
            missing.insert(0, held);
            return JoinResponse::Wait {
                missing,
                seconds_left: None,
                trains: true,
            };
        }
        JoinResponse::Wait {
            missing: self.missing(),
            seconds_left: self.seconds_left(),
            trains: matches!(self.stage, Stage::Live(_)),
        }
    }

    /// Who or what is waited for, one line each.
    pub(crate) fn missing(&self) -> Vec<String> {
        match &self.stage {
            Stage::Reading => vec!["the coordinator reads the run folder".into()],
            Stage::Forming => vec!["a generation is written to the run folder".into()],
            Stage::Live(live) => {
                vec![format!("generation {} trains; the next one", live.number())]
            }
            Stage::Over { .. } => Vec::new(),
            Stage::Gathering { .. } => self.missing_ranks(),
        }
    }

    fn missing_ranks(&self) -> Vec<String> {
        let (now, ranks) = (self.now(), self.policy.ranks);
        let there = self.pool.eligible(ranks, now);
        let num_missing = ranks as usize - there.len();
        if num_missing == 0 {
            return self.pause().into_iter().collect();
        }
        let here = |process: &str| there.iter().any(|w| w.process == process);
        let before = self.ended.front().map_or(&[][..], |ended| &ended.members);
        let gone = before.iter().filter(|(m, _)| !here(&m.process));
        let was = |rank: u32| {
            let mut gone = gone.clone();
            let found = gone.find(|(m, _)| m.rank == rank && before.len() == ranks as usize);
            found.map_or(String::new(), |(m, _)| {
                format!(", which was on {} (pid {})", m.host, m.pid)
            })
        };
        if there.iter().all(|w| w.rank.is_some()) && !there.is_empty() {
            let is_there = |rank: u32| there.iter().any(|w| w.rank == Some(rank));
            let ranks = (0..ranks).filter(|&rank| !is_there(rank));
            return ranks
                .map(|rank| format!("rank {rank}{}", was(rank)))
                .collect();
        }
        let mut lines = vec![format!("{num_missing} of {ranks} processes")];
        lines.extend(gone.clone().map(|(m, _)| format!("perhaps {}", place(m))));
        lines
    }

    /// After so long the run goes on with who is there.
    pub(crate) fn seconds_left(&self) -> Option<f64> {
        let Stage::Gathering { since: Some(since) } = self.stage else {
            return None;
        };
        let there = self.pool.eligible(self.policy.ranks, self.now()).len();
        let is_enough = there >= self.policy.min_ranks as usize;
        let left = (since + self.policy.wait).saturating_sub(self.now());
        let is_short = self.policy.min_ranks < self.policy.ranks;
        (is_enough && is_short).then_some(left.as_secs_f64())
    }
}

fn waits(live: &Live) -> JoinResponse {
    JoinResponse::Wait {
        missing: vec![format!("generation {} trains; the next one", live.number())],
        seconds_left: None,
        trains: true,
    }
}
