//! One call under way: which segments are whose, and what is still to come.

use std::ops::Range;

use synfire_shared::ids::Rank;

use super::super::mean;
use super::super::pending::{Call, Outcome};
use super::super::{Wire, rank_of};
use super::frame::{self, MAX_PAYLOAD, SEGMENT, What};
use super::lane::Lane;
use super::peer::Start;

/// A call of this rank that not all ranks have finished.
pub(super) struct Round {
    /// How far the ownership of segments has gone round.
    turn: usize,
    rank: usize,
    world: usize,
    call: Call,
    books: Books,
    /// The parts that wait for others, by rank and place among this rank's segments.
    parts: Vec<f32>,
    /// By rank, what it gathered.
    gathered: Vec<Vec<u8>>,
}

/// What has come and gone of a call.
#[derive(Default)]
struct Books {
    /// By rank, the frames that are still to come from it.
    awaited: Vec<Awaited>,
    /// By rank, whether it has begun and been sent what is its.
    begun: Vec<bool>,
    /// By rank, the frames to it that are not yet in its output.
    unsent: Vec<usize>,
    /// How many parts of each segment that this rank sums have arrived.
    arrived: Vec<usize>,
}

#[derive(Clone, Default)]
struct Awaited {
    parts: Lane,
    results: Lane,
    /// Of a gather: how many bytes the parts still have.
    bytes: usize,
}

impl Awaited {
    fn new(parts: Lane, results: Lane) -> Self {
        let bytes = 0;
        Self {
            parts,
            results,
            bytes,
        }
    }
}

/// Buffers to use again.
#[derive(Default)]
pub(super) struct Scratch {
    books: Vec<Books>,
    awaited: Vec<Awaited>,
    parts: Vec<Vec<f32>>,
    total: Vec<f32>,
    last: Vec<f32>,
}

impl Round {
    pub(super) fn new(
        sequence: u64,
        rank: usize,
        world: usize,
        call: Call,
        scratch: &mut Scratch,
    ) -> Self {
        let turn = usize::try_from(sequence % world as u64).expect("below the world");
        let mut round = Self {
            turn,
            rank,
            world,
            call,
            books: scratch.books.pop().unwrap_or_default(),
            parts: Vec::new(),
            gathered: Vec::new(),
        };
        let ours = round.lane(rank);
        let awaited = |other| match round.call {
            _ if other == rank => Awaited::default(),
            Call::Mean { .. } => Awaited::new(ours.clone(), round.lane(other)),
            Call::Broadcast { .. } => Awaited::new(Lane::default(), round.lane(other)),
            // Known when it has begun.
            Call::Gather { .. } => Awaited::default(),
        };
        let mut all = std::mem::take(&mut scratch.awaited);
        all.extend((0..world).map(awaited));
        std::mem::swap(&mut round.books.awaited, &mut all);
        all.clear();
        scratch.awaited = all;
        refill(&mut round.books.begun, world, false);
        refill(&mut round.books.unsent, world, 0);
        let summed = match &round.call {
            Call::Mean { .. } => ours.count(),
            Call::Broadcast { .. } => 0,
            Call::Gather { .. } => {
                round.gathered = vec![Vec::new(); world];
                0
            }
        };
        refill(&mut round.books.arrived, summed, 0);
        round
    }

    pub(super) fn has_begun(&self, rank: usize) -> bool {
        self.books.begun[rank]
    }

    /// One more frame to that rank is in its output.
    pub(super) fn sent(&mut self, rank: usize) {
        self.books.unsent[rank] -= 1;
    }

    /// That rank takes nothing more.
    pub(super) fn give_up(&mut self, rank: usize) {
        self.books.unsent[rank] = 0;
    }

    pub(super) fn start(&self) -> Start {
        Start {
            what: What::of(&self.call),
            length: self.call.length() as u64,
        }
    }

    /// The segments that a rank sums, or has.
    fn lane(&self, owner: usize) -> Lane {
        let (length, world) = (self.call.length(), self.world);
        match &self.call {
            // The first segment, often the only one, goes round.
            Call::Mean { .. } => Lane {
                next: (owner + self.turn) % world,
                step: world,
                end: length.div_ceil(SEGMENT),
            },
            Call::Broadcast { from, .. } if from.0 as usize != owner => Lane::default(),
            Call::Broadcast { .. } => Lane {
                end: length.div_ceil(SEGMENT),
                ..Lane::default()
            },
            Call::Gather { .. } => Lane {
                end: length.div_ceil(MAX_PAYLOAD),
                ..Lane::default()
            },
        }
    }

