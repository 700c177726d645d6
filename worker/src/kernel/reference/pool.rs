//! Pools, one position of the window at a time.

use std::ops::Range;

use burn::tensor::{Tensor, s};

use super::memory::{Value, dims};
use crate::kernel::Pool;
use crate::shape::Shape;

/// How square windows lie on a padded picture.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    /// One window per pixel of this shape.
    pub(super) output: Shape,
}

impl Tiling {
    /// The positions inside a window, row-major.
    pub(super) fn positions(self) -> impl Iterator<Item = (usize, usize)> {
        let k = self.kernel;
        (0..k * k).map(move |position| (position / k, position % k))
    }

    /// What the windows have at one position: a pixel for each window.
    pub(super) fn take(self, padded: &Value, (row, column): (usize, usize)) -> Value {
        let rows = self.met(row, self.output.height);
        let columns = self.met(column, self.output.width);
        let step = self.stride;
        padded.clone().slice(s![.., rows;step, columns;step, ..])
    }

    /// The way back of [`Tiling::take`]: adds to what the windows have at one position.
    fn give(self, padded: Value, (row, column): (usize, usize), values: Value) -> Value {
        let there = self.take(&padded, (row, column));
        let rows = self.met(row, self.output.height);
        let columns = self.met(column, self.output.width);
        let step = self.stride;
        padded.slice_assign(s![.., rows;step, columns;step, ..], there + values)
    }

    /// The first to the last pixel that `windows` windows have at one position.
    fn met(self, position: usize, windows: usize) -> Range<usize> {
        position..position + (windows - 1) * self.stride + 1
    }
}

/// A picture with a border of `fill`.
pub(super) fn pad(x: Value, padding: usize, fill: f32) -> Value {
    let [n, h, w, c] = x.dims();
    let dims = [n, h + 2 * padding, w + 2 * padding, c];
    let (rows, columns) = (padding..padding + h, padding..padding + w);
    Tensor::full(dims, fill, &x.device()).slice_assign(s![.., rows, columns, ..], x)
}

/// The way back of [`pad`].
fn crop(padded: Value, padding: usize, input: Shape) -> Value {
    let (rows, columns) = (
        padding..padding + input.height,
        padding..padding + input.width,
    );
    padded.slice(s![.., rows, columns, ..])
}

/// A gradient of the padded input, before anything is added.
fn nothing(pool: &Pool, padding: usize, like: &Value) -> Value {
    let Shape {
        height,
        width,
        channels,
    } = pool.input;
    let padded = Shape::new(height + 2 * padding, width + 2 * padding, channels);
    Tensor::zeros(dims(pool.samples, padded), &like.device())
}

/// The maximum of each window and its position: of equals, the first in row-major order.
pub(super) fn max_forward(tiling: Tiling, x: Value) -> (Value, Value) {
    let padded = pad(x, tiling.padding, f32::NEG_INFINITY);
    let mut best = tiling.take(&padded, (0, 0));
    let mut argmax = best.zeros_like();
    for (index, position) in tiling.positions().enumerate().skip(1) {
        let candidate = tiling.take(&padded, position);
        let better = candidate.clone().greater(best.clone());
        best = best.mask_where(better.clone(), candidate);
        argmax = argmax.mask_fill(better, index as f32);
    }
    (best, argmax)
}

/// The gradient goes to the maximum.
pub(super) fn max_backward(pool: &Pool, tiling: Tiling, dy: &Value, argmax: &Value) -> Value {
    let mut dx = nothing(pool, tiling.padding, dy);
    for (index, position) in tiling.positions().enumerate() {
        let here = argmax.clone().equal_scalar(index as f32).float();
        dx = tiling.give(dx, position, here * dy.clone());
    }
    crop(dx, tiling.padding, pool.input)
}

/// The mean of each window.
pub(super) fn average_forward(tiling: Tiling, x: &Value) -> Value {
    let met = tiling.positions().map(|position| tiling.take(x, position));
    let sum = met.reduce(|a, b| a + b).expect("a window has pixels");
    sum / (tiling.kernel * tiling.kernel) as f32
}

/// Every pixel of a window gets the same share; a remainder gets nothing.
pub(super) fn average_backward(pool: &Pool, tiling: Tiling, dy: Value) -> Value {
    let share = dy / (tiling.kernel * tiling.kernel) as f32;
    let dx = nothing(pool, 0, &share);
    let give = |dx, position| tiling.give(dx, position, share.clone());
    tiling.positions().fold(dx, give)
}

/// The mean of each bin.
pub(super) fn adaptive_forward(pool: &Pool, x: &Value) -> Value {
    let mut y = Tensor::zeros(dims(pool.samples, pool.output), &x.device());
    for (row, column, rows, columns) in bins(pool) {
        let bin = x.clone().slice(s![.., rows, columns, ..]);
        let mean = bin.mean_dims(&[1, 2]);
        y = y.slice_assign(s![.., row..=row, column..=column, ..], mean);
    }
    y
}

/// Every pixel of a bin gets the same share; bins may overlap.
pub(super) fn adaptive_backward(pool: &Pool, dy: &Value) -> Value {
    let mut dx = nothing(pool, 0, dy);
    for (row, column, rows, columns) in bins(pool) {
        let share = dy.clone().slice(s![.., row..=row, column..=column, ..]);
        let share = share / (rows.len() * columns.len()) as f32;
        let there = dx.clone().slice(s![.., rows.clone(), columns.clone(), ..]);
        dx = dx.slice_assign(s![.., rows, columns, ..], there + share);
    }
    dx
}

/// The pixel of each bin and the rows and columns that it covers.
fn bins(pool: &Pool) -> impl Iterator<Item = (usize, usize, Range<usize>, Range<usize>)> {
    let (x, y) = (pool.input, pool.output);
    // Bin i of o over n pixels: floor(i n/o) to ceil((i+1) n/o).
    let bin = |i: usize, n: usize, o: usize| i * n / o..((i + 1) * n).div_ceil(o);
    (0..y.pixels()).map(move |pixel| {
        let (row, column) = (pixel / y.width, pixel % y.width);
        let rows = bin(row, x.height, y.height);
        (row, column, rows, bin(column, x.width, y.width))
    })
}
