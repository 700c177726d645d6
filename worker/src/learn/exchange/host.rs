//! The way through the host: buckets are copied there, averaged, and the weights updated from there.

use super::{Exchange, Mean, Update};
use crate::collective::{CollectiveError, Pending, Wire};
use crate::engine::Network;
use crate::kernel::{Kernels, Span};
use std::time::Instant;

impl Exchange {
    /// Starts a bucket.
    pub(super) fn start(&mut self, kernels: &mut dyn Kernels, index: usize) {
        if self.failure.is_some() {
            return;
        }
        let is_last = index + 1 == self.buckets.len();
        let bucket = &mut self.buckets[index];
        let mut numbers = bucket.numbers.take().unwrap_or_default();
        let len = bucket.range.len();
        // What rides with the last bucket was put behind its gradients before.
        if !is_last {
            numbers.resize(len, 0.0);
        }
        let gradients = &mut numbers[..len];
        kernels.read_gradients(bucket.range.start, gradients);
        scale(gradients, self.scale);
        // Counts do not survive being rounded.
        let wire = if is_last { Wire::F32 } else { self.part.wire };
        match self.collective.start_mean(numbers, wire) {
            Ok(pending) => self.under_way.push_back(pending),
            Err(error) => self.failure = Some(error),
        }
    }

    /// [`Exchange::finish`] through the host.
    pub(super) fn finish_on_host(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
        ends_batch: bool,
        update: Update<'_>,
    ) -> Result<(), CollectiveError> {
        self.load_last(kernels, network, ends_batch);
        self.start(kernels, self.buckets.len() - 1);
        // What is under way ends by itself.
        self.whole()?;
        (self.part.waiting)(true);
        for index in 0..self.buckets.len() {
            let pending = self.under_way.pop_front();
            let begin = Instant::now();
            let mean = pending.expect("every bucket was started").wait();
            self.waited += begin.elapsed();
            let numbers = mean.map_err(|error| self.fail(error))?;
            let bucket = &mut self.buckets[index];
            let range = bucket.range.clone();
            let len = range.len();
            let span = Span {
                offset: range.start,
                len,
            };
            update(kernels, span, Mean::Given(&numbers[..len]));
            bucket.numbers = Some(numbers);
        }
        (self.part.waiting)(false);
        self.unload_last(kernels, network, ends_batch);
        self.whole()
    }

    /// The means of numbers over the group on the host; nothing where the group has failed.
    pub(super) fn mean_of(&mut self, mut numbers: Vec<f32>) -> Option<Vec<f32>> {
        if self.failure.is_some() || numbers.is_empty() {
            return None;
        }
        scale(&mut numbers, self.scale);
        let begin = Instant::now();
        let pending = self.collective.start_mean(numbers, Wire::F32);
        let mean = pending.and_then(Pending::wait);
        self.waited += begin.elapsed();
        mean.map_err(|error| self.fail(error)).ok()
    }
}

pub(super) fn scale(numbers: &mut [f32], factor: f32) {
    if factor.to_bits() != 1.0_f32.to_bits() {
        for number in numbers {
            *number *= factor;
        }
    }
}
