//! The bytes of a sample: from memory, a local file, or a store through the cache.
//!
//! A sample is read with its tar headers and the file of its label behind it, which must be what the
//! index says: shards that were exchanged or packed anew are noticed whatever their length.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use synfire_shared::dataset::{Index, Shard, Split, hex};
use synfire_shared::run;
use synfire_shared::storage::{Store, runtime};
use tar::Header;

use super::Part;
use super::cache::{self, Cache};
use crate::data::error::DataError;

/// Samples that are read together into the cache: about 7 MB of ImageNet.
const BLOCK: usize = 64;
/// Shards that are read at a time when a set is opened.
const OPENING: usize = 4;
/// Shards that are looked up at a time.
const LOOKING: usize = 32;
/// A larger block is not read as one: its samples are.
const LIMIT_BLOCK_BYTES: u64 = 64 << 20;
/// Answers that are too short before a shard is taken to be.
const TRIES: u32 = 4;
/// Before the second; each pause is twice as long as the one before.
const PAUSE: Duration = Duration::from_millis(100);
/// The bytes of a tar header, of which all lengths are multiples.
const TAR_BLOCK: u64 = 512;
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
        runtime().block_on(check_lengths(&store, &index))?;
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
        self.fetch_by(part, sample, true).await
    }

    /// The same from the store itself, where they came from a cache, which then forgets them.
    pub(super) async fn fetch_again(
        &self,
        part: Part,
        sample: usize,
    ) -> Option<Result<Fetched, DataError>> {
        match &self.held {
            Held::Memory(..) | Held::Store(None) => None,
            Held::Store(Some(_)) => Some(self.fetch_by(part, sample, false).await),
        }
    }

    /// About how many bytes a sample is.
    pub(super) fn len_bytes(&self, part: Part, sample: usize) -> u64 {
        let place = self.split(part).sample(sample as u64);
        place.map_or(0, |place| place.len_bytes)
    }

    async fn fetch_by(
        &self,
        part: Part,
        sample: usize,
        from_cache: bool,
    ) -> Result<Fetched, DataError> {
        let split = self.split(part);
        let place = split.sample(sample as u64);
        let place = place.expect("orders hold samples of the set");
        let shard = &split.shards()[place.shard_index];
        let unlike = |reason: String| DataError::Shard {
            name: self.name(part, sample),
            reason,
        };
        if place.len_bytes > LIMIT_SAMPLE_BYTES {
            let len = place.len_bytes;
            return Err(unlike(format!(
                "a picture of {len} bytes, more than {LIMIT_SAMPLE_BYTES}"
            )));
        }
        let range = entry(shard, place.in_shard);
        let bytes = match &self.held {
            Held::Memory(train, test) => {
                let shards = if part == Part::Train { train } else { test };
                let [start, end] = [range.start, range.end]
                    .map(|at| usize::try_from(at).expect("a shard in memory"));
                shards[place.shard_index].slice(start..end)
            }
            Held::Store(None) => self.read(shard, range.clone()).await?,
            Held::Store(Some(cache)) => {
                let block = block(shard, place.in_shard);
                if !from_cache {
                    cache.discard(&shard.sha256, &block);
                }
                let read = || self.read(shard, block.clone());
                let is_small = block.end - block.start <= LIMIT_BLOCK_BYTES;
                let cached = if is_small {
                    cache.read(&shard.sha256, &block, &range, read).await?
                } else {
                    None
                };
                match cached {
                    Some(bytes) => bytes,
                    // The block is too large, or the cache cannot be written: without it.
                    None => self.read(shard, range.clone()).await?,
                }
            }
        };
        let label = place.label;
        check_entry(&bytes, place.len_bytes, label).map_err(|reason| {
            unlike(format!(
                "{reason}: index and shard are not of one packing, or the shard is damaged"
            ))
        })?;
        let start = usize::try_from(place.offset - range.start).expect("a header before it");
        let len = usize::try_from(place.len_bytes).expect("it was read");
        Ok(Fetched {
            bytes: bytes.slice(start..start + len),
            label,
        })
    }

    /// Whole shards, each with the SHA-256 that it was packed with.
    async fn read_all(&self, split: &Split) -> Result<Vec<Bytes>, DataError> {
        let shards = split.shards().iter();
        let reads = shards.map(|shard| async move {
            let whole = 0..shard.bytes;
            // Checked before it gets into the cache, so that nothing false stays there.
            let read = || async {
                let bytes = self.read(shard, whole.clone()).await?;
                self.check_digest(shard, &bytes)?;
                Ok(bytes)
            };
            let cached = match &self.held {
                Held::Store(Some(cache)) => cache.read(&shard.sha256, &whole, &whole, read).await?,
                Held::Store(None) | Held::Memory(..) => None,
            };
            match cached {
                Some(bytes) if self.check_digest(shard, &bytes).is_ok() => Ok(bytes),
                Some(_) | None => read().await,
            }
        });
        stream::iter(reads).buffered(OPENING).try_collect().await
    }

    fn check_digest(&self, shard: &Shard, bytes: &[u8]) -> Result<(), DataError> {
        if hex(&Sha256::digest(bytes)) == shard.sha256 {
            return Ok(());
        }
        Err(DataError::Shard {
            name: self.store.name(&shard.path),
            reason: "it does not have the SHA-256 that the index says".into(),
        })
    }

    /// A range of a shard. What breaks off is asked for again by the store; an answer that is too short
    /// is, here.
    async fn read(&self, shard: &Shard, range: Range<u64>) -> Result<Bytes, DataError> {
        let want = range.end - range.start;
        let mut tries = 0;
        loop {
            let read = self.store.get_range_async(&shard.path, range.clone());
            let bytes = read.await?;
            if bytes.len() as u64 == want {
                return Ok(bytes);
            }
            tries += 1;
            if tries == TRIES {
                return Err(DataError::Shard {
                    name: self.store.name(&shard.path),
                    reason: format!(
                        "{} bytes came instead of {want} from byte {} on: it is shorter than its \
                         index says",
                        bytes.len(),
                        range.start
                    ),
                });
            }
            tokio::time::sleep(PAUSE * 2_u32.pow(tries)).await;
        }
    }
}

