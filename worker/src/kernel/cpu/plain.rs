//! Pools, flatten, dropout and joins on the CPU: plain loops over samples.

use super::CpuKernels;
use crate::kernel::{
    Buffer, Dropout, Errors, ErrorsOut, Phase, Pool, PoolKind, Residual, Window, dropout_keeps,
};
use crate::shape::{Join, Shape};
use rayon::prelude::*;
use std::ops::Range;

/// Bin i of an adaptive pool from n to o: [floor(i n/o), ceil((i+1) n/o)).
fn bin(i: usize, n: usize, o: usize) -> Range<usize> {
    i * n / o..((i + 1) * n).div_ceil(o)
}

/// The rows (or columns) of the input under output i, clipped to the picture.
fn under(kind: PoolKind, i: usize, n: usize, o: usize) -> Range<usize> {
    match kind {
        PoolKind::Max {
            kernel,
            stride,
            padding,
            ..
        } => (i * stride).saturating_sub(padding)..n.min(i * stride + kernel - padding),
        PoolKind::Average { kernel } => i * kernel..(i + 1) * kernel,
        PoolKind::Adaptive => bin(i, n, o),
    }
}

/// One output pixel of a mean: the mean of the input pixels under it.
fn mean_pixel(x: &[f32], shape: Shape, rows: Range<usize>, columns: &Range<usize>, y: &mut [f32]) {
    let c = shape.channels;
    y.fill(0.0);
    let count = rows.len() * columns.len();
    for row in rows {
        for column in columns.clone() {
            let pixel = &x[(row * shape.width + column) * c..][..c];
            for (y, &x) in y.iter_mut().zip(pixel) {
                *y += x;
            }
        }
    }
    let scale = 1.0 / count as f32;
    for y in y {
        *y *= scale;
    }
}

/// One sample of a max pool, and where in their windows its maxima were.
fn max_sample(pool: &Pool, x: &[f32], y: &mut [f32], at: &mut [f32]) {
    let (input, output) = (pool.input, pool.output);
    let PoolKind::Max {
        kernel,
        stride,
        padding,
        ..
    } = pool.kind
    else {
        unreachable!("only a max pool has maxima")
    };
    let corner = |i: usize| (i * stride).wrapping_sub(padding);
    let pixels = y.chunks_mut(output.channels);
    let pixels = pixels.zip(at.chunks_mut(output.channels));
    for (pixel, (y, at)) in pixels.enumerate() {
        let (i, j) = (pixel / output.width, pixel % output.width);
        let rows = under(pool.kind, i, input.height, output.height);
        let columns = under(pool.kind, j, input.width, output.width);
        y.fill(f32::NEG_INFINITY);
        for row in rows {
            for column in columns.clone() {
                let a = row.wrapping_sub(corner(i));
                let b = column.wrapping_sub(corner(j));
                let position = (a * kernel + b) as f32;
                let x = &x[(row * input.width + column) * input.channels..];
                for ((y, at), &x) in y.iter_mut().zip(&mut *at).zip(x) {
                    // The first maximum wins; NaN is passed on.
                    if x > *y || x.is_nan() {
                        (*y, *at) = (x, position);
                    }
                }
            }
        }
    }
}

impl CpuKernels {
    pub(super) fn pool_forward_now(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer) {
        let (input, output) = (pool.input, pool.output);
        let (len_x, len_y) = (input.elements(), output.elements());
        let mut result = self.take(y);
        // A value of which only bits are stored is pooled in scratch, then packed.
        let mut staged = std::mem::take(&mut self.scratch.stage);
        let own = result.has_plain();
        let target = if own {
            result.plain_mut(t, pool.samples * len_y)
        } else {
            super::norm_lif::grow(&mut staged, pool.samples * len_y)
        };
        let source = self.rings[x.0 as usize].plain(t, pool.samples * len_x);
        match pool.kind {
            PoolKind::Max { argmax, .. } => {
                let mut index = std::mem::take(&mut self.rings[argmax.0 as usize]);
                let source = self.rings[x.0 as usize].plain(t, pool.samples * len_x);
                let positions = index.plain_mut(t, pool.samples * len_y);
                let samples = source.par_chunks(len_x).zip(target.par_chunks_mut(len_y));
                let samples = samples.zip(positions.par_chunks_mut(len_y));
                samples.for_each(|((x, y), at)| max_sample(pool, x, y, at));
                self.rings[argmax.0 as usize] = index;
            }
            PoolKind::Average { .. } | PoolKind::Adaptive => {
                let samples = source.par_chunks(len_x).zip(target.par_chunks_mut(len_y));
                samples.for_each(|(x, y)| {
                    for (pixel, y) in y.chunks_mut(output.channels).enumerate() {
                        let (i, j) = (pixel / output.width, pixel % output.width);
                        let rows = under(pool.kind, i, input.height, output.height);
                        let columns = under(pool.kind, j, input.width, output.width);
                        mean_pixel(x, input, rows, &columns, y);
                    }
                });
            }
        }
        if own {
            result.pack_own(t);
        } else {
            result.pack(t, &staged[..pool.samples * len_y]);
        }
        self.scratch.stage = staged;
        self.put(y, Some(result));
    }

