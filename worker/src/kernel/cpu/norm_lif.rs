//! Batch norm, sum, neurons, sum: one pass over memory forward, and one and a half backward.
//!
//! Rows are pixels, columns are channels. Sums over rows are taken in fixed blocks and combined in
//! f64 in the order of the blocks, so they are the same at any number of threads.

#![expect(
    clippy::inline_always,
    reason = "bodies must vectorise inside the function that enables the vector instructions"
)]

use super::ring::Ring;
use super::simd::rows::{Block, Body, Rows, Written, for_row_blocks, spikes};
use super::{CpuKernels, Scratch};
use crate::kernel::{
    Errors, ErrorsOut, Lif, Neuron, Norm, NormLif, NormLifErrors, Phase, Reset, Window,
};

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

/// Beside a block's count of spikes: some potential in it is not finite. NaN never reaches the
/// threshold, so neurons would turn it into silence and no loss would show it.
const NOT_FINITE: u64 = 1 << 63;

/// The affine map of a norm at one time step, along a tile.
#[derive(Clone, Copy)]
struct Affine<'a> {
    mean: &'a [f32],
    /// gamma / std.
    scale: &'a [f32],
    beta: &'a [f32],
}

struct Forward<'a> {
    channels: usize,
    z: &'a [f32],
    affine: Option<Affine<'a>>,
    before: Option<&'a [f32]>,
    after: Option<&'a [f32]>,
    neuron: Option<Neuron>,
    /// u of the time step before; `None` at t = 0, and where it is updated in place.
    u_old: Option<&'a [f32]>,
    in_place: bool,
}

impl Body<3> for Forward<'_> {
    #[inline(always)]
    fn run(&self, block: Block<'_, 3>) {
        let (c, width) = (self.channels, tile(self.channels));
        let [y_out, u_out, out] = block.floats;
        let (first, len) = (block.rows.start * c, block.rows.len() * c);
        let mut y = [0.0f32; STRIP];
        let (mut here, mut begin, mut word, mut count) = (0, 0, 0, 0u64);
        let mut largest = 0u32;
        while here < len {
            let n = STRIP.min(width - begin).min(len - here);
            let at = first + here;
            let y = &mut y[..n];
            self.input(y, at, begin);
            if !y_out.is_empty() {
                y_out[here..here + n].copy_from_slice(y);
            }
            if let Some(neuron) = self.neuron {
                let u = &mut u_out[here..here + n];
                self.charge(neuron, u, y, at);
                largest = largest.max(largest_magnitude(u));
                // Eq. (3): s = [u >= v_th]; a word for each row, or part of a wide row.
                for row in u.chunks(c) {
                    let bits = spikes(row, neuron.v_th);
                    count += u64::from(bits.count_ones());
                    if let Some(place) = block.words.get_mut(word) {
                        *place = bits;
                    }
                    word += 1;
                }
                if !out.is_empty() {
                    self.emit(neuron, u, &mut out[here..here + n], at);
                }
            }
            here += n;
            begin = if begin + n < width { begin + n } else { 0 };
        }
        if let Some(total) = block.counts.first_mut() {
            let finite = largest < f32::INFINITY.to_bits();
            *total = count | if finite { 0 } else { NOT_FINITE };
        }
    }
}

