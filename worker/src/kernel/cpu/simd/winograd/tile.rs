//! The work of one task: transforms in, products, transforms out.
use super::points::{evaluate_input, evaluate_weights, interpolate};
use super::{BLOCK, GROUP, OCTET, PLANE, POINTS, SIDE, TILE, Weights, Winograd};
use crate::kernel::cpu::simd::{LANES, Simd, per_isa};
use std::mem::MaybeUninit;

/// Channels of a pixel outside the image.
pub(crate) const MOST_CHANNELS: usize = 4096;
static ZEROS: [f32; MOST_CHANNELS] = [0.0; MOST_CHANNELS];

/// Up to eight tiles to transform.
pub(super) struct Inputs<'a> {
    pub(super) job: &'a Winograd,
    pub(super) x: *const f32,
    pub(super) planes: *mut f32,
    pub(super) first: usize,
    pub(super) count: usize,
}

/// Up to `TASK_TILES` tiles times one group of outputs.
pub(super) struct Product<'a> {
    pub(super) job: &'a Winograd,
    pub(super) inputs: *const f32,
    pub(super) weights: Weights<'a>,
    /// The group's first output.
    pub(super) output: usize,
    pub(super) vectors: usize,
    /// `[point][BLOCK][16 * vectors]`, planes `PLANE` apart.
    pub(super) weight_planes: *mut f32,
    /// `[point][tile][16 * vectors]`, planes `PLANE` apart.
    pub(super) sums: *mut f32,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) y: *mut f32,
}

