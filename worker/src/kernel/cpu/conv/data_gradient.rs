//! Error of the input: a dense convolution of the framed error with mirrored weights, one for
//! each residue of the input pixel modulo the stride.
use super::forward::chunk;
use super::pad::Frame;
use super::{ConvKernel, ConvScratch, ConvShape, Operand, PART_BYTES, pack, samples_per_part};
use crate::kernel::cpu::simd::LANES;
use crate::kernel::cpu::simd::dense::{self, Dense, Strides};
use crate::kernel::cpu::simd::winograd::{self, MOST_CHANNELS, TILE, Weights, Winograd};
use rayon::prelude::*;

/// `dx` from `dy`.
///
/// Output o = (i + padding - k) / stride, so an input pixel i with (i + padding) = q stride + r
/// hears from outputs q - j through the taps k = r + j stride.
pub(super) fn run(
    kernel: &mut ConvKernel,
    samples: usize,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    scratch: &mut ConvScratch,
) {
    if winograd_pays(&kernel.shape) {
        return transformed(kernel, samples, dy, dx, accumulate, scratch);
    }
    kernel.refresh();
    let (kernel, shape) = (&*kernel, &kernel.shape);
    let frame = error_frame(shape);
    let part = samples_per_part(samples, frame.values() * 4);
    let (in_values, out_values) = (shape.in_values(), shape.positions() * shape.outputs);
    for first in (0..samples).step_by(part) {
        let samples = part.min(samples - first);
        let dy = &dy[first * out_values..];
        let dx = &mut dx[first * in_values..(first + samples) * in_values];
        let source = if frame.is_image() {
            dy
        } else {
            let padded = scratch.padded.grown(samples * frame.values());
            frame.fill(Operand::Real(dy), padded);
            padded
        };
        if shape.stride > shape.kernel && !accumulate {
            // Pixels between the taps hear nothing.
            dx.par_chunks_mut(in_values).for_each(|dx| dx.fill(0.0));
        }
        for row in 0..shape.stride {
            for column in 0..shape.stride {
                class(kernel, samples, [row, column], source, dx, accumulate);
            }
        }
    }
}

/// Whether the transforms cost less than the multiplications they save.
fn winograd_pays(shape: &ConvShape) -> bool {
    let ConvShape {
        height,
        width,
        inputs,
        outputs,
        kernel,
        stride,
        padding,
    } = *shape;
    let tiles = height.div_ceil(TILE) * width.div_ceil(TILE);
    kernel == 3
        && stride == 1
        && padding <= 2
        && inputs.is_multiple_of(LANES)
        && outputs.is_multiple_of(LANES)
        && inputs.min(outputs) >= 16
        && outputs <= MOST_CHANNELS
        && tiles * 36 * 2 <= height * width * 9
}

/// The error of a 3 x 3 convolution with stride 1.
fn transformed(
    kernel: &mut ConvKernel,
    samples: usize,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    scratch: &mut ConvScratch,
) {
    let shape = &kernel.shape;
    let job = Winograd {
        samples,
        height: shape.out_height(),
        width: shape.out_width(),
        channels: shape.outputs,
        out_height: shape.height,
        out_width: shape.width,
        outputs: shape.inputs,
        before: 2 - shape.padding,
        accumulate,
    };
    let [shared, slot] = job.scratch(PART_BYTES);
    let shared = scratch.padded.grown(shared);
    let scratch = (shared, scratch.slots.grown(slot), PART_BYTES);
    let weights = if job.is_long() {
        kernel.refresh();
        Weights::Backward(kernel.backward.values())
    } else {
        Weights::Forward(kernel.forward.values())
    };
    winograd::convolve(kernel.isa, &job, dy, weights, dx, scratch);
}

/// Rows (or columns) of the error's border before the first output.
fn before(shape: &ConvShape) -> usize {
    (shape.taps(0) - 1).saturating_sub(shape.padding / shape.stride)
}

/// The error with as many zeros around it as any input pixel sees.
fn error_frame(shape: &ConvShape) -> Frame {
    let side = |input: usize| before(shape) + (input - 1 + shape.padding) / shape.stride + 1;
    Frame {
        image: [shape.out_height(), shape.out_width(), shape.outputs],
        size: [side(shape.height), side(shape.width)],
        at: [before(shape); 2],
    }
}

/// First input row (or column) of a residue, and how many there are.
fn pixels(shape: &ConvShape, residue: usize, input: usize) -> (usize, usize) {
    let first = (residue + shape.stride - shape.padding % shape.stride) % shape.stride;
    (first, input.saturating_sub(first).div_ceil(shape.stride))
}

/// The input pixels whose padded coordinates have these residues.
fn class(
    kernel: &ConvKernel,
    samples: usize,
    residues: [usize; 2],
    source: &[f32],
    dx: &mut [f32],
    accumulate: bool,
) {
    let shape = &kernel.shape;
    let taps = residues.map(|r| shape.taps(r));
    let (top, height) = pixels(shape, residues[0], shape.height);
    let (left, width) = pixels(shape, residues[1], shape.width);
    if taps.contains(&0) || height * width == 0 {
        return;
    }
    let frame = error_frame(shape);
    // The first pixel's q, less its last tap: mirrored taps ascend from there.
    let corner = |first: usize, taps: usize| {
        before(shape) + (first + shape.padding) / shape.stride + 1 - taps
    };
    let row = shape.width * shape.inputs;
    let target = Strides {
        origin: top * row + left * shape.inputs,
        sample: shape.in_values(),
        row: shape.stride * row,
        column: shape.stride * shape.inputs,
    };
    let mut strides = frame.strides(1);
    strides.origin = corner(top, taps[0]) * strides.row + corner(left, taps[1]) * strides.column;
    let dense = Dense {
        samples,
        height,
        width,
        source: strides,
        target,
        taps,
        tap_row: strides.row,
        channels: shape.outputs,
        block: usize::MAX,
        outputs: shape.inputs,
        chunk: chunk(frame.values(), height * width),
        accumulate,
    };
    let weights = &kernel.backward.values()[pack::class(shape, residues)];
    dense::convolve(kernel.isa, &dense, source, weights, None, dx);
}
