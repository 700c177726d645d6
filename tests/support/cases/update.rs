//! SGD and `AdamW`.

use synfire::kernel::{Arena, Span, Step};

use crate::outcome::{Outcome, Tolerance};
use crate::random::Random;
use crate::rig::{Case, Rig};

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimiser {
    /// SGD with momentum.
    Sgd,
    /// `AdamW`.
    AdamW,
}

/// Some updates of one range of the arenas; its neighbours must stay as they are.
#[derive(Clone, Copy, Debug)]
pub struct UpdateCase {
    /// Which optimiser.
    pub optimiser: Optimiser,
    /// Numbers in the range.
    pub len: usize,
    /// The weight decay.
    pub weight_decay: f32,
}

const UPDATES: u64 = 5;
const LR: f32 = 0.05;
const BETAS: [f32; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;
const NEIGHBOURS: usize = 16;

impl UpdateCase {
    fn step(&self, update: u64) -> Step {
        let weight_decay = self.weight_decay;
        match self.optimiser {
            Optimiser::Sgd => Step::Sgd {
                lr: LR,
                momentum: BETAS[0],
                weight_decay,
            },
            Optimiser::AdamW => Step::AdamW {
                lr: LR,
                beta1: BETAS[0],
                beta2: BETAS[1],
                epsilon: EPSILON,
                weight_decay,
                update,
            },
        }
    }

    /// Weights, then the gradients of each update.
    fn data(&self) -> Vec<Vec<f32>> {
        Random::new(51).normal_series(1 + usize::try_from(UPDATES).expect("few"), self.len)
    }

    /// What plain f64 loops say.
    pub fn loops(&self) -> Outcome {
        let data = self.data();
        let mut p: Vec<f64> = data[0].iter().map(|p| f64::from(*p)).collect();
        let (mut first, mut second) = (vec![0.0; self.len], vec![0.0; self.len]);
        let (lr, decay) = (f64::from(LR), f64::from(self.weight_decay));
        let [beta1, beta2] = BETAS.map(f64::from);
        for (update, gradients) in (1..).zip(&data[1..]) {
            for (i, g) in gradients.iter().enumerate() {
                let g = f64::from(*g);
                match self.optimiser {
                    Optimiser::Sgd => {
                        first[i] = beta1 * first[i] + g + decay * p[i];
                        p[i] -= lr * first[i];
                    }
                    Optimiser::AdamW => {
                        first[i] = beta1 * first[i] + (1.0 - beta1) * g;
                        second[i] = beta2 * second[i] + (1.0 - beta2) * g * g;
                        let first_hat = first[i] / (1.0 - beta1.powi(update));
                        let second_hat = second[i] / (1.0 - beta2.powi(update));
                        p[i] -= lr * decay * p[i];
                        p[i] -= lr * first_hat / (second_hat.sqrt() + f64::from(EPSILON));
                    }
                }
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "compared as f32")]
        let narrow = |values: Vec<f64>| values.iter().map(|x| *x as f32).collect();
        let mut outcome = Outcome::default();
        outcome.note("weights", Tolerance::Forward, narrow(p));
        outcome.note("state", Tolerance::Forward, narrow(first));
        if self.optimiser == Optimiser::AdamW {
            outcome.note("second state", Tolerance::Forward, narrow(second));
        }
        outcome
    }
}

impl Case for UpdateCase {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn run(&self, rig: &mut Rig) {
        let data = self.data();
        let before = rig.parameter(NEIGHBOURS);
        let span = rig.parameter(self.len);
        let after = rig.parameter(NEIGHBOURS);
        rig.allocate_arenas();
        let zeros = vec![0.0; self.len];
        rig.kernels
            .write_arena(Arena::Weights, span.offset, &data[0]);
        rig.kernels.write_arena(Arena::State, span.offset, &zeros);
        rig.kernels
            .write_arena(Arena::SecondState, span.offset, &zeros);
        for (update, gradients) in (1..).zip(&data[1..]) {
            rig.kernels
                .write_arena(Arena::Gradients, span.offset, gradients);
            // In two pieces, as buckets come.
            let first = self.len / 2;
            let offset = span.offset + first;
            let len = self.len - first;
            for piece in [Span { len: first, ..span }, Span { offset, len }] {
                if piece.len > 0 {
                    rig.kernels.update(piece, self.step(update));
                }
            }
        }
        for (name, arena) in [
            ("weights", Arena::Weights),
            ("state", Arena::State),
            ("second state", Arena::SecondState),
        ] {
            rig.note_arena(name, Tolerance::Forward, arena, span);
            rig.note_arena(&format!("{name} before"), Tolerance::Exact, arena, before);
            rig.note_arena(&format!("{name} after"), Tolerance::Exact, arena, after);
        }
    }
}

/// Both optimisers, with and without decay, ranges of all sorts of lengths.
pub fn all() -> Vec<UpdateCase> {
    let mut cases = Vec::new();
    for optimiser in [Optimiser::Sgd, Optimiser::AdamW] {
        for weight_decay in [0.0, 5e-4, 0.1] {
            for len in [1, 2, 7, 16, 33, 1000] {
                cases.push(UpdateCase {
                    optimiser,
                    len,
                    weight_decay,
                });
            }
        }
    }
    cases
}
