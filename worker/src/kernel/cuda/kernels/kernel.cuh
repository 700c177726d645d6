// What every kernel is built on. Under NVRTC these are CUDA's words; under g++ the same words come from
// tests/cuda/host.h, where a kernel is a function that a thread of the host runs.
//
// A kernel takes one argument, a plain struct called `a`, with the fields of the Rust struct of the same
// name in the same order; pointers in it are device addresses, 8 bytes each.
//
//   struct Fill { f32 *to; u64 elements; f32 value; };
//   KERNEL(fill, Fill) {
//     for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) a.to[i] = a.value;
//   }
//
// KERNEL: threads that know nothing of each other. BLOCK_KERNEL: one that has `__shared__` memory and
// `__syncthreads()`, which all threads of the block must reach: no `return` before the last one,
// unless all threads of the block return.
// WIDE_KERNEL: a BLOCK_KERNEL of 256 threads whose registers leave room for so many blocks of it on a
// multiprocessor at once.
// Blocks are one-dimensional. Products and sums are not fused (`--fmad=false`, `-ffp-contract=off`), so
// that f32 gives the same bits on both.
#pragma once

#ifdef __CUDACC_RTC__

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef float f32;

#define INLINE static __device__ __forceinline__
#define MEMBER __device__ __forceinline__
#define KERNEL(name, Arguments) extern "C" __global__ void name(const Arguments a)
#define BLOCK_KERNEL(name, Arguments) KERNEL(name, Arguments)
#define WIDE_KERNEL(name, Arguments, blocks) \
  extern "C" __global__ void __launch_bounds__(256, blocks) name(const Arguments a)

// The bits of a number, and back.
INLINE u32 bits_of(f32 x) { return __float_as_uint(x); }
INLINE f32 from_bits(u32 bits) { return __uint_as_float(bits); }

// Ends the kernel with a fault that the device keeps.
INLINE void trap() { asm volatile("trap;"); }

#else

#include "host.h"

#endif

static_assert(sizeof(u8) == 1 && sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "widths");
static_assert(sizeof(f32) == 4 && sizeof(void *) == 8, "widths");

// The upper half of an f32.
struct bf16 {
  u16 bits;
};

INLINE f32 to_f32(bf16 x) { return from_bits((u32)x.bits << 16); }

// The nearest, of two the even one; what is too large becomes infinite; any NaN becomes 0x7fff.
INLINE bf16 to_bf16(f32 x) {
  bf16 y;
#ifdef __CUDACC_RTC__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const u32 bits = bits_of(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  y.bits = nan ? (u16)0x7fff : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
  return y;
}

// Two of them in a word, the first in its lower half.
INLINE u32 to_bf16_pair(f32 first, f32 second) {
#ifdef __CUDACC_RTC__
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return (u32)to_bf16(second).bits << 16 | to_bf16(first).bits;
#endif
}

// This thread among all threads of the launch, by x alone.
INLINE u64 thread_number() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// Threads of the launch, by x alone.
INLINE u64 number_of_threads() { return (u64)gridDim.x * blockDim.x; }
