//! Batch norm, sum, neurons, sum: `y = norm(z) + before`, `s = fire(charge(y))`, `out = s + after`.

use burn::tensor::Tensor;

use super::counts::Counts;
use super::memory::{Memory, Value, to_host};
use super::neuron;
use super::norm::{self, Moments, Sums};
use crate::kernel::{Arena, ErrorsOut, Lif, Norm, NormLif, NormLifErrors, Norms, Phase, Window};

/// One time step (Algorithm 1, lines 4 to 7). Returns whether all potentials are finite.
pub(super) fn forward(
    memory: &mut Memory,
    counts: &mut Counts,
    layer: &NormLif,
    t: usize,
    phase: Phase,
) -> bool {
    let z = memory.load(layer.z, t);
    let mut y = match &layer.norm {
        Some(norm) => normalise(memory, norm, z, t, phase),
        None => z,
    };
    if let Some(before) = layer.before {
        y = y + memory.load(before, t);
    }
    if let Some(buffer) = layer.y {
        memory.store(buffer, t, y.clone());
    }
    let Some(lif) = &layer.lif else {
        return true;
    };
    let s = fire(memory, counts, lif, y, t);
    let out = match layer.after {
        Some(after) => s + memory.load(after, t),
        None => s,
    };
    if let Some(buffer) = layer.out {
        memory.store(buffer, t, out);
    }
    // NaN never reaches the threshold: neurons turn it into silence.
    let u = to_host(memory.load(lif.u, t));
    u.iter().all(|u| u.is_finite())
}

/// Batch norm at one time step: with the statistics of the batch, or with the running ones.
fn normalise(memory: &mut Memory, norm: &Norm, z: Value, t: usize, phase: Phase) -> Value {
    let running_mean = memory.per_channel(Arena::Statistics, norm.running_mean);
    let running_var = memory.per_channel(Arena::Statistics, norm.running_var);
    let moments = match phase {
        Phase::Evaluate => Moments::new(running_mean, running_var, norm.eps),
        Phase::Train => {
            let (mean, variance) = match norm.across {
                Norms::Own => {
                    let (mean, variance) = norm::statistics(&z);
                    let n = norm::count(&z);
                    follow(memory, norm, mean.clone(), variance.clone(), n);
                    (mean, variance)
                }
                Norms::Pooled => {
                    let (mean, variance) = norm::statistics(&z);
                    share(memory, norm, mean.clone(), variance.clone());
                    (mean, variance)
                }
                Norms::Synchronised => shared(memory, norm),
            };
            let moments = Moments::new(mean, variance, norm.eps);
            memory.store(norm.moments, t, moments.pack());
            moments
        }
    };
    let gamma = memory.per_channel(Arena::Weights, norm.gamma);
    let beta = memory.per_channel(Arena::Weights, norm.beta);
    norm::forward(z, &moments, gamma, beta)
}

/// Moves the running statistics towards those of a batch of n values per channel.
fn follow(memory: &mut Memory, norm: &Norm, mean: Value, variance: Value, n: f32) {
    let unbiased = norm::unbiased(variance, n);
    for (span, now) in [(norm.running_mean, mean), (norm.running_var, unbiased)] {
        let running = memory.per_channel(Arena::Statistics, span);
        let moved = norm::moved(running, now, norm.momentum);
        memory.set(Arena::Statistics, span, flat(moved));
    }
}

/// Writes the moments of this share where those of all ranks will be.
pub(super) fn share(memory: &mut Memory, norm: &Norm, mean: Value, variance: Value) {
    let running_mean = memory.per_channel(Arena::Statistics, norm.running_mean);
    let (d, q) = norm::about(running_mean, mean, variance);
    memory.set(Arena::Moments, norm.running_mean, flat(d));
    memory.set(Arena::Moments, norm.running_var, flat(q));
}

/// Mean and variance of all ranks.
fn shared(memory: &Memory, norm: &Norm) -> (Value, Value) {
    let running_mean = memory.per_channel(Arena::Statistics, norm.running_mean);
    let d = memory.per_channel(Arena::Moments, norm.running_mean);
    let q = memory.per_channel(Arena::Moments, norm.running_var);
    norm::not_about(running_mean, d, q)
}

