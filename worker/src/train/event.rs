//! What a run tells while it goes.

use super::{EpochLine, Tally};
use crate::checkpoint::Page;
use crate::data::BadSample;
use crate::weights::Taken;
use synfire_shared::checkpoint::{ManifestName, Position};
use synfire_shared::ids::{Rank, World};

/// Where a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Batches done in this epoch.
    pub batch: usize,
    /// Batches of an epoch.
    pub batches: usize,
    /// Batches done in this run.
    pub batches_done: u64,
    /// Batches that the run will do.
    pub batches_in_all: u64,
    /// Training so far in this epoch.
    pub tally: Tally,
    /// Images per second in this epoch.
    pub images_per_second: f64,
    /// The learning rate.
    pub lr: f64,
    /// The batches since the last progress.
    pub timings: Vec<Timing>,
}

/// What a batch took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Seconds from when its data were there.
    pub batch_seconds: f64,
    /// Seconds in which its data were waited for.
    pub data_wait_seconds: f64,
    /// Updates that it made.
    pub updates: u64,
    /// Seconds in which averages over ranks were waited for: communication that no computation hid.
    pub exchange_wait_seconds: f64,
}

/// A finished epoch.
#[derive(Clone, Debug)]
pub struct EpochRecord {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Its learning rate.
    pub lr: f64,
    /// Training.
    pub train: Tally,
    /// The test set, if this epoch ended with it.
    pub test: Option<Tally>,
    /// Seconds of training, without the evaluation.
    pub train_seconds: f64,
    /// Training images per second.
    pub images_per_second: f64,
    /// Of these, seconds in which the next batch was waited for.
    pub data_wait_seconds: f64,
    /// Of these, seconds in which averages over ranks were waited for.
    pub exchange_wait_seconds: f64,
    /// Updates made in them.
    pub updates: u64,
}

impl EpochRecord {
    /// The test set, if this epoch ended with it and it has samples.
    pub fn tested(&self) -> Option<&Tally> {
        let test = self.test.as_ref();
        test.filter(|tally| tally.samples.iter().any(|&n| n > 0))
    }
}

/// What a run tells while it goes.
#[derive(Clone, Debug)]
pub enum Event {
    /// Training has begun: what runs, on what.
    Began {
        /// The back end.
        engine: String,
        /// The algorithm.
        algorithm: String,
        /// Trained numbers.
        parameters: usize,
        /// Training images, test images.
        images: (usize, usize),
        /// Layers of neurons, in the order in which a tally counts them.
        layers: Vec<String>,
        /// Bytes that the window of time steps keeps for the backward.
        window_bytes: u64,
        /// Bytes that the back end holds of the network.
        device_bytes: u64,
    },
    /// There are several ranks, and they have found each other.
    Grouped {
        /// This process's rank.
        rank: Rank,
        /// How many there are.
        world: World,
        /// This rank's samples of each batch.
        samples: usize,
        /// How they average.
        collective: String,
        /// Numbers of a bucket of gradients, and how many buckets there are.
        buckets: (usize, usize),
    },
    /// Weights were taken to start from.
    Initialised {
        /// The file or checkpoint.
        from: String,
        /// What was taken.
        taken: Taken,
    },
    /// Training goes on from a checkpoint.
    Resumed {
        /// The checkpoint.
        from: String,
        /// Where.
        position: Position,
    },
    /// The run keeps its results in a folder.
    Recording {
        /// Where its report goes.
        page: Page,
        /// The epochs that it has already.
        earlier: Vec<EpochLine>,
    },
    /// A checkpoint was copied, to be written.
    CheckpointCopied {
        /// Seconds for which training stood still.
        stall_seconds: f64,
    },
    /// A checkpoint was written, or could not be.
    CheckpointEnded {
        /// Seconds that writing took, or trying to.
        seconds: f64,
        /// Its bytes, if it is there.
        bytes: Option<u64>,
        /// Its manifest.
        manifest: ManifestName,
        /// The epoch in which training goes on from it, from 0.
        epoch: u32,
    },
    /// Something that does not end the run.
    Warning(String),
    /// Samples that could not be used, and what took their place.
    BadSamples(Vec<BadSample>),
    /// Some more batches.
    Progress(Progress),
    /// An epoch.
    Epoch(Box<EpochRecord>),
}
