//! Sums in rank order: one definition for all who sum, so that they agree to the bit.

use super::{Wire, bf16};

/// What a rank's numbers are when they arrive.
pub(super) fn travel(values: &mut [f32], wire: Wire) {
    match wire {
        Wire::F32 => {}
        Wire::Bf16 => values.iter_mut().for_each(|v| *v = bf16::round(*v)),
    }
}

/// Adds the next rank's numbers, as they arrived.
pub(super) fn add(total: &mut [f32], part: &[f32]) {
    for (total, part) in total.iter_mut().zip(part) {
        *total += part;
    }
}

/// From the sum over `world` ranks to the mean that all of them get.
pub(super) fn finish(total: &mut [f32], world: usize, wire: Wire) {
    // A product, because a quotient by W costs ten times as much and differs in the last bit only.
    let scale = 1.0 / world as f32;
    for value in &mut *total {
        *value *= scale;
    }
    travel(total, wire);
}

/// As [`finish`] of numbers that travelled as f32, in another place: one pass through memory less.
#[cfg(any(feature = "mpi", test))]
pub(super) fn finish_into(total: &[f32], world: usize, mean: &mut [f32]) {
    let scale = 1.0 / world as f32;
    for (mean, total) in mean.iter_mut().zip(total) {
        *mean = total * scale;
    }
}

/// Replaces every part by the mean of all, which have one length.
pub(super) fn replace_by_mean(parts: &mut [Vec<f32>], wire: Wire) {
    const BLOCK: usize = 4096;
    let world = parts.len();
    if world == 1 {
        return;
    }
    let mut total = [0.0; BLOCK];
    let length = parts[0].len();
    for start in (0..length).step_by(BLOCK) {
        let range = start..length.min(start + BLOCK);
        let total = &mut total[..range.len()];
        for (rank, part) in parts.iter_mut().enumerate() {
            let part = &mut part[range.clone()];
            travel(part, wire);
            if rank == 0 {
                total.copy_from_slice(part);
            } else {
                add(total, part);
            }
        }
        finish(total, world, wire);
        for part in &mut *parts {
            part[range.clone()].copy_from_slice(total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_in_rank_order() {
        // 1e8 + 1 = 1e8 in f32, so only (1e8 - 1e8) + 1 is 1.
        let mut parts = vec![vec![1e8], vec![-1e8], vec![1.0], vec![0.0]];
        replace_by_mean(&mut parts, Wire::F32);
        assert_eq!(parts, vec![vec![0.25]; 4]);
        let mut parts = vec![vec![1.0], vec![1e8], vec![-1e8], vec![0.0]];
        replace_by_mean(&mut parts, Wire::F32);
        assert_eq!(parts, vec![vec![0.0]; 4]);
    }

    #[test]
    fn a_mean_in_another_place_has_the_same_bits() {
        let mut total: Vec<f32> = (0..100).map(|n| (n as f32).sin() * 1e3).collect();
        for world in [1, 2, 3, 7, 64] {
            let mut mean = vec![0.0; total.len()];
            finish_into(&total, world, &mut mean);
            finish(&mut total, world, Wire::F32);
            assert_eq!(mean, total);
        }
    }

    #[test]
    fn bf16_rounds_before_and_once_after() {
        let third = 1.0 / 3.0_f32;
        let mut parts = vec![vec![third], vec![1.0], vec![0.0]];
        replace_by_mean(&mut parts, Wire::Bf16);
        let expected = bf16::round((bf16::round(third) + 1.0) * (1.0 / 3.0));
        assert_eq!(parts, vec![vec![expected]; 3]);
    }

    #[test]
    fn a_group_of_one_keeps_its_bits() {
        let mut parts = vec![vec![1.0 / 3.0, -0.0, f32::MIN_POSITIVE / 2.0]];
        let before = parts.clone();
        replace_by_mean(&mut parts, Wire::Bf16);
        assert_eq!(parts, before);
    }
}
