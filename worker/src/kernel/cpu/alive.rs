//! Which neurons have spiked in the batch: a bit for each, whatever the sample and the time step.

use super::CpuKernels;
use crate::kernel::{Lif, NormLif};
use rayon::prelude::*;

/// Words of a task: 2 KiB of bits.
const WORDS_PER_TASK: usize = 256;

/// The neurons of a layer that have spiked in the batch so far.
#[derive(Debug, Default)]
pub(super) struct Alive {
    /// As spikes of one sample are: words per pixel.
    bits: Vec<u64>,
    /// Neurons of the layer.
    neurons: u64,
    /// Whether a time step was seen since they were last counted.
    seen: bool,
}

impl Alive {
    /// Takes over the spikes of all samples at one time step.
    fn see(&mut self, samples: usize, neurons: u64, spikes: &[u64]) {
        let words = spikes.len() / samples;
        if !self.seen {
            // All samples below are or-ed in; keeps its memory.
            self.bits.clear();
            self.bits.resize(words, 0);
        }
        (self.neurons, self.seen) = (neurons, true);
        let tasks = self.bits.par_chunks_mut(WORDS_PER_TASK).enumerate();
        tasks.for_each(|(task, bits)| {
            let begin = task * WORDS_PER_TASK;
            for sample in spikes.chunks_exact(words) {
                let sample = &sample[begin..begin + bits.len()];
                bits.iter_mut()
                    .zip(sample)
                    .for_each(|(all, &now)| *all |= now);
            }
        });
    }

    /// How many of how many neurons have been silent; the next time step begins anew.
    fn count(&mut self) -> Option<(u64, u64)> {
        std::mem::take(&mut self.seen).then(|| {
            let alive = self.bits.iter().map(|word| u64::from(word.count_ones()));
            (self.neurons - alive.sum::<u64>(), self.neurons)
        })
    }
}

impl CpuKernels {
    /// Takes over a layer's spikes of time step t: those given, or those in the scratch.
    pub(super) fn see_alive(&mut self, layer: &NormLif, lif: &Lif, t: usize, bits: Option<&[u64]>) {
        let index = lif.index;
        if self.alive.len() <= index {
            self.alive.resize_with(index + 1, Alive::default);
        }
        if t == 0 {
            self.count_silent(index);
        }
        let pixels = layer.samples * layer.shape.pixels();
        let words = pixels * layer.shape.channels.div_ceil(64);
        let bits = bits.unwrap_or_else(|| &self.scratch.words[..words]);
        let neurons = layer.shape.elements() as u64;
        self.alive[index].see(layer.samples, neurons, bits);
    }

    fn count_silent(&mut self, layer: usize) {
        let report = &mut self.report;
        if report.silent.len() <= layer {
            report.silent.resize(layer + 1, 0);
            report.observed.resize(layer + 1, 0);
        }
        if let Some((silent, neurons)) = self.alive[layer].count() {
            report.silent[layer] += silent;
            report.observed[layer] += neurons;
        }
    }

    /// Counts the neurons of every layer that has run since they were last counted.
    pub(super) fn count_all_silent(&mut self) {
        for layer in 0..self.alive.len() {
            self.count_silent(layer);
        }
    }
}
