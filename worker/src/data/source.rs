//! Where a run's batches come from: a set in memory, or shards.

use std::ops::Range;
use std::sync::Arc;

use synfire_shared::checkpoint::Digest;
use synfire_shared::ids::{Epoch, Rank, World};
use synfire_shared::run;
use synfire_shared::shard_plan::ShardPlan;

use super::augment::Augment;
use super::batches::Loader;
use super::dataset::{Dataset, Shape};
use super::error::DataError;
use super::packed::{Packed, PackedLoader};
use super::prefetch::{Place, Prefetch};
use super::{cifar, fashion};

/// What a network and a report need to know of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The set's name in reports.
    pub name: String,
    /// K, the number of classes.
    pub classes: usize,
    /// H, W and C of what the network sees.
    pub shape: Shape,
    /// The training samples.
    pub train_len: usize,
    /// The test samples.
    pub test_len: usize,
    /// The digest of all that training sees of it.
    pub fingerprint: Digest,
}

/// A data set with the batches that a run makes of it.
#[derive(Debug, Clone)]
pub struct Source {
    info: Arc<Info>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Memory(Loader),
    Packed(PackedLoader),
}

impl Source {
    /// Opens the data set of a run. A set in memory is read whole; of a packed one the index is read
    /// and the shards are looked up, small ones read.
    ///
    /// # Errors
    ///
    /// A [`DataError`] that names what is missing or damaged.
    pub fn open(data: &run::Data, seed: u64) -> Result<Self, DataError> {
        let batch = data.batch;
        match &data.source {
            run::Source::Packed(packed) => {
                let set = Packed::open(packed, data.augment)?;
                let info = Arc::new(set.info().clone());
                let kind = Kind::Packed(PackedLoader::new(set, packed, seed, batch)?);
                Ok(Self { info, kind })
            }
            run::Source::FashionMnistSubset => {
                let augment = in_memory(data.augment, Augment::Fashion)?;
                Ok(Self::memory(fashion::load()?, augment, seed, batch))
            }
            run::Source::Cifar10 { path } => {
                let augment = in_memory(data.augment, Augment::Cifar)?;
                Ok(Self::memory(cifar::read(path)?, augment, seed, batch))
            }
        }
    }

    /// The batches of a set in memory.
    fn memory(dataset: Dataset, augment: Augment, seed: u64, batch: usize) -> Self {
        let loader = Loader::new(Arc::new(dataset), augment, seed, batch);
        let dataset = loader.dataset();
        let info = Info {
            name: dataset.name.clone(),
            classes: dataset.classes,
            shape: dataset.shape(),
            train_len: dataset.train.len(),
            test_len: dataset.test.len(),
            fingerprint: loader.fingerprint(),
        };
        Self {
            info: Arc::new(info),
            kind: Kind::Memory(loader),
        }
    }

    /// The same for one of several ranks: its lanes of each batch, its part of the test set.
    ///
    /// # Errors
    ///
    /// [`DataError::Share`] when the rank is not of this world, or there are more ranks than lanes.
    pub fn of_rank(self, rank: Rank, world: World) -> Result<Self, DataError> {
        let kind = match self.kind {
            Kind::Memory(loader) => Kind::Memory(loader.of_rank(rank, world)?),
            Kind::Packed(loader) => Kind::Packed(loader.of_rank(rank, world)?),
        };
        Ok(Self { kind, ..self })
    }

    /// Whether batches have bytes ([`Batch::raw`](super::Batch::raw)) instead of values.
    #[must_use]
    pub fn raw(self, is_raw: bool) -> Self {
        let kind = match self.kind {
            Kind::Memory(loader) => Kind::Memory(loader.raw(is_raw)),
            Kind::Packed(loader) => Kind::Packed(loader.raw(is_raw)),
        };
        Self { kind, ..self }
    }

    /// The samples of a training batch that are the rank's, and the place of the first of them in
    /// the global batch.
    pub fn share(&self) -> Range<usize> {
        let (first, len) = match &self.kind {
            Kind::Memory(loader) => (loader.first_place(), loader.batch()),
            Kind::Packed(loader) => (loader.first_place(), loader.batch()),
        };
        first..first + len
    }

    /// The order of training samples; nothing where there is no whole batch.
    pub fn shard_plan(&self) -> Option<&ShardPlan> {
        match &self.kind {
            Kind::Memory(loader) => loader.shard_plan(),
            Kind::Packed(loader) => loader.shard_plan(),
        }
    }

    /// What the set is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The whole training batches of an epoch.
    pub fn train_batches(&self) -> usize {
        match &self.kind {
            Kind::Memory(loader) => loader.train_batches(),
            Kind::Packed(loader) => loader.train_batches(),
        }
    }

    /// The training batches from `first` up to the end of the epoch before `end`.
    ///
    /// # Panics
    ///
    /// When `first` is beyond its epoch's batches, or the operating system gives no thread.
    pub fn train(&self, first: Place, end: Epoch) -> Prefetch {
        match &self.kind {
            Kind::Memory(loader) => Prefetch::train(loader.clone(), first, end),
            Kind::Packed(loader) => loader.train(first, end),
        }
    }

    /// The rank's part of the test set, every sample once; the last batch is filled up with
    /// [`NO_LABEL`](super::batches::NO_LABEL).
    ///
    /// # Panics
    ///
    /// When the operating system gives no thread.
    pub fn test(&self) -> Prefetch {
        match &self.kind {
            Kind::Memory(loader) => Prefetch::test(loader.clone()),
            Kind::Packed(loader) => loader.test(),
        }
    }
}

/// What `data.augment` means for a set in memory, whose images are all of one size.
fn in_memory(augment: run::Augment, standard: Augment) -> Result<Augment, DataError> {
    match augment {
        run::Augment::None => Ok(Augment::None),
        run::Augment::Standard => Ok(standard),
        run::Augment::AutoAugment => Err(DataError::AutoAugment),
    }
}
