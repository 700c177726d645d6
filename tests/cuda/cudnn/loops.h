// Convolutions and their gradients as plain loops over memory of the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../host.h"

namespace cudnn_stand_in {

// Numbers of cudnnDataType_t and cudnnMathType_t.
enum : int { FLOAT = 0, BFLOAT16 = 9 };
enum : int { DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, FMA_MATH = 3 };

// NHWC; of a filter, n outputs and c inputs: KRSC.
struct Tensor {
  int type = -1;
  int n = 0, c = 0, h = 0, w = 0;
  size_t elements() const { return (size_t)n * c * h * w; }
  size_t bytes() const { return elements() * (type == FLOAT ? 4 : 2); }
};

struct Convolution {
  int padding_h = 0, padding_w = 0, stride_h = 0, stride_w = 0;
  int math = DEFAULT_MATH;
  bool set = false;
};

enum class Pass { Forward, Data, Filter };

// One call, with copies of all that it was given. `x`, `w`, `y` are the tensors of the forward pass, or their
// gradients where it is those that the pass reads or writes.
struct Call {
  Pass pass;
  Tensor x, w, y;
  Convolution convolution;
  const void *x_data, *w_data, *y_data;
  void *workspace;
  size_t workspace_bytes;
  float alpha, beta;
  bool captured = false;
};

// Operands as the multipliers see them: f32 is rounded to the 10 bits of TF32 unless FMA_MATH was asked for.
inline std::vector<float> load(const void *data, const Tensor &tensor, int math) {
  std::vector<float> values(tensor.elements());
  if (tensor.type == FLOAT) {
    memcpy(values.data(), data, tensor.bytes());
    if (math != FMA_MATH)
      for (float &value : values)
        if (std::isfinite(value)) value = from_bits((bits_of(value) + 0x1000u) & 0xffffe000u);
  } else {
    const u16 *bits = static_cast<const u16 *>(data);
    for (size_t i = 0; i < values.size(); i++) values[i] = from_bits((u32)bits[i] << 16);
  }
  return values;
}

inline u16 to_bf16_bits(float x) {
  const u32 bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// data = alpha * values + beta * data. Where beta is 0, what was there is not read.
template <typename Number>
void store(const std::vector<Number> &values, void *data, const Tensor &tensor, float alpha, float beta) {
  for (size_t i = 0; i < values.size(); i++) {
    float result = alpha * (float)values[i];
    if (tensor.type == FLOAT) {
      float *to = static_cast<float *>(data) + i;
      if (beta != 0.0f) result += beta * *to;
      *to = result;
    } else {
      u16 *to = static_cast<u16 *>(data) + i;
      if (beta != 0.0f) result += beta * from_bits((u32)*to << 16);
      *to = to_bf16_bits(result);
    }
  }
}

// Calls visit(output pixel, input pixel, tap) for all that belong together.
template <typename Visit>
void for_each_tap(const Call &call, Visit visit) {
  const Convolution &at = call.convolution;
  for (int n = 0; n < call.y.n; n++)
    for (int oh = 0; oh < call.y.h; oh++)
      for (int ow = 0; ow < call.y.w; ow++)
        for (int kh = 0; kh < call.w.h; kh++) {
          const int ih = oh * at.stride_h + kh - at.padding_h;
          if (ih < 0 || ih >= call.x.h) continue;
          for (int kw = 0; kw < call.w.w; kw++) {
            const int iw = ow * at.stride_w + kw - at.padding_w;
            if (iw < 0 || iw >= call.x.w) continue;
            visit(((size_t)n * call.y.h + oh) * call.y.w + ow, ((size_t)n * call.x.h + ih) * call.x.w + iw,
                  (size_t)kh * call.w.w + kw);
          }
        }
}

inline void forward(const Call &call) {
  const auto x = load(call.x_data, call.x, call.convolution.math), w = load(call.w_data, call.w, call.convolution.math);
  const size_t k = call.y.c, c = call.x.c, taps = (size_t)call.w.h * call.w.w;
  // [tap][c][k], so that the innermost loop walks memory.
  std::vector<float> turned(w.size());
  for (size_t i = 0; i < k; i++)
    for (size_t j = 0; j < taps * c; j++) turned[j * k + i] = w[i * taps * c + j];
  std::vector<float> y(call.y.elements(), 0.0f);
  for_each_tap(call, [&](size_t out, size_t in, size_t tap) {
    float *sums = &y[out * k];
    for (size_t j = 0; j < c; j++) {
      const float value = x[in * c + j];
      // Spikes are mostly 0; NaN is not.
      if (value == 0.0f) continue;
      const float *row = &turned[(tap * c + j) * k];
      for (size_t i = 0; i < k; i++) sums[i] += value * row[i];
    }
  });
  store(y, const_cast<void *>(call.y_data), call.y, call.alpha, call.beta);
}

inline void backward_data(const Call &call) {
  const auto y = load(call.y_data, call.y, call.convolution.math), w = load(call.w_data, call.w, call.convolution.math);
  const size_t k = call.y.c, c = call.x.c, taps = (size_t)call.w.h * call.w.w;
  std::vector<float> x(call.x.elements(), 0.0f);
  for_each_tap(call, [&](size_t out, size_t in, size_t tap) {
    float *sums = &x[in * c];
    for (size_t i = 0; i < k; i++) {
      const float error = y[out * k + i];
      if (error == 0.0f) continue;
      const float *row = &w[(i * taps + tap) * c];
      for (size_t j = 0; j < c; j++) sums[j] += error * row[j];
    }
  });
  store(x, const_cast<void *>(call.x_data), call.x, call.alpha, call.beta);
}

inline void backward_filter(const Call &call) {
  const auto x = load(call.x_data, call.x, call.convolution.math), y = load(call.y_data, call.y, call.convolution.math);
  const size_t k = call.y.c, c = call.x.c, taps = (size_t)call.w.h * call.w.w;
  // Sums over all samples and pixels.
  std::vector<double> w(call.w.elements(), 0.0);
  for_each_tap(call, [&](size_t out, size_t in, size_t tap) {
    const float *row = &x[in * c];
    for (size_t i = 0; i < k; i++) {
      const double error = y[out * k + i];
      if (error == 0.0) continue;
      double *sums = &w[(i * taps + tap) * c];
      for (size_t j = 0; j < c; j++) sums[j] += error * row[j];
    }
  });
  store(w, const_cast<void *>(call.w_data), call.w, call.alpha, call.beta);
}

}  // namespace cudnn_stand_in