impl Forward<'_> {
    /// y = norm(z) + before.
    #[inline(always)]
    fn input(&self, y: &mut [f32], at: usize, begin: usize) {
        let n = y.len();
        let z = &self.z[at..at + n];
        match &self.affine {
            Some(a) => {
                let (mean, scale) = (&a.mean[begin..begin + n], &a.scale[begin..begin + n]);
                let beta = &a.beta[begin..begin + n];
                for i in 0..n {
                    y[i] = (z[i] - mean[i]) * scale[i] + beta[i];
                }
            }
            None => y.copy_from_slice(z),
        }
        if let Some(before) = self.before {
            for (y, &b) in y.iter_mut().zip(&before[at..at + n]) {
                *y += b;
            }
        }
    }

    /// out = s + after.
    #[inline(always)]
    fn emit(&self, neuron: Neuron, u: &[f32], out: &mut [f32], at: usize) {
        let fired = |u: f32| f32::from(u8::from(u >= neuron.v_th));
        match self.after {
            Some(after) => {
                for ((o, &u), &b) in out.iter_mut().zip(u).zip(&after[at..at + u.len()]) {
                    *o = fired(u) + b;
                }
            }
            None => out.iter_mut().zip(u).for_each(|(o, &u)| *o = fired(u)),
        }
    }

    /// Eqs. (1), (2): u = leak(u, s of the time step before) + y.
    #[inline(always)]
    fn charge(&self, neuron: Neuron, u: &mut [f32], y: &[f32], at: usize) {
        let leak = 1.0 / neuron.tau_m;
        let n = y.len();
        if self.in_place {
            for (u, &y) in u.iter_mut().zip(y) {
                *u = rest(neuron, *u) * leak + y;
            }
        } else if let Some(old) = self.u_old {
            for ((u, &y), &old) in u.iter_mut().zip(y).zip(&old[at..at + n]) {
                *u = rest(neuron, old) * leak + y;
            }
        } else {
            u.copy_from_slice(y);
        }
    }
}

/// The bits of the largest |u|: those of infinity and, above them, NaN are larger than any number's.
/// Whole numbers, because compilers vectorise their maximum.
#[inline(always)]
fn largest_magnitude(u: &[f32]) -> u32 {
    let magnitudes = u.iter().map(|u| u.abs().to_bits());
    magnitudes.fold(0, u32::max)
}

/// What is left of u after its spike, before the leak.
#[inline(always)]
fn rest(neuron: Neuron, u: f32) -> f32 {
    let fired = u >= neuron.v_th;
    match neuron.reset {
        Reset::Hard => {
            if fired {
                0.0
            } else {
                u
            }
        }
        Reset::Soft => {
            if fired {
                u - neuron.v_th
            } else {
                u
            }
        }
        Reset::None => u,
    }
}

/// `J_t = du_{t+1}/du_t` at u (ALGORITHMS, section 1), times `tau_m`.
#[inline(always)]
fn jacobian(neuron: Neuron, u: f32) -> f32 {
    let kept = |h: f32| if neuron.detach_reset { 0.0 } else { h };
    match neuron.reset {
        Reset::Hard => {
            let open = f32::from(u8::from(u < neuron.v_th));
            open - u * kept(neuron.surrogate(u))
        }
        Reset::Soft => 1.0 - neuron.v_th * kept(neuron.surrogate(u)),
        Reset::None => 1.0,
    }
}

impl CpuKernels {
    pub(super) fn norm_lif_forward_now(&mut self, layer: &NormLif, t: usize, phase: Phase) {
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let len = num_rows * c;
        if let Some(norm) = &layer.norm {
            self.affine(norm, layer, t, phase);
        }
        let mut u = layer.lif.map(|l| self.take(l.u));
        let mut y = layer.y.map(|b| self.take(b));
        let mut out = layer.out.map(|b| self.take(b));
        let z = &self.rings[layer.z.0 as usize];
        let plain = |b: crate::kernel::Buffer| self.rings[b.0 as usize].plain(t, len);
        let (u_old, u_new, in_place) = split(u.as_mut(), t, len);
        let (out_plain, out_bits) = out
            .as_mut()
            .map_or((&mut [][..], &mut [][..]), |o| o.both_mut(t));
        let scratch = &mut self.scratch;
        let words = c.div_ceil(64);
        let body = Forward {
            channels: c,
            z: z.plain(t, len),
            affine: layer.norm.map(|n| Affine {
                mean: &scratch.mean[..tile(c)],
                scale: &scratch.scale[..tile(c)],
                beta: tiled(&mut scratch.gain, &self.weights[n.beta.range()]),
            }),
            before: layer.before.map(plain),
            after: layer.after.map(plain),
            neuron: layer.lif.map(|l| l.neuron),
            u_old,
            in_place,
        };
        let block = rows_per_block(c);
        let num_blocks = num_rows.div_ceil(block);
        if scratch.counts.len() < num_blocks {
            scratch.counts.resize(num_blocks, 0);
        }
        let counts = &mut scratch.counts[..num_blocks];
        for_row_blocks(
            self.isa,
            num_rows,
            block,
            Written {
                floats: [
                    Rows::optional(y.as_mut().map(|y| y.plain_mut(t, len)), c),
                    Rows::optional(u_new, c),
                    optional(out_plain, c),
                ],
                words: optional(out_bits, words),
                sums: Rows::absent(),
                counts: Rows::new(counts, 1),
            },
            &body,
        );
        let fired: u64 = counts.iter().map(|count| count & !NOT_FINITE).sum();
        if counts.iter().any(|count| count & NOT_FINITE != 0) {
            self.fault.get_or_insert(t);
        }
        if let Some(Lif {
            index, u: handle, ..
        }) = layer.lif
        {
            self.put(handle, u);
            self.count_spikes(index, fired, len as u64);
        }
        layer.y.into_iter().for_each(|b| self.put(b, y.take()));
        layer.out.into_iter().for_each(|b| self.put(b, out.take()));
    }

