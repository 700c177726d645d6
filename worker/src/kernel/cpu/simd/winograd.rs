//! Winograd's F(4 x 4, 3 x 3) (Lavin, Gray: Fast Algorithms for Convolutional Neural Networks,
//! 2015): a quarter of the multiplications, for stride 1.
//!
//! The interpolation points 0, +-5/8, +-3/2 and infinity keep the error near 3e-6 of the largest
//! value, four times less than 0, +-1, +-2 would.
use super::{Isa, LANES, Simd, Target, per_isa};
use crate::kernel::cpu::conv::scratch::Slots;
use rayon::prelude::*;

/// Outputs of a tile's side, and the inputs it sees.
pub(crate) const TILE: usize = 4;
const SIDE: usize = TILE + 2;
const POINTS: usize = SIDE * SIDE;
/// Tiles whose transformed inputs lie together.
const OCTET: usize = 8;
/// Tiles of one task, and channels that are summed at a time.
const TASK_TILES: usize = 64;
const BLOCK: usize = 64;
/// Output channels of one weight group.
const GROUP: usize = super::dense::GROUP;
/// A line between planes keeps equal positions of different planes in different cache sets.
const PLANE: usize = BLOCK * GROUP + LANES;
/// Chunks of tiles from which on they alone keep all threads busy.
const MANY: usize = 8;
/// Channels of a pixel outside the image.
pub(crate) const MOST_CHANNELS: usize = 4096;
static ZEROS: [f32; MOST_CHANNELS] = [0.0; MOST_CHANNELS];

const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;

/// What to convolve: `y[n, oh, ow, outputs]` from `x[n, h, w, channels]`, where output (0, 0)
/// sees the input from (-before, -before) on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd {
    pub(crate) samples: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
    pub(crate) outputs: usize,
    pub(crate) before: usize,
    pub(crate) accumulate: bool,
}

impl Winograd {
    fn tiles_per_row(&self) -> usize {
        self.out_width.div_ceil(TILE)
    }

    fn tiles_per_sample(&self) -> usize {
        self.out_height.div_ceil(TILE) * self.tiles_per_row()
    }

    /// From one plane of an octet to the next.
    fn octet_plane(&self) -> usize {
        OCTET * self.channels + LANES
    }

    fn octet_values(&self) -> usize {
        POINTS * self.octet_plane()
    }

    /// Values of the transformed inputs of one task's tiles.
    fn input_values(&self) -> usize {
        TASK_TILES / OCTET * self.octet_values()
    }

    fn chunks(&self) -> usize {
        (self.samples * self.tiles_per_sample()).div_ceil(TASK_TILES)
    }

    /// Whether tasks are so many that each can take tiles through all outputs.
    fn is_long(&self) -> bool {
        self.chunks() >= MANY
    }

    /// Chunks that pass together when their transforms may take so many bytes.
    fn part(&self, bytes: usize) -> usize {
        (bytes / size_of::<f32>() / self.input_values()).clamp(1, self.chunks().max(1))
    }

    /// Values of scratch, shared and per thread; `bytes` is the aim for the shared one.
    pub(crate) fn scratch(&self, bytes: usize) -> [usize; 2] {
        let (inputs, planes) = (self.input_values(), 2 * POINTS * PLANE);
        if self.is_long() { [0, inputs + planes] } else { [self.part(bytes) * inputs, planes] }
    }

    /// Sample, first row and first column of a tile.
    fn place(&self, tile: usize) -> [usize; 3] {
        let (sample, tile) = (tile / self.tiles_per_sample(), tile % self.tiles_per_sample());
        let (row, column) = (tile / self.tiles_per_row(), tile % self.tiles_per_row());
        [sample, row * TILE, column * TILE]
    }
}

