//! Gradient of the weights: over lists of spikes, or dense over a framed copy.
use super::pad::Frame;
use super::{ConvKernel, ConvScratch, ConvShape, Operand, denser_than};
use super::{samples_per_part, spike_gradient};
use crate::kernel::cpu::simd::dense::GROUP;
use crate::kernel::cpu::simd::outer::{Outer, TILE, add_outer};
use crate::kernel::cpu::simd::transpose::{Columns, from_lanes};
use crate::kernel::cpu::simd::{Isa, LANES};
use rayon::prelude::*;

/// Percent of active inputs beyond which the dense kernel is faster.
const DENSE_PERCENT: usize = 85;
/// Tasks that a small layer is cut into at least, by cutting its samples.
const TASKS: usize = 16;

/// `dw` from the input and the error.
pub(super) fn run(
    kernel: &ConvKernel,
    samples: usize,
    x: Operand<'_>,
    dy: &[f32],
    dw: &mut [f32],
    scratch: &mut ConvScratch,
) {
    if let Operand::Spikes(bits) = x
        && let Some(bands) = spike_gradient::bands(&kernel.shape, samples)
        && !denser_than(DENSE_PERCENT, &kernel.shape, bits)
    {
        return spike_gradient::run(kernel, &bands, bits, dy, dw, scratch);
    }
    dense(kernel, samples, x, dy, dw, scratch);
}

/// Channels of the error in whole vectors.
fn padded_outputs(shape: &ConvShape) -> usize {
    shape.outputs.next_multiple_of(LANES)
}

/// Sums of input times error: `[piece][group][kh][kw * inputs + TILE][32]`.
fn dense(
    kernel: &ConvKernel,
    samples: usize,
    x: Operand<'_>,
    dy: &[f32],
    dw: &mut [f32],
    scratch: &mut ConvScratch,
) {
    let shape = &kernel.shape;
    let frame = Frame::of_input(shape);
    let part = samples_per_part(samples, frame.values() * 4);
    let outputs = padded_outputs(shape);
    let length = shape.kernel * shape.inputs;
    let rows = shape.kernel * (length + TILE);
    // Narrow groups at the end have the room of a wide one.
    let groups = outputs.div_ceil(GROUP);
    let pieces = TASKS.div_ceil(groups * shape.kernel);
    let task_values = (length + TILE) * GROUP;
    let sums = scratch.sums.grown(pieces * groups * rows * GROUP);
    sums.par_chunks_mut(task_values)
        .for_each(|sums| sums.fill(0.0));
    for first in (0..samples).step_by(part) {
        let samples = part.min(samples - first);
        let positions = samples * shape.positions();
        let padded = scratch.padded.grown(samples * frame.values() + TILE);
        let (frames, _) = padded.split_at_mut(samples * frame.values());
        match x {
            Operand::Spikes(x) => {
                let pixels = shape.height * shape.width * shape.words();
                frame.fill(Operand::Spikes(&x[first * pixels..]), frames);
            }
            Operand::Real(x) => {
                frame.fill(Operand::Real(&x[first * shape.in_values()..]), frames);
            }
        }
        let dy = &dy[first * shape.positions() * shape.outputs..][..positions * shape.outputs];
        let errors = if outputs == shape.outputs {
            dy
        } else {
            let errors = scratch.errors.grown(positions * outputs);
            widen(dy, shape.outputs, errors, outputs);
            errors
        };
        let piece_positions = positions.div_ceil(pieces);
        sums.par_chunks_mut(task_values)
            .enumerate()
            .for_each(|(task, sums)| {
                let (task, kh) = (task / shape.kernel, task % shape.kernel);
                let (piece, group) = (task / groups, task % groups);
                let start = (piece * piece_positions).min(positions);
                let mut strides = frame.strides(shape.stride);
                strides.origin = kh * frame.size[1] * shape.inputs;
                let outer = Outer {
                    source: padded,
                    strides,
                    length,
                    errors: &errors[group * GROUP..],
                    error_stride: outputs,
                    vectors: ((outputs - group * GROUP) / LANES).min(2),
                    height: shape.out_height(),
                    width: shape.out_width(),
                    first: start,
                    count: piece_positions.min(positions - start),
                };
                add_outer(kernel.isa, &outer, sums);
            });
    }
    add_pieces(sums, groups * rows * GROUP);
    unpack_dense(kernel.isa, shape, sums, dw);
}

/// Rows of channels with zeros up to a whole number of vectors.
fn widen(from: &[f32], channels: usize, to: &mut [f32], width: usize) {
    let from = from.par_chunks_exact(channels);
    to.par_chunks_exact_mut(width)
        .zip(from)
        .with_min_len(64)
        .for_each(|(to, from)| {
            to[..channels].copy_from_slice(from);
            to[channels..].fill(0.0);
        });
}

/// Adds all pieces to the first one, in order.
pub(super) fn add_pieces(sums: &mut [f32], values: usize) {
    let (total, others) = sums.split_at_mut(values);
    total
        .par_chunks_mut(1 << 12)
        .enumerate()
        .for_each(|(index, total)| {
            for piece in others.chunks_exact(values) {
                let piece = &piece[index << 12..][..total.len()];
                for (total, piece) in total.iter_mut().zip(piece) {
                    *total += piece;
                }
            }
        });
}

/// `[group][kh][kw][input][32]` to OIHW.
fn unpack_dense(isa: Isa, shape: &ConvShape, sums: &[f32], dw: &mut [f32]) {
    let terms = shape.kernel * shape.kernel * shape.inputs;
    let row = (shape.kernel * shape.inputs + TILE) * GROUP;
    dw.par_chunks_mut(LANES * terms)
        .enumerate()
        .for_each(|(vector, dw)| {
            let (group, vector) = (vector / 2, vector % 2);
            let vectors = ((padded_outputs(shape) - group * GROUP) / LANES).min(2);
            let width = vectors * LANES;
            let from = group * shape.kernel * row + vector * LANES;
            let columns = Columns {
                count: terms,
                inner: [shape.kernel; 2],
                strides: [width, row, shape.inputs * width],
                is_far: false,
            };
            let rows = dw.len() / terms;
            from_lanes(isa, &sums[from..], columns, (dw, terms), rows);
        });
}

/// The gradient of a bias: sums of `dy[positions, outputs]` over positions.
///
/// # Shapes
///
/// `positions` = n oh ow; `dy` is `[positions, outputs]`, `db` is `[outputs]`, overwritten.
///
/// # Panics
///
/// If a buffer does not have that size.
pub fn bias_gradient(positions: usize, dy: &[f32], db: &mut [f32]) {
    let outputs = db.len();
    assert_eq!(dy.len(), positions * outputs, "dy is [positions, outputs]");
    db.par_chunks_mut(LANES)
        .enumerate()
        .for_each(|(vector, db)| {
            db.fill(0.0);
            // Short sums first: rounding errors grow with the longest chain.
            for rows in dy.chunks(outputs * 64) {
                let mut sums = [0.0_f32; LANES];
                for row in rows.chunks_exact(outputs) {
                    let row = &row[vector * LANES..];
                    for (sum, dy) in sums.iter_mut().zip(row) {
                        *sum += dy;
                    }
                }
                for (db, sum) in db.iter_mut().zip(&sums) {
                    *db += sum;
                }
            }
        });
}
