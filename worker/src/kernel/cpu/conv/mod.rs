//! Convolutions on the CPU, over spikes and over real values.
//!
//! # Layout
//!
//! In the order data meets them:
//!
//! - [`ConvShape`], [`Operand`]: what is convolved.
//! - [`ConvScratch`]: buffers for all of them.
//! - `pack`: weights between OIHW and the layouts of the kernels.
//! - `pad`: inputs with their borders.
//! - `forward`, `data_gradient`, `weight_gradient`: which kernel runs over which part.
//! - `bands`, `spike_gradient`: the weight gradient of spikes.
//!
//! Work is cut by sizes alone, never by the number of threads, and partial sums are added in a
//! fixed order: results have the same bits on any pool.

pub(crate) mod bands;
mod data_gradient;
mod forward;
mod pack;
mod pad;
pub(crate) mod scratch;
mod spike_gradient;
#[cfg(test)]
mod tests;
mod weight_gradient;

use super::simd::Isa;
use rayon::prelude::*;
use scratch::Buffer;
pub use scratch::ConvScratch;
pub use weight_gradient::bias_gradient;

/// Bytes that one scratch buffer aims to stay below: larger batches pass in parts.
const PART_BYTES: usize = 8 << 20;

/// The sizes of one square convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Input pixels between neighbouring outputs.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

impl ConvShape {
    /// Rows of the output.
    pub fn out_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Columns of the output.
    pub fn out_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Words of spike bits per pixel.
    pub fn words(&self) -> usize {
        self.inputs.div_ceil(64)
    }

    /// Values of one sample of the input.
    fn in_values(&self) -> usize {
        self.height * self.width * self.inputs
    }

    /// Positions of one sample of the output.
    fn positions(&self) -> usize {
        self.out_height() * self.out_width()
    }

    /// Values of the weights.
    fn weights(&self) -> usize {
        self.outputs * self.inputs * self.kernel * self.kernel
    }

    /// Residues of an input row (or column) modulo the stride, and the taps that reach it.
    fn taps(&self, residue: usize) -> usize {
        (self.kernel + self.stride - 1 - residue) / self.stride
    }
}

