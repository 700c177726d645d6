//! When to update, and how far back the error reaches.
//!
//! The algorithm owns the loop over time, the engine the arithmetic, the training loop the loop over
//! data. One short file per algorithm, so that each can be held next to its paper.
//!
//! # Layout
//!
//! - this file: [`Algorithm`], and what it is given: [`Batch`], [`Learner`].
//! - [`stol`]: Algorithm 1: an update at every time step, the error reaches k steps back.
//! - [`bptt`]: the whole history, one update per batch.
//! - [`optimiser`]: the rule of an update.
//! - [`exchange`]: gradients averaged over all ranks.

pub mod bptt;
pub mod exchange;
pub mod optimiser;
pub mod stol;

use crate::collective::CollectiveError;
use crate::engine::Network;
use crate::kernel::{Kernels, Loss, Phase, Pictures, Repeat, Step, Window};
use exchange::{Exchange, Mean};
use optimiser::{Joined, Optimiser};
use std::cell::RefCell;

/// The pictures or frames of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// One picture per sample, the input of all time steps (direct encoding): `[N, H, W, C]`.
    Static(&'a [f32]),
    /// The same as bytes, of which the back end makes the values.
    Pictures(&'a Pictures<'a>),
    /// One frame per time step and sample: `[T, N, H, W, C]`.
    Frames(&'a [f32]),
    /// The pictures of the batch before, which are on the device already.
    Resident,
}

/// Dropout masks of a batch.
#[derive(Clone, Copy)]
pub enum Masks<'a> {
    /// Drawn by (seed, batch, time step, layer).
    Keyed,
    /// Given as factors by (layer, time step): `[N, features]`.
    Given(&'a (dyn Fn(&str, usize) -> Option<Vec<f32>> + Sync)),
}

impl std::fmt::Debug for Masks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Keyed => "Keyed",
            Self::Given(_) => "Given",
        })
    }
}

/// What is learnt from at once.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The number of the batch, from 0, over the whole run: the key of its dropout masks.
    pub index: u64,
    /// Pictures or frames.
    pub input: Input<'a>,
    /// Classes; `u32::MAX` where a sample counts for nothing.
    pub labels: &'a [u32],
    /// Time steps T.
    pub num_time_steps: usize,
    /// Where dropout masks come from.
    pub masks: Masks<'a>,
}

/// A loss or a membrane potential that is not a number, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not every number is finite at time step {time_step}: it began in {place}; lower optimiser.lr, \
     or look at the input"
)]
pub struct Fault {
    /// The time step t, from 0.
    pub time_step: usize,
    /// The first thing on the way up that is not finite.
    pub place: String,
}

/// Why learning stopped.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// A number that is not finite.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The other ranks are gone, or this one is.
    #[error(transparent)]
    Ranks(#[from] CollectiveError),
}

impl LearnError {
    /// The fault of a learner that is the only rank.
    ///
    /// # Panics
    /// If it is no fault: a rank alone loses nobody.
    pub fn alone(self) -> Fault {
        match self {
            Self::Fault(fault) => fault,
            Self::Ranks(error) => unreachable!("a rank alone loses nobody: {error}"),
        }
    }
}

/// Sees a run from inside, for traces.
pub trait Observer: Send {
    /// After forward and loss of time step t.
    fn after_forward(&mut self, network: &Network, kernels: &mut dyn Kernels, t: usize) {
        let _ = (network, kernels, t);
    }
    /// After an update; the gradients are those that it used.
    fn after_update(&mut self, network: &Network, kernels: &mut dyn Kernels) {
        let _ = (network, kernels);
    }
    /// Whether it is to be called at all.
    fn looks_on(&self) -> bool {
        true
    }
}

/// A time step of a learner with the update that it makes.
pub(crate) type TimeStep<'a> = &'a mut dyn FnMut(
    &mut Learner,
    &mut dyn Kernels,
    &mut dyn Observer,
    Step,
) -> Result<(), LearnError>;

/// Sees nothing.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn looks_on(&self) -> bool {
        false
    }
}

/// What an algorithm changes: a network, its weights by an optimiser.
#[derive(Debug)]
pub struct Learner {
    /// The network.
    pub network: Network,
    /// The loss of a time step.
    pub loss: Loss,
    /// The rule of an update.
    pub optimiser: Optimiser,
    /// The averages over ranks; nothing where there is one rank.
    pub exchange: Option<Exchange>,
}

impl Learner {
    /// A learner that is the only rank.
    pub fn new(network: Network, loss: Loss, optimiser: Optimiser) -> Self {
        Self {
            network,
            loss,
            optimiser,
            exchange: None,
        }
    }

    /// Algorithm 1, lines 1 to 9, in training.
    pub(crate) fn forward(&mut self, kernels: &mut dyn Kernels, t: usize) {
        match &mut self.exchange {
            None => self.network.forward(kernels, t, Phase::Train),
            Some(exchange) => {
                let pool = &mut |kernels: &mut dyn Kernels, what| exchange.pool(kernels, what);
                self.network.forward_across(kernels, t, Phase::Train, pool);
            }
        }
    }

