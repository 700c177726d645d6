// Batch norm, sum with a shortcut, neurons, sum with a shortcut: backward, in two passes over memory; sums over
// pixels come between them. The way forward is in norm_lif.cu.
#include "neuron.cuh"
#include "rows.cuh"

// Channels of a group. The numbers of two steps are under way, and leave no registers for the eight of the
// forward.
enum : u32 { BACKWARD_WIDTH = 4 };

// So many time steps are taken in one pass at most: the window of STOL. A longer one takes several passes,
// which hand on dL/du of the oldest step; room for more in one would cost registers that STOL needs to
// have more loads under way.
enum : u32 { MAX_STEPS = 2 };

// Of each step, newest first. What a step does not have is null.
struct NormLifBackward {
  Values z[MAX_STEPS], u[MAX_STEPS];
  Values out[MAX_STEPS], y[MAX_STEPS];                       // errors that have arrived
  Values dz[MAX_STEPS], before[MAX_STEPS], after[MAX_STEPS]; // errors that are written
  const f32 *moments[MAX_STEPS]; // mean[C], 1/std[C]; null without a norm
  const f32 *sums[MAX_STEPS];    // sum(g)[C], sum(g xhat)[C]
  const f32 *gamma;
  f32 *partials;           // [blocks][2 steps][C]
  const f32 *carry_in;     // dL/du of the time step after the newest here
  f32 *carry_out;          // dL/du of the oldest here
  Tile tile;
  u64 count;               // values per channel, over which the mean is taken
  u32 steps;
  u32 neurons;             // whether line 17 applies
  u32 dz_accumulates;
  u32 before_accumulates;
  u32 after_accumulates;
  Neuron neuron;
};

// Whether a step of a pass has an error at s. A complete pass has MAX_STEPS steps of neurons, each with such an
// error, and no other pass before or behind it: all of STOL but its first time step and the last neurons.
template <typename K> INLINE bool has_out(const NormLifBackward &a, u32 k) {
  return K::complete || a.out[k].is_there;
}

// What is read of up to MAX_STEPS steps, newest first; all of it before any is used.
template <typename K> struct Read {
  Numbers<K::width> z[MAX_STEPS], u[MAX_STEPS], out[MAX_STEPS], y[MAX_STEPS], carry;

  MEMBER Read(const NormLifBackward &a, const typename K::Spot &at) {
    typedef typename K::Reals Reals;
    carry = zeros<K::width>();
  UNROLL
    for (u32 k = 0; k < MAX_STEPS; ++k) {
      z[k] = u[k] = out[k] = y[k] = zeros<K::width>();
      if (has_out<K>(a, k)) out[k] = load(typename K::Errors(a.out[k]), at);
      if (K::complete || a.u[k].is_there) u[k] = load(Reals(a.u[k]), at);
      if (a.y[k].is_there) y[k] = load(Reals(a.y[k]), at);
      if (a.z[k].is_there) z[k] = load(typename K::Operands(a.z[k]), at);
    }
    if (!K::complete && a.carry_in != nullptr) carry = load(Reals(f32_values(a.carry_in)), at);
  }
};

// Line 17 of Algorithm 1 over the steps of a pass: g, the error at the sum before the neurons.
template <typename K, typename N> struct Backward {
  Numbers<K::width> g[MAX_STEPS];

  MEMBER Backward(const NormLifBackward &a, const N &neuron, const Read<K> &read,
                  const typename K::Spot &at, bool writes_carry) {
    const bool neurons = K::complete || a.neurons;
    Numbers<K::width> next = read.carry;
    bool has_next = !K::complete && a.carry_in != nullptr;
  UNROLL
    for (u32 k = 0; k < MAX_STEPS; ++k) {
      g[k] = zeros<K::width>();
      if (!K::complete && k >= a.steps) continue;
      if (neurons) {
  UNROLL
        for (u32 j = 0; j < K::width; ++j) {
          const f32 u = read.u[k].x[j];
          f32 delta = 0.0f; // line 15
          if (has_out<K>(a, k)) delta = read.out[k].x[j] * surrogate(neuron, u);
          if (has_next) delta = delta + next.x[j] * jacobian(neuron, u);
          g[k].x[j] = delta;
        }
        next = g[k];
        has_next = true;
      }
      // The other readers of y see it before the neurons: their error does not reach u.
      if (a.y[k].is_there) {
  UNROLL
        for (u32 j = 0; j < K::width; ++j)
          g[k].x[j] = neurons ? g[k].x[j] + read.y[k].x[j] : read.y[k].x[j];
      }
    }
    if (!K::complete && writes_carry && a.carry_out != nullptr)
      store(typename K::Reals(f32_values(a.carry_out)), at, next);
  }
};

// Whether the errors of a pass are of the usual types, those that arrive at s of this one.
INLINE bool may_be_known(const NormLifBackward &a, Type operands, Type errors) {
  bool may = true;
  UNROLL
  for (u32 k = 0; k < MAX_STEPS; ++k)
    may = may && may_be(a.z[k], operands) && may_be(a.dz[k], operands) && may_be(a.out[k], errors) &&
          may_be(a.y[k], F32) && may_be(a.before[k], F32) && may_be(a.after[k], F32);
  return may;
}

