// The plainest kernels: what the tests of the device are made of.
#include "kernel.cuh"

struct Fill {
  f32 *to;
  u64 elements;
  f32 value;
  u32 unused;
};

// to = value.
KERNEL(fill, Fill) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) a.to[i] = a.value;
}

struct Increase {
  const f32 *from;
  f32 *to;
  u64 elements;
  f32 factor;
  f32 summand;
};

// to = factor * from + summand, with both roundings.
KERNEL(increase, Increase) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads())
    a.to[i] = a.factor * a.from[i] + a.summand;
}

struct BlockSum {
  const f32 *from;
  f32 *to;
  u64 elements;
};

// One sum per block of 256 threads, always in the same order.
BLOCK_KERNEL(block_sum, BlockSum) {
  __shared__ f32 sums[256];
  f32 sum = 0.0f;
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) sum += a.from[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (u32 half = 128; half > 0; half /= 2) {
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) a.to[blockIdx.x] = sums[0];
}

struct Convert {
  const f32 *from;
  bf16 *to;
  u64 elements;
};

// to = from, rounded to bf16.
KERNEL(convert, Convert) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads())
    a.to[i] = to_bf16(a.from[i]);
}

struct Fault {
  u64 unused;
};

// Faults.
KERNEL(fault, Fault) {
  if (thread_number() == a.unused) trap();
}
