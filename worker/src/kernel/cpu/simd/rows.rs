//! Loops over rows (pixels): fixed blocks, so that sums do not depend on the number of threads, and
//! every body compiled for the instruction set in use.

use super::Isa;
use rayon::prelude::*;
use std::ops::Range;

/// A slice that is written row by row; with `per_row` 0 it is absent.
#[derive(Debug)]
pub(crate) struct Rows<'a, T> {
    slice: &'a mut [T],
    per_row: usize,
}

impl<'a, T> Rows<'a, T> {
    /// Every row has `per_row` elements.
    pub(crate) fn new(slice: &'a mut [T], per_row: usize) -> Self {
        Self { slice, per_row }
    }

    /// Nothing is written.
    pub(crate) fn absent() -> Self {
        Self {
            slice: &mut [],
            per_row: 0,
        }
    }

    /// The slice if there is one.
    pub(crate) fn optional(slice: Option<&'a mut [T]>, per_row: usize) -> Self {
        slice.map_or_else(Self::absent, |slice| Self::new(slice, per_row))
    }

    fn share(&mut self) -> Share<T> {
        Share {
            base: self.slice.as_mut_ptr(),
            len: self.slice.len(),
            per_row: self.per_row,
        }
    }
}

/// A slice without its borrow, for the length of one loop.
#[derive(Clone, Copy)]
struct Share<T> {
    base: *mut T,
    len: usize,
    per_row: usize,
}

// SAFETY: `for_row_blocks` borrows the slice mutably until its loop has ended, and hands disjoint
// ranges of it to tasks.
unsafe impl<T: Send> Send for Share<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Share<T> {}

impl<T> Share<T> {
    /// # Safety
    /// The slice must outlive the result, and no two live results may overlap.
    unsafe fn rows<'a>(self, rows: &Range<usize>) -> &'a mut [T] {
        let (begin, end) = (rows.start * self.per_row, rows.end * self.per_row);
        assert!(end <= self.len, "a row is outside its slice");
        // SAFETY: inside the slice by the assertion; disjoint and alive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(begin), end - begin) }
    }
}

/// The rows of one task.
#[derive(Debug)]
pub(crate) struct Block<'a, const M: usize> {
    /// Its rows.
    pub(crate) rows: Range<usize>,
    /// Its part of each float slice.
    pub(crate) floats: [&'a mut [f32]; M],
    /// Its part of the words.
    pub(crate) words: &'a mut [u64],
    /// Its part of the sums: one row of them per block.
    pub(crate) sums: &'a mut [f32],
    /// Its part of the counts: one row of them per block.
    pub(crate) counts: &'a mut [u64],
}

/// What to do with a block. `run` must be `#[inline(always)]`, to be compiled with its caller.
pub(crate) trait Body<const M: usize>: Sync {
    /// Works on one block.
    fn run(&self, block: Block<'_, M>);
}

/// What a loop over rows writes.
#[derive(Debug)]
pub(crate) struct Written<'a, const M: usize> {
    /// Float slices.
    pub(crate) floats: [Rows<'a, f32>; M],
    /// Bits.
    pub(crate) words: Rows<'a, u64>,
    /// Sums: `per_row` numbers for each block.
    pub(crate) sums: Rows<'a, f32>,
    /// Counts: `per_row` numbers for each block.
    pub(crate) counts: Rows<'a, u64>,
}

impl<'a, const M: usize> Written<'a, M> {
    /// Only float slices.
    pub(crate) fn floats(floats: [Rows<'a, f32>; M]) -> Self {
        Self {
            floats,
            words: Rows::absent(),
            sums: Rows::absent(),
            counts: Rows::absent(),
        }
    }
}

/// Runs `body` over `num_rows` rows in blocks of `rows_per_block`, on the current threads.
pub(crate) fn for_row_blocks<const M: usize>(
    isa: Isa,
    num_rows: usize,
    rows_per_block: usize,
    mut written: Written<'_, M>,
    body: &impl Body<M>,
) {
    assert!(isa.is_available(), "{isa} is not available on this machine");
    let floats: [Share<f32>; M] = std::array::from_fn(|i| written.floats[i].share());
    let words = written.words.share();
    let sums = written.sums.share();
    let counts = written.counts.share();
    let num_blocks = num_rows.div_ceil(rows_per_block);
    (0..num_blocks).into_par_iter().for_each(|index| {
        let begin = index * rows_per_block;
        let rows = begin..num_rows.min(begin + rows_per_block);
        // SAFETY: `written` holds the slices until this function returns, which is after the loop;
        // each index runs once, and row ranges (and block numbers) of two indices are disjoint.
        let block = unsafe {
            Block {
                floats: std::array::from_fn(|i| floats[i].rows(&rows)),
                words: words.rows(&rows),
                sums: sums.rows(&(index..index + 1)),
                counts: counts.rows(&(index..index + 1)),
                rows,
            }
        };
        // SAFETY: availability was asserted above.
        unsafe { compiled_for(isa, body, block) };
    });
}

/// # Safety
/// `isa` must be available.
unsafe fn compiled_for<const M: usize>(isa: Isa, body: &impl Body<M>, block: Block<'_, M>) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx2,fma,bmi1,bmi2,popcnt")]
    fn avx512<const M: usize>(body: &impl Body<M>, block: Block<'_, M>) {
        body.run(block);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
    fn avx2<const M: usize>(body: &impl Body<M>, block: Block<'_, M>) {
        body.run(block);
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: available, by the caller's promise.
        Isa::Avx512 => unsafe { avx512(body, block) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2(body, block) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx512 | Isa::Avx2 => unreachable!("not available"),
        Isa::Portable => body.run(block),
    }
}

/// One word of spikes: bit i is set where `u[i] >= v_th`. At most 64 potentials.
#[inline(always)]
pub(crate) fn spikes(u: &[f32], v_th: f32) -> u64 {
    let mut word = 0u64;
    let mut chunks = u.chunks_exact(16);
    let mut shift = 0;
    for chunk in &mut chunks {
        // Lanes become bits by a sum of powers of two: a form that compilers vectorise.
        let mut lanes = [0u32; 16];
        for (lane, (bit, &u)) in lanes.iter_mut().zip(chunk).enumerate() {
            *bit = u32::from(u >= v_th) << lane;
        }
        let bits = lanes.iter().fold(0, |all, bit| all | bit);
        word |= u64::from(bits) << shift;
        shift += 16;
    }
    for (i, &u) in chunks.remainder().iter().enumerate() {
        word |= u64::from(u >= v_th) << (shift + i);
    }
    word
}