/// Convolves. Weights are `[group][kh][kw][channel][32]`; `bytes` as for the scratch.
///
/// # Panics
///
/// If channels or outputs are not whole vectors, or a buffer is too short.
pub(crate) fn convolve(
    isa: Isa,
    job: &Winograd,
    x: &[f32],
    weights: &[f32],
    y: &mut [f32],
    (shared, slots, bytes): (&mut [f32], &Slots, usize),
) {
    assert!(isa.is_available(), "{isa} kernels on a machine without it");
    assert!(job.channels.is_multiple_of(LANES) && job.outputs.is_multiple_of(LANES));
    assert!(job.channels <= MOST_CHANNELS, "too many channels");
    assert_eq!(x.len(), job.samples * job.height * job.width * job.channels, "source");
    assert_eq!(y.len(), job.samples * job.out_height * job.out_width * job.outputs, "target");
    assert!(weights.len() >= 9 * job.channels * job.outputs, "too few weights");
    let (groups, inputs) = (job.outputs.div_ceil(GROUP), job.input_values());
    let slot_values = job.scratch(bytes)[1];
    let all = All { isa, job, x, weights, y: Target(y.as_mut_ptr()) };
    if job.is_long() {
        (0..job.chunks()).into_par_iter().for_each(|chunk| {
            slots.with(slot_values, |slot| {
                let (inputs, planes) = slot.split_at_mut(inputs);
                for (octet, inputs) in inputs.chunks_exact_mut(job.octet_values()).enumerate() {
                    all.transform(chunk * TASK_TILES + octet * OCTET, inputs);
                }
                for group in 0..groups {
                    // SAFETY: tasks differ in chunks, groups come one after the other.
                    unsafe { all.multiply(chunk, group, inputs, planes) };
                }
            });
        });
        return;
    }
    let part = job.part(bytes);
    for first in (0..job.chunks()).step_by(part) {
        let chunks = part.min(job.chunks() - first);
        let octets = shared[..chunks * inputs].par_chunks_exact_mut(job.octet_values());
        octets.enumerate().for_each(|(octet, inputs)| {
            all.transform(first * TASK_TILES + octet * OCTET, inputs);
        });
        let shared = &*shared;
        (0..groups * chunks).into_par_iter().for_each(|task| {
            let (group, chunk) = (task / chunks, task % chunks);
            let inputs = &shared[chunk * inputs..][..inputs];
            slots.with(slot_values, |planes| {
                // SAFETY: tasks differ in chunks or groups.
                unsafe { all.multiply(first + chunk, group, inputs, planes) };
            });
        });
    }
}

/// What all tasks share.
struct All<'a> {
    isa: Isa,
    job: &'a Winograd,
    x: &'a [f32],
    weights: &'a [f32],
    y: Target,
}

impl All<'_> {
    /// Transforms the inputs of up to eight tiles.
    fn transform(&self, first: usize, planes: &mut [f32]) {
        let tiles = self.job.samples * self.job.tiles_per_sample();
        assert_eq!(planes.len(), self.job.octet_values(), "planes of an octet");
        let mut inputs = Inputs {
            job: self.job,
            x: self.x.as_ptr(),
            planes: planes.as_mut_ptr(),
            first,
            count: OCTET.min(tiles.saturating_sub(first)),
        };
        // SAFETY: tiles below the end lie in x; the planes are this octet's and borrowed.
        unsafe { run_inputs(self.isa, &mut inputs) };
    }

    /// Forms the outputs of a chunk and group.
    ///
    /// # Safety
    ///
    /// No other thread forms these outputs meanwhile.
    unsafe fn multiply(&self, chunk: usize, group: usize, inputs: &[f32], planes: &mut [f32]) {
        let job = self.job;
        let (channel, first) = (group * GROUP, chunk * TASK_TILES);
        assert_eq!(inputs.len(), job.input_values(), "transformed inputs");
        assert_eq!(planes.len(), 2 * POINTS * PLANE, "planes of weights and sums");
        let (weight_planes, sums) = planes.split_at_mut(POINTS * PLANE);
        let mut product = Product {
            job,
            inputs: inputs.as_ptr(),
            weights: self.weights[channel * 9 * job.channels..].as_ptr(),
            vectors: ((job.outputs - channel) / LANES).min(2),
            weight_planes: weight_planes.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
            first,
            count: TASK_TILES.min(job.samples * job.tiles_per_sample() - first),
            y: self.y.0.wrapping_add(channel),
        };
        // SAFETY: `convolve` checked x, weights and y, this function the rest; all is borrowed
        // until the call ends, and the caller vouches for disjoint outputs.
        unsafe { run_product(self.isa, &mut product) };
    }
}

/// Up to eight tiles to transform.
struct Inputs<'a> {
    job: &'a Winograd,
    x: *const f32,
    planes: *mut f32,
    first: usize,
    count: usize,
}

/// Up to `TASK_TILES` tiles times one group of outputs.
struct Product<'a> {
    job: &'a Winograd,
    inputs: *const f32,
    weights: *const f32,
    vectors: usize,
    /// `[point][BLOCK][16 * vectors]`, planes `PLANE` apart.
    weight_planes: *mut f32,
    /// `[point][tile][16 * vectors]`, planes `PLANE` apart.
    sums: *mut f32,
    first: usize,
    count: usize,
    y: *mut f32,
}

