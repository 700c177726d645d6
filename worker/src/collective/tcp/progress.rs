//! The thread of a rank that moves its numbers: a loop over connections that never block.
//!
//! A rank that begins a call tells all others (`Start`). To who has begun it as well it sends what
//! that rank sums (`Part`), segment by segment; who has all parts of a segment sums them in rank
//! order and sends the sum to all (`Result`). So nothing ever arrives that has no place yet, and a
//! rank that has not begun is known to all by name.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::super::pending::{Board, Call};
use super::super::{CollectiveError, rank_of};
use super::ending::Verdict;
use super::frame::{self, HEADER, Header, Kind};
use super::link::{Command, FAREWELL, Link};
use super::peer::{Out, Peer, Start};
use super::round::{Payload, Round, Scratch};

/// All that the thread has.
pub(super) struct Progress {
    pub(super) rank: usize,
    pub(super) poll: Poll,
    /// By rank.
    pub(super) peers: Vec<Option<Peer>>,
    pub(super) board: Arc<Board>,
    pub(super) link: Arc<Link>,
    /// The calls from `first` on that this rank has begun.
    pub(super) rounds: VecDeque<Round>,
    pub(super) first: u64,
    pub(super) scratch: Scratch,
    /// A deadline is over, but not who is missing known: until then others may say.
    pub(super) verdict: Option<Verdict>,
    /// When the group was over for this rank, by a failure or because its caller has gone.
    pub(super) over: Option<Instant>,
}

impl Progress {
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(64);
        loop {
            let mut busy = self.obey();
            for other in 0..self.peers.len() {
                busy |= self.read(other);
                busy |= self.write(other);
            }
            self.finish_rounds();
            self.notice_the_lost();
            self.judge();
            if self.may_end() {
                return;
            }
            let timeout = match (busy, self.over) {
                (true, _) => Some(Duration::ZERO),
                (false, Some(since)) => Some(FAREWELL.saturating_sub(since.elapsed())),
                (false, None) => {
                    let verdict = self.verdict.as_ref();
                    verdict.map(|verdict| verdict.until.saturating_duration_since(Instant::now()))
                }
            };
            // Interrupted by a signal it has no events, which is no harm.
            let _ = self.poll.poll(&mut events, timeout);
            for event in &events {
                if let Some(Some(peer)) = self.peers.get_mut(event.token().0) {
                    peer.readable |= event.is_readable() || event.is_read_closed();
                    peer.writable |= event.is_writable() || event.is_write_closed();
                }
            }
        }
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    /// Does what the caller's side has asked; whether it has.
    fn obey(&mut self) -> bool {
        let mut any = false;
        loop {
            let command = self.link.commands().pop_front();
            let Some(command) = command else { break };
            any = true;
            match command {
                Command::Call(call) => self.begin(call),
                Command::Expired { sequence, deadline } => self.expire(sequence, deadline),
                Command::Fail(error) => self.fail(error),
                Command::Close => self.close(),
            }
        }
        if self.over.is_none()
            && let Some(failure) = self.board.failure()
        {
            self.fail(failure);
        }
        any
    }

    fn begin(&mut self, call: Call) {
        if self.over.is_some() {
            return;
        }
        let sequence = self.first + self.rounds.len() as u64;
        let round = Round::new(sequence, self.rank, self.world(), call, &mut self.scratch);
        let start = round.start();
        self.rounds.push_back(round);
        for peer in self.peers.iter_mut().flatten() {
            peer.queue.push_back(Out::Start { sequence, start });
        }
        for other in 0..self.world() {
            self.meet(other, self.rounds.len() - 1);
        }
        self.compare(self.rounds.len() - 1);
    }

    /// Sends a rank its share of a round that both have begun.
    fn meet(&mut self, other: usize, index: usize) {
        let (Some(peer), Some(round)) = (&mut self.peers[other], self.rounds.get_mut(index)) else {
            return;
        };
        let Some(&theirs) = peer.starts.get(index) else {
            return;
        };
        let ours = round.start();
        if theirs.what != ours.what || (theirs.length != ours.length && !ours.what.is_gather()) {
            return;
        }
        let sequence = self.first + index as u64;
        let (parts, results) = round.outgoing(other, theirs);
        if ours.what.is_gather() {
            let part = |index| Out::Part { sequence, index };
            peer.queue.extend(parts.map(part));
        } else {
            peer.parts.extend(parts.map(|index| (sequence, index)));
        }
        let result = |index| Out::Result { sequence, index };
        peer.queue.extend(results.map(result));
    }

    /// Whether all want the same of a round, once all have begun it.
    fn compare(&mut self, index: usize) {
        let Some(round) = self.rounds.get(index) else {
            return;
        };
        let ours = round.start();
        let start = |peer: &Option<Peer>| match peer {
            Some(peer) => peer.starts.get(index).copied(),
            None => Some(ours),
        };
        let starts: Option<Vec<Start>> = self.peers.iter().map(start).collect();
        let Some(starts) = starts else { return };
        if let Some(other) = starts.iter().position(|start| start.what != ours.what) {
            return self.fail(CollectiveError::OutOfStep {
                rank: rank_of(other),
                theirs: starts[other].what.name(),
                ours: ours.what.name(),
            });
        }
        let differs = starts.iter().any(|start| start.length != ours.length);
        if differs && !ours.what.is_gather() {
            let lengths = starts.iter().map(|start| start.length).collect();
            self.fail(CollectiveError::Unequal { lengths });
        }
    }

