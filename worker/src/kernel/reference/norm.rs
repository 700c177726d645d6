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

/// The gradients of one time step.
pub(super) struct Gradients {
    pub(super) z: Value,
    pub(super) gamma: Value,
    pub(super) beta: Value,
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

/// The unbiased variance, which the running variance follows.
pub(super) fn unbiased(variance: Value, z: &Value) -> Value {
    let n = count(z);
    variance * (n / (n - 1.0).max(1.0))
}

/// y = gamma xhat + beta.
pub(super) fn forward(z: Value, moments: &Moments, gamma: Value, beta: Value) -> Value {
    moments.xhat(z) * gamma + beta
}

/// Backward of one time step from its saved moments, with the gamma of now.
pub(super) fn backward(g: &Value, z: Value, moments: &Moments, gamma: Value) -> Gradients {
    let n = count(&z);
    let xhat = moments.xhat(z);
    let dbeta = sum_nhw(g.clone());
    let dgamma = sum_nhw(g.clone() * xhat.clone());
    let dxhat = g.clone() - dbeta.clone() / n - xhat * dgamma.clone() / n;
    Gradients {
        z: gamma * moments.inv.clone() * dxhat,
        gamma: dgamma,
        beta: dbeta,
    }
}

/// n = N H W, over which batch norm takes its statistics.
fn count(z: &Value) -> f32 {
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
