//! Vector code: the only place of the CPU back end with `unsafe`.
//!
//! Every kernel is one generic body over `Simd`, a vector of 16 f32, compiled once per
//! instruction set. All forms read the same packed layouts and add in the same order, so
//! AVX-512 and AVX2 agree to the bit; the portable form has no fused multiply-add.
//!
//! # Layout
//!
//! - [`Isa`]: the instruction sets and which of them this machine has.
//! - `avx512`, `avx2`, `portable`: one vector of 16 lanes each.
//! - `transpose`: weights between OIHW and the packed layouts.
//! - `rows`: loops over rows for everything but convolutions.
//! - `dense`: direct convolution, register-blocked.
//! - `winograd`: the same for 3 x 3 with stride 1, with a quarter of the multiplications.
//! - `spikes`: forward convolution over set bits.
//! - `lists`: weight gradient over lists of active positions.
//! - `outer`: weight gradient of real inputs.
#![allow(
    unsafe_code,
    reason = "vector intrinsics and writes to interleaved, disjoint outputs"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "register blocks are indexed by constants"
)]
#![allow(
    clippy::inline_always,
    reason = "bodies must be compiled with their caller's features"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod dense;
pub(crate) mod lists;
pub(crate) mod outer;
mod portable;
pub(crate) mod rows;
pub(crate) mod spikes;
pub(crate) mod transpose;
pub(crate) mod winograd;

#[cfg(target_arch = "x86_64")]
use self::{avx2::Avx2, avx512::Avx512};
use portable::Portable;

/// Lanes of one vector, in every form: channels are padded to a multiple of this.
pub(crate) const LANES: usize = 16;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 (F): one 512-bit register per vector.
    Avx512,
    /// AVX2 with FMA: two 256-bit registers per vector.
    Avx2,
    /// No assumption about the machine.
    Portable,
}

impl Isa {
    /// The fastest form this machine can run.
    pub fn best() -> Self {
        let all = [Self::Avx512, Self::Avx2];
        all.into_iter()
            .find(|isa| isa.is_available())
            .unwrap_or(Self::Portable)
    }

    /// The forms this machine can run, fastest first.
    pub fn available() -> Vec<Self> {
        let all = [Self::Avx512, Self::Avx2, Self::Portable];
        all.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine can run this form.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Portable => true,
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        })
    }
}

/// Sixteen f32 and the few operations that convolutions need.
///
/// # Safety
///
/// Every method may only run where the implementing instruction set is available; pointers must
/// be valid for 16 values (unaligned).
trait Simd {
    /// The vector.
    type V: Copy;
    /// All lanes equal `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Lanes from memory.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Lanes to memory.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Lanes to memory, past the cache where the instruction set can; 64-byte aligned.
    #[inline(always)]
    unsafe fn store_far(p: *mut f32, v: Self::V) {
        // SAFETY: the same contract.
        unsafe { Self::store(p, v) };
    }
    /// Orders all far stores before what follows.
    #[inline(always)]
    unsafe fn finish_far() {}
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, fused where the instruction set can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Writes the positions whose bit is set, in order; up to 16 values more may be written.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "bands have fewer than 2^16 positions"
    )]
    #[inline(always)]
    unsafe fn append(mut to: *mut u16, positions: &[u32; 64], mut bits: u64) {
        while bits != 0 {
            // SAFETY: the caller has room at `to`.
            unsafe {
                *to = positions[bits.trailing_zeros() as usize] as u16;
                to = to.add(1);
            }
            bits &= bits - 1;
        }
    }
    /// Transposes 16 vectors as a 16 x 16 matrix.
    unsafe fn transpose(m: &mut [Self::V; LANES]);
}

/// Reads the first `lanes` values, the others are zero.
#[inline(always)]
unsafe fn load_lanes<S: Simd>(p: *const f32, lanes: usize) -> S::V {
    // SAFETY: the caller owns `lanes` readable values at `p`; the buffer is a local.
    unsafe {
        if lanes >= LANES {
            return S::load(p);
        }
        let mut buffer = [0.0_f32; LANES];
        for (i, b) in buffer.iter_mut().enumerate().take(lanes) {
            *b = *p.add(i);
        }
        S::load(buffer.as_ptr())
    }
}

/// Writes the first `lanes` values.
#[inline(always)]
unsafe fn store_lanes<S: Simd>(p: *mut f32, v: S::V, lanes: usize) {
    // SAFETY: the caller owns `lanes` writable values at `p`; the buffer is a local.
    unsafe {
        if lanes >= LANES {
            return S::store(p, v);
        }
        let mut buffer = [0.0_f32; LANES];
        S::store(buffer.as_mut_ptr(), v);
        for (i, b) in buffer.iter().enumerate().take(lanes) {
            *p.add(i) = *b;
        }
    }
}

/// The base of an output that tasks of one parallel loop write disjointly.
#[derive(Clone, Copy)]
struct Target(*mut f32);

impl Target {
    /// A pointer some values further.
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

// SAFETY: each kernel asserts before its parallel loop that tasks write disjoint elements of a
// slice that it borrows mutably until the loop has ended.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// Defines `unsafe fn name(isa, task)`, which runs the body compiled for `isa`; the constants
/// are the register blocking of each instruction set.
macro_rules! per_isa {
    ($vis:vis $name:ident($task:ty) = $body:ident
     <$($a:literal),*> <$($b:literal),*> <$($c:literal),*>) => {
        $vis unsafe fn $name(isa: $crate::kernel::cpu::simd::Isa, task: &mut $task) {
            use $crate::kernel::cpu::simd as forms;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma,bmi1,bmi2,popcnt")]
            unsafe fn avx512(task: &mut $task) {
                // SAFETY: the features are enabled here; the task is the caller's promise.
                unsafe { $body::<forms::Avx512, $($a),*>(task) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
            unsafe fn avx2(task: &mut $task) {
                // SAFETY: as above.
                unsafe { $body::<forms::Avx2, $($b),*>(task) }
            }
            // SAFETY: the caller has asserted that `isa` is available, and vouches for the task.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    forms::Isa::Avx512 => avx512(task),
                    #[cfg(target_arch = "x86_64")]
                    forms::Isa::Avx2 => avx2(task),
                    #[cfg(not(target_arch = "x86_64"))]
                    forms::Isa::Avx512 | forms::Isa::Avx2 => unreachable!("not available"),
                    forms::Isa::Portable => $body::<forms::Portable, $($c),*>(task),
                }
            }
        }
    };
}
use per_isa;