    /// Mean and gamma / std of this time step into scratch; moments and running statistics in
    /// training.
    fn affine(&mut self, norm: &Norm, layer: &NormLif, t: usize, phase: Phase) {
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let Scratch {
            mean, scale, sums, ..
        } = &mut self.scratch;
        let width = tile(c);
        let (mean, scale) = (grow(mean, width), grow(scale, width));
        let gamma = &self.weights[norm.gamma.range()];
        if phase == Phase::Evaluate {
            mean[..c].copy_from_slice(&self.statistics[norm.running_mean.range()]);
            let var = &self.statistics[norm.running_var.range()];
            for ((scale, &gamma), &var) in scale.iter_mut().zip(gamma).zip(var) {
                *scale = gamma / (var + norm.eps).sqrt();
            }
            repeat(mean, c);
            repeat(scale, c);
            return;
        }
        let block = rows_per_block(c);
        let sums = grow(sums, num_rows.div_ceil(block) * 2 * width);
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
        let moments = self.rings[norm.moments.0 as usize].plain_mut(t, 2 * c);
        let n = num_rows as f64;
        let unbias = n / (n - 1.0).max(1.0);
        for channel in 0..c {
            let (m, v) = combine(sums, c, channel, num_rows, block);
            let inv = 1.0 / (v + f64::from(norm.eps)).sqrt();
            (mean[channel], moments[channel]) = (single(m), single(m));
            moments[c + channel] = single(inv);
            scale[channel] = gamma[channel] * single(inv);
            let running = &mut self.statistics;
            let mut step = |at: usize, now: f64| {
                let old = f64::from(running[at]);
                running[at] = single(old + f64::from(norm.momentum) * (now - old));
            };
            step(norm.running_mean.offset + channel, m);
            step(norm.running_var.offset + channel, v * unbias);
        }
        repeat(mean, c);
        repeat(scale, c);
    }

    pub(super) fn norm_lif_backward_now(
        &mut self,
        layer: &NormLif,
        window: Window,
        errors: &NormLifErrors,
    ) {
        let steps = match (errors.out, errors.y) {
            (Some(_), _) => window,
            (None, Some(y)) => y.steps,
            (None, None) => return,
        };
        for (age, t) in steps.newest_first().enumerate() {
            let oldest = age + 1 == steps.len;
            self.step_backward(layer, t, (age == 0, oldest), errors);
            if let Some(norm) = &layer.norm {
                self.norm_sums(norm, layer, age == 0);
                self.norm_backward(norm, layer, t, errors.z);
            }
        }
    }

