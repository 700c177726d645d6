//! Every operation in plain burn tensors: the definition.
//!
//! It runs on any device of burn, the CPU by default. Nothing here is meant to be fast; the other
//! back ends are, and are held to this one by `tests/kernels.rs`, as it is to autodiff by
//! `tests/gradients.rs`.
//!
//! # Layout
//!
//! - `memory`: rings of values, arenas.
//! - `conv`: convolutions and linear layers.
//! - `norm`: batch norm at one time step.
//! - `neuron`: leaky integrate-and-fire, forward and backward.
//! - `norm_lif`: the two, with their sums, over a window.
//! - `counts`: spikes and silent neurons.
//! - `pool`: maximum, average and adaptive average.
//! - `loss`: Eq. (11).
//! - `optimiser`: SGD and `AdamW`.
//! - this file: [`ReferenceKernels`], which fetches, calls one of them, and stores.

mod conv;
mod counts;
mod loss;
mod memory;
mod neuron;
mod norm;
mod norm_lif;
mod optimiser;
mod pool;

use burn::tensor::{Device, Tensor};

use self::counts::Counts;
use self::loss::Labels;
use self::memory::{Memory, Value, dims, from_host, to_host};
use self::optimiser::AdamW;
use self::pool::Tiling;
use super::{
    Arena, ArenaSizes, Buffer, BufferSpec, Conv, Dropout, Errors, ErrorsOut, Kernels, Loss, Norm,
    NormLif, NormLifErrors, Phase, Pool, PoolKind, Repeat, Report, Residual, Span, Step, Window,
    dropout_keeps,
};
use crate::shape::{Join, Shape};

/// The back end in plain burn tensors.
pub struct ReferenceKernels {
    memory: Memory,
    labels: Vec<u32>,
    /// The logits of this batch, summed over its time steps so far.
    logits_so_far: Option<Tensor<2>>,
    fault: Option<usize>,
    counts: Counts,
    /// g of the newest time steps, newest first, that waits for the sums of other ranks.
    waiting: Vec<Value>,
}

impl std::fmt::Debug for ReferenceKernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReferenceKernels")
            .field("device", self.memory.device())
            .finish_non_exhaustive()
    }
}

impl Default for ReferenceKernels {
    fn default() -> Self {
        Self::new()
    }
}

impl ReferenceKernels {
    /// On burn's CPU device.
    pub fn new() -> Self {
        Self::on(Device::flex())
    }

    /// On any device of burn.
    pub fn on(device: Device) -> Self {
        Self {
            memory: Memory::new(device),
            labels: Vec::new(),
            logits_so_far: None,
            fault: None,
            counts: Counts::default(),
            waiting: Vec::new(),
        }
    }

    fn conv_weight(&self, conv: &Conv) -> Tensor<4> {
        let weight = self.memory.get(Arena::Weights, conv.weight);
        weight.reshape([
            conv.output.channels,
            conv.input.channels,
            conv.kernel,
            conv.kernel,
        ])
    }

    /// Hands an error down at each time step that has one.
    fn hand_down(
        &mut self,
        dy: Errors,
        dx: ErrorsOut,
        way_back: impl Fn(&Memory, Value, usize) -> Value,
    ) {
        for t in dy.steps.newest_first() {
            let error = way_back(&self.memory, self.memory.load(dy.buffer, t), t);
            self.memory.deliver(dx, t, error);
        }
    }

    /// Counts a batch at time step t.
    fn count(&mut self, t: usize, loss: f32, correct: u64, samples: usize) {
        let Report {
            loss: losses,
            correct: corrects,
            samples: all_samples,
            batches,
            ..
        } = &mut self.counts.report;
        let steps = losses.len().max(t + 1);
        losses.resize(steps, 0.0);
        for counts in [&mut *corrects, &mut *all_samples, &mut *batches] {
            counts.resize(steps, 0);
        }
        losses[t] += f64::from(loss);
        corrects[t] += correct;
        all_samples[t] += samples as u64;
        batches[t] += 1;
        if !loss.is_finite() {
            self.fault.get_or_insert(t);
        }
    }
}