/// The input of a convolution.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// `[n, h, w, words]`: channel c is bit c % 64 of word c / 64; bits beyond `inputs` are 0.
    Spikes(&'a [u64]),
    /// `[n, h, w, inputs]`.
    Real(&'a [f32]),
}

/// Samples that pass together when each takes `bytes` of scratch, in parts of equal size.
fn samples_per_part(samples: usize, bytes: usize) -> usize {
    let most = (PART_BYTES / bytes.max(1)).max(1);
    samples.div_ceil(samples.div_ceil(most).max(1)).max(1)
}

/// One convolution with its weights, packed for the kernels.
#[derive(Debug)]
pub struct ConvKernel {
    shape: ConvShape,
    isa: Isa,
    /// `[group][word][kh][kw][64][32]` over outputs and inputs.
    forward: Buffer,
    /// `[group][class][tap row][tap column][output][32]`, groups of inputs, taps mirrored.
    backward: Buffer,
    /// The weights have changed since `backward` was packed.
    is_stale: bool,
}

impl ConvKernel {
    /// A convolution with all weights 0.
    ///
    /// # Panics
    ///
    /// If a size is 0, the kernel does not fit the padded input, or the machine lacks `isa`.
    pub fn new(shape: ConvShape, isa: Isa) -> Self {
        assert!(isa.is_available(), "{isa} kernels on a machine without it");
        let ConvShape {
            height,
            width,
            inputs,
            outputs,
            kernel,
            stride,
            padding,
        } = shape;
        assert!(
            [height, width, inputs, outputs, kernel, stride]
                .iter()
                .all(|n| *n > 0)
        );
        assert!(
            height.min(width) + 2 * padding >= kernel,
            "a kernel larger than its input"
        );
        let mut packed = Buffer::default();
        packed.grown(pack::lengths(&shape)[0]);
        // The backward form is made when an error first flows: the first layer needs none.
        Self {
            shape,
            isa,
            forward: packed,
            backward: Buffer::default(),
            is_stale: true,
        }
    }

    /// The sizes.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Takes new weights `[outputs, inputs, kernel, kernel]`; called after every update.
    ///
    /// # Panics
    ///
    /// If the weights do not have the shape's size.
    pub fn set_weights(&mut self, oihw: &[f32]) {
        assert_eq!(
            oihw.len(),
            self.shape.weights(),
            "weights are [o, i, kh, kw]"
        );
        let [forward, _] = pack::lengths(&self.shape);
        pack::forward(self.isa, &self.shape, oihw, self.forward.grown(forward));
        self.is_stale = true;
    }

    /// Convolves: `y[n, oh, ow, outputs]`, overwritten.
    ///
    /// # Panics
    ///
    /// If a buffer does not have the shape's size.
    pub fn forward(
        &mut self,
        samples: usize,
        x: Operand<'_>,
        bias: Option<&[f32]>,
        y: &mut [f32],
        scratch: &mut ConvScratch,
    ) {
        self.check(samples, x, y.len());
        forward::run(self, samples, x, bias, y, scratch);
    }

    /// The error of the input: `dx[n, h, w, inputs]` from `dy[n, oh, ow, outputs]`, overwritten
    /// or, with `accumulate`, added to.
    ///
    /// # Panics
    ///
    /// If a buffer does not have the shape's size.
    pub fn data_gradient(
        &mut self,
        samples: usize,
        dy: &[f32],
        dx: &mut [f32],
        accumulate: bool,
        scratch: &mut ConvScratch,
    ) {
        self.check(samples, Operand::Real(dx), dy.len());
        data_gradient::run(self, samples, dy, dx, accumulate, scratch);
    }

    /// The gradient of the weights, `[outputs, inputs, kernel, kernel]`, overwritten.
    ///
    /// # Panics
    ///
    /// If a buffer does not have the shape's size.
    pub fn weight_gradient(
        &mut self,
        samples: usize,
        x: Operand<'_>,
        dy: &[f32],
        dw_oihw: &mut [f32],
        scratch: &mut ConvScratch,
    ) {
        self.check(samples, x, dy.len());
        assert_eq!(
            dw_oihw.len(),
            self.shape.weights(),
            "weights are [o, i, kh, kw]"
        );
        weight_gradient::run(self, samples, x, dy, dw_oihw, scratch);
    }

    /// Packs the backward form if the weights have changed.
    fn refresh(&mut self) {
        if self.is_stale {
            let [_, backward] = pack::lengths(&self.shape);
            let (from, to) = (self.forward.values(), self.backward.grown(backward));
            pack::backward(self.isa, &self.shape, from, to);
            self.is_stale = false;
        }
    }

    /// Sizes of the input and of the output.
    fn check(&self, samples: usize, x: Operand<'_>, y: usize) {
        let pixels = samples * self.shape.height * self.shape.width;
        match x {
            Operand::Spikes(x) => {
                assert_eq!(
                    x.len(),
                    pixels * self.shape.words(),
                    "spikes are [n, h, w, words]"
                );
            }
            Operand::Real(x) => {
                assert_eq!(
                    x.len(),
                    pixels * self.shape.inputs,
                    "real input is [n, h, w, c]"
                );
            }
        }
        let outputs = samples * self.shape.positions() * self.shape.outputs;
        assert_eq!(y, outputs, "output is [n, oh, ow, outputs]");
    }
}

/// Whether more than `percent` of all channels spike.
fn denser_than(percent: usize, shape: &ConvShape, bits: &[u64]) -> bool {
    let spikes: usize = bits.par_iter().map(|b| b.count_ones() as usize).sum();
    spikes * 100 > bits.len() / shape.words() * shape.inputs * percent
}