fn all_shards(index: &Index) -> impl Iterator<Item = &Shard> {
    index.train.shards().iter().chain(index.test.shards())
}

/// The range of a sample with its header before it, and behind it the file of its label.
fn entry(shard: &Shard, in_shard: usize) -> Range<u64> {
    let (offset, len) = (shard.offsets[in_shard], shard.lengths[in_shard]);
    let end = offset.saturating_add(len.next_multiple_of(TAR_BLOCK));
    let end = end.saturating_add(2 * TAR_BLOCK).min(shard.bytes);
    offset.saturating_sub(TAR_BLOCK)..end.max(offset + len)
}

/// The range from the first to the last sample of the block that holds this one.
fn block(shard: &Shard, in_shard: usize) -> Range<u64> {
    let first = in_shard / BLOCK * BLOCK;
    let last = (first + BLOCK).min(shard.len()) - 1;
    entry(shard, first).start..entry(shard, last).end
}

/// Whether an entry is of a picture of this length and, where the file of a label follows, of this
/// class; else what is wrong.
fn check_entry(entry: &[u8], len_bytes: u64, label: u32) -> Result<(), String> {
    let header = |at: usize| -> Option<(&Header, u64)> {
        let block = entry.get(at..at + usize::try_from(TAR_BLOCK).ok()?)?;
        let header = Header::from_byte_slice(block);
        // The sum of the header's bytes, its own field taken for blanks.
        let sum = block.iter().map(|&byte| u32::from(byte)).sum::<u32>();
        let field = block[148..156]
            .iter()
            .map(|&byte| u32::from(byte))
            .sum::<u32>();
        let is_right = header.cksum().ok()? == sum - field + 8 * 32;
        is_right.then_some((header, header.entry_size().ok()?))
    };
    let Some((_, size)) = header(0) else {
        return Err("there is no header of a tar file before it".into());
    };
    if size != len_bytes {
        return Err(format!("it has {size} bytes, the index says {len_bytes}"));
    }
    let behind = TAR_BLOCK + len_bytes.next_multiple_of(TAR_BLOCK);
    let behind = usize::try_from(behind).map_err(|_| "it is too long".to_owned())?;
    let Some((header, size)) = header(behind) else {
        return Ok(());
    };
    if !header.path_bytes().ends_with(b".cls") {
        return Ok(());
    }
    let start = behind + 512;
    let digits = usize::try_from(size).ok();
    let digits = digits.and_then(|size| entry.get(start..start.checked_add(size)?));
    let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
    match digits.and_then(|digits| digits.trim().parse::<u32>().ok()) {
        Some(found) if found == label => Ok(()),
        Some(found) => Err(format!("it is of class {found}, the index says {label}")),
        None => Err("the file of its class has no number".into()),
    }
}

/// Every shard must be there with the length that the index says.
async fn check_lengths(store: &Store, index: &Index) -> Result<(), DataError> {
    let looks = all_shards(index).map(|shard| async move {
        let reason = match store.head_async(&shard.path).await? {
            None => "the index names it, but it is not there".to_owned(),
            Some(bytes) if bytes != shard.bytes => {
                let want = shard.bytes;
                format!("it has {bytes} bytes, the index says {want}")
            }
            Some(_) => return Ok(()),
        };
        let name = store.name(&shard.path);
        Err(DataError::Shard { name, reason })
    });
    let looks = stream::iter(looks).buffered(LOOKING);
    looks.try_for_each(|()| std::future::ready(Ok(()))).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A picture of these bytes and the file of its label, as they are packed.
    fn packed(picture: &[u8], label: &str) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, bytes) in [("1.png", picture), ("1.cls", label.as_bytes())] {
            let mut header = Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.extend(header.as_bytes());
            tar.extend(bytes);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar
    }

    #[test]
    fn an_entry_is_of_the_length_and_class_that_the_index_says() {
        for len in [1, 511, 512, 513] {
            let entry = packed(&vec![7; len], "42");
            let len = len as u64;
            check_entry(&entry, len, 42).unwrap();
            let error = check_entry(&entry, len, 41).unwrap_err();
            assert_eq!(error, "it is of class 42, the index says 41");
            let error = check_entry(&entry, len + 1, 42).unwrap_err();
            assert!(error.contains("the index says"), "{error}");
            assert!(
                check_entry(&entry[1..], len, 42)
                    .unwrap_err()
                    .contains("header")
            );
        }
        assert!(check_entry(&packed(&[7], "x"), 1, 42).is_err());
        // Without the file of a label, as in the last block of another packer's shard.
        check_entry(&packed(&[7], "42")[..1024], 1, 41).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_not(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            len: u64,
            at in any::<prop::sample::Index>(),
        ) {
            let _ = check_entry(&bytes, len % (1 << 27), 0);
            let mut entry = packed(&[7; 100], "0");
            let at = at.index(entry.len());
            entry[at] ^= 1 + bytes.first().copied().unwrap_or(0) % 255;
            let _ = check_entry(&entry, 100, 0);
        }
    }
}
