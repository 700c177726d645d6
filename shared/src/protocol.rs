//! What workers and the coordinator tell each other: JSON over HTTP, all under `/v1`.
//!
//! Unknown fields are ignored, so a later version may add some. Whoever reads a message calls its
//! `check` first: after it texts and lists have a length that can be kept and shown.
//!
//! # Layout
//!
//! - this file: the messages, by the way they go; `check`: what is refused of them.

mod check;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use check::check_members;

use crate::checkpoint::Digest;

/// The version of the messages; who speaks another one is refused.
pub const PROTOCOL: u32 = 1;
/// A longer body of a request is refused.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// A longer body of an answer is refused.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Hexadecimal digits of [`JoinRequest::process`]: 128 random bits.
pub const PROCESS_DIGITS: usize = 32;
/// The most bytes of a name: of a host, a version, a phase.
pub const MAX_NAME_BYTES: usize = 255;
/// The most bytes of a text: a reason, a message, a URL, the value of a setting.
pub const MAX_TEXT_BYTES: usize = 4096;
/// The most settings of a run.
pub const MAX_SETTINGS: usize = 1024;
/// The most lines of [`JoinResponse::Wait`].
pub const MAX_LINES: usize = 256;

/// Where each message goes.
pub mod path {
    /// [`super::JoinRequest`] to [`super::JoinResponse`].
    pub const JOIN: &str = "/v1/join";
    /// [`super::Heartbeat`] to [`super::Directive`].
    pub const HEARTBEAT: &str = "/v1/heartbeat";
    /// [`super::Checkpoint`] to [`super::Done`].
    pub const CHECKPOINT: &str = "/v1/checkpoint";
    /// [`super::Leave`] to [`super::Done`].
    pub const LEAVE: &str = "/v1/leave";
    /// [`super::Order`], from an operator, to [`super::Done`].
    pub const DIRECTIVE: &str = "/v1/directive";
    /// The state of the run, as JSON.
    pub const STATUS: &str = "/v1/status";
    /// The workers' metrics, for Prometheus's service discovery over HTTP.
    pub const TARGETS: &str = "/v1/targets";
    /// The coordinator's own metrics.
    pub const METRICS: &str = "/metrics";
}

/// A message that is too long, or contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {reason}")]
pub struct Malformed {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// What has to be the same on all ranks of a run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The digest of `settings`.
    pub configuration: Digest,
    /// What the numbers of the run depend on, by key.
    pub settings: BTreeMap<String, String>,
    /// The digest of the training set.
    pub data: Digest,
    /// The digest of the shard plan.
    pub plan: Digest,
    /// L, the lanes of the plan: the most ranks that can share a batch.
    pub lanes: u32,
    /// B, the samples of a global batch.
    pub batch: u32,
    /// The run folder, if there is one.
    pub folder: Option<String>,
}

/// A process wants to be a rank. Asked again every half second while the answer is to wait.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The version of the program.
    pub version: String,
    /// 128 random bits as hexadecimal digits, drawn once by each process.
    pub process: String,
    /// The host it runs on.
    pub host: String,
    /// Its number there.
    pub pid: u32,
    /// The rank that the environment gives it.
    pub rank: Option<u32>,
    /// The number of ranks that the environment tells of.
    pub world: Option<u32>,
    /// What it is going to train.
    pub identity: Identity,
    /// Where its collective listens.
    pub collective: Option<SocketAddr>,
    /// Where its metrics are served.
    pub metrics: Option<SocketAddr>,
    /// The newest generation that this process was a member of and has left; 0 of none. So a request
    /// that comes late is not taken for one of a member that gave up.
    #[serde(default)]
    pub left: u64,
}

/// The answer to a [`JoinRequest`] that is not refused.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum JoinResponse {
    /// Ask again in half a second.
    Wait {
        /// Who or what is waited for, one line each.
        missing: Vec<String>,
        /// After so many seconds the run goes on with who is there, if those are enough; absent
        /// where all are waited for.
        seconds_left: Option<f64>,
        /// Whether a generation trains meanwhile. Then nobody is missing, and the wait is for as long as
        /// it trains.
        #[serde(default)]
        trains: bool,
    },
    /// Train, as this rank.
    Start(Assignment),
    /// There is nothing more to do.
    Over {
        /// Why: the run finished, or was stopped, or cannot go on.
        reason: String,
        /// The exit status that says so: 0, or 128 and the signal, or 1.
        #[serde(default)]
        status: u8,
    },
}

/// The part of one process in a generation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The number of the generation.
    pub generation: u64,
    /// The rank of this process.
    pub rank: u32,
    /// The number of ranks.
    pub world: u32,
    /// All of them, by rank.
    pub members: Vec<Member>,
    /// The checkpoint to start from; absent at the beginning of a run.
    pub start: Option<Start>,
    /// What the members know each other by.
    pub secret: String,
}

impl fmt::Debug for Assignment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Assignment");
        shown.field("generation", &self.generation);
        shown.field("rank", &self.rank).field("world", &self.world);
        shown.field("members", &self.members);
        shown.field("start", &self.start).finish_non_exhaustive()
    }
}

/// A rank of a generation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its rank.
    pub rank: u32,
    /// Its process, see [`JoinRequest::process`].
    pub process: String,
    /// The host it runs on.
    pub host: String,
    /// Its number there.
    pub pid: u32,
    /// Where its collective listens.
    pub collective: Option<SocketAddr>,
    /// Where its metrics are served.
    pub metrics: Option<SocketAddr>,
}

