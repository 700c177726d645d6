// Slots as rows of channels, and how blocks walk over them.
//
// A block has TILE_THREADS threads: neighbouring groups of channels (a power of two, so that reads of a
// row are whole lines) times the rows that it looks at in one go. A thread stays at its channels and walks
// down the rows: what belongs to a channel is read once, and nothing is divided on the way.
//
// Sums per channel are added up in an order that depends on the shape alone, so that the same numbers
// give the same bits on any device: a block walks down its part of the rows, adds up in registers, then
// over its own rows in shared memory, and writes one partial sum per channel. `merge` adds the partial
// sums of all blocks in f64.
#pragma once
#include "values.cuh"

enum : u32 { TILE_THREADS = 256 };

// How rows and channels are cut; made by `Tile::of` in values.rs.
struct Tile {
  u64 rows;      // pixels of all samples
  u32 channels;
  u32 log_quads; // 2^this quads of channels are a block's
  u32 blocks;    // along the rows, where sums are taken
  u32 rows_of_block;
};

// A group of a row where rows are whole groups: its number in the slot.
template <u32 width> struct Whole {
  u32 number;
  MEMBER Whole(u32 row, u32 group, u32 channels) : number(row * (channels / width) + group) {}
};

// A quad of a row that may end inside it.
struct Ragged {
  u64 first;
  u32 present;
  bool is_whole; // and all quads are
  MEMBER Ragged(u64 row, u32 quad, u32 channels)
      : first(row * channels + 4 * quad),
        present(channels - 4 * quad < 4 ? channels - 4 * quad : 4),
        is_whole(channels % 4 == 0) {}
};

template <typename T, u32 width>
INLINE Numbers<width> load(const Typed<T> &v, const Whole<width> &at) {
  return load_group<width>(v, at.number);
}

INLINE Quad load(const Values &v, const Ragged &at) {
  if (at.is_whole) return load_group<4>(v, at.first / 4);
  Quad quad = zeros<4>();
  UNROLL
  for (u32 j = 0; j < 4; ++j)
    if (j < at.present) quad.x[j] = load(v, at.first + j);
  return quad;
}

template <typename T, u32 width>
INLINE void store(const Typed<T> &v, const Whole<width> &at, const Numbers<width> &group) {
  store_group(v, at.number, group);
}

INLINE void store(const Values &v, const Ragged &at, const Quad &quad) {
  if (at.is_whole) return store_group(v, at.first / 4, quad);
  UNROLL
  for (u32 j = 0; j < 4; ++j)
    if (j < at.present) store(v, at.first + j, quad.x[j]);
}

// Writes a group, or adds it to what is there.
template <typename V, typename Spot, u32 width>
INLINE void deliver(const V &v, const Spot &at, Numbers<width> group, bool accumulate) {
  if (accumulate) {
    const Numbers<width> there = load(v, at);
  UNROLL
    for (u32 j = 0; j < width; ++j) group.x[j] = there.x[j] + group.x[j];
  }
  store(v, at, group);
}

// What a body knows when it is compiled: rows are whole groups of `width` channels, and few enough to be
// counted in 32 bits; what convolutions read or write is of one type, errors that arrive from above are
// of another, all else is f32; and, if `complete`, what is usually there is there.
template <typename Operand, typename Error, u32 channels_of_group, bool all_is_there = false>
struct Known {
  static constexpr u32 width = channels_of_group;
  static constexpr bool complete = all_is_there;
  typedef Typed<Operand> Operands;
  typedef Typed<Error> Errors;
  typedef Typed<f32> Reals;
  typedef Whole<width> Spot;
  typedef u32 Row;
};

// Anything.
struct Unknown {
  static constexpr u32 width = 4;
  static constexpr bool complete = false;
  typedef Values Operands;
  typedef Values Errors;
  typedef Values Reals;
  typedef Ragged Spot;
  typedef u64 Row;
};

// Whether a slot can be `Known` as to its shape.
INLINE bool is_regular(const Tile &tile, u32 width) {
  return tile.channels % width == 0 && tile.rows * tile.channels < 1ull << 31;
}

// Where a thread walks.
template <typename K> struct Place {
  u32 group;            // its first channel is `width` times this
  u32 lane;             // its row among those of one go
  u32 lanes;            // rows in one go
  typename K::Row row;  // the first row that it looks at
  typename K::Row step; // to the next one
  typename K::Row end;  // behind the last one
};

