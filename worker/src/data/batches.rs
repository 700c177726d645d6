//! Batches of a data set in memory: the order of samples, and samples to normalised batches.

use std::ops::Range;
use std::sync::Arc;

use synfire_shared::checkpoint::Digest;
use synfire_shared::ids::{Epoch, Rank, World};
use synfire_shared::shard_plan::{EpochOrder, ShardPlan, Share, ShareError, Shuffle, test_share};

use super::augment::{Augment, Draws};
use super::dataset::{Dataset, Shape};
use super::raw::{Out, Tables, outs};

/// The label of a place in a test batch that holds no sample.
pub const NO_LABEL: u32 = u32::MAX;

/// The samples of each training batch of one epoch: those of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    epoch: Epoch,
    /// Nothing where there is no whole batch.
    samples: Option<(EpochOrder, Share)>,
}

impl Order {
    /// The epoch it is of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The rank's samples of a batch, lane by lane.
    ///
    /// # Panics
    ///
    /// When there is no such batch.
    pub fn batch(&self, batch_index: usize) -> impl Iterator<Item = u32> {
        let (samples, share) = self.samples.as_ref().expect("an epoch with whole batches");
        let batch_index = u32::try_from(batch_index).expect("batches are numbered in 32 bits");
        samples.share(batch_index, share)
    }
}

/// Makes batches of a data set: augmented and normalised to learn from, normalised to be judged on.
///
/// A batch depends on the seed, the epoch and its index alone. Nothing here is allocated per batch.
#[derive(Debug, Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    augment: Augment,
    seed: u64,
    /// The rank's samples of a batch.
    batch: usize,
    fingerprint: Digest,
    /// Nothing where there is no whole batch.
    plan: Option<(Arc<ShardPlan>, Share)>,
    /// The rank's part of the test set.
    test: Range<usize>,
    tables: Tables,
    is_raw: bool,
}

impl Loader {
    /// A loader with training batches of `batch` samples, for the only rank.
    ///
    /// # Panics
    ///
    /// When `batch` is 0, or the data set's parts do not fit each other; those of the readers do.
    pub fn new(dataset: Arc<Dataset>, augment: Augment, seed: u64, batch: usize) -> Self {
        assert!(batch > 0, "a batch holds at least one sample");
        dataset.assert_consistent();
        let tables = dataset.normalise.tables().into();
        let fingerprint = dataset.fingerprint();
        let plan = ShardPlan::new(
            seed,
            fingerprint.bytes(),
            Shuffle::Full,
            [dataset.train.len() as u64],
            u32::try_from(batch).expect("a batch has fewer than 2^32 samples"),
        );
        // Without one whole batch there is no plan, and no order is asked for.
        let plan = plan.ok().map(|plan| {
            let all = plan
                .share(Rank(0), World(1))
                .expect("one rank shares with nobody");
            (Arc::new(plan), all)
        });
        Self {
            test: 0..dataset.test.len(),
            dataset,
            augment,
            seed,
            batch,
            fingerprint,
            plan,
            tables,
            is_raw: false,
        }
    }

    /// The same for one of several ranks: its lanes of each batch, its part of the test set.
    ///
    /// # Errors
    ///
    /// [`ShareError`] when the rank is not of this world, or there are more ranks than lanes.
    pub fn of_rank(mut self, rank: Rank, world: World) -> Result<Self, ShareError> {
        self.test = test_range(self.dataset.test.len(), rank, world)?;
        if let Some((plan, share)) = &mut self.plan {
            *share = plan.share(rank, world)?;
            self.batch = share.num_samples() as usize;
        }
        Ok(self)
    }

    /// Whether prefetched batches have bytes ([`Batch::raw`](super::Batch::raw)) instead of values.
    #[must_use]
    pub fn raw(self, is_raw: bool) -> Self {
        Self { is_raw, ..self }
    }

