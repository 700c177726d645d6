//! Questions between the ranks' threads: how many calls has your caller begun? By them it is known
//! at a deadline for whom all wait, and a process that has stopped is one that does not answer.

use std::time::{Duration, Instant};

use ::mpi::Tag;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, Destination, Source};

const QUESTION: Tag = 1;
const ANSWER: Tag = 2;

/// How long an answer may take: a thread that has nothing to do looks 20 times a second.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Desk {
    /// Not that of the collective calls, so that nothing can be mixed up.
    world: SimpleCommunicator,
    inquiry: Option<Inquiry>,
}

struct Inquiry {
    since: Instant,
    /// By rank, how many calls it has begun; this rank counts as having begun all.
    begun: Vec<Option<u64>>,
}

impl Desk {
    pub(super) fn new(world: SimpleCommunicator) -> Self {
        let inquiry = None;
        Self { world, inquiry }
    }

    /// Asks all others.
    pub(super) fn inquire(&mut self) {
        let world = self.world.size();
        let mut begun = vec![None; usize::try_from(world).unwrap_or_default()];
        for rank in 0..world {
            if rank == self.world.rank() {
                begun[usize::try_from(rank).unwrap_or_default()] = Some(u64::MAX);
            } else {
                // Eight bytes are sent without waiting for the receiver, in every MPI there is.
                let other = self.world.process_at_rank(rank);
                other.send_with_tag(&0_u64, QUESTION);
            }
        }
        self.inquiry = Some(Inquiry {
            since: Instant::now(),
            begun,
        });
    }

    /// Answers questions and takes answers in. At the end of an inquiry, those who have not begun call
    /// `sequence`, or say nothing.
    pub(super) fn attend(&mut self, begun: u64, sequence: u64) -> Option<Vec<usize>> {
        while let Some(rank) = self.next(QUESTION) {
            let other = self.world.process_at_rank(rank);
            let (_, _) = other.receive_with_tag::<u64>(QUESTION);
            other.send_with_tag(&begun, ANSWER);
        }
        while let Some(rank) = self.next(ANSWER) {
            let other = self.world.process_at_rank(rank);
            let (begun, _) = other.receive_with_tag::<u64>(ANSWER);
            let rank = usize::try_from(rank).unwrap_or_default();
            if let Some(inquiry) = &mut self.inquiry {
                inquiry.begun[rank] = Some(begun);
            }
        }
        let inquiry = self.inquiry.as_ref()?;
        let complete = inquiry.begun.iter().all(Option::is_some);
        if !complete && inquiry.since.elapsed() < PATIENCE {
            return None;
        }
        let inquiry = self.inquiry.take()?;
        let absent = |rank: &usize| inquiry.begun[*rank].is_none_or(|begun| begun <= sequence);
        Some((0..inquiry.begun.len()).filter(absent).collect())
    }

    /// Who has sent such a message.
    fn next(&self, tag: Tag) -> Option<::mpi::Rank> {
        let status = self.world.any_process().immediate_probe_with_tag(tag)?;
        Some(status.source_rank())
    }
}
