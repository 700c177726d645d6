//! The bytes of a sample: from memory, a local file, or a store through the cache.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use synfire_shared::dataset::{Index, Shard, Split, hex};
use synfire_shared::run;
use synfire_shared::storage::{StorageError, Store, runtime};

use super::Part;
use super::cache::{self, Cache};
use crate::data::error::DataError;

/// Samples that are read together into the cache: about 7 MB of ImageNet.
const BLOCK: usize = 64;
/// Shards that are read at a time when a set is opened.
const OPENING: usize = 4;
/// A read that came back too short or broke off is tried again, for so long.
const RETRY_DEADLINE: Duration = Duration::from_mins(3);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The most bytes of one picture: more than any of the largest size has.
const LIMIT_SAMPLE_BYTES: u64 = 1 << 27;

/// A sample as it lies in its shard.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) bytes: Bytes,
    pub(super) label: u32,
}

#[derive(Debug)]
enum Held {
    /// Every shard of the two parts.
    Memory(Vec<Bytes>, Vec<Bytes>),
    /// Read as needed.
    Store(Option<Cache>),
}

/// The shards of an open set.
#[derive(Debug)]
pub(super) struct Shards {
    store: Store,
    index: Index,
    held: Held,
}

impl Shards {
    /// Looks the shards up and reads those of a small set.
    pub(super) fn open(
        store: Store,
        index: Index,
        packed: &run::Packed,
        resident_bytes: u64,
    ) -> Result<Self, DataError> {
        check_lengths(&store, &index)?;
        let cache = if store.folder().is_some() {
            None
        } else {
            cache::open(packed)?
        };
        let mut shards = Self {
            store,
            index,
            held: Held::Store(cache),
        };
        if shards.total_bytes() <= resident_bytes {
            let read = |split: &Split| runtime().block_on(shards.read_all(split));
            let train = read(&shards.index.train)?;
            let test = read(&shards.index.test)?;
            shards.held = Held::Memory(train, test);
        }
        Ok(shards)
    }

    /// The samples of each training shard, in order.
    pub(super) fn train_lens(&self) -> impl Iterator<Item = u64> {
        self.index
            .train
            .shards()
            .iter()
            .map(|shard| shard.len() as u64)
    }

    /// The length of all shards together.
    pub(super) fn total_bytes(&self) -> u64 {
        let shards = all_shards(&self.index);
        shards.fold(0, |sum, shard| sum.saturating_add(shard.bytes))
    }

    fn split(&self, part: Part) -> &Split {
        match part {
            Part::Train => &self.index.train,
            Part::Test => &self.index.test,
        }
    }

    /// What a sample is called in messages.
    pub(super) fn name(&self, part: Part, sample: usize) -> String {
        let split = self.split(part);
        let Some(place) = split.sample(sample as u64) else {
            return format!("sample {sample}");
        };
        let shard = self.store.name(&split.shards()[place.shard_index].path);
        let (in_shard, offset) = (place.in_shard, place.offset);
        format!("{shard}: sample {in_shard}, at byte {offset}")
    }

    /// The bytes and label of a sample, which must be one of the part.
    pub(super) async fn fetch(&self, part: Part, sample: usize) -> Result<Fetched, DataError> {
        let split = self.split(part);
        let place = split.sample(sample as u64);
        let place = place.expect("orders hold samples of the set");
        let shard = &split.shards()[place.shard_index];
        let range = place.offset..place.offset + place.len_bytes;
        if place.len_bytes > LIMIT_SAMPLE_BYTES {
            return Err(DataError::Shard {
                name: self.name(part, sample),
                reason: format!(
                    "a picture of {} bytes, more than {LIMIT_SAMPLE_BYTES}",
                    place.len_bytes
                ),
            });
        }
        let bytes = match &self.held {
            Held::Memory(train, test) => {
                let shards = if part == Part::Train { train } else { test };
                let [start, end] = [range.start, range.end]
                    .map(|at| usize::try_from(at).expect("a shard in memory"));
                shards[place.shard_index].slice(start..end)
            }
            Held::Store(None) => self.read(shard, range).await?,
            Held::Store(Some(cache)) => {
                let block = block(shard, place.in_shard);
                let read = || self.read(shard, block.clone());
                match cache.read(&shard.sha256, &block, &range, read).await? {
                    Some(bytes) => bytes,
                    // The cache cannot be written: without it.
                    None => self.read(shard, range).await?,
                }
            }
        };
        let label = place.label;
        Ok(Fetched { bytes, label })
    }