INLINE bool is_complete(const NormLifBackward &a) {
  bool complete = a.steps == MAX_STEPS && a.neurons && a.carry_in == nullptr && a.carry_out == nullptr;
  UNROLL
  for (u32 k = 0; k < MAX_STEPS; ++k) complete = complete && a.out[k].is_there && a.u[k].is_there;
  return complete;
}

// Runs a body by what is known of a pass: the types of its numbers, and its steps.
#define BY_STEPS(body, width, operand, error, ...)                                              \
  if (is_complete(a))                                                                           \
    body<Known<operand, error, width, true>, UsualNeuron>(__VA_ARGS__);                         \
  else                                                                                          \
    body<Known<operand, error, width>, UsualNeuron>(__VA_ARGS__);

#define BY_TYPES(body, width, ...)                                                               \
  const bool regular = is_regular(a.tile, width) && is_usual(a.neuron);                         \
  if (regular && may_be_known(a, BF16, BF16)) {                                                 \
    BY_STEPS(body, width, bf16, bf16, __VA_ARGS__)                                              \
  } else if (regular && may_be_known(a, BF16, F32)) {                                           \
    BY_STEPS(body, width, bf16, f32, __VA_ARGS__)                                               \
  } else if (regular && may_be_known(a, F32, F32)) {                                            \
    BY_STEPS(body, width, f32, f32, __VA_ARGS__)                                                \
  } else {                                                                                      \
    body<Unknown, Neuron>(__VA_ARGS__);                                                         \
  }

struct SumsOfSteps {
  Quad sums[2 * MAX_STEPS];
};

template <typename K, typename N>
INLINE void sum_errors(const NormLifBackward &a, OfBlock<MOMENTS * MAX_STEPS> &kept, SumsOfSteps &sums) {
  const Place<K> p = place_for_sums<K>(a.tile);
  const u32 channels = a.tile.channels;
  UNROLL
  for (u32 k = 0; k < MAX_STEPS; ++k) {
    if (k >= a.steps || p.lane != k) continue;
    keep(kept, MOMENTS * k + MEAN, p, of_channels(a.moments[k], p, channels));
    keep(kept, MOMENTS * k + INV, p, of_channels(a.moments[k] + channels, p, channels));
  }
  __syncthreads();
  if (4 * p.group >= channels) return;
  const N neuron(a.neuron);
  for (typename K::Row row = p.row; row < p.end; row += p.step) {
    const typename K::Spot at(row, p.group, channels);
    const Read<K> read(a, at);
    const Backward<K, N> errors(a, neuron, read, at, true);
  UNROLL
    for (u32 k = 0; k < MAX_STEPS; ++k) {
      if (!K::complete && k >= a.steps) continue;
      const Quad mean = kept_by(kept, MOMENTS * k + MEAN, p), inv = kept_by(kept, MOMENTS * k + INV, p);
  UNROLL
      for (u32 j = 0; j < 4; ++j) {
        const f32 xhat = (read.z[k].x[j] - mean.x[j]) * inv.x[j];
        sums.sums[2 * k].x[j] += errors.g[k].x[j];
        sums.sums[2 * k + 1].x[j] += errors.g[k].x[j] * xhat;
      }
    }
  }
}

// The first pass: sums of g and of g xhat per step and channel. All steps of a pass have a g.
WIDE_KERNEL(norm_lif_backward_sums, NormLifBackward, 3) {
  __shared__ OfBlock<MOMENTS * MAX_STEPS> kept;
  SumsOfSteps sums;
  UNROLL
  for (u32 m = 0; m < 2 * MAX_STEPS; ++m) sums.sums[m] = zeros<4>();
  BY_TYPES(sum_errors, BACKWARD_WIDTH, a, kept, sums)
  UNROLL
  for (u32 m = 0; m < 2 * MAX_STEPS; ++m)
    if (m < 2 * a.steps) add_lanes(a.tile, sums.sums[m], a.partials, m, 2 * a.steps);
}

struct NormGradients {
  const f32 *partials;
  f32 *sums[MAX_STEPS]; // sum(g)[C], sum(g xhat)[C] of each step, newest first
  f32 *dgamma;
  f32 *dbeta;
  u32 blocks;
  u32 channels;
  u32 steps;
  u32 accumulate; // an earlier pass has written the gradients of newer steps
};

// Adds up the partial sums and writes the gradients of gamma and beta (Algorithm 1, line 18).
BLOCK_KERNEL(norm_gradients, NormGradients) {
  const u32 c = merge_channel();
  const bool mine = threadIdx.x < MERGE_CHANNELS && c < a.channels;
  f32 dbeta = 0.0f, dgamma = 0.0f;
  if (mine && a.accumulate) {
    dbeta = a.dbeta[c];
    dgamma = a.dgamma[c];
  }
  UNROLL
  for (u32 k = 0; k < MAX_STEPS; ++k) {
    if (k >= a.steps) continue;
    const f32 g = static_cast<f32>(merge(a.partials, a.blocks, a.channels, 2 * k, 2 * a.steps));
    const f32 g_xhat =
        static_cast<f32>(merge(a.partials, a.blocks, a.channels, 2 * k + 1, 2 * a.steps));
    if (!mine) continue;
    a.sums[k][c] = g;
    a.sums[k][a.channels + c] = g_xhat;
    dbeta += g;
    dgamma += g_xhat;
  }
  if (!mine) return;
  a.dbeta[c] = dbeta;
  a.dgamma[c] = dgamma;
}

