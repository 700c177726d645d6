//! The thread that has batches ready, and those that decode.
//!
//! Bytes are fetched in the order in which they will be learnt from, some at a time, into a bounded
//! queue; a pool decodes each into its place of the batch. A batch depends on the seed, the epoch and
//! its index alone, not on threads or stores.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt as _, stream};
use rayon::{ThreadPool, ThreadPoolBuilder};
use synfire_shared::ids::{Epoch, Rank, World};
use synfire_shared::run;
use synfire_shared::shard_plan::{PlanError, ShardPlan, Share, ShareError, Shuffle};
use synfire_shared::storage::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::decode::{Decoder, Key};
use super::shards::Fetched;
use super::{Packed, Part, RESIDENT_BYTES, SharedSet};
use crate::data::batches::{NO_LABEL, test_range};
use crate::data::error::DataError;
use crate::data::picture::PictureError;
use crate::data::prefetch::{BadSample, Batch, Place, Ports, Prefetch, check_start};
use crate::data::raw::{Out, outs};

/// Samples that are fetched at a time.
const FETCHES: usize = 32;
/// Samples that may be fetched and not yet decoded.
const QUEUE: usize = 128;
/// Their bytes, and those of samples that are being fetched, in KiB: twice the largest picture.
const QUEUE_KIB: u32 = 256 << 10;
/// Samples that are tried in place of a bad one.
const TRIES: u32 = 100;

/// A sample, with its part of the queue's bytes until it is decoded.
type FetchedResult = Result<(Fetched, OwnedSemaphorePermit), DataError>;

/// Makes the batches of a set in shards.
#[derive(Debug, Clone)]
pub struct PackedLoader {
    set: SharedSet,
    seed: u64,
    /// The rank's samples of a batch.
    batch: usize,
    /// Nothing where there is no whole batch.
    plan: Option<(Arc<ShardPlan>, Share)>,
    /// The rank's part of the test set.
    test: Range<usize>,
    replaces: bool,
    is_raw: bool,
    pool: Arc<ThreadPool>,
}