template <typename K> INLINE Place<K> place_in_block(const Tile &tile) {
  Place<K> p;
  // Where a group has eight channels, half as many are a quad row's.
  const u32 log_groups = tile.log_quads - (K::width == 8 ? 1 : 0);
  p.lanes = TILE_THREADS >> log_groups;
  p.lane = threadIdx.x >> log_groups;
  p.group = (blockIdx.y << log_groups) + (threadIdx.x & ((1u << log_groups) - 1));
  return p;
}

// In the block's own part of the rows, for sums.
template <typename K> INLINE Place<K> place_for_sums(const Tile &tile) {
  typedef typename K::Row Row;
  Place<K> p = place_in_block<K>(tile);
  const u64 begin = static_cast<u64>(tile.rows_of_block) * blockIdx.x, end = begin + tile.rows_of_block;
  p.row = static_cast<Row>(begin + p.lane);
  p.step = p.lanes;
  p.end = static_cast<Row>(end < tile.rows ? end : tile.rows);
  return p;
}

// In all rows, which the blocks take in turns.
template <typename K> INLINE Place<K> place_in_turns(const Tile &tile) {
  typedef typename K::Row Row;
  Place<K> p = place_in_block<K>(tile);
  p.row = static_cast<Row>(blockIdx.x) * p.lanes + p.lane;
  p.step = static_cast<Row>(gridDim.x) * p.lanes;
  p.end = static_cast<Row>(tile.rows);
  return p;
}

// Numbers of a thread's channels.
template <typename K>
INLINE Numbers<K::width> of_channels(const f32 *from, const Place<K> &p, u32 channels) {
  Numbers<K::width> group = zeros<K::width>();
  UNROLL
  for (u32 j = 0; j < K::width; ++j)
    if (K::width * p.group + j < channels) group.x[j] = from[K::width * p.group + j];
  return group;
}

// So many numbers of each channel of a block, in shared memory: registers are for what differs from row
// to row, and hold more of it that way. `keep` is for one lane of each column, `kept_by` for all of them after
// a barrier.
enum : u32 { BLOCK_QUADS = 32 };

// The moments of a norm, where there is one, come first.
enum : u32 { MEAN, INV, MOMENTS };

template <u32 kinds> struct OfBlock {
  Packed<f32, 4> quads[kinds][2][BLOCK_QUADS];
};

// Adds the quads of all lanes of a block and writes them to partials[sum][channel] of this block, which
// has `sums` of them. All threads must call it.
INLINE void add_lanes(const Tile &tile, const Quad &mine, f32 *partials, u32 sum, u32 sums) {
  __shared__ f32 shared[4 * TILE_THREADS];
  const Place<Unknown> p = place_in_block<Unknown>(tile);
  UNROLL
  for (u32 j = 0; j < 4; ++j) shared[TILE_THREADS * j + threadIdx.x] = mine.x[j];
  __syncthreads();
  for (u32 half = p.lanes / 2; half > 0; half /= 2) {
    if (p.lane < half) {
  UNROLL
      for (u32 j = 0; j < 4; ++j)
        shared[TILE_THREADS * j + threadIdx.x] +=
            shared[TILE_THREADS * j + threadIdx.x + (half << tile.log_quads)];
    }
    __syncthreads();
  }
  if (p.lane == 0) {
    f32 *out = partials + (static_cast<u64>(blockIdx.x) * sums + sum) * tile.channels;
  UNROLL
    for (u32 j = 0; j < 4; ++j)
      if (4 * p.group + j < tile.channels)
        out[4 * p.group + j] = shared[TILE_THREADS * j + threadIdx.x];
  }
  __syncthreads();
}

template <u32 kinds, typename K>
INLINE void keep(OfBlock<kinds> &kept, u32 kind, const Place<K> &p, const Numbers<K::width> &group) {
  const u32 column = p.group % BLOCK_QUADS;
  UNROLL
  for (u32 j = 0; j < K::width; ++j) kept.quads[kind][j / 4][column].x[j % 4] = group.x[j];
}

template <u32 kinds, typename K>
INLINE Numbers<K::width> kept_by(const OfBlock<kinds> &kept, u32 kind, const Place<K> &p) {
  const u32 column = p.group % BLOCK_QUADS;
  Numbers<K::width> group;
  UNROLL
  for (u32 q = 0; q < K::width / 4; ++q) {
    const Packed<f32, 4> quad = kept.quads[kind][q][column];
  UNROLL
    for (u32 j = 0; j < 4; ++j) group.x[4 * q + j] = quad.x[j];
  }
  return group;
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
