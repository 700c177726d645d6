//! Batch norm over the samples and pixels of one time step (Ioffe, Szegedy, ICML 2015).
//!
//! What is per channel has the shape `[1, 1, 1, C]`.

use burn::tensor::Tensor;

use super::memory::Value;

/// Mean and 1 / standard deviation of a batch at one time step.
pub(super) struct Moments {
    pub(super) mean: Value,
    pub(super) inv: Value,
}

/// Sums over a batch at one time step.
#[derive(Clone)]
pub(super) struct Sums {
    pub(super) g: Value,
    pub(super) g_xhat: Value,
}

impl Sums {
    /// As they travel to other ranks: `[1, 1, 2, C]`, those of g first.
    pub(super) fn pack(&self) -> Value {
        Tensor::cat(vec![self.g.clone(), self.g_xhat.clone()], 2)
    }

    pub(super) fn unpack(packed: Value) -> Self {
        let g = packed.clone().narrow(2, 0, 1);
        let g_xhat = packed.narrow(2, 1, 1);
        Self { g, g_xhat }
    }
}

impl Moments {
    pub(super) fn new(mean: Value, variance: Value, eps: f32) -> Self {
        let inv = (variance + eps).sqrt().recip();
        Self { mean, inv }
    }

    /// As stored between forward and backward: `[1, 1, 2, C]`, the mean first.
    pub(super) fn pack(&self) -> Value {
        Tensor::cat(vec![self.mean.clone(), self.inv.clone()], 2)
    }

    pub(super) fn unpack(packed: Value) -> Self {
        let mean = packed.clone().narrow(2, 0, 1);
        let inv = packed.narrow(2, 1, 1);
        Self { mean, inv }
    }

    fn xhat(&self, z: Value) -> Value {
        (z - self.mean.clone()) * self.inv.clone()
    }
}

/// Mean and biased variance over N, H and W.
pub(super) fn statistics(z: &Value) -> (Value, Value) {
    let mean = mean_nhw(z.clone());
    let variance = mean_nhw((z.clone() - mean.clone()).square());
    (mean, variance)
}

/// How far a running statistic moves towards that of a batch.
pub(super) fn moved(running: Value, batch: Value, momentum: f32) -> Value {
    running * (1.0 - momentum) + batch * momentum
}

/// The unbiased variance of n values, which the running variance follows.
pub(super) fn unbiased(variance: Value, n: f32) -> Value {
    variance * (n / (n - 1.0).max(1.0))
}

/// y = gamma xhat + beta.
pub(super) fn forward(z: Value, moments: &Moments, gamma: Value, beta: Value) -> Value {
    moments.xhat(z) * gamma + beta
}

/// Mean and variance about the running mean: d = mean - m0, q = variance + d^2.
pub(super) fn about(running_mean: Value, mean: Value, variance: Value) -> (Value, Value) {
    let d = mean - running_mean;
    (d.clone(), variance + d.square())
}

/// The way back.
pub(super) fn not_about(running_mean: Value, d: Value, q: Value) -> (Value, Value) {
    let variance = (q - d.clone().square()).clamp_min(0.0);
    (running_mean + d, variance)
}

/// The sums of g and of g xhat, which are the gradients of beta and gamma.
pub(super) fn sums(g: &Value, z: Value, moments: &Moments) -> Sums {
    Sums {
        g: sum_nhw(g.clone()),
        g_xhat: sum_nhw(g.clone() * moments.xhat(z)),
    }
}

/// The error of z from its saved moments, with the gamma of now.
pub(super) fn backward(g: &Value, z: Value, moments: &Moments, gamma: Value, sums: &Sums) -> Value {
    let n = count(&z);
    let xhat = moments.xhat(z);
    let dxhat = g.clone() - sums.g.clone() / n - xhat * sums.g_xhat.clone() / n;
    gamma * moments.inv.clone() * dxhat
}

/// n = N H W, over which batch norm takes its statistics.
pub(super) fn count(z: &Value) -> f32 {
    let [n, h, w, _] = z.dims();
    (n * h * w) as f32
}

fn sum_nhw(x: Value) -> Value {
    x.sum_dims(&[0, 1, 2])
}

fn mean_nhw(x: Value) -> Value {
    let n = count(&x);
    sum_nhw(x) / n
}
