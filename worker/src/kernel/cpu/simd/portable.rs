//! Plain Rust: a vector is an array, and the compiler does what it can.
use super::{LANES, Simd};

/// The form for every machine.
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: 16 values are readable at `p`, by the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: 16 values are writable at `p`, by the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn add(mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..LANES {
            a[i] += b[i];
        }
        a
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        // A fused multiply-add would be a library call where the machine lacks it.
        for i in 0..LANES {
            c[i] += a[i] * b[i];
        }
        c
    }

    #[inline(always)]
    unsafe fn transpose(m: &mut [Self::V; LANES]) {
        *m = transposed(m);
    }
}

/// Rows become columns.
#[inline(always)]
pub(super) fn transposed(m: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
    std::array::from_fn(|i| std::array::from_fn(|j| m[j][i]))
}
