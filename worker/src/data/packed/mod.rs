//! A data set in shards: range reads, decoding, augmentation, batches.
//!
//! # Layout
//!
//! In the order data meets them.
//!
//! - `shards`: the bytes of a sample: from memory, a local file, or a store through the cache.
//! - `cache`: what was read from a remote store, on a local disk.
//! - `decode`: bytes to the values that the network sees.
//! - `stream`: the thread that has batches ready, and those that decode.
//! - this file: opening a set, and what is wrong with it before the first batch.

mod cache;
mod decode;
mod shards;
mod stream;

use std::sync::Arc;

use synfire_shared::checkpoint::Digest;
use synfire_shared::dataset::{INDEX_NAME, Index, LIMIT_BYTES};
use synfire_shared::run;
use synfire_shared::storage::{StorageError, Store};

use super::augment::Augment;
use super::dataset::{Normalise, Shape};
use super::error::DataError;
use super::imagenet;
use super::source::Info;
use decode::Recipe;
use shards::Shards;
pub use stream::PackedLoader;

/// Shards of so many bytes together are read at once and kept: every order is as fast as any other.
const RESIDENT_BYTES: u64 = 512 << 20;

/// One of a set's two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Train,
    Test,
}

/// An open data set in shards.
#[derive(Debug)]
pub struct Packed {
    info: Info,
    shards: Shards,
    recipe: Recipe,
}

impl Packed {
    /// Reads the index, looks every shard up and reads small sets whole.
    ///
    /// # Errors
    ///
    /// A [`DataError`] when there is no index, a shard is missing or of another length, or a small
    /// set's shard is not what was packed; when the augmentation does not go with the set.
    pub fn open(packed: &run::Packed, augment: run::Augment) -> Result<Self, DataError> {
        Self::open_within(packed, augment, RESIDENT_BYTES)
    }

    /// Opens a set, keeping shards of up to so many bytes in memory.
    fn open_within(
        packed: &run::Packed,
        augment: run::Augment,
        resident_bytes: u64,
    ) -> Result<Self, DataError> {
        let store = Store::open(&packed.url)?;
        let name = store.name(INDEX_NAME);
        let bytes = match store.get(INDEX_NAME, LIMIT_BYTES) {
            Err(StorageError::NotFound { .. }) => {
                let url = store.url().to_owned();
                return Err(DataError::NoIndex { url });
            }
            bytes => bytes?,
        };
        let index = Index::parse(&bytes, &name)?;
        drop(bytes);
        let recipe = recipe(&index, &name, packed, augment)?;
        let count = |len: u64| {
            usize::try_from(len).map_err(|_| DataError::Unusable {
                name: name.clone(),
                reason: format!("{len} samples are more than memory can number"),
            })
        };
        let info = Info {
            name: index.name.clone(),
            classes: index.classes.len(),
            shape: recipe.shape(),
            train_len: count(index.train.len())?,
            test_len: count(index.test.len())?,
            fingerprint: Digest::from(index.fingerprint()),
        };
        let shards = Shards::open(store, index, packed, resident_bytes)?;
        Ok(Self {
            info,
            shards,
            recipe,
        })
    }

    /// What the set is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The samples of a part.
    fn len(&self, part: Part) -> usize {
        match part {
            Part::Train => self.info.train_len,
            Part::Test => self.info.test_len,
        }
    }
}

/// What is done to a picture of this set.
fn recipe(
    index: &Index,
    name: &str,
    packed: &run::Packed,
    augment: run::Augment,
) -> Result<Recipe, DataError> {
    let normalise = Normalise {
        mean: index.normalise.mean.clone(),
        std: index.normalise.std.clone(),
    };
    let channels = index.channels as usize;
    let unusable = |reason: &str| DataError::Unusable {
        name: name.into(),
        reason: reason.into(),
    };
    let Some([height, width]) = index.shape else {
        if channels != 3 {
            return Err(unusable("pictures of any size must have three channels"));
        }
        return Ok(Recipe::AnySize {
            normalise,
            options: imagenet::Options {
                side: packed.side,
                flip: packed.flip,
                auto_augment: augment == run::Augment::AutoAugment,
            },
            augments: augment != run::Augment::None,
        });
    };
    let augment = match augment {
        run::Augment::None => Augment::None,
        run::Augment::Standard if channels == 1 => Augment::Fashion,
        run::Augment::Standard => Augment::Cifar,
        run::Augment::AutoAugment => return Err(DataError::AutoAugment),
    };
    let shape = Shape {
        height: height as usize,
        width: width as usize,
        channels,
    };
    let sides = 1..=super::picture::LIMIT_SIDE;
    if !sides.contains(&height) || !sides.contains(&width) {
        return Err(unusable("its pictures have sides that no picture may have"));
    }
    Ok(Recipe::OneSize {
        normalise,
        shape,
        augment,
    })
}

/// An open set behind one counter: batches are made by many threads.
type SharedSet = Arc<Packed>;

#[cfg(test)]
mod tests;
