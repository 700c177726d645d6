//! What a report counts of neurons.

use super::memory::{Value, to_host};
use crate::kernel::Report;

/// The sums of a report, and which neurons have spiked in the batch.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// The sums since the last report.
    pub(super) report: Report,
    /// Per layer: whether each neuron has spiked since the batch began; empty between batches.
    alive: Vec<Vec<bool>>,
}

impl Counts {
    /// Counts the spikes `[N, H, W, C]` of a layer at time step t.
    pub(super) fn see(&mut self, layer: usize, t: usize, s: &Value) {
        let layers = self.alive.len().max(layer + 1);
        self.alive.resize(layers, Vec::new());
        if t == 0 {
            self.count_silent(layer);
        }
        let Report {
            spikes, neurons, ..
        } = &mut self.report;
        for counts in [spikes, neurons] {
            counts.resize(layers, 0);
        }
        let [_, h, w, c] = s.dims();
        let s = to_host(s.clone());
        self.report.spikes[layer] += s.iter().filter(|s| **s > 0.0).count() as u64;
        self.report.neurons[layer] += s.len() as u64;
        self.alive[layer].resize(h * w * c, false);
        for sample in s.chunks(h * w * c) {
            for (alive, &s) in self.alive[layer].iter_mut().zip(sample) {
                *alive |= s > 0.0;
            }
        }
    }

    fn count_silent(&mut self, layer: usize) {
        let Report {
            silent, observed, ..
        } = &mut self.report;
        for counts in [silent, observed] {
            counts.resize(self.alive.len(), 0);
        }
        let alive = std::mem::take(&mut self.alive[layer]);
        self.report.silent[layer] += alive.iter().filter(|alive| !**alive).count() as u64;
        self.report.observed[layer] += alive.len() as u64;
    }

    /// The sums since the last report.
    pub(super) fn take(&mut self) -> Report {
        for layer in 0..self.alive.len() {
            self.count_silent(layer);
        }
        std::mem::take(&mut self.report)
    }
}
