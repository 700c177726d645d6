//! Blocks of 16 x 16 between rows and columns.
use super::{Isa, LANES, Simd, per_isa};
use std::mem::MaybeUninit;

/// Where the vectors of columns lie: three nested loops, outermost first, the first one as long
/// as the columns last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) count: usize,
    /// Lengths of the two inner loops.
    pub(crate) inner: [usize; 2],
    /// Values between neighbours in each loop.
    pub(crate) strides: [usize; 3],
    /// Vectors written here are not read soon: they need not pass through the cache.
    pub(crate) is_far: bool,
}

impl Columns {
    /// Equally spaced columns.
    pub(crate) fn spaced(count: usize, stride: usize) -> Self {
        Self {
            count,
            inner: [1, 1],
            strides: [stride, 0, 0],
            is_far: false,
        }
    }

    /// A bound of all values of all columns.
    fn end(&self) -> usize {
        let [middle, inner] = self.inner;
        (self.count - 1) / (middle * inner) * self.strides[0]
            + (middle - 1) * self.strides[1]
            + (inner - 1) * self.strides[2]
            + LANES
    }
}

/// Rows of `columns.count` values, and their columns as vectors.
struct Task {
    rows_from: *const f32,
    rows_to: *mut f32,
    row: usize,
    rows: usize,
    columns_from: *const f32,
    columns_to: *mut f32,
    columns: Columns,
}

/// Writes column `c` of up to 16 rows as a vector; lanes from `rows` up to 16 become 0.
///
/// # Panics
///
/// If a buffer is too short.
pub(crate) fn to_lanes(
    isa: Isa,
    (from, row): (&[f32], usize),
    rows: usize,
    to: &mut [f32],
    columns: Columns,
) {
    if columns.count == 0 {
        return;
    }
    assert!(
        isa.is_available() && (1..=LANES).contains(&rows),
        "16 lanes"
    );
    assert!(
        (rows - 1) * row + columns.count <= from.len(),
        "matrix too short"
    );
    assert!(columns.end() <= to.len(), "transpose too short");
    let mut task = Task {
        rows_from: from.as_ptr(),
        rows_to: std::ptr::null_mut(),
        row,
        rows,
        columns_from: std::ptr::null(),
        columns_to: to.as_mut_ptr(),
        columns,
    };
    // SAFETY: both slices were just checked and are borrowed for the call.
    unsafe { run_to_lanes(isa, &mut task) };
}

/// The inverse of [`to_lanes`]: vectors become columns of up to 16 rows.
///
/// # Panics
///
/// If a buffer is too short.
pub(crate) fn from_lanes(
    isa: Isa,
    from: &[f32],
    columns: Columns,
    (to, row): (&mut [f32], usize),
    rows: usize,
) {
    if columns.count == 0 {
        return;
    }
    assert!(
        isa.is_available() && (1..=LANES).contains(&rows),
        "16 lanes"
    );
    assert!(columns.end() <= from.len(), "matrix too short");
    assert!(
        (rows - 1) * row + columns.count <= to.len(),
        "transpose too short"
    );
    let mut task = Task {
        rows_from: std::ptr::null(),
        rows_to: to.as_mut_ptr(),
        row,
        rows,
        columns_from: from.as_ptr(),
        columns_to: std::ptr::null_mut(),
        columns,
    };
    // SAFETY: both slices were just checked and are borrowed for the call.
    unsafe { run_from_lanes(isa, &mut task) };
}

per_isa!(run_to_lanes(Task) = to_lanes_body <> <> <>);
per_isa!(run_from_lanes(Task) = from_lanes_body <> <> <>);

/// Steps through the offsets of columns.
#[derive(Default)]
struct Walk {
    at: [usize; 2],
    /// Offsets of the three loops.
    offset: [usize; 3],
}

impl Walk {
    #[inline(always)]
    fn next(&mut self, columns: &Columns) -> usize {
        let [outer, middle, inner] = self.offset;
        self.at[1] += 1;
        self.offset[2] += columns.strides[2];
        if self.at[1] == columns.inner[1] {
            self.at[1] = 0;
            self.offset[2] = 0;
            self.at[0] += 1;
            self.offset[1] += columns.strides[1];
            if self.at[0] == columns.inner[0] {
                self.at[0] = 0;
                self.offset[1] = 0;
                self.offset[0] += columns.strides[0];
            }
        }
        outer + middle + inner
    }
}

// Rows far apart may share a cache set, so each passes in long runs through a buffer, where an
// extra line keeps rows apart.
const RUN: usize = 192;
const ROW: usize = RUN + LANES;
type Runs = [MaybeUninit<f32>; LANES * ROW];

#[inline(always)]
unsafe fn to_lanes_body<S: Simd>(task: &mut Task) {
    let mut buffer: Runs = [const { MaybeUninit::uninit() }; LANES * ROW];
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    let mut walk = Walk::default();
    let is_aligned = task.columns.strides.iter().all(|s| s.is_multiple_of(LANES))
        && task
            .columns_to
            .cast::<[f32; LANES]>()
            .addr()
            .is_multiple_of(4 * LANES);
    let is_far = task.columns.is_far && is_aligned;
    // SAFETY: rows and columns were checked; a run is copied before it is read, and so is the
    // rest of its last vector, or it is set to 0.
    unsafe {
        let mut column = 0;
        while column < task.columns.count {
            let run = RUN.min(task.columns.count - column);
            for r in 0..task.rows {
                let from = task.rows_from.add(r * task.row + column);
                let to = buffer.add(r * ROW);
                if run == LANES {
                    S::store(to, S::load(from));
                } else {
                    S::store(to.add((run - 1) / LANES * LANES), S::splat(0.0));
                    std::ptr::copy_nonoverlapping(from, to, run);
                }
            }
            let mut start = 0;
            while start < run {
                let mut m = [S::splat(0.0); LANES];
                for (r, m) in m.iter_mut().enumerate().take(task.rows) {
                    *m = S::load(buffer.add(r * ROW + start));
                }
                S::transpose(&mut m);
                for m in m.iter().take(run - start) {
                    let to = task.columns_to.add(walk.next(&task.columns));
                    if is_far {
                        S::store_far(to, *m);
                    } else {
                        S::store(to, *m);
                    }
                }
                start += LANES;
            }
            column += run;
        }
        if is_far {
            S::finish_far();
        }
    }
}

#[inline(always)]
unsafe fn from_lanes_body<S: Simd>(task: &mut Task) {
    let mut buffer: Runs = [const { MaybeUninit::uninit() }; LANES * ROW];
    let buffer = buffer.as_mut_ptr().cast::<f32>();
    let mut walk = Walk::default();
    // SAFETY: rows and columns were checked; a run is written before it is copied.
    unsafe {
        let mut column = 0;
        while column < task.columns.count {
            let run = RUN.min(task.columns.count - column);
            let mut start = 0;
            while start < run {
                let mut m = [S::splat(0.0); LANES];
                for m in m.iter_mut().take(run - start) {
                    *m = S::load(task.columns_from.add(walk.next(&task.columns)));
                }
                S::transpose(&mut m);
                for (r, m) in m.iter().enumerate() {
                    S::store(buffer.add(r * ROW + start), *m);
                }
                start += LANES;
            }
            for r in 0..task.rows {
                let to = task.rows_to.add(r * task.row + column);
                std::ptr::copy_nonoverlapping(buffer.add(r * ROW), to, run);
            }
            column += run;
        }
    }
}