impl Kernels for ReferenceKernels {
    fn name(&self) -> String {
        let device = format!("{:?}", self.memory.device());
        let device = device.trim_start_matches("Device<").trim_end_matches('>');
        format!("reference (burn, {device})")
    }

    fn bytes(&self, spec: &BufferSpec) -> u64 {
        (Memory::slots(spec) * spec.elements() * size_of::<f32>()) as u64
    }

    fn allocate(&mut self, spec: &BufferSpec) -> Buffer {
        self.memory.allocate(spec)
    }

    fn allocate_arenas(&mut self, sizes: ArenaSizes) {
        self.memory.allocate_arenas(sizes);
    }

    fn run(&mut self, body: &mut (dyn FnMut(&mut dyn Kernels) + Send)) {
        body(self);
    }

    fn repeat(
        &mut self,
        _: Repeat,
        _: usize,
        _: Option<Step>,
        body: &mut dyn FnMut(&mut dyn Kernels),
    ) {
        body(self);
    }

    fn in_between(&mut self, call: &mut dyn FnMut(&mut dyn Kernels)) {
        call(self);
    }

    fn write(&mut self, buffer: Buffer, t: usize, values: &[f32]) {
        self.memory.write(buffer, t, values);
    }

    fn read(&mut self, buffer: Buffer, t: usize, values: &mut [f32]) {
        values.copy_from_slice(&to_host(self.memory.load(buffer, t)));
    }

    fn write_arena(&mut self, arena: Arena, offset: usize, values: &[f32]) {
        let len = values.len();
        let values = from_host(values, [len], self.memory.device());
        self.memory.set(arena, Span { offset, len }, values);
    }

    fn read_arena(&mut self, arena: Arena, offset: usize, values: &mut [f32]) {
        let len = values.len();
        values.copy_from_slice(&to_host(self.memory.get(arena, Span { offset, len })));
    }

    fn conv_forward(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer) {
        let bias = conv.bias.map(|bias| self.memory.get(Arena::Weights, bias));
        let x = self.memory.load(x, t);
        let y_t = conv::forward(conv, x, self.conv_weight(conv), bias);
        self.memory.store(y, t, y_t);
    }

    fn conv_data_gradient(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut) {
        let weight = self.conv_weight(conv);
        self.hand_down(dy, dx, |_, dy, _| {
            conv::data_gradient(conv, dy, weight.clone())
        });
    }

    fn conv_weight_gradient(&mut self, conv: &Conv, x: Buffer, dy: Errors) {
        // Algorithm 1, line 18: gradients are summed over the window.
        let (mut dw, mut db) = (None, None);
        for t in dy.steps.newest_first() {
            let dy_t = self.memory.load(dy.buffer, t);
            let dw_t = conv::weight_gradient(conv, self.memory.load(x, t), dy_t.clone());
            dw = Some(plus(dw, dw_t));
            db = Some(plus(db, conv::bias_gradient(dy_t)));
        }
        let (dw, db) = dw.zip(db).expect("a window has a time step");
        self.memory
            .set(Arena::Gradients, conv.weight, dw.flatten(0, 3));
        if let Some(bias) = conv.bias {
            self.memory.set(Arena::Gradients, bias, db);
        }
    }

    fn norm_moments(&mut self, layer: &NormLif, t: usize) {
        let norm = layer.norm.as_ref().expect("only a norm has moments");
        let z = self.memory.load(layer.z, t);
        let (mean, variance) = norm::statistics(&z);
        norm_lif::share(&mut self.memory, norm, mean, variance);
    }

    fn norm_lif_forward(&mut self, layer: &NormLif, t: usize, phase: Phase) {
        if !norm_lif::forward(&mut self.memory, &mut self.counts, layer, t, phase) {
            self.fault.get_or_insert(t);
        }
    }

