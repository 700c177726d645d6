//! The generation that trains: who is silent, who hangs.

use std::time::Duration;

use synfire_shared::generation::Generation;
use synfire_shared::protocol::{Assignment, Member, Phase, Reason, Status};

use crate::ended::place;
use crate::event::Loss;

/// A rank that was not heard of for so long is dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);
/// The ranks of a generation that a restarted coordinator found have so long.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// Where nobody is heard of at all it may be this process that is cut off. Then a silent generation,
/// which is in nobody's way, has so long.
const ALONE: Duration = Duration::from_mins(1);
/// Others that are heard so much later than a rank show that messages do arrive.
const LATER: Duration = Duration::from_secs(2);
/// A training thread may make no progress for so many of the slowest time steps.
const SLOWEST_STEPS: f64 = 10.0;
/// Reading data at the start and writing at the end may take so many deadlines.
const OUTSIDE: f64 = 10.0;

/// A rank of the generation that trains.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) member: Member,
    /// When it was last heard of.
    pub(crate) heard: Duration,
    /// Since when its silence counts: before, nobody was heard of.
    since: Duration,
    /// Whether it sent a heartbeat in this generation.
    pub(crate) has_beaten: bool,
    /// Since when it asks for a place in it that nobody can give it again.
    pub(crate) asked: Option<Duration>,
    /// Why it left, if it did.
    pub(crate) left: Option<Reason>,
    pub(crate) status: Status,
    /// The seconds at which its training thread last made progress.
    progress: f64,
}

/// The generation that trains, as far as is known.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    pub(crate) generation: Generation,
    /// Others of the same number, found by a restarted coordinator.
    rivals: Vec<Generation>,
    secret: Option<String>,
    pub(crate) seats: Vec<Seat>,
    /// Until then a rank that sent no heartbeat is waited for.
    pub(crate) grace: Duration,
    /// A rank left because all of them stop: the others are not disturbed.
    pub(crate) is_ending: bool,
    /// A batch was trained beyond its start, or a checkpoint was written.
    pub(crate) has_progressed: bool,
}

impl Seat {
    fn silent_since(&self) -> Duration {
        self.heard.max(self.since)
    }
}

impl Live {
    /// A generation that was just put; its ranks asked to join at these times.
    pub(crate) fn begun(generation: Generation, secret: String, asked: &[Duration]) -> Self {
        let mut live = Self::of(generation, Vec::new(), Duration::ZERO);
        live.secret = Some(secret);
        for (seat, &asked) in live.seats.iter_mut().zip(asked) {
            seat.heard = asked;
        }
        live
    }

    /// One that was found in the run folder, perhaps with rivals; waits for its ranks until `grace`.
    pub(crate) fn found(
        mut newest: Vec<Generation>,
        now: Duration,
        grace: Duration,
    ) -> Option<Self> {
        if newest.is_empty() {
            return None;
        }
        let first = newest.remove(0);
        let mut live = Self::of(first, newest, grace);
        live.seats.iter_mut().for_each(|seat| seat.heard = now);
        Some(live)
    }

