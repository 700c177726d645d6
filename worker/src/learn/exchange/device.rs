//! The way of gradients that lie on GPUs: averaged where they are, in the order of streams. The host
//! waits for them nowhere.
//!
//! What rides with the last bucket elsewhere: moments lie on the GPU too and travel with it; the words of
//! a batch come from the host and go over the group there, once per batch, behind all that the batch has
//! left to compute. For that the host waits for the GPU: from the last update of a batch to the first
//! forward of the next the GPU has nothing to do for about as long as that exchange and the start of a
//! time step take.

use super::{Exchange, Mean, Update};
use crate::collective::device::{Piece, Started};
use crate::collective::{CollectiveError, Pending, Wire};
use crate::engine::{Network, Shared};
use crate::kernel::{DeviceArenas, Kernels, Span};
use std::collections::VecDeque;
use std::time::Instant;

/// Where gradients lie, and which of them are under way.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) arenas: DeviceArenas,
    pub(super) under_way: VecDeque<Started>,
    /// The words of a batch; nothing while they are under way.
    words: Option<Vec<f32>>,
}

impl Route {
    pub(super) fn new(arenas: DeviceArenas) -> Self {
        Self {
            arenas,
            under_way: VecDeque::new(),
            words: Some(Vec::new()),
        }
    }
}

/// A range of the gradients, in the form in which they travel.
pub(super) fn piece(arenas: &DeviceArenas, span: Span, wire: Wire, factor: f32) -> Piece {
    let (base, width, factor) = match wire {
        Wire::F32 => (arenas.gradients, size_of::<f32>(), factor),
        // The factor is applied where they are rounded.
        Wire::Bf16 => (arenas.wire, size_of::<u16>(), 1.0),
    };
    Piece {
        address: base + (span.offset * width) as u64,
        length: span.len,
        wire,
        factor,
    }
}

impl Exchange {
    /// By what this rank's numbers are multiplied in a sum that is to be the mean: `n_r` / B.
    #[expect(clippy::cast_possible_truncation, reason = "a share of a batch")]
    fn share(&self) -> f32 {
        (self.part.places.len() as f64 / self.part.batch as f64) as f32
    }

    fn span(&self, index: usize) -> Span {
        let range = &self.buckets[index].range;
        Span {
            offset: range.start,
            len: range.len(),
        }
    }

    /// As gradients travel, the last bucket unrounded like elsewhere.
    fn wire_of(&self, index: usize) -> Wire {
        if index + 1 == self.buckets.len() {
            Wire::F32
        } else {
            self.part.wire
        }
    }

    fn moments(&self, arenas: &DeviceArenas) -> Piece {
        Piece {
            address: arenas.moments,
            length: self.lens.1,
            wire: Wire::F32,
            factor: self.share(),
        }
    }

    /// Starts a bucket. Moments travel with the last one, unless they have before.
    pub(super) fn start_on_device(
        &mut self,
        kernels: &mut dyn Kernels,
        arenas: DeviceArenas,
        index: usize,
    ) {
        let (span, wire, share) = (self.span(index), self.wire_of(index), self.share());
        if wire == Wire::Bf16 {
            kernels.round_to_wire(span, share);
        }
        let mut pieces = [piece(&arenas, span, wire, share), self.moments(&arenas)];
        let is_last = index + 1 == self.buckets.len();
        let has_moments = is_last && self.lens.1 > 0 && !self.moments_are_done;
        let pieces = &mut pieces[..=usize::from(has_moments)];
        kernels.in_between(&mut |_| {
            if self.is_whole() {
                match self.started(&arenas, pieces) {
                    Ok(started) => self.route().under_way.push_back(started),
                    Err(error) => self.failure = Some(error),
                }
            }
        });
    }

    fn started(
        &mut self,
        arenas: &DeviceArenas,
        pieces: &[Piece],
    ) -> Result<Started, CollectiveError> {
        let device = self.collective.on_device();
        device
            .expect("a way between GPUs has a group of them")
            .start(arenas.stream, pieces)
    }

    fn joined(&mut self, arenas: &DeviceArenas, started: Started) -> Result<(), CollectiveError> {
        let device = self.collective.on_device();
        device
            .expect("a way between GPUs has a group of them")
            .join(arenas.stream, started)
    }

