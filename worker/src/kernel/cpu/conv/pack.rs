//! Weights between OIHW and the layouts of the kernels.
use super::ConvShape;
use crate::kernel::cpu::simd::dense::GROUP;
use crate::kernel::cpu::simd::transpose::{Columns, to_lanes};
use crate::kernel::cpu::simd::{Isa, LANES};
use rayon::prelude::*;
use std::ops::Range;

/// Weights beyond this many leave the cache before they are used.
const FAR: usize = 1 << 20;

/// Values of the forward and of the backward form.
pub(super) fn lengths(shape: &ConvShape) -> [usize; 2] {
    let taps = shape.kernel * shape.kernel;
    [
        shape.outputs.next_multiple_of(LANES) * taps * shape.inputs,
        shape.inputs.next_multiple_of(LANES) * taps * shape.outputs,
    ]
}

/// `[group][word][kh][kw][64][32]`: groups of outputs; the last group may be 16 wide, the last
/// word has as many rows as inputs are left.
pub(super) fn forward(isa: Isa, shape: &ConvShape, oihw: &[f32], packed: &mut [f32]) {
    let taps = shape.kernel * shape.kernel;
    let terms = taps * shape.inputs;
    // The next forward pass comes after all other layers.
    let is_far = packed.len() >= FAR;
    packed
        .par_chunks_mut(GROUP * terms)
        .enumerate()
        .for_each(|(group, packed)| {
            let width = packed.len() / terms;
            packed
                .par_chunks_mut(64 * taps * width)
                .enumerate()
                .for_each(|(word, packed)| {
                    let rows = packed.len() / (taps * width);
                    for vector in 0..width / LANES {
                        let output = group * GROUP + vector * LANES;
                        let columns = Columns {
                            count: rows * taps,
                            inner: [1, taps],
                            strides: [width, 0, rows * width],
                            is_far,
                        };
                        let from = &oihw[output * terms + word * 64 * taps..];
                        let outputs = LANES.min(shape.outputs - output);
                        let to = &mut packed[vector * LANES..];
                        to_lanes(isa, (from, terms), outputs, to, columns);
                    }
                });
        });
}

/// Where the backward weights of one residue class lie.
pub(super) fn class(shape: &ConvShape, [row, column]: [usize; 2]) -> Range<usize> {
    let values = shape.inputs.next_multiple_of(LANES) * shape.outputs;
    let rows: usize = (0..row).map(|r| shape.taps(r)).sum();
    let columns: usize = (0..column).map(|r| shape.taps(r)).sum();
    let start = rows * shape.kernel + shape.taps(row) * columns;
    start * values..(start + shape.taps(row) * shape.taps(column)) * values
}

/// `[class][group][tap row][tap column][output][32]`: groups of inputs, taps mirrored, from the
/// forward form.
pub(super) fn backward(isa: Isa, shape: &ConvShape, forward: &[f32], packed: &mut [f32]) {
    for row in 0..shape.stride {
        for column in 0..shape.stride {
            let taps = [shape.taps(row), shape.taps(column)];
            if taps.contains(&0) {
                continue;
            }
            let terms = taps[0] * taps[1] * shape.outputs;
            let packed = &mut packed[class(shape, [row, column])];
            packed
                .par_chunks_mut(GROUP * terms)
                .enumerate()
                .for_each(|(group, packed)| {
                    let width = packed.len() / terms;
                    packed
                        .par_chunks_mut(shape.outputs * width)
                        .enumerate()
                        .for_each(|(tap, to)| {
                            let (down, right) = (tap / taps[1], tap % taps[1]);
                            let kh = row + (taps[0] - 1 - down) * shape.stride;
                            let kw = column + (taps[1] - 1 - right) * shape.stride;
                            for vector in 0..width / LANES {
                                let input = group * GROUP + vector * LANES;
                                let to = &mut to[vector * LANES..];
                                mirror(isa, shape, forward, [kh, kw, input], (to, width));
                            }
                        });
                });
        }
    }
}

/// Up to 16 inputs of one tap, all outputs: `to[output * width ..]`.
fn mirror(
    isa: Isa,
    shape: &ConvShape,
    forward: &[f32],
    [kh, kw, input]: [usize; 3],
    (to, width): (&mut [f32], usize),
) {
    let taps = shape.kernel * shape.kernel;
    let (word, row) = (input / 64, input % 64);
    let rows = 64.min(shape.inputs - word * 64);
    let valid = LANES.min(shape.inputs - input);
    let tap = kh * shape.kernel + kw;
    for output in (0..shape.outputs).step_by(LANES) {
        let (group, vector) = (output / GROUP, output % GROUP);
        let from_width = GROUP.min(shape.outputs.next_multiple_of(LANES) - group * GROUP);
        let start = group * GROUP * taps * shape.inputs
            + (word * 64 * taps + tap * rows + row) * from_width
            + vector;
        let count = LANES.min(shape.outputs - output);
        let columns = Columns::spaced(count, width);
        let to = &mut to[output * width..];
        to_lanes(isa, (&forward[start..], from_width), valid, to, columns);
    }
}