/// The checkpoint that a generation starts from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Start {
    /// The name of its manifest in the folder of checkpoints.
    pub manifest: String,
    /// Batches done in the whole run.
    pub batches_done: u64,
}

/// Why a process may not join: the body of status 409.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// What kind of reason.
    pub code: Refusal,
    /// The reason, and what to do.
    pub reason: String,
}

/// The kinds of reasons for which a message is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It speaks another version of the protocol.
    Protocol,
    /// It is another version of the program.
    Version,
    /// Other settings.
    Configuration,
    /// Another training set.
    Data,
    /// Another order of samples.
    Plan,
    /// A live process has this rank.
    RankTaken,
    /// More ranks than lanes.
    WorldTooLarge,
    /// It expects another number of ranks.
    World,
    /// Another run folder.
    Folder,
    /// What it says is of a generation that is over.
    Generation,
    /// A message that is too long, or contradicts itself.
    Malformed,
    /// A code of a later version.
    #[serde(other)]
    Other,
}

impl Refusal {
    /// All codes, for metrics.
    pub const ALL: [Self; 12] = [
        Self::Protocol,
        Self::Version,
        Self::Configuration,
        Self::Data,
        Self::Plan,
        Self::RankTaken,
        Self::WorldTooLarge,
        Self::World,
        Self::Folder,
        Self::Generation,
        Self::Malformed,
        Self::Other,
    ];

    /// The code as it travels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Version => "version",
            Self::Configuration => "configuration",
            Self::Data => "data",
            Self::Plan => "plan",
            Self::RankTaken => "rank_taken",
            Self::WorldTooLarge => "world_too_large",
            Self::World => "world",
            Self::Folder => "folder",
            Self::Generation => "generation",
            Self::Malformed => "malformed",
            Self::Other => "other",
        }
    }
}

/// A sign of life, sent every second from a thread of its own.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The process.
    pub process: String,
    /// The generation it is a member of.
    pub generation: u64,
    /// What it does.
    pub status: Status,
}

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It reads data and weights, and meets the others.
    #[default]
    Starting,
    /// It trains.
    Training,
    /// It evaluates the test set.
    Testing,
    /// It writes the last checkpoint and the report, or waits for that.
    Ending,
}

impl Phase {
    /// The phase as it travels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Training => "training",
            Self::Testing => "testing",
            Self::Ending => "ending",
        }
    }
}

/// How far a worker is. A number that is not finite travels as `null`.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub phase: Phase,
    /// The epoch, from 0.
    pub epoch: u32,
    /// Batches done in it.
    pub batch: u64,
    /// Batches done in the whole run.
    pub batches_done: u64,
    /// Batches of the whole run.
    pub batches_in_all: u64,
    /// Updates done in the whole run.
    pub update: u64,
    /// Images of all ranks per second of training.
    #[serde(with = "real")]
    pub images_per_second: f64,
    /// The training loss of the epoch so far.
    #[serde(with = "real")]
    pub loss: f64,
    /// Seconds of the slowest time step so far.
    #[serde(with = "real")]
    pub slowest_step_seconds: f64,
    /// Seconds since the training thread last made progress.
    #[serde(with = "real")]
    pub busy_seconds: f64,
    /// Whether it waits for other ranks: then it is not the one that stands still.
    #[serde(default)]
    pub waits: bool,
}

/// JSON has no word for NaN, which a loss that diverged is.
mod real {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(*value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
    }
}

/// The answer to a [`Heartbeat`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "directive", rename_all = "snake_case")]
pub enum Directive {
    /// Go on.
    Continue,
    /// Write a checkpoint after this batch. Said to rank 0 until it reports one, and acted upon once.
    Save,
    /// Stop after this batch, all ranks after the same one, with a checkpoint.
    Stop {
        /// As if this signal had come: 2 or 15.
        signal: i32,
    },
    /// This generation is over: stop at once, write nothing, join again.
    Abandon {
        /// Why, with the culprit named.
        reason: String,
    },
}

/// Rank 0 wrote a checkpoint. Status 409 where its generation is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The process.
    pub process: String,
    /// The generation it is a member of.
    pub generation: u64,
    /// The name of the manifest.
    pub manifest: String,
    /// Batches done in the whole run.
    pub batches_done: u64,
    /// The epoch, from 0.
    pub epoch: u32,
}

/// A member goes. It then ends, or joins again with [`JoinRequest::left`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leave {
    /// The process.
    pub process: String,
    /// The generation it is a member of.
    pub generation: u64,
    /// Why.
    pub reason: Reason,
}

/// Why a member goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// The run is finished: said only once the last checkpoint is written.
    Finished,
    /// All ranks stopped after the same batch: said only once the checkpoint is written.
    Stopped {
        /// The signal.
        signal: i32,
    },
    /// It cannot go on.
    Failed {
        /// What went wrong.
        message: String,
        /// The rank that was lost, where that is why.
        lost: Option<u32>,
    },
    /// The checkpoint that its generation starts from is damaged.
    DamagedStart {
        /// The name of its manifest.
        manifest: String,
        /// What is wrong with it.
        message: String,
    },
}

/// What an operator wants of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// A checkpoint now.
    Save,
    /// The end of the run, with a checkpoint.
    Stop {
        /// As if this signal had come: 2 or 15.
        signal: i32,
    },
}

/// The answer to what needs none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Done {}

/// A text of at most [`MAX_TEXT_BYTES`], the start of a longer one.
pub fn shortened(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let kept = text.floor_char_boundary(MAX_TEXT_BYTES - 3);
    format!("{}...", &text[..kept])
}

#[cfg(test)]
mod tests;
