//! What travels with the last bucket through the host: moments of batch norms with every one, and with a
//! batch's last one its words.

use super::Exchange;
use super::host::scale;
use super::words::Said;
use crate::collective::{CollectiveError, rank_of};
use crate::engine::Network;
use crate::kernel::{Kernels, Report};
use std::sync::atomic::Ordering;

impl Exchange {
    /// Puts moments and words behind the place of the last bucket's gradients.
    pub(super) fn load_last(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
        ends_batch: bool,
    ) {
        let report = ends_batch.then(|| kernels.take_report());
        let has_failed = ends_batch && Self::has_failed(kernels);
        let said = report.as_ref().map(|report| self.said(report, has_failed));
        let Some(bucket) = self.buckets.last_mut() else {
            return;
        };
        let Some(numbers) = &mut bucket.numbers else {
            return;
        };
        let (len, moments_len) = (bucket.range.len(), self.lens.1);
        numbers.resize(len + moments_len + self.words.len(), 0.0);
        let (moments, words) = numbers[len..].split_at_mut(moments_len);
        network.read_moments(kernels, moments);
        scale(moments, self.scale);
        words.fill(0.0);
        if let Some(said) = said {
            self.words.write(said, words);
        }
    }

    /// Whether what this rank gave to the averages of a batch, whose report was taken, means nothing: a GPU
    /// that can compute no more still has numbers, and faults of it are found late.
    pub(super) fn has_failed(kernels: &mut dyn Kernels) -> bool {
        kernels.failure().is_some() || kernels.poll_fault().is_some()
    }

    /// What this rank says of a batch.
    pub(super) fn said<'a>(&self, report: &'a Report, has_failed: bool) -> Said<'a> {
        Said {
            rank: self.collective.rank().0 as usize,
            report,
            share: f64::from(self.scale),
            slowest_step: self.slowest_step.0,
            stop: self.part.stop.load(Ordering::Relaxed),
            has_failed,
        }
    }

    /// Takes in what all ranks say of a batch. If one has failed, nothing of the batch may be kept.
    pub(super) fn hear(&mut self, words: &[f32]) {
        let heard = self.words.read(words);
        let mine = self.collective.rank().0 as usize;
        // A rank that has failed itself tells its own reason.
        if let (Some(first), false) = (heard.failed.first(), heard.failed.contains(&mine)) {
            self.failure = Some(CollectiveError::Left {
                rank: rank_of(*first),
                reason: "its device has failed, or its numbers are not finite".into(),
            });
        }
        self.report.add(&heard.report);
        self.stopped = self.stopped.or(heard.stop);
        let slowest = &mut self.slowest_step.1;
        *slowest = slowest.max(heard.slowest_step);
    }

    pub(super) fn unload_last(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
        ends_batch: bool,
    ) {
        let Some(bucket) = self.buckets.last_mut() else {
            return;
        };
        let Some(numbers) = bucket.numbers.take() else {
            return;
        };
        let (moments, words) = numbers[bucket.range.len()..].split_at(self.lens.1);
        if !std::mem::take(&mut self.moments_are_done) {
            network.write_moments(kernels, moments);
            network.apply_moments(kernels, self.part.batch);
        }
        if ends_batch {
            self.hear(words);
        }
        if let Some(bucket) = self.buckets.last_mut() {
            bucket.numbers = Some(numbers);
        }
    }
}
