//! What happens to a run, and what is to be done about it.

use synfire_shared::generation::{Generation, GenerationName, Survey};
use synfire_shared::protocol::{
    Checkpoint, Directive, Done, Heartbeat, JoinRequest, JoinResponse, Leave, Order, Refusal,
    Refused,
};

/// Which message an answer belongs to; drawn by who reads the messages.
pub type ReplyId = u64;

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Time passed: comes four times a second, so that silence is noticed.
    Tick,
    /// A process wants to be a rank.
    Join(ReplyId, Box<JoinRequest>),
    /// A sign of life.
    Heartbeat(ReplyId, Heartbeat),
    /// Rank 0 wrote a checkpoint.
    Checkpoint(ReplyId, Checkpoint),
    /// A member goes.
    Leave(ReplyId, Leave),
    /// An operator wants something.
    Order(ReplyId, Order),
    /// What became of an action on the run folder.
    Stored(Stored),
}

/// What became of an action on the run folder. One is under way at a time.
#[derive(Clone, PartialEq, Debug)]
pub enum Stored {
    /// Of [`Action::Survey`].
    Surveyed {
        /// What is there.
        survey: Box<Survey>,
        /// Random bits.
        nonce: u64,
        /// Random text, which members of a generation may come to know each other by.
        secret: String,
    },
    /// Of [`Action::PutGeneration`].
    Put,
    /// Of [`Action::WithdrawGeneration`].
    Withdrawn,
    /// Of any: it may have been done nevertheless, or be done later.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Something to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Answer a message.
    Reply(ReplyId, Reply),
    /// See what the run folder holds ([`synfire_shared::generation::Generations::survey`]).
    Survey,
    /// Put this object ([`synfire_shared::generation::Generations::put`]).
    PutGeneration(Box<Generation>),
    /// Delete this object ([`synfire_shared::generation::Generations::withdraw`]).
    WithdrawGeneration(GenerationName),
    /// Tell the operator.
    Log(Level, String),
    /// Count.
    Count(Counter),
}

/// The answer to a message.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// To a join.
    Join(JoinResponse),
    /// To a heartbeat.
    Directive(Directive),
    /// To a checkpoint, a leave and an order.
    Done(Done),
    /// To any: 400 where it is malformed, else 409.
    Refused(Refused),
}

/// How loud a line of the log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// As expected.
    Info,
    /// Somebody should know.
    Warn,
}

/// What metrics count.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Counter {
    /// A process that asked to join for the first time.
    Join,
    /// A message that was refused.
    Refused(Refusal),
    /// A generation that began.
    Generation,
    /// A generation that ended before the run did.
    Lost(Loss),
    /// A sign of life of a member.
    Heartbeat,
    /// A message of a process that is no member now: late, or of a stranger.
    Stale,
    /// A checkpoint that was reported.
    Checkpoint,
    /// An allocation in which another coordinator was met.
    Conflict,
}

/// Why a generation ended before the run did.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Loss {
    /// A rank was not heard of.
    Silent,
    /// A rank was heard of, but its training thread made no progress.
    Hung,
    /// A rank gave up, or another one said so.
    Failed,
    /// A rank was stopped by a signal.
    Stopped,
    /// The checkpoint to start from is damaged.
    DamagedStart,
    /// Another coordinator began a later generation.
    TakenOver,
}

impl Loss {
    /// All of them, for metrics.
    pub const ALL: [Self; 6] = [
        Self::Silent,
        Self::Hung,
        Self::Failed,
        Self::Stopped,
        Self::DamagedStart,
        Self::TakenOver,
    ];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Hung => "hung",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::DamagedStart => "damaged_start",
            Self::TakenOver => "taken_over",
        }
    }
}
