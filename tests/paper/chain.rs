//! Algorithm 1 for a chain of single neurons, in f64, line by line: what the tests of sentences are
//! computed with by hand.
//!
//! `x -> w1 x + b1 -> neuron 1 -> w2 s + b2 -> neuron 2 -> two logits w3 s + b3`, cross-entropy,
//! one sample of class 1.

use synfire::graph::{Graph, Op, ValueId};
use synfire::kernel::{Kernels, Neuron, Reset};
use synfire::learn::Algorithm;
use synfire::shape::Shape;
use synfire_tests::training::{Frames, PAPER, Seen, Setup, Training};

/// The chain's weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    /// Of the input, and its shift.
    pub(super) first: [f64; 2],
    /// Of neuron 1's spikes, and the shift.
    pub(super) second: [f64; 2],
    /// Of neuron 2's spikes, at both logits.
    pub(super) readout: [f64; 2],
    /// The shifts of both logits.
    pub(super) shifts: [f64; 2],
}

/// A chain and what is shown to it.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The weights at the start.
    pub(super) weights: Weights,
    /// The neuron.
    pub(super) neuron: Neuron,
    /// The input of each time step.
    pub(super) inputs: Vec<f64>,
    /// The learning rate.
    pub(super) lr: f64,
}

/// What a time step of Algorithm 1 makes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Membrane potentials.
    pub(super) u: [f64; 2],
    /// Spikes.
    pub(super) s: [f64; 2],
    /// The gradients.
    pub(super) gradients: Weights,
    /// The weights after the update.
    pub(super) weights: Weights,
}

impl Chain {
    /// The paper's neuron.
    pub(super) fn new(weights: Weights, inputs: &[f64]) -> Self {
        Self {
            weights,
            neuron: PAPER,
            inputs: inputs.to_vec(),
            lr: 0.0,
        }
    }

    /// Algorithm 1 with a window of k.
    pub(super) fn by_hand(&self, window: usize) -> Vec<Row> {
        let neuron = &self.neuron;
        let mut w = self.weights;
        let mut rows: Vec<Row> = Vec::new();
        for (t, x) in self.inputs.iter().enumerate() {
            let before = rows.last().map_or(([0.0; 2], [0.0; 2]), |r| (r.u, r.s));
            // Lines 3 to 8: layer l reads s_t of the layer below.
            let (mut u, mut s) = ([0.0; 2], [0.0; 2]);
            for (l, [weight, shift]) in [w.first, w.second].into_iter().enumerate() {
                let input = if l == 0 { *x } else { s[0] };
                u[l] = rest(neuron, before.0[l], before.1[l]) + weight * input + shift;
                s[l] = f64::from(u8::from(u[l] >= f64::from(neuron.v_th)));
            }
            let gradients = Weights {
                first: [0.0; 2],
                second: [0.0; 2],
                readout: [0.0; 2],
                shifts: [0.0; 2],
            };
            let weights = w;
            rows.push(Row {
                u,
                s,
                gradients,
                weights,
            });
            let gradients = self.backward(&rows, &w, window.min(t + 1));
            // Line 21.
            let update = |w: [f64; 2], g: [f64; 2]| [w[0] - self.lr * g[0], w[1] - self.lr * g[1]];
            w = Weights {
                first: update(w.first, gradients.first),
                second: update(w.second, gradients.second),
                readout: update(w.readout, gradients.readout),
                shifts: update(w.shifts, gradients.shifts),
            };
            rows[t].gradients = gradients;
            rows[t].weights = w;
        }
        rows
    }

