//! How a group ends for a rank: others are lost, leave, or do not come in time; or its caller has
//! enough.

use std::time::{Duration, Instant};

use synfire_shared::ids::Rank;

use super::super::{CollectiveError, rank_of};
use super::frame;
use super::link::FAREWELL;
use super::peer::{Out, Peer};
use super::progress::Progress;

/// What is to be said of a call that took longer than the deadline.
pub(super) struct Verdict {
    pub(super) sequence: u64,
    pub(super) deadline: Duration,
    pub(super) until: Instant,
}

impl Progress {
    /// A rank that has left ends the group with the first call that needs it: what it had finished,
    /// the others finish. One whose connection is closed without a word is missed where more must come from it.
    pub(super) fn notice_the_lost(&mut self) {
        let left = self.peers.iter().flatten().find_map(|peer| {
            let (sequence, error) = peer.farewell.as_ref()?;
            (*sequence <= self.first).then(|| error.clone())
        });
        if let Some(error) = left {
            return self.fail(error);
        }
        let lost = self.peers.iter().enumerate().find_map(|(rank, peer)| {
            let peer = peer.as_ref().filter(|peer| peer.farewell.is_none())?;
            let reason = peer.closed.as_ref()?;
            let missed = self.rounds.front().is_some_and(|round| round.awaits(rank));
            missed.then(|| (rank, reason.clone()))
        });
        if let Some((rank, reason)) = lost {
            self.lose(rank, reason);
        }
    }

    pub(super) fn lose(&mut self, rank: usize, reason: String) {
        let rank = rank_of(rank);
        self.fail(CollectiveError::Lost { rank, reason });
    }

    pub(super) fn expire(&mut self, sequence: u64, deadline: Duration) {
        // Calls end in order, so the oldest is the one that all wait for. None is left if the one
        // that took too long has just ended.
        if sequence < self.first {
            return;
        }
        let Some(round) = self.rounds.front() else {
            return;
        };
        let missing = round.missing();
        if missing.is_empty() {
            // Whoever does not answer may know whom it waits for, and says so at its own deadline.
            let until = Instant::now() + FAREWELL;
            self.verdict.get_or_insert(Verdict {
                sequence,
                deadline,
                until,
            });
        } else {
            self.miss(deadline, missing);
        }
    }

    pub(super) fn miss(&mut self, deadline: Duration, missing: Vec<Rank>) {
        let seconds = deadline.as_secs_f64();
        self.fail(CollectiveError::Deadline { seconds, missing });
    }

    /// What is left to say after a deadline, when nobody knew better.
    pub(super) fn judge(&mut self) {
        // The call may have ended meanwhile.
        let first = self.first;
        self.verdict.take_if(|verdict| verdict.sequence < first);
        let Some(Verdict {
            deadline, until, ..
        }) = self.verdict
        else {
            return;
        };
        if let (true, Some(round)) = (Instant::now() >= until, self.rounds.front()) {
            let mut missing = round.missing();
            if missing.is_empty() {
                missing = round.silent();
            }
            self.miss(deadline, missing);
        }
    }

    /// The end of the group for this rank; the others are told why.
    pub(super) fn fail(&mut self, error: CollectiveError) {
        if self.over.is_some() {
            return;
        }
        self.over = Some(Instant::now());
        self.board.fail(error);
        let failure = self.board.failure().expect("it has just failed");
        let farewell = frame::farewell(rank_of(self.rank), self.first, &failure);
        self.rounds.clear();
        for peer in self.peers.iter_mut().flatten() {
            peer.clear_queue(self.first);
            peer.queue.push_back(Out::Farewell(farewell.clone()));
        }
    }

    /// The caller is gone. What is under way is given up: the others see the end of the connection.
    pub(super) fn close(&mut self) {
        if self.over.is_none() {
            self.over = Some(Instant::now());
            self.rounds.clear();
            for peer in self.peers.iter_mut().flatten() {
                peer.clear_queue(self.first);
            }
        }
    }

    /// Whether the group is over for this rank and the others have what is theirs.
    pub(super) fn may_end(&mut self) -> bool {
        let Some(since) = self.over else {
            return false;
        };
        let late = since.elapsed() >= FAREWELL;
        if late || self.peers.iter().flatten().all(Peer::is_flushed) {
            self.link.flush();
            for peer in self.peers.iter().flatten() {
                // So that they see the end, while what they still send is read and not refused:
                // a refusal could take away what they have not read yet.
                let _ = peer.stream.shutdown(std::net::Shutdown::Write);
            }
        }
        let mut peers = self.peers.iter().flatten();
        late || peers.all(|peer| peer.closed.is_some() && peer.is_flushed())
    }
}
