//! What rides behind the gradients of a batch's last time step: sums of the batch, whether to stop.
//!
//! Everything travels as f32 and comes back as a mean over ranks. Counts are cut into limbs of 12
//! bits, so that their sums over up to 64 ranks, and the means of those, are exact once rounded.

use crate::kernel::Report;

const LIMB_BITS: u32 = 12;
/// Limbs of a count: up to 2^36.
const LIMBS: usize = 3;
/// Counts per time step, per layer, and beside them.
const PER_STEP: usize = 2;
const PER_LAYER: usize = 4;
/// Ranks that were told to stop, by signal.
const STOPS: usize = 2;

const SIGINT: usize = 2;
const SIGTERM: usize = 15;

/// What the words hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) time_steps: usize,
    pub(super) layers: usize,
    /// W, the ranks.
    pub(super) world: usize,
}

impl Words {
    pub(super) fn len(self) -> usize {
        self.time_steps + LIMBS * self.counts() + STOPS
    }

    fn counts(self) -> usize {
        self.time_steps * PER_STEP + self.layers * PER_LAYER
    }

    /// Writes a rank's report of one batch: losses by its share, times W, so that their mean over
    /// ranks is the loss of the batch.
    pub(super) fn write(self, report: &Report, share: f64, stop: usize, words: &mut [f32]) {
        words.fill(0.0);
        let (losses, rest) = words.split_at_mut(self.time_steps);
        for (word, &loss) in losses.iter_mut().zip(&report.loss) {
            *word = single(loss * share);
        }
        let (counts, stops) = rest.split_at_mut(LIMBS * self.counts());
        let lists = self.lists(report);
        for (limbs, count) in counts.chunks_exact_mut(LIMBS).zip(lists) {
            let mut left = count;
            for limb in limbs {
                *limb = (left & ((1 << LIMB_BITS) - 1)) as f32;
                left >>= LIMB_BITS;
            }
        }
        match stop {
            0 => {}
            SIGINT => stops[0] = 1.0,
            _ => stops[1] = 1.0,
        }
    }

    fn lists(self, report: &Report) -> impl Iterator<Item = u64> {
        let list = |counts: &[u64], len: usize| {
            let mut list = counts.to_vec();
            list.resize(len, 0);
            list
        };
        let (steps, layers) = (self.time_steps, self.layers);
        let steps = [&report.correct, &report.samples].map(|counts| list(counts, steps));
        let layers = [
            &report.spikes,
            &report.neurons,
            &report.silent,
            &report.observed,
        ]
        .map(|counts| list(counts, layers));
        steps.into_iter().chain(layers).flatten()
    }

    /// The report of the whole batch, and the signal that any rank was given.
    pub(super) fn read(self, words: &[f32]) -> (Report, Option<usize>) {
        let (losses, rest) = words.split_at(self.time_steps);
        let (counts, stops) = rest.split_at(LIMBS * self.counts());
        let mut counts = counts.chunks_exact(LIMBS).map(|limbs| {
            let limbs = limbs.iter().rev();
            limbs.fold(0_u64, |sum, &limb| (sum << LIMB_BITS) + self.whole(limb))
        });
        let mut list = |len| counts.by_ref().take(len).collect::<Vec<u64>>();
        let (steps, layers) = (self.time_steps, self.layers);
        let report = Report {
            loss: losses.iter().map(|&loss| f64::from(loss)).collect(),
            correct: list(steps),
            samples: list(steps),
            batches: vec![1; steps],
            spikes: list(layers),
            neurons: list(layers),
            silent: list(layers),
            observed: list(layers),
        };
        let signals = [(stops[1], SIGTERM), (stops[0], SIGINT)];
        let stop = signals
            .into_iter()
            .find(|(stops, _)| self.whole(*stops) > 0);
        (report, stop.map(|(_, signal)| signal))
    }

    /// The sum over ranks of which this is the mean.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a sum of whole numbers below 2^18"
    )]
    fn whole(self, mean: f32) -> u64 {
        (f64::from(mean) * self.world as f64).round().max(0.0) as u64
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it travels in f32")]
fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back_exactly_from_any_number_of_ranks() {
        for world in [1, 2, 3, 7, 48, 63, 64] {
            let words = Words {
                time_steps: 2,
                layers: 1,
                world,
            };
            let report = |rank: usize| Report {
                loss: vec![1.5, 0.25],
                correct: vec![rank as u64, 1_000_000],
                samples: vec![4095, 1_000_001],
                batches: vec![1; 2],
                spikes: vec![(1 << 36) - 1 - rank as u64],
                neurons: vec![(1 << 35) + 7 * rank as u64],
                silent: vec![rank as u64],
                observed: vec![64],
            };
            let mut sum = vec![0.0; words.len()];
            for rank in 0..world {
                let mut mine = vec![9.0; words.len()];
                let stop = if rank == world / 2 { 15 } else { 0 };
                words.write(&report(rank), 1.0, stop, &mut mine);
                sum.iter_mut().zip(&mine).for_each(|(s, m)| *s += m);
            }
            for number in &mut sum {
                *number *= 1.0 / world as f32;
            }
            let (read, stop) = words.read(&sum);
            assert_eq!(stop, Some(15));
            let total = |of: &dyn Fn(Report) -> u64| (0..world).map(|r| of(report(r))).sum::<u64>();
            assert_eq!(
                read.correct,
                [total(&|r| r.correct[0]), total(&|r| r.correct[1])]
            );
            assert_eq!(read.samples[1], total(&|r| r.samples[1]));
            assert_eq!(read.spikes, [total(&|r| r.spikes[0])]);
            assert_eq!(read.neurons, [total(&|r| r.neurons[0])]);
            assert_eq!(read.silent, [total(&|r| r.silent[0])]);
            assert_eq!(read.observed, [64 * world as u64]);
            assert!((read.loss[0] - 1.5).abs() < 1e-6);
        }
    }

    #[test]
    fn nobody_stops_where_nobody_was_told_to() {
        let words = Words {
            time_steps: 1,
            layers: 0,
            world: 2,
        };
        let mut numbers = vec![0.0; words.len()];
        words.write(&Report::default(), 1.0, 0, &mut numbers);
        assert_eq!(words.read(&numbers).1, None);
        words.write(&Report::default(), 1.0, 2, &mut numbers);
        // One of two ranks.
        for number in &mut numbers {
            *number *= 0.5;
        }
        assert_eq!(words.read(&numbers).1, Some(2));
    }
}