    fn route(&mut self) -> &mut Route {
        self.device.as_mut().expect("gradients lie on a GPU")
    }

    /// [`Exchange::finish`] in the order of the GPU's stream.
    pub(super) fn finish_on_device(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
        arenas: DeviceArenas,
        ends_batch: bool,
        update: Update<'_>,
    ) -> Result<(), CollectiveError> {
        if self.is_whole() {
            self.start_next(kernels);
        }
        for index in 0..self.buckets.len() {
            kernels.in_between(&mut |_| self.join_next(&arenas));
            self.whole()?;
            let span = self.span(index);
            if self.wire_of(index) == Wire::Bf16 {
                kernels.widen_from_wire(span);
            }
            update(kernels, span, Mean::InPlace);
        }
        if !std::mem::take(&mut self.moments_are_done) {
            network.apply_moments(kernels, self.part.batch);
        }
        if ends_batch {
            kernels.in_between(&mut |kernels| {
                (self.part.waiting)(true);
                if let Err(error) = self.tell_words(kernels) {
                    self.failure = Some(error);
                }
                (self.part.waiting)(false);
            });
        }
        self.whole()
    }

    /// What the compute stream does from now on comes after the averages of the next bucket.
    fn join_next(&mut self, arenas: &DeviceArenas) {
        if self.is_whole() {
            let started = self.route().under_way.pop_front();
            let started = started.expect("every bucket was started");
            if let Err(error) = self.joined(arenas, started) {
                self.failure = Some(error);
            }
        }
    }

    /// The words of a batch, over the group on the host. Waits for the GPU first: by then all averages
    /// of the batch have ended, well or not.
    fn tell_words(&mut self, kernels: &mut dyn Kernels) -> Result<(), CollectiveError> {
        let begin = Instant::now();
        let report = kernels.take_report();
        if let Some(device) = self.collective.on_device() {
            device.check()?;
        }
        let mut words = self.route().words.take().unwrap_or_default();
        words.resize(self.words.len(), 0.0);
        let has_failed = Self::has_failed(kernels);
        self.words.write(self.said(&report, has_failed), &mut words);
        let pending = self.collective.start_mean(words, Wire::F32);
        let words = pending.and_then(Pending::wait)?;
        self.waited += begin.elapsed();
        self.hear(&words);
        self.route().words = Some(words);
        Ok(())
    }

    /// [`Exchange::moments_now`] in the order of the GPU's stream.
    pub(super) fn moments_on_device(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
        arenas: DeviceArenas,
    ) -> Result<(), CollectiveError> {
        if self.lens.1 > 0 {
            let pieces = [self.moments(&arenas)];
            self.average_now(&arenas, &pieces);
        }
        self.whole()?;
        network.apply_moments(kernels, self.part.batch);
        Ok(())
    }

    /// [`Exchange::pool`] in the order of the GPU's stream.
    pub(super) fn pool_on_device(
        &mut self,
        kernels: &dyn Kernels,
        arenas: &DeviceArenas,
        what: Shared,
    ) {
        let factor = self.share();
        let part = |address, length| Piece {
            address,
            length,
            wire: Wire::F32,
            factor,
        };
        match what {
            Shared::Moments(spans) => {
                let at = |span: Span| arenas.moments + (span.offset * size_of::<f32>()) as u64;
                let pieces = spans.map(|span| part(at(span), span.len));
                self.average_now(arenas, &pieces);
            }
            Shared::Sums { buffer, steps, len } => {
                let slot = |t| {
                    kernels
                        .device_slot(buffer, t)
                        .expect("sums of a norm are f32")
                };
                let pieces: Vec<Piece> = steps.newest_first().map(|t| part(slot(t), len)).collect();
                self.average_now(arenas, &pieces);
            }
        }
    }

    /// Averages that computation waits for, on the GPU.
    fn average_now(&mut self, arenas: &DeviceArenas, pieces: &[Piece]) {
        if self.is_whole() {
            let started = self.started(arenas, pieces);
            let joined = started.and_then(|started| self.joined(arenas, started));
            if let Err(error) = joined {
                self.failure = Some(error);
            }
        }
    }
}