    pub(super) fn pool_backward_now(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut) {
        let (input, output) = (pool.input, pool.output);
        let (len_x, len_y) = (input.elements(), output.elements());
        let mut result = self.take(dx.buffer);
        for t in dy.steps.newest_first() {
            let dy = self.rings[dy.buffer.0 as usize].plain(t, pool.samples * len_y);
            let positions = match pool.kind {
                PoolKind::Max { argmax, .. } => {
                    Some(self.rings[argmax.0 as usize].plain(t, pool.samples * len_y))
                }
                PoolKind::Average { .. } | PoolKind::Adaptive => None,
            };
            let target = result.plain_mut(t, pool.samples * len_x);
            let samples = target.par_chunks_mut(len_x).zip(dy.par_chunks(len_y));
            samples.enumerate().for_each(|(n, (dx_sample, dy))| {
                if !dx.accumulate {
                    dx_sample.fill(0.0);
                }
                for (pixel, dy) in dy.chunks(output.channels).enumerate() {
                    let (i, j) = (pixel / output.width, pixel % output.width);
                    let at = positions.map(|p| &p[n * len_y + pixel * output.channels..]);
                    spread(pool, (i, j), dy, at, dx_sample);
                }
            });
        }
        self.put(dx.buffer, Some(result));
    }

    pub(super) fn flatten_forward_now(
        &mut self,
        samples: usize,
        input: Shape,
        t: usize,
        x: Buffer,
        y: Buffer,
    ) {
        let len = input.elements();
        let mut result = self.take(y);
        let mut staged = std::mem::take(&mut self.scratch.stage);
        let own = result.has_plain();
        let target = if own {
            result.plain_mut(t, samples * len)
        } else {
            super::norm_lif::grow(&mut staged, samples * len)
        };
        let source = self.rings[x.0 as usize].plain(t, samples * len);
        let pairs = source.par_chunks(len).zip(target.par_chunks_mut(len));
        pairs.for_each(|(x, y)| {
            for (pixel, x) in x.chunks(input.channels).enumerate() {
                for (c, &x) in x.iter().enumerate() {
                    y[c * input.pixels() + pixel] = x;
                }
            }
        });
        if own {
            result.pack_own(t);
        } else {
            result.pack(t, &staged[..samples * len]);
        }
        self.scratch.stage = staged;
        self.put(y, Some(result));
    }

    pub(super) fn flatten_backward_now(
        &mut self,
        samples: usize,
        input: Shape,
        dy: Errors,
        dx: ErrorsOut,
    ) {
        let len = input.elements();
        self.map_errors(samples * len, dy, dx, |_, dy, dx_all, add| {
            let pairs = dx_all.par_chunks_mut(len).zip(dy.par_chunks(len));
            pairs.for_each(|(dx, dy)| {
                for (pixel, dx) in dx.chunks_mut(input.channels).enumerate() {
                    for (c, dx) in dx.iter_mut().enumerate() {
                        let kept = if add { *dx } else { 0.0 };
                        *dx = kept + dy[c * input.pixels() + pixel];
                    }
                }
            });
        });
    }

    pub(super) fn dropout_mask_now(&mut self, dropout: &Dropout, t: usize, key: u64) {
        let len = dropout.samples * dropout.shape.elements();
        let (p, scale, first) = (dropout.p, dropout.scale, dropout.first_element());
        let mask = self.rings[dropout.mask.0 as usize].plain_mut(t, len);
        mask.par_iter_mut().enumerate().for_each(|(i, m)| {
            *m = if dropout_keeps(key, first + i as u64, p) {
                scale
            } else {
                0.0
            };
        });
    }

    pub(super) fn dropout_forward_now(
        &mut self,
        dropout: &Dropout,
        t: usize,
        phase: Phase,
        x: Buffer,
        y: Buffer,
    ) {
        let len = dropout.samples * dropout.shape.elements();
        let mut result = self.take(y);
        let x = self.rings[x.0 as usize].plain(t, len);
        let target = result.plain_mut(t, len);
        match phase {
            Phase::Evaluate => target.copy_from_slice(x),
            Phase::Train => {
                let mask = self.rings[dropout.mask.0 as usize].plain(t, len);
                let inputs = x.iter().zip(mask);
                target
                    .iter_mut()
                    .zip(inputs)
                    .for_each(|(y, (x, m))| *y = x * m);
            }
        }
        self.put(y, Some(result));
    }

    pub(super) fn dropout_backward_now(&mut self, d: &Dropout, dy: Errors, dx: ErrorsOut) {
        let len = d.samples * d.shape.elements();
        let mask = d.mask;
        self.map_errors(len, dy, dx, |(kernels, t), dy, dx, add| {
            let mask = kernels.rings[mask.0 as usize].plain(t, len);
            for ((dx, dy), m) in dx.iter_mut().zip(dy).zip(mask) {
                *dx = if add { *dx } else { 0.0 } + dy * m;
            }
        });
    }