    /// What bytes mean, if batches have them.
    pub(super) fn raw_tables(&self) -> Option<&Tables> {
        Some(&self.tables).filter(|_| self.is_raw)
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

    /// The set the batches are of.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// [`Dataset::fingerprint`] of the set.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// N, the rank's samples of a training batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The values of a training batch, N H W C.
    pub fn batch_len(&self) -> usize {
        self.batch * self.shape().image_len()
    }

    /// The whole training batches of an epoch.
    pub fn train_batches(&self) -> usize {
        self.plan
            .as_ref()
            .map_or(0, |(plan, _)| plan.num_batches() as usize)
    }

    /// The rank's test batches of `test_batch` samples, the last of them perhaps partly filled.
    ///
    /// # Panics
    ///
    /// When `test_batch` is 0.
    pub fn test_batches(&self, test_batch: usize) -> usize {
        assert!(test_batch > 0, "a batch holds at least one sample");
        self.test.len().div_ceil(test_batch)
    }

    /// The number in the test set of the first sample of a test batch of [`Loader::batch`] samples.
    pub(super) fn first_test_sample(&self, batch_index: usize) -> usize {
        self.test.start + batch_index * self.batch
    }

    /// The order of the training samples in `epoch`.
    pub fn order(&self, epoch: Epoch) -> Order {
        Order {
            epoch,
            samples: self
                .plan
                .as_ref()
                .map(|(plan, share)| (plan.order(epoch), share.clone())),
        }
    }

    /// Writes training batch `batch_index` of the epoch that `order` is of.
    ///
    /// # Shapes
    ///
    /// `out_nhwc`: `[N, H, W, C]`; `labels`: `[N]`
    ///
    /// # Panics
    ///
    /// When a slice has not its shape, `batch_index` is not below [`Loader::train_batches`], or
    /// `order` is of another data set.
    pub fn fill_train(
        &self,
        order: &Order,
        batch_index: usize,
        out_nhwc: &mut [f32],
        labels: &mut [u32],
    ) {
        let outs = self.places(out_nhwc, labels);
        self.train_into(order, batch_index, outs, labels);
    }

    /// As [`Loader::fill_train`], of values or bytes.
    pub(super) fn train_into<'a>(
        &self,
        order: &Order,
        batch_index: usize,
        outs: impl Iterator<Item = Out<'a>>,
        labels: &mut [u32],
    ) {
        let split = &self.dataset.train;
        assert!(
            batch_index < self.train_batches(),
            "batch {batch_index} of the epoch"
        );
        assert_eq!(labels.len(), self.batch, "labels of a batch");
        let (shape, places) = (self.shape(), outs.zip(labels));
        for ((mut out, label), sample) in places.zip(order.batch(batch_index)) {
            let draws = self.augment.draw(shape, self.seed, order.epoch, sample);
            out.write(draws, shape, split.image(sample as usize), &self.tables);
            *label = split.labels[sample as usize];
        }
    }

    /// Writes test batch `batch_index`, in the order of the set, and returns how many samples it
    /// holds; the places after them get zeros and the label [`NO_LABEL`].
    ///
    /// The slices decide N, which may differ from that of training batches.
    ///
    /// # Shapes
    ///
    /// `out_nhwc`: `[N, H, W, C]`; `labels`: `[N]`
    ///
    /// # Panics
    ///
    /// When a slice has not its shape, or `batch_index` is not below [`Loader::test_batches`] of N.
    pub fn fill_test(&self, batch_index: usize, out_nhwc: &mut [f32], labels: &mut [u32]) -> usize {
        let outs = self.places(out_nhwc, labels);
        self.test_into(batch_index, outs, labels)
    }

    /// As [`Loader::fill_test`], of values or bytes.
    pub(super) fn test_into<'a>(
        &self,
        batch_index: usize,
        outs: impl Iterator<Item = Out<'a>>,
        labels: &mut [u32],
    ) -> usize {
        let split = &self.dataset.test;
        let test_batch = labels.len();
        assert!(
            batch_index < self.test_batches(test_batch),
            "batch {batch_index} of the test set"
        );
        let start = self.test.start + batch_index * test_batch;
        let valid = test_batch.min(self.test.end - start);
        for ((mut out, label), sample) in outs.zip(labels).zip(start..) {
            if sample < start + valid {
                let image = split.image(sample);
                out.write(Draws::default(), self.shape(), image, &self.tables);
                *label = split.labels[sample];
            } else {
                out.clear();
                *label = NO_LABEL;
            }
        }
        valid
    }

    /// H, W and C.
    pub(super) fn shape(&self) -> Shape {
        self.dataset.shape()
    }

    fn places<'a>(
        &self,
        out_nhwc: &'a mut [f32],
        labels: &[u32],
    ) -> impl Iterator<Item = Out<'a>> + use<'a> {
        let image_len = self.shape().image_len();
        assert_eq!(
            out_nhwc.len(),
            labels.len() * image_len,
            "values of a batch"
        );
        outs(out_nhwc, None, image_len)
    }
}

