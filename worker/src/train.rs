//! The training loop: epochs, batches, evaluation. Data come from [`crate::data`], everything below
//! the batch is the algorithm's.

mod evaluate;
mod event;
mod group;
pub mod init;
mod line;
mod pictures;
mod pulse;
mod saving;
mod tally;
mod training;

use crate::checkpoint::CheckpointError;
use crate::collective::{Collective, CollectiveError, Solo, Wire, place};
use crate::data::{DataError, Source};
use crate::engine::plan::Role;
use crate::kernel::{Failure, Norms};
use crate::learn::Fault;
use crate::learn::exchange::{self, Exchange, Part};
use crate::node::{self, Node, NodeError, Share};
use crate::shape::Shape;
use crate::weights::WeightsError;
pub use evaluate::{EvaluateError, Tested, evaluate};
pub use event::{EpochRecord, Event, Progress, Timing};
pub use line::EpochLine;
pub use pulse::{Beat, Phase, Pulse};
use saving::Saving;
pub use saving::{Generation, Kept, Options, Resume};
use std::sync::Arc;
use std::time::Instant;
use synfire_shared::checkpoint::ManifestName;
use synfire_shared::ids::Rank;
use synfire_shared::run::{self, Run};
pub use tally::Tally;
use training::Training;

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The data cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The network or the back end cannot be built.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The run folder or a checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights to start from cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The checkpoint that a generation starts from cannot be used.
    #[error("{source}{}", if *has_older { ": it is put aside, the next start takes an older one" } else { "" })]
    DamagedStart {
        /// Its manifest.
        manifest: ManifestName,
        /// Whether it is put aside, because an older one counts.
        has_older: bool,
        /// What is wrong with it.
        source: Box<CheckpointError>,
    },
    /// Another rank is lost, or this one is cut off.
    #[error(transparent)]
    Ranks(#[from] CollectiveError),
    /// The ranks would not do the same.
    #[error("{rank} {what}")]
    Disagree {
        /// The rank that differs.
        rank: Rank,
        /// In what, and the remedy.
        what: String,
    },
    /// The training set is smaller than one batch.
    #[error("the training set has {len} images, data.batch is {batch}: make the batch smaller")]
    BatchTooLarge {
        /// Training images.
        len: usize,
        /// Images of a batch.
        batch: usize,
    },
    /// The device computes no more.
    #[error("epoch {}, batch {}: the device failed: {what}", epoch + 1, batch + 1)]
    Device {
        /// The epoch, from 0.
        epoch: u32,
        /// The last batch in the epoch that was computed in vain, from 0.
        batch: usize,
        /// What the device says.
        what: Failure,
    },
    /// The test set gives numbers that are not finite.
    #[error("epoch {}, on the test set", epoch + 1)]
    Evaluation {
        /// The epoch, from 0.
        epoch: u32,
        /// What and where.
        #[source]
        fault: Fault,
    },
    /// Training gives numbers that are not finite.
    #[error("epoch {}, batch {}", epoch + 1, batch + 1)]
    Fault {
        /// The epoch, from 0.
        epoch: u32,
        /// The batch in the epoch, from 0.
        batch: usize,
        /// What and where.
        #[source]
        fault: Fault,
    },
}

/// A finished run with its network.
#[derive(Debug)]
pub struct Trained {
    /// Every epoch since the run was last started.
    pub epochs: Vec<EpochRecord>,
    /// The signal that ended it before its time.
    pub stopped: Option<usize>,
    /// What its folder has, if it has one.
    pub kept: Option<Kept>,
    /// The network as it is now, with its back end.
    pub node: Node,
    /// Seconds in all.
    pub seconds: f64,
}

/// Trains as the run says, alone.
///
/// # Errors
/// If the data cannot be read, the network cannot be built, a checkpoint cannot be used or the last
/// one not be written, or the loss stops being finite.
pub fn train(
    run: &Run,
    options: &Options,
    tell: &mut dyn FnMut(Event),
) -> Result<Trained, TrainError> {
    train_in(run, options, Box::new(Solo::new()), tell)
}

