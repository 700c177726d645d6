// Leaky integrate-and-fire neurons: Eqs. (1) to (4) and line 17 of Algorithm 1, number by number.
//
// The order of operations is that of the reference, so that f32 gives its bits.
#pragma once
#include "math.cuh"

// The ways to reset; `Reset` in layers.rs.
enum Reset : u32 { HARD = 0, SOFT = 1, NONE = 2 };

struct Neuron {
  f32 tau_m;
  f32 v_th;
  f32 alpha;
  u32 reset;
  u32 detach_reset;
};

// What nearly all networks have: a hard reset that gradients go through, and a tau_m by which a product
// divides.
struct UsualNeuron {
  PowerOfTwo tau_m;
  f32 v_th;
  f32 alpha;
  static constexpr u32 reset = HARD;
  static constexpr u32 detach_reset = 0;

  explicit MEMBER UsualNeuron(const Neuron &n)
      : tau_m(power_of_two(n.tau_m)), v_th(n.v_th), alpha(n.alpha) {}
};

INLINE bool is_usual(const Neuron &n) {
  return n.reset == HARD && n.detach_reset == 0 && is_power_of_two(n.tau_m);
}

// s = 1 where u >= v_th, Eqs. (1) and (3). NaN never reaches the threshold.
template <typename N> INLINE f32 fire(const N &n, f32 u) { return u >= n.v_th ? 1.0f : 0.0f; }

// u_t from u_{t-1} and the input x_t.
template <typename N> INLINE f32 charge(const N &n, f32 u, f32 x) {
  const f32 s = fire(n, u);
  f32 left = u;
  if (n.reset == HARD) left = u * (1.0f - s); // Eq. (2)
  if (n.reset == SOFT) left = u - s * n.v_th;
  return left / n.tau_m + x;
}

// H'(u), Eq. (4) with the absolute value that it lacks.
template <typename N> INLINE f32 surrogate(const N &n, f32 u) {
  const f32 x = n.alpha - n.alpha * n.alpha * absolute(u - n.v_th);
  return x > 0.0f ? x : 0.0f;
}

// du_{t+1} / du_t: through the leak and, unless detached, through the reset.
template <typename N> INLINE f32 jacobian(const N &n, f32 u) {
  const f32 dsdu = n.detach_reset ? 0.0f : surrogate(n, u);
  f32 carried = 1.0f;
  if (n.reset == HARD) carried = 1.0f - fire(n, u) - u * dsdu;
  if (n.reset == SOFT) carried = 1.0f - dsdu * n.v_th;
  return carried / n.tau_m;
}
