//! A whole network in the oracle's tensors, and its gradients through a window by autodiff.
//!
//! With frozen weights, an older time step that is run again is the one that was saved, so the
//! plain form needs no memory: Algorithm 1 is autodiff of `L_t` where nothing passes into the
//! newest k time steps.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::activation::log_softmax;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, s};
use synfire::graph::{Graph, Op, ValueId};
use synfire::kernel::{Neuron, Reset};
use synfire::shape::{Join, Shape};

use crate::autodiff::{Value, constant, gradient, leaf, numbers};
use crate::cases::norm_lif::autodiff::{charged, normalised, spikes};
use crate::cases::pool::{bins, first_maximum};
use crate::training::{Frames, Setup, Tensors};

/// What a loss and its gradients are taken of.
#[derive(Debug)]
pub struct Oracle<'a> {
    /// The network.
    pub graph: &'a Graph,
    /// Neurons and loss.
    pub setup: &'a Setup,
    /// All parameters.
    pub parameters: &'a Tensors,
    /// The batch.
    pub frames: &'a Frames,
    /// At each time step, the factors of each dropout layer.
    pub masks: &'a [Tensors],
}

/// What the oracle says.
#[derive(Debug)]
pub struct Told {
    /// The loss of each time step that counts.
    pub losses: Vec<f32>,
    /// The gradient of their sum.
    pub gradients: Tensors,
}

/// u and s of a layer of neurons.
type States = BTreeMap<usize, (Value, Value)>;

