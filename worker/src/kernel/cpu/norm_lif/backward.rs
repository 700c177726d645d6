//! One time step backward: the neurons' error and the sums that a norm needs.

use super::super::simd::rows::{Block, Body, Rows, Written, for_row_blocks};
use super::super::{CpuKernels, Scratch};
use super::{STRIP, grow, rows_per_block, tile, tiled};
use crate::kernel::{Errors, ErrorsOut, Neuron, NormLif, NormLifErrors, Norms, Reset, Window};

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
    pub(in crate::kernel::cpu) fn norm_lif_backward_now(
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
            let waits = layer.norm.is_some_and(|n| n.across == Norms::Synchronised);
            // What waits for the sums of other ranks must not lie in each other's place.
            let place = if waits { age } else { 0 };
            self.step_backward(layer, t, (age == 0, oldest), errors, place);
            if let Some(norm) = &layer.norm {
                self.norm_sums(norm, layer, age == 0);
                if waits {
                    self.hand_out_sums(norm, layer, t);
                } else {
                    self.norm_backward(norm, layer, t, errors.z, place);
                }
            }
        }
    }

    /// Line 17 at one time step: delta from the step after it (in scratch) and from above; g, its
    /// sum with what arrived at y, to `before` and to the norm (in scratch: to this place).
    fn step_backward(
        &mut self,
        layer: &NormLif,
        t: usize,
        (newest, oldest): (bool, bool),
        errors: &NormLifErrors,
        place: usize,
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
            Some(&mut grow(staged, (place + 1) * len)[place * len..])
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