/// Trains as the run says, as one of the ranks of a group. Rank 0 alone keeps the run's folder.
///
/// # Errors
/// As [`train`]; or if other ranks do not do the same, or are lost. The others are told of errors of
/// this rank.
pub fn train_in(
    run: &Run,
    options: &Options,
    mut collective: Box<dyn Collective>,
    tell: &mut dyn FnMut(Event),
) -> Result<Trained, TrainError> {
    let begin = Instant::now();
    collective.set_deadline(group::STARTUP);
    let prepared = prepare(run, options, &mut collective, tell);
    let (source, mut node, saving, bucket) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            group::tell(&error, &mut *collective);
            return Err(error);
        }
    };
    if collective.world().0 > 1 {
        collective.set_deadline(group::deadline(run, 0.0));
        let part = Part {
            places: source.share(),
            batch: run.data.batch,
            wire: wire(run),
            bucket,
            overlaps: run.ranks.overlap,
            stop: Arc::clone(&options.stop),
            waiting: group::waiting(&options.pulse),
        };
        let network = &node.learner.network;
        let is_on_device = collective.on_device().is_some();
        let mut exchange = Exchange::new(collective, part, network, run.time_steps);
        if let (true, Some(arenas)) = (is_on_device, node.kernels.device_arenas()) {
            exchange = exchange.between_devices(arenas);
        }
        tell(grouped(&exchange));
        node.learner.exchange = Some(exchange);
    }
    let mut training = Training::new(run, source, saving, Arc::clone(&options.pulse));
    let epochs = match training.epochs(&mut node, tell) {
        Ok(epochs) => epochs,
        Err(error) => {
            // What is being written is kept, whatever the others do: under mpirun telling them ends this
            // process.
            let error = training.end(error, tell);
            if let Some(exchange) = &mut node.learner.exchange {
                group::tell(&error, exchange.collective());
            }
            return Err(error);
        }
    };
    let stopped = training.stopped(&node);
    let kept = training.finish(tell);
    if let Some(exchange) = &mut node.learner.exchange {
        let collective = exchange.collective();
        match &kept {
            // Nobody is done before the last checkpoint is there.
            Ok(_) => group::meet(collective)?,
            Err(error) => group::tell(error, collective),
        }
    }
    Ok(Trained {
        epochs,
        stopped,
        kept: kept?,
        node,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Opens the data and the run's folder, builds the network and brings it to where training starts:
/// on all ranks to where rank 0 does. Also gives the numbers of a bucket.
fn prepare(
    run: &Run,
    options: &Options,
    collective: &mut Box<dyn Collective>,
    tell: &mut dyn FnMut(Event),
) -> Result<(Source, Node, Saving, usize), TrainError> {
    let (rank, world) = (collective.rank(), collective.world());
    let source = match &options.source {
        Some(source) => source.clone(),
        None => Source::open(&run.data, run.seed)?,
    };
    let source = source.of_rank(rank, world)?;
    let info = source.info();
    let input = Shape::new(info.shape.height, info.shape.width, info.shape.channels);
    if source.train_batches() == 0 {
        return Err(TrainError::BatchTooLarge {
            len: info.train_len,
            batch: run.data.batch,
        });
    }
    let share = Share {
        places: source.share(),
        norms: match world.0 {
            1 => Norms::Own,
            _ if run.batch_norm.sync => Norms::Synchronised,
            _ => Norms::Pooled,
        },
        local_rank: match world.0 {
            1 => 0,
            _ => place::local_rank(&mut **collective)?,
        },
    };
    let mut node = node::build_share(run, input, info.classes, &share)?;
    let source = source.raw(node.kernels.takes_pictures());
    tell(began(&node, &source));
    if world.0 == 1 {
        let saving = Saving::begin(run, options, &source, &mut node, tell)?;
        return Ok((source, node, saving, 0));
    }
    group::agree(&mut **collective, run, &source)?;
    group::connect_devices(collective, run, &node, tell)?;
    let collective = &mut **collective;
    let mut saving = match rank {
        Rank(0) => Saving::begin(run, options, &source, &mut node, tell)?,
        _ => Saving::follow(run, options),
    };
    let start = group::share_start(collective, &mut node, saving.start())?;
    saving.start_at(start);
    let bucket = bucket(run, collective, &node, &saving)?;
    Ok((source, node, saving, bucket))
}

fn wire(run: &Run) -> Wire {
    match run.ranks.wire {
        run::Wire::F32 => Wire::F32,
        run::Wire::Bf16 => Wire::Bf16,
    }
}

/// The numbers of a bucket: as configured, as an earlier start of the run has found, or measured.
fn bucket(
    run: &Run,
    collective: &mut dyn Collective,
    node: &Node,
    saving: &Saving,
) -> Result<usize, TrainError> {
    let len = node.learner.network.plan().layout.len();
    let mib = run.ranks.bucket_mib;
    if mib > 0.0 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most 1024 MiB"
        )]
        let numbers = (mib * f64::from(1 << 18)).ceil() as usize;
        return Ok(numbers);
    }
    let key = group::Tuned::key(run, &*collective, len);
    let mut tuned = group::Tuned::read(saving.tuning().as_deref());
    if let Some(known) = group::known_bucket(collective, &tuned, &key)? {
        return Ok(known);
    }
    let arenas = node.kernels.device_arenas();
    let bucket = match arenas.filter(|_| collective.on_device().is_some()) {
        Some(arenas) => exchange::measured_between_devices(collective, &arenas, len, wire(run))?,
        None => exchange::measured(collective, len, wire(run))?,
    };
    tuned.add(key, bucket);
    saving.keep_tuning(&tuned.text());
    Ok(bucket)
}

fn began(node: &Node, source: &Source) -> Event {
    let (parameters, info) = (node.graph.parameters(), source.info());
    Event::Began {
        engine: node.kernels.name(),
        algorithm: node.algorithm.name(),
        parameters: parameters
            .iter()
            .map(crate::graph::Parameter::elements)
            .sum(),
        images: (info.train_len, info.test_len),
        layers: layers(node),
        window_bytes: node.learner.network.bytes(&*node.kernels, Role::Kept),
        device_bytes: node.learner.network.device_bytes(&*node.kernels),
    }
}

fn grouped(exchange: &Exchange) -> Event {
    let group = exchange.group();
    let ranges = exchange.buckets();
    let sizes: Vec<usize> = ranges.map(|range| range.len()).collect();
    Event::Grouped {
        rank: group.rank(),
        world: group.world(),
        samples: exchange.part().places.len(),
        collective: group.name(),
        buckets: (sizes.iter().copied().max().unwrap_or(0), sizes.len()),
    }
}

/// The names of the layers of neurons by the number of their counter; twins go by the first's.
fn layers(node: &Node) -> Vec<String> {
    let mut layers: Vec<String> = Vec::new();
    for (name, counter) in &node.learner.network.plan().neurons {
        layers.resize(layers.len().max(counter + 1), String::new());
        if layers[*counter].is_empty() {
            layers[*counter].clone_from(name);
        }
    }
    layers
}