    fn apply_moments(&mut self, norm: &Norm, count: u64) {
        norm_lif::apply(&mut self.memory, norm, count);
    }

    fn norm_lif_backward(&mut self, layer: &NormLif, window: Window, errors: &NormLifErrors) {
        self.waiting = norm_lif::backward(&mut self.memory, layer, window, errors);
    }

    fn norm_backward(&mut self, layer: &NormLif, steps: Window, dz: ErrorsOut) {
        let waiting = std::mem::take(&mut self.waiting);
        assert_eq!(waiting.len(), steps.len, "norm_lif_backward comes before");
        for (t, g) in steps.newest_first().zip(waiting) {
            norm_lif::finish(&mut self.memory, layer, &g, t, dz);
        }
    }

    fn pool_forward(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer) {
        let x = self.memory.load(x, t);
        let y_t = match pool.kind {
            PoolKind::Max { argmax, .. } => {
                let (best, position) = pool::max_forward(tiling(pool), x);
                self.memory.store(argmax, t, position);
                best
            }
            PoolKind::Average { .. } => pool::average_forward(tiling(pool), &x),
            PoolKind::Adaptive => pool::adaptive_forward(pool, &x),
        };
        self.memory.store(y, t, y_t);
    }

    fn pool_backward(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut) {
        self.hand_down(dy, dx, |memory, dy, t| match pool.kind {
            PoolKind::Max { argmax, .. } => {
                let argmax = memory.load(argmax, t);
                pool::max_backward(pool, tiling(pool), &dy, &argmax)
            }
            PoolKind::Average { .. } => pool::average_backward(pool, tiling(pool), dy),
            PoolKind::Adaptive => pool::adaptive_backward(pool, &dy),
        });
    }

    fn flatten_forward(&mut self, samples: usize, input: Shape, t: usize, x: Buffer, y: Buffer) {
        let x_nchw = self.memory.load(x, t).permute([0, 3, 1, 2]);
        let y_t = x_nchw.reshape([samples, 1, 1, input.elements()]);
        self.memory.store(y, t, y_t);
    }

    fn flatten_backward(&mut self, samples: usize, input: Shape, dy: Errors, dx: ErrorsOut) {
        let [n, h, w, c] = dims(samples, input);
        self.hand_down(dy, dx, |_, dy, _| {
            dy.reshape([n, c, h, w]).permute([0, 2, 3, 1])
        });
    }

    fn dropout_mask(&mut self, dropout: &Dropout, t: usize, key: u64) {
        let elements = dropout.samples * dropout.shape.elements();
        let first = dropout.first_element();
        let keeps = |index| dropout_keeps(key, first + index as u64, dropout.p);
        let factor = |index| if keeps(index) { dropout.scale } else { 0.0 };
        let mask: Vec<f32> = (0..elements).map(factor).collect();
        self.memory.write(dropout.mask, t, &mask);
    }

    fn dropout_forward(&mut self, d: &Dropout, t: usize, phase: Phase, x: Buffer, y: Buffer) {
        let x = self.memory.load(x, t);
        let y_t = match phase {
            Phase::Train => x * self.memory.load(d.mask, t),
            Phase::Evaluate => x,
        };
        self.memory.store(y, t, y_t);
    }

    fn dropout_backward(&mut self, dropout: &Dropout, dy: Errors, dx: ErrorsOut) {
        let mask = dropout.mask;
        self.hand_down(dy, dx, |memory, dy, t| dy * memory.load(mask, t));
    }

    fn residual_forward(&mut self, residual: &Residual, t: usize) {
        let a = self.memory.load(residual.a, t);
        let b = self.memory.load(residual.b, t);
        let y = match residual.join {
            Join::Add => a + b,
            Join::And => a * b,
            Join::Iand => (-a + 1.0) * b,
        };
        self.memory.store(residual.y, t, y);
    }

