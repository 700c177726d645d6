//! What rides behind the gradients of a batch's last time step: sums of the batch, how slow each rank
//! is, whether to stop.
//!
//! Everything travels as f32 and comes back as a mean over ranks. Counts are cut into limbs of 12
//! bits, so that their sums over up to 64 ranks, and the means of those, are exact once rounded.

use crate::kernel::Report;

const LIMB_BITS: usize = 12;
/// Limbs of a count.
const LIMBS: usize = 4;
/// The largest count of a rank and batch; what is larger, of which no network comes near, counts as
/// this.
const MOST: u64 = (1 << (LIMBS * LIMB_BITS)) - 1;
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

/// What a rank says of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) rank: usize,
    pub(super) report: &'a Report,
    /// Its share of the samples times W: the mean of losses by it over ranks is that of the batch.
    pub(super) share: f64,
    /// Seconds of its slowest time step so far.
    pub(super) slowest_step: f64,
    /// The signal that it was given; 0 for none.
    pub(super) stop: usize,
    /// Whether what it gave to the averages means nothing.
    pub(super) has_failed: bool,
}

/// What all ranks say of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heard {
    pub(super) report: Report,
    /// Seconds of the slowest time step of any rank.
    pub(super) slowest_step: f64,
    /// A signal that any rank was given.
    pub(super) stop: Option<usize>,
    /// The ranks that have failed.
    pub(super) failed: Vec<usize>,
}

impl Words {
    pub(super) fn len(self) -> usize {
        self.time_steps + LIMBS * self.counts() + 2 * self.world + STOPS
    }

    fn counts(self) -> usize {
        self.time_steps * PER_STEP + self.layers * PER_LAYER
    }

    pub(super) fn write(self, said: Said<'_>, words: &mut [f32]) {
        words.fill(0.0);
        let (losses, rest) = words.split_at_mut(self.time_steps);
        for (word, &loss) in losses.iter_mut().zip(&said.report.loss) {
            *word = single(loss * said.share);
        }
        let (counts, rest) = rest.split_at_mut(LIMBS * self.counts());
        let (slowest, rest) = rest.split_at_mut(self.world);
        let (failed, stops) = rest.split_at_mut(self.world);
        let lists = self.lists(said.report);
        for (limbs, count) in counts.chunks_exact_mut(LIMBS).zip(lists) {
            let mut left = count.min(MOST);
            for limb in limbs {
                *limb = (left & ((1 << LIMB_BITS) - 1)) as f32;
                left >>= LIMB_BITS;
            }
        }
        // Every rank has a place of its own, so that the largest comes out of a sum.
        slowest[said.rank] = single(said.slowest_step);
        failed[said.rank] = f32::from(u8::from(said.has_failed));
        match said.stop {
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

    pub(super) fn read(self, words: &[f32]) -> Heard {
        let (losses, rest) = words.split_at(self.time_steps);
        let (counts, rest) = rest.split_at(LIMBS * self.counts());
        let (slowest, rest) = rest.split_at(self.world);
        let (failed, stops) = rest.split_at(self.world);
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
        let slowest = slowest.iter().copied().fold(0.0, f32::max);
        Heard {
            report,
            slowest_step: f64::from(slowest) * self.world as f64,
            stop: stop.map(|(_, signal)| signal),
            failed: (0..self.world)
                .filter(|&rank| self.whole(failed[rank]) > 0)
                .collect(),
        }
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
                spikes: vec![MOST - rank as u64],
                neurons: vec![(1 << 47) + 7 * rank as u64],
                silent: vec![rank as u64],
                observed: vec![64],
            };
            let mut sum = vec![0.0; words.len()];
            for rank in 0..world {
                let mut mine = vec![9.0; words.len()];
                let stop = if rank == world / 2 { 15 } else { 0 };
                let said = Said {
                    rank,
                    report: &report(rank),
                    share: 1.0,
                    slowest_step: if rank == world / 3 { 7.5 } else { 0.25 },
                    stop,
                    has_failed: rank + 2 >= world,
                };
                words.write(said, &mut mine);
                sum.iter_mut().zip(&mine).for_each(|(s, m)| *s += m);
            }
            for number in &mut sum {
                *number *= 1.0 / world as f32;
            }
            let heard = words.read(&sum);
            assert_eq!(heard.stop, Some(15));
            let last_two: Vec<usize> = (world.saturating_sub(2)..world).collect();
            assert_eq!(heard.failed, last_two);
            assert!((heard.slowest_step - 7.5).abs() < 1e-5, "{heard:?}");
            let read = heard.report;
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
        let said = Said {
            rank: 1,
            report: &Report::default(),
            share: 1.0,
            slowest_step: 0.0,
            stop: 0,
            has_failed: false,
        };
        words.write(said, &mut numbers);
        assert_eq!(words.read(&numbers).stop, None);
        assert!(words.read(&numbers).failed.is_empty());
        words.write(Said { stop: 2, ..said }, &mut numbers);
        // One of two ranks.
        for number in &mut numbers {
            *number *= 0.5;
        }
        assert_eq!(words.read(&numbers).stop, Some(2));
    }

    #[test]
    fn a_count_beyond_all_measure_counts_as_the_largest() {
        let words = Words {
            time_steps: 1,
            layers: 0,
            world: 1,
        };
        let report = Report {
            samples: vec![u64::MAX],
            ..Report::default()
        };
        let mut numbers = vec![0.0; words.len()];
        let said = Said {
            rank: 0,
            report: &report,
            share: 1.0,
            slowest_step: 0.0,
            stop: 0,
            has_failed: false,
        };
        words.write(said, &mut numbers);
        assert_eq!(words.read(&numbers).report.samples, [MOST]);
    }
}
