//! AVX2 with FMA: a vector is two registers.
use super::{LANES, Simd};
use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
};

/// The form for machines with AVX2 and FMA.
pub(super) struct Avx2;

impl Simd for Avx2 {
    type V = [__m256; 2];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: AVX2 is available, by the trait's contract.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: 16 values are readable at `p`, by the trait's contract.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: 16 values are writable at `p`, by the trait's contract.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: AVX2 is available, by the trait's contract.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: FMA is available, by the trait's contract.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn transpose(m: &mut [Self::V; LANES]) {
        let mut rows = [[0.0_f32; LANES]; LANES];
        // SAFETY: the buffers are locals of 16 values.
        unsafe {
            for (row, v) in rows.iter_mut().zip(m.iter()) {
                Self::store(row.as_mut_ptr(), *v);
            }
            let columns = super::portable::transposed(&rows);
            for (v, column) in m.iter_mut().zip(&columns) {
                *v = Self::load(column.as_ptr());
            }
        }
    }
}