per_isa!(pub(super) run_inputs(Inputs<'_>) = inputs_body <> <> <>);
// Tiles and vectors of a block in registers.
per_isa!(pub(super) run_product(Product<'_>) = product_body <8, 2> <4, 1> <2, 1>);

#[inline(always)]
unsafe fn inputs_body<S: Simd>(task: &mut Inputs<'_>) {
    let job = task.job;
    for tile in 0..task.count {
        let [sample, row, column] = job.place(task.first + tile);
        let mut pixels = [ZEROS.as_ptr(); POINTS];
        for (i, pixel) in pixels.iter_mut().enumerate() {
            let y = (row + i / SIDE).wrapping_sub(job.before);
            let x = (column + i % SIDE).wrapping_sub(job.before);
            if y < job.height && x < job.width {
                let index = (sample * job.height + y) * job.width + x;
                *pixel = task.x.wrapping_add(index * job.channels);
            }
        }
        let to = task.planes.wrapping_add(tile * job.channels);
        let mut channel = 0;
        while channel < job.channels {
            // SAFETY: each pixel has all channels, or is the zeros; the planes have the tile.
            unsafe {
                let mut half = [S::splat(0.0); POINTS];
                for c in 0..SIDE {
                    let mut d = [S::splat(0.0); SIDE];
                    for (r, d) in d.iter_mut().enumerate() {
                        *d = S::load(pixels[r * SIDE + c].add(channel));
                    }
                    let v = evaluate_input::<S>(d);
                    for r in 0..SIDE {
                        half[r * SIDE + c] = v[r];
                    }
                }
                for r in 0..SIDE {
                    let mut d = [S::splat(0.0); SIDE];
                    d.copy_from_slice(&half[r * SIDE..(r + 1) * SIDE]);
                    let v = evaluate_input::<S>(d);
                    for c in 0..SIDE {
                        S::store(to.add((r * SIDE + c) * job.octet_plane() + channel), v[c]);
                    }
                }
            }
            channel += LANES;
        }
    }
}

#[inline(always)]
unsafe fn product_body<S: Simd, const P: usize, const V: usize>(task: &mut Product<'_>) {
    let job = task.job;
    let width = task.vectors * LANES;
    let mut channel = 0;
    while channel < job.channels {
        let block = BLOCK.min(job.channels - channel);
        // SAFETY: channels of the block, planes of the slot.
        unsafe {
            transform_weights::<S>(task, channel, block);
            for point in 0..POINTS {
                let weights = task.weight_planes.add(point * PLANE).cast_const();
                let mut tile = 0;
                // Tiles past the count fill their octet: their sums are never read.
                while tile < task.count {
                    let octet = (tile / OCTET * POINTS + point) * job.octet_plane();
                    let inputs = task
                        .inputs
                        .add(octet + tile % OCTET * job.channels + channel);
                    let sums = task.sums.add(point * PLANE + tile * width);
                    let mut vector = 0;
                    while vector < task.vectors {
                        let lane = vector * LANES;
                        let (w, s) = (weights.add(lane), sums.add(lane));
                        let sizes = [job.channels, block, width];
                        if task.vectors - vector >= V {
                            multiply::<S, P, V>(inputs, w, s, sizes, channel > 0);
                        } else {
                            multiply::<S, P, 1>(inputs, w, s, sizes, channel > 0);
                        }
                        vector += V;
                    }
                    tile += P;
                }
            }
        }
        channel += block;
    }
    // SAFETY: all sums of the task's tiles are formed.
    unsafe { transform_outputs::<S>(task) };
}

/// P tiles times V vectors at one point.
#[inline(always)]
unsafe fn multiply<S: Simd, const P: usize, const V: usize>(
    inputs: *const f32,
    mut weights: *const f32,
    to: *mut f32,
    [stride, block, width]: [usize; 3],
    accumulate: bool,
) {
    // SAFETY: `product_body` vouches for P tiles `stride` apart and `block` rows of weights.
    unsafe {
        let mut rows = [inputs; P];
        for (p, row) in rows.iter_mut().enumerate() {
            *row = inputs.add(p * stride);
        }
        let mut sums = [[S::splat(0.0); V]; P];
        for i in 0..block {
            let mut w = [S::splat(0.0); V];
            for v in 0..V {
                w[v] = S::load(weights.add(v * LANES));
            }
            for p in 0..P {
                let x = S::splat(*rows[p].add(i));
                for v in 0..V {
                    sums[p][v] = S::fma(x, w[v], sums[p][v]);
                }
            }
            weights = weights.add(width);
        }
        for p in 0..P {
            for v in 0..V {
                let to = to.add(p * width + v * LANES);
                let sum = if accumulate {
                    S::add(S::load(to), sums[p][v])
                } else {
                    sums[p][v]
                };
                S::store(to, sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn transform_weights<S: Simd>(task: &Product<'_>, channel: usize, block: usize) {
    let (job, width) = (task.job, task.vectors * LANES);
    let mut buffer = [const { MaybeUninit::<f32>::uninit() }; 9 * LANES * LANES];
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    // Channels and outputs are whole vectors.
    for part in 0..block / LANES * task.vectors {
        let (row, lane) = (part / task.vectors * LANES, part % task.vectors * LANES);
        // SAFETY: nine taps of 16 channels of the group; planes of the slot.
        unsafe {
            let (from, tap, stride) = match task.weights {
                Weights::Backward(w) => {
                    let from = w.as_ptr().add(task.output * 9 * job.channels);
                    let from = from.add((channel + row) * width + lane);
                    (from, job.channels * width, width)
                }
                Weights::Forward(w) => {
                    gather_taps::<S>(job, w, channel + row, task.output + lane, buffer);
                    (buffer.cast_const(), LANES * LANES, LANES)
                }
            };
            for i in 0..LANES {
                let to = task.weight_planes.add((row + i) * width + lane);
                transform_taps::<S>(from.add(i * stride), tap, to);
            }
        }
    }
}

/// Mirrored taps of 16 channels and 16 outputs out of the forward form, where lanes are channels:
/// `[tap][channel][output]`.
#[inline(always)]
unsafe fn gather_taps<S: Simd>(
    job: &Winograd,
    weights: &[f32],
    channel: usize,
    output: usize,
    to: *mut f32,
) {
    let (group, word) = (channel / GROUP, output / 64);
    let width = GROUP.min(job.channels - group * GROUP);
    let rows = 64.min(job.outputs - word * 64);
    let start = (group * GROUP * job.outputs + word * 64 * width) * 9;
    for tap in 0..9 {
        let row = start + (tap * rows + output % 64) * width + channel % GROUP;
        // SAFETY: 16 rows of the forward form, whose size `convolve` has checked.
        unsafe {
            let from = weights.as_ptr().add(row);
            let mut m = [S::splat(0.0); LANES];
            for (i, m) in m.iter_mut().enumerate() {
                *m = S::load(from.add(i * width));
            }
            S::transpose(&mut m);
            let to = to.add((8 - tap) * LANES * LANES);
            for (i, m) in m.iter().enumerate() {
                S::store(to.add(i * LANES), *m);
            }
        }
    }
}

/// Nine taps `tap` values apart to all points.
#[inline(always)]
unsafe fn transform_taps<S: Simd>(from: *const f32, tap: usize, to: *mut f32) {
    // SAFETY: `transform_weights` vouches for the taps and the planes.
    unsafe {
        let mut half = [S::splat(0.0); 3 * SIDE];
        for c in 0..3 {
            let mut g = [S::splat(0.0); 3];
            for (r, g) in g.iter_mut().enumerate() {
                *g = S::load(from.add((r * 3 + c) * tap));
            }
            let v = evaluate_weights::<S>(g);
            for r in 0..SIDE {
                half[r * 3 + c] = v[r];
            }
        }
        for r in 0..SIDE {
            let v = evaluate_weights::<S>([half[r * 3], half[r * 3 + 1], half[r * 3 + 2]]);
            for c in 0..SIDE {
                S::store(to.add((r * SIDE + c) * PLANE), v[c]);
            }
        }
    }
}

#[inline(always)]
unsafe fn transform_outputs<S: Simd>(task: &Product<'_>) {
    let job = task.job;
    let width = task.vectors * LANES;
    for tile in 0..task.count {
        let [sample, row, column] = job.place(task.first + tile);
        let pixel = (sample * job.out_height + row) * job.out_width + column;
        let rows = TILE.min(job.out_height - row);
        let columns = TILE.min(job.out_width - column);
        for vector in 0..task.vectors {
            // SAFETY: sums of the tile; pixels inside the image.
            unsafe {
                let from = task.sums.add(tile * width + vector * LANES);
                let mut half = [S::splat(0.0); TILE * SIDE];
                for c in 0..SIDE {
                    let mut m = [S::splat(0.0); SIDE];
                    for (r, m) in m.iter_mut().enumerate() {
                        *m = S::load(from.add((r * SIDE + c) * PLANE));
                    }
                    let v = interpolate::<S>(m);
                    for r in 0..TILE {
                        half[r * SIDE + c] = v[r];
                    }
                }
                let y = task.y.add(pixel * job.outputs + vector * LANES);
                for r in 0..rows {
                    let mut m = [S::splat(0.0); SIDE];
                    m.copy_from_slice(&half[r * SIDE..(r + 1) * SIDE]);
                    let v = interpolate::<S>(m);
                    for (c, v) in v.iter().enumerate().take(columns) {
                        let y = y.add((r * job.out_width + c) * job.outputs);
                        let sum = if job.accumulate {
                            S::add(S::load(y), *v)
                        } else {
                            *v
                        };
                        S::store(y, sum);
                    }
                }
            }
        }
    }
}
