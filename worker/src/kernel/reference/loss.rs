//! The loss of one time step (Eq. 11) over the labelled samples of a batch.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor};

use super::memory::{from_host, to_host};
use crate::kernel::Loss;

/// The labels of a batch as tensors.
pub(super) struct Labels {
    /// Number of labelled samples.
    pub(super) count: usize,
    /// One-hot labels e, `[N, K]`; a row of zeros for a sample without.
    one_hot: Tensor<2>,
    /// 1 for samples with a label, `[N, 1]`.
    labelled: Tensor<2>,
}

impl Labels {
    pub(super) fn new(loss: &Loss, labels: &[u32], device: &Device) -> Self {
        assert_eq!(labels.len(), loss.samples, "labels of the batch");
        let mut one_hot = vec![0.0; loss.samples * loss.classes];
        let mut labelled = vec![0.0; loss.samples];
        for (n, label) in class_indices(labels) {
            assert!(
                label < loss.classes,
                "label {label} of {} classes",
                loss.classes
            );
            one_hot[n * loss.classes + label] = 1.0;
            labelled[n] = 1.0;
        }
        Self {
            count: class_indices(labels).count(),
            one_hot: from_host(&one_hot, [loss.samples, loss.classes], device),
            labelled: from_host(&labelled, [loss.samples, 1], device),
        }
    }
}

/// The samples that have a label, with it.
fn class_indices(labels: &[u32]) -> impl Iterator<Item = (usize, usize)> {
    let known = labels.iter().enumerate().filter(|(_, l)| **l != u32::MAX);
    known.map(|(n, label)| (n, *label as usize))
}

/// `L_t` and its gradient by the logits y, both 0 where nothing is labelled.
///
/// # Shapes
/// `y`: `[N, K]`, like the gradient.
pub(super) fn loss(loss: &Loss, y: &Tensor<2>, labels: &Labels) -> (f32, Tensor<2>) {
    let n = labels.count.max(1) as f32;
    let k = loss.classes as f32;
    let e = labels.one_hot.clone();
    let log_p = log_softmax(y.clone(), 1);
    let off = (y.clone() - e.clone()) * labels.labelled.clone();

    let ce = -(e.clone() * log_p.clone()).sum() / n;
    let mse = off.clone().square().sum() / (n * k);
    // Eq. (11). Squares overflow long before the cross-entropy does: where they do not count, they
    // must not make it 0 times infinity.
    let value = if loss.mse == 0.0 {
        ce * loss.ce
    } else {
        ce * loss.ce + mse * loss.mse
    };

    let dce = (log_p.exp() - e) * labels.labelled.clone() / n;
    let dmse = off * 2.0 / (n * k);
    (value.into_scalar(), dce * loss.ce + dmse * loss.mse)
}

/// How many labelled samples have the largest of `[N, K]` logits, the first of equals, at their
/// label.
pub(super) fn num_correct(logits: Tensor<2>, labels: &[u32]) -> u64 {
    let [_, classes] = logits.dims();
    let logits = to_host(logits);
    let right = class_indices(labels).filter(|&(n, label)| {
        let row = &logits[n * classes..][..classes];
        let best = (1..classes).fold(0, |best, k| if row[k] > row[best] { k } else { best });
        best == label
    });
    right.count() as u64
}
