//! The order of samples, and who reads which of them: a pure function of (seed, epoch, index).
//!
//! An epoch's order is a permutation of the samples. The first floor(N/B) B of it are cut into L
//! equal *lanes*, and global batch b takes B/L consecutive samples from each lane, lane by lane.
//! A rank owns whole lanes. So the samples of a batch are the same at any number of ranks, resuming
//! needs (epoch, batch) and nothing else, and a rank that reads in blocks reads few shards.

use std::ops::Range;

use crate::checkpoint::Digest;
use crate::ids::{Epoch, Rank, World};
use crate::random::{Purpose, keyed, permutation};

/// The most lanes of a plan, and so the most ranks that can share a batch.
pub const MAX_LANES: u32 = 64;

/// How an epoch's order is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shuffle {
    /// Every order of the samples is equally likely: for sets that fit in memory.
    Full,
    /// Blocks of consecutive samples of a shard in random order, then samples in random order
    /// inside windows of the result: what is read together lies together.
    Blocks {
        /// The samples of a block; the last one of a shard may be shorter.
        block: u32,
        /// The samples of a window; the last one may be shorter.
        window: u32,
    },
}

impl Shuffle {
    /// Blocks for sets larger than memory: of ImageNet a block has about 7 MB, a window 100 MB.
    pub const BLOCKS: Self = Self::Blocks {
        block: 64,
        window: 1024,
    };
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A batch, a block or a window of no samples.
    #[error("{what} holds no sample: set it to 1 or more")]
    Zero {
        /// Which one.
        what: &'static str,
    },
    /// More samples than an order can number.
    #[error("{num_samples} samples are more than {}, the limit", u32::MAX)]
    TooManySamples {
        /// The samples of the set; the largest number when their sum has no number.
        num_samples: u64,
    },
    /// Not one whole batch.
    #[error("{num_samples} samples make no batch of {batch}: make the batch smaller")]
    TooFewSamples {
        /// The samples of the set.
        num_samples: u64,
        /// B, the samples of a global batch.
        batch: u32,
    },
}

/// Why a rank has no share of the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// A rank that is not below the number of ranks.
    #[error("there is no {rank} among {}", world.0)]
    NoSuchRank {
        /// The rank.
        rank: Rank,
        /// The number of ranks.
        world: World,
    },
    /// More ranks than lanes: some would have nothing to do.
    #[error(
        "{} ranks cannot share a global batch of {batch}, which has {}: use at most {}{}",
        world.0,
        counted(*num_lanes, "lane"),
        counted(*num_lanes, "rank"),
        fitting(*world, *batch)
    )]
    TooManyRanks {
        /// The number of ranks.
        world: World,
        /// L, the lanes.
        num_lanes: u32,
        /// B, the samples of a global batch.
        batch: u32,
    },
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The batch sizes nearest to `batch` that so many ranks can share, in words.
fn fitting(world: World, batch: u32) -> String {
    if world.0 > MAX_LANES {
        return format!("; no batch has more than {MAX_LANES} lanes");
    }
    let sizes = batches_that_fit(world, batch).into_iter();
    let sizes: Vec<String> = sizes.map(|size| size.to_string()).collect();
    if sizes.is_empty() {
        String::new()
    } else {
        format!(", or a batch of {}", sizes.join(" or "))
    }
}

/// The order of a run's training samples in every epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    seed: u64,
    fingerprint: [u8; 32],
    shuffle: Shuffle,
    shard_lens: Vec<u32>,
    num_samples: u32,
    batch: u32,
    num_lanes: u32,
}

impl ShardPlan {
    /// The plan of a run with global batches of `batch` samples, from shards of `shard_lens`
    /// samples whose index has this fingerprint.
    ///
    /// # Errors
    ///
    /// A [`PlanError`] when there is no whole batch, or there are too many samples.
    pub fn new(
        seed: u64,
        fingerprint: [u8; 32],
        shuffle: Shuffle,
        shard_lens: impl IntoIterator<Item = u64>,
        batch: u32,
    ) -> Result<Self, PlanError> {
        let positive = |count: u32, what| match count {
            0 => Err(PlanError::Zero { what }),
            _ => Ok(()),
        };
        positive(batch, "a batch")?;
        if let Shuffle::Blocks { block, window } = shuffle {
            positive(block, "a block")?;
            positive(window, "a window")?;
        }
        let (shard_lens, num_samples) = count(shard_lens)?;
        if num_samples < batch {
            let num_samples = num_samples.into();
            return Err(PlanError::TooFewSamples { num_samples, batch });
        }
        Ok(Self {
            seed,
            fingerprint,
            shuffle,
            shard_lens,
            num_samples,
            batch,
            num_lanes: num_lanes(batch),
        })
    }

