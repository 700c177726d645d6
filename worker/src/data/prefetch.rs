//! A thread that has the next batch ready before it is asked for.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use synfire_shared::ids::Epoch;

use super::batches::Loader;
use super::error::DataError;
use super::raw::{Raw, Tables, outs};

/// One in the consumer's hands, one ready, one being filled.
const NUM_BUFFERS: usize = 3;

/// Between two looks at whether to stop while a batch is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What [`Prefetch::next_unless`] gives.
#[derive(Debug)]
pub enum Next<'a> {
    /// A batch.
    Batch(&'a Batch),
    /// There are no more.
    End,
    /// The caller is to stop, and no batch was there.
    Stopped,
}

/// A place in a run's training batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The epoch; that of a test batch has no meaning.
    pub epoch: Epoch,
    /// The batch in the epoch or the test set, from 0.
    pub batch_index: usize,
}

/// A sample that could not be used, and what was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSample {
    /// The shard and the sample in it.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
    /// The sample that was taken in its place; none in a test set.
    pub replaced_by: Option<u32>,
}

/// One batch.
#[derive(Debug)]
pub struct Batch {
    /// Which one it is.
    pub place: Place,
    /// The images, augmented if they are learnt from, and normalised; empty where [`Batch::raw`] has
    /// them.
    ///
    /// # Shapes
    ///
    /// `[N, H, W, C]`
    pub x_nhwc: Vec<f32>,
    /// The images as bytes, where they are wanted so ([`Source::raw`](super::Source::raw)).
    pub raw: Option<Raw>,
    /// Their classes; [`NO_LABEL`](super::batches::NO_LABEL) where there is no image.
    ///
    /// # Shapes
    ///
    /// `[N]`
    pub labels: Vec<u32>,
    /// The numbers of its samples in their set, in order; only those that there are.
    pub samples: Vec<u64>,
    /// Samples of it that could not be used.
    pub bad: Vec<BadSample>,
}

impl Batch {
    /// Room for so many images of so many values: for bytes if their tables are given.
    pub(super) fn empty(samples: usize, image_len: usize, tables: Option<&Tables>) -> Self {
        let values = tables.map_or(samples * image_len, |_| 0);
        let raw = |tables| Raw::new(samples, image_len, Tables::clone(tables));
        Self {
            place: Place {
                epoch: Epoch(0),
                batch_index: 0,
            },
            x_nhwc: vec![0.0; values],
            raw: tables.map(raw),
            labels: vec![0; samples],
            samples: Vec::with_capacity(samples),
            bad: Vec::new(),
        }
    }
}

/// What a producer is given: empty batches come, filled ones go. Either end closed ends it.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) spent: Receiver<Batch>,
    pub(super) filled: SyncSender<Result<Batch, DataError>>,
}

/// Batches in order, prepared by a thread of their own.
///
/// Three buffers go round: batches of a set in memory allocate nothing, an epoch allocates its
/// order. Dropping it stops the thread; one that prepares from memory is waited for, one that may be
/// waiting for a store is not.
#[derive(Debug)]
pub struct Prefetch {
    filled: Option<Receiver<Result<Batch, DataError>>>,
    spent: Option<SyncSender<Batch>>,
    held: Option<Batch>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread may wait for a store.
    may_wait: bool,
    waited: Duration,
}

impl Prefetch {
    /// The training batches of a set in memory from `first` up to the end of the epoch before
    /// `end`, with the bits of [`Loader::fill_train`].
    ///
    /// # Panics
    ///
    /// When `first` is beyond its epoch's batches, or the operating system gives no thread.
    pub fn train(loader: Loader, first: Place, end: Epoch) -> Self {
        check_start(first, loader.train_batches());
        let empty = || empty(&loader);
        Self::start([empty(), empty(), empty()], false, move |ports| {
            prepare(&loader, first, end, &ports);
        })
    }

