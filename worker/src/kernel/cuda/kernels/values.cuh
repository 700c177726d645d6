// How values lie in device memory: f32 or bf16, one number after the other, channels last.
//
// bf16 is stored where convolutions read or write (ARCHITECTURE.md, "Precision on GPUs"); everything
// is computed in f32. Kernels take four neighbouring numbers at once, a quad, because what they do is
// bound by memory: where a slot's numbers are a multiple of four, a quad is one access.
#pragma once
#include "math.cuh"

// The types of stored numbers; `Type` in arguments.rs.
enum Type : u32 { F32 = 0, BF16 = 1 };

// Numbers of one slot, or nothing where `at` is null.
struct Values {
  void *at;
  u32 type;
  u32 unused;
};

// Numbers of a ring: time step t lies in slot t mod `slots`.
struct Ring {
  void *at;
  u64 stride; // numbers from one slot to the next
  u32 type;
  u32 slots;
};

struct Quad {
  f32 x[4];
};

INLINE Values slot(const Ring &ring, u32 t) {
  Values values = {nullptr, ring.type, 0};
  if (ring.at != nullptr) {
    const u64 offset = ring.stride * (t % ring.slots) * (ring.type == BF16 ? 2 : 4);
    values.at = static_cast<u8 *>(ring.at) + offset;
  }
  return values;
}

INLINE f32 load(const Values &v, u64 i) {
  return v.type == BF16 ? to_f32(static_cast<const bf16 *>(v.at)[i])
                        : static_cast<const f32 *>(v.at)[i];
}

INLINE void store(const Values &v, u64 i, f32 x) {
  if (v.type == BF16)
    static_cast<bf16 *>(v.at)[i] = to_bf16(x);
  else
    static_cast<f32 *>(v.at)[i] = x;
}

struct alignas(16) Packed4 {
  f32 x[4];
};
struct alignas(8) Packed4Half {
  bf16 x[4];
};

// Whether quads of a slot with so many numbers are aligned.
INLINE bool quads_are_aligned(u64 elements) { return elements % 4 == 0; }

// Whether numbers begin where a quad may.
INLINE bool begins_quad(const Values &v) {
  return reinterpret_cast<u64>(v.at) % (v.type == BF16 ? 8 : 16) == 0;
}

// Numbers 4 q to 4 q + 3 of `elements`; zeros behind the end.
INLINE Quad load_quad(const Values &v, u64 q, u64 elements, bool aligned) {
  Quad quad;
  if (aligned) {
    if (v.type == BF16) {
      const Packed4Half p = static_cast<const Packed4Half *>(v.at)[q];
  UNROLL
      for (int j = 0; j < 4; ++j) quad.x[j] = to_f32(p.x[j]);
    } else {
      const Packed4 p = static_cast<const Packed4 *>(v.at)[q];
  UNROLL
      for (int j = 0; j < 4; ++j) quad.x[j] = p.x[j];
    }
  } else {
  UNROLL
    for (int j = 0; j < 4; ++j) quad.x[j] = 4 * q + j < elements ? load(v, 4 * q + j) : 0.0f;
  }
  return quad;
}

INLINE void store_quad(const Values &v, u64 q, u64 elements, bool aligned, const Quad &quad) {
  if (aligned) {
    if (v.type == BF16) {
      Packed4Half p;
  UNROLL
      for (int j = 0; j < 4; ++j) p.x[j] = to_bf16(quad.x[j]);
      static_cast<Packed4Half *>(v.at)[q] = p;
    } else {
      Packed4 p;
  UNROLL
      for (int j = 0; j < 4; ++j) p.x[j] = quad.x[j];
      static_cast<Packed4 *>(v.at)[q] = p;
    }
  } else {
  UNROLL
    for (int j = 0; j < 4; ++j)
      if (4 * q + j < elements) store(v, 4 * q + j, quad.x[j]);
  }
}

// Writes a quad, or adds it to what is there.
INLINE void deliver_quad(const Values &v, u64 q, u64 elements, bool aligned, Quad quad,
                         bool accumulate) {
  if (accumulate) {
    const Quad there = load_quad(v, q, elements, aligned);
  UNROLL
    for (int j = 0; j < 4; ++j) quad.x[j] = there.x[j] + quad.x[j];
  }
  store_quad(v, q, elements, aligned, quad);
}

INLINE void deliver(const Values &v, u64 i, f32 x, bool accumulate) {
  store(v, i, accumulate ? load(v, i) + x : x);
}
