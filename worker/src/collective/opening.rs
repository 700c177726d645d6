//! The round that every call of MPI begins with: a sum of one size over all ranks, in which each writes
//! what it calls for into a place of its own, and the first numbers of a mean ride along.

use super::pending::Call;
use super::{CollectiveError, Wire, rank_of};
use synfire_shared::ids::Rank;

/// How many numbers ride along: 16 KiB of them.
pub(super) const RIDERS: usize = 4096;

/// The numbers of a rank's place: call, root, and the length in two parts. f32 has 24 bits.
const PLACE: usize = 4;
const PART_BITS: u32 = 20;

/// What a rank calls for.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Entry {
    code: u32,
    root: u32,
    length: u64,
}

impl Entry {
    fn of(call: &Call) -> Self {
        let (code, root) = match call {
            Call::Mean { wire, .. } => match wire {
                Wire::F32 => (1, 0),
                Wire::Bf16 => (2, 0),
            },
            Call::Broadcast { from, .. } => (3, from.0),
            Call::Gather { .. } => (4, 0),
        };
        Self {
            code,
            root,
            length: call.length() as u64,
        }
    }

    fn name(&self) -> String {
        match self.code {
            1 => "a mean in f32".into(),
            2 => "a mean in bf16".into(),
            3 => format!("a broadcast from {}", Rank(self.root)),
            4 => "a gather".into(),
            other => format!("call {other}"),
        }
    }

    fn write(&self, place: &mut [f32]) {
        let low = self.length & ((1 << PART_BITS) - 1);
        let high = self.length >> PART_BITS;
        place.copy_from_slice(&[self.code as f32, self.root as f32, low as f32, high as f32]);
    }

    fn read(place: &[f32]) -> Self {
        Self {
            code: exactly(place[0]),
            root: exactly(place[1]),
            length: (u64::from(exactly(place[3])) << PART_BITS) + u64::from(exactly(place[2])),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a whole number below 2^24: one rank wrote it, and the others added zero"
)]
fn exactly(number: f32) -> u32 {
    number as u32
}

/// How many numbers the sum has.
pub(super) fn length(world: usize) -> usize {
    world * PLACE + RIDERS
}

/// This rank's part of the sum; the numbers that ride along are left to the caller.
pub(super) fn write(call: &Call, rank: usize, world: usize, sum: &mut [f32]) {
    sum[..world * PLACE].fill(0.0);
    Entry::of(call).write(&mut sum[rank * PLACE..][..PLACE]);
}

pub(super) fn riders(world: usize, sum: &mut [f32]) -> &mut [f32] {
    &mut sum[world * PLACE..]
}

/// The lengths by rank, if all call for the same.
///
/// # Errors
///
/// `OutOfStep` or `Unequal`, on every rank.
pub(super) fn agree(
    call: &Call,
    rank: usize,
    world: usize,
    sum: &[f32],
) -> Result<Vec<usize>, CollectiveError> {
    let ours = Entry::of(call);
    let places = sum[..world * PLACE].chunks_exact(PLACE);
    let entries: Vec<Entry> = places.map(Entry::read).collect();
    debug_assert_eq!(entries[rank], ours);
    let differs = |entry: &Entry| entry.code != ours.code || entry.root != ours.root;
    if let Some(other) = entries.iter().position(differs) {
        return Err(CollectiveError::OutOfStep {
            rank: rank_of(other),
            theirs: entries[other].name(),
            ours: ours.name(),
        });
    }
    let gathers = matches!(call, Call::Gather { .. });
    if !gathers && entries.iter().any(|entry| entry.length != ours.length) {
        return Err(CollectiveError::Unequal {
            lengths: entries.iter().map(|entry| entry.length).collect(),
        });
    }
    let length = |entry: &Entry| usize::try_from(entry.length).unwrap_or(usize::MAX);
    Ok(entries.iter().map(length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(calls: &[Call]) -> Vec<f32> {
        let world = calls.len();
        let mut total = vec![0.0; length(world)];
        for (rank, call) in calls.iter().enumerate() {
            let mut part = vec![0.0; length(world)];
            write(call, rank, world, &mut part);
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
        }
        total
    }

    fn gather(length: usize) -> Call {
        let bytes = vec![0; length];
        Call::Gather { bytes }
    }

    fn mean(length: usize, wire: Wire) -> Call {
        let values = vec![0.0; length];
        Call::Mean { values, wire }
    }

    #[test]
    fn lengths_come_through_a_sum_exactly() {
        let lengths = [0, 1, (1 << 20) - 1, 1 << 20, (1 << 24) + 1, 64 << 20];
        let calls = lengths.map(gather);
        let found = agree(&calls[2], 2, 6, &sum(&calls)).unwrap();
        assert_eq!(found, lengths);
    }

    #[test]
    fn what_differs_is_told_to_every_rank() {
        let calls = [mean(5, Wire::F32), mean(6, Wire::F32)];
        for rank in 0..2 {
            let error = agree(&calls[rank], rank, 2, &sum(&calls)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("5 on rank 0, 6 on rank 1"), "{text}");
        }
        let values = vec![0.0];
        let from = Rank(1);
        let calls = [mean(1, Wire::Bf16), Call::Broadcast { values, from }];
        let error = agree(&calls[0], 0, 2, &sum(&calls)).unwrap_err();
        let expected =
            "rank 1 asked for a broadcast from rank 1 while this rank asked for a mean in bf16";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
