//! Forward convolution over set bits: weight rows are added only where a spike is.
//!
//! Weights of one (group, word, tap row) are at most 24 KB for 3 x 3, so they stay in L1 while
//! all positions of a task pass by.
use super::dense::GROUP;
use super::{Isa, LANES, Simd, Target, load_lanes, per_isa, store_lanes};
use crate::kernel::cpu::conv::ConvShape;
use rayon::prelude::*;

/// Positions of one task, at least: they share each load of the weights into L1.
const POSITIONS: usize = 512;

/// Some samples times one group of output channels.
struct Task<'a> {
    shape: &'a ConvShape,
    /// Bits of the first sample.
    bits: *const u64,
    /// The group's weights: `[word][kh][kw][64][16 * vectors]`.
    weights: *const f32,
    vectors: usize,
    outputs: usize,
    bias: Option<&'a [f32]>,
    /// The group's first channel in the first sample.
    y: *mut f32,
    samples: usize,
}

/// Convolves spikes. Weights are `[group][word][kh][kw][64][32]`, the last group and word cut.
///
/// # Shapes
///
/// `bits` is `[n, h, w, words]`, `y` is `[n, oh, ow, outputs]`.
///
/// # Panics
///
/// If a buffer does not have the shape's size.
pub(crate) fn convolve(
    isa: Isa,
    shape: &ConvShape,
    samples: usize,
    bits: &[u64],
    weights: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    assert!(isa.is_available(), "{isa} kernels on a machine without it");
    let positions = shape.out_height() * shape.out_width();
    let in_sample = shape.height * shape.width * shape.words();
    let padded = shape.outputs.next_multiple_of(LANES);
    let terms = shape.kernel * shape.kernel * shape.inputs;
    assert_eq!(
        bits.len(),
        samples * in_sample,
        "spikes are [n, h, w, words]"
    );
    assert_eq!(
        y.len(),
        samples * positions * shape.outputs,
        "y is [n, oh, ow, outputs]"
    );
    assert!(weights.len() >= padded * terms, "packed weights");
    assert!(
        bias.is_none_or(|b| b.len() == shape.outputs),
        "one bias per output"
    );
    let tail = shape.inputs % 64;
    let beyond = if tail == 0 { 0 } else { u64::MAX << tail };
    // A stray bit would read past the weights: this check is what makes the kernel safe.
    assert!(
        beyond == 0
            || bits
                .par_chunks_exact(shape.words())
                .all(|b| b[shape.words() - 1] & beyond == 0),
        "bits beyond the inputs are zero"
    );
    let groups = padded.div_ceil(GROUP);
    let per_task = POSITIONS.div_ceil(positions);
    let chunks = samples.div_ceil(per_task);
    let target = Target(y.as_mut_ptr());
    (0..chunks * groups).into_par_iter().for_each(|index| {
        let (chunk, group) = (index / groups, index % groups);
        let (first, channel) = (chunk * per_task, group * GROUP);
        let mut task = Task {
            shape,
            bits: bits[first * in_sample..].as_ptr(),
            weights: weights[channel * terms..].as_ptr(),
            vectors: ((padded - channel) / LANES).min(2),
            outputs: (shape.outputs - channel).min(GROUP),
            bias: bias.map(|b| &b[channel..]),
            y: target.at(first * positions * shape.outputs + channel),
            samples: per_task.min(samples - first),
        };
        // SAFETY: the asserts above hold every access inside bits, weights and y, which are
        // borrowed until the loop ends; tasks differ in samples or channels, so they write
        // disjointly.
        unsafe { run_task(isa, &mut task) };
    });
}