// What belongs to a channel at one step, besides its moments, for dz.
enum : u32 { MEAN_G = MOMENTS, SUM_G_XHAT, SCALE, PER_STEP };

// dz from g and z (Ioffe, Szegedy, ICML 2015, section 3).
template <typename K, typename N>
INLINE Numbers<K::width> centred(const OfBlock<MAX_STEPS * PER_STEP> &kept, u32 k, const Place<K> &p,
                                 const Numbers<K::width> &g, const Numbers<K::width> &z, N n) {
  typedef Numbers<K::width> Group;
  const Group mean = kept_by(kept, k * PER_STEP + MEAN, p), inv = kept_by(kept, k * PER_STEP + INV, p);
  const Group mean_g = kept_by(kept, k * PER_STEP + MEAN_G, p);
  const Group sum_g_xhat = kept_by(kept, k * PER_STEP + SUM_G_XHAT, p);
  const Group scale = kept_by(kept, k * PER_STEP + SCALE, p);
  Group dz;
  UNROLL
  for (u32 j = 0; j < K::width; ++j) {
    const f32 xhat = (z.x[j] - mean.x[j]) * inv.x[j];
    dz.x[j] = scale.x[j] * (g.x[j] - mean_g.x[j] - xhat * sum_g_xhat.x[j] / n);
  }
  return dz;
}

// The first rows of a block's threads, one for each step, keep what belongs to their channels.
template <typename K>
INLINE void keep_channels(const NormLifBackward &a, OfBlock<MAX_STEPS * PER_STEP> &kept,
                          const Place<K> &p, f32 n) {
  typedef Numbers<K::width> Group;
  const u32 channels = a.tile.channels;
  UNROLL
  for (u32 k = 0; k < MAX_STEPS; ++k) {
    if (k >= a.steps || p.lane != k) continue;
    const Group inv = of_channels(a.moments[k] + channels, p, channels);
    Group mean_g = of_channels(a.sums[k], p, channels), scale = of_channels(a.gamma, p, channels);
  UNROLL
    for (u32 j = 0; j < K::width; ++j) {
      mean_g.x[j] = mean_g.x[j] / n;
      scale.x[j] = scale.x[j] * inv.x[j];
    }
    keep(kept, k * PER_STEP + MEAN, p, of_channels(a.moments[k], p, channels));
    keep(kept, k * PER_STEP + INV, p, inv);
    keep(kept, k * PER_STEP + MEAN_G, p, mean_g);
    keep(kept, k * PER_STEP + SUM_G_XHAT, p, of_channels(a.sums[k] + channels, p, channels));
    keep(kept, k * PER_STEP + SCALE, p, scale);
  }
}

template <typename K, typename N>
INLINE void write_errors(const NormLifBackward &a, OfBlock<MAX_STEPS * PER_STEP> &kept) {
  const Place<K> p = place_in_turns<K>(a.tile);
  const u32 channels = a.tile.channels;
  const bool has_norm = a.moments[0] != nullptr;
  const f32 n = static_cast<f32>(a.count);
  const bool shifts = is_power_of_two(n);
  if (has_norm) {
    keep_channels(a, kept, p, n);
    __syncthreads();
  }
  if (K::width * p.group >= channels) return;
  const N neuron(a.neuron);
  for (typename K::Row row = p.row; row < p.end; row += p.step) {
    const typename K::Spot at(row, p.group, channels);
    const Read<K> read(a, at);
    const Backward<K, N> errors(a, neuron, read, at, !has_norm);
  UNROLL
    for (u32 k = 0; k < MAX_STEPS; ++k) {
      if (!K::complete && k >= a.steps) continue;
      const typename K::Reals after(a.after[k]), before(a.before[k]);
      const typename K::Operands dz(a.dz[k]);
      if (after.is_there) deliver(after, at, read.out[k], a.after_accumulates);
      if (before.is_there) deliver(before, at, errors.g[k], a.before_accumulates);
      if (!dz.is_there) continue;
      Numbers<K::width> error = errors.g[k];
      if (has_norm)
        error = shifts ? centred(kept, k, p, error, read.z[k], power_of_two(n))
                       : centred(kept, k, p, error, read.z[k], n);
      deliver(dz, at, error, a.dz_accumulates);
    }
  }
}

// The second pass, and the only one without a norm: the errors of z, of both shortcuts.
WIDE_KERNEL(norm_lif_backward_errors, NormLifBackward, 3) {
  __shared__ OfBlock<MAX_STEPS * PER_STEP> kept;
  BY_TYPES(write_errors, BACKWARD_WIDTH, a, kept)
}