    /// Line 17 at one time step: delta from the step after it (in scratch) and from above; g, its
    /// sum with what arrived at y, to `before` and to the norm.
    fn step_backward(
        &mut self,
        layer: &NormLif,
        t: usize,
        (newest, oldest): (bool, bool),
        errors: &NormLifErrors,
    ) {
        let c = layer.shape.channels;
        let num_rows = layer.samples * layer.shape.pixels();
        let len = num_rows * c;
        let mut z = errors.z.map(|e| self.take(e.buffer));
        let mut before = errors.before.map(|e| self.take(e.buffer));
        let mut after = errors.after.map(|e| self.take(e.buffer));
        let has = |e: &Errors| t <= e.steps.newest && t + e.steps.len > e.steps.newest;
        let arrived = |e: Option<Errors>| {
            let e = e.filter(has)?;
            Some(self.rings[e.buffer.0 as usize].plain(t, len))
        };
        let lif = layer.lif.filter(|_| errors.out.is_some());
        // With a norm, g is staged where dz will be, or in scratch where dz adds to something.
        let stage = layer.norm.is_some() && errors.z.is_none_or(|z| z.accumulate);
        let Scratch {
            stage: staged,
            delta,
            sums,
            tiled: [mean, inv],
            ..
        } = &mut self.scratch;
        let g_out = if stage {
            Some(grow(staged, len))
        } else {
            z.as_mut().map(|z| z.plain_mut(t, len))
        };
        let delta = (lif.is_some() && !(newest && oldest)).then(|| grow(delta, len));
        let arrived_out = arrived(errors.out);
        let block = rows_per_block(c);
        let sums = layer
            .norm
            .map(|_| &mut *grow(sums, num_rows.div_ceil(block) * 2 * tile(c)));
        let normed = layer.norm.map(|n| {
            let z = self.rings[layer.z.0 as usize].plain(t, len);
            let moments = self.rings[n.moments.0 as usize].plain(t, 2 * c);
            let (mean, inv) = (tiled(mean, &moments[..c]), tiled(inv, &moments[c..]));
            Normed { z, mean, inv }
        });
        let adds = |e: Option<ErrorsOut>| e.is_some_and(|e| e.accumulate);
        let body = Backward {
            channels: c,
            lif: lif.map(|l| (l.neuron, self.rings[l.u.0 as usize].plain(t, len))),
            out: arrived_out,
            y: arrived(errors.y),
            normed,
            carries: !newest,
            adds: [
                !stage && adds(errors.z),
                adds(errors.before),
                adds(errors.after),
            ],
        };
        let after_ring = after.as_mut().filter(|_| arrived_out.is_some());
        let floats = [
            Rows::optional(g_out, c),
            Rows::optional(before.as_mut().map(|b| b.plain_mut(t, len)), c),
            Rows::optional(after_ring.map(|a| a.plain_mut(t, len)), c),
            Rows::optional(delta, c),
        ];
        let sums = Rows::optional(sums, 2 * tile(c));
        let written = Written {
            sums,
            ..Written::floats(floats)
        };
        for_row_blocks(self.isa, num_rows, block, written, &body);
        self.put_all([
            (errors.z, z),
            (errors.before, before),
            (errors.after, after),
        ]);
    }

