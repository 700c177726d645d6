//! The ways in which a group fails.

use std::io;
use std::sync::Arc;

use synfire_shared::ids::Rank;

/// Why a group of ranks is over, or cannot do what was asked. Cheap to copy: a group that is over
/// gives the same error to every later call.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectiveError {
    /// A rank's process ended, or its connection did.
    #[error("{rank} is lost: {reason}")]
    Lost {
        /// Who.
        rank: Rank,
        /// How that was noticed.
        reason: String,
    },
    /// Ranks did not come in time.
    #[error("waited {seconds:.1} s for {}", join(missing))]
    Deadline {
        /// How long was waited.
        seconds: f64,
        /// For whom; nobody, if that cannot be known.
        missing: Vec<Rank>,
    },
    /// The ranks gave different numbers of values.
    #[error(
        "the ranks gave different numbers of values: {}: do they run the same configuration?",
        by_rank(lengths)
    )]
    Unequal {
        /// How many, by rank.
        lengths: Vec<u64>,
    },
    /// The ranks made different calls.
    #[error(
        "{rank} asked for {theirs} while this rank asked for {ours}: do they run the same version?"
    )]
    OutOfStep {
        /// Who differs from this rank.
        rank: Rank,
        /// Its call.
        theirs: String,
        /// This rank's call.
        ours: String,
    },
    /// A rank gave up and said why.
    #[error("{rank} gave up: {reason}")]
    Left {
        /// Who.
        rank: Rank,
        /// What it said.
        reason: String,
    },
    /// Another thread of this process ended the wait.
    #[error("interrupted: {reason}")]
    Interrupted {
        /// What it said.
        reason: String,
    },
    /// More than a call takes.
    #[error("{length} {unit} in one call, and at most {limit} are possible")]
    TooLong {
        /// How many.
        length: u64,
        /// How many may be.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// There is no such group, or it has no such rank.
    #[error("no group of ranks: {reason}")]
    Group {
        /// What is wrong.
        reason: String,
    },
    /// The GPUs, or what connects them, failed.
    #[error("averaging between GPUs failed: {reason}")]
    Device {
        /// How.
        reason: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// What came of it.
        #[source]
        source: Arc<io::Error>,
    },
}

impl CollectiveError {
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source: Arc::new(source),
        }
    }
}

/// "rank 1, rank 3"; of nobody, "the other ranks".
fn join(ranks: &[Rank]) -> String {
    if ranks.is_empty() {
        return "the other ranks".into();
    }
    let names: Vec<String> = ranks.iter().map(Rank::to_string).collect();
    names.join(", ")
}

fn by_rank(lengths: &[u64]) -> String {
    let texts: Vec<String> = lengths
        .iter()
        .enumerate()
        .map(|(rank, length)| format!("{length} on rank {rank}"))
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_ranks_and_numbers() {
        let missing = vec![Rank(1), Rank(3)];
        let error = CollectiveError::Deadline {
            seconds: 2.0,
            missing,
        };
        assert_eq!(error.to_string(), "waited 2.0 s for rank 1, rank 3");
        let error = CollectiveError::Unequal {
            lengths: vec![5, 6],
        };
        assert!(error.to_string().contains("5 on rank 0, 6 on rank 1"));
    }
}
