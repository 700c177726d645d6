//! Batch norm, neurons and their sums, over a window.
//!
//! # Layout
//!
//! - this file: the case and its numbers.
//! - [`rows`]: the cases that tests go through.
//! - `run`: the case on a back end.
//! - `loops`: the forward in plain f64 loops.
//! - `autodiff`: both directions by autodiff.

pub(crate) mod autodiff;
mod loops;
pub mod rows;
mod run;

use synfire::kernel::{Neuron, Norms, Phase, Window};
use synfire::shape::{Content, Shape};

use crate::random::{Random, Series};

/// Added to the variance under the root.
pub const EPS: f32 = 1e-5;
/// How far running statistics move.
pub const MOMENTUM: f32 = 0.1;

/// A layer at some time steps and its backward over a window. Each part may be missing.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "parts that are there or not")]
pub struct NormLifCase {
    /// Samples in the batch.
    pub samples: usize,
    /// One sample.
    pub shape: Shape,
    /// Whether there is a batch norm.
    pub norm: bool,
    /// The neurons.
    pub neuron: Option<Neuron>,
    /// Whether there is a shortcut before the neurons.
    pub before: bool,
    /// What the shortcut after the neurons is.
    pub after: Option<Content>,
    /// Whether somebody else reads y.
    pub store_y: bool,
    /// Which statistics norm uses; in evaluation there is no backward.
    pub phase: Phase,
    /// Time steps that run forward.
    pub num_steps: usize,
    /// The window of the backward.
    pub window: usize,
    /// How many of its newest steps an error arrives for at `out`.
    pub out_arrived: Option<usize>,
    /// How many of its newest steps an error arrives for at `y`.
    pub y_arrived: Option<usize>,
    /// Whether the error of z is wanted.
    pub want_z: bool,
    /// Whether errors are added to what is there.
    pub accumulate: bool,
    /// Over whose samples the norm takes its statistics.
    pub across: Norms,
    /// Whether other ranks' numbers are mixed in where they travel; if not, there is one rank.
    pub others: bool,
    /// Whether numbers are quarters, so that many membrane potentials are at the threshold.
    pub quarters: bool,
    /// Whether a convolution writes z, and reads its error.
    pub z_of_conv: bool,
    /// Whether a convolution writes the error at `out`.
    pub out_of_conv: bool,
    /// Which numbers.
    pub seed: u64,
}

/// The numbers of a case.
#[derive(Clone, Debug)]
pub struct NormLifData {
    /// Inputs.
    pub z: Series,
    /// Shortcuts before the neurons.
    pub before: Series,
    /// Shortcuts after the neurons.
    pub after: Series,
    /// Errors at `out`.
    pub g_out: Series,
    /// Errors at `y`.
    pub g_y: Series,
    /// Gain.
    pub gamma: Vec<f32>,
    /// Shift.
    pub beta: Vec<f32>,
    /// Running means at the start.
    pub running_mean: Vec<f32>,
    /// Running variances at the start.
    pub running_var: Vec<f32>,
}

impl NormLifCase {
    /// Numbers in a slot.
    pub fn elements(&self) -> usize {
        self.samples * self.shape.elements()
    }

    /// The time steps of the backward.
    pub fn steps(&self) -> Window {
        self.newest(self.window)
    }

    /// The newest `len` time steps.
    pub fn newest(&self, len: usize) -> Window {
        let newest = self.num_steps - 1;
        Window { newest, len }
    }

    /// The time steps for which errors are handed down.
    ///
    /// # Panics
    /// If nothing arrives.
    pub fn handed_down(&self) -> Window {
        match (self.neuron, self.out_arrived, self.y_arrived) {
            (Some(_), Some(_), _) => self.steps(),
            (_, _, Some(len)) => self.newest(len),
            (_, _, None) => panic!("nothing arrived"),
        }
    }

    /// The same numbers every time.
    pub fn data(&self) -> NormLifData {
        let mut random = Random::new(self.seed);
        let (steps, elements) = (self.num_steps, self.elements());
        let channels = self.shape.channels;
        let mut scaled = |n: usize, scale: f32, shift: f32| -> Vec<f32> {
            let normal = random.normal(n);
            normal.iter().map(|x| x * scale + shift).collect()
        };
        let (scale, shift) = if self.norm { (2.0, 0.7) } else { (0.8, 0.5) };
        let mut series = |scale, shift| -> Series {
            let number = |x: f32| {
                if self.quarters {
                    (x * 4.0).round() / 4.0
                } else {
                    x
                }
            };
            let step = |_| {
                scaled(elements, scale, shift)
                    .into_iter()
                    .map(number)
                    .collect()
            };
            (0..steps).map(step).collect()
        };
        let (z, before) = (series(scale, shift), series(0.5, 0.0));
        let (g_out, g_y) = (series(1.0, 0.0), series(1.0, 0.0));
        let gamma = scaled(channels, 0.3, 1.0);
        let beta = scaled(channels, 0.3, 0.4);
        let running_mean = scaled(channels, 0.3, 0.5);
        let running_var = scaled(channels, 0.3, 4.0);
        let after = self.after.unwrap_or(Content::Spikes);
        NormLifData {
            z,
            before,
            g_out,
            g_y,
            gamma,
            beta,
            running_mean,
            running_var,
            after: random.series(after, steps, elements),
        }
    }

    /// The same case with numbers that keep every membrane potential away from the threshold, so
    /// that rounding decides about no spike.
    ///
    /// # Panics
    /// If no seed gives such numbers: the case is too large.
    #[must_use]
    pub fn clear_of_threshold(self) -> Self {
        let with_seed = |seed| Self {
            seed,
            ..self.clone()
        };
        let clear = |case: &Self| case.distance_to_threshold() > 1e-5;
        let mut tried = (self.seed..self.seed + 100).map(with_seed);
        tried
            .find(clear)
            .expect("a smaller case would have such numbers")
    }
}