    /// What a rank is sent once it has begun: parts, or results.
    pub(super) fn outgoing(&mut self, to: usize, start: Start) -> (Lane, Lane) {
        self.books.begun[to] = true;
        let (parts, results) = match &self.call {
            Call::Mean { .. } => (self.lane(to), Lane::default()),
            Call::Broadcast { .. } => (Lane::default(), self.lane(self.rank)),
            Call::Gather { .. } => {
                let bytes = usize::try_from(start.length).unwrap_or(0);
                self.books.awaited[to].parts.end = bytes.div_ceil(MAX_PAYLOAD);
                self.books.awaited[to].bytes = bytes;
                self.gathered[to].reserve_exact(bytes);
                (self.lane(self.rank), Lane::default())
            }
        };
        self.books.unsent[to] += parts.clone().count() + results.clone().count();
        (parts, results)
    }

    fn wire(&self) -> Wire {
        match self.call {
            Call::Mean { wire, .. } => wire,
            Call::Broadcast { .. } | Call::Gather { .. } => Wire::F32,
        }
    }

    /// Writes a segment's payload; of a part and of a result it is the same place.
    pub(super) fn payload(&self, index: usize) -> Payload<'_> {
        match &self.call {
            Call::Mean { values, .. } | Call::Broadcast { values, .. } => {
                Payload::Values(&values[range(index, SEGMENT, values.len())], self.wire())
            }
            Call::Gather { bytes } => {
                Payload::Bytes(&bytes[range(index, MAX_PAYLOAD, bytes.len())])
            }
        }
    }

    /// Takes a part in. The segment whose result now goes to all, if it was the last part.
    pub(super) fn part(
        &mut self,
        from: usize,
        index: u64,
        payload: &[u8],
        scratch: &mut Scratch,
    ) -> Result<Option<usize>, String> {
        let segment = self.books.awaited[from].parts.arrive(index)?;
        let wire = self.wire();
        let values = match &mut self.call {
            Call::Mean { values, .. } => values,
            Call::Gather { .. } => return self.bytes(from, payload).map(|()| None),
            Call::Broadcast { .. } => unreachable!("no part of a broadcast is awaited"),
        };
        let range = range(segment, SEGMENT, values.len());
        check(payload, range.len(), wire)?;
        let place = segment / self.world;
        self.books.arrived[place] += 1;
        if self.books.arrived[place] == self.world - 1 {
            self.sum(from, range, place, payload, scratch);
            return Ok(Some(segment));
        }
        if self.parts.is_empty() {
            self.parts = scratch.parts.pop().unwrap_or_default();
            self.parts
                .resize(self.world * self.books.arrived.len() * SEGMENT, 0.0);
        }
        let stored = stored(from, place, self.books.arrived.len(), range.len());
        frame::get_values(payload, &mut self.parts[stored], wire);
        Ok(None)
    }

    /// Sums a segment whose last part has just arrived, in rank order.
    fn sum(
        &mut self,
        from: usize,
        range: Range<usize>,
        place: usize,
        payload: &[u8],
        scratch: &mut Scratch,
    ) {
        let (world, wire, numbers) = (self.world, self.wire(), range.len());
        scratch.total.resize(SEGMENT, 0.0);
        scratch.last.resize(SEGMENT, 0.0);
        let total = &mut scratch.total[..numbers];
        let last = &mut scratch.last[..numbers];
        frame::get_values(payload, last, wire);
        let Call::Mean { values, .. } = &mut self.call else {
            unreachable!("parts of a mean have come");
        };
        for rank in 0..world {
            let part = if rank == from {
                &*last
            } else if rank == self.rank {
                let own = &mut values[range.clone()];
                mean::travel(own, wire);
                &*own
            } else {
                let segments = self.books.arrived.len();
                &self.parts[stored(rank, place, segments, numbers)]
            };
            if rank == 0 {
                total.copy_from_slice(part);
            } else {
                mean::add(total, part);
            }
        }
        mean::finish(total, world, wire);
        values[range].copy_from_slice(total);
        for other in (0..world).filter(|&other| other != self.rank) {
            self.books.unsent[other] += 1;
        }
    }

    /// Takes a part of another's bytes in.
    fn bytes(&mut self, from: usize, payload: &[u8]) -> Result<(), String> {
        let left = &mut self.books.awaited[from].bytes;
        if payload.len() != MAX_PAYLOAD.min(*left) {
            return Err("it sent a gather of another length than it said".into());
        }
        *left -= payload.len();
        self.gathered[from].extend_from_slice(payload);
        Ok(())
    }

    /// Takes a result in; whether it answers a part.
    pub(super) fn result(
        &mut self,
        from: usize,
        index: u64,
        payload: &[u8],
    ) -> Result<bool, String> {
        let segment = self.books.awaited[from].results.arrive(index)?;
        let wire = self.wire();
        let (values, answers) = match &mut self.call {
            Call::Mean { values, .. } => (values, true),
            Call::Broadcast { values, .. } => (values, false),
            Call::Gather { .. } => unreachable!("no result of a gather is awaited"),
        };
        let range = range(segment, SEGMENT, values.len());
        check(payload, range.len(), wire)?;
        frame::get_values(payload, &mut values[range], wire);
        Ok(answers)
    }

    /// Whether more must come from that rank.
    pub(super) fn awaits(&self, rank: usize) -> bool {
        rank != self.rank
            && (!self.books.begun[rank] || self.awaits_part(rank) || self.awaits_result(rank))
    }

    pub(super) fn awaits_part(&self, rank: usize) -> bool {
        !self.books.awaited[rank].parts.is_done()
    }

    fn awaits_result(&self, rank: usize) -> bool {
        !self.books.awaited[rank].results.is_done()
    }

    pub(super) fn is_done(&self) -> bool {
        (0..self.world).all(|rank| !self.awaits(rank) && self.books.unsent[rank] == 0)
    }

    /// What this rank gets.
    pub(super) fn outcome(mut self, scratch: &mut Scratch) -> Outcome {
        if !self.parts.is_empty() {
            scratch.parts.push(std::mem::take(&mut self.parts));
        }
        scratch.books.push(std::mem::take(&mut self.books));
        match self.call {
            Call::Mean { values, .. } | Call::Broadcast { values, .. } => Outcome::Values(values),
            Call::Gather { bytes } => {
                self.gathered[self.rank] = bytes;
                Outcome::Gathered(self.gathered)
            }
        }
    }

    /// For whom this rank waits, as far as it can know: those who have not begun; if all have, those
    /// whose numbers it has not got.
    pub(super) fn missing(&self) -> Vec<Rank> {
        let others = (0..self.world).filter(|&other| other != self.rank);
        let (begun, late): (Vec<_>, Vec<_>) = others.partition(|&rank| self.books.begun[rank]);
        if !late.is_empty() {
            return late.into_iter().map(rank_of).collect();
        }
        // Those who are further than others wait for this rank's answers, as those do.
        let next = |rank: usize| self.books.awaited[rank].parts.next;
        let owing = begun.into_iter().filter(|&rank| self.awaits_part(rank));
        let owing: Vec<usize> = owing.collect();
        let last = owing.iter().map(|&rank| next(rank)).min();
        let last_of_all = owing.into_iter().filter(|&rank| Some(next(rank)) == last);
        last_of_all.map(rank_of).collect()
    }

    /// Those who have not answered, though this rank has all that they can wait for from it. They may
    /// wait for others themselves.
    pub(super) fn silent(&self) -> Vec<Rank> {
        let others = (0..self.world).filter(|&other| other != self.rank);
        let silent = |rank: &usize| self.awaits_result(*rank) || self.books.unsent[*rank] > 0;
        others.filter(silent).map(rank_of).collect()
    }
}

fn refill<T: Clone>(list: &mut Vec<T>, length: usize, value: T) {
    list.clear();
    list.resize(length, value);
}

pub(super) enum Payload<'a> {
    Values(&'a [f32], Wire),
    Bytes(&'a [u8]),
}

/// Where a rank's part of a segment, one of so many that this rank sums, waits for the others.
fn stored(rank: usize, place: usize, segments: usize, numbers: usize) -> Range<usize> {
    let start = (rank * segments + place) * SEGMENT;
    start..start + numbers
}

fn range(index: usize, segment: usize, length: usize) -> Range<usize> {
    let start = index * segment;
    start..length.min(start + segment)
}

fn check(payload: &[u8], numbers: usize, wire: Wire) -> Result<(), String> {
    if payload.len() == frame::wire_bytes(numbers, wire) {
        return Ok(());
    }
    Err(format!(
        "it sent {} bytes for a segment of {numbers} numbers",
        payload.len()
    ))
}
