// Batch norm's statistics (Ioffe, Szegedy, ICML 2015), and the sums of biases.
#include "rows.cuh"

// Mean and variance of one time step as they travel: d = mean - m0, q = variance + d^2, m0 being the
// running mean (`Arena::Moments`).
struct Shared {
  f32 *d;
  f32 *q;
};

struct NormSums {
  Values z;
  f32 *partials; // [blocks][2][C]
  Tile tile;
};

struct SumsOfChannels {
  Quad sum, squares;
};

template <typename K> INLINE void sum_from_origin(const NormSums &a, SumsOfChannels &sums) {
  const Place<K> p = place_for_sums<K>(a.tile);
  const u32 channels = a.tile.channels;
  if (4 * p.group >= channels) return;
  const typename K::Operands values(a.z);
  const Quad origin = load(values, typename K::Spot(0, p.group, channels));
  FOUR_AT_ONCE
  for (typename K::Row row = p.row; row < p.end; row += p.step) {
    const Quad z = load(values, typename K::Spot(row, p.group, channels));
  UNROLL
    for (u32 j = 0; j < 4; ++j) {
      const f32 d = z.x[j] - origin.x[j];
      sums.sum.x[j] += d;
      sums.squares.x[j] += d * d;
    }
  }
}

// Sums of z - z0 and (z - z0)^2, z0 being the channel's first value: where the mean is many deviations
// away from 0, the squares would lose the variance.
BLOCK_KERNEL(norm_sums, NormSums) {
  SumsOfChannels sums = {zeros<4>(), zeros<4>()};
  const bool regular = is_regular(a.tile, 4);
  if (regular && a.z.type == BF16)
    sum_from_origin<Known<bf16, bf16, 4>>(a, sums);
  else if (regular)
    sum_from_origin<Known<f32, f32, 4>>(a, sums);
  else
    sum_from_origin<Unknown>(a, sums);
  add_lanes(a.tile, sums.sum, a.partials, 0, 2);
  add_lanes(a.tile, sums.squares, a.partials, 1, 2);
}

// What is done with the statistics of a time step.
enum Use : u32 {
  NORMALISE = 1, // mean and 1/std go to `moments`
  FOLLOW = 2,    // running statistics move
  SHARE = 4,     // d and q go to where those of all ranks will be
};

struct NormStatistics {
  Values z;
  const f32 *partials;
  f32 *moments; // mean[C], 1/std[C]
  f32 *running_mean;
  f32 *running_var;
  Shared shared;
  u64 count; // values per channel
  u32 blocks;
  u32 channels;
  u32 use;
  f32 eps;
  f32 momentum;
  u32 unused;
};

INLINE void follow(f32 *mean, f32 *var, f32 batch_mean, f32 batch_var, u64 count, f32 momentum) {
  const f32 n = static_cast<f32>(count);
  const f32 unbiased = batch_var * (n / (n > 2.0f ? n - 1.0f : 1.0f));
  *mean = *mean * (1.0f - momentum) + batch_mean * momentum;
  *var = *var * (1.0f - momentum) + unbiased * momentum;
}

BLOCK_KERNEL(norm_statistics, NormStatistics) {
  const double sum = merge(a.partials, a.blocks, a.channels, 0, 2);
  const double squares = merge(a.partials, a.blocks, a.channels, 1, 2);
  const u32 c = merge_channel();
  if (threadIdx.x >= MERGE_CHANNELS || c >= a.channels) return;
  const double n = static_cast<double>(a.count), offset = sum / n;
  const f32 mean = static_cast<f32>(static_cast<double>(load(a.z, c)) + offset);
  const double biased = squares / n - offset * offset;
  // NaN stays NaN.
  const f32 variance = static_cast<f32>(biased < 0.0 ? 0.0 : biased);
  if (a.use & NORMALISE) {
    a.moments[c] = mean;
    a.moments[a.channels + c] = 1.0f / root(variance + a.eps);
  }
  if (a.use & SHARE) {
    const f32 d = mean - a.running_mean[c];
    a.shared.d[c] = d;
    a.shared.q[c] = variance + d * d;
  }
  if (a.use & FOLLOW)
    follow(a.running_mean + c, a.running_var + c, mean, variance, a.count, a.momentum);
}

// From running statistics, or from those of all ranks, to mean and 1/std; or running statistics move
// by those of all ranks.
struct NormFrom {
  f32 *moments;
  f32 *running_mean;
  f32 *running_var;
  Shared shared; // null: the running ones
  u64 count;
  u32 channels;
  u32 use;
  f32 eps;
  f32 momentum;
};

KERNEL(norm_from, NormFrom) {
  const u64 c = thread_number();
  if (c >= a.channels) return;
  f32 mean = a.running_mean[c], variance = a.running_var[c];
  if (a.shared.d != nullptr) {
    const f32 d = a.shared.d[c], v = a.shared.q[c] - d * d;
    mean = mean + d;
    variance = v < 0.0f ? 0.0f : v;
  }
  if (a.use & NORMALISE) {
    a.moments[c] = mean;
    a.moments[a.channels + c] = 1.0f / root(variance + a.eps);
  }
  if (a.use & FOLLOW)
    follow(a.running_mean + c, a.running_var + c, mean, variance, a.count, a.momentum);
}

struct ColumnSums {
  Values v;
  f32 *partials; // [blocks][1][C]
  Tile tile;
};

template <typename K> INLINE void sum_columns(const ColumnSums &a, Quad &sum) {
  const Place<K> p = place_for_sums<K>(a.tile);
  if (4 * p.group >= a.tile.channels) return;
  const typename K::Operands values(a.v);
  FOUR_AT_ONCE
  for (typename K::Row row = p.row; row < p.end; row += p.step) {
    const Quad v = load(values, typename K::Spot(row, p.group, a.tile.channels));
  UNROLL
    for (u32 j = 0; j < 4; ++j) sum.x[j] += v.x[j];
  }
}

// Sums of one slot per channel: the gradient of a bias.
BLOCK_KERNEL(column_sums, ColumnSums) {
  Quad sum = zeros<4>();
  const bool regular = is_regular(a.tile, 4);
  if (regular && a.v.type == BF16)
    sum_columns<Known<bf16, bf16, 4>>(a, sum);
  else if (regular)
    sum_columns<Known<f32, f32, 4>>(a, sum);
  else
    sum_columns<Unknown>(a, sum);
  add_lanes(a.tile, sum, a.partials, 0, 1);
}

struct ColumnTotals {
  const f32 *partials;
  f32 *totals;
  u32 blocks;
  u32 channels;
  u32 accumulate;
  u32 unused;
};

BLOCK_KERNEL(column_totals, ColumnTotals) {
  const double sum = merge(a.partials, a.blocks, a.channels, 0, 1);
  const u32 c = merge_channel();
  if (threadIdx.x >= MERGE_CHANNELS || c >= a.channels) return;
  a.totals[c] = (a.accumulate ? a.totals[c] : 0.0f) + static_cast<f32>(sum);
}
