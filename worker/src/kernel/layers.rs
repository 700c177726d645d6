//! What the operations of a time step are told: one description per layer, loss and update.

use super::{Buffer, Errors, ErrorsOut, Span};
use crate::shape::{Join, Shape};

/// A convolution, or a linear layer as one: a 1 x 1 filter on a 1 x 1 picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// The number under which the back end keeps packed weights: counts convolutions from 0.
    pub index: usize,
    /// Samples in the batch.
    pub samples: usize,
    /// One input sample.
    pub input: Shape,
    /// One output sample.
    pub output: Shape,
    /// Side of the filter.
    pub kernel: usize,
    /// Distance between output pixels.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
    /// Its weight, OIHW.
    pub weight: Span,
    /// Its bias.
    pub bias: Option<Span>,
}

/// What a neuron does (Eqs. 1 to 4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neuron {
    /// The leak factor is 1 / `tau_m`; the input is not divided.
    pub tau_m: f32,
    /// The threshold; a spike is `u >= v_th`.
    pub v_th: f32,
    /// The surrogate is `max(0, alpha - alpha^2 |u - v_th|)` (Eq. 4 with the absolute value).
    pub alpha: f32,
    /// What a spike does to the membrane potential.
    pub reset: Reset,
    /// Whether the reset passes no error (drops the H' term of `du_{t+1}/du_t`).
    pub detach_reset: bool,
}

impl Neuron {
    /// H'(u), the surrogate of ds/du (Eq. 4).
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "it must vectorise inside every form of the loops"
    )]
    pub fn surrogate(&self, u: f32) -> f32 {
        (self.alpha - self.alpha * self.alpha * (u - self.v_th).abs()).max(0.0)
    }
}

impl Default for Neuron {
    /// The neuron of the paper's recipes for static pictures: `tau_m` 2, `v_th` 1, alpha 1, hard
    /// reset, its error kept.
    fn default() -> Self {
        Self {
            tau_m: 2.0,
            v_th: 1.0,
            alpha: 1.0,
            reset: Reset::Hard,
            detach_reset: false,
        }
    }
}

/// What a spike does to the membrane potential before the next time step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// To zero: u (1 - s).
    Hard,
    /// Down by the threshold: `u - v_th s`.
    Soft,
    /// Nothing.
    None,
}

/// Over whose samples a batch norm takes its statistics in training.
///
/// Where there are several ranks, [`Arena::Moments`](super::Arena::Moments) carries the moments of
/// a time step, and the running statistics move once those of all ranks are known
/// ([`Kernels::apply_moments`](super::Kernels::apply_moments)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Norms {
    /// There is one rank: those of its batch.
    #[default]
    Own,
    /// It normalises with those of its own share; the running ones follow those of all shares.
    Pooled,
    /// It normalises with those of all shares, as one rank with all samples would.
    Synchronised,
}

/// A batch norm's parameters and running statistics.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// The gain.
    pub gamma: Span,
    /// The shift.
    pub beta: Span,
    /// Running mean, in [`Arena::Statistics`](super::Arena::Statistics).
    pub running_mean: Span,
    /// Running variance, in [`Arena::Statistics`](super::Arena::Statistics).
    pub running_var: Span,
    /// Added to the variance under the root.
    pub eps: f32,
    /// How far running statistics move towards those of a batch.
    pub momentum: f32,
    /// Mean and 1/std of each time step of the window: plain, 1 sample of 1 x 2 x C (means first).
    pub moments: Buffer,
    /// Over whose samples statistics are taken.
    pub across: Norms,
    /// Where norms are synchronised, the sums of g and of g xhat of each time step of the window on
    /// their way to the other ranks: as `moments`, sums of g first.
    pub sums: Option<Buffer>,
}

impl Norm {
    /// Where the running mean and the running variance of a channel lie.
    pub(super) fn channel(&self, channel: usize) -> [usize; 2] {
        [self.running_mean, self.running_var].map(|span| span.offset + channel)
    }
}

/// A layer of neurons.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lif {
    /// The equations.
    pub neuron: Neuron,
    /// The number under which its spikes are counted.
    pub index: usize,
    /// Membrane potentials u of the window, plain.
    pub u: Buffer,
}

