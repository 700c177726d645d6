// Sums per channel over the pixels of a slot, in an order that depends on the shape alone: the same
// numbers give the same bits on any device.
//
// A block has TILE_THREADS threads: `quads` neighbouring quads of channels (a power of two, so that
// reads of a row are whole lines) times the rows that it looks at in one go. It walks down its part of
// the rows, adds up in registers, then over its own rows in shared memory, and writes one partial sum
// per channel. `merge` adds the partial sums of all blocks in f64.
#pragma once
#include "values.cuh"

enum : u32 { TILE_THREADS = 256 };

// How rows and channels are cut; made by `Tile::of` in arguments.rs.
struct Tile {
  u64 rows;     // pixels of all samples
  u32 channels;
  u32 quads;    // of a block, a power of two
  u32 blocks;   // along the rows
  u32 unused;
};

// Where a thread is in its tile.
struct Place {
  u32 quad;    // its first channel is 4 quad
  u32 lane;    // its row among those of one go
  u32 lanes;   // rows in one go
  u64 row;     // the first row that it looks at
  u64 end;     // behind the last row of the block
};

INLINE Place place_in(const Tile &tile) {
  Place p;
  p.lanes = TILE_THREADS / tile.quads;
  p.lane = threadIdx.x / tile.quads;
  p.quad = blockIdx.y * tile.quads + threadIdx.x % tile.quads;
  const u64 rows = (tile.rows + tile.blocks - 1) / tile.blocks;
  const u64 begin = rows * blockIdx.x;
  p.row = begin + p.lane;
  p.end = begin + rows < tile.rows ? begin + rows : tile.rows;
  return p;
}

// A quad of a row that may end inside it.
INLINE Quad load_row(const Values &v, u64 row, u32 quad, u32 channels) {
  const u64 first = row * channels + 4 * quad;
  if (channels % 4 == 0) return load_quad(v, first / 4, first + 4, true);
  Quad q;
  UNROLL
  for (u32 j = 0; j < 4; ++j) q.x[j] = 4 * quad + j < channels ? load(v, first + j) : 0.0f;
  return q;
}

// Adds the quads of all lanes of a block and writes them to partials[sum][channel] of this block, which
// has `sums` of them. All threads must call it.
INLINE void add_lanes(const Tile &tile, const Place &p, const Quad &mine, f32 *partials, u32 sum,
                      u32 sums) {
  __shared__ f32 shared[4 * TILE_THREADS];
  UNROLL
  for (u32 j = 0; j < 4; ++j) shared[TILE_THREADS * j + threadIdx.x] = mine.x[j];
  __syncthreads();
  for (u32 half = p.lanes / 2; half > 0; half /= 2) {
    if (p.lane < half) {
  UNROLL
      for (u32 j = 0; j < 4; ++j)
        shared[TILE_THREADS * j + threadIdx.x] +=
            shared[TILE_THREADS * j + threadIdx.x + half * tile.quads];
    }
    __syncthreads();
  }
  if (p.lane == 0) {
    f32 *out = partials + (static_cast<u64>(blockIdx.x) * sums + sum) * tile.channels;
  UNROLL
    for (u32 j = 0; j < 4; ++j)
      if (4 * p.quad + j < tile.channels)
        out[4 * p.quad + j] = shared[TILE_THREADS * j + threadIdx.x];
  }
  __syncthreads();
}

enum : u32 { MERGE_CHANNELS = 32, MERGE_LANES = 8, MERGE_THREADS = MERGE_CHANNELS * MERGE_LANES };

// The channel of a thread of a merging block.
INLINE u32 merge_channel() { return blockIdx.x * MERGE_CHANNELS + threadIdx.x % MERGE_CHANNELS; }

// One sum over all blocks; the same for all lanes of a channel. All threads must call it.
INLINE double merge(const f32 *partials, u32 blocks, u32 channels, u32 sum, u32 sums) {
  __shared__ double shared[MERGE_THREADS];
  const u32 channel = merge_channel(), lane = threadIdx.x / MERGE_CHANNELS;
  double total = 0.0;
  if (channel < channels)
    for (u32 block = lane; block < blocks; block += MERGE_LANES)
      total += partials[(static_cast<u64>(block) * sums + sum) * channels + channel];
  shared[threadIdx.x] = total;
  __syncthreads();
  total = 0.0;
  UNROLL
  for (u32 other = 0; other < MERGE_LANES; ++other)
    total += shared[other * MERGE_CHANNELS + threadIdx.x % MERGE_CHANNELS];
  __syncthreads();
  return total;
}
