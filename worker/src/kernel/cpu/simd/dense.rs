//! Direct convolution: a tile of output positions times output channels stays in registers
//! through the whole reduction.
use super::{Isa, LANES, Simd, Target, load_lanes, per_isa, store_lanes};
use rayon::prelude::*;

/// Output channels of one weight group; the last group may be half as wide.
pub(crate) const GROUP: usize = 2 * LANES;

/// Where positions lie in a buffer, in f32 values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strides {
    pub(crate) origin: usize,
    pub(crate) sample: usize,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// Which sums to form: each output position is a sum over `taps` rows of `taps` columns of
/// `channels` values, contiguous within a row of the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense {
    /// Samples, and the grid of output positions of one sample.
    pub(crate) samples: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Where a position's first input lies.
    pub(crate) source: Strides,
    /// Where a position's first output lies.
    pub(crate) target: Strides,
    /// Rows and columns of taps.
    pub(crate) taps: [usize; 2],
    /// From one row of taps to the next, in the source.
    pub(crate) tap_row: usize,
    /// Summed channels, and how many of them the weights keep together.
    pub(crate) channels: usize,
    pub(crate) block: usize,
    pub(crate) outputs: usize,
    /// Positions of one task.
    pub(crate) chunk: usize,
    /// Add to the target instead of overwriting it.
    pub(crate) accumulate: bool,
}

impl Dense {
    fn positions(&self) -> usize {
        self.samples * self.height * self.width
    }

    /// Terms of one sum.
    pub(crate) fn terms(&self) -> usize {
        self.taps[0] * self.taps[1] * self.channels
    }

    /// Index one past the last value that positions reach in a buffer, each `extent` long.
    fn end(&self, strides: &Strides, extent: usize) -> usize {
        strides.origin
            + (self.samples - 1) * strides.sample
            + (self.height - 1) * strides.row
            + (self.width - 1) * strides.column
            + extent
    }
}

/// Walks the grid in order.
pub(super) struct Walk {
    y: usize,
    x: usize,
    sample: usize,
}

impl Walk {
    #[inline(always)]
    pub(super) fn at(position: usize, height: usize, width: usize) -> Self {
        let (row, x) = (position / width, position % width);
        Self {
            y: row % height,
            x,
            sample: row / height,
        }
    }

    #[inline(always)]
    pub(super) fn offset(&self, s: &Strides) -> usize {
        s.origin + self.sample * s.sample + self.y * s.row + self.x * s.column
    }

    #[inline(always)]
    pub(super) fn advance(&mut self, height: usize, width: usize) {
        self.x += 1;
        if self.x == width {
            self.x = 0;
            self.y += 1;
            if self.y == height {
                self.y = 0;
                self.sample += 1;
            }
        }
    }
}

/// One chunk of positions times one group of output channels.
struct Task<'a> {
    dense: &'a Dense,
    x: *const f32,
    /// The group's weights: `[terms][16 * vectors]`.
    weights: *const f32,
    vectors: usize,
    /// Valid outputs of the group.
    outputs: usize,
    bias: Option<&'a [f32]>,
    /// The group's first channel of the target's first position.
    y: *mut f32,
    first: usize,
    count: usize,
}

/// Forms all sums. Weights are `[group][block][tap row][tap column][channel][32]`, see
/// [`GROUP`]; `bias` has one value per output.
///
/// # Panics
///
/// If a buffer is too short, or if positions of the target overlap.
pub(crate) fn convolve(
    isa: Isa,
    dense: &Dense,
    x: &[f32],
    weights: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    if dense.positions() == 0 {
        return;
    }
    assert!(isa.is_available(), "{isa} kernels on a machine without it");
    let extent = (dense.taps[0] - 1) * dense.tap_row + dense.taps[1] * dense.channels;
    assert!(
        dense.end(&dense.source, extent) <= x.len(),
        "source too short"
    );
    assert!(
        dense.end(&dense.target, dense.outputs) <= y.len(),
        "target too short"
    );
    let padded = dense.outputs.next_multiple_of(LANES);
    assert!(weights.len() >= padded * dense.terms(), "too few weights");
    assert!(
        bias.is_none_or(|b| b.len() == dense.outputs),
        "one bias per output"
    );
    let t = &dense.target;
    assert!(
        t.column >= dense.outputs
            && t.row >= (dense.width - 1) * t.column + dense.outputs
            && (dense.samples == 1
                || t.sample
                    >= (dense.height - 1) * t.row + (dense.width - 1) * t.column + dense.outputs),
        "target positions overlap"
    );
    let groups = padded.div_ceil(GROUP);
    let chunks = dense.positions().div_ceil(dense.chunk);
    let target = Target(y.as_mut_ptr());
    (0..chunks * groups).into_par_iter().for_each(|index| {
        let (chunk, group) = (index / groups, index % groups);
        let channel = group * GROUP;
        let first = chunk * dense.chunk;
        let mut task = Task {
            dense,
            x: x.as_ptr(),
            weights: weights[channel * dense.terms()..].as_ptr(),
            vectors: ((padded - channel) / LANES).min(2),
            outputs: (dense.outputs - channel).min(GROUP),
            bias: bias.map(|b| &b[channel..]),
            y: target.at(channel),
            first,
            count: dense.chunk.min(dense.positions() - first),
        };
        // SAFETY: the asserts above hold every access inside x, weights and y, which are borrowed
        // until the loop ends; tasks differ in positions or channels, so they write disjointly.
        unsafe { run_task(isa, &mut task) };
    });
}

