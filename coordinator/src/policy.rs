//! How many ranks are wanted, and how long is waited for them.

use std::time::Duration;

use synfire_shared::shard_plan::MAX_LANES;

/// The usual [`Policy::max_failures`].
pub const MAX_FAILURES: u32 = 10;

/// How many ranks are wanted, and how long is waited for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// The number of ranks wanted.
    pub ranks: u32,
    /// The fewest that train.
    pub min_ranks: u32,
    /// How long more than the fewest are waited for.
    pub wait: Duration,
    /// How long a training thread may make no progress, if ten of the slowest time steps are not
    /// longer; ten times as long where it starts or ends.
    pub deadline: Duration,
    /// So many generations in a row that fail before a batch is trained end the run.
    pub max_failures: u32,
    /// The version of the program, which workers have too.
    pub version: String,
    /// Whether the ranks of a generation that is in the run folder already may still train, and are
    /// waited for: not where the coordinator and its ranks start and end together.
    pub takes_back: bool,
    /// The run folder, if workers have to name the same.
    pub folder: Option<String>,
}

/// What contradicts itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A number of ranks that no run can have.
    #[error("{ranks} ranks: a run has 1 to {MAX_LANES}")]
    Ranks {
        /// The number.
        ranks: u32,
    },
    /// A least number that is none, or more than all.
    #[error("at least {min_ranks} of {ranks} ranks: give 1 to {ranks}")]
    MinRanks {
        /// The least number.
        min_ranks: u32,
        /// All.
        ranks: u32,
    },
}

impl Policy {
    /// So many ranks, all of them, with the usual waits.
    ///
    /// # Errors
    ///
    /// [`PolicyError::Ranks`].
    pub fn new(ranks: u32, version: &str) -> Result<Self, PolicyError> {
        let policy = Self {
            ranks,
            min_ranks: ranks,
            wait: Duration::from_mins(1),
            deadline: Duration::from_mins(1),
            max_failures: MAX_FAILURES,
            version: version.to_owned(),
            takes_back: true,
            folder: None,
        };
        policy.checked()
    }

    /// The policy, if a run can have it.
    ///
    /// # Errors
    ///
    /// [`PolicyError`].
    pub fn checked(self) -> Result<Self, PolicyError> {
        let (ranks, min_ranks) = (self.ranks, self.min_ranks);
        if !(1..=MAX_LANES).contains(&ranks) {
            return Err(PolicyError::Ranks { ranks });
        }
        if !(1..=ranks).contains(&min_ranks) {
            return Err(PolicyError::MinRanks { min_ranks, ranks });
        }
        Ok(self)
    }
}