    fn residual_backward(
        &mut self,
        residual: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    ) {
        let Residual { join, a, b, .. } = *residual;
        if let Some(da) = da {
            self.hand_down(dy, da, |memory, g, t| match join {
                Join::Add => g,
                Join::And => g * memory.load(b, t),
                Join::Iand => -g * memory.load(b, t),
            });
        }
        if let Some(db) = db {
            self.hand_down(dy, db, |memory, g, t| match join {
                Join::Add => g,
                Join::And => g * memory.load(a, t),
                Join::Iand => g * (-memory.load(a, t) + 1.0),
            });
        }
    }

    fn write_labels(&mut self, labels: &[u32]) {
        self.labels = labels.to_vec();
    }

    fn loss(&mut self, loss: &Loss, t: usize, logits: Buffer, dlogits: Option<Buffer>) {
        let y = self.memory.load(logits, t);
        let y = y.reshape([loss.samples, loss.classes]);
        let labels = Labels::new(loss, &self.labels, self.memory.device());
        let (value, dy) = loss::loss(loss, &y, &labels);
        if let Some(dlogits) = dlogits {
            let dy = dy.reshape([loss.samples, 1, 1, loss.classes]);
            self.memory.store(dlogits, t, dy);
        }
        let so_far = if t == 0 {
            None
        } else {
            self.logits_so_far.take()
        };
        let sum = plus(so_far, y);
        let correct = loss::num_correct(sum.clone(), &self.labels);
        self.logits_so_far = Some(sum);
        self.count(t, value, correct, labels.count);
    }

    fn update(&mut self, span: Span, step: Step) {
        let p = self.memory.get(Arena::Weights, span);
        let g = self.memory.get(Arena::Gradients, span);
        let state = self.memory.get(Arena::State, span);
        let (p, state) = match step {
            Step::Sgd {
                lr,
                momentum,
                weight_decay,
            } => optimiser::sgd(p, g, state, [lr, momentum, weight_decay]),
            Step::AdamW {
                lr,
                beta1,
                beta2,
                epsilon,
                weight_decay,
                update,
            } => {
                let settings = AdamW {
                    lr,
                    beta1,
                    beta2,
                    epsilon,
                    weight_decay,
                    update,
                };
                let second = self.memory.get(Arena::SecondState, span);
                let [p, first, second] = settings.update(p, g, state, second);
                self.memory.set(Arena::SecondState, span, second);
                (p, first)
            }
        };
        self.memory.set(Arena::State, span, state);
        self.memory.set(Arena::Weights, span, p);
    }

    fn zero(&mut self, buffer: Buffer, samples: usize, shape: Shape, t: usize) {
        let zeros = Tensor::zeros(dims(samples, shape), self.memory.device());
        self.memory.store(buffer, t, zeros);
    }

    fn poll_fault(&mut self) -> Option<usize> {
        self.fault
    }

    fn is_finite(&mut self, buffer: Buffer, t: usize) -> bool {
        self.memory.load(buffer, t).is_finite().all().into_scalar()
    }

    fn arena_is_finite(&mut self, arena: Arena, span: Span) -> bool {
        self.memory.get(arena, span).is_finite().all().into_scalar()
    }

    fn take_report(&mut self) -> Report {
        self.fault = None;
        self.counts.take()
    }
}

fn plus<const D: usize>(sum: Option<Tensor<D>>, term: Tensor<D>) -> Tensor<D> {
    match sum {
        Some(sum) => sum + term,
        None => term,
    }
}

fn tiling(pool: &Pool) -> Tiling {
    let (kernel, stride, padding) = match pool.kind {
        PoolKind::Max {
            kernel,
            stride,
            padding,
            ..
        } => (kernel, stride, padding),
        PoolKind::Average { kernel } => (kernel, kernel, 0),
        PoolKind::Adaptive => panic!("adaptive pools have bins, not windows"),
    };
    Tiling {
        kernel,
        stride,
        padding,
        output: pool.output,
    }
}
