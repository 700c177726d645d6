//! AVX-512: a vector is one register.
use super::{LANES, Simd};
use std::arch::x86_64::{
    __m512, _mm_sfence, _mm256_storeu_si256, _mm512_add_ps, _mm512_cvtepi32_epi16, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_compress_epi32, _mm512_set1_ps,
    _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_stream_ps,
    _mm512_unpackhi_ps, _mm512_unpacklo_ps,
};

/// The form for machines with AVX-512F.
pub(super) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: AVX-512F is available, by the trait's contract.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: 16 values are readable at `p`, by the trait's contract.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: 16 values are writable at `p`, by the trait's contract.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_far(p: *mut f32, v: __m512) {
        // SAFETY: 16 aligned values are writable at `p`, by the trait's contract.
        unsafe { _mm512_stream_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn finish_far() {
        // SAFETY: every x86-64 has it.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: AVX-512F is available, by the trait's contract.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: AVX-512F is available, by the trait's contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[allow(clippy::cast_possible_truncation, reason = "a mask of 16 lanes")]
    #[inline(always)]
    unsafe fn append(mut to: *mut u16, positions: &[u32; 64], bits: u64) {
        for part in 0..4 {
            let mask = (bits >> (part * LANES)) as u16;
            // SAFETY: AVX-512F is available, and there is room for 16 values at `to`.
            unsafe {
                let all = _mm512_loadu_si512(positions.as_ptr().add(part * LANES).cast());
                let some = _mm512_maskz_compress_epi32(mask, all);
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(some));
                to = to.add(mask.count_ones() as usize);
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose(m: &mut [__m512; LANES]) {
        let mut t = *m;
        // SAFETY: AVX-512F is available, by the trait's contract.
        unsafe {
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(m[2 * i], m[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(m[2 * i], m[2 * i + 1]);
            }
            // Now m[4 i + j] holds columns j, j + 4, j + 8, j + 12 of rows 4 i .. 4 i + 4.
            for i in 0..4 {
                m[4 * i] = _mm512_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
                m[4 * i + 1] = _mm512_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
                m[4 * i + 2] = _mm512_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
                m[4 * i + 3] = _mm512_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
            }
            for j in 0..4 {
                let a = _mm512_shuffle_f32x4::<0x88>(m[j], m[4 + j]);
                let b = _mm512_shuffle_f32x4::<0xdd>(m[j], m[4 + j]);
                let c = _mm512_shuffle_f32x4::<0x88>(m[8 + j], m[12 + j]);
                let d = _mm512_shuffle_f32x4::<0xdd>(m[8 + j], m[12 + j]);
                t[j] = _mm512_shuffle_f32x4::<0x88>(a, c);
                t[4 + j] = _mm512_shuffle_f32x4::<0x88>(b, d);
                t[8 + j] = _mm512_shuffle_f32x4::<0xdd>(a, c);
                t[12 + j] = _mm512_shuffle_f32x4::<0xdd>(b, d);
            }
        }
        *m = t;
    }
}
