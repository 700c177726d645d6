// Batch norm, sum with a shortcut, neurons, sum with a shortcut: forward in one pass over memory. The way back
// is in norm_lif_backward.cu.
#include "neuron.cuh"
#include "rows.cuh"

// Channels of a group: eight of bf16 are one access of 16 bytes.
enum : u32 { FORWARD_WIDTH = 8 };

// What is counted of a layer of neurons since the last report.
struct LayerCounts {
  u64 spikes;
  u64 neurons;
  u64 silent;
  u64 observed;
  u64 seen; // whether a time step ran since silent neurons were last counted
};

struct NormLifForward {
  Values z, before, y, after, out;
  const f32 *moments; // mean[C], 1/std[C]; null without a norm
  const f32 *gamma;
  const f32 *beta;
  f32 *u;              // null without neurons
  const f32 *u_before; // null at t = 0: u = s = 0 (section 3.3)
  u8 *alive;           // a byte per neuron of a sample
  LayerCounts *counts;
  Watch *watch;
  Tile tile;
  u32 pixels; // of a sample
  Neuron neuron;
};

// Adds up one number of each thread; only thread 0 gets the sum. All threads must call it.
INLINE u32 add_threads(u32 mine) {
  __shared__ u32 shared[TILE_THREADS];
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

// What a thread of the forward has seen.
struct Seen {
  u32 spikes;
  bool all_finite;
};

template <u32 width> INLINE bool is_present(const Whole<width> &, u32) { return true; }
INLINE bool is_present(const Ragged &at, u32 j) { return j < at.present; }

// The neurons of a group that are known to have spiked in this batch, a byte for each: after a few of its
// samples, nearly all. Where bytes are no whole words, none is known.
template <u32 width> struct Alive {
  u32 words[width / 4];

  template <typename Row> MEMBER Alive(const u8 *alive, Row place, bool is_there) {
  UNROLL
    for (u32 q = 0; q < width / 4; ++q)
      words[q] = is_there ? reinterpret_cast<const u32 *>(alive + place)[q] : 0;
  }
};

// Counts the spikes of a group, and notes in a neuron's byte that it has spiked; `alive` is the first one's.
template <typename Spot, u32 width>
INLINE void count_spikes(const Numbers<width> &u, const Numbers<width> &s, const Spot &at, u8 *alive,
                         const Alive<width> &known, Seen &seen) {
  UNROLL
  for (u32 q = 0; q < width; q += 4) {
    u32 spiked = 0; // a byte for each
  UNROLL
    for (u32 j = 0; j < 4; ++j) {
      if (!is_present(at, q + j)) continue;
      seen.all_finite &= is_finite(u.x[q + j]);
      spiked |= s.x[q + j] != 0.0f ? 1u << 8 * j : 0;
    }
    seen.spikes += ones(spiked);
    const u32 news = spiked & ~known.words[q / 4];
    if (news == 0) continue;
  UNROLL
    for (u32 j = 0; j < 4; ++j)
      if (news >> 8 * j & 1) alive[q + j] = 1; // all that write here write 1
  }
}

// What belongs to a channel, besides its moments.
enum : u32 { GAMMA = MOMENTS, BETA, FORWARD_KINDS };

template <typename K>
INLINE void keep_channels(const NormLifForward &a, OfBlock<FORWARD_KINDS> &kept, const Place<K> &p) {
  const u32 channels = a.tile.channels;
  if (p.lane != 0) return;
  keep(kept, MEAN, p, of_channels(a.moments, p, channels));
  keep(kept, INV, p, of_channels(a.moments + channels, p, channels));
  keep(kept, GAMMA, p, of_channels(a.gamma, p, channels));
  keep(kept, BETA, p, of_channels(a.beta, p, channels));
}

// x = gamma xhat + beta.
template <typename K>
INLINE void normalise(Numbers<K::width> &x, const OfBlock<FORWARD_KINDS> &kept, const Place<K> &p) {
  typedef Numbers<K::width> Group;
  const Group mean = kept_by(kept, MEAN, p), inv = kept_by(kept, INV, p);
  const Group gamma = kept_by(kept, GAMMA, p), beta = kept_by(kept, BETA, p);
  UNROLL
  for (u32 j = 0; j < K::width; ++j) {
    const f32 xhat = (x.x[j] - mean.x[j]) * inv.x[j];
    x.x[j] = xhat * gamma.x[j] + beta.x[j];
  }
}

// x = x + y.
template <u32 width> INLINE void add(Numbers<width> &x, const Numbers<width> &y) {
  UNROLL
  for (u32 j = 0; j < width; ++j) x.x[j] = x.x[j] + y.x[j];
}

// One time step of a thread's channels.
template <typename K, typename N>
INLINE void forward(const NormLifForward &a, OfBlock<FORWARD_KINDS> &kept, Seen &seen) {
  typedef typename K::Row Row;
  typedef typename K::Reals Reals;
  typedef Numbers<K::width> Group;
  const Place<K> p = place_in_turns<K>(a.tile);
  const u32 channels = a.tile.channels;
  const bool has_norm = a.moments != nullptr;
  if (has_norm) {
    keep_channels(a, kept, p);
    __syncthreads();
  }
  if (K::width * p.group >= channels) return;
  const N neuron(a.neuron);
  const typename K::Operands z(a.z), after(a.after), out(a.out);
  const Reals before(a.before), y(a.y), u_before(f32_values(a.u_before)), u_now(f32_values(a.u));
  const bool has_words = u_now.is_there && (K::width == FORWARD_WIDTH || channels % 4 == 0);
  // The number among those of its sample, and how far it moves on.
  const Row per_sample = static_cast<Row>(a.pixels) * channels;
  const Row step = p.step % a.pixels * channels;
  Row place = p.row % a.pixels * channels + K::width * p.group;
  for (Row row = p.row; row < p.end; row += p.step) {
    // All of it is asked for before any is used, so that as much as can be is under way at once.
    const typename K::Spot at(row, p.group, channels);
    Group x = load(z, at), b = zeros<K::width>(), u = b, c = b;
    if (before.is_there) b = load(before, at);
    if (u_before.is_there) u = load(u_before, at);
    if (after.is_there) c = load(after, at);
    const Alive<K::width> known(a.alive, place, has_words);
    if (has_norm) normalise(x, kept, p);
    if (before.is_there) add(x, b);
    if (y.is_there) store(y, at, x);
    if (!u_now.is_there) continue;
    if (u_before.is_there) {
  UNROLL
      for (u32 j = 0; j < K::width; ++j) u.x[j] = charge(neuron, u.x[j], x.x[j]);
    } else {
  UNROLL
      for (u32 j = 0; j < K::width; ++j) u.x[j] = 0.0f / neuron.tau_m + x.x[j];
    }
    store(u_now, at, u);
    Group s;
  UNROLL
    for (u32 j = 0; j < K::width; ++j) s.x[j] = fire(neuron, u.x[j]);
    count_spikes(u, s, at, a.alive + place, known, seen);
    place += step;
    if (place >= per_sample) place -= per_sample;
    if (!out.is_there) continue;
    if (after.is_there) add(s, c);
    store(out, at, s);
  }
}

// One time step (Algorithm 1, lines 4 to 7).
WIDE_KERNEL(norm_lif_forward, NormLifForward, 4) {
  __shared__ OfBlock<FORWARD_KINDS> kept;
  Seen seen = {0, true};
  const Type operands = a.z.type == BF16 ? BF16 : F32;
  const bool known = may_be(a.before, F32) && may_be(a.y, F32) && may_be(a.after, operands) &&
                     may_be(a.out, operands);
  if (!known || !is_regular(a.tile, FORWARD_WIDTH) || !is_usual(a.neuron))
    forward<Unknown, Neuron>(a, kept, seen);
  else if (operands == BF16)
    forward<Known<bf16, bf16, FORWARD_WIDTH>, UsualNeuron>(a, kept, seen);
  else
    forward<Known<f32, f32, FORWARD_WIDTH>, UsualNeuron>(a, kept, seen);
  if (a.u == nullptr) return;
  if (!seen.all_finite) atomic_min(&a.watch->fault, a.watch->t);
  const u32 sum = add_threads(seen.spikes);
  if (threadIdx.x == 0) {
    // Whole numbers: the order does not matter.
    if (sum != 0) atomic_add(&a.counts->spikes, sum);
    if (blockIdx.x == 0 && blockIdx.y == 0) {
      a.counts->neurons += a.tile.rows * a.tile.channels;
      a.counts->seen = 1;
    }
  }
}

struct CountSilent {
  u8 *alive;
  LayerCounts *counts;
  u32 neurons;
  u32 unused;
};

// Counts the neurons without a spike since this last ran, and begins anew; `end_count` comes after it.
BLOCK_KERNEL(count_silent, CountSilent) {
  u32 silent = 0;
  for (u64 i = thread_number(); i < a.neurons; i += number_of_threads()) {
    silent += a.alive[i] == 0 ? 1 : 0;
    a.alive[i] = 0;
  }
  const u32 sum = add_threads(silent);
  if (threadIdx.x == 0 && a.counts->seen != 0) atomic_add(&a.counts->silent, sum);
}

// One thread, when all blocks of `count_silent` are done.
KERNEL(end_count, CountSilent) {
  if (a.counts->seen == 0) return;
  a.counts->observed += a.neurons;
  a.counts->seen = 0;
}