    /// One time step of an algorithm that updates at each: `body` is forward, loss, backward and the
    /// update that it is given.
    ///
    /// Where nobody looks on, every batch makes the same calls, and so do time steps that are alike; the back end
    /// need not be waited for: it may repeat what it recorded ([`Kernels::repeat`]).
    ///
    /// # Errors
    /// Those of `body`; and a fault that the back end found late.
    pub(crate) fn time_step(
        &mut self,
        kernels: &mut dyn Kernels,
        (t, ends_batch): (usize, bool),
        observer: &mut dyn Observer,
        body: TimeStep<'_>,
    ) -> Result<(), LearnError> {
        let step = self.optimiser.next();
        let mut result = Ok(());
        if observer.looks_on() {
            result = body(self, kernels, observer, step);
        } else {
            let what = Repeat {
                may_record: self.goes_on() && !self.network.profile.is_on(),
                is_training: true,
                like: self.network.plan().first_like(t),
                ends_batch: ends_batch && self.exchange.is_some(),
            };
            kernels.repeat(what, t, Some(step), &mut |kernels| {
                result = body(self, kernels, observer, step);
            });
            // What was repeated has not been looked at.
            result = result.and_then(|()| Ok(self.check(kernels)?));
        }
        if result.is_err() {
            self.optimiser.take_back();
        }
        result
    }

    /// Whether no other rank is known to be lost.
    fn goes_on(&self) -> bool {
        self.exchange.as_ref().is_none_or(Exchange::is_whole)
    }

    /// Algorithm 1, lines 12 to 21: the errors of `seeded` go down through the window; each range of
    /// the weights is updated as soon as its gradient, or its mean over ranks, is final, or with the next
    /// ones ([`Kernels::update_grain`]): no later line reads them. `ends_batch` says that no update of
    /// this batch follows.
    ///
    /// # Errors
    /// If the other ranks are lost; the network must not be used further then.
    pub(crate) fn backward_and_update(
        &mut self,
        kernels: &mut dyn Kernels,
        (window, seeded): (Window, Window),
        (step, ends_batch): (Step, bool),
    ) -> Result<(), CollectiveError> {
        let network = &mut self.network;
        let Some(exchange) = &mut self.exchange else {
            let mut joined = Joined::of(kernels.update_grain());
            network.backward(kernels, window, seeded, &mut |kernels, profile, span| {
                if let Some(span) = joined.add(span) {
                    Network::update(kernels, profile, span, step);
                }
            });
            if let Some(rest) = joined.rest() {
                Network::update(kernels, &mut network.profile, rest, step);
            }
            return Ok(());
        };
        // Both calls may come at any layer, one after the other.
        let shared = RefCell::new(exchange);
        network.backward_across(
            kernels,
            window,
            seeded,
            &mut |kernels, what| shared.borrow_mut().pool(kernels, what),
            &mut |kernels, _, span| {
                shared.borrow_mut().ready(kernels, span.offset + span.len);
            },
        );
        let exchange = shared.into_inner();
        exchange.finish(
            kernels,
            network,
            ends_batch,
            &mut |kernels, span, mean| match mean {
                Mean::Given(mean) => kernels.update_from(span, mean, step),
                Mean::InPlace => kernels.update(span, step),
            },
        )
    }

    /// Copies what time step t needs: input and dropout masks.
    pub(crate) fn feed(&self, kernels: &mut dyn Kernels, batch: &Batch<'_>, t: usize) {
        self.write_input(kernels, batch.input, t);
        match batch.masks {
            Masks::Keyed => self.network.draw_masks(kernels, batch.index, t),
            Masks::Given(given) => self.network.give_masks(kernels, t, given),
        }
    }

    /// Copies the input of time step t, unless it is there.
    fn write_input(&self, kernels: &mut dyn Kernels, input: Input<'_>, t: usize) {
        let network = &self.network;
        match input {
            Input::Resident => {}
            Input::Static(_) | Input::Pictures(_) if network.input_is_resident(t) => {}
            Input::Static(picture) => network.write_input(kernels, t, picture),
            Input::Pictures(pictures) => network.write_pictures(kernels, t, pictures),
            Input::Frames(frames) => {
                let len = network.input_elements();
                network.write_input(kernels, t, &frames[t * len..(t + 1) * len]);
            }
        }
    }

    /// Stops at a loss or membrane potential that is not finite, naming where it began.
    pub(crate) fn check(&self, kernels: &mut dyn Kernels) -> Result<(), Fault> {
        let Some(time_step) = kernels.poll_fault() else {
            return Ok(());
        };
        let place = self.network.first_non_finite(kernels, time_step);
        Err(Fault {
            time_step,
            place: place.unwrap_or_else(|| "the loss itself".into()),
        })
    }

    /// Forward alone, over all time steps, with running statistics and without dropout.
    ///
    /// Losses and hits are summed in the back end's report.
    pub fn evaluate(&mut self, kernels: &mut dyn Kernels, batch: &Batch<'_>) {
        kernels.write_labels(batch.labels);
        for t in 0..batch.num_time_steps {
            self.write_input(kernels, batch.input, t);
            let what = Repeat {
                may_record: !self.network.profile.is_on(),
                is_training: false,
                like: self.network.plan().first_like(t),
                ends_batch: false,
            };
            kernels.repeat(what, t, None, &mut |kernels| {
                self.network.forward(kernels, t, Phase::Evaluate);
                self.network.loss(kernels, &self.loss, t, Phase::Evaluate);
            });
        }
    }
}

/// A way to learn from a batch over its time steps.
pub trait Algorithm: Send {
    /// Its name with its options: `stol (k = 2)`.
    fn name(&self) -> String;

    /// The window k that the network must keep for T time steps.
    fn window(&self, num_time_steps: usize) -> usize;

    /// Learns from one batch; states start at u = s = 0.
    ///
    /// # Errors
    /// If the loss or a membrane potential stops being finite; nothing has been updated after that
    /// time step's loss. If other ranks are lost.
    fn learn(
        &mut self,
        learner: &mut Learner,
        kernels: &mut dyn Kernels,
        batch: &Batch<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), LearnError>;
}