    /// Reads a few frames from a rank; whether there were any.
    fn read(&mut self, other: usize) -> bool {
        /// Then others have their turn.
        const FRAMES: usize = 4;
        let mut any = false;
        for _ in 0..FRAMES {
            let Some(peer) = &mut self.peers[other] else {
                break;
            };
            if self.over.is_some() {
                peer.discard();
                break;
            }
            let header = match peer.next_frame() {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(reason) => {
                    self.lose(other, reason);
                    break;
                }
            };
            any = true;
            let input = peer.take_input();
            let payload = &input[HEADER..HEADER + header.payload];
            let taken = self.take(other, &header, payload);
            if let Some(peer) = &mut self.peers[other] {
                peer.consume(input, &header);
            }
            if let Err(reason) = taken {
                self.lose(other, reason);
            }
        }
        any
    }

    /// Takes one frame in.
    fn take(&mut self, from: usize, header: &Header, payload: &[u8]) -> Result<(), String> {
        let sequence = header.sequence;
        let index = sequence.checked_sub(self.first);
        let index = index.and_then(|index| usize::try_from(index).ok());
        match header.kind {
            Kind::Farewell => {
                let error = frame::read_farewell(rank_of(from), payload);
                if let Some(peer) = &mut self.peers[from] {
                    peer.farewell.get_or_insert((sequence, error));
                }
            }
            Kind::Start => {
                let Some(peer) = &mut self.peers[from] else {
                    unreachable!("a frame came from it");
                };
                if index != Some(peer.starts.len()) {
                    return Err(format!("it began call {sequence} out of order"));
                }
                let index = peer.starts.len();
                peer.begin(Start {
                    what: header.what,
                    length: header.index,
                })?;
                self.meet(from, index);
                self.compare(index);
            }
            Kind::Part => {
                let round = find(&mut self.rounds, index, from)?;
                let summed = round.part(from, header.index, payload, &mut self.scratch)?;
                if let Some(index) = summed {
                    for peer in self.peers.iter_mut().flatten() {
                        peer.queue.push_back(Out::Result { sequence, index });
                    }
                }
            }
            Kind::Result => {
                let round = find(&mut self.rounds, index, from)?;
                let answers = round.result(from, header.index, payload)?;
                if let (true, Some(peer)) = (answers, &mut self.peers[from]) {
                    peer.unanswered = peer.unanswered.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// Writes to a rank what is there for it; whether any went out.
    fn write(&mut self, other: usize) -> bool {
        let Some(peer) = &mut self.peers[other] else {
            return false;
        };
        while peer.has_room()
            && let Some(out) = peer.next_out()
        {
            let (kind, sequence, index) = match out {
                Out::Start { sequence, start } => {
                    let header = Header {
                        kind: Kind::Start,
                        what: start.what,
                        payload: 0,
                        sequence,
                        index: start.length,
                    };
                    header.write(peer.output());
                    continue;
                }
                Out::Farewell(frame) => {
                    peer.output().extend_from_slice(&frame);
                    continue;
                }
                Out::Part { sequence, index } => (Kind::Part, sequence, index),
                Out::Result { sequence, index } => (Kind::Result, sequence, index),
            };
            let index_of_round = usize::try_from(sequence - self.first);
            let round = &mut self.rounds[index_of_round.expect("rounds are in memory")];
            round.sent(other);
            write_segment(peer.output(), round, kind, sequence, index);
        }
        let progress = peer.write();
        if peer.is_deaf() {
            peer.queue.clear();
            peer.parts.clear();
            self.rounds
                .iter_mut()
                .for_each(|round| round.give_up(other));
        }
        progress
    }

    fn finish_rounds(&mut self) {
        while self.over.is_none() && self.rounds.front().is_some_and(Round::is_done) {
            let round = self.rounds.pop_front().expect("it was just looked at");
            let outcome = round.outcome(&mut self.scratch);
            self.board.finish(self.first, outcome);
            self.first += 1;
            for peer in self.peers.iter_mut().flatten() {
                peer.starts.pop_front();
            }
        }
    }
}

/// The round that a frame is for.
fn find(
    rounds: &mut VecDeque<Round>,
    index: Option<usize>,
    from: usize,
) -> Result<&mut Round, String> {
    let round = index.and_then(|index| rounds.get_mut(index));
    let round = round.filter(|round| round.has_begun(from));
    round.ok_or_else(|| "it sent numbers of a call that is not under way".into())
}

fn write_segment(out: &mut Vec<u8>, round: &Round, kind: Kind, sequence: u64, index: usize) {
    let payload = round.payload(index);
    let header = Header {
        kind,
        what: frame::What::default(),
        payload: match payload {
            Payload::Values(values, wire) => frame::wire_bytes(values.len(), wire),
            Payload::Bytes(bytes) => bytes.len(),
        },
        sequence,
        index: index as u64,
    };
    header.write(out);
    match payload {
        Payload::Values(values, wire) => frame::put_values(out, values, wire),
        Payload::Bytes(bytes) => out.extend_from_slice(bytes),
    }
}
