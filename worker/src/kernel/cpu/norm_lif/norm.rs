//! Batch norm: statistics of one time step, and the second half of its backward.

use super::super::simd::rows::{Block, Body, Rows, Written, for_row_blocks};
use super::super::{CpuKernels, Scratch};
use super::{folded, grow, repeat, rows_per_block, single, tile, tiled};
use crate::kernel::{ErrorsOut, Norm, NormLif, Norms, Phase, Window};

/// Moments of a block: the mean by channel, then the sum of squared deviations along a tile.
struct Moments<'a> {
    z: &'a [f32],
    channels: usize,
}

impl Body<0> for Moments<'_> {
    #[inline(always)]
    fn run(&self, block: Block<'_, 0>) {
        let (c, width) = (self.channels, tile(self.channels));
        let rows = &self.z[block.rows.start * c..block.rows.end * c];
        let (mean, squares) = block.sums.split_at_mut(width);
        mean.fill(0.0);
        squares.fill(0.0);
        for row in rows.chunks(width) {
            for (sum, &z) in mean.iter_mut().zip(row) {
                *sum += z;
            }
        }
        for i in c..width {
            mean[i % c] += mean[i];
        }
        let scale = 1.0 / block.rows.len() as f32;
        for m in &mut mean[..c] {
            *m *= scale;
        }
        repeat(mean, c);
        for row in rows.chunks(width) {
            for ((sum, &z), &m) in squares.iter_mut().zip(row).zip(&*mean) {
                *sum += (z - m) * (z - m);
            }
        }
    }
}

impl CpuKernels {
    /// Mean and gamma / std of this time step into scratch; in training the moments too, and what
    /// the running statistics follow.
    pub(super) fn affine(&mut self, norm: &Norm, layer: &NormLif, t: usize, phase: Phase) {
        let c = layer.shape.channels;
        let width = tile(c);
        if phase == Phase::Evaluate {
            self.running_affine(norm, c);
        } else {
            if norm.across != Norms::Synchronised {
                self.block_moments(layer, t);
            }
            self.batch_affine(norm, layer, t);
        }
        repeat(&mut self.scratch.mean[..width], c);
        repeat(&mut self.scratch.scale[..width], c);
    }

    /// From the running statistics.
    fn running_affine(&mut self, norm: &Norm, c: usize) {
        let Scratch { mean, scale, .. } = &mut self.scratch;
        let (mean, scale) = (grow(mean, tile(c)), grow(scale, tile(c)));
        mean[..c].copy_from_slice(&self.statistics[norm.running_mean.range()]);
        let gamma = &self.weights[norm.gamma.range()];
        let var = &self.statistics[norm.running_var.range()];
        for ((scale, &gamma), &var) in scale.iter_mut().zip(gamma).zip(var) {
            *scale = gamma / (var + norm.eps).sqrt();
        }
    }

    /// From the batch: the moments of its blocks, or, synchronised, those of all ranks.
    fn batch_affine(&mut self, norm: &Norm, layer: &NormLif, t: usize) {
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let block = rows_per_block(c);
        let Scratch {
            mean, scale, sums, ..
        } = &mut self.scratch;
        let (mean, scale) = (grow(mean, tile(c)), grow(scale, tile(c)));
        let sums = grow(sums, num_rows.div_ceil(block) * 2 * tile(c));
        let gamma = &self.weights[norm.gamma.range()];
        let moments = self.rings[norm.moments.0 as usize].plain_mut(t, 2 * c);
        for channel in 0..c {
            let at = norm.channel(channel);
            let (m, v) = match norm.across {
                Norms::Own => {
                    let own = combine(sums, c, channel, num_rows, block);
                    follow(&mut self.statistics, norm, at, own, num_rows as f64);
                    own
                }
                Norms::Pooled => {
                    let own = combine(sums, c, channel, num_rows, block);
                    shift(&mut self.moments, &self.statistics, at, own);
                    own
                }
                Norms::Synchronised => unshift(&self.moments, &self.statistics, at),
            };
            let inv = 1.0 / (v + f64::from(norm.eps)).sqrt();
            (mean[channel], moments[channel]) = (single(m), single(m));
            moments[c + channel] = single(inv);
            scale[channel] = gamma[channel] * single(inv);
        }
    }

    /// The moments of every block of z at this time step into scratch.
    fn block_moments(&mut self, layer: &NormLif, t: usize) {
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let (block, width) = (rows_per_block(c), tile(c));
        let len = num_rows.div_ceil(block) * 2 * width;
        let sums = grow(&mut self.scratch.sums, len);
        let z = self.rings[layer.z.0 as usize].plain(t, num_rows * c);
        for_row_blocks(
            self.isa,
            num_rows,
            block,
            Written {
                sums: Rows::new(sums, 2 * width),
                ..Written::floats([])
            },
            &Moments { z, channels: c },
        );
    }

