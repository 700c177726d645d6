// Batch norm, sum with a shortcut, neurons, sum with a shortcut: forward in one pass over memory,
// backward in two (sums over pixels come between them).
#include "neuron.cuh"
#include "rows.cuh"

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
  u32 *fault;
  u64 elements;
  u32 channels;
  u32 per_sample;
  u32 t;
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

// One time step (Algorithm 1, lines 4 to 7).
BLOCK_KERNEL(norm_lif_forward, NormLifForward) {
  const bool aligned = quads_are_aligned(a.elements);
  const bool rows_aligned = a.channels % 4 == 0;
  const u64 quads = (a.elements + 3) / 4;
  u32 spikes = 0;
  bool all_finite = true;
  for (u64 q = thread_number(); q < quads; q += number_of_threads()) {
    Quad y = load_quad(a.z, q, a.elements, aligned);
    const u32 first = static_cast<u32>(4 * q % a.channels);
    if (a.moments != nullptr) {
  UNROLL
      for (u32 j = 0; j < 4; ++j) {
        const u32 c = rows_aligned ? first + j : (first + j) % a.channels;
        const f32 xhat = (y.x[j] - a.moments[c]) * a.moments[a.channels + c];
        y.x[j] = xhat * a.gamma[c] + a.beta[c];
      }
    }
    if (a.before.at != nullptr) {
      const Quad b = load_quad(a.before, q, a.elements, aligned);
  UNROLL
      for (int j = 0; j < 4; ++j) y.x[j] = y.x[j] + b.x[j];
    }
    if (a.y.at != nullptr) store_quad(a.y, q, a.elements, aligned, y);
    if (a.u == nullptr) continue;
    const Values u_before = {const_cast<f32 *>(a.u_before), F32, 0}, u_now = {a.u, F32, 0};
    Quad u = {{0, 0, 0, 0}}, s;
    if (a.u_before != nullptr) u = load_quad(u_before, q, a.elements, aligned);
  UNROLL
    for (u32 j = 0; j < 4; ++j) {
      u.x[j] = a.u_before != nullptr ? charge(a.neuron, u.x[j], y.x[j]) : 0.0f / a.neuron.tau_m + y.x[j];
      s.x[j] = fire(a.neuron, u.x[j]);
      const u64 i = 4 * q + j;
      if (i >= a.elements) continue;
      all_finite = all_finite && is_finite(u.x[j]);
      if (s.x[j] != 0.0f) {
        ++spikes;
        u8 *alive = a.alive + i % a.per_sample;
        if (*alive == 0) *alive = 1; // all that write here write 1
      }
    }
    store_quad(u_now, q, a.elements, aligned, u);
    if (a.out.at != nullptr) {
      if (a.after.at != nullptr) {
        const Quad b = load_quad(a.after, q, a.elements, aligned);
  UNROLL
        for (int j = 0; j < 4; ++j) s.x[j] = s.x[j] + b.x[j];
      }
      store_quad(a.out, q, a.elements, aligned, s);
    }
  }
  if (a.u == nullptr) return;
  if (!all_finite) atomic_min(a.fault, a.t);
  const u32 sum = add_threads(spikes);
  if (threadIdx.x == 0) {
    // Whole numbers: the order does not matter.
    if (sum != 0) atomic_add(&a.counts->spikes, sum);
    if (blockIdx.x == 0) {
      a.counts->neurons += a.elements;
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

// So many time steps are taken in one pass at most: the window of STOL. A longer one takes several passes,
// which hand on dL/du of the oldest step; room for more in one would cost registers that STOL needs to
// have more loads under way.
enum : u32 { MAX_STEPS = 2 };

struct NormLifBackward {
  Ring z, u, out, y;       // of the window; `out` and `y` are errors
  Ring dz, before, after;  // errors that are written
  const f32 *moments;      // a ring of mean[C], 1/std[C]; null without a norm
  const f32 *sums;         // a ring of sum(g)[C], sum(g xhat)[C]
  const f32 *gamma;
  f32 *partials;           // [blocks][2 steps][C]
  const f32 *carry_in;     // dL/du of the time step after the newest here
  f32 *carry_out;          // dL/du of the oldest here
  Tile tile;
  u64 count;               // values per channel, over which the mean is taken
  u32 newest;
  u32 steps;
  u32 out_steps;           // of these steps, newest first, so many have an error at `out`
  u32 y_steps;             // and so many at `y`
  u32 moments_slots;
  u32 sums_slots;
  u32 neurons;             // whether line 17 applies
  u32 dz_accumulates;
  u32 before_accumulates;
  u32 after_accumulates;
  u32 unused;
  Neuron neuron;
};

// g, the error at the sum before the neurons, of up to MAX_STEPS steps, newest first; and what arrived
// at s.
struct Errors {
  Quad g[MAX_STEPS];
  Quad at_s[MAX_STEPS];
};

// A quad at (row, quad) of a slot with so many channels, however they are aligned.
INLINE void deliver_row(const Values &v, u64 row, u32 quad, u32 channels, const Quad &x,
                        bool accumulate) {
  const u64 first = row * channels + 4 * quad;
  if (channels % 4 == 0) {
    deliver_quad(v, first / 4, first + 4, true, x, accumulate);
    return;
  }
  UNROLL
  for (u32 j = 0; j < 4; ++j)
    if (4 * quad + j < channels) deliver(v, first + j, x.x[j], accumulate);
}

// Line 17 of Algorithm 1 over the steps of a pass.
INLINE void errors_at(const NormLifBackward &a, u64 row, u32 quad, bool writes_carry, Errors &e) {
  const u32 channels = a.tile.channels;
  const Quad none = {{0, 0, 0, 0}};
  Quad next = none;
  bool has_next = a.carry_in != nullptr;
  if (has_next) {
    const Values carry = {const_cast<f32 *>(a.carry_in), F32, 0};
    next = load_row(carry, row, quad, channels);
  }
  UNROLL
  for (u32 k = 0; k < MAX_STEPS; ++k) {
    if (k >= a.steps) continue;
    const u32 t = a.newest - k;
    Quad g = none;
    e.at_s[k] = none;
    if (k < a.out_steps) e.at_s[k] = load_row(slot(a.out, t), row, quad, channels);
    if (a.neurons) {
      const Quad u = load_row(slot(a.u, t), row, quad, channels);
  UNROLL
      for (int j = 0; j < 4; ++j) {
        f32 delta = 0.0f; // line 15
        if (k < a.out_steps) delta = e.at_s[k].x[j] * surrogate(a.neuron, u.x[j]);
        if (has_next) delta = delta + next.x[j] * jacobian(a.neuron, u.x[j]);
        g.x[j] = delta;
      }
      next = g;
      has_next = true;
    }
    if (k < a.y_steps) {
      // The other readers of y see it before the neurons: their error does not reach u.
      const Quad y = load_row(slot(a.y, t), row, quad, channels);
  UNROLL
      for (int j = 0; j < 4; ++j) g.x[j] = a.neurons ? g.x[j] + y.x[j] : y.x[j];
    }
    e.g[k] = g;
  }
  if (writes_carry && a.carry_out != nullptr) {
    const Values carry = {a.carry_out, F32, 0};
    deliver_row(carry, row, quad, channels, next, false);
  }
}

// The first pass: sums of g and of g xhat per step and channel. All steps of a pass have a g.
BLOCK_KERNEL(norm_lif_backward_sums, NormLifBackward) {
  const Place p = place_in(a.tile);
  const u32 channels = a.tile.channels;
  Quad sums[2 * MAX_STEPS];
  UNROLL
  for (u32 m = 0; m < 2 * MAX_STEPS; ++m) sums[m] = {{0, 0, 0, 0}};
  if (4 * p.quad < channels) {
    for (u64 row = p.row; row < p.end; row += p.lanes) {
      Errors e;
      errors_at(a, row, p.quad, true, e);
  UNROLL
      for (u32 k = 0; k < MAX_STEPS; ++k) {
        if (k >= a.steps) continue;
        const u32 t = a.newest - k;
        const f32 *moments = a.moments + static_cast<u64>(t % a.moments_slots) * 2 * channels;
        const Quad z = load_row(slot(a.z, t), row, p.quad, channels);
  UNROLL
        for (u32 j = 0; j < 4; ++j) {
          const u32 c = 4 * p.quad + j;
          if (c >= channels) continue;
          const f32 xhat = (z.x[j] - moments[c]) * moments[channels + c];
          sums[2 * k].x[j] += e.g[k].x[j];
          sums[2 * k + 1].x[j] += e.g[k].x[j] * xhat;
        }
      }
    }
  }
  UNROLL
  for (u32 m = 0; m < 2 * MAX_STEPS; ++m)
    if (m < 2 * a.steps) add_lanes(a.tile, p, sums[m], a.partials, m, 2 * a.steps);
}

struct NormGradients {
  const f32 *partials;
  f32 *sums; // a ring of sum(g)[C], sum(g xhat)[C]
  f32 *dgamma;
  f32 *dbeta;
  u32 blocks;
  u32 channels;
  u32 newest;
  u32 steps;
  u32 sums_slots;
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
  for (u32 k = 0; k < a.steps; ++k) {
    const f32 g = static_cast<f32>(merge(a.partials, a.blocks, a.channels, 2 * k, 2 * a.steps));
    const f32 g_xhat =
        static_cast<f32>(merge(a.partials, a.blocks, a.channels, 2 * k + 1, 2 * a.steps));
    if (!mine) continue;
    f32 *sums = a.sums + static_cast<u64>((a.newest - k) % a.sums_slots) * 2 * a.channels;
    sums[c] = g;
    sums[a.channels + c] = g_xhat;
    dbeta += g;
    dgamma += g_xhat;
  }
  if (!mine) return;
  a.dbeta[c] = dbeta;
  a.dgamma[c] = dgamma;
}

// The second pass, and the only one without a norm: the errors of z, of both shortcuts.
KERNEL(norm_lif_backward_errors, NormLifBackward) {
  const u32 channels = a.tile.channels, quads = (channels + 3) / 4;
  const u64 all = a.tile.rows * quads;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const u64 row = i / quads;
    const u32 quad = static_cast<u32>(i % quads);
    Errors e;
    errors_at(a, row, quad, a.moments == nullptr, e);
  UNROLL
    for (u32 k = 0; k < MAX_STEPS; ++k) {
      if (k >= a.steps) continue;
      const u32 t = a.newest - k;
      if (a.after.at != nullptr && k < a.out_steps)
        deliver_row(slot(a.after, t), row, quad, channels, e.at_s[k], a.after_accumulates);
      if (a.before.at != nullptr)
        deliver_row(slot(a.before, t), row, quad, channels, e.g[k], a.before_accumulates);
      if (a.dz.at == nullptr) continue;
      Quad dz = e.g[k];
      if (a.moments != nullptr) {
        const f32 *moments = a.moments + static_cast<u64>(t % a.moments_slots) * 2 * channels;
        const f32 *sums = a.sums + static_cast<u64>(t % a.sums_slots) * 2 * channels;
        const f32 n = static_cast<f32>(a.count);
        const Quad z = load_row(slot(a.z, t), row, quad, channels);
  UNROLL
        for (u32 j = 0; j < 4; ++j) {
          const u32 c = 4 * quad + j;
          if (c >= channels) continue;
          const f32 inv = moments[channels + c], xhat = (z.x[j] - moments[c]) * inv;
          const f32 centred = dz.x[j] - sums[c] / n - xhat * sums[channels + c] / n;
          dz.x[j] = a.gamma[c] * inv * centred;
        }
      }
      deliver_row(slot(a.dz, t), row, quad, channels, dz, a.dz_accumulates);
    }
  }
}