per_isa!(run_inputs(Inputs<'_>) = inputs_body <> <> <>);
// Tiles and vectors of a block in registers.
per_isa!(run_product(Product<'_>) = product_body <8, 2> <4, 1> <2, 1>);

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

/// One dimension of the input transform: rows are the products of (x - point) over all other
/// points.
#[inline(always)]
unsafe fn evaluate_input<S: Simd>(d: [S::V; SIDE]) -> [S::V; SIDE] {
    // SAFETY: the caller runs where S is available.
    unsafe {
        let k = |x: f32| S::splat(x);
        let even_a = S::fma(k(-B2), d[2], d[4]);
        let odd_a = S::fma(k(-B2), d[1], d[3]);
        let even_b = S::fma(k(-A2), d[2], d[4]);
        let odd_b = S::fma(k(-A2), d[1], d[3]);
        [
            S::fma(k(A2 * B2), d[0], S::fma(k(-(A2 + B2)), d[2], d[4])),
            S::fma(k(A), odd_a, even_a),
            S::fma(k(-A), odd_a, even_a),
            S::fma(k(B), odd_b, even_b),
            S::fma(k(-B), odd_b, even_b),
            S::fma(k(A2 * B2), d[1], S::fma(k(-(A2 + B2)), d[3], d[5])),
        ]
    }
}

/// One dimension of the weight transform: values at the points over the products of their
/// distances.
#[inline(always)]
unsafe fn evaluate_weights<S: Simd>(g: [S::V; 3]) -> [S::V; SIDE] {
    const AT_ZERO: f32 = 1.0 / (A2 * B2);
    const AT_A: f32 = 1.0 / (2.0 * A2 * (A2 - B2));
    const AT_B: f32 = 1.0 / (2.0 * B2 * (B2 - A2));
    // SAFETY: the caller runs where S is available.
    unsafe {
        let k = |x: f32| S::splat(x);
        let zero = k(0.0);
        let even_a = S::fma(k(AT_A), g[0], S::fma(k(A2 * AT_A), g[2], zero));
        let even_b = S::fma(k(AT_B), g[0], S::fma(k(B2 * AT_B), g[2], zero));
        [
            S::fma(k(AT_ZERO), g[0], zero),
            S::fma(k(A * AT_A), g[1], even_a),
            S::fma(k(-A * AT_A), g[1], even_a),
            S::fma(k(B * AT_B), g[1], even_b),
            S::fma(k(-B * AT_B), g[1], even_b),
            g[2],
        ]
    }
}

/// One dimension of the output transform: powers of the points.
#[inline(always)]
unsafe fn interpolate<S: Simd>(m: [S::V; SIDE]) -> [S::V; TILE] {
    // SAFETY: the caller runs where S is available.
    unsafe {
        let k = |x: f32| S::splat(x);
        let (minus, zero) = (k(-1.0), k(0.0));
        let (even_a, even_b) = (S::add(m[1], m[2]), S::add(m[3], m[4]));
        let (odd_a, odd_b) = (S::fma(minus, m[2], m[1]), S::fma(minus, m[4], m[3]));
        [
            S::add(m[0], S::add(even_a, even_b)),
            S::fma(k(A), odd_a, S::fma(k(B), odd_b, zero)),
            S::fma(k(A2), even_a, S::fma(k(B2), even_b, zero)),
            S::fma(k(A * A2), odd_a, S::fma(k(B * B2), odd_b, m[5])),
        ]
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
                    let inputs = task.inputs.add(octet + tile % OCTET * job.channels + channel);
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
                let sum = if accumulate { S::add(S::load(to), sums[p][v]) } else { sums[p][v] };
                S::store(to, sum);
            }
        }
    }
}

#[inline(always)]
unsafe fn transform_weights<S: Simd>(task: &Product<'_>, channel: usize, block: usize) {
    let width = task.vectors * LANES;
    for row in 0..block * task.vectors {
        let (row, lane) = (row / task.vectors, row % task.vectors * LANES);
        // SAFETY: nine taps of a channel of the group; planes of the slot.
        unsafe {
            let from = task.weights.add((channel + row) * width + lane);
            let to = task.weight_planes.add(row * width + lane);
            let tap = task.job.channels * width;
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
                        let sum = if job.accumulate { S::add(S::load(y), *v) } else { *v };
                        S::store(y, sum);
                    }
                }
            }
        }
    }
}
