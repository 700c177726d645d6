// Bytes of pictures to the values that the network sees: shift, flip, cutout and normalising in one.
//
// `Change::source` and `Pictures::values` in kernel/pictures.rs, number by number.
#include "values.cuh"

// What of a change is not a number.
enum What : u32 { FLIPS = 1, CUTS_OUT = 2, IS_EMPTY = 4 };

// What is done to one picture; made by `words_of` in pictures.rs.
struct Change {
  i32 row_shift;
  i32 column_shift;
  u32 what;
  u32 cutout_row;
  u32 cutout_column;
};

struct Pictures {
  Values y;
  const u8 *bytes;
  const Change *changes;
  const f32 *tables; // 256 of each channel
  u64 elements;
  u32 height;
  u32 width;
  u32 channels;
  u32 cutout_half;
};

INLINE bool is_near(u32 place, u32 centre, u32 half) {
  return place + half >= centre && place < centre + half;
}

KERNEL(pictures, Pictures) {
  const u32 of_picture = a.height * a.width * a.channels;
  for (u64 i = thread_number(); i < a.elements; i += number_of_threads()) {
    const u64 picture = i / of_picture;
    const u32 place = static_cast<u32>(i - picture * of_picture);
    const Change change = a.changes[picture];
    if (change.what & IS_EMPTY) {
      store(a.y, i, 0.0f);
      continue;
    }
    const u32 channel = place % a.channels, pixel = place / a.channels;
    const u32 y = pixel / a.width, x = pixel % a.width;
    const bool is_cut = (change.what & CUTS_OUT) &&
                        is_near(y, change.cutout_row, a.cutout_half) &&
                        is_near(x, change.cutout_column, a.cutout_half);
    // Above and left of the picture is far below it: unsigned numbers wrap.
    const u32 row = y + static_cast<u32>(change.row_shift);
    const u32 from = change.what & FLIPS ? a.width - 1 - x : x;
    const u32 column = from + static_cast<u32>(change.column_shift);
    u32 byte = 0;
    if (!is_cut && row < a.height && column < a.width)
      byte = a.bytes[picture * of_picture + (row * a.width + column) * a.channels + channel];
    store(a.y, i, a.tables[256 * channel + byte]);
  }
}
