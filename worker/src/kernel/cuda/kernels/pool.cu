// Pools and flattening, channels last. The way back gathers: every input pixel looks for the windows
// that it is in, so that nothing is added by several threads.
#include "values.cuh"

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

struct PoolForward {
  Values x, y;
  f32 *argmax; // of the maximum only
  PoolShape shape;
};

// The first maximum in row-major order; padding counts as minus infinity.
KERNEL(max_pool_forward, PoolForward) {
  const PoolShape &s = a.shape;
  const u64 all = static_cast<u64>(s.samples) * s.out_height * s.out_width * s.channels;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const At p = at(i, s.out_height, s.out_width, s.channels);
    f32 best = minus_infinity();
    u32 position = 0;
    bool found = false;
    for (u32 k = 0; k < s.kernel * s.kernel; ++k) {
      const u32 row = p.row * s.stride + k / s.kernel, column = p.column * s.stride + k % s.kernel;
      f32 x = minus_infinity();
      if (row >= s.padding && row - s.padding < s.height && column >= s.padding &&
          column - s.padding < s.width)
        x = load(a.x, index(p.sample, row - s.padding, column - s.padding, p.channel, s.height,
                            s.width, s.channels));
      if (!found || x > best) {
        best = x;
        position = k;
        found = true;
      }
    }
    store(a.y, i, best);
    a.argmax[i] = static_cast<f32>(position);
  }
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
  u32 accumulate;
  u32 unused;
};

KERNEL(max_pool_backward, PoolBackward) {
  const PoolShape &s = a.shape;
  const u64 all = static_cast<u64>(s.samples) * s.height * s.width * s.channels;
  for (u64 i = thread_number(); i < all; i += number_of_threads()) {
    const At p = at(i, s.height, s.width, s.channels);
    f32 sum = 0.0f;
    for (u32 k = 0; k < s.kernel * s.kernel; ++k) {
      const u32 row = p.row + s.padding, column = p.column + s.padding;
      const u32 down = k / s.kernel, right = k % s.kernel;
      if (row < down || column < right) continue;
      if ((row - down) % s.stride != 0 || (column - right) % s.stride != 0) continue;
      const u32 y = (row - down) / s.stride, x = (column - right) / s.stride;
      if (y >= s.out_height || x >= s.out_width) continue;
      const u64 o = index(p.sample, y, x, p.channel, s.out_height, s.out_width, s.channels);
      if (a.argmax[o] == static_cast<f32>(k)) sum += load(a.dy, o);
    }
    deliver(a.dx, i, sum, a.accumulate);
  }
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
