//! Leaky integrate-and-fire neurons: Eqs. (1) to (4) and line 17 of Algorithm 1.

use super::memory::Value;
use crate::kernel::{Neuron, Reset};

/// `u_t` from `u_{t-1}`, `s_{t-1}` and the input `x_t`.
pub(super) fn charge(neuron: &Neuron, u: Value, s: Value, x: Value) -> Value {
    let left = match neuron.reset {
        Reset::Hard => u * (-s + 1.0), // Eq. (2)
        Reset::Soft => u - s * neuron.v_th,
        Reset::None => u,
    };
    left / neuron.tau_m + x
}

/// `s_t` = 1 where `u_t >= v_th`, Eqs. (1) and (3).
pub(super) fn fire(neuron: &Neuron, u: Value) -> Value {
    u.greater_equal_scalar(neuron.v_th).float()
}

/// `H'(u)`, Eq. (4) with the absolute value that it lacks.
pub(super) fn surrogate(neuron: &Neuron, u: Value) -> Value {
    let Neuron { alpha, v_th, .. } = *neuron;
    ((u - v_th).abs() * (-alpha * alpha) + alpha).clamp_min(0.0)
}

/// `J_t = du_{t+1} / du_t`: through the leak and, unless detached, through the reset.
pub(super) fn jacobian(neuron: &Neuron, u: Value) -> Value {
    let s = fire(neuron, u.clone());
    let dsdu = if neuron.detach_reset {
        u.zeros_like()
    } else {
        surrogate(neuron, u.clone())
    };
    let carried = match neuron.reset {
        Reset::Hard => -s + 1.0 - u * dsdu,
        Reset::Soft => -dsdu * neuron.v_th + 1.0,
        Reset::None => u.ones_like(),
    };
    carried / neuron.tau_m
}

/// `delta_t = dL/du_t` (Algorithm 1, line 17): from the layers above at this time step, where an
/// error arrived, and from the next time step, where there is one in the window.
pub(super) fn delta(
    neuron: &Neuron,
    u: &Value,
    error_of_s: Option<Value>,
    delta_next: Option<Value>,
) -> Value {
    let from_above = match error_of_s {
        Some(error) => error * surrogate(neuron, u.clone()),
        None => u.zeros_like(), // Algorithm 1, line 15
    };
    match delta_next {
        Some(delta_next) => from_above + delta_next * jacobian(neuron, u.clone()),
        None => from_above,
    }
}