/// Moves the running statistics towards those of all ranks.
pub(super) fn apply(memory: &mut Memory, norm: &Norm, count: u64) {
    let (mean, variance) = shared(memory, norm);
    follow(memory, norm, mean, variance, count as f32);
}

/// The neurons at one time step: `u_t` into its ring, `s_t` back.
fn fire(memory: &mut Memory, counts: &mut Counts, lif: &Lif, y: Value, t: usize) -> Value {
    let neuron = &lif.neuron;
    let (u_before, s_before) = if t == 0 {
        (y.zeros_like(), y.zeros_like()) // Section 3.3: u = s = 0 before the first time step.
    } else {
        let u = memory.load(lif.u, t - 1);
        (u.clone(), neuron::fire(neuron, u))
    };
    let u = neuron::charge(neuron, u_before, s_before, y);
    let s = neuron::fire(neuron, u.clone());
    memory.store(lif.u, t, u);
    counts.see(lif.index, t, &s);
    s
}

/// The window, newest time step first (Algorithm 1, lines 12 to 18). Returns g of each step for
/// which a synchronised norm has to wait.
pub(super) fn backward(
    memory: &mut Memory,
    layer: &NormLif,
    window: Window,
    errors: &NormLifErrors,
) -> Vec<Value> {
    let mut waiting = Vec::new();
    let mut delta_next = None;
    let mut norm_gradients: Option<(Value, Value)> = None;
    for t in window.newest_first() {
        let error_of_s = memory.arrived(errors.out, t);
        if let (Some(to), Some(error)) = (errors.after, &error_of_s) {
            memory.deliver(to, t, error.clone());
        }
        let delta = match &layer.lif {
            Some(lif) if errors.out.is_some() => {
                let u = memory.load(lif.u, t);
                Some(neuron::delta(
                    &lif.neuron,
                    &u,
                    error_of_s,
                    delta_next.take(),
                ))
            }
            _ => None,
        };
        delta_next.clone_from(&delta);
        // The other readers of y see it before the neurons: their error does not reach u.
        let g = match (delta, memory.arrived(errors.y, t)) {
            (Some(delta), Some(error)) => delta + error,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => continue,
        };
        if let Some(to) = errors.before {
            memory.deliver(to, t, g.clone());
        }
        let dz = match &layer.norm {
            Some(norm) => {
                let z = memory.load(layer.z, t);
                let moments = Moments::unpack(memory.load(norm.moments, t));
                let sums = norm::sums(&g, z.clone(), &moments);
                let Sums { g: beta, g_xhat } = sums.clone();
                norm_gradients = Some(match norm_gradients {
                    Some((gamma_so_far, beta_so_far)) => {
                        (gamma_so_far + g_xhat, beta_so_far + beta)
                    }
                    None => (g_xhat, beta),
                });
                if let Some(place) = norm.sums {
                    memory.store(place, t, sums.pack());
                    waiting.push(g);
                    continue;
                }
                let gamma = memory.per_channel(Arena::Weights, norm.gamma);
                norm::backward(&g, z, &moments, gamma, &sums)
            }
            None => g,
        };
        if let Some(to) = errors.z {
            memory.deliver(to, t, dz);
        }
    }
    if let (Some(norm), Some((gamma, beta))) = (&layer.norm, norm_gradients) {
        memory.set(Arena::Gradients, norm.gamma, flat(gamma)); // Algorithm 1, line 18
        memory.set(Arena::Gradients, norm.beta, flat(beta));
    }
    waiting
}

/// The error of z at one time step of a synchronised norm, from the sums of all ranks.
pub(super) fn finish(memory: &mut Memory, layer: &NormLif, g: &Value, t: usize, dz: ErrorsOut) {
    let norm = layer.norm.as_ref().expect("only a norm waits");
    let sums = norm.sums.expect("only a synchronised norm waits");
    let z = memory.load(layer.z, t);
    let moments = Moments::unpack(memory.load(norm.moments, t));
    let gamma = memory.per_channel(Arena::Weights, norm.gamma);
    let sums = Sums::unpack(memory.load(sums, t));
    let error = norm::backward(g, z, &moments, gamma, &sums);
    memory.deliver(dz, t, error);
}

/// One number per channel as a vector.
fn flat(per_channel: Value) -> Tensor<1> {
    per_channel.flatten(0, 3)
}
