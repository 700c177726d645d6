//! The gradients of an update, averaged over all ranks while earlier layers still compute theirs.
//!
//! # Layout
//!
//! - `buckets`: how the gradients are cut, and how large the pieces should be.
//! - `words`: what rides behind the last bucket of a batch: its sums, and whether to stop.
//! - `last`: what travels with the last bucket.
//! - `host`: the way through the host.
//! - `device`: the way of gradients that lie on GPUs.
//! - this file: [`Exchange`].
//!
//! # What is averaged
//!
//! A rank's loss is the mean over its own `n_r` samples. Its gradients, and everything else that it
//! gives, are scaled by `n_r` W / B before the mean over W ranks: the result is that of the whole
//! batch of B. Where shares are equal the factor is 1 and nothing is touched.
//!
//! # In a repeated time step
//!
//! A back end may record a time step and do it again; what is started, waited for or moved by the host here
//! stands between its parts ([`Kernels::in_between`]), and changes nothing on which the calls outside of it
//! depend, but whether the group has failed.

mod buckets;
mod device;
mod host;
mod last;
mod words;

use crate::collective::{Collective, CollectiveError, Pending, Wire};
use crate::engine::{Network, Shared};
use crate::kernel::{DeviceArenas, Kernels, Report, Span};
pub use buckets::{measured, measured_between_devices};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use words::Words;

/// Is told before and after each wait for the other ranks.
pub type Waiting = Arc<dyn Fn(bool) + Send + Sync>;

/// The means of a range of gradients.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mean<'a> {
    /// These numbers.
    Given(&'a [f32]),
    /// What lies in the range itself.
    InPlace,
}

/// Is given a range of the weights with the means of its gradients.
pub(crate) type Update<'a> = &'a mut dyn FnMut(&mut dyn Kernels, Span, Mean<'_>);

/// How a rank takes part.
#[derive(Clone)]
pub struct Part {
    /// The rank's places in the global batch.
    pub places: Range<usize>,
    /// B, the samples of the global batch.
    pub batch: usize,
    /// How gradients travel.
    pub wire: Wire,
    /// Numbers in a bucket at most.
    pub bucket: usize,
    /// Whether buckets start while earlier layers compute.
    pub overlaps: bool,
    /// The signal that this process was given; 0 for none.
    pub stop: Arc<AtomicUsize>,
    /// Who is told of waits.
    pub waiting: Waiting,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("places", &self.places)
            .field("batch", &self.batch)
            .field("wire", &self.wire)
            .field("bucket", &self.bucket)
            .field("overlaps", &self.overlaps)
            .finish_non_exhaustive()
    }
}

/// A bucket: a range of the gradients, and the memory in which it travels.
#[derive(Debug)]
struct Bucket {
    range: Range<usize>,
    /// Nothing while it is under way.
    numbers: Option<Vec<f32>>,
}

/// The averages of one update after another.
pub struct Exchange {
    collective: Box<dyn Collective>,
    part: Part,
    /// `n_r` W / B.
    scale: f32,
    buckets: Vec<Bucket>,
    /// Where gradients lie on a GPU that averages them itself.
    device: Option<device::Route>,
    /// Numbers of the gradients, and of moments behind them in the last bucket.
    lens: (usize, usize),
    words: Words,
    /// Buckets of this update whose start has been asked for.
    num_asked: usize,
    under_way: VecDeque<Pending>,
    /// Numbers of a norm on their way.
    travelling: Vec<f32>,
    /// What failed; every later call is in vain.
    failure: Option<CollectiveError>,
    waited: Duration,
    report: Report,
    stopped: Option<usize>,
    /// Seconds of the slowest time step: of this rank, and of all. Two numbers, because the second is
    /// rounded on its way and must not travel again.
    slowest_step: (f64, f64),
    /// Whether running statistics have moved already.
    moments_are_done: bool,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("collective", &self.collective.name())
            .field("part", &self.part)
            .field("buckets", &self.buckets.len())
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// The averages of a network that learns from so many time steps.
    ///
    /// # Panics
    /// If the rank has no place in the batch.
    #[expect(clippy::cast_possible_truncation, reason = "a ratio near 1")]
    pub fn new(
        collective: Box<dyn Collective>,
        part: Part,
        network: &Network,
        time_steps: usize,
    ) -> Self {
        assert!(!part.places.is_empty(), "a rank has a part of the batch");
        let world = collective.world().0 as usize;
        let scale = (part.places.len() * world) as f64 / part.batch as f64;
        let counters = network
            .plan()
            .neurons
            .iter()
            .map(|(_, counter)| counter + 1);
        let words = Words {
            time_steps,
            layers: counters.max().unwrap_or(0),
            world,
        };
        let lens = (network.plan().layout.len(), network.moments_len());
        let mut ranges = buckets::cut(lens.0, part.bucket);
        let last = ranges.pop().unwrap_or(0..0);
        let bucket = |range: Range<usize>, more| Bucket {
            numbers: Some(Vec::with_capacity(range.len() + more)),
            range,
        };
        let mut buckets: Vec<Bucket> = ranges.into_iter().map(|range| bucket(range, 0)).collect();
        buckets.push(bucket(last, lens.1 + words.len()));
        Self {
            num_asked: 0,
            under_way: VecDeque::with_capacity(buckets.len()),
            travelling: Vec::new(),
            collective,
            scale: scale as f32,
            part,
            buckets,
            device: None,
            lens,
            words,
            failure: None,
            waited: Duration::ZERO,
            report: Report::default(),
            stopped: None,
            slowest_step: (0.0, 0.0),
            moments_are_done: false,
        }
    }

