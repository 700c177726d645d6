// CUDA's words for g++: what kernels/kernel.cuh includes where NVRTC does not compile it. A kernel
// registers itself by name; the driver stand-in launches it on the thread of a stream.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef float f32;

#define INLINE static inline
#define MEMBER inline

struct Index3 {
  unsigned x, y, z;
};

extern __thread Index3 threadIdx;
extern __thread Index3 blockIdx;
extern __thread Index3 blockDim;
extern __thread Index3 gridDim;

namespace stand_in {

// What trap() throws; the driver makes it the fault of the device.
struct Trap {};

// A launch of a kernel over a grid, on the calling thread. It throws Trap.
typedef void (*Launch)(const void *arguments, Index3 grid, unsigned threads);

// A kernel, known to the driver by name from when the library is loaded.
struct Registered {
  Registered(const char *name, size_t argument_bytes, Launch launch);
};

// Runs the body for every thread of every block, with a fiber for each thread of a block.
void run_blocks(void (*body)(const void *), const void *arguments, Index3 grid, unsigned threads);

// Waits for all threads of the block.
void barrier();

template <typename Arguments, void (*body)(const Arguments &)>
void run_plain(const void *given, Index3 grid, unsigned threads) {
  static_assert(std::is_trivially_copyable<Arguments>::value, "arguments are copied as bytes");
  Arguments arguments;
  memcpy(&arguments, given, sizeof arguments);
  gridDim = grid;
  blockDim = {threads, 1, 1};
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        blockIdx = {x, y, z};
        for (unsigned thread = 0; thread < threads; thread++) {
          threadIdx = {thread, 0, 0};
          body(arguments);
        }
      }
}

template <typename Arguments, void (*body)(const Arguments &)>
void run_with_barriers(const void *given, Index3 grid, unsigned threads) {
  static_assert(std::is_trivially_copyable<Arguments>::value, "arguments are copied as bytes");
  Arguments arguments;
  memcpy(&arguments, given, sizeof arguments);
  run_blocks([](const void *a) { body(*static_cast<const Arguments *>(a)); }, &arguments, grid, threads);
}

}  // namespace stand_in

#define STAND_IN_KERNEL(name, Arguments, run)                                            \
  static void name(const Arguments &a);                                                  \
  static const stand_in::Registered name##_registered(#name, sizeof(Arguments),          \
                                                      &stand_in::run<Arguments, &name>); \
  static void name([[maybe_unused]] const Arguments &a)
#define KERNEL(name, Arguments) STAND_IN_KERNEL(name, Arguments, run_plain)
#define BLOCK_KERNEL(name, Arguments) STAND_IN_KERNEL(name, Arguments, run_with_barriers)
#define WIDE_KERNEL(name, Arguments, blocks) BLOCK_KERNEL(name, Arguments)

#define __shared__ static thread_local
#define __syncthreads() stand_in::barrier()

INLINE u32 bits_of(f32 x) {
  u32 bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

INLINE f32 from_bits(u32 bits) {
  f32 x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

INLINE void trap() { throw stand_in::Trap(); }