    pub(super) fn residual_forward_now(&mut self, r: &Residual, t: usize) {
        let len = r.samples * r.shape.elements();
        let mut result = self.take(r.y);
        let mut staged = std::mem::take(&mut self.scratch.stage);
        let own = result.has_plain();
        let target = if own {
            result.plain_mut(t, len)
        } else {
            super::norm_lif::grow(&mut staged, len)
        };
        let plain = |b: Buffer| self.rings[b.0 as usize].plain(t, len);
        let inputs = plain(r.a).par_iter().zip(plain(r.b));
        let join = r.join;
        target.par_iter_mut().zip(inputs).for_each(|(y, (a, b))| {
            *y = match join {
                Join::Add => a + b,
                Join::And => a * b,
                Join::Iand => (1.0 - a) * b,
            };
        });
        if own {
            result.pack_own(t);
        } else {
            result.pack(t, &staged[..len]);
        }
        self.scratch.stage = staged;
        self.put(r.y, Some(result));
    }

    pub(super) fn residual_backward_now(
        &mut self,
        r: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    ) {
        let len = r.samples * r.shape.elements();
        let (join, a, b) = (r.join, r.a, r.b);
        if let Some(da) = da {
            self.map_errors(len, dy, da, |(kernels, t), dy, da, add| {
                let b = || kernels.rings[b.0 as usize].plain(t, len).par_iter();
                let put = |da: &mut f32, v: f32| *da = if add { *da } else { 0.0 } + v;
                let pairs = da.par_iter_mut().zip(dy);
                match join {
                    Join::Add => pairs.for_each(|(da, g)| put(da, *g)),
                    Join::And => pairs.zip(b()).for_each(|((da, g), b)| put(da, g * b)),
                    Join::Iand => pairs.zip(b()).for_each(|((da, g), b)| put(da, -g * b)),
                }
            });
        }
        if let Some(db) = db {
            self.map_errors(len, dy, db, |(kernels, t), dy, db, add| {
                let a = || kernels.rings[a.0 as usize].plain(t, len).par_iter();
                let put = |db: &mut f32, v: f32| *db = if add { *db } else { 0.0 } + v;
                let pairs = db.par_iter_mut().zip(dy);
                match join {
                    Join::Add => pairs.for_each(|(db, g)| put(db, *g)),
                    Join::And => pairs.zip(a()).for_each(|((db, g), a)| put(db, g * a)),
                    Join::Iand => pairs
                        .zip(a())
                        .for_each(|((db, g), a)| put(db, g * (1.0 - a))),
                }
            });
        }
    }

    /// Calls `body` for each step that has an error, with dy, dx and whether to add.
    fn map_errors(
        &mut self,
        len: usize,
        dy: Errors,
        dx: ErrorsOut,
        body: impl Fn((&Self, usize), &[f32], &mut [f32], bool),
    ) {
        let mut result = self.take(dx.buffer);
        for t in dy.steps.newest_first() {
            let dy = self.rings[dy.buffer.0 as usize].plain(t, len);
            body((self, t), dy, result.plain_mut(t, len), dx.accumulate);
        }
        self.put(dx.buffer, Some(result));
    }

    /// Zeroes the errors of one time step.
    pub(super) fn zero_now(&mut self, buffer: Buffer, samples: usize, shape: Shape, t: usize) {
        let len = samples * shape.elements();
        let window = Window { newest: t, len: 1 };
        self.rings[buffer.0 as usize]
            .window_mut(window, len)
            .fill(0.0);
    }
}

/// Adds the error of one output pixel to the input pixels under it.
fn spread(pool: &Pool, (i, j): (usize, usize), dy: &[f32], argmax: Option<&[f32]>, dx: &mut [f32]) {
    let (input, c) = (pool.input, pool.input.channels);
    let rows = under(pool.kind, i, input.height, pool.output.height);
    let columns = under(pool.kind, j, input.width, pool.output.width);
    match (pool.kind, argmax) {
        (
            PoolKind::Max {
                kernel,
                stride,
                padding,
                ..
            },
            Some(at),
        ) => {
            for (channel, (&dy, &at)) in dy.iter().zip(at).enumerate() {
                #[expect(clippy::cast_possible_truncation, reason = "a position below 225")]
                #[expect(clippy::cast_sign_loss, reason = "it was written from a usize")]
                let at = at as usize;
                let row = i * stride + at / kernel - padding;
                let column = j * stride + at % kernel - padding;
                dx[(row * input.width + column) * c + channel] += dy;
            }
        }
        (PoolKind::Max { .. } | PoolKind::Average { .. } | PoolKind::Adaptive, _) => {
            let scale = 1.0 / (rows.len() * columns.len()) as f32;
            for row in rows {
                for column in columns.clone() {
                    let dx = &mut dx[(row * input.width + column) * c..][..c];
                    dx.iter_mut()
                        .zip(dy)
                        .for_each(|(dx, &dy)| *dx += dy * scale);
                }
            }
        }
    }
}
