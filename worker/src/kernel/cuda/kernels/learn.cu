// The loss of a time step (Eq. 11), and updates of the weights (Algorithm 1, line 21).
#include "values.cuh"

struct Loss {
  Values logits; // [N, K]
  Values error;  // dL/dlogits; null in evaluation
  f32 *so_far;   // [N, K]: logits summed over the batch's time steps
  const u32 *labels; // [N], then the number of labelled samples; ~0 marks one that counts for nothing
  f32 *losses;       // [N][2]: cross-entropy and squared errors
  u32 *hits;         // [N]
  const Watch *watch;
  u32 samples;
  u32 classes;
  f32 ce;
  f32 mse;
};

enum : u32 { LOSS_THREADS = 128 };

// The largest of one number per thread. All threads must call it.
INLINE f32 largest(f32 mine, f32 *shared) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (u32 half = LOSS_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half)
      shared[threadIdx.x] = larger(shared[threadIdx.x], shared[threadIdx.x + half]);
    __syncthreads();
  }
  const f32 all = shared[0];
  __syncthreads();
  return all;
}

INLINE f32 total(f32 mine, f32 *shared) {
  shared[threadIdx.x] = mine;
  __syncthreads();
  for (u32 half = LOSS_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  const f32 all = shared[0];
  __syncthreads();
  return all;
}

// One block per sample.
BLOCK_KERNEL(loss_of_samples, Loss) {
  __shared__ f32 shared[LOSS_THREADS];
  __shared__ f32 bests[LOSS_THREADS];
  __shared__ u32 places[LOSS_THREADS];
  const u32 sample = blockIdx.x, classes = a.classes, label = a.labels[sample];
  const bool labelled = label != ~0u;
  const u64 row = static_cast<u64>(sample) * classes;
  const u32 labelled_samples = a.labels[a.samples];
  const f32 n = static_cast<f32>(labelled_samples > 1 ? labelled_samples : 1);

  f32 mine = minus_infinity();
  for (u32 k = threadIdx.x; k < classes; k += LOSS_THREADS) mine = larger(mine, load(a.logits, row + k));
  const f32 peak = largest(mine, shared);
  mine = 0.0f;
  for (u32 k = threadIdx.x; k < classes; k += LOSS_THREADS)
    mine += exponential(load(a.logits, row + k) - peak);
  const f32 log_sum = logarithm(total(mine, shared));

  const bool is_first = a.watch->t == 0;
  f32 squares = 0.0f, best = minus_infinity();
  u32 place = ~0u;
  for (u32 k = threadIdx.x; k < classes; k += LOSS_THREADS) {
    const f32 y = load(a.logits, row + k), e = k == label ? 1.0f : 0.0f;
    if (labelled) squares += (y - e) * (y - e);
    if (a.error.at != nullptr) {
      const f32 p = exponential(y - peak - log_sum);
      const f32 dce = labelled ? (p - e) / n : 0.0f;
      const f32 dmse = labelled ? (y - e) * 2.0f / (n * static_cast<f32>(classes)) : 0.0f;
      store(a.error, row + k, dce * a.ce + dmse * a.mse);
    }
    const f32 sum = (is_first ? 0.0f : a.so_far[row + k]) + y;
    a.so_far[row + k] = sum;
    // The first of equals, as the reference: it keeps class 0 where nothing is larger.
    if (place == ~0u || sum > best) {
      best = sum;
      place = k;
    }
  }
  squares = total(squares, shared);
  bests[threadIdx.x] = best;
  places[threadIdx.x] = place;
  __syncthreads();
  for (u32 half = LOSS_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      const u32 there = threadIdx.x + half;
      const bool known = places[there] != ~0u;
      const bool wins = bests[there] > bests[threadIdx.x] ||
                        (bests[there] == bests[threadIdx.x] && places[there] < places[threadIdx.x]);
      if (known && wins) {
        bests[threadIdx.x] = bests[there];
        places[threadIdx.x] = places[there];
      }
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const f32 at_label = labelled ? load(a.logits, row + label) : 0.0f;
  a.losses[2 * sample] = labelled ? -(at_label - peak - log_sum) : 0.0f;
  a.losses[2 * sample + 1] = squares;
  a.hits[sample] = labelled && places[0] == label ? 1 : 0;
}

// What is counted of a time step since the last report.
struct StepCounts {
  double loss;
  u64 correct;
  u64 samples;
  u64 batches;
};

struct LossOfBatch {
  const f32 *losses;
  const u32 *hits;
  const u32 *labels;
  StepCounts *steps; // one per time step of a batch
  Watch *watch;
  u32 samples;
  u32 classes;
  f32 ce;
  f32 mse;
};

// One block.
BLOCK_KERNEL(loss_of_batch, LossOfBatch) {
  __shared__ double ces[LOSS_THREADS], mses[LOSS_THREADS];
  __shared__ u32 corrects[LOSS_THREADS];
  double ce = 0.0, mse = 0.0;
  u32 correct = 0;
  for (u32 i = threadIdx.x; i < a.samples; i += LOSS_THREADS) {
    ce += a.losses[2 * i];
    mse += a.losses[2 * i + 1];
    correct += a.hits[i];
  }
  ces[threadIdx.x] = ce;
  mses[threadIdx.x] = mse;
  corrects[threadIdx.x] = correct;
  __syncthreads();
  for (u32 half = LOSS_THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      ces[threadIdx.x] += ces[threadIdx.x + half];
      mses[threadIdx.x] += mses[threadIdx.x + half];
      corrects[threadIdx.x] += corrects[threadIdx.x + half];
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  const u32 labelled = a.labels[a.samples];
  const f32 n = static_cast<f32>(labelled > 1 ? labelled : 1);
  // Squares overflow long before the cross-entropy does: where they do not count, they must not make
  // it 0 times infinity.
  f32 loss = static_cast<f32>(ces[0]) / n * a.ce;
  if (a.mse != 0.0f)
    loss += static_cast<f32>(mses[0]) / (n * static_cast<f32>(a.classes)) * a.mse;
  const u32 t = a.watch->t;
  StepCounts &counts = a.steps[t];
  counts.loss += loss;
  counts.correct += corrects[0];
  counts.samples += labelled;
  counts.batches += 1;
  if (!is_finite(loss)) atomic_min(&a.watch->fault, t);
}

// An update; written by the host before each time step.
struct Step {
  f32 lr;
  f32 momentum; // SGD
  f32 weight_decay;
  f32 beta1; // AdamW
  f32 beta2;
  f32 epsilon;
  f32 weight_of_past1; // 1 - beta1^update
  f32 weight_of_past2;
};

struct Update {
  f32 *weights;
  const f32 *gradients;
  f32 *state;
  f32 *second_state; // AdamW
  bf16 *operands;    // the weights as convolutions read them; null where that is f32
  const Step *step;
  const u32 *fault; // ~0: none. After a fault nothing moves
  u64 elements;
};

// v <- momentum v + (g + decay p); p <- p - lr v.
KERNEL(sgd, Update) {
  if (*a.fault != ~0u) return;
  const Step s = *a.step;
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const f32 p = a.weights[i];
    const f32 v = a.state[i] * s.momentum + (a.gradients[i] + p * s.weight_decay);
    const f32 now = p - v * s.lr;
    a.state[i] = v;
    a.weights[i] = now;
    if (a.operands != nullptr) a.operands[i] = to_bf16(now);
  }
}

// Decoupled weight decay (Loshchilov, Hutter, ICLR 2019, algorithm 2, the decay times lr).
KERNEL(adamw, Update) {
  if (*a.fault != ~0u) return;
  const Step s = *a.step;
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const f32 p = a.weights[i], g = a.gradients[i];
    const f32 first = a.state[i] * s.beta1 + g * (1.0f - s.beta1);
    const f32 second = a.second_state[i] * s.beta2 + g * g * (1.0f - s.beta2);
    const f32 direction =
        first / s.weight_of_past1 / (root(second / s.weight_of_past2) + s.epsilon);
    const f32 now = p * (1.0f - s.lr * s.weight_decay) - direction * s.lr;
    a.state[i] = first;
    a.second_state[i] = second;
    a.weights[i] = now;
    if (a.operands != nullptr) a.operands[i] = to_bf16(now);
  }
}

struct Reorder {
  const f32 *from;
  f32 *to;
  u64 first;   // the number of the range's first weight among those of the filter, OIHW
  u64 elements;
  u32 outputs, inputs, taps;
  u32 to_device; // from OIHW on the host's side to KRSC on the device's; else back
};

// A range of a filter between the order of files (OIHW) and that of the device (output channel, tap,
// input channel). The OIHW side starts at `first`; the device's side is the whole filter.
KERNEL(reorder, Reorder) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const u64 at = a.first + i, tap = at % a.taps, input = at / a.taps % a.inputs;
    const u64 output = at / a.taps / a.inputs;
    const u64 device = (output * a.taps + tap) * a.inputs + input;
    if (a.to_device)
      a.to[device] = a.from[i];
    else
      a.to[i] = a.from[device];
  }
}