/// The test samples of one rank.
///
/// # Errors
///
/// [`ShareError::NoSuchRank`] when the rank is not of this world.
pub(super) fn test_range(len: usize, rank: Rank, world: World) -> Result<Range<usize>, ShareError> {
    let range = test_share(len as u64, rank, world)?;
    let place = |sample: u64| usize::try_from(sample).expect("at most the samples of the set");
    Ok(place(range.start)..place(range.end))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::dataset::{Normalise, Split};
    use super::*;

    /// Images of 2x2x1 pixels that are all the sample's number, which is below 256.
    pub(crate) fn made(num_train: usize, num_test: usize) -> Arc<Dataset> {
        let split = |len: usize| Split {
            pixels: (0..=255).take(len).flat_map(|sample| [sample; 4]).collect(),
            labels: (0..3).cycle().take(len).collect(),
        };
        Arc::new(Dataset {
            train: split(num_train),
            test: split(num_test),
            classes: 3,
            class_names: ["a", "b", "c"].map(String::from).to_vec(),
            height: 2,
            width: 2,
            channels: 1,
            normalise: Normalise {
                mean: vec![0.0],
                std: vec![1.0],
            },
            name: "made".into(),
        })
    }

    /// The sample that an image of [`made`] is.
    fn sample(value: f32) -> u32 {
        let is_it = |&sample: &u8| (f32::from(sample) / 255.0).to_bits() == value.to_bits();
        u32::from((0..=255).find(is_it).expect("the image of a sample"))
    }

    #[test]
    fn every_training_sample_comes_exactly_once_in_an_epoch() {
        let loader = Loader::new(made(105, 0), Augment::None, 5, 10);
        let order = loader.order(Epoch(3));
        assert_eq!(loader.train_batches(), 10);
        let (mut x, mut labels) = (vec![0.0; loader.batch_len()], vec![0; 10]);
        let mut seen = Vec::new();
        for batch_index in 0..loader.train_batches() {
            loader.fill_train(&order, batch_index, &mut x, &mut labels);
            for (image, &label) in x.chunks_exact(4).zip(&labels) {
                assert!(
                    image
                        .iter()
                        .all(|&value| value.to_bits() == image[0].to_bits())
                );
                assert_eq!(label, sample(image[0]) % 3);
                seen.push(sample(image[0]));
            }
        }
        let planned: Vec<u32> = (0..10).flat_map(|batch| order.batch(batch)).collect();
        assert_eq!(seen, planned);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(
            seen.len(),
            100,
            "five of 105 are left out, none comes twice"
        );
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let order = |seed, epoch| {
            let loader = Loader::new(made(50, 0), Augment::None, seed, 10);
            loader.order(Epoch(epoch)).batch(2).collect::<Vec<_>>()
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
    }

    #[test]
    fn every_test_sample_comes_exactly_once_and_the_rest_is_marked() {
        let loader = Loader::new(made(0, 25), Augment::Cifar, 5, 7);
        assert_eq!(loader.test_batches(10), 3);
        let (mut x, mut labels) = (vec![9.0; 10 * 4], vec![9; 10]);
        let mut seen = Vec::new();
        for batch_index in 0..loader.test_batches(10) {
            let valid = loader.fill_test(batch_index, &mut x, &mut labels);
            assert_eq!(valid, if batch_index == 2 { 5 } else { 10 });
            for (place, image) in x.chunks_exact(4).enumerate() {
                if place < valid {
                    assert_eq!(labels[place], sample(image[0]) % 3);
                    seen.push(sample(image[0]));
                } else {
                    assert_eq!((image, labels[place]), (&[0.0; 4][..], NO_LABEL));
                }
            }
        }
        assert_eq!(seen, (0..25).collect::<Vec<u32>>());
    }

    #[test]
    fn a_test_set_of_whole_batches_has_no_empty_one() {
        let num_batches = |len| Loader::new(made(0, len), Augment::None, 5, 1).test_batches(10);
        assert_eq!(
            (num_batches(0), num_batches(20), num_batches(21)),
            (0, 2, 3)
        );
    }

    #[test]
    fn a_training_image_is_its_draws_then_normalised() {
        let mut set = Arc::unwrap_or_clone(made(4, 0));
        set.normalise = Normalise {
            mean: vec![0.5],
            std: vec![0.25],
        };
        set.train.pixels = (0..16).map(|byte| byte * 16).collect();
        let loader = Loader::new(Arc::new(set), Augment::Fashion, 11, 4);
        let order = loader.order(Epoch(1));
        let (mut x, mut labels) = (vec![0.0; loader.batch_len()], vec![0; 4]);
        loader.fill_train(&order, 0, &mut x, &mut labels);
        for (out, index) in x.chunks_exact(4).zip(order.batch(0)) {
            let draws = Augment::Fashion.draw(loader.shape(), 11, Epoch(1), index);
            let mut bytes = [0; 4];
            let image = loader.dataset().train.image(index as usize);
            draws.apply(loader.shape(), image, &mut bytes, |_, byte| byte);
            let want = bytes.map(|byte| (f32::from(byte) / 255.0 - 0.5) / 0.25);
            assert_eq!(out, want);
        }
    }

    #[test]
    #[should_panic(expected = "batch 2 of the epoch")]
    fn a_partial_training_batch_is_not_given() {
        let loader = Loader::new(made(25, 0), Augment::None, 5, 10);
        let (mut x, mut labels) = (vec![0.0; loader.batch_len()], vec![0; 10]);
        loader.fill_train(&loader.order(Epoch(0)), 2, &mut x, &mut labels);
    }
}