per_isa!(run_task(Task<'_>) = task_body <> <> <>);

#[inline(always)]
unsafe fn task_body<S: Simd>(task: &mut Task<'_>) {
    // SAFETY: the caller's promise about the task.
    unsafe {
        if task.vectors == 2 {
            passes::<S, 2>(task);
        } else {
            passes::<S, 1>(task);
        }
    }
}

/// One pass over the task's positions per word and tap row.
#[inline(always)]
unsafe fn passes<S: Simd, const V: usize>(task: &Task<'_>) {
    let shape = task.shape;
    let scatter = shape.kernel == 3 && shape.stride == 1;
    let (words, out_height) = (shape.words(), shape.out_height());
    let out_row = shape.out_width() * shape.outputs;
    // SAFETY: all offsets lie inside the task's samples and weights.
    unsafe {
        fill::<S, V>(task);
        let mut weights = task.weights;
        for word in 0..words {
            let rows = 64.min(shape.inputs - 64 * word);
            for kh in 0..shape.kernel {
                for oy in 0..task.samples * out_height {
                    let (sample, oy) = (oy / out_height, oy % out_height);
                    let iy = (oy * shape.stride + kh).wrapping_sub(shape.padding);
                    if iy >= shape.height {
                        continue;
                    }
                    let pixel = (sample * shape.height + iy) * shape.width;
                    let line = Line {
                        bits: task.bits.add(pixel * words + word),
                        weights,
                        tap: rows * V * LANES,
                        y: task.y.add((sample * out_height + oy) * out_row),
                    };
                    if scatter {
                        scatter_line::<S, V>(task, &line);
                    } else {
                        gather_line::<S, V>(task, &line);
                    }
                }
                weights = weights.add(shape.kernel * rows * V * LANES);
            }
        }
    }
}

/// One row of the input, the weights of one tap row, one row of the output.
struct Line {
    bits: *const u64,
    weights: *const f32,
    /// From one tap to the next, in the weights.
    tap: usize,
    y: *mut f32,
}

/// Outputs start as the bias.
#[inline(always)]
unsafe fn fill<S: Simd, const V: usize>(task: &Task<'_>) {
    let shape = task.shape;
    // SAFETY: positions and lanes of the task.
    unsafe {
        let mut start = [S::splat(0.0); V];
        if let Some(bias) = task.bias {
            for v in 0..V {
                let lanes = LANES.min(task.outputs - v * LANES);
                start[v] = load_lanes::<S>(bias.as_ptr().add(v * LANES), lanes);
            }
        }
        for position in 0..task.samples * shape.out_height() * shape.out_width() {
            let y = task.y.add(position * shape.outputs);
            for v in 0..V {
                let lanes = LANES.min(task.outputs - v * LANES);
                store_lanes::<S>(y.add(v * LANES), start[v], lanes);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_to<S: Simd, const V: usize>(task: &Task<'_>, y: *mut f32, sums: &[S::V; V]) {
    // SAFETY: `y` is a position of the task, lanes are its own.
    unsafe {
        for v in 0..V {
            let lanes = LANES.min(task.outputs - v * LANES);
            let y = y.add(v * LANES);
            store_lanes::<S>(y, S::add(load_lanes::<S>(y, lanes), sums[v]), lanes);
        }
    }
}

/// Each input pixel adds to the three outputs it reaches, which roll through registers.
#[inline(always)]
unsafe fn scatter_line<S: Simd, const V: usize>(task: &Task<'_>, line: &Line) {
    let shape = task.shape;
    let (words, out_width) = (shape.words(), shape.out_width());
    // SAFETY: bits are checked to index weight rows that exist; outputs are in the row.
    unsafe {
        let zero = [S::splat(0.0); V];
        let (mut left, mut middle, mut right) = (zero, zero, zero);
        for ix in 0..shape.width {
            let mut bits = *line.bits.add(ix * words);
            while bits != 0 {
                let row = line.weights.add(bits.trailing_zeros() as usize * V * LANES);
                bits &= bits - 1;
                for v in 0..V {
                    let row = row.add(v * LANES);
                    right[v] = S::add(right[v], S::load(row));
                    middle[v] = S::add(middle[v], S::load(row.add(line.tap)));
                    left[v] = S::add(left[v], S::load(row.add(2 * line.tap)));
                }
            }
            let ox = (ix + shape.padding).wrapping_sub(2);
            if ox < out_width {
                add_to::<S, V>(task, line.y.add(ox * shape.outputs), &left);
            }
            left = middle;
            middle = right;
            right = zero;
        }
        for rest in [left, middle].iter().enumerate() {
            let ox = (shape.width + shape.padding + rest.0).wrapping_sub(2);
            if ox < out_width {
                add_to::<S, V>(task, line.y.add(ox * shape.outputs), rest.1);
            }
        }
    }
}

/// Each output sums what its taps see.
#[inline(always)]
unsafe fn gather_line<S: Simd, const V: usize>(task: &Task<'_>, line: &Line) {
    let shape = task.shape;
    let words = shape.words();
    // SAFETY: bits are checked to index weight rows that exist; pixels are in the row.
    unsafe {
        for ox in 0..shape.out_width() {
            let mut even = [S::splat(0.0); V];
            let mut odd = even;
            for kw in 0..shape.kernel {
                let ix = (ox * shape.stride + kw).wrapping_sub(shape.padding);
                if ix >= shape.width {
                    continue;
                }
                let weights = line.weights.add(kw * line.tap);
                let mut bits = *line.bits.add(ix * words);
                while bits != 0 {
                    let row = weights.add(bits.trailing_zeros() as usize * V * LANES);
                    bits &= bits - 1;
                    for v in 0..V {
                        even[v] = S::add(even[v], S::load(row.add(v * LANES)));
                    }
                    if bits == 0 {
                        break;
                    }
                    let row = weights.add(bits.trailing_zeros() as usize * V * LANES);
                    bits &= bits - 1;
                    for v in 0..V {
                        odd[v] = S::add(odd[v], S::load(row.add(v * LANES)));
                    }
                }
            }
            for v in 0..V {
                even[v] = S::add(even[v], odd[v]);
            }
            add_to::<S, V>(task, line.y.add(ox * shape.outputs), &even);
        }
    }
}
