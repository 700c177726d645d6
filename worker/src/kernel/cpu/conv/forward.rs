//! Forward: over set bits, or dense over a framed copy.
use super::pad::Frame;
use super::{ConvKernel, ConvScratch, Operand, denser_than, samples_per_part};
use crate::kernel::cpu::simd::dense::{self, Dense, Strides};
use crate::kernel::cpu::simd::spikes;

/// Percent of active inputs beyond which the dense kernel is faster.
const DENSE_PERCENT: usize = 85;

/// `y` = `x` convolved with the kernel's weights, plus the bias.
pub(super) fn run(
    kernel: &ConvKernel,
    samples: usize,
    x: Operand<'_>,
    bias: Option<&[f32]>,
    y: &mut [f32],
    scratch: &mut ConvScratch,
) {
    let (shape, isa) = (&kernel.shape, kernel.isa);
    if let Operand::Spikes(bits) = x
        && !denser_than(DENSE_PERCENT, shape, bits)
    {
        return spikes::convolve(isa, shape, samples, bits, kernel.forward.values(), bias, y);
    }
    let frame = Frame::of_input(shape);
    let part = samples_per_part(samples, frame.values() * 4);
    let pixels = shape.height * shape.width;
    for first in (0..samples).step_by(part) {
        let samples = part.min(samples - first);
        let x = match x {
            Operand::Spikes(x) => Operand::Spikes(&x[first * pixels * shape.words()..]),
            Operand::Real(x) => Operand::Real(&x[first * shape.in_values()..]),
        };
        let source = match x {
            Operand::Real(x) if frame.is_image() => x,
            Operand::Real(_) | Operand::Spikes(_) => {
                let padded = scratch.padded.grown(samples * frame.values());
                frame.fill(x, padded);
                padded
            }
        };
        let column = shape.outputs;
        let row = shape.out_width() * column;
        let dense = Dense {
            samples,
            height: shape.out_height(),
            width: shape.out_width(),
            source: frame.strides(shape.stride),
            target: Strides {
                origin: 0,
                sample: shape.out_height() * row,
                row,
                column,
            },
            taps: [shape.kernel; 2],
            tap_row: frame.size[1] * shape.inputs,
            channels: shape.inputs,
            block: 64,
            outputs: shape.outputs,
            chunk: chunk(frame.values(), shape.positions()),
            accumulate: false,
        };
        let y = &mut y[first * shape.positions() * shape.outputs..];
        dense::convolve(isa, &dense, source, kernel.forward.values(), bias, y);
    }
}

/// Positions of one task, so that what they see stays in L2 while all weights pass by.
pub(super) fn chunk(frame_values: usize, positions: usize) -> usize {
    const L2_VALUES: usize = 64 << 10;
    let fit = L2_VALUES * positions / frame_values.max(1);
    (fit / 24 * 24).clamp(48, 1 << 12)
}