    pub(in crate::kernel::cpu) fn norm_moments_now(&mut self, layer: &NormLif, t: usize) {
        let norm = layer.norm.expect("only a norm has moments");
        self.block_moments(layer, t);
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let block = rows_per_block(c);
        let sums = &self.scratch.sums[..num_rows.div_ceil(block) * 2 * tile(c)];
        for channel in 0..c {
            let own = combine(sums, c, channel, num_rows, block);
            shift(
                &mut self.moments,
                &self.statistics,
                norm.channel(channel),
                own,
            );
        }
    }

    pub(in crate::kernel::cpu) fn apply_moments_now(&mut self, norm: &Norm, count: u64) {
        for channel in 0..norm.gamma.len {
            let at = norm.channel(channel);
            let pooled = unshift(&self.moments, &self.statistics, at);
            follow(&mut self.statistics, norm, at, pooled, count as f64);
        }
    }

    /// Joins the blocks' sums of g and g xhat: this step's for its own backward, and the gradients.
    pub(super) fn norm_sums(&mut self, norm: &Norm, layer: &NormLif, first: bool) {
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let num_blocks = num_rows.div_ceil(rows_per_block(c));
        let Scratch {
            sums, mean, scale, ..
        } = &mut self.scratch;
        let width = tile(c);
        let (dbeta, dgamma) = (grow(mean, c), grow(scale, c));
        for channel in 0..c {
            let (mut g, mut g_xhat) = (0.0f64, 0.0f64);
            for part in sums[..num_blocks * 2 * width].chunks_exact(2 * width) {
                g += folded(&part[..width], c, channel);
                g_xhat += folded(&part[width..], c, channel);
            }
            (dbeta[channel], dgamma[channel]) = (single(g), single(g_xhat));
        }
        // Line 18: summed over the window.
        for (span, sum) in [(norm.beta, dbeta), (norm.gamma, dgamma)] {
            let gradient = &mut self.gradients[span.range()];
            if first {
                gradient.copy_from_slice(sum);
            } else {
                gradient.iter_mut().zip(sum).for_each(|(g, s)| *g += *s);
            }
        }
    }

    /// Hands this step's sums out, for those of all ranks to take their place.
    pub(super) fn hand_out_sums(&mut self, norm: &Norm, layer: &NormLif, t: usize) {
        let c = layer.shape.channels;
        let sums = norm.sums.expect("synchronised norms have sums");
        let (g, g_xhat) = self.rings[sums.0 as usize]
            .plain_mut(t, 2 * c)
            .split_at_mut(c);
        g.copy_from_slice(&self.scratch.mean[..c]);
        g_xhat.copy_from_slice(&self.scratch.scale[..c]);
    }

    /// The rest of the backward with the sums that came back.
    pub(in crate::kernel::cpu) fn norm_backward_now(
        &mut self,
        layer: &NormLif,
        steps: Window,
        to: ErrorsOut,
    ) {
        let norm = layer.norm.expect("only a norm waits");
        let sums = norm.sums.expect("only a synchronised norm waits");
        let c = layer.shape.channels;
        for (age, t) in steps.newest_first().enumerate() {
            let (g, g_xhat) = self.rings[sums.0 as usize].plain(t, 2 * c).split_at(c);
            let Scratch { mean, scale, .. } = &mut self.scratch;
            grow(mean, c).copy_from_slice(g);
            grow(scale, c).copy_from_slice(g_xhat);
            self.norm_backward(&norm, layer, t, Some(to), age);
        }
    }

