//! Sums of some batches, as rates.

use super::saving;
use crate::kernel::Report;
use serde::{Deserialize, Serialize};

/// Sums of some batches, as rates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Per time step: losses, summed over batches; of a test set over samples.
    #[serde(with = "saving::bits")]
    pub loss: Vec<f64>,
    /// Per time step: samples that are right by the logits summed so far.
    pub correct: Vec<u64>,
    /// Per time step: samples.
    pub samples: Vec<u64>,
    /// Per time step: of how many batches, or samples, `loss` is the sum.
    pub batches: Vec<u64>,
    /// Per layer of neurons: spikes.
    pub spikes: Vec<u64>,
    /// Per layer of neurons: chances to spike.
    pub neurons: Vec<u64>,
    /// Per layer of neurons: neurons silent through a batch, summed over batches.
    #[serde(default)]
    pub silent: Vec<u64>,
    /// Per layer of neurons: neurons times batches.
    #[serde(default)]
    pub observed: Vec<u64>,
}

impl Tally {
    /// Adds what the back end has summed since it was last asked.
    pub fn add(&mut self, report: &Report) {
        fn sum<T: Copy + Default + std::ops::AddAssign>(all: &mut Vec<T>, more: &[T]) {
            all.resize(all.len().max(more.len()), T::default());
            all.iter_mut().zip(more).for_each(|(a, &m)| *a += m);
        }
        sum(&mut self.loss, &report.loss);
        sum(&mut self.correct, &report.correct);
        sum(&mut self.samples, &report.samples);
        sum(&mut self.batches, &report.batches);
        sum(&mut self.spikes, &report.spikes);
        sum(&mut self.neurons, &report.neurons);
        sum(&mut self.silent, &report.silent);
        sum(&mut self.observed, &report.observed);
    }

    /// Adds what the back end has summed of one batch, whose loss counts as often as it has samples.
    pub fn add_by_samples(&mut self, report: &Report) {
        let (mut report, samples) = (report.clone(), &report.samples);
        for (loss, &n) in report.loss.iter_mut().zip(samples) {
            *loss *= n as f64;
        }
        report.batches.clone_from(samples);
        self.add(&report);
    }

    /// Adds what another rank has summed of batches of its own.
    pub fn join(&mut self, other: &Self) {
        self.add(&Report {
            loss: other.loss.clone(),
            correct: other.correct.clone(),
            samples: other.samples.clone(),
            batches: other.batches.clone(),
            spikes: other.spikes.clone(),
            neurons: other.neurons.clone(),
            silent: other.silent.clone(),
            observed: other.observed.clone(),
        });
    }

    /// The mean loss over time steps and batches, or samples.
    pub fn mean_loss(&self) -> f64 {
        self.loss.iter().sum::<f64>() / self.batches.iter().sum::<u64>().max(1) as f64
    }

    /// The share that is right, by the logits summed up to each time step.
    pub fn accuracies(&self) -> Vec<f64> {
        let pairs = self.correct.iter().zip(&self.samples);
        pairs.map(|(&c, &n)| c as f64 / n.max(1) as f64).collect()
    }

    /// The share that is right after the last time step.
    pub fn accuracy(&self) -> f64 {
        self.accuracies().last().copied().unwrap_or(0.0)
    }

    /// Spikes per neuron and time step, by layer.
    pub fn firing_rates(&self) -> Vec<f64> {
        let pairs = self.spikes.iter().zip(&self.neurons);
        pairs.map(|(&s, &n)| s as f64 / n.max(1) as f64).collect()
    }

    /// Spikes per neuron and time step, over all layers.
    pub fn firing_rate(&self) -> f64 {
        self.spikes.iter().sum::<u64>() as f64 / self.neurons.iter().sum::<u64>().max(1) as f64
    }
    /// The share of dead neurons, by layer: of the neurons, those that spike in no sample of a batch
    /// at any time step; the mean over batches.
    pub fn dead_shares(&self) -> Vec<f64> {
        let pairs = self.silent.iter().zip(&self.observed);
        pairs.map(|(&s, &n)| s as f64 / n.max(1) as f64).collect()
    }

    /// The share of dead neurons, over all layers.
    pub fn dead_share(&self) -> f64 {
        self.silent.iter().sum::<u64>() as f64 / self.observed.iter().sum::<u64>().max(1) as f64
    }
}