impl Oracle<'_> {
    /// The gradient of the summed losses of the time steps `losses`, where u and s do not pass from
    /// any time step before `oldest` to it or later ones.
    ///
    /// # Panics
    /// If there is no time step.
    pub fn gradients(&self, oldest: usize, losses: Range<usize>) -> Told {
        let leaves = self.leaves();
        let mut states = States::new();
        let (mut total, mut told): (Option<Tensor<1>>, Vec<f32>) = (None, Vec::new());
        for t in 0..losses.end {
            if t == oldest {
                let detach = |(u, s): &mut (Value, Value)| {
                    (*u, *s) = (u.clone().detach(), s.clone().detach());
                };
                states.values_mut().for_each(detach);
            }
            let logits = self.forward(&leaves, t, &mut states);
            if losses.contains(&t) {
                let loss = self.loss(logits);
                told.extend(numbers(loss.clone()));
                total = Some(match total {
                    Some(total) => total + loss,
                    None => loss,
                });
            }
        }
        let gradients = total.expect("some time step counts").backward();
        let of = |(name, leaf): (&String, &Value)| (name.clone(), gradient(leaf, &gradients));
        Told {
            losses: told,
            gradients: leaves.iter().map(of).collect(),
        }
    }

    /// OIHW; [1, 1, out, in]; [1, 1, 1, channels].
    fn leaves(&self) -> BTreeMap<String, Value> {
        let parameters = self.graph.parameters();
        let make = |name: &String, shape: &[usize]| {
            let mut dims = [1; 4];
            dims[4 - shape.len()..].copy_from_slice(shape);
            leaf(&self.parameters[name], dims)
        };
        let all = parameters.iter();
        all.map(|p| (p.name.clone(), make(&p.name, &p.shape)))
            .collect()
    }

    fn dims(&self, value: ValueId) -> [usize; 4] {
        let Shape {
            height,
            width,
            channels,
        } = self.graph.value(value).shape;
        [self.setup.samples, height, width, channels]
    }

    /// The logits of time step t, `[N, 1, 1, K]`.
    fn forward(&self, leaves: &BTreeMap<String, Value>, t: usize, states: &mut States) -> Value {
        let dims = self.dims(self.graph.input());
        let len: usize = dims.iter().product();
        let x = &self.frames.frames[t * len..(t + 1) * len];
        let mut values = vec![constant(x, dims)];
        for (index, node) in self.graph.nodes().iter().enumerate() {
            let x = values[node.inputs[0].0].clone();
            let parameter = |part: &str| leaves.get(&format!("{}.{part}", node.name)).cloned();
            let weight = || parameter("weight").expect("it has a weight");
            let y = match node.op {
                Op::Conv {
                    stride, padding, ..
                } => {
                    let bias = parameter("bias").map(|b| b.reshape([-1]));
                    let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
                    let x_nchw = x.permute([0, 3, 1, 2]);
                    conv2d(x_nchw, weight(), bias, options).permute([0, 2, 3, 1])
                }
                Op::Linear { outputs } => {
                    let [n, _, _, features] = x.dims();
                    let weight = weight().reshape([outputs, features]);
                    let y = x.reshape([n, features]).matmul(weight.transpose());
                    let bias = parameter("bias").expect("a linear layer has a bias");
                    y.reshape([n, 1, 1, outputs]) + bias
                }
                Op::BatchNorm => {
                    normalised(x) * weight() + parameter("bias").expect("a norm has a shift")
                }
                Op::Lif => fire(&self.setup.neuron, index, x, states),
                Op::MaxPool {
                    kernel,
                    stride,
                    padding,
                } => first_maximum(&x, kernel, stride, padding),
                Op::AvgPool { kernel } => average(x, kernel),
                Op::AdaptiveAvgPool { side } => bins(&x, side),
                Op::Flatten => {
                    let dims = self.dims(node.output);
                    x.permute([0, 3, 1, 2]).reshape(dims)
                }
                Op::Dropout { .. } => {
                    let mask = constant(&self.masks[t][&node.name], x.dims());
                    x * mask
                }
                Op::Residual(join) => {
                    let shortcut = values[node.inputs[1].0].clone();
                    match join {
                        Join::Add => x + shortcut,
                        Join::And => x * shortcut,
                        Join::Iand => (x.ones_like() - x) * shortcut,
                    }
                }
            };
            assert_eq!(y.dims(), self.dims(node.output), "{}", node.name);
            values.push(y);
        }
        values[self.graph.output().0].clone()
    }

    /// Eq. (11), of labelled samples: every sample has a label here.
    fn loss(&self, logits: Value) -> Tensor<1> {
        let [n, _, _, k] = logits.dims();
        let y = logits.reshape([n, k]);
        let mut one_hot = vec![0.0; n * k];
        for (sample, &label) in self.frames.labels.iter().enumerate() {
            one_hot[sample * k + label as usize] = 1.0;
        }
        let e: Tensor<2> = constant(&one_hot, [n, k]);
        let (ce, mse) = self.setup.loss;
        let cross = -(e.clone() * log_softmax(y.clone(), 1)).sum() / n as f32;
        let square = (y - e).square().mean();
        cross * ce + square * mse
    }
}

/// The spikes of a layer of neurons; its states go on.
fn fire(neuron: &Neuron, layer: usize, x: Value, states: &mut States) -> Value {
    let u = match states.remove(&layer) {
        None => x, // u = s = 0 before.
        Some((u, s)) => {
            let s = if neuron.detach_reset { s.detach() } else { s };
            charged(neuron, u, s) + x
        }
    };
    let s = spikes(neuron, &u);
    states.insert(layer, (u, s.clone()));
    s
}

fn average(x: Value, kernel: usize) -> Value {
    let [n, h, w, c] = x.dims();
    let (rows, columns) = (h / kernel, w / kernel);
    let whole = x.slice(s![.., 0..rows * kernel, 0..columns * kernel, ..]);
    let windows = whole.reshape([n, rows, kernel, columns, kernel, c]);
    windows.mean_dims(&[2, 4]).reshape([n, rows, columns, c])
}

/// Every reset, attached and detached.
pub fn resets() -> Vec<(Reset, bool)> {
    let all = [Reset::Hard, Reset::Soft, Reset::None];
    let both = all.map(|reset| [(reset, false), (reset, true)]);
    both.into_iter().flatten().collect()
}