    /// The test batches of a set in memory, with the bits of [`Loader::fill_test`].
    ///
    /// # Panics
    ///
    /// When the operating system gives no thread.
    pub fn test(loader: Loader) -> Self {
        let empty = || empty(&loader);
        Self::start([empty(), empty(), empty()], false, move |ports| {
            prepare_test(&loader, &ports);
        })
    }

    /// Starts a thread that fills these batches again and again until it is done or its ports close.
    ///
    /// # Panics
    ///
    /// When the operating system gives no thread.
    pub(super) fn start(
        empty: [Batch; NUM_BUFFERS],
        may_wait: bool,
        produce: impl FnOnce(Ports) + Send + 'static,
    ) -> Self {
        let (filled_in, filled) = sync_channel(NUM_BUFFERS);
        let (spent, spent_out) = sync_channel(NUM_BUFFERS);
        for batch in empty {
            spent
                .send(batch)
                .expect("the receiver is still here, and has room");
        }
        let ports = Ports {
            spent: spent_out,
            filled: filled_in,
        };
        let thread = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || produce(ports))
            .expect("the operating system gives a thread");
        Self {
            filled: Some(filled),
            spent: Some(spent),
            held: None,
            thread: Some(thread),
            may_wait,
            waited: Duration::ZERO,
        }
    }

    /// The next batch, or nothing after the last; the batch before it is given back.
    ///
    /// # Errors
    ///
    /// When the next batch cannot be read; there is none after it.
    ///
    /// # Panics
    ///
    /// When the thread panicked, with its message.
    pub fn next_batch(&mut self) -> Result<Option<&Batch>, DataError> {
        match self.next_unless(&|| false)? {
            Next::Batch(batch) => Ok(Some(batch)),
            Next::End | Next::Stopped => Ok(None),
        }
    }

    /// As [`Prefetch::next_batch`], unless the caller is to stop while it waits.
    ///
    /// # Errors
    ///
    /// When the next batch cannot be read; there is none after it.
    ///
    /// # Panics
    ///
    /// When the thread panicked, with its message.
    pub fn next_unless(&mut self, stops: &dyn Fn() -> bool) -> Result<Next<'_>, DataError> {
        if let (Some(batch), Some(spent)) = (self.held.take(), &self.spent) {
            // The thread ends before its last buffers come back; they are of no more use.
            let _ = spent.send(batch);
        }
        let asked = Instant::now();
        let next = loop {
            let Some(filled) = &self.filled else {
                break None;
            };
            match filled.recv_timeout(LOOK_EVERY) {
                Ok(batch) => break Some(batch),
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) if stops() => {
                    self.waited += asked.elapsed();
                    return Ok(Next::Stopped);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        self.waited += asked.elapsed();
        match next {
            Some(Ok(batch)) => Ok(Next::Batch(self.held.insert(batch))),
            Some(Err(error)) => {
                self.stop();
                Err(error)
            }
            None => {
                self.stop();
                Ok(Next::End)
            }
        }
    }

    /// How long [`Prefetch::next_batch`] waited in all: near zero when preparing keeps up.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn stop(&mut self) {
        // Without its channels the thread ends at its next send or receive.
        self.filled = None;
        self.spent = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        if self.may_wait && !thread.is_finished() {
            // It ends when its request does, and nobody hears of it.
            return;
        }
        if let Err(panic) = thread.join()
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// # Panics
///
/// When `first` is beyond its epoch's batches.
pub(super) fn check_start(first: Place, num_batches: usize) {
    assert!(
        first.batch_index <= num_batches,
        "an epoch has {num_batches} batches, none to start from at {}",
        first.batch_index
    );
}

fn empty(loader: &Loader) -> Batch {
    let image_len = loader.shape().image_len();
    Batch::empty(loader.batch(), image_len, loader.raw_tables())
}

fn prepare(loader: &Loader, first: Place, end: Epoch, ports: &Ports) {
    let image_len = loader.shape().image_len();
    let mut first_batch = first.batch_index;
    for epoch in (first.epoch.0..end.0).map(Epoch) {
        let order = loader.order(epoch);
        for batch_index in first_batch..loader.train_batches() {
            let Ok(mut batch) = ports.spent.recv() else {
                return;
            };
            batch.place = Place { epoch, batch_index };
            batch.samples.clear();
            batch
                .samples
                .extend(order.batch(batch_index).map(u64::from));
            let places = outs(&mut batch.x_nhwc, batch.raw.as_mut(), image_len);
            loader.train_into(&order, batch_index, places, &mut batch.labels);
            if ports.filled.send(Ok(batch)).is_err() {
                return;
            }
        }
        first_batch = 0;
    }
}

fn prepare_test(loader: &Loader, ports: &Ports) {
    let image_len = loader.shape().image_len();
    for batch_index in 0..loader.test_batches(loader.batch()) {
        let Ok(mut batch) = ports.spent.recv() else {
            return;
        };
        batch.place.batch_index = batch_index;
        let places = outs(&mut batch.x_nhwc, batch.raw.as_mut(), image_len);
        let valid = loader.test_into(batch_index, places, &mut batch.labels);
        let first = loader.first_test_sample(batch_index) as u64;
        batch.samples.clear();
        batch.samples.extend(first..first + valid as u64);
        if ports.filled.send(Ok(batch)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::augment::Augment;
    use super::super::batches::tests::made;
    use super::*;
    use synfire_shared::ids::{Rank, World};

    const START: Place = Place {
        epoch: Epoch(0),
        batch_index: 0,
    };

    fn loader() -> Loader {
        Loader::new(made(45, 0), Augment::Fashion, 3, 10)
    }

    fn next(prefetch: &mut Prefetch) -> Option<&Batch> {
        prefetch.next_batch().expect("memory is always read")
    }

    /// The numbers, bits and labels of a rank's batches, one after another.
    fn all(mut prefetch: Prefetch) -> Vec<(Vec<u64>, Vec<u32>, Vec<u32>)> {
        let mut all = Vec::new();
        while let Some(batch) = next(&mut prefetch) {
            let valid = batch.samples.len();
            let bits = bits(&batch.x_nhwc[..valid * 4]);
            all.push((batch.samples.clone(), bits, batch.labels[..valid].to_vec()));
        }
        all
    }

    #[test]
    fn the_batches_of_all_ranks_together_are_those_of_one() {
        // 12 lanes of one sample: four ranks have three each, five have 2, 2, 3, 2 and 3.
        let loader = Loader::new(made(45, 23), Augment::Fashion, 3, 12);
        let whole = all(Prefetch::train(loader.clone(), START, Epoch(2)));
        assert_eq!(whole.len(), 6);
        let tested = all(Prefetch::test(loader.clone()));
        for world in 1..=5 {
            let mut joined = vec![(Vec::new(), Vec::new(), Vec::new()); whole.len()];
            let mut test_samples = Vec::new();
            for rank in 0..world {
                let part = loader.clone().of_rank(Rank(rank), World(world)).unwrap();
                assert_eq!(part.first_place(), joined[0].0.len());
                for (all, part) in
                    joined
                        .iter_mut()
                        .zip(all(Prefetch::train(part.clone(), START, Epoch(2))))
                {
                    all.0.extend(part.0);
                    all.1.extend(part.1);
                    all.2.extend(part.2);
                }
                test_samples.extend(all(Prefetch::test(part)));
            }
            assert_eq!(joined, whole, "{world} ranks");
            let join = |batches: &[(Vec<u64>, Vec<u32>, Vec<u32>)]| {
                let ids: Vec<u64> = batches.iter().flat_map(|batch| batch.0.clone()).collect();
                let bits: Vec<u32> = batches.iter().flat_map(|batch| batch.1.clone()).collect();
                let labels: Vec<u32> = batches.iter().flat_map(|batch| batch.2.clone()).collect();
                (ids, bits, labels)
            };
            assert_eq!(join(&test_samples), join(&tested), "{world} ranks");
        }
        let error = loader.of_rank(Rank(0), World(13)).unwrap_err().to_string();
        assert!(
            error.contains("at most 12 ranks, or a batch of 13"),
            "{error}"
        );
    }

    #[test]
    fn test_batches_have_the_bits_of_direct_ones() {
        let loader = Loader::new(made(0, 25), Augment::Cifar, 3, 10);
        let mut prefetch = Prefetch::test(loader.clone());
        let (mut x, mut labels) = (vec![0.0; loader.batch_len()], vec![0; 10]);
        for batch_index in 0..3 {
            loader.fill_test(batch_index, &mut x, &mut labels);
            let batch = next(&mut prefetch).expect("a batch for each direct one");
            assert_eq!(bits(&batch.x_nhwc), bits(&x));
            assert_eq!(batch.labels, labels);
        }
        assert!(next(&mut prefetch).is_none());
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn prefetched_batches_have_the_bits_of_direct_ones() {
        let loader = loader();
        let first = Place {
            epoch: Epoch(1),
            batch_index: 2,
        };
        let mut prefetch = Prefetch::train(loader.clone(), first, Epoch(4));
        let (mut x, mut labels) = (vec![0.0; loader.batch_len()], vec![0; 10]);
        let mut num_batches = 0;
        for epoch in (1..4).map(Epoch) {
            let order = loader.order(epoch);
            for batch_index in if epoch == first.epoch { 2..4 } else { 0..4 } {
                loader.fill_train(&order, batch_index, &mut x, &mut labels);
                let batch = next(&mut prefetch).expect("a batch for each direct one");
                assert_eq!(batch.place, Place { epoch, batch_index });
                assert_eq!(bits(&batch.x_nhwc), bits(&x));
                assert_eq!(batch.labels, labels);
                num_batches += 1;
            }
        }
        assert_eq!(num_batches, 10);
        assert!(next(&mut prefetch).is_none());
        assert!(next(&mut prefetch).is_none(), "the end lasts");
    }

    #[test]
    fn bytes_with_their_draws_are_the_same_batches() {
        // The last test batch is partly filled, in a buffer that was full before.
        let mut set = Arc::unwrap_or_clone(made(45, 45));
        set.train.pixels = (0..=250).cycle().take(45 * 4).collect();
        for (augment, batch) in [
            (Augment::None, 10),
            (Augment::Fashion, 10),
            (Augment::Cifar, 13),
        ] {
            let values = Loader::new(Arc::new(set.clone()), augment, 3, batch);
            let bytes = values.clone().raw(true);
            let pairs = [
                [&values, &bytes].map(|one| Prefetch::train(one.clone(), START, Epoch(2))),
                [&values, &bytes].map(|one| Prefetch::test(one.clone())),
            ];
            let mut num_batches = 0;
            for [mut values, mut bytes] in pairs {
                while let Some(want) = next(&mut values) {
                    let batch = next(&mut bytes).expect("as many batches");
                    assert!(batch.x_nhwc.is_empty() && want.raw.is_none());
                    let raw = batch.raw.as_ref().expect("bytes are wanted");
                    assert_eq!(bits(&raw.values(set.shape())), bits(&want.x_nhwc));
                    assert_eq!(batch.place, want.place);
                    assert_eq!(batch.labels, want.labels);
                    assert_eq!(batch.samples, want.samples);
                    let filled = raw.draws.iter().filter(|draws| draws.is_some()).count();
                    assert_eq!(filled, want.samples.len());
                    num_batches += 1;
                }
                assert!(next(&mut bytes).is_none());
            }
            assert_eq!(num_batches, 2 * (45 / batch) + 45_usize.div_ceil(batch));
        }
    }

    #[test]
    fn three_buffers_go_round() {
        let mut prefetch = Prefetch::train(loader(), START, Epoch(10));
        let mut places = BTreeSet::new();
        let mut num_batches = 0;
        while let Some(batch) = next(&mut prefetch) {
            places.insert((
                batch.x_nhwc.as_ptr() as usize,
                batch.labels.as_ptr() as usize,
            ));
            num_batches += 1;
        }
        assert_eq!(num_batches, 40);
        assert_eq!(places.len(), NUM_BUFFERS);
    }

    #[test]
    fn dropping_at_any_moment_ends_the_thread() {
        for num_taken in [0, 1, 3, 39, 40, 41] {
            let set = made(45, 0);
            let loader = Loader::new(Arc::clone(&set), Augment::None, 3, 10);
            let mut prefetch = Prefetch::train(loader, START, Epoch(10));
            for _ in 0..num_taken {
                next(&mut prefetch);
            }
            drop(prefetch);
            assert_eq!(
                Arc::strong_count(&set),
                1,
                "the thread is gone after {num_taken}"
            );
        }
    }

    fn tiny() -> [Batch; NUM_BUFFERS] {
        [(); NUM_BUFFERS].map(|()| Batch::empty(1, 1, None))
    }

    #[test]
    fn who_is_to_stop_does_not_wait_for_a_batch() {
        let (go, wait) = sync_channel::<()>(0);
        let mut prefetch = Prefetch::start(tiny(), true, move |ports| {
            // As a store that does not answer.
            let _ = wait.recv();
            let batch = ports.spent.recv().expect("an empty batch");
            let _ = ports.filled.send(Ok(batch));
        });
        for _ in 0..2 {
            let next = prefetch.next_unless(&|| true).expect("nothing failed");
            assert!(matches!(next, Next::Stopped), "{next:?}");
        }
        go.send(()).expect("the thread waits");
        let next = prefetch.next_unless(&|| false).expect("nothing failed");
        assert!(matches!(next, Next::Batch(_)), "{next:?}");
        let end = prefetch.next_batch().expect("nothing failed");
        assert!(end.is_none());
        // A thread that still waits is not waited for.
        let (_never, wait) = sync_channel::<()>(0);
        drop(Prefetch::start(tiny(), true, move |_| {
            let _ = wait.recv();
        }));
    }

    #[test]
    fn waiting_is_counted() {
        let mut prefetch = Prefetch::train(loader(), START, Epoch(1));
        assert_eq!(prefetch.waited(), Duration::ZERO);
        while next(&mut prefetch).is_some() {}
        assert!(prefetch.waited() > Duration::ZERO);
    }

    #[test]
    fn the_end_of_an_epoch_is_a_start() {
        let end_of_first = Place {
            epoch: Epoch(0),
            batch_index: 4,
        };
        let mut prefetch = Prefetch::train(loader(), end_of_first, Epoch(2));
        let batch = next(&mut prefetch).expect("epoch 1 follows");
        assert_eq!(batch.place.epoch, Epoch(1));
    }

    #[test]
    #[should_panic(expected = "an epoch has 4 batches")]
    fn a_start_beyond_an_epoch_is_refused() {
        let beyond = Place {
            epoch: Epoch(0),
            batch_index: 5,
        };
        Prefetch::train(loader(), beyond, Epoch(2));
    }

    #[test]
    #[should_panic(expected = "a broken invariant")]
    fn a_panic_of_the_thread_reaches_the_consumer() {
        let (filled_in, filled) = sync_channel(1);
        let thread = thread::spawn(move || {
            let _held_until_the_end: SyncSender<Result<Batch, DataError>> = filled_in;
            panic!("a broken invariant");
        });
        let mut prefetch = Prefetch {
            filled: Some(filled),
            spent: None,
            held: None,
            thread: Some(thread),
            may_wait: false,
            waited: Duration::ZERO,
        };
        next(&mut prefetch);
    }
}
