//! Seconds by stage and phase, for `synfire bench`.

use std::time::{Duration, Instant};

/// What a stage's time goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Convolutions, linear layers, pools: forward.
    Forward,
    /// Errors through convolutions, linear layers, pools.
    DataGradient,
    /// Gradients of convolutions and linear layers.
    WeightGradient,
    /// Norm, neurons and sums, both ways.
    NormAndNeuron,
    /// The loss.
    Loss,
    /// The optimiser.
    Update,
}

impl Work {
    /// Every kind, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Forward,
        Self::DataGradient,
        Self::WeightGradient,
        Self::NormAndNeuron,
        Self::Loss,
        Self::Update,
    ];

    /// The column's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::DataGradient => "data gradient",
            Self::WeightGradient => "weight gradient",
            Self::NormAndNeuron => "norm and neuron",
            Self::Loss => "loss",
            Self::Update => "update",
        }
    }
}

/// Time by stage and work. Off, it costs a branch per call.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    spent: Vec<[Duration; Work::ALL.len()]>,
}

impl Profile {
    /// Starts measuring `num_stages` stages; loss and update are counted beside them.
    pub(super) fn start(&mut self, num_stages: usize) {
        self.spent = vec![Default::default(); num_stages + 1];
    }

    /// Whether it measures.
    pub fn is_on(&self) -> bool {
        !self.spent.is_empty()
    }

    /// Runs `call` and adds its time. The last row belongs to no stage.
    pub(super) fn timed(&mut self, stage: usize, work: Work, call: impl FnOnce()) {
        if self.spent.is_empty() {
            return call();
        }
        let begin = Instant::now();
        call();
        self.spent[stage][work as usize] += begin.elapsed();
    }

    /// Time of a stage by work; the row after the last stage is the loss and the update.
    pub fn rows(&self) -> &[[Duration; Work::ALL.len()]] {
        &self.spent
    }
}