    /// dx = gamma inv (g - dbeta/n - xhat dgamma/n) of one time step, in place or from this place
    /// of scratch.
    pub(super) fn norm_backward(
        &mut self,
        norm: &Norm,
        layer: &NormLif,
        t: usize,
        to: Option<ErrorsOut>,
        place: usize,
    ) {
        let Some(to) = to else { return };
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let len = num_rows * c;
        let mut dz = self.take(to.buffer);
        let moments = self.rings[norm.moments.0 as usize].plain(t, 2 * c);
        let (mean, inv) = moments.split_at(c);
        let gamma = &self.weights[norm.gamma.range()];
        let Scratch {
            stage,
            mean: dbeta,
            scale: dgamma,
            gain,
            tiled: [tiled_mean, _],
            ..
        } = &mut self.scratch;
        let width = tile(c);
        let (dbeta, dgamma) = (grow(dbeta, width), grow(dgamma, width));
        let gain = grow(gain, width);
        let scale = 1.0 / num_rows as f32;
        for i in 0..c {
            gain[i] = gamma[i] * inv[i];
            dbeta[i] *= scale;
            dgamma[i] *= scale * inv[i];
        }
        for vector in [&mut *dbeta, &mut *dgamma, &mut *gain] {
            repeat(vector, c);
        }
        let body = NormBackward {
            channels: c,
            z: self.rings[layer.z.0 as usize].plain(t, len),
            staged: to
                .accumulate
                .then(|| &stage[place * len..(place + 1) * len]),
            mean: tiled(tiled_mean, mean),
            gain,
            dbeta,
            dgamma_inv: dgamma,
        };
        let floats = [Rows::new(dz.plain_mut(t, len), c)];
        let written = Written::floats(floats);
        for_row_blocks(self.isa, num_rows, rows_per_block(c), written, &body);
        self.put(to.buffer, Some(dz));
    }
}

/// Moves a channel's running statistics towards mean and biased variance of `count` values.
fn follow(running: &mut [f32], norm: &Norm, at: [usize; 2], (m, v): (f64, f64), count: f64) {
    let unbias = count / (count - 1.0).max(1.0);
    for (at, now) in at.into_iter().zip([m, v * unbias]) {
        let old = f64::from(running[at]);
        running[at] = single(old + f64::from(norm.momentum) * (now - old));
    }
}

/// Writes a channel's mean and biased variance about the running mean.
fn shift(moments: &mut [f32], running: &[f32], at: [usize; 2], (m, v): (f64, f64)) {
    let d = single(m - f64::from(running[at[0]]));
    // d as it is rounded: then the variance has no error from that.
    (moments[at[0]], moments[at[1]]) = (d, single(v + f64::from(d) * f64::from(d)));
}

/// The way back: a channel's mean and biased variance.
fn unshift(moments: &[f32], running: &[f32], at: [usize; 2]) -> (f64, f64) {
    let [d, q] = at.map(|at| f64::from(moments[at]));
    (f64::from(running[at[0]]) + d, (q - d * d).max(0.0))
}

/// The second pass of batch norm's backward.
struct NormBackward<'a> {
    channels: usize,
    z: &'a [f32],
    /// g, where it is not in place.
    staged: Option<&'a [f32]>,
    mean: &'a [f32],
    gain: &'a [f32],
    dbeta: &'a [f32],
    dgamma_inv: &'a [f32],
}

impl Body<1> for NormBackward<'_> {
    #[inline(always)]
    fn run(&self, block: Block<'_, 1>) {
        let (c, width) = (self.channels, tile(self.channels));
        let [dz] = block.floats;
        let rows = block.rows.start * c..block.rows.end * c;
        let z = self.z[rows.clone()].chunks(width);
        match self.staged {
            None => {
                for (dz, z) in dz.chunks_mut(width).zip(z) {
                    let n = z.len();
                    let (mean, gain) = (&self.mean[..n], &self.gain[..n]);
                    let (dbeta, dgamma) = (&self.dbeta[..n], &self.dgamma_inv[..n]);
                    for i in 0..n {
                        dz[i] = gain[i] * (dz[i] - dbeta[i] - (z[i] - mean[i]) * dgamma[i]);
                    }
                }
            }
            Some(staged) => {
                let staged = staged[rows].chunks(width);
                for ((dz, z), g) in dz.chunks_mut(width).zip(z).zip(staged) {
                    let n = z.len();
                    let (mean, gain) = (&self.mean[..n], &self.gain[..n]);
                    let (dbeta, dgamma) = (&self.dbeta[..n], &self.dgamma_inv[..n]);
                    for i in 0..n {
                        dz[i] += gain[i] * (g[i] - dbeta[i] - (z[i] - mean[i]) * dgamma[i]);
                    }
                }
            }
        }
    }
}

/// Joins the moments of all blocks in their order (Chan, Golub, `LeVeque`, 1979), in f64.
fn combine(sums: &[f32], c: usize, channel: usize, num_rows: usize, block: usize) -> (f64, f64) {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    let width = tile(c);
    for (index, part) in sums.chunks_exact(2 * width).enumerate() {
        let n = block.min(num_rows - index * block) as f64;
        let delta = f64::from(part[channel]) - mean;
        let total = count + n;
        mean += delta * n / total;
        squares += folded(&part[width..], c, channel) + delta * delta * count * n / total;
        count = total;
    }
    (mean, squares / count)
}
