//! Blocks of 16 x 16 between rows and columns.
use super::{Isa, LANES, Simd, load_lanes, per_isa, store_lanes};

/// Where the vectors of columns lie: column `c` at
/// `(c / period) * outer + (c % period) * inner` values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns {
    pub(crate) count: usize,
    pub(crate) period: usize,
    pub(crate) outer: usize,
    pub(crate) inner: usize,
}

impl Columns {
    /// Equally spaced columns.
    pub(crate) fn spaced(count: usize, stride: usize) -> Self {
        Self {
            count,
            period: 1,
            outer: stride,
            inner: 0,
        }
    }

    /// Index one past the last value of any column.
    fn end(&self) -> usize {
        let last = self.count - 1;
        (last / self.period) * self.outer + (self.period.min(self.count) - 1) * self.inner + LANES
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
struct Walk {
    outer: usize,
    inner: usize,
}

impl Walk {
    #[inline(always)]
    fn next(&mut self, columns: &Columns) -> usize {
        let offset = self.outer * columns.outer + self.inner * columns.inner;
        self.inner += 1;
        if self.inner == columns.period {
            self.inner = 0;
            self.outer += 1;
        }
        offset
    }
}

#[inline(always)]
unsafe fn to_lanes_body<S: Simd>(task: &mut Task) {
    let mut walk = Walk { outer: 0, inner: 0 };
    // SAFETY: rows and columns were checked.
    unsafe {
        let mut column = 0;
        while column < task.columns.count {
            let count = LANES.min(task.columns.count - column);
            let mut m = [S::splat(0.0); LANES];
            for (r, m) in m.iter_mut().enumerate().take(task.rows) {
                *m = load_lanes::<S>(task.rows_from.add(r * task.row + column), count);
            }
            S::transpose(&mut m);
            for m in m.iter().take(count) {
                S::store(task.columns_to.add(walk.next(&task.columns)), *m);
            }
            column += count;
        }
    }
}

#[inline(always)]
unsafe fn from_lanes_body<S: Simd>(task: &mut Task) {
    let mut walk = Walk { outer: 0, inner: 0 };
    // SAFETY: rows and columns were checked.
    unsafe {
        let mut column = 0;
        while column < task.columns.count {
            let count = LANES.min(task.columns.count - column);
            let mut m = [S::splat(0.0); LANES];
            for m in m.iter_mut().take(count) {
                *m = S::load(task.columns_from.add(walk.next(&task.columns)));
            }
            S::transpose(&mut m);
            for (r, m) in m.iter().enumerate().take(task.rows) {
                store_lanes::<S>(task.rows_to.add(r * task.row + column), *m, count);
            }
            column += count;
        }
    }
}
