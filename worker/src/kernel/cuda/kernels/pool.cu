// Pools and flattening, channels last. The way back gathers: every input pixel looks for the windows
// that it is in, so that nothing is added by several threads.
//
// Maxima are taken over large pictures: a thread stays at its channels there, and walks over pixels. The other
// pools come behind the last layers, where pictures are small.
#include "rows.cuh"

struct PoolShape {
  u32 samples;
  u32 height, width, channels; // of the input
  u32 out_height, out_width;
  u32 kernel, stride, padding;
  u32 unused;
};

// A pixel and a channel of a sample.
struct At {
  u64 sample;
  u32 row, column, channel;
};

INLINE At at(u64 i, u32 height, u32 width, u32 channels) {
  At p;
  p.channel = static_cast<u32>(i % channels);
  i /= channels;
  p.column = static_cast<u32>(i % width);
  i /= width;
  p.row = static_cast<u32>(i % height);
  p.sample = i / height;
  return p;
}

INLINE u64 index(u64 sample, u32 row, u32 column, u32 channel, u32 height, u32 width, u32 channels) {
  return ((sample * height + row) * width + column) * channels + channel;
}

// A pixel of all samples.
struct Pixel {
  u32 sample, row, column;
};

template <typename Row> INLINE Pixel pixel(Row i, u32 height, u32 width) {
  const Row line = i / width;
  return {static_cast<u32>(line / height), static_cast<u32>(line % height), static_cast<u32>(i % width)};
}

// The pixel so many pixels on.
INLINE void move_on(Pixel &p, const Pixel &by, u32 height, u32 width) {
  p.column += by.column;
  p.row += by.row;
  p.sample += by.sample;
  if (p.column >= width) {
    p.column -= width;
    ++p.row;
  }
  if (p.row >= height) {
    p.row -= height;
    ++p.sample;
  }
}

// A divisor of small numbers, whose quotients are products.
struct Stride {
  u32 by;
  u32 factor; // 2^31 / by, rounded up; 0 where a quotient could be wrong

  // For dividends of up to `largest`.
  MEMBER Stride(u32 divisor, u64 largest)
      : by(divisor), factor(largest * divisor < 1u << 31 ? ((1u << 31) + divisor - 1) / divisor : 0) {}

  MEMBER u32 quotient(u32 x) const {
    return factor != 0 ? static_cast<u32>(static_cast<u64>(x) * factor >> 31) : x / by;
  }
};

// Whether both sides of a pool are regular.
INLINE bool is_regular(const PoolShape &s, const Tile &tile) {
  const Tile input = {static_cast<u64>(s.samples) * s.height * s.width, s.channels, 0, 0, 0};
  const Tile output = {static_cast<u64>(s.samples) * s.out_height * s.out_width, s.channels, 0, 0, 0};
  return is_regular(tile, 4) && is_regular(input, 4) && is_regular(output, 4);
}

struct PoolForward {
  Values x, y;
  f32 *argmax; // of the maximum only
  PoolShape shape;
  Tile tile; // of the output
};

// The side of a window: known when compiled, or 0.
template <typename K, u32 side> INLINE void find_maxima(const PoolForward &a) {
  typedef typename K::Row Row;
  const PoolShape &s = a.shape;
  const u32 kernel = side != 0 ? side : s.kernel;
  const Place<K> p = place_in_turns<K>(a.tile);
  if (4 * p.group >= s.channels) return;
  const typename K::Operands x(a.x), y(a.y);
  const typename K::Reals argmax(f32_values(a.argmax));
  Pixel out = pixel(p.row, s.out_height, s.out_width);
  const Pixel by = pixel(p.step, s.out_height, s.out_width);
  for (Row row = p.row; row < p.end; row += p.step) {
    Quad best = zeros<4>(), position = zeros<4>();
  UNROLL
    for (u32 j = 0; j < 4; ++j) best.x[j] = minus_infinity();
  UNROLL
    for (u32 down = 0; down < kernel; ++down) {
      // Above the picture is far below it: unsigned numbers wrap.
      const u32 line = out.row * s.stride + down - s.padding;
      const Row pixels = (static_cast<Row>(out.sample) * s.height + line) * s.width;
  UNROLL
      for (u32 right = 0; right < kernel; ++right) {
        const u32 k = down * kernel + right, column = out.column * s.stride + right - s.padding;
        if (line >= s.height || column >= s.width) continue;
        const Quad there = load(x, typename K::Spot(pixels + column, p.group, s.channels));
  UNROLL
        for (u32 j = 0; j < 4; ++j) {
          if (k != 0 && !(there.x[j] > best.x[j])) continue;
          best.x[j] = there.x[j];
          position.x[j] = static_cast<f32>(k);
        }
      }
    }
    const typename K::Spot at(row, p.group, s.channels);
    store(y, at, best);
    store(argmax, at, position);
    move_on(out, by, s.out_height, s.out_width);
  }
}