    /// The same where the back end's gradients lie on a GPU and the group averages them there.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn between_devices(mut self, arenas: DeviceArenas) -> Self {
        let has_devices = self.collective.on_device().is_some();
        assert!(has_devices, "a way between GPUs has a group of them");
        for bucket in &mut self.buckets {
            // Nothing goes through the host.
            bucket.numbers = None;
        }
        self.device = Some(device::Route::new(arenas));
        self
    }

    /// The group, between two batches.
    pub fn collective(&mut self) -> &mut dyn Collective {
        &mut *self.collective
    }

    /// The group.
    pub fn group(&self) -> &dyn Collective {
        &*self.collective
    }

    /// How this rank takes part.
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// The ranges of the gradients that travel at once, in the order of their start.
    pub fn buckets(&self) -> impl Iterator<Item = Range<usize>> {
        self.buckets.iter().map(|bucket| bucket.range.clone())
    }

    /// Whether nothing has failed so far.
    pub(crate) fn is_whole(&self) -> bool {
        self.failure.is_none()
    }

    /// What has failed, if anything.
    fn whole(&self) -> Result<(), CollectiveError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Starts every bucket whose last gradient is written: those that end at or before `end`. The
    /// last bucket waits for [`Exchange::finish`], because more rides with it.
    pub(crate) fn ready(&mut self, kernels: &mut dyn Kernels, end: usize) {
        if self.part.overlaps {
            let all_but_last = self.buckets.len() - 1;
            while self.is_whole()
                && self.num_asked < all_but_last
                && self.buckets[self.num_asked].range.end <= end
            {
                self.start_next(kernels);
            }
        }
    }

    fn arenas(&self) -> Option<DeviceArenas> {
        self.device.as_ref().map(|route| route.arenas)
    }

    /// Starts the next bucket.
    fn start_next(&mut self, kernels: &mut dyn Kernels) {
        let index = self.num_asked;
        self.num_asked += 1;
        match self.arenas() {
            Some(arenas) => self.start_on_device(kernels, arenas, index),
            None => kernels.in_between(&mut |kernels| self.start(kernels, index)),
        }
    }

    /// Starts what is left, waits for one bucket after the other, and gives each range with the means of
    /// its gradients to `update`. `ends_batch` says that no update of this batch follows.
    ///
    /// # Errors
    /// If the group fails. Some ranges may have been updated then, and the network must not be used
    /// further.
    pub(crate) fn finish(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
        ends_batch: bool,
        update: Update<'_>,
    ) -> Result<(), CollectiveError> {
        while self.is_whole() && self.num_asked + 1 < self.buckets.len() {
            self.start_next(kernels);
        }
        if let Some(arenas) = self.arenas() {
            self.finish_on_device(kernels, network, arenas, ends_batch, update)?;
        } else {
            let mut finished = Ok(());
            kernels.in_between(&mut |kernels| {
                finished = self.finish_on_host(kernels, network, ends_batch, update);
            });
            finished?;
        }
        self.num_asked = 0;
        Ok(())
    }

    fn fail(&mut self, error: CollectiveError) -> CollectiveError {
        self.failure = Some(error.clone());
        error
    }

    /// Moves running statistics by the moments of one forward at once: for algorithms that make more
    /// than one forward per update.
    ///
    /// # Errors
    /// If the group fails.
    pub(crate) fn moments_now(
        &mut self,
        kernels: &mut dyn Kernels,
        network: &Network,
    ) -> Result<(), CollectiveError> {
        self.moments_are_done = true;
        if let Some(arenas) = self.arenas() {
            return self.moments_on_device(kernels, network, arenas);
        }
        let mut moments = vec![0.0; self.lens.1];
        network.read_moments(kernels, &mut moments);
        if let Some(mean) = self.mean_of(moments) {
            network.write_moments(kernels, &mean);
        }
        self.whole()?;
        network.apply_moments(kernels, self.part.batch);
        Ok(())
    }

    /// Puts the mean over ranks, each weighted by its share of the samples, in the place of a norm's
    /// numbers; leaves them where the group has failed, which the next [`Exchange::finish`] tells.
    pub(crate) fn pool(&mut self, kernels: &mut dyn Kernels, what: Shared) {
        kernels.in_between(&mut |kernels| {
            if let Some(arenas) = self.arenas() {
                return self.pool_on_device(kernels, &arenas, what);
            }
            let mut numbers = std::mem::take(&mut self.travelling);
            numbers.resize(what.len(), 0.0);
            what.read(kernels, &mut numbers);
            if let Some(mean) = self.mean_of(numbers) {
                what.write(kernels, &mean);
                self.travelling = mean;
            }
        });
    }

    /// The sums of the batches of all ranks since this was last asked.
    pub fn take_report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }

    /// How long training waited for averages since this was last asked: communication that no
    /// computation hid.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Takes note of the seconds of a time step of this rank, and gives those of the slowest of all ranks
    /// so far: the others' as of the batch before.
    pub fn slowest_step(&mut self, seconds: f64) -> f64 {
        let (mine, all) = &mut self.slowest_step;
        *mine = mine.max(seconds);
        all.max(*mine)
    }

    /// The signal that some rank was given before the end of an earlier batch: the same on all ranks
    /// after the same batch.
    pub fn stopped(&self) -> Option<usize> {
        self.stopped
    }
}
