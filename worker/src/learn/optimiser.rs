//! The rule of an update, and its state on the host: which update comes next.

use crate::kernel::Step;
use synfire_shared::run;

/// An optimiser. Velocities and moments live in the back end's arenas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimiser {
    rule: run::Optimiser,
    lr: f64,
    updates: u64,
}

impl Optimiser {
    /// An optimiser before its first update, at its own learning rate.
    pub fn new(rule: run::Optimiser) -> Self {
        let lr = match rule {
            run::Optimiser::Sgd { lr, .. } | run::Optimiser::AdamW { lr, .. } => lr,
        };
        Self {
            rule,
            lr,
            updates: 0,
        }
    }

    /// Arenas of state that it needs.
    pub fn num_states(&self) -> usize {
        match self.rule {
            run::Optimiser::Sgd { .. } => 1,
            run::Optimiser::AdamW { .. } => 2,
        }
    }

    /// The learning rate before the schedule.
    pub fn base_lr(&self) -> f64 {
        match self.rule {
            run::Optimiser::Sgd { lr, .. } | run::Optimiser::AdamW { lr, .. } => lr,
        }
    }

    /// The learning rate of the updates to come.
    pub fn lr(&self) -> f64 {
        self.lr
    }

    /// Sets the learning rate of the updates to come.
    pub fn set_lr(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// Updates made.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Goes on after so many updates.
    pub fn set_updates(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Takes back an update that was not made.
    pub fn take_back(&mut self) {
        self.updates = self.updates.saturating_sub(1);
    }

    /// The next update.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the engine computes in f32"
    )]
    pub fn next(&mut self) -> Step {
        self.updates += 1;
        let lr = self.lr as f32;
        match self.rule {
            run::Optimiser::Sgd {
                momentum,
                weight_decay,
                ..
            } => Step::Sgd {
                lr,
                momentum: momentum as f32,
                weight_decay: weight_decay as f32,
            },
            run::Optimiser::AdamW {
                beta1,
                beta2,
                epsilon,
                weight_decay,
                ..
            } => Step::AdamW {
                lr,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                epsilon: epsilon as f32,
                weight_decay: weight_decay as f32,
                update: self.updates,
            },
        }
    }
}