// Networks for large pictures have windows of three.
template <typename K> INLINE void find_maxima_of_any(const PoolForward &a) {
  if (a.shape.kernel == 3)
    find_maxima<K, 3>(a);
  else
    find_maxima<K, 0>(a);
}

// The first maximum in row-major order; padding counts as minus infinity.
KERNEL(max_pool_forward, PoolForward) {
  const bool regular = is_regular(a.shape, a.tile) && a.x.type == a.y.type;
  if (regular && a.x.type == BF16)
    find_maxima_of_any<Known<bf16, bf16, 4>>(a);
  else if (regular)
    find_maxima_of_any<Known<f32, f32, 4>>(a);
  else
    find_maxima<Unknown, 0>(a);
}

KERNEL(average_pool_forward, PoolForward) {
  const PoolShape &s = a.shape;
  const u64 all = static_cast<u64>(s.samples) * s.out_height * s.out_width * s.channels;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const At p = at(i, s.out_height, s.out_width, s.channels);
    f32 sum = 0.0f;
    for (u32 k = 0; k < s.kernel * s.kernel; ++k)
      sum += load(a.x, index(p.sample, p.row * s.kernel + k / s.kernel,
                             p.column * s.kernel + k % s.kernel, p.channel, s.height, s.width,
                             s.channels));
    store(a.y, i, sum / static_cast<f32>(s.kernel * s.kernel));
  }
}

// Bin i of o over n pixels: floor(i n/o) to ceil((i+1) n/o).
INLINE u32 bin_begin(u32 i, u32 n, u32 o) { return i * n / o; }
INLINE u32 bin_end(u32 i, u32 n, u32 o) { return ((i + 1) * n + o - 1) / o; }

KERNEL(adaptive_pool_forward, PoolForward) {
  const PoolShape &s = a.shape;
  const u64 all = static_cast<u64>(s.samples) * s.out_height * s.out_width * s.channels;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const At p = at(i, s.out_height, s.out_width, s.channels);
    const u32 top = bin_begin(p.row, s.height, s.out_height);
    const u32 bottom = bin_end(p.row, s.height, s.out_height);
    const u32 left = bin_begin(p.column, s.width, s.out_width);
    const u32 right = bin_end(p.column, s.width, s.out_width);
    f32 sum = 0.0f;
    for (u32 row = top; row < bottom; ++row)
      for (u32 column = left; column < right; ++column)
        sum += load(a.x, index(p.sample, row, column, p.channel, s.height, s.width, s.channels));
    store(a.y, i, sum / static_cast<f32>((bottom - top) * (right - left)));
  }
}

struct PoolBackward {
  Values dy, dx;
  const f32 *argmax;
  PoolShape shape;
  Tile tile; // of the input
  u32 accumulate;
  u32 unused;
};

