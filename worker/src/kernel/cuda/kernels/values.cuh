// How values lie in device memory: f32 or bf16, one number after the other, channels last.
//
// bf16 is stored where convolutions read or write (ARCHITECTURE.md, "Precision on GPUs"); everything
// is computed in f32. Kernels take several neighbouring numbers at once, a group, because what they do
// is bound by memory: where a slot's numbers are a multiple of a group's, a group is one access, or two.
//
// `Values` know their type when a kernel runs, `Typed` when it is compiled. What is written for both
// takes the one or the other as a parameter; the second is for what training is made of.
#pragma once
#include "math.cuh"

// The types of stored numbers; `Type` in values.rs.
enum Type : u32 { F32 = 0, BF16 = 1 };

// The first time step with a number that is not finite, ~0: none; and the one that is computed.
struct Watch {
  u32 fault;
  u32 t;
};

// Numbers of one slot, or nothing.
struct Values {
  void *at;
  u32 type;
  u32 is_there; // in one word: loops ask for it
};

// The same, of a type that is known.
template <typename T> struct Typed {
  void *at;
  u32 is_there;
  explicit MEMBER Typed(const Values &v) : at(v.at), is_there(v.is_there) {}
};

INLINE Values f32_values(const f32 *at) { return {const_cast<f32 *>(at), F32, at != nullptr}; }

// Whether numbers are of a type, or are not there.
INLINE bool may_be(const Values &v, Type type) { return !v.is_there || v.type == type; }

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

INLINE void deliver(const Values &v, u64 i, f32 x, bool accumulate) {
  store(v, i, accumulate ? load(v, i) + x : x);
}

// So many neighbouring numbers.
template <u32 width> struct Numbers {
  f32 x[width];
};
typedef Numbers<4> Quad;

template <u32 width> INLINE Numbers<width> zeros() {
  Numbers<width> group;
  UNROLL
  for (u32 j = 0; j < width; ++j) group.x[j] = 0.0f;
  return group;
}

// A group in memory. An access has 16 bytes at most.
template <typename T, u32 width> struct Packed;

template <u32 width> struct alignas(16) Packed<f32, width> {
  f32 x[width];

  MEMBER Numbers<width> numbers() const {
    Numbers<width> group;
  UNROLL
    for (u32 j = 0; j < width; ++j) group.x[j] = x[j];
    return group;
  }
  MEMBER void take(const Numbers<width> &group) {
  UNROLL
    for (u32 j = 0; j < width; ++j) x[j] = group.x[j];
  }
};

template <u32 width> struct alignas(2 * width) Packed<bf16, width> {
  u32 pairs[width / 2];

  MEMBER Numbers<width> numbers() const {
    Numbers<width> group;
  UNROLL
    for (u32 j = 0; j < width; j += 2) {
      group.x[j] = from_bits(pairs[j / 2] << 16);
      group.x[j + 1] = from_bits(pairs[j / 2] & 0xffff0000u);
    }
    return group;
  }
  MEMBER void take(const Numbers<width> &group) {
  UNROLL
    for (u32 j = 0; j < width; j += 2) pairs[j / 2] = to_bf16_pair(group.x[j], group.x[j + 1]);
  }
};

// Group `number` of a slot whose groups are aligned.
template <u32 width, typename T, typename Index>
INLINE Numbers<width> load_group(const Typed<T> &v, Index number) {
  const Packed<T, width> packed = static_cast<const Packed<T, width> *>(v.at)[number];
  return packed.numbers();
}

template <u32 width, typename T, typename Index>
INLINE void store_group(const Typed<T> &v, Index number, const Numbers<width> &group) {
  Packed<T, width> packed;
  packed.take(group);
  static_cast<Packed<T, width> *>(v.at)[number] = packed;
}

template <u32 width, typename Index>
INLINE Numbers<width> load_group(const Values &v, Index number) {
  return v.type == BF16 ? load_group<width>(Typed<bf16>(v), number)
                        : load_group<width>(Typed<f32>(v), number);
}

template <u32 width, typename Index>
INLINE void store_group(const Values &v, Index number, const Numbers<width> &group) {
  if (v.type == BF16)
    store_group(Typed<bf16>(v), number, group);
  else
    store_group(Typed<f32>(v), number, group);
}

// Whether numbers begin where a quad may.
INLINE bool begins_quad(const Values &v) {
  return reinterpret_cast<u64>(v.at) % (v.type == BF16 ? 8 : 16) == 0;
}

// How many quads `elements` numbers begin with, if they begin where a quad may; what is left is taken one by
// one.
INLINE u64 quads_of(u64 elements, bool aligned) { return aligned ? elements / 4 : 0; }

// Writes quad q, or adds it to what is there.
INLINE void deliver_quad(const Values &v, u64 q, Quad quad, bool accumulate) {
  if (accumulate) {
    const Quad there = load_group<4>(v, q);
  UNROLL
    for (u32 j = 0; j < 4; ++j) quad.x[j] = there.x[j] + quad.x[j];
  }
  store_group(v, q, quad);
}
