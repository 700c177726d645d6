//! What every group of ranks must do, told to one rank: all of them run this at once, each in its
//! thread or process. Included by `worker/tests/mpi.rs` as well, for ranks of MPI.

#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers, and digits of large ones"
)]

use synfire::collective::{Collective, Pending, Wire};
use synfire_shared::ids::Rank;

/// 10 MiB of f32, as a bucket of gradients has.
pub const LARGE: usize = (10 << 20) / 4;

/// How close means must be to those in rank order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The sum is in rank order: the same bits.
    Rank,
    /// The sum may be in any order, so rounding differs; all ranks have the same bits.
    Any,
}

/// What a rank gives: numbers of very different size, so that the order of a sum shows.
pub fn numbers(rank: usize, length: usize, salt: u32) -> Vec<f32> {
    (0..length).map(|index| number(rank, index, salt)).collect()
}

fn number(rank: usize, index: usize, salt: u32) -> f32 {
    let seed = salt.wrapping_mul(0x9e37_79b9) ^ (rank as u32).wrapping_mul(0x85eb_ca6b);
    let mixed = (index as u32 ^ seed).wrapping_mul(0x2c1b_3c6d);
    let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x297a_2d39);
    let mantissa = (mixed >> 8) as f32 / (1 << 24) as f32 - 0.5;
    mantissa * [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0][(mixed & 7) as usize]
}

/// One number of the mean in rank order, written down a second time.
fn mean(world: usize, index: usize, salt: u32, wire: Wire) -> f32 {
    if world == 1 {
        return number(0, index, salt);
    }
    let travelled = |value| match wire {
        Wire::F32 => value,
        Wire::Bf16 => nearest_bf16(value),
    };
    let mut total = travelled(number(0, index, salt));
    for rank in 1..world {
        total += travelled(number(rank, index, salt));
    }
    travelled(total * (1.0 / world as f32))
}

/// By what a bf16 is: a multiple of a power of two with 8 significant bits, ties to even.
fn nearest_bf16(value: f32) -> f32 {
    if value == 0.0 {
        return value;
    }
    let exponent = f64::from(value.abs()).log2().floor() as i32;
    let unit = 2.0_f64.powi(exponent - 7);
    ((f64::from(value) / unit).round_ties_even() * unit) as f32
}

/// Everything that works, in one go.
pub fn check(group: &mut dyn Collective, order: Order) {
    means(group, order);
    several_under_way(group, order);
    broadcasts(group);
    gathers(group);
    interleaved(group, order);
}

fn place(group: &dyn Collective) -> (usize, usize) {
    (group.rank().0 as usize, group.world().0 as usize)
}

fn start(group: &mut dyn Collective, length: usize, salt: u32, wire: Wire) -> Pending {
    let (rank, _) = place(group);
    let values = numbers(rank, length, salt);
    group.start_mean(values, wire).expect("the group is whole")
}

fn compare(group: &dyn Collective, found: &[f32], salt: u32, wire: Wire, order: Order) {
    let (_, world) = place(group);
    // Of many numbers some, in every segment; that ranks agree is checked of all.
    let step = if found.len() > 50_000 { 61 } else { 1 };
    for (i, &found) in found.iter().enumerate().step_by(step) {
        let expected = mean(world, i, salt, wire);
        let close = match order {
            Order::Rank => found.to_bits() == expected.to_bits(),
            // A sum of W numbers below 32 in f32, and where it is rounded to bf16 a neighbour.
            Order::Any => {
                let unit = if wire == Wire::Bf16 { 1.0 / 128.0 } else { 0.0 };
                (found - expected).abs() <= 1e-5 + unit * expected.abs()
            }
        };
        assert!(
            close,
            "number {i}: {found} instead of {expected} ({wire:?}, {order:?})"
        );
    }
}

/// That all ranks have the same bits.
fn agree(group: &mut dyn Collective, values: &[f32]) {
    let digest = values
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |digest, value| {
            (digest ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
        });
    let digests = group.gather(&digest.to_le_bytes()).expect("a gather");
    for (rank, other) in digests.iter().enumerate() {
        assert_eq!(*other, digest.to_le_bytes(), "rank {rank} has other bits");
    }
}

fn means(group: &mut dyn Collective, order: Order) {
    let mut salt = 0;
    for wire in [Wire::F32, Wire::Bf16] {
        for length in [1, 2, 5, 1000, 4096, 4097, 32_768, 32_769, 200_001, LARGE] {
            salt += 1;
            let (rank, _) = place(group);
            let values = numbers(rank, length, salt);
            let memory = values.as_ptr();
            let pending = group.start_mean(values, wire).expect("the group is whole");
            let found = pending.wait().expect("a mean");
            assert_eq!(found.as_ptr(), memory, "the same allocation comes back");
            assert_eq!(found.len(), length);
            compare(group, &found, salt, wire, order);
            agree(group, &found);
        }
    }
    let pending = group
        .start_mean(Vec::new(), Wire::F32)
        .expect("the group is whole");
    assert!(pending.wait().expect("a mean of nothing").is_empty());
}

fn several_under_way(group: &mut dyn Collective, order: Order) {
    let lengths = [100_000, 1, 70_000, 33, 300_000, 12];
    for reversed in [false, true] {
        let begin = |(salt, length): (usize, &usize)| {
            let wire = if salt % 2 == 0 { Wire::F32 } else { Wire::Bf16 };
            let pending = start(group, *length, 100 + salt as u32, wire);
            (100 + salt as u32, wire, pending)
        };
        let mut pending: Vec<_> = lengths.iter().enumerate().map(begin).collect();
        // One that nobody waits for does not keep the others.
        drop(pending.remove(2));
        if reversed {
            pending.reverse();
        }
        for (salt, wire, pending) in pending {
            let found = pending.wait().expect("a mean");
            compare(group, &found, salt, wire, order);
        }
    }
}

fn broadcasts(group: &mut dyn Collective) {
    let (rank, world) = place(group);
    for from in 0..world {
        for length in [0, 1, 32_768, 100_003] {
            let mut values = numbers(rank, length, 7);
            let root = Rank(from as u32);
            group.broadcast(root, &mut values).expect("a broadcast");
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&values), bits(&numbers(from, length, 7)));
        }
    }
}

fn gathers(group: &mut dyn Collective) {
    let (rank, world) = place(group);
    let bytes = |rank: usize, round: usize| -> Vec<u8> {
        // Lengths differ, and some are 0.
        let length = (rank + round) % 3 * 131_073;
        (0..length).map(|i| (i * 7 + rank) as u8).collect()
    };
    for round in 0..3 {
        let all = group.gather(&bytes(rank, round)).expect("a gather");
        assert_eq!(all.len(), world);
        for (rank, found) in all.iter().enumerate() {
            assert!(*found == bytes(rank, round), "bytes of rank {rank}");
        }
    }
}

/// Calls of all kinds, with means under way.
fn interleaved(group: &mut dyn Collective, order: Order) {
    let (rank, world) = place(group);
    for round in 0..20 {
        let first = start(group, 5000 + round, 200, Wire::F32);
        let mut values = numbers(rank, 10, 3);
        let from = Rank((round % world) as u32);
        group.broadcast(from, &mut values).expect("a broadcast");
        let second = start(group, 1, 201, Wire::F32);
        let all = group.gather(&[rank as u8]).expect("a gather");
        assert_eq!(all.len(), world);
        let found = second.wait().expect("a mean");
        compare(group, &found, 201, Wire::F32, order);
        let found = first.wait().expect("a mean");
        compare(group, &found, 200, Wire::F32, order);
    }
}
