//! Seconds by stage and phase, for `synfire bench`.

use crate::kernel::Kernels;
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
    /// Norm, neurons and sums: forward.
    NormAndNeuron,
    /// Errors through them, and gradients of norms.
    NormAndNeuronBackward,
    /// The loss.
    Loss,
    /// The optimiser.
    Update,
}

impl Work {
    /// Every kind, in the order of the table.
    pub const ALL: [Self; 7] = [
        Self::Forward,
        Self::DataGradient,
        Self::WeightGradient,
        Self::NormAndNeuron,
        Self::NormAndNeuronBackward,
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
            Self::NormAndNeuronBackward => "their backward",
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
    ///
    /// A device that computes on its own is waited for before and after, so that the time is that of this
    /// stage; what else would run beside it does not then.
    pub(super) fn timed(
        &mut self,
        kernels: &mut dyn Kernels,
        stage: usize,
        work: Work,
        call: impl FnOnce(&mut dyn Kernels),
    ) {
        if self.spent.is_empty() {
            return call(kernels);
        }
        kernels.wait();
        let begin = Instant::now();
        call(kernels);
        kernels.wait();
        self.spent[stage][work as usize] += begin.elapsed();
    }

    /// Time of a stage by work; the row after the last stage is the loss and the update.
    pub fn rows(&self) -> &[[Duration; Work::ALL.len()]] {
        &self.spent
    }
}