/// Batch norm, sum with a shortcut, neurons, sum with a shortcut: one pass over memory.
///
/// `y = norm(z) + before`; `u = leak(u, s) + y`; `s = [u >= v_th]`; `out = s + after`. Every part
/// but `z` may be missing; without neurons, `out` and `after` are missing too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormLif {
    /// Samples in the batch.
    pub samples: usize,
    /// One sample.
    pub shape: Shape,
    /// The batch norm; without it `z` is taken as it is.
    pub norm: Option<Norm>,
    /// The neurons.
    pub lif: Option<Lif>,
    /// The input.
    pub z: Buffer,
    /// The shortcut summed before the neurons.
    pub before: Option<Buffer>,
    /// Where y goes, if somebody else reads it.
    pub y: Option<Buffer>,
    /// The shortcut summed after the neurons.
    pub after: Option<Buffer>,
    /// Where the spikes, or their sum with `after`, go.
    pub out: Option<Buffer>,
}

/// The errors of a [`NormLif`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormLifErrors {
    /// What arrives at `out`.
    pub out: Option<Errors>,
    /// What arrives at `y` from its other readers.
    pub y: Option<Errors>,
    /// Where the error of `z` goes; `None` where `z` is the network's input.
    pub z: Option<ErrorsOut>,
    /// Where the error of `before` goes.
    pub before: Option<ErrorsOut>,
    /// Where the error of `after` goes.
    pub after: Option<ErrorsOut>,
}

/// What a pool computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// The first maximum in row-major order; padding counts as minus infinity.
    Max {
        /// Side of the window.
        kernel: usize,
        /// Distance between windows.
        stride: usize,
        /// Padding around the input.
        padding: usize,
        /// The position of the maximum inside its window, `row * kernel + column`, of the window's
        /// time steps: plain, shape of the output.
        argmax: Buffer,
    },
    /// The mean over windows of this side and stride; a remainder is ignored.
    Average {
        /// Side of the window.
        kernel: usize,
    },
    /// The mean over bins [floor(i n/o), ceil((i+1) n/o)).
    Adaptive,
}

/// A pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Samples in the batch.
    pub samples: usize,
    /// One input sample.
    pub input: Shape,
    /// One output sample.
    pub output: Shape,
    /// What it computes.
    pub kind: PoolKind,
}

/// A dropout layer: `y = x mask`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Samples in the batch.
    pub samples: usize,
    /// One sample.
    pub shape: Shape,
    /// The factors of each time step of the window, plain.
    pub mask: Buffer,
    /// The share of inputs that are dropped.
    pub p: f32,
    /// What kept inputs are multiplied by: 1/(1-p), or 1 as the released code has it.
    pub scale: f32,
    /// The place of its first sample in the batch of all ranks: masks are drawn by place, so that
    /// those of several ranks together are those of one.
    pub first_sample: usize,
}

impl Dropout {
    /// The number of its first element in a slot of the batch of all ranks.
    pub fn first_element(&self) -> u64 {
        self.first_sample as u64 * self.shape.elements() as u64
    }
}

/// A branch joined with its shortcut where [`NormLif`] does not do it: `y = join(a, b)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residual {
    /// Samples in the batch.
    pub samples: usize,
    /// One sample.
    pub shape: Shape,
    /// How they are joined.
    pub join: Join,
    /// The branch.
    pub a: Buffer,
    /// The shortcut.
    pub b: Buffer,
    /// The result.
    pub y: Buffer,
}

/// The loss at one time step (Eq. 11), as two weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Samples in the batch.
    pub samples: usize,
    /// Classes K.
    pub classes: usize,
    /// The weight of the cross-entropy: 1 - lambda (`paper`), else 1.
    pub ce: f32,
    /// The weight of the mean squared error against one-hot labels: lambda, or 0 (`ce`).
    pub mse: f32,
}

/// An update of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// v <- momentum v + (g + decay p); p <- p - lr v.
    Sgd {
        /// The learning rate.
        lr: f32,
        /// The momentum.
        momentum: f32,
        /// The weight decay, on every parameter.
        weight_decay: f32,
    },
    /// Decoupled weight decay (Loshchilov, Hutter, ICLR 2019).
    AdamW {
        /// The learning rate.
        lr: f32,
        /// The decay of the first moment.
        beta1: f32,
        /// The decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        epsilon: f32,
        /// The decoupled weight decay.
        weight_decay: f32,
        /// The number of this update, from 1.
        update: u64,
    },
}
