// The few functions of numbers that kernels need beside + - * /.
#pragma once
#include "kernel.cuh"

#ifdef __CUDACC_RTC__

// What follows is a loop whose registers are named by its counter.
#define UNROLL _Pragma("unroll")
// What follows is a loop of which four rounds are under way at once.
#define FOUR_AT_ONCE _Pragma("unroll 4")

INLINE f32 absolute(f32 x) { return fabsf(x); }
INLINE f32 root(f32 x) { return sqrtf(x); }
INLINE f32 exponential(f32 x) { return expf(x); }
INLINE f32 logarithm(f32 x) { return logf(x); }
INLINE u32 ones(u32 bits) { return __popc(bits); }
INLINE void atomic_min(u32 *at, u32 x) { atomicMin(at, x); }
INLINE void atomic_add(u64 *at, u64 x) { atomicAdd(at, x); }

#else

#define UNROLL
#define FOUR_AT_ONCE

INLINE f32 absolute(f32 x) { return fabsf(x); }
INLINE f32 root(f32 x) { return sqrtf(x); }
INLINE f32 exponential(f32 x) { return expf(x); }
INLINE f32 logarithm(f32 x) { return logf(x); }
INLINE u32 ones(u32 bits) { return __builtin_popcount(bits); }

INLINE void atomic_min(u32 *at, u32 x) {
  u32 there = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (x < there && !__atomic_compare_exchange_n(at, &there, x, true, __ATOMIC_RELAXED,
                                                   __ATOMIC_RELAXED)) {
  }
}

INLINE void atomic_add(u64 *at, u64 x) { __atomic_fetch_add(at, x, __ATOMIC_RELAXED); }

#endif

INLINE f32 minus_infinity() { return from_bits(0xff800000u); }

INLINE bool is_finite(f32 x) { return absolute(x) <= 3.402823466e38f; }

// The larger of two; the second where the first is no number.
INLINE f32 larger(f32 x, f32 y) { return x > y ? x : y; }

// A divisor that is a power of two: the product with its inverse is the quotient, to the bit.
struct PowerOfTwo {
  f32 inverse;
};

INLINE f32 operator/(f32 x, PowerOfTwo divisor) { return x * divisor.inverse; }

// Whether it is one whose inverse is a normal number too.
INLINE bool is_power_of_two(f32 x) {
  const u32 exponent = bits_of(x) >> 23;
  return (bits_of(x) & 0x7fffffu) == 0 && exponent >= 1 && exponent <= 253;
}

INLINE PowerOfTwo power_of_two(f32 x) {
  const PowerOfTwo divisor = {from_bits((254u << 23) - bits_of(x))};
  return divisor;
}
