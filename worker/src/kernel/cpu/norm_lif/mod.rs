//! Batch norm, sum, neurons, sum: one pass over memory forward, and one and a half backward.
//!
//! Rows are pixels, columns are channels. Sums over rows are taken in fixed blocks and combined in
//! f64 in the order of the blocks, so they are the same at any number of threads.
//!
//! # Layout
//!
//! - `forward`: norm, sum, neurons, sum of one time step.
//! - `backward`: Algorithm 1, line 17, and the sums that a norm needs.
//! - `norm`: batch norm's statistics and the second half of its backward.
//! - this file: strips and tiles, which all three work on.

#![expect(
    clippy::inline_always,
    reason = "bodies must vectorise inside the function that enables the vector instructions"
)]

mod backward;
mod forward;
mod norm;

use super::simd::rows::Rows;

/// Rows of a block: about 64 KiB of one value, which stays in the second-level cache.
fn rows_per_block(channels: usize) -> usize {
    (16_384 / channels).clamp(1, 512)
}

/// Numbers in a strip at most: what a body works on at once.
const STRIP: usize = 64;

/// How far a strip may go before channels start again: a whole row, or as many narrow rows as fit
/// in a strip. Vectors by channel are repeated to this length.
fn tile(channels: usize) -> usize {
    if channels < STRIP {
        STRIP / channels * channels
    } else {
        channels
    }
}

/// Repeats a vector by channel along a tile.
fn repeat(vector: &mut [f32], channels: usize) {
    for i in channels..vector.len() {
        vector[i] = vector[i - channels];
    }
}

/// Sums of a channel over a block's tile.
fn folded(sums: &[f32], channels: usize, channel: usize) -> f64 {
    let repeats = sums.iter().skip(channel).step_by(channels);
    repeats.map(|&sum| f64::from(sum)).sum()
}

/// A sum or a moment, taken in f64, as everything else holds it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the engine computes in f32"
)]
pub(super) fn single(wide: f64) -> f32 {
    wide as f32
}

/// A vector by channel, repeated along a tile in a scratch buffer.
fn tiled<'a>(buffer: &'a mut Vec<f32>, vector: &[f32]) -> &'a [f32] {
    let tiled = grow(buffer, tile(vector.len()));
    tiled[..vector.len()].copy_from_slice(vector);
    repeat(tiled, vector.len());
    tiled
}

fn optional<T>(slice: &mut [T], per_row: usize) -> Rows<'_, T> {
    if slice.is_empty() {
        Rows::absent()
    } else {
        Rows::new(slice, per_row)
    }
}

/// The first `len` numbers of a scratch buffer, which grows at first use.
pub(super) fn grow(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
