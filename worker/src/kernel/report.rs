//! What a back end tells: what it has counted, and why it can compute no more.

/// Why a back end can compute no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words, with a remedy where there is one.
    pub what: String,
    /// Whether another start may find the device well: not where something is missing that would be
    /// missing again.
    pub may_pass: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

/// Sums since the last report, read from the device at once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Per time step: the sum over batches of the loss.
    pub loss: Vec<f64>,
    /// Per time step: samples whose label is the argmax of the logits summed up to that step.
    pub correct: Vec<u64>,
    /// Per time step: labelled samples.
    pub samples: Vec<u64>,
    /// Per time step: batches.
    pub batches: Vec<u64>,
    /// Per layer of neurons: spikes.
    pub spikes: Vec<u64>,
    /// Per layer of neurons: neurons times samples times time steps.
    pub neurons: Vec<u64>,
    /// Per layer: neurons without a spike in any sample at any time step of a batch, summed over
    /// batches. A batch begins at t = 0 and ends at the next one, or with the report.
    pub silent: Vec<u64>,
    /// Per layer: neurons times batches. A neuron is a place (h, w, c), whatever the sample.
    pub observed: Vec<u64>,
}

impl Report {
    /// Adds what was summed elsewhere or later.
    pub fn add(&mut self, more: &Self) {
        fn sum<T: Copy + Default + std::ops::AddAssign>(all: &mut Vec<T>, more: &[T]) {
            all.resize(all.len().max(more.len()), T::default());
            all.iter_mut().zip(more).for_each(|(a, &m)| *a += m);
        }
        sum(&mut self.loss, &more.loss);
        sum(&mut self.correct, &more.correct);
        sum(&mut self.samples, &more.samples);
        sum(&mut self.batches, &more.batches);
        sum(&mut self.spikes, &more.spikes);
        sum(&mut self.neurons, &more.neurons);
        sum(&mut self.silent, &more.silent);
        sum(&mut self.observed, &more.observed);
    }
}
