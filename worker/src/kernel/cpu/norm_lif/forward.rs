//! One time step forward: norm, sum, neurons, sum.

use super::super::CpuKernels;
use super::super::ring::Ring;
use super::super::simd::rows::{Block, Body, Rows, Written, for_row_blocks, spikes};
use super::{STRIP, optional, rows_per_block, tile, tiled};
use crate::kernel::{Buffer, Neuron, NormLif, Phase, Reset};

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

impl CpuKernels {
    pub(in crate::kernel::cpu) fn norm_lif_forward_now(
        &mut self,
        layer: &NormLif,
        t: usize,
        phase: Phase,
    ) {
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
        let plain = |b: Buffer| self.rings[b.0 as usize].plain(t, len);
        let (u_old, u_new, in_place) = split(u.as_mut(), t, len);
        let (out_plain, mut out_bits) = out
            .as_mut()
            .map_or((&mut [][..], &mut [][..]), |o| o.both_mut(t));
        let scratch = &mut self.scratch;
        let words = c.div_ceil(64);
        if layer.lif.is_some() && out_bits.is_empty() {
            let len = num_rows * words;
            scratch.words.resize(scratch.words.len().max(len), 0);
            out_bits = &mut scratch.words[..len];
        }
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
        if let Some(lif) = &layer.lif {
            self.put(lif.u, u);
            self.count_spikes(lif.index, fired, len as u64);
            let bits = out.as_ref().filter(|out| out.has_bits());
            self.see_alive(layer, lif, t, bits.map(|out| out.bits(t)));
        }
        layer.y.into_iter().for_each(|b| self.put(b, y.take()));
        layer.out.into_iter().for_each(|b| self.put(b, out.take()));
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
