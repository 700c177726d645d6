// What is done number by number: conversions, biases, dropout, joined shortcuts, checks.
#include "values.cuh"

struct Convert {
  Values from, to;
  u64 elements;
  f32 scale; // a factor; 1 leaves the bits
  u32 accumulate;
};

INLINE f32 scaled(f32 x, f32 scale) { return scale != 1.0f ? x * scale : x; }

KERNEL(convert_numbers, Convert) {
  // Ranges of an arena may begin anywhere.
  const u64 quads = quads_of(a.elements, begins_quad(a.from) && begins_quad(a.to));
  for (u64 q = thread_number(); q < quads; q += number_of_threads()) {
    Quad x = load_group<4>(a.from, q);
  UNROLL
    for (u32 j = 0; j < 4; ++j) x.x[j] = scaled(x.x[j], a.scale);
    deliver_quad(a.to, q, x, a.accumulate);
  }
  for (u64 i = 4 * quads + thread_number(); i < a.elements; i += number_of_threads())
    deliver(a.to, i, scaled(load(a.from, i), a.scale), a.accumulate);
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
  const Values mask = f32_values(a.mask);
  const bool aligned = begins_quad(a.x) && begins_quad(a.y) && begins_quad(mask);
  const u64 quads = quads_of(a.elements, aligned);
  for (u64 q = thread_number(); q < quads; q += number_of_threads()) {
    Quad x = load_group<4>(a.x, q);
    if (a.mask != nullptr) {
      const Quad m = load_group<4>(Typed<f32>(mask), q);
  UNROLL
      for (u32 j = 0; j < 4; ++j) x.x[j] = x.x[j] * m.x[j];
    }
    deliver_quad(a.y, q, x, a.accumulate);
  }
  for (u64 i = 4 * quads + thread_number(); i < a.elements; i += number_of_threads()) {
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

INLINE f32 joined(u32 join, f32 x, f32 b) {
  return join == ADD ? x + b : join == AND ? x * b : (1.0f - x) * b;
}

KERNEL(residual_forward, Residual) {
  const bool aligned = begins_quad(a.a) && begins_quad(a.b) && begins_quad(a.y);
  const u64 quads = quads_of(a.elements, aligned);
  for (u64 q = thread_number(); q < quads; q += number_of_threads()) {
    const Quad x = load_group<4>(a.a, q), b = load_group<4>(a.b, q);
    Quad y;
  UNROLL
    for (u32 j = 0; j < 4; ++j) y.x[j] = joined(a.join, x.x[j], b.x[j]);
    store_group(a.y, q, y);
  }
  for (u64 i = 4 * quads + thread_number(); i < a.elements; i += number_of_threads())
    store(a.y, i, joined(a.join, load(a.a, i), load(a.b, i)));
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

INLINE f32 parted(const ResidualBackward &a, f32 g, f32 other) {
  if (a.join == AND) return g * other;
  if (a.join == IAND) return a.of_b ? g * (1.0f - other) : -g * other;
  return g;
}

KERNEL(residual_backward, ResidualBackward) {
  const bool aligned = begins_quad(a.dy) && begins_quad(a.dx) && begins_quad(a.other);
  const u64 quads = quads_of(a.elements, aligned);
  for (u64 q = thread_number(); q < quads; q += number_of_threads()) {
    const Quad g = load_group<4>(a.dy, q);
    Quad other = zeros<4>(), dx;
    if (a.join != ADD) other = load_group<4>(a.other, q);
  UNROLL
    for (u32 j = 0; j < 4; ++j) dx.x[j] = parted(a, g.x[j], other.x[j]);
    deliver_quad(a.dx, q, dx, a.accumulate);
  }
  for (u64 i = 4 * quads + thread_number(); i < a.elements; i += number_of_threads()) {
    const f32 other = a.join == ADD ? 0.0f : load(a.other, i);
    deliver(a.dx, i, parted(a, load(a.dy, i), other), a.accumulate);
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
