//! Weight gradient of real inputs: sums over positions of input times error, a tile of inputs
//! times 32 output channels in registers.
use super::dense::{Strides, Walk};
use super::{Isa, LANES, Simd, per_isa};

/// Positions whose errors stay in L1 while all inputs pass by.
const POSITIONS: usize = 128;
/// Inputs of a tile in the widest form: sums and source need this much room past the last one.
pub(crate) const TILE: usize = 12;

/// Some positions of one tap row, against one group of output channels.
#[derive(Debug)]
pub(crate) struct Outer<'a> {
    /// Padded inputs; each position sees `length` contiguous values from its offset.
    pub(crate) source: &'a [f32],
    pub(crate) strides: Strides,
    pub(crate) length: usize,
    /// Errors `[position][error_stride]`, starting at the group's first channel.
    pub(crate) errors: &'a [f32],
    pub(crate) error_stride: usize,
    /// 16-channel vectors of the group.
    pub(crate) vectors: usize,
    /// The grid of positions of one sample, and which of them to sum.
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

struct Task<'a> {
    outer: &'a Outer<'a>,
    sums: *mut f32,
}

/// Adds to the sums `[length + TILE][16 * vectors]`.
///
/// # Panics
///
/// If a buffer is too short.
pub(crate) fn add_outer(isa: Isa, outer: &Outer<'_>, sums: &mut [f32]) {
    if outer.count == 0 {
        return;
    }
    assert!(isa.is_available(), "{isa} kernels on a machine without it");
    let last = outer.first + outer.count - 1;
    let (row, width) = (last / outer.width, outer.width);
    let s = &outer.strides;
    // Rows and columns at their largest bound every position up to the last one.
    let reach = s.origin
        + (row / outer.height) * s.sample
        + (outer.height - 1) * s.row
        + (width - 1) * s.column;
    assert!(
        reach + outer.length + TILE <= outer.source.len(),
        "source too short"
    );
    let extent = last * outer.error_stride + outer.vectors * LANES;
    assert!(extent <= outer.errors.len(), "errors too short");
    assert!(
        (outer.length + TILE) * outer.vectors * LANES <= sums.len(),
        "sums too short"
    );
    let sums = sums.as_mut_ptr();
    let mut task = Task { outer, sums };
    // SAFETY: the sizes were just checked; all is borrowed for the call.
    unsafe {
        run_task(isa, &mut task);
    }
}

// Inputs and vectors of a tile: 12 x 2 of 32 registers, 6 x 1 pairs of 16 registers.
per_isa!(run_task(Task<'_>) = task_body <12, 2> <6, 1> <2, 1>);

#[inline(always)]
unsafe fn task_body<S: Simd, const M: usize, const V: usize>(task: &mut Task<'_>) {
    let outer = task.outer;
    let mut walk = Walk::at(outer.first, outer.height, outer.width);
    let mut offsets = [0_usize; POSITIONS];
    let mut done = 0;
    while done < outer.count {
        let count = POSITIONS.min(outer.count - done);
        for offset in &mut offsets[..count] {
            *offset = walk.offset(&outer.strides);
            walk.advance(outer.height, outer.width);
        }
        let offsets = &offsets[..count];
        // SAFETY: sizes were checked by `add_outer`.
        unsafe {
            let errors = outer
                .errors
                .as_ptr()
                .add((outer.first + done) * outer.error_stride);
            let mut vector = 0;
            while vector < outer.vectors {
                let errors = errors.add(vector * LANES);
                let sums = task.sums.add(vector * LANES);
                if outer.vectors - vector >= V {
                    inputs::<S, M, V>(outer, offsets, errors, sums);
                } else {
                    inputs::<S, M, 1>(outer, offsets, errors, sums);
                }
                vector += V;
            }
        }
        done += count;
    }
}

#[inline(always)]
unsafe fn inputs<S: Simd, const M: usize, const V: usize>(
    outer: &Outer<'_>,
    offsets: &[usize],
    errors: *const f32,
    sums: *mut f32,
) {
    let mut input = 0;
    while input < outer.length {
        // SAFETY: sizes were checked by `add_outer`; a tile reaches at most TILE further.
        unsafe {
            let source = outer.source.as_ptr().add(input);
            let sums = sums.add(input * outer.vectors * LANES);
            if outer.length - input <= 4 {
                tile::<S, 4, V>(outer, offsets, source, errors, sums);
                input += 4;
            } else {
                tile::<S, M, V>(outer, offsets, source, errors, sums);
                input += M;
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const V: usize>(
    outer: &Outer<'_>,
    offsets: &[usize],
    source: *const f32,
    mut errors: *const f32,
    to: *mut f32,
) {
    // SAFETY: sizes were checked by `add_outer`.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; M];
        for offset in offsets {
            let x = source.add(*offset);
            let mut e = [S::splat(0.0); V];
            for v in 0..V {
                e[v] = S::load(errors.add(v * LANES));
            }
            for m in 0..M {
                let x = S::splat(*x.add(m));
                for v in 0..V {
                    sums[m][v] = S::fma(x, e[v], sums[m][v]);
                }
            }
            errors = errors.add(outer.error_stride);
        }
        for m in 0..M {
            for v in 0..V {
                let to = to.add((m * outer.vectors + v) * LANES);
                S::store(to, S::add(S::load(to), sums[m][v]));
            }
        }
    }
}