    /// The digest of all that decides the order: plans of the same digest have the same batches.
    pub fn digest(&self) -> Digest {
        let words = format!(
            "{} {:?} {:?} {:?} {} {}",
            self.seed,
            self.fingerprint,
            self.shuffle,
            self.shard_lens,
            self.num_samples,
            self.batch
        );
        Digest::of(words.as_bytes())
    }

    /// B, the samples of a global batch.
    pub fn batch(&self) -> u32 {
        self.batch
    }

    /// L, the largest divisor of B up to [`MAX_LANES`].
    pub fn num_lanes(&self) -> u32 {
        self.num_lanes
    }

    /// floor(N/B), the batches of an epoch: the last, partial one is dropped.
    pub fn num_batches(&self) -> u32 {
        self.num_samples / self.batch
    }

    /// What a rank takes of each batch: lanes floor(r L/W) .. floor((r+1) L/W), those of all ranks
    /// together being all lanes.
    ///
    /// # Errors
    ///
    /// A [`ShareError`] when the rank is not of this world, or there are more ranks than lanes.
    pub fn share(&self, rank: Rank, world: World) -> Result<Share, ShareError> {
        if rank.0 >= world.0 {
            return Err(ShareError::NoSuchRank { rank, world });
        }
        if world.0 > self.num_lanes {
            return Err(ShareError::TooManyRanks {
                world,
                num_lanes: self.num_lanes,
                batch: self.batch,
            });
        }
        // Fits u32: both factors are at most MAX_LANES.
        let start = |rank: u32| rank * self.num_lanes / world.0;
        Ok(Share {
            lanes: start(rank.0)..start(rank.0 + 1),
            per_lane: self.batch / self.num_lanes,
        })
    }

    /// The order of the samples in `epoch`; takes 4 bytes a sample.
    ///
    /// # Panics
    ///
    /// Never: a fingerprint is four words.
    pub fn order(&self, epoch: Epoch) -> EpochOrder {
        let mut words = [u64::from(epoch.0), 0, 0, 0, 0];
        for (word, bytes) in words[1..].iter_mut().zip(self.fingerprint.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("chunks of eight bytes"));
        }
        let mut rng = keyed(self.seed, Purpose::Shuffle, &words);
        let samples = match self.shuffle {
            Shuffle::Full => permutation(&mut rng, self.num_samples as usize),
            Shuffle::Blocks { block, window } => {
                let blocks = self.blocks(block);
                let order = permutation(&mut rng, blocks.len());
                let in_order = order.iter().flat_map(|&at| blocks[at as usize].clone());
                let mut samples: Vec<u32> = in_order.collect();
                let mut scratch = Vec::new();
                for window in samples.chunks_mut(window as usize) {
                    scratch.clear();
                    scratch.extend_from_slice(window);
                    let order = permutation(&mut rng, window.len());
                    for (to, from) in window.iter_mut().zip(order) {
                        *to = scratch[from as usize];
                    }
                }
                samples
            }
        };
        EpochOrder {
            samples,
            num_batches: self.num_batches(),
            num_lanes: self.num_lanes,
            per_lane: self.batch / self.num_lanes,
        }
    }

    /// The samples of each block: shard after shard, none across two shards.
    fn blocks(&self, block: u32) -> Vec<Range<u32>> {
        let mut blocks = Vec::new();
        let mut start = 0;
        for &len in &self.shard_lens {
            let end = start + len;
            while start < end {
                let next = start.saturating_add(block).min(end);
                blocks.push(start..next);
                start = next;
            }
        }
        blocks
    }
}

/// What one rank takes of each global batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    lanes: Range<u32>,
    per_lane: u32,
}

impl Share {
    /// The lanes of the rank.
    pub fn lanes(&self) -> Range<u32> {
        self.lanes.clone()
    }

