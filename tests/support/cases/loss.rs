//! The loss and what is counted beside it.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use synfire::kernel::Loss;
use synfire::shape::{Content, Shape};

use crate::autodiff::{constant, gradient, leaf, numbers};
use crate::outcome::{Outcome, Tolerance};
use crate::random::{Random, Series};
use crate::rig::{Case, Rig, at, trimmed};

/// The loss of some time steps of some batches.
#[derive(Clone, Copy, Debug)]
pub struct LossCase {
    /// The loss.
    pub loss: Loss,
    /// How many samples in a hundred have no label.
    pub unlabelled: usize,
    /// Time steps.
    pub num_steps: usize,
    /// What logits are multiplied by: large ones overflow a careless exponential.
    pub scale: f32,
    /// Whether the gradient is wanted.
    pub gradient: bool,
}

/// Batches of a case.
const BATCHES: u64 = 2;

impl LossCase {
    /// Labels and logits of a batch.
    fn data(&self, batch: u64) -> (Vec<u32>, Series) {
        let Loss {
            samples, classes, ..
        } = self.loss;
        let mut random = Random::new(40 + batch);
        let mut label = || {
            let class = u32::try_from(random.below(classes)).expect("few classes");
            if random.below(100) < self.unlabelled {
                u32::MAX
            } else {
                class
            }
        };
        let labels = (0..samples).map(|_| label()).collect();
        let mut logits = random.normal_series(self.num_steps, samples * classes);
        logits.iter_mut().flatten().for_each(|y| *y *= self.scale);
        // Equal logits: the first counts as the largest.
        if let Some(first) = logits.first_mut() {
            first[..classes].fill(0.5);
        }
        (labels, logits)
    }

    /// What autodiff says, of the labelled rows alone.
    pub fn autodiff(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let mut losses = vec![0.0; self.num_steps];
        for batch in 0..BATCHES {
            let (labels, logits) = self.data(batch);
            for t in 0..self.num_steps {
                let (loss, dy) = self.loss_of_labelled(&labels, &logits[t]);
                losses[t] += loss;
                if self.gradient {
                    let name = at(&format!("batch {batch} dlogits"), t);
                    outcome.note(name, Tolerance::Gradient, dy);
                }
            }
        }
        outcome.note("report loss", Tolerance::Forward, trimmed(losses));
        outcome
    }

    /// What is counted, by plain loops.
    pub fn loops(&self) -> Outcome {
        let Loss {
            samples, classes, ..
        } = self.loss;
        let mut correct = vec![0.0; self.num_steps];
        let mut num_labelled = vec![0.0; self.num_steps];
        for batch in 0..BATCHES {
            let (labels, logits) = self.data(batch);
            let mut sums = vec![0.0; samples * classes];
            for (t, logits) in logits.iter().enumerate() {
                sums.iter_mut().zip(logits).for_each(|(sum, y)| *sum += y);
                for (label, row) in labels.iter().zip(sums.chunks(classes)) {
                    if *label == u32::MAX {
                        continue;
                    }
                    num_labelled[t] += 1.0;
                    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let first = row.iter().position(|y| y.to_bits() == largest.to_bits());
                    correct[t] += f32::from(first == Some(*label as usize));
                }
            }
        }
        let mut outcome = Outcome::default();
        let batches = vec![BATCHES as f32; self.num_steps];
        for (name, counts) in [
            ("report correct", correct),
            ("report samples", num_labelled),
            ("report batches", batches),
            ("empty report batches", Vec::new()),
        ] {
            outcome.note(name, Tolerance::Exact, trimmed(counts));
        }
        outcome
    }

    fn loss_of_labelled(&self, labels: &[u32], logits: &[f32]) -> (f32, Vec<f32>) {
        let Loss {
            samples,
            classes,
            ce,
            mse,
        } = self.loss;
        let y = leaf(logits, [samples, classes]);
        let rows: Vec<usize> = (0..samples).filter(|n| labels[*n] != u32::MAX).collect();
        let Some(num_rows) = Some(rows.len()).filter(|n| *n > 0) else {
            return (0.0, vec![0.0; logits.len()]);
        };
        let mut one_hot = vec![0.0; num_rows * classes];
        for (row, n) in rows.iter().enumerate() {
            one_hot[row * classes + labels[*n] as usize] = 1.0;
        }
        let e = constant(&one_hot, [num_rows, classes]);
        let of_row = |n: &usize| y.clone().narrow(0, *n, 1);
        let y_labelled = Tensor::cat(rows.iter().map(of_row).collect(), 0);
        let log_p = log_softmax(y_labelled.clone(), 1);
        let cross_entropy = -(log_p * e.clone()).sum_dim(1).mean();
        let squared = (y_labelled - e).square().mean();
        let loss = cross_entropy * ce + squared * mse;
        let gradients = loss.backward();
        (numbers(loss)[0], gradient(&y, &gradients))
    }
}

impl Case for LossCase {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn run(&self, rig: &mut Rig) {
        let Loss {
            samples, classes, ..
        } = self.loss;
        let (shape, elements) = (Shape::vector(classes), samples * classes);
        rig.allocate_arenas();
        let logits = rig.plain(samples, shape, Content::Real, 1);
        let dlogits = rig.plain(samples, shape, Content::Real, 2);
        for batch in 0..BATCHES {
            let (labels, values) = self.data(batch);
            rig.kernels.write_labels(&labels);
            for (t, y) in values.iter().enumerate() {
                rig.kernels.write(logits, t, y);
                let dlogits = self.gradient.then_some(dlogits);
                rig.kernels.loss(&self.loss, t, logits, dlogits);
                if let Some(dlogits) = dlogits {
                    let name = format!("batch {batch} dlogits");
                    rig.note(&name, Tolerance::Gradient, dlogits, t, elements);
                }
            }
        }
        rig.note_report("report");
        rig.note_report("empty report");
    }
}

/// The three losses (paper, `ce`, `ce+mse`) and the squared error alone; all, some and no labels.
pub fn all() -> Vec<LossCase> {
    let mut cases = Vec::new();
    for [ce, mse] in [[0.95, 0.05], [1.0, 0.0], [1.0, 0.05], [0.0, 1.0]] {
        for (samples, classes) in [(1, 2), (3, 10), (17, 11), (5, 100), (2, 1000)] {
            for (unlabelled, scale) in [(0, 1.0), (40, 1.0), (100, 1.0), (0, 50.0)] {
                cases.push(LossCase {
                    loss: Loss {
                        samples,
                        classes,
                        ce,
                        mse,
                    },
                    unlabelled,
                    num_steps: 3,
                    scale,
                    gradient: unlabelled != 40 || samples != 5,
                });
            }
        }
    }
    cases
}