    /// Whole shards, each with the SHA-256 that it was packed with.
    async fn read_all(&self, split: &Split) -> Result<Vec<Bytes>, DataError> {
        let shards = split.shards().iter();
        let reads = shards.map(|shard| async move {
            let whole = 0..shard.bytes;
            let cached = match &self.held {
                Held::Store(Some(cache)) => {
                    let read = || self.read(shard, whole.clone());
                    cache.read(&shard.sha256, &whole, &whole, read).await?
                }
                Held::Store(None) | Held::Memory(..) => None,
            };
            let bytes = match cached {
                Some(bytes) => bytes,
                None => self.read(shard, whole.clone()).await?,
            };
            let digest = hex(&Sha256::digest(&bytes));
            if digest != shard.sha256 {
                return Err(DataError::Shard {
                    name: self.store.name(&shard.path),
                    reason: "it does not have the SHA-256 that the index says".into(),
                });
            }
            Ok(bytes)
        });
        stream::iter(reads).buffered(OPENING).try_collect().await
    }

    /// A range of a shard; a read that breaks off is tried again.
    async fn read(&self, shard: &Shard, range: Range<u64>) -> Result<Bytes, DataError> {
        let (begin, mut pause) = (Instant::now(), FIRST_PAUSE);
        let want = range.end - range.start;
        if want == 0 {
            return Ok(Bytes::new());
        }
        loop {
            let read = self.store.get_range_async(&shard.path, range.clone()).await;
            let error = match read {
                Ok(bytes) if bytes.len() as u64 == want => return Ok(bytes),
                Ok(bytes) => DataError::Shard {
                    name: self.store.name(&shard.path),
                    reason: format!(
                        "{} bytes came instead of {want} from byte {} on: it is shorter than its \
                         index says, or the store breaks off",
                        bytes.len(),
                        range.start
                    ),
                },
                Err(error @ StorageError::Request { .. }) => error.into(),
                Err(error) => return Err(error.into()),
            };
            // A file that is too short stays so.
            let is_local = self.store.folder().is_some();
            if is_local || begin.elapsed() + pause > RETRY_DEADLINE {
                return Err(error);
            }
            tracing::warn!(%error, "reading again in {pause:?}");
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

fn all_shards(index: &Index) -> impl Iterator<Item = &Shard> {
    index.train.shards().iter().chain(index.test.shards())
}

/// The range from the first to the last sample of the block that holds this one.
fn block(shard: &Shard, in_shard: usize) -> Range<u64> {
    let first = in_shard / BLOCK * BLOCK;
    let last = (first + BLOCK).min(shard.len()) - 1;
    shard.offsets[first]..shard.offsets[last] + shard.lengths[last]
}

/// Every shard must be there with the length that the index says. What lists nothing, as `http://`,
/// is not asked: a shard that is missing there is found when it is read.
fn check_lengths(store: &Store, index: &Index) -> Result<(), DataError> {
    let entries = match store.list("") {
        Err(StorageError::Url { .. }) => return Ok(()),
        entries => entries?,
    };
    let lengths: BTreeMap<&str, u64> = entries.iter().map(|e| (e.key.as_str(), e.bytes)).collect();
    for shard in all_shards(index) {
        let name = || store.name(&shard.path);
        match lengths.get(shard.path.as_str()) {
            None => {
                return Err(DataError::Shard {
                    name: name(),
                    reason: "the index names it, but it is not there".into(),
                });
            }
            Some(&bytes) if bytes != shard.bytes => {
                let want = shard.bytes;
                return Err(DataError::Shard {
                    name: name(),
                    reason: format!("it has {bytes} bytes, the index says {want}"),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