impl PackedLoader {
    /// A loader with batches of `batch` samples, at least 1, for the only rank.
    ///
    /// # Errors
    ///
    /// [`DataError::Plan`] when there are more samples than can be ordered.
    ///
    /// # Panics
    ///
    /// When the operating system gives no threads.
    pub fn new(
        set: Packed,
        packed: &run::Packed,
        seed: u64,
        batch: usize,
    ) -> Result<Self, DataError> {
        let is_full = match packed.shuffle {
            run::Shuffle::Full => true,
            run::Shuffle::Blocks => false,
            run::Shuffle::Auto => set.shards.total_bytes() <= RESIDENT_BYTES,
        };
        let shuffle = if is_full {
            Shuffle::Full
        } else {
            Shuffle::BLOCKS
        };
        let plan = ShardPlan::new(
            seed,
            set.info.fingerprint.bytes(),
            shuffle,
            set.shards.train_lens(),
            u32::try_from(batch).expect("a batch has fewer than 2^32 samples"),
        );
        let plan = match plan {
            Ok(plan) => {
                let all = plan.share(Rank(0), World(1))?;
                Some((Arc::new(plan), all))
            }
            Err(PlanError::TooFewSamples { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let pool = ThreadPoolBuilder::new()
            .num_threads(packed.workers)
            .thread_name(|index| format!("decode-{index}"))
            .build()
            .expect("the operating system gives threads");
        Ok(Self {
            test: 0..set.len(Part::Test),
            set: Arc::new(set),
            seed,
            batch,
            plan,
            replaces: packed.on_bad_sample == run::OnBadSample::Replace,
            is_raw: false,
            pool: Arc::new(pool),
        })
    }

    /// The same for one of several ranks: its lanes of each batch, its part of the test set.
    ///
    /// # Errors
    ///
    /// [`ShareError`] when the rank is not of this world, or there are more ranks than lanes.
    pub fn of_rank(mut self, rank: Rank, world: World) -> Result<Self, ShareError> {
        self.test = test_range(self.set.len(Part::Test), rank, world)?;
        if let Some((plan, share)) = &mut self.plan {
            *share = plan.share(rank, world)?;
            self.batch = share.num_samples() as usize;
        }
        Ok(self)
    }

    /// Whether batches have bytes ([`Batch::raw`]) instead of values.
    #[must_use]
    pub fn raw(self, is_raw: bool) -> Self {
        Self { is_raw, ..self }
    }

    /// N, the rank's samples of a training batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The order of training samples; nothing where there is no whole batch.
    pub(in crate::data) fn shard_plan(&self) -> Option<&ShardPlan> {
        self.plan.as_ref().map(|(plan, _)| &**plan)
    }

    /// The place in the global batch of the rank's first sample.
    pub fn first_place(&self) -> usize {
        let share = self.plan.as_ref().map(|(_, share)| share);
        share.map_or(0, |share| share.places().start as usize)
    }

    /// The whole training batches of an epoch.
    pub fn train_batches(&self) -> usize {
        self.plan
            .as_ref()
            .map_or(0, |(plan, _)| plan.num_batches() as usize)
    }

    /// The order of training samples, for tests.
    #[cfg(test)]
    pub(super) fn plan(&self) -> Option<(Arc<ShardPlan>, Share)> {
        self.plan.clone()
    }

    /// The training batches from `first` up to the end of the epoch before `end`.
    ///
    /// # Panics
    ///
    /// When `first` is beyond its epoch's batches, or the operating system gives no thread.
    pub fn train(&self, first: Place, end: Epoch) -> Prefetch {
        check_start(first, self.train_batches());
        let plan = self.plan.clone();
        self.start(Part::Train, move || train_jobs(plan.clone(), first, end))
    }

    /// The rank's test batches.
    ///
    /// # Panics
    ///
    /// When the operating system gives no thread.
    pub fn test(&self) -> Prefetch {
        let (test, batch) = (self.test.clone(), self.batch);
        self.start(Part::Test, move || test_jobs(test.clone(), batch))
    }

    /// Starts the thread; `jobs` gives the batches in order, once to fetch and once to decode.
    fn start<J: Iterator<Item = Job> + Send + 'static>(
        &self,
        part: Part,
        jobs: impl Fn() -> J + Send + 'static,
    ) -> Prefetch {
        let maker = Maker {
            set: Arc::clone(&self.set),
            part,
            seed: self.seed,
            replaces: self.replaces,
            pool: Arc::clone(&self.pool),
            decoders: Mutex::default(),
        };
        let tables = self.is_raw.then(|| self.set.recipe.tables());
        let image_len = self.set.info.shape.image_len();
        let empty = || Batch::empty(self.batch, image_len, tables.as_ref());
        Prefetch::start([empty(), empty(), empty()], true, move |ports| {
            let fetched = fetch(Arc::clone(&maker.set), part, jobs());
            maker.make_all(jobs(), fetched, &ports);
        })
    }
}

/// A batch, and the samples in it.
pub(super) type Job = (Place, Vec<usize>);

pub(super) fn train_jobs(
    plan: Option<(Arc<ShardPlan>, Share)>,
    first: Place,
    end: Epoch,
) -> impl Iterator<Item = Job> + Send {
    // Without a whole batch there are no epochs.
    plan.into_iter().flat_map(move |(plan, share)| {
        (first.epoch.0..end.0).flat_map(move |epoch| {
            let (order, share) = (plan.order(Epoch(epoch)), share.clone());
            let skipped = if epoch == first.epoch.0 {
                u32::try_from(first.batch_index).expect("it was checked to be in an epoch")
            } else {
                0
            };
            (skipped..plan.num_batches()).map(move |batch| {
                let place = Place {
                    epoch: Epoch(epoch),
                    batch_index: batch as usize,
                };
                let samples = order.share(batch, &share);
                (place, samples.map(|sample| sample as usize).collect())
            })
        })
    })
}

fn test_jobs(test: Range<usize>, batch: usize) -> impl Iterator<Item = Job> + Send {
    (0..test.len().div_ceil(batch)).map(move |batch_index| {
        let place = Place {
            epoch: Epoch(0),
            batch_index,
        };
        let start = test.start + batch_index * batch;
        (place, (start..test.end.min(start + batch)).collect())
    })
}

/// Fetches the samples of all jobs in order, ahead of who takes them.
fn fetch(
    set: SharedSet,
    part: Part,
    jobs: impl Iterator<Item = Job> + Send + 'static,
) -> mpsc::Receiver<FetchedResult> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    runtime().spawn(async move {
        let samples = stream::iter(jobs.flat_map(|(_, samples)| samples));
        let room = Arc::new(Semaphore::new(QUEUE_KIB as usize));
        let fetches = samples.map(|sample| {
            let (set, room) = (Arc::clone(&set), Arc::clone(&room));
            async move {
                let kib = set.shards.len_bytes(part, sample) / 1024 + 1;
                let kib = u32::try_from(kib).unwrap_or(u32::MAX).min(QUEUE_KIB);
                // Given out in the order of asking, which is that of the samples: who waits here is
                // never in the way of who is decoded before.
                let permit = room.acquire_many_owned(kib).await;
                let permit = permit.expect("the semaphore is never closed");
                let fetched = set.shards.fetch(part, sample).await?;
                Ok((fetched, permit))
            }
        });
        let mut fetched = std::pin::pin!(fetches.buffered(FETCHES));
        while let Some(result) = fetched.next().await {
            // The receiver goes when its thread ends: nobody wants more.
            if sender.send(result).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Makes batches of fetched samples.
struct Maker {
    set: SharedSet,
    part: Part,
    seed: u64,
    replaces: bool,
    pool: Arc<ThreadPool>,
    /// Those that no thread uses just now.
    decoders: Mutex<Vec<Decoder>>,
}

impl Maker {
    fn make_all(
        &self,
        jobs: impl Iterator<Item = Job>,
        mut fetched: mpsc::Receiver<FetchedResult>,
        ports: &Ports,
    ) {
        for (place, samples) in jobs {
            let Ok(mut batch) = ports.spent.recv() else {
                return;
            };
            batch.place = place;
            let made = self.make(&samples, &mut fetched, &mut batch);
            let is_over = made.is_err();
            if ports.filled.send(made.map(|()| batch)).is_err() || is_over {
                return;
            }
        }
    }

    /// Fills a batch; the places after its samples get no picture and no label.
    fn make(
        &self,
        samples: &[usize],
        fetched: &mut mpsc::Receiver<FetchedResult>,
        batch: &mut Batch,
    ) -> Result<(), DataError> {
        let epoch = batch.place.epoch;
        let image_len = self.set.info.shape.image_len();
        let used = samples.len();
        batch.bad.clear();
        batch.samples.clear();
        let numbers = samples.iter().map(|&sample| sample as u64);
        batch.samples.extend(numbers);
        batch.labels[used..].fill(NO_LABEL);
        let places = outs(&mut batch.x_nhwc, batch.raw.as_mut(), image_len);
        places.skip(used).for_each(|mut out| out.clear());
        let places = outs(&mut batch.x_nhwc, batch.raw.as_mut(), image_len);
        let places = places.zip(&mut batch.labels).zip(samples);
        // By place, so that what is told does not depend on which thread was faster.
        let outcomes: Mutex<Vec<(usize, Result<BadSample, DataError>)>> = Mutex::default();
        let note = |place, outcome| {
            let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((place, outcome));
        };
        self.pool.in_place_scope(|scope| {
            for (place, ((out, label), &sample)) in places.enumerate() {
                let arrived = fetched.blocking_recv();
                match arrived.expect("as many are fetched as there are samples") {
                    Ok((fetched, permit)) => scope.spawn({
                        let note = &note;
                        move |_| {
                            match self.place(sample, epoch, &fetched, out, label) {
                                Ok(None) => {}
                                Ok(Some(bad)) => note(place, Ok(bad)),
                                Err(error) => note(place, Err(error)),
                            }
                            drop(permit);
                        }
                    }),
                    Err(error) => {
                        note(place, Err(error));
                        break;
                    }
                }
            }
        });
        let mut outcomes = outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        outcomes.sort_by_key(|&(place, _)| place);
        for (_, outcome) in outcomes {
            batch.bad.push(outcome?);
        }
        Ok(())
    }

    /// Writes one sample, or what takes its place.
    fn place(
        &self,
        sample: usize,
        epoch: Epoch,
        fetched: &Fetched,
        mut out: Out<'_>,
        label: &mut u32,
    ) -> Result<Option<BadSample>, DataError> {
        let key = Key {
            seed: self.seed,
            epoch,
            sample: u32::try_from(sample).expect("samples are numbered in 32 bits"),
        };
        let key = Some(key).filter(|_| self.part == Part::Train);
        *label = fetched.label;
        let Err(mut source) = self.decode(&fetched.bytes, key, &mut out) else {
            return Ok(None);
        };
        // What lies in a cache may have been damaged on its way there.
        let again = self.set.shards.fetch_again(self.part, sample);
        if let Some(fetched) = runtime().block_on(again).transpose()? {
            match self.decode(&fetched.bytes, key, &mut out) {
                Ok(()) => return Ok(None),
                Err(error) => source = error,
            }
        }
        let name = self.set.shards.name(self.part, sample);
        if !self.replaces {
            return Err(DataError::Sample { name, source });
        }
        let mut bad = BadSample {
            name,
            reason: source.to_string(),
            replaced_by: None,
        };
        if self.part == Part::Test {
            out.clear();
            *label = NO_LABEL;
            return Ok(Some(bad));
        }
        let len = self.set.len(self.part);
        for step in 1..=TRIES {
            let other = (sample + step as usize) % len;
            let fetched = runtime().block_on(self.set.shards.fetch(self.part, other))?;
            if self.decode(&fetched.bytes, key, &mut out).is_ok() {
                *label = fetched.label;
                bad.replaced_by = Some(u32::try_from(other).expect("numbered in 32 bits"));
                return Ok(Some(bad));
            }
        }
        let name = bad.name;
        Err(DataError::AllBad {
            name,
            tries: TRIES,
            source,
        })
    }

    fn decode(
        &self,
        bytes: &[u8],
        key: Option<Key>,
        out: &mut Out<'_>,
    ) -> Result<(), PictureError> {
        let idle = || self.decoders.lock().unwrap_or_else(PoisonError::into_inner);
        let free = idle().pop();
        let mut decoder = free.unwrap_or_else(|| Decoder::new(&self.set.recipe));
        let result = decoder.decode(bytes, key, out);
        idle().push(decoder);
        result
    }
}