template <typename K> INLINE void send_to_maxima(const PoolBackward &a) {
  typedef typename K::Row Row;
  const PoolShape &s = a.shape;
  const Place<K> p = place_in_turns<K>(a.tile);
  if (4 * p.group >= s.channels) return;
  const typename K::Errors dy(a.dy);
  const typename K::Reals dx(a.dx), argmax(f32_values(a.argmax));
  const u64 height = s.height + s.padding, width = s.width + s.padding;
  const Stride stride(s.stride, height > width ? height : width);
  Pixel in = pixel(p.row, s.height, s.width);
  const Pixel by = pixel(p.step, s.height, s.width);
  for (Row row = p.row; row < p.end; row += p.step) {
    Quad sum = zeros<4>();
    const u32 line = in.row + s.padding, column = in.column + s.padding;
    const u32 last_y = stride.quotient(line), last_x = stride.quotient(column);
    // Windows from the last to the first, where the pixel is further down and to the right. One behind the
    // first has the number of none.
    for (u32 y = last_y, down = line - y * s.stride; y != ~0u && down < s.kernel; --y, down += s.stride) {
      if (y >= s.out_height) continue;
      const Row outputs = (static_cast<Row>(in.sample) * s.out_height + y) * s.out_width;
      for (u32 x = last_x, right = column - x * s.stride; x != ~0u && right < s.kernel;
           --x, right += s.stride) {
        if (x >= s.out_width) continue;
        const typename K::Spot out(outputs + x, p.group, s.channels);
        const Quad position = load(argmax, out), error = load(dy, out);
        const f32 k = static_cast<f32>(down * s.kernel + right);
  UNROLL
        for (u32 j = 0; j < 4; ++j)
          if (position.x[j] == k) sum.x[j] += error.x[j];
      }
    }
    deliver(dx, typename K::Spot(row, p.group, s.channels), sum, a.accumulate);
    move_on(in, by, s.height, s.width);
  }
}

KERNEL(max_pool_backward, PoolBackward) {
  const bool regular = is_regular(a.shape, a.tile) && a.dx.type == F32;
  if (regular && a.dy.type == BF16)
    send_to_maxima<Known<f32, bf16, 4>>(a);
  else if (regular)
    send_to_maxima<Known<f32, f32, 4>>(a);
  else
    send_to_maxima<Unknown>(a);
}

// A remainder that no window covers gets nothing.
KERNEL(average_pool_backward, PoolBackward) {
  const PoolShape &s = a.shape;
  const u64 all = static_cast<u64>(s.samples) * s.height * s.width * s.channels;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const At p = at(i, s.height, s.width, s.channels);
    const u32 y = p.row / s.kernel, x = p.column / s.kernel;
    f32 share = 0.0f;
    if (y < s.out_height && x < s.out_width) {
      const u64 o = index(p.sample, y, x, p.channel, s.out_height, s.out_width, s.channels);
      share = load(a.dy, o) / static_cast<f32>(s.kernel * s.kernel);
    }
    deliver(a.dx, i, share, a.accumulate);
  }
}

// Bins may overlap.
KERNEL(adaptive_pool_backward, PoolBackward) {
  const PoolShape &s = a.shape;
  const u64 all = static_cast<u64>(s.samples) * s.height * s.width * s.channels;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const At p = at(i, s.height, s.width, s.channels);
    f32 sum = 0.0f;
    // The first bin that can hold row r is floor(r o/n); one before it does not reach r.
    for (u32 y = p.row * s.out_height / s.height; y < s.out_height; ++y) {
      const u32 top = bin_begin(y, s.height, s.out_height);
      const u32 bottom = bin_end(y, s.height, s.out_height);
      if (top > p.row) break;
      if (bottom <= p.row) continue;
      for (u32 x = p.column * s.out_width / s.width; x < s.out_width; ++x) {
        const u32 left = bin_begin(x, s.width, s.out_width);
        const u32 right = bin_end(x, s.width, s.out_width);
        if (left > p.column) break;
        if (right <= p.column) continue;
        const u64 o = index(p.sample, y, x, p.channel, s.out_height, s.out_width, s.channels);
        sum += load(a.dy, o) / static_cast<f32>((bottom - top) * (right - left));
      }
    }
    deliver(a.dx, i, sum, a.accumulate);
  }
}

struct Flatten {
  Values from, to;
  u64 samples;
  u32 pixels;
  u32 channels;
  u32 backward; // from vectors to pictures
  u32 accumulate;
};

// Pictures [N, H, W, C] to vectors in the order of C, H, W, or back.
KERNEL(flatten, Flatten) {
  const u64 features = static_cast<u64>(a.pixels) * a.channels, all = a.samples * features;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const u64 sample = i / features, f = i % features;
    if (a.backward) {
      const u64 pixel = f / a.channels, channel = f % a.channels;
      deliver(a.to, i, load(a.from, sample * features + channel * a.pixels + pixel), a.accumulate);
    } else {
      const u64 channel = f / a.pixels, pixel = f % a.pixels;
      store(a.to, i, load(a.from, sample * features + pixel * a.channels + channel));
    }
  }
}