    /// `n_r`, the samples of the rank in each batch.
    pub fn num_samples(&self) -> u32 {
        (self.lanes.end - self.lanes.start) * self.per_lane
    }

    /// The places in the global batch of the rank's samples.
    pub fn places(&self) -> Range<u32> {
        self.lanes.start * self.per_lane..self.lanes.end * self.per_lane
    }
}

/// The samples of one epoch in the order in which they are learnt from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder {
    samples: Vec<u32>,
    num_batches: u32,
    num_lanes: u32,
    per_lane: u32,
}

impl EpochOrder {
    /// The samples of global batch `batch_index`, lane by lane.
    ///
    /// # Panics
    ///
    /// When there is no such batch.
    pub fn batch(&self, batch_index: u32) -> impl Iterator<Item = u32> {
        self.lanes(batch_index, 0..self.num_lanes)
    }

    /// The samples of a rank in global batch `batch_index`, lane by lane.
    ///
    /// # Panics
    ///
    /// When there is no such batch, or the share is of another plan.
    pub fn share(&self, batch_index: u32, share: &Share) -> impl Iterator<Item = u32> {
        assert_eq!(share.per_lane, self.per_lane, "the share of another plan");
        self.lanes(batch_index, share.lanes())
    }

    fn lanes(&self, batch_index: u32, lanes: Range<u32>) -> impl Iterator<Item = u32> {
        assert!(
            batch_index < self.num_batches,
            "batch {batch_index} of {} of an epoch",
            self.num_batches
        );
        assert!(lanes.end <= self.num_lanes, "the share of another plan");
        // Places are below N, which fits u32.
        let lane_len = self.num_batches * self.per_lane;
        lanes.flat_map(move |lane| {
            let start = (lane * lane_len + batch_index * self.per_lane) as usize;
            self.samples[start..][..self.per_lane as usize]
                .iter()
                .copied()
        })
    }
}

/// The test samples of one rank: all of them are cut in order, each belongs to one rank.
///
/// # Errors
///
/// [`ShareError::NoSuchRank`] when the rank is not of this world.
///
/// # Panics
///
/// Never: a part of the samples is no more than all.
pub fn test_share(len: u64, rank: Rank, world: World) -> Result<Range<u64>, ShareError> {
    if rank.0 >= world.0 {
        return Err(ShareError::NoSuchRank { rank, world });
    }
    let start = |rank: u64| {
        let start = u128::from(len) * u128::from(rank) / u128::from(world.0);
        u64::try_from(start).expect("at most len")
    };
    let rank = u64::from(rank.0);
    Ok(start(rank)..start(rank + 1))
}

/// The lanes of a plan with this global batch: the largest divisor of it up to [`MAX_LANES`].
pub fn num_lanes(batch: u32) -> u32 {
    let divides = |lanes: &u32| batch.is_multiple_of(*lanes);
    (1..=MAX_LANES).rev().find(divides).unwrap_or(1)
}

/// The global batches nearest to `batch`, the smaller one first, whose lanes at most [`MAX_LANES`] ranks
/// can share: two at most, none for more ranks than that.
pub fn batches_that_fit(world: World, batch: u32) -> Vec<u32> {
    if world.0 > MAX_LANES {
        return Vec::new();
    }
    let fits = |batch: &u32| num_lanes(*batch) >= world.0;
    // A multiple of `world` always fits, and one is near.
    let lowest = world.0.max(batch.saturating_sub(world.0));
    let below = (lowest..batch).rev().find(fits);
    let above = (batch..=batch.max(world.0).saturating_add(world.0)).find(fits);
    below.into_iter().chain(above).collect()
}

fn count(shard_lens: impl IntoIterator<Item = u64>) -> Result<(Vec<u32>, u32), PlanError> {
    let mut num_samples = 0_u64;
    let mut lens = Vec::new();
    for len in shard_lens {
        num_samples = num_samples.saturating_add(len);
        let too_many = |_| PlanError::TooManySamples { num_samples };
        lens.push(u32::try_from(len).map_err(too_many)?);
    }
    let too_many = |_| PlanError::TooManySamples { num_samples };
    Ok((lens, u32::try_from(num_samples).map_err(too_many)?))
}

#[cfg(test)]
mod tests;
