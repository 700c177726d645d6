//! Loss and update on the CPU.

use super::CpuKernels;
use super::norm_lif::single;
use crate::kernel::{Buffer, Loss, Span, Step};
use rayon::prelude::*;

/// Numbers of a piece of an update.
const PIECE: usize = 1 << 14;

impl CpuKernels {
    /// Eq. (11) in f64 per sample, N K numbers only.
    pub(super) fn loss_now(
        &mut self,
        loss: &Loss,
        t: usize,
        logits: Buffer,
        dlogits: Option<Buffer>,
    ) {
        let (n, k) = (loss.samples, loss.classes);
        assert_eq!(
            self.labels.len(),
            n,
            "labels were written for another batch"
        );
        let mut errors = dlogits.map(|b| self.take(b));
        let y = self.rings[logits.0 as usize].plain(t, n * k);
        if self.summed.len() != n * k {
            self.summed.resize(n * k, 0.0);
        }
        if t == 0 {
            self.summed.fill(0.0);
        }
        let labelled = self.labels.iter().filter(|&&l| l != u32::MAX).count();
        let scale = 1.0 / labelled.max(1) as f64;
        let (mut total, mut correct) = (0.0, 0);
        for (row, &label) in self.labels.iter().enumerate() {
            let y = &y[row * k..(row + 1) * k];
            let summed = &mut self.summed[row * k..(row + 1) * k];
            for (sum, y) in summed.iter_mut().zip(y) {
                *sum += y;
            }
            let dy = errors
                .as_mut()
                .map(|e| &mut e.plain_mut(t, n * k)[row * k..(row + 1) * k]);
            if label == u32::MAX {
                if let Some(dy) = dy {
                    dy.fill(0.0);
                }
                continue;
            }
            let label = label as usize;
            total += sample_loss(loss, y, label, scale, dy);
            correct += u64::from(argmax(summed) == label);
        }
        let report = &mut self.report;
        if report.loss.len() <= t {
            report.loss.resize(t + 1, 0.0);
            report.correct.resize(t + 1, 0);
            report.samples.resize(t + 1, 0);
            report.batches.resize(t + 1, 0);
        }
        report.loss[t] += total * scale;
        report.correct[t] += correct;
        report.samples[t] += labelled as u64;
        report.batches[t] += 1;
        // In f32, as everything else: the sum in f64 hides that logits have left all bounds.
        if !single(total).is_finite() {
            self.fault.get_or_insert(t);
        }
        if let Some(buffer) = dlogits {
            self.put(buffer, errors);
        }
    }

    /// Updates weights, from their own gradients unless others are given.
    pub(super) fn update_now(&mut self, span: Span, given: Option<&[f32]>, step: Step) {
        let weights = self.weights[span.range()].par_chunks_mut(PIECE);
        let gradients = given.unwrap_or(&self.gradients[span.range()]);
        let gradients = gradients.par_chunks(PIECE);
        let state = self.state[span.range()].par_chunks_mut(PIECE);
        match step {
            Step::Sgd {
                lr,
                momentum,
                weight_decay,
            } => weights.zip(gradients).zip(state).for_each(|((w, g), v)| {
                for ((w, &g), v) in w.iter_mut().zip(g).zip(v) {
                    *v = momentum * *v + (g + weight_decay * *w);
                    *w -= lr * *v;
                }
            }),
            Step::AdamW {
                lr,
                beta1,
                beta2,
                epsilon,
                weight_decay,
                update,
            } => {
                let second = self.second_state[span.range()].par_chunks_mut(PIECE);
                let power = |beta: f32| {
                    let exponent = i32::try_from(update).unwrap_or(i32::MAX);
                    single(1.0 - f64::from(beta).powi(exponent))
                };
                let (correct1, correct2) = (power(beta1), power(beta2));
                let pieces = weights.zip(gradients).zip(state.zip(second));
                pieces.for_each(|((w, g), (m, v))| {
                    for ((w, &g), (m, v)) in w.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
                        *m = beta1 * *m + (1.0 - beta1) * g;
                        *v = beta2 * *v + (1.0 - beta2) * g * g;
                        let step = (*m / correct1) / ((*v / correct2).sqrt() + epsilon);
                        *w -= lr * (step + weight_decay * *w);
                    }
                });
            }
        }
    }

    /// Adds to a layer's count of spikes.
    pub(super) fn count_spikes(&mut self, layer: usize, spikes: u64, neurons: u64) {
        let report = &mut self.report;
        if report.spikes.len() <= layer {
            report.spikes.resize(layer + 1, 0);
            report.neurons.resize(layer + 1, 0);
        }
        report.spikes[layer] += spikes;
        report.neurons[layer] += neurons;
    }
}

/// The loss of one sample, times its share `scale`, as its gradient is written; returned unscaled.
fn sample_loss(loss: &Loss, y: &[f32], label: usize, scale: f64, dy: Option<&mut [f32]>) -> f64 {
    let k = y.len() as f64;
    let (ce, mse) = (f64::from(loss.ce), f64::from(loss.mse));
    let top = y.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let exp = |v: f32| f64::from(v - top).exp();
    let sum: f64 = y.iter().map(|&v| exp(v)).sum();
    let target = |c: usize| f64::from(u8::from(c == label));
    let squares: f64 = y
        .iter()
        .enumerate()
        .map(|(c, &v)| (f64::from(v) - target(c)).powi(2))
        .sum();
    if let Some(dy) = dy {
        for (c, (dy, &v)) in dy.iter_mut().zip(y).enumerate() {
            let cross = exp(v) / sum - target(c);
            let square = 2.0 * (f64::from(v) - target(c)) / k;
            *dy = single((ce * cross + mse * square) * scale);
        }
    }
    let cross = sum.ln() - f64::from(y[label] - top);
    ce * cross + mse * squares / k
}

/// The first maximum.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}
