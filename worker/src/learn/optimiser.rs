//! The rule of an update, and its state on the host: which update comes next.

use crate::kernel::{Span, Step};
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

/// Ranges of weights that come one behind the other, joined until they are worth a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joined {
    grain: usize,
    waiting: Option<Span>,
}

impl Joined {
    /// Until they have so many numbers: [`Kernels::update_grain`](crate::kernel::Kernels::update_grain).
    pub(super) fn of(grain: usize) -> Self {
        Self {
            grain,
            waiting: None,
        }
    }

    /// Takes the next range; gives all that has waited if it is enough now.
    pub(super) fn add(&mut self, span: Span) -> Option<Span> {
        let span = self.waiting.map_or(span, |first| first.up_to(span));
        let is_enough = span.len >= self.grain;
        self.waiting = (!is_enough).then_some(span);
        is_enough.then_some(span)
    }

    /// What still waits.
    pub(super) fn rest(self) -> Option<Span> {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of ranges with gaps between them.
    fn joined(grain: usize) -> Vec<(usize, usize)> {
        let mut joined = Joined::of(grain);
        let spans = [(0, 10), (16, 16), (32, 1), (48, 100), (160, 3)];
        let spans = spans.map(|(offset, len)| Span { offset, len });
        let mut all: Vec<Span> = spans.iter().filter_map(|span| joined.add(*span)).collect();
        all.extend(joined.rest());
        all.iter().map(|span| (span.offset, span.len)).collect()
    }

    #[test]
    fn small_ranges_wait_for_the_next_and_none_is_left_out() {
        let each = [(0, 10), (16, 16), (32, 1), (48, 100), (160, 3)];
        assert_eq!(joined(1), each);
        assert_eq!(joined(32), [(0, 32), (32, 116), (160, 3)]);
        assert_eq!(joined(33), [(0, 33), (48, 100), (160, 3)]);
        assert_eq!(joined(1000), [(0, 163)]);
    }
}