    /// Lines 10 to 20 for the newest `len` of `rows`, with the weights `w` of now.
    fn backward(&self, rows: &[Row], w: &Weights, len: usize) -> Weights {
        let (neuron, t) = (&self.neuron, rows.len() - 1);
        // Line 11: softmax minus one-hot; class 1 has the label.
        let [y0, y1] = [0, 1].map(|c| w.readout[c] * rows[t].s[1] + w.shifts[c]);
        let p0 = 1.0 / (1.0 + (y1 - y0).exp());
        let dy = [p0, -p0];
        let mut g = Weights {
            first: [0.0; 2],
            second: [0.0; 2],
            readout: dy.map(|dy| dy * rows[t].s[1]),
            shifts: dy,
        };
        let mut delta = [0.0; 2];
        for j in (t + 1 - len..=t).rev() {
            let Row { u, s, .. } = rows[j];
            // Line 15: no error at the logits of older time steps.
            let from_readout = if j == t {
                dy[0] * w.readout[0] + dy[1] * w.readout[1]
            } else {
                0.0
            };
            // Line 17.
            for l in [1, 0] {
                let above = if l == 1 {
                    from_readout
                } else {
                    delta[1] * w.second[0]
                };
                let carried = if j == t {
                    0.0
                } else {
                    delta[l] * jacobian(neuron, u[l], s[l])
                };
                delta[l] = above * surrogate(neuron, u[l]) + carried;
            }
            // Lines 18 and 19: summed, from the inputs that were saved.
            g.second[0] += delta[1] * s[0];
            g.second[1] += delta[1];
            g.first[0] += delta[0] * self.inputs[j];
            g.first[1] += delta[0];
        }
        g
    }

    /// The same on a back end.
    pub(super) fn on(&self, kernels: Box<dyn Kernels>, algorithm: &mut dyn Algorithm) -> Seen {
        let num_time_steps = self.inputs.len();
        let setup = Setup {
            neuron: self.neuron,
            sgd: [self.lr, 0.0, 0.0],
            ..Setup::new(1, algorithm.window(num_time_steps))
        };
        let mut training = Training::new(kernels, &graph(), &setup);
        let pair = |[weight, shift]: [f64; 2]| [narrow(weight), narrow(shift)];
        for (layer, values) in [("fc1", self.weights.first), ("fc2", self.weights.second)] {
            let [weight, shift] = pair(values);
            training.set(&format!("{layer}.weight"), &[weight]);
            training.set(&format!("{layer}.bias"), &[shift]);
        }
        training.set("fc3.weight", &pair(self.weights.readout));
        training.set("fc3.bias", &pair(self.weights.shifts));
        let frames = Frames {
            frames: self.inputs.iter().map(|x| narrow(*x)).collect(),
            labels: vec![1],
            num_time_steps,
        };
        let (seen, result) = training.learn(algorithm, &frames, 0);
        assert_eq!(result, Ok(()));
        seen
    }
}

/// The chain as a graph.
pub(super) fn graph() -> Graph {
    let mut graph = Graph::new(Shape::vector(1));
    let mut x = ValueId(0);
    let mut add = |name: &str, op| {
        x = graph.add(name, op, &[x]).expect("it fits");
        x
    };
    for layer in ["1", "2"] {
        add(&format!("fc{layer}"), Op::Linear { outputs: 1 });
        add(&format!("sn{layer}"), Op::Lif);
    }
    let logits = add("fc3", Op::Linear { outputs: 2 });
    graph.finish(logits).expect("it is whole")
}

/// What is left of u before the input of the next time step, Eq. (2).
fn rest(neuron: &Neuron, u: f64, s: f64) -> f64 {
    let left = match neuron.reset {
        Reset::Hard => u * (1.0 - s),
        Reset::Soft => u - f64::from(neuron.v_th) * s,
        Reset::None => u,
    };
    left / f64::from(neuron.tau_m)
}

/// Eq. (4), with the absolute value.
pub(super) fn surrogate(neuron: &Neuron, u: f64) -> f64 {
    let alpha = f64::from(neuron.alpha);
    (alpha - alpha * alpha * (u - f64::from(neuron.v_th)).abs()).max(0.0)
}

/// `du_{t+1}/du_t`.
fn jacobian(neuron: &Neuron, u: f64, s: f64) -> f64 {
    let h = if neuron.detach_reset {
        0.0
    } else {
        surrogate(neuron, u)
    };
    let inner = match neuron.reset {
        Reset::Hard => 1.0 - s - u * h,
        Reset::Soft => 1.0 - f64::from(neuron.v_th) * h,
        Reset::None => 1.0,
    };
    inner / f64::from(neuron.tau_m)
}

#[expect(clippy::cast_possible_truncation, reason = "the engine has f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}
