//! A thread that has the next training batch ready before it is asked for.

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use synfire_shared::ids::Epoch;

use super::batches::Loader;

/// One in the consumer's hands, one ready, one being filled.
const NUM_BUFFERS: usize = 3;

/// A place in a run's training batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The epoch.
    pub epoch: Epoch,
    /// The batch in the epoch, from 0.
    pub batch_index: usize,
}

/// One training batch.
#[derive(Debug)]
pub struct Batch {
    /// Which one it is.
    pub place: Place,
    /// The images, augmented and normalised.
    ///
    /// # Shapes
    ///
    /// `[N, H, W, C]`
    pub x_nhwc: Vec<f32>,
    /// Their classes.
    ///
    /// # Shapes
    ///
    /// `[N]`
    pub labels: Vec<u32>,
}

/// The training batches of some epochs in order, prepared by a thread of their own.
///
/// The batches have the bits that [`Loader::fill_train`] gives. Three buffers go round: batches
/// allocate nothing, an epoch allocates its order. Dropping it stops the thread and waits for it, a
/// batch's preparation at the most.
#[derive(Debug)]
pub struct Prefetch {
    filled: Option<Receiver<Batch>>,
    spent: Option<SyncSender<Batch>>,
    held: Option<Batch>,
    thread: Option<JoinHandle<()>>,
    waited: Duration,
}

impl Prefetch {
    /// Starts the thread, which prepares the batches from `first` up to the end of the epoch before
    /// `end`.
    ///
    /// # Panics
    ///
    /// When `first` is beyond its epoch's batches, or the operating system gives no thread.
    pub fn start(loader: Loader, first: Place, end: Epoch) -> Self {
        assert!(
            first.batch_index <= loader.train_batches(),
            "an epoch has {} batches, none to start from at {}",
            loader.train_batches(),
            first.batch_index
        );
        let (filled_in, filled) = sync_channel(NUM_BUFFERS);
        let (spent, spent_out) = sync_channel(NUM_BUFFERS);
        for _ in 0..NUM_BUFFERS {
            let x_nhwc = vec![0.0; loader.batch_len()];
            let batch = Batch {
                place: first,
                x_nhwc,
                labels: vec![0; loader.batch()],
            };
            spent
                .send(batch)
                .expect("the receiver is still here, and has room");
        }
        let thread = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || prepare(&loader, first, end, &spent_out, &filled_in))
            .expect("the operating system gives a thread");
        Self {
            filled: Some(filled),
            spent: Some(spent),
            held: None,
            thread: Some(thread),
            waited: Duration::ZERO,
        }
    }

    /// The next batch, or nothing after the last; the batch before it is given back.
    ///
    /// # Panics
    ///
    /// When the thread panicked, with its message.
    pub fn next_batch(&mut self) -> Option<&Batch> {
        if let (Some(batch), Some(spent)) = (self.held.take(), &self.spent) {
            // The thread ends before its last buffers come back; they are of no more use.
            let _ = spent.send(batch);
        }
        let asked = Instant::now();
        self.held = self.filled.as_ref().and_then(|filled| filled.recv().ok());
        self.waited += asked.elapsed();
        if self.held.is_none() {
            self.stop();
        }
        self.held.as_ref()
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

fn prepare(
    loader: &Loader,
    first: Place,
    end: Epoch,
    spent: &Receiver<Batch>,
    filled: &SyncSender<Batch>,
) {
    let mut first_batch = first.batch_index;
    for epoch in (first.epoch.0..end.0).map(Epoch) {
        let order = loader.order(epoch);
        for batch_index in first_batch..loader.train_batches() {
            let Ok(mut batch) = spent.recv() else { return };
            batch.place = Place { epoch, batch_index };
            loader.fill_train(&order, batch_index, &mut batch.x_nhwc, &mut batch.labels);
            if filled.send(batch).is_err() {
                return;
            }
        }
        first_batch = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::augment::Augment;
    use super::super::batches::tests::made;
    use super::*;

    const START: Place = Place {
        epoch: Epoch(0),
        batch_index: 0,
    };

    fn loader() -> Loader {
        Loader::new(made(45, 0), Augment::Fashion, 3, 10)
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
        let mut prefetch = Prefetch::start(loader.clone(), first, Epoch(4));
        let (mut x, mut labels) = (vec![0.0; loader.batch_len()], vec![0; 10]);
        let mut num_batches = 0;
        for epoch in (1..4).map(Epoch) {
            let order = loader.order(epoch);
            for batch_index in if epoch == first.epoch { 2..4 } else { 0..4 } {
                loader.fill_train(&order, batch_index, &mut x, &mut labels);
                let batch = prefetch.next_batch().expect("a batch for each direct one");
                assert_eq!(batch.place, Place { epoch, batch_index });
                assert_eq!(bits(&batch.x_nhwc), bits(&x));
                assert_eq!(batch.labels, labels);
                num_batches += 1;
            }
        }
        assert_eq!(num_batches, 10);
        assert!(prefetch.next_batch().is_none());
        assert!(prefetch.next_batch().is_none(), "the end lasts");
    }

    #[test]
    fn three_buffers_go_round() {
        let mut prefetch = Prefetch::start(loader(), START, Epoch(10));
        let mut places = BTreeSet::new();
        let mut num_batches = 0;
        while let Some(batch) = prefetch.next_batch() {
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
            let mut prefetch = Prefetch::start(loader, START, Epoch(10));
            for _ in 0..num_taken {
                prefetch.next_batch();
            }
            drop(prefetch);
            assert_eq!(
                Arc::strong_count(&set),
                1,
                "the thread is gone after {num_taken}"
            );
        }
    }

    #[test]
    fn waiting_is_counted() {
        let mut prefetch = Prefetch::start(loader(), START, Epoch(1));
        assert_eq!(prefetch.waited(), Duration::ZERO);
        while prefetch.next_batch().is_some() {}
        assert!(prefetch.waited() > Duration::ZERO);
    }

    #[test]
    fn the_end_of_an_epoch_is_a_start() {
        let end_of_first = Place {
            epoch: Epoch(0),
            batch_index: 4,
        };
        let mut prefetch = Prefetch::start(loader(), end_of_first, Epoch(2));
        let batch = prefetch.next_batch().expect("epoch 1 follows");
        assert_eq!(batch.place.epoch, Epoch(1));
    }

    #[test]
    #[should_panic(expected = "an epoch has 4 batches")]
    fn a_start_beyond_an_epoch_is_refused() {
        let beyond = Place {
            epoch: Epoch(0),
            batch_index: 5,
        };
        Prefetch::start(loader(), beyond, Epoch(2));
    }

    #[test]
    #[should_panic(expected = "a broken invariant")]
    fn a_panic_of_the_thread_reaches_the_consumer() {
        let (filled_in, filled) = sync_channel(1);
        let thread = thread::spawn(move || {
            let _held_until_the_end: SyncSender<Batch> = filled_in;
            panic!("a broken invariant");
        });
        let mut prefetch = Prefetch {
            filled: Some(filled),
            spent: None,
            held: None,
            thread: Some(thread),
            waited: Duration::ZERO,
        };
        prefetch.next_batch();
    }
}