    fn of(generation: Generation, rivals: Vec<Generation>, grace: Duration) -> Self {
        Self {
            seats: seats(&generation),
            generation,
            rivals,
            secret: None,
            grace,
            is_ending: false,
            has_progressed: false,
        }
    }

    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.generation.generation
    }

    /// The place of a process.
    pub(crate) fn seat_of(&self, process: &str) -> Option<usize> {
        self.seats
            .iter()
            .position(|seat| seat.member.process == process)
    }

    /// What the process in this place has to know; absent where the secret is.
    pub(crate) fn assignment(&self, at: usize) -> Option<Assignment> {
        Some(Assignment {
            generation: self.number(),
            rank: self.seats[at].member.rank,
            world: u32::try_from(self.seats.len()).ok()?,
            members: self.generation.members.clone(),
            start: self.generation.start.clone(),
            secret: self.secret.clone()?,
        })
    }

    /// A sign of life. Returns whether it is of a rank that has not left.
    pub(crate) fn beat(&mut self, process: &str, status: Status, now: Duration) -> bool {
        if self.seat_of(process).is_none() {
            self.turn_to(process, now);
        }
        let Some(at) = self.seat_of(process) else {
            return false;
        };
        let seat = &mut self.seats[at];
        if seat.left.is_some() {
            return false;
        }
        seat.heard = now;
        // One that was overtaken says nothing new.
        if !seat.has_beaten || status.update >= seat.status.update {
            seat.progress = now.as_secs_f64() - real(status.busy_seconds);
            seat.status = status;
        }
        seat.has_beaten = true;
        let start = self.generation.start.as_ref();
        self.has_progressed |= status.batches_done > start.map_or(0, |start| start.batches_done);
        true
    }

    /// Of rivals the one is live whose ranks are heard.
    fn turn_to(&mut self, process: &str, now: Duration) {
        let is_of = |g: &Generation| g.members.iter().any(|m| m.process == process);
        let other = self.rivals.iter().position(is_of);
        if let (Some(other), false) = (other, self.seats.iter().any(|seat| seat.has_beaten)) {
            let other = self.rivals.remove(other);
            self.seats = seats(&other);
            self.seats.iter_mut().for_each(|seat| seat.heard = now);
            self.rivals
                .push(std::mem::replace(&mut self.generation, other));
        }
    }

    /// A message arrives, of whomever: after a time without any, in which this process may have been
    /// cut off, silence counts from now.
    pub(crate) fn excuse(&mut self, now: Duration, last_message: Duration) {
        if now.saturating_sub(last_message) > LATER {
            self.seats.iter_mut().for_each(|seat| seat.since = now);
        }
    }

    /// The places of ranks that have not left.
    pub(crate) fn staying(&self) -> impl Iterator<Item = (usize, &Seat)> {
        self.seats
            .iter()
            .enumerate()
            .filter(|(_, seat)| seat.left.is_none())
    }

    /// Its ranks, with the updates that each has done.
    pub(crate) fn members(&self) -> Vec<(Member, u64)> {
        let member = |seat: &Seat| (seat.member.clone(), seat.status.update);
        self.seats.iter().map(member).collect()
    }

    /// A rank that is lost, and how. `others` is when a process that is no rank was last heard of.
    pub(crate) fn lost(
        &self,
        now: Duration,
        deadline: Duration,
        others: Option<Duration>,
    ) -> Option<(usize, Loss, String)> {
        self.silent(now, others)
            .or_else(|| self.hung(now, deadline))
    }

    fn silent(&self, now: Duration, others: Option<Duration>) -> Option<(usize, Loss, String)> {
        let is_dead = |(at, seat): &(usize, &Seat)| {
            if !seat.has_beaten && now < self.grace {
                return false;
            }
            let peers = self.staying().filter(|(other, _)| other != at);
            let heard = peers.map(|(_, peer)| peer.heard).chain(others).max();
            let messages_arrive = heard.is_some_and(|heard| heard >= seat.silent_since() + LATER);
            let limit = if messages_arrive { SILENCE } else { ALONE };
            now.saturating_sub(seat.silent_since()) > limit
        };
        let dead = self.staying().filter(is_dead);
        let (at, seat) = dead.min_by_key(|(_, seat)| seat.heard)?;
        let place = place(&seat.member);
        let reason = if seat.has_beaten {
            let seconds = now.saturating_sub(seat.heard).as_secs_f64();
            let update = seat.status.update;
            format!("{place} was last heard of {seconds:.1} s ago, after update {update}")
        } else {
            format!("{place} was never heard of")
        };
        Some((at, Loss::Silent, reason))
    }

    fn hung(&self, now: Duration, deadline: Duration) -> Option<(usize, Loss, String)> {
        let slowest = self
            .staying()
            .map(|(_, seat)| real(seat.status.slowest_step_seconds));
        let limit = slowest.fold(0.0, f64::max) * SLOWEST_STEPS;
        let limit = limit.max(deadline.as_secs_f64());
        let late = |seat: &Seat| {
            let limit = match seat.status.phase {
                Phase::Training | Phase::Testing => limit,
                Phase::Starting | Phase::Ending => OUTSIDE * limit,
            };
            // By its own last word: who is not heard of may go on well.
            seat.has_beaten && seat.heard.as_secs_f64() - seat.progress > limit
        };
        let all = || self.staying().filter(|(_, seat)| late(seat));
        let oldest = |a: &(usize, &Seat), b: &(usize, &Seat)| a.1.progress.total_cmp(&b.1.progress);
        // Who waits is at fault only if all do: else it is for one that stands still, though perhaps not yet
        // for too long, or for one that its silence will tell.
        let idle = all().filter(|(_, seat)| !seat.status.waits);
        let all_wait = self
            .staying()
            .all(|(_, seat)| seat.has_beaten && seat.status.waits);
        let any = || all().filter(|_| all_wait).min_by(oldest);
        let (at, seat) = idle.min_by(oldest).or_else(any)?;
        let doubt = if all_wait {
            "all ranks say that they wait for others: "
        } else {
            ""
        };
        let (place, update) = (place(&seat.member), seat.status.update);
        let seconds = now.as_secs_f64() - seat.progress;
        let reason =
            format!("{doubt}{place} made no progress for {seconds:.0} s, after update {update}");
        Some((at, Loss::Hung, reason))
    }
}

fn seats(generation: &Generation) -> Vec<Seat> {
    let seat = |member: &Member| Seat {
        member: member.clone(),
        heard: Duration::ZERO,
        since: Duration::ZERO,
        has_beaten: false,
        asked: None,
        left: None,
        status: Status::default(),
        progress: 0.0,
    };
    generation.members.iter().map(seat).collect()
}

/// A number of seconds that a worker tells: none where it makes no sense.
fn real(seconds: f64) -> f64 {
    if seconds.is_finite() {
        seconds.max(0.0)
    } else {
        0.0
    }
}
