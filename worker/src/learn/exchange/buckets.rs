//! How the gradients are cut, and how large the pieces should be.

use super::device::piece;
use crate::collective::{Collective, CollectiveError, Wire};
use crate::kernel::{DeviceArenas, Span};
use std::ops::Range;
use std::time::Instant;
use synfire_shared::ids::Rank;

/// Numbers in the last bucket at most: 256 KiB. Nothing computes while it travels.
const LAST: usize = 64 << 10;

/// Sizes of buckets that are tried, in numbers: 256 KiB to 16 MiB.
const SIZES: [usize; 4] = [64 << 10, 256 << 10, 1 << 20, 4 << 20];

/// Rounds of each size that are timed; the fastest counts.
const ROUNDS: usize = 3;

/// A larger size than the smallest must be faster by so much: small buckets start early.
const WORTH: f64 = 1.1;

/// Cuts an arena of `len` numbers into ranges of at most `size`, in the order in which the backward
/// finishes them. The last range is small.
pub(super) fn cut(len: usize, size: usize) -> Vec<Range<usize>> {
    let size = size.max(1);
    let last = len.saturating_sub(LAST.min(size));
    let mut ranges = Vec::new();
    let mut start = 0;
    while start < last {
        let end = (start + size).min(last);
        ranges.push(start..end);
        start = end;
    }
    ranges.push(start..len);
    ranges
}

/// The smallest size of which buckets of `len` numbers together travel about as fast as of any
/// other, measured by rank 0 and the same on all ranks.
///
/// # Errors
/// If the group fails.
pub fn measured(
    collective: &mut dyn Collective,
    len: usize,
    wire: Wire,
) -> Result<usize, CollectiveError> {
    fastest(collective, |collective, size| {
        let len = len.clamp(1, SIZES[SIZES.len() - 1]);
        let ranges: Vec<Vec<f32>> = (0..len)
            .step_by(size)
            .map(|start| vec![0.0; size.min(len - start)])
            .collect();
        let begin = Instant::now();
        let pending: Vec<_> = ranges
            .into_iter()
            .map(|range| collective.start_mean(range, wire))
            .collect::<Result<_, _>>()?;
        for pending in pending {
            pending.wait()?;
        }
        Ok(begin.elapsed().as_secs_f64())
    })
}

/// As [`measured`], where numbers travel from GPU to GPU. What the gradients hold has no meaning after.
///
/// # Errors
/// If the group fails.
///
/// # Panics
/// If the group has no GPUs.
pub fn measured_between_devices(
    collective: &mut dyn Collective,
    arenas: &DeviceArenas,
    len: usize,
    wire: Wire,
) -> Result<usize, CollectiveError> {
    fastest(collective, |collective, size| {
        let device = collective.on_device();
        let device = device.expect("a way between GPUs has a group of them");
        let len = len.clamp(1, SIZES[SIZES.len() - 1]);
        let begin = Instant::now();
        for offset in (0..len).step_by(size) {
            let len = size.min(len - offset);
            let piece = piece(arenas, Span { offset, len }, wire, 1.0);
            let started = device.start(arenas.stream, &[piece])?;
            device.join(arenas.stream, started)?;
        }
        device.wait()?;
        Ok(begin.elapsed().as_secs_f64())
    })
}

/// Tries the sizes; `seconds` says how long buckets of a size take together.
fn fastest(
    collective: &mut dyn Collective,
    mut seconds: impl FnMut(&mut dyn Collective, usize) -> Result<f64, CollectiveError>,
) -> Result<usize, CollectiveError> {
    let mut times = [f64::INFINITY; SIZES.len()];
    for _ in 0..ROUNDS {
        for (size, time) in SIZES.iter().zip(&mut times) {
            // Nobody starts to wait before all are here.
            collective.gather(&[])?;
            *time = time.min(seconds(collective, *size)?);
        }
    }
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    let good = times.iter().position(|&time| time <= WORTH * best);
    let size = SIZES[good.unwrap_or(SIZES.len() - 1)];
    // A power of two: exact in f32.
    let mut chosen = [size as f32];
    collective.broadcast(Rank(0), &mut chosen)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "one of the sizes"
    )]
    let chosen = chosen[0] as usize;
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::threads;

    #[test]
    fn ranges_cover_everything_once_and_the_last_is_small() {
        for (len, size) in [
            (1, 1),
            (LAST, 1 << 20),
            (LAST + 1, 1 << 20),
            (11_700_000, 1 << 20),
            (11_700_000, 7),
            (100, 1000),
        ] {
            let size = if len / size > 1000 { 70_001 } else { size };
            let ranges = cut(len, size);
            let mut end = 0;
            for range in &ranges {
                assert_eq!(range.start, end);
                assert!(range.len() <= size || ranges.len() == 1, "{len} {size}");
                end = range.end;
            }
            assert_eq!(end, len);
            assert!(ranges.last().unwrap().len() <= LAST.min(size));
            assert!(!ranges.last().unwrap().is_empty());
        }
    }

    #[test]
    fn all_ranks_choose_the_same_size() {
        let group = threads::group(3);
        let ranks: Vec<_> = group
            .into_iter()
            .map(|mut rank| {
                std::thread::spawn(move || measured(&mut rank, 100_000, Wire::F32).unwrap())
            })
            .collect();
        let sizes: Vec<usize> = ranks.into_iter().map(|r| r.join().unwrap()).collect();
        assert!(SIZES.contains(&sizes[0]));
        assert_eq!(sizes, [sizes[0]; 3]);
    }
}
