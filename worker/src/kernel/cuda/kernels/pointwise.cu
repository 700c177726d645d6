// What is done number by number: conversions, biases, dropout, joined shortcuts, checks.
#include "values.cuh"

struct Convert {
  Values from, to;
  u64 elements;
  f32 scale; // a factor; 1 leaves the bits
  u32 accumulate;
};

KERNEL(convert_numbers, Convert) {
  // Ranges of an arena may begin anywhere.
  const bool aligned = quads_are_aligned(a.elements) && begins_quad(a.from) && begins_quad(a.to);
  const u64 quads = (a.elements + 3) / 4;
  for (u64 q = thread_number(); q < quads; q += number_of_threads()) {
    Quad x = load_quad(a.from, q, a.elements, aligned);
    if (a.scale != 1.0f)
  UNROLL
      for (int j = 0; j < 4; ++j) x.x[j] *= a.scale;
    deliver_quad(a.to, q, a.elements, aligned, x, a.accumulate);
  }
}

struct AddBias {
  Values y;
  const f32 *bias;
  u64 elements;
  u32 channels;
  u32 unused;
};

KERNEL(add_bias, AddBias) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads())
    store(a.y, i, load(a.y, i) + a.bias[i % a.channels]);
}

// A counter-based draw: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over key and
// index; `dropout_keeps` in kernel/mod.rs.
INLINE bool dropout_keeps(u64 key, u64 index, f32 p) {
  u64 z = key + index * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<f32>(static_cast<u32>(z >> 40)) / 16777216.0f >= p;
}

struct DropoutMask {
  f32 *mask;
  u64 key;
  u64 first;
  u64 elements;
  f32 p;
  f32 scale;
};

KERNEL(dropout_mask, DropoutMask) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads())
    a.mask[i] = dropout_keeps(a.key, a.first + i, a.p) ? a.scale : 0.0f;
}

struct Multiply {
  Values x, y;
  const f32 *mask; // null: 1
  u64 elements;
  u32 accumulate;
  u32 unused;
};

// y = x mask, forward and backward.
KERNEL(multiply, Multiply) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const f32 x = load(a.x, i);
    deliver(a.y, i, a.mask != nullptr ? x * a.mask[i] : x, a.accumulate);
  }
}

// The ways to join; `Join` in shape.rs.
enum Join : u32 { ADD = 0, AND = 1, IAND = 2 };

struct Residual {
  Values a, b, y;
  u64 elements;
  u32 join;
  u32 unused;
};

KERNEL(residual_forward, Residual) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const f32 x = load(a.a, i), b = load(a.b, i);
    store(a.y, i, a.join == ADD ? x + b : a.join == AND ? x * b : (1.0f - x) * b);
  }
}

struct ResidualBackward {
  Values other; // b for the error of a, a for that of b
  Values dy, dx;
  u64 elements;
  u32 join;
  u32 of_b;
  u32 accumulate;
  u32 unused;
};

KERNEL(residual_backward, ResidualBackward) {
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const f32 g = load(a.dy, i);
    f32 dx = g;
    if (a.join == AND) dx = g * load(a.other, i);
    if (a.join == IAND) dx = a.of_b ? g * (1.0f - load(a.other, i)) : -g * load(a.other, i);
    deliver(a.dx, i, dx, a.accumulate);
  }
}

struct FindNonFinite {
  Values v;
  u32 *found;
  u64 elements;
};

KERNEL(find_non_finite, FindNonFinite) {
  bool bad = false;
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads())
    bad = bad || !is_finite(load(a.v, i));
  if (bad) *a.found = 1;
}
