//! Both directions by autodiff of the plain tensor form.

use burn::tensor::Tensor;
use synfire::kernel::{Neuron, Reset};

use super::{EPS, NormLifCase, NormLifData};
use crate::autodiff::{
    Value, constant, gradient, inner_series, leaf, leaves, note_errors, numbers,
};
use crate::outcome::{Outcome, Tolerance};
use crate::rig::at;

/// The leaves and what comes of them at each time step.
struct Graph {
    zs: Vec<Value>,
    befores: Vec<Value>,
    afters: Vec<Value>,
    gamma: Value,
    beta: Value,
    ys: Vec<Value>,
    us: Vec<Value>,
    outs: Vec<Value>,
}

impl NormLifCase {
    /// What autodiff says of a training phase.
    ///
    /// # Panics
    /// If nothing arrives.
    pub fn autodiff(&self) -> Outcome {
        let data = self.data();
        let graph = self.build(&data);
        let mut outcome = Outcome::default();
        let mut note = |name: String, value: &Value| {
            outcome.note(name, Tolerance::Forward, numbers(value.clone()));
        };
        for t in 0..self.num_steps {
            if self.store_y {
                note(at("y", t), &graph.ys[t]);
            }
            if self.neuron.is_some() {
                note(at("u", t), &graph.us[t]);
                note(at("out", t), &graph.outs[t]);
            }
        }
        // The errors that arrive are the gradients of this.
        let of = |len: Option<usize>, values, errors| {
            len.map(|len| inner_series(values, errors, self.newest(len)))
        };
        let at_out = of(self.out_arrived, &graph.outs, &data.g_out);
        let at_y = of(self.y_arrived, &graph.ys, &data.g_y);
        let parts = at_out.into_iter().chain(at_y);
        let loss = parts.reduce(|a, b| a + b).expect("something arrives");
        let gradients = loss.backward();

        let mut errors = |name, leaves: &[Value], steps| {
            let accumulate = self.accumulate;
            note_errors(&mut outcome, name, leaves, &gradients, steps, accumulate);
        };
        if self.want_z {
            errors("dz", &graph.zs, self.handed_down());
        }
        if self.before {
            errors("dbefore", &graph.befores, self.handed_down());
        }
        if let (Some(_), Some(len)) = (self.after, self.out_arrived) {
            errors("dafter", &graph.afters, self.newest(len));
        }
        if self.norm {
            for (name, leaf) in [("dgamma", &graph.gamma), ("dbeta", &graph.beta)] {
                outcome.note(name, Tolerance::Gradient, gradient(leaf, &gradients));
            }
        }
        outcome
    }

    fn build(&self, data: &NormLifData) -> Graph {
        let shape = self.shape;
        let dims = [self.samples, shape.height, shape.width, shape.channels];
        let per_channel = [1, 1, 1, shape.channels];
        let mut graph = Graph {
            zs: leaves(&data.z, dims),
            befores: leaves(&data.before, dims),
            afters: leaves(&data.after, dims),
            gamma: leaf(&data.gamma, per_channel),
            beta: leaf(&data.beta, per_channel),
            ys: Vec::new(),
            us: Vec::new(),
            outs: Vec::new(),
        };
        let zeros = constant(&vec![0.0; self.elements()], dims);
        let (mut u, mut s) = (zeros.clone(), zeros);
        let oldest = self.num_steps - self.window;
        for t in 0..self.num_steps {
            let mut y = graph.zs[t].clone();
            if self.norm {
                y = normalised(y) * graph.gamma.clone() + graph.beta.clone();
            }
            if self.before {
                y = y + graph.befores[t].clone();
            }
            graph.ys.push(y.clone());
            let Some(neuron) = &self.neuron else {
                continue;
            };
            if t == oldest {
                (u, s) = (u.detach(), s.detach()); // Nothing reaches steps older than the window.
            }
            let s_in_reset = if neuron.detach_reset { s.detach() } else { s };
            u = charged(neuron, u, s_in_reset) + y;
            s = spikes(neuron, &u);
            graph.us.push(u.clone());
            let out = match self.after {
                Some(_) => s.clone() + graph.afters[t].clone(),
                None => s.clone(),
            };
            graph.outs.push(out);
        }
        graph
    }
}

/// xhat of one time step.
pub(crate) fn normalised(z: Value) -> Value {
    let mean = z.clone().mean_dims(&[0, 1, 2]);
    let centred = z - mean;
    let variance = centred.clone().square().mean_dims(&[0, 1, 2]);
    centred / (variance + EPS).sqrt()
}

/// What is left of u after reset and leak, Eq. (2).
pub(crate) fn charged(neuron: &Neuron, u: Value, s: Value) -> Value {
    let left = match neuron.reset {
        Reset::Hard => u * (s.ones_like() - s),
        Reset::Soft => u - s * neuron.v_th,
        Reset::None => u,
    };
    left / neuron.tau_m
}

/// `[u >= v_th]` whose gradient is Eq. (4): the spikes as a constant, plus 0 in the form F - F,
/// where only the first F has a gradient, F' = H'.
pub(crate) fn spikes(neuron: &Neuron, u: &Value) -> Value {
    let Neuron { alpha, v_th, .. } = *neuron;
    let s = u.clone().greater_equal_scalar(v_th).float().detach();
    // The integral of alpha - alpha^2 |x| over x, up to the end of the triangle.
    let x = (u.clone() - v_th).clamp(-1.0 / alpha, 1.0 / alpha);
    let f: Tensor<4> = x.clone() * alpha - x.clone() * x.abs() * (alpha * alpha / 2.0);
    f.clone() - f.detach() + s
}