// Positions and vectors of a tile: 8 x 2 of 32 registers, 6 x 1 pairs of 16 registers.
per_isa!(run_task(Task<'_>) = task_body <8, 2> <6, 1> <2, 1>);

#[inline(always)]
unsafe fn task_body<S: Simd, const P: usize, const V: usize>(task: &mut Task<'_>) {
    let d = task.dense;
    let mut walk = Walk::at(task.first, d.height, d.width);
    let mut done = 0;
    while done < task.count {
        let valid = P.min(task.count - done);
        let (mut from, mut to) = ([0; P], [0; P]);
        for p in 0..P {
            // The last tile repeats its last position and does not store it.
            if p < valid {
                from[p] = walk.offset(&d.source);
                to[p] = walk.offset(&d.target);
                walk.advance(d.height, d.width);
            } else {
                from[p] = from[p - 1];
            }
        }
        let mut vector = 0;
        while vector < task.vectors {
            // SAFETY: the task covers these positions and vectors.
            unsafe {
                if task.vectors - vector >= V {
                    tile::<S, P, V>(task, &from, &to[..valid], vector);
                } else {
                    tile::<S, P, 1>(task, &from, &to[..valid], vector);
                }
            }
            vector += V;
        }
        done += valid;
    }
}

/// Sums of P positions times V vectors, and their way to memory.
#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const V: usize>(
    task: &Task<'_>,
    from: &[usize; P],
    to: &[usize],
    vector: usize,
) {
    // SAFETY: offsets and lengths were checked by `convolve`.
    unsafe {
        let sums = reduce::<S, P, V>(task, from, vector);
        for (p, &to) in to.iter().enumerate() {
            for v in 0..V {
                let channel = (vector + v) * LANES;
                let lanes = LANES.min(task.outputs - channel);
                let y = task.y.add(to + channel);
                let mut sum = sums[p][v];
                if let Some(bias) = task.bias {
                    sum = S::add(sum, load_lanes::<S>(bias.as_ptr().add(channel), lanes));
                }
                if task.dense.accumulate {
                    sum = S::add(sum, load_lanes::<S>(y, lanes));
                }
                store_lanes::<S>(y, sum, lanes);
            }
        }
    }
}

#[inline(always)]
unsafe fn reduce<S: Simd, const P: usize, const V: usize>(
    task: &Task<'_>,
    from: &[usize; P],
    vector: usize,
) -> [[S::V; V]; P] {
    let d = task.dense;
    // One block: the columns of a tap row and their channels are one contiguous run.
    let whole = d.channels <= d.block;
    let (columns, run) = if whole {
        (1, d.taps[1] * d.channels)
    } else {
        (d.taps[1], d.block)
    };
    let width = task.vectors * LANES;
    // SAFETY: offsets and lengths were checked by `convolve`.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; P];
        let mut weights = task.weights.add(vector * LANES);
        let mut channel = 0;
        while channel < d.channels {
            let length = if whole {
                run
            } else {
                run.min(d.channels - channel)
            };
            for row in 0..d.taps[0] {
                for column in 0..columns {
                    let x = task.x.add(row * d.tap_row + column * d.channels + channel);
                    let mut inputs = [x; P];
                    for p in 0..P {
                        inputs[p] = x.add(from[p]);
                    }
                    for i in 0..length {
                        let mut w = [S::splat(0.0); V];
                        for v in 0..V {
                            w[v] = S::load(weights.add(v * LANES));
                        }
                        for p in 0..P {
                            let x = S::splat(*inputs[p].add(i));
                            for v in 0..V {
                                sums[p][v] = S::fma(x, w[v], sums[p][v]);
                            }
                        }
                        weights = weights.add(width);
                    }
                }
            }
            channel += d.block;
        }
        sums
    }
}