    /// Joins the blocks' sums of g and g xhat: this step's for its own backward, and the gradients.
    fn norm_sums(&mut self, norm: &Norm, layer: &NormLif, first: bool) {
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

    /// dx = gamma inv (g - dbeta/n - xhat dgamma/n) of one time step, in place or from scratch.
    fn norm_backward(&mut self, norm: &Norm, layer: &NormLif, t: usize, to: Option<ErrorsOut>) {
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
            staged: to.accumulate.then(|| &stage[..len]),
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

/// What a norm saved of one time step.
#[derive(Clone, Copy)]
struct Normed<'a> {
    z: &'a [f32],
    mean: &'a [f32],
    /// 1 / std.
    inv: &'a [f32],
}

/// One time step of the neurons' and the sums' backward.
struct Backward<'a> {
    channels: usize,
    lif: Option<(Neuron, &'a [f32])>,
    out: Option<&'a [f32]>,
    y: Option<&'a [f32]>,
    normed: Option<Normed<'a>>,
    /// Whether `delta` holds that of the next time step.
    carries: bool,
    /// Whether g, before, after add to what is there.
    adds: [bool; 3],
}

impl Body<4> for Backward<'_> {
    #[inline(always)]
    fn run(&self, block: Block<'_, 4>) {
        let (c, width) = (self.channels, tile(self.channels));
        let [g_out, before, after, delta] = block.floats;
        let (first, len) = (block.rows.start * c, block.rows.len() * c);
        block.sums.fill(0.0);
        let mut g = [0.0f32; STRIP];
        let (mut here, mut begin) = (0, 0);
        while here < len {
            let n = STRIP.min(width - begin).min(len - here);
            let at = first + here;
            let g = &mut g[..n];
            let carry = delta.get_mut(here..here + n).unwrap_or(&mut []);
            self.neurons(g, at, carry);
            if let Some(y) = self.y {
                g.iter_mut().zip(&y[at..at + n]).for_each(|(g, &y)| *g += y);
            }
            put(g_out, here, g, self.adds[0]);
            put(before, here, g, self.adds[1]);
            if let Some(out) = self.out {
                put(after, here, &out[at..at + n], self.adds[2]);
            }
            if let Some(Normed { z, mean, inv }) = self.normed {
                let (sum, sum_xhat) = block.sums.split_at_mut(width);
                let (sum, sum_xhat) = (&mut sum[begin..begin + n], &mut sum_xhat[begin..begin + n]);
                let (mean, inv) = (&mean[begin..begin + n], &inv[begin..begin + n]);
                let z = &z[at..at + n];
                for i in 0..n {
                    sum[i] += g[i];
                    sum_xhat[i] += g[i] * ((z[i] - mean[i]) * inv[i]);
                }
            }
            here += n;
            begin = if begin + n < width { begin + n } else { 0 };
        }
    }
}

impl Backward<'_> {
    /// Algorithm 1, line 17: `delta_j = g_s(j) H'(u_j) + delta_{j+1} J_j`.
    #[inline(always)]
    fn neurons(&self, g: &mut [f32], at: usize, carry: &mut [f32]) {
        let n = g.len();
        let Some((neuron, u)) = self.lif else {
            g.fill(0.0);
            return;
        };
        let u = &u[at..at + n];
        match self.out {
            Some(out) => {
                for ((g, &u), &out) in g.iter_mut().zip(u).zip(&out[at..at + n]) {
                    *g = out * neuron.surrogate(u);
                }
            }
            None => g.fill(0.0),
        }
        if self.carries {
            let leak = 1.0 / neuron.tau_m;
            for ((g, &u), &next) in g.iter_mut().zip(u).zip(&*carry) {
                *g += next * jacobian(neuron, u) * leak;
            }
        }
        if !carry.is_empty() {
            carry.copy_from_slice(g);
        }
    }
}

/// Writes or adds, unless the target is absent.
#[inline(always)]
fn put(target: &mut [f32], at: usize, values: &[f32], add: bool) {
    if target.is_empty() {
        return;
    }
    let target = &mut target[at..at + values.len()];
    if add {
        target.iter_mut().zip(values).for_each(|(t, &v)| *t += v);
    } else {
        target.copy_from_slice(values);
    }
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

/// u of the time step before, the slot to write, and whether they are the same.
fn split(
    ring: Option<&mut Ring>,
    t: usize,
    len: usize,
) -> (Option<&[f32]>, Option<&mut [f32]>, bool) {
    let Some(ring) = ring else {
        return (None, None, false);
    };
    let slots = ring.num_plain_slots();
    if t == 0 {
        return (None, Some(ring.plain_mut(0, len)), false);
    }
    if slots == 1 {
        return (None, Some(ring.plain_mut(t, len)), true);
    }
    let (now, old) = (t % slots, (t - 1) % slots);
    let all = ring.all_mut();
    if now > old {
        let (low, high) = all.split_at_mut(now * len);
        (
            Some(&low[old * len..(old + 1) * len]),
            Some(&mut high[..len]),
            false,
        )
    } else {
        let (low, high) = all.split_at_mut(old * len);
        (
            Some(&high[..len]),
            Some(&mut low[now * len..(now + 1) * len]),
            false,
        )
    }
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
