//! The state of a run, to be shown.

use std::net::SocketAddr;

use serde::Serialize;
use synfire_shared::protocol::{Checkpoint, Member, Start, Status};

use crate::ended::Ended;
use crate::live::{Live, Seat};
use crate::pool::Waiting;
use crate::run::{Run, Stage};

/// The state of a run, to be shown.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct View {
    /// What the run does: `reading`, `gathering`, `forming`, `training`, `ending` or `over`.
    pub stage: &'static str,
    /// Why it is over, if it is.
    pub reason: Option<String>,
    /// The exit status that says how it ended.
    pub status: u8,
    /// The number of ranks wanted.
    pub ranks: u32,
    /// The fewest that train.
    pub min_ranks: u32,
    /// The generation that trains.
    pub generation: Option<u64>,
    /// The checkpoint that it started from.
    pub start: Option<Start>,
    /// Its ranks.
    pub members: Vec<RankView>,
    /// Processes that wait.
    pub waiting: Vec<WaitingView>,
    /// Who or what is waited for, one line each.
    pub missing: Vec<String>,
    /// After so long the run goes on with who is there; absent where all are waited for.
    pub seconds_left: Option<f64>,
    /// The newest checkpoint that was reported here.
    pub checkpoint: Option<CheckpointView>,
    /// Generations that began under this coordinator: one more than the restarts.
    pub generations: u64,
    /// The newest generations that are over, the newest first.
    pub ended: Vec<EndedView>,
}

/// A rank, to be shown.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RankView {
    /// Its process and place.
    pub member: Member,
    /// How far it is; absent where it was not heard of in this generation.
    pub status: Option<Status>,
    /// Seconds since it was last heard of.
    pub silent_seconds: f64,
    /// Whether it left.
    pub has_left: bool,
}

/// A process that waits, to be shown.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct WaitingView {
    /// The host it runs on.
    pub host: String,
    /// Its number there.
    pub pid: u32,
    /// The rank it asks for.
    pub rank: Option<u32>,
    /// Where its metrics are served.
    pub metrics: Option<SocketAddr>,
    /// Since when.
    pub waiting_seconds: f64,
}

/// A checkpoint, to be shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CheckpointView {
    /// The name of its manifest.
    pub manifest: String,
    /// Batches done in the whole run.
    pub batches_done: u64,
    /// The epoch, from 0.
    pub epoch: u32,
}

/// A generation that is over, to be shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EndedView {
    /// Its number.
    pub generation: u64,
    /// What kind of reason.
    pub loss: &'static str,
    /// The reason.
    pub reason: String,
    /// The rank that was not heard of, or made no progress, if that is the reason.
    pub lost: Option<Member>,
}

impl Run {
    /// The state of the run, to be shown.
    pub fn view(&self) -> View {
        let live = self.live();
        let now = self.now();
        let rank = |seat: &Seat| RankView {
            member: seat.member.clone(),
            status: seat.has_beaten.then_some(seat.status),
            silent_seconds: now.saturating_sub(seat.heard).as_secs_f64(),
            has_left: seat.left.is_some(),
        };
        let waiting = |waiting: &Waiting| WaitingView {
            host: waiting.host.clone(),
            pid: waiting.pid,
            rank: waiting.rank,
            metrics: waiting.metrics,
            waiting_seconds: now.saturating_sub(waiting.since).as_secs_f64(),
        };
        let checkpoint = |checkpoint: &Checkpoint| CheckpointView {
            manifest: checkpoint.manifest.clone(),
            batches_done: checkpoint.batches_done,
            epoch: checkpoint.epoch,
        };
        let ended = |ended: &Ended| EndedView {
            generation: ended.generation,
            loss: ended.loss.name(),
            reason: ended.reason.clone(),
            lost: ended.lost.clone(),
        };
        View {
            stage: self.stage_name(),
            reason: self.over().map(str::to_owned),
            status: self.status(),
            ranks: self.policy.ranks,
            min_ranks: self.policy.min_ranks,
            generation: live.map(Live::number),
            start: live.and_then(|live| live.generation.start.clone()),
            members: live.map_or(Vec::new(), |live| live.seats.iter().map(rank).collect()),
            waiting: self.pool.all().map(waiting).collect(),
            missing: self.missing(),
            seconds_left: self.seconds_left(),
            checkpoint: self.checkpoint.as_ref().map(checkpoint),
            generations: self.begun,
            ended: self.ended.iter().map(ended).collect(),
        }
    }

    fn stage_name(&self) -> &'static str {
        match &self.stage {
            Stage::Reading => "reading",
            Stage::Gathering { .. } => "gathering",
            Stage::Forming => "forming",
            Stage::Live(live) if live.is_ending => "ending",
            Stage::Live(_) => "training",
            Stage::Over { .. } => "over",
        }
    }
}
