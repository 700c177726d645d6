//! The training loop: epochs, batches, evaluation. Data come from [`crate::data`], everything below
//! the batch is the algorithm's.

mod evaluate;
mod event;
pub mod init;
mod line;
mod saving;
mod tally;

use crate::checkpoint::CheckpointError;
use crate::data::{DataError, Next, Place, Prefetch, Source};
use crate::engine::plan::Role;
use crate::learn::{Batch, Fault, Input, Masks, Unobserved};
use crate::node::{self, Node, NodeError};
use crate::shape::Shape;
use crate::weights::WeightsError;
pub use evaluate::{EvaluateError, evaluate};
pub use event::{EpochRecord, Event, Progress, Timing};
pub use line::EpochLine;
use saving::{Counted, Saving};
pub use saving::{Kept, Options, Resume};
use std::sync::atomic::Ordering;
use std::time::Instant;
use synfire_shared::checkpoint::Position;
use synfire_shared::ids::Epoch;
use synfire_shared::run::Run;
pub use tally::Tally;

/// Batches between two readings of the device's sums.
const REPORT_EVERY: usize = 8;

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
    /// The training set is smaller than one batch.
    #[error("the training set has {len} images, data.batch is {batch}: make the batch smaller")]
    BatchTooLarge {
        /// Training images.
        len: usize,
        /// Images of a batch.
        batch: usize,
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

/// Trains as the run says.
///
/// # Errors
/// If the data cannot be read, the network cannot be built, a checkpoint cannot be used or the last
/// one not be written, or the loss stops being finite.
pub fn train(
    run: &Run,
    options: &Options,
    tell: &mut dyn FnMut(Event),
) -> Result<Trained, TrainError> {
    let begin = Instant::now();
    let source = Source::open(&run.data, run.seed)?;
    let info = source.info();
    let input = Shape::new(info.shape.height, info.shape.width, info.shape.channels);
    if source.train_batches() == 0 {
        return Err(TrainError::BatchTooLarge {
            len: info.train_len,
            batch: run.data.batch,
        });
    }
    let mut node = node::build(run, input, info.classes)?;
    let parameters = node.graph.parameters();
    tell(Event::Began {
        engine: node.kernels.name(),
        algorithm: node.algorithm.name(),
        parameters: parameters
            .iter()
            .map(crate::graph::Parameter::elements)
            .sum(),
        images: (info.train_len, info.test_len),
        layers: layers(&node),
        window_bytes: node.learner.network.bytes(&*node.kernels, Role::Kept),
        device_bytes: node.learner.network.device_bytes(&*node.kernels),
    });
    let saving = Saving::begin(run, options, &source, &mut node, tell)?;
    let mut training = Training::new(run, source, saving);
    let epochs = match training.epochs(&mut node, tell) {
        Ok(epochs) => epochs,
        Err(error) => return Err(training.end(error, tell)),
    };
    Ok(Trained {
        epochs,
        node,
        stopped: training.stopped(),
        kept: training.saving.finish(tell)?,
        seconds: begin.elapsed().as_secs_f64(),
    })
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

struct Training<'a> {
    run: &'a Run,
    source: Source,
    prefetch: Prefetch,
    saving: Saving,
    batches_done: u64,
    batches_in_all: u64,
    /// Whether a signal ended an epoch before its end.
    is_cut: bool,
}

impl<'a> Training<'a> {
    fn new(run: &'a Run, source: Source, saving: Saving) -> Self {
        let position = saving.position;
        let batch_index =
            usize::try_from(position.batch).expect("it was checked to be in an epoch");
        let epoch = Epoch(position.epoch);
        let first = Place { epoch, batch_index };
        let whole = u64::from(run.epochs) * source.train_batches() as u64;
        Self {
            run,
            prefetch: source.train(first, Epoch(run.epochs)),
            source,
            saving,
            batches_done: position.batches_done,
            batches_in_all: run.max_batches.map_or(whole, |most| most.min(whole)),
            is_cut: false,
        }
    }

    /// The signal that ended the run before its time.
    fn stopped(&self) -> Option<usize> {
        let is_over = self.batches_done >= self.batches_in_all && !self.is_cut;
        self.saving.stopped().filter(|_| !is_over)
    }

    /// Whether an epoch was learnt from, but not yet judged by the test set, when the run was saved.
    fn is_untested(&self) -> bool {
        self.saving.position.batch == self.source.train_batches() as u64
    }

    /// The epochs that are left, until the last or a signal.
    fn epochs(
        &mut self,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Vec<EpochRecord>, TrainError> {
        let mut epochs = Vec::new();
        let Position { epoch, batch, .. } = self.saving.position;
        let mut batch = usize::try_from(batch).expect("it was checked to be in an epoch");
        let first = epoch;
        for epoch in epoch..self.run.epochs {
            let is_left = epoch == first && self.is_untested();
            if self.batches_done >= self.batches_in_all && !is_left {
                break;
            }
            if self.saving.stopped().is_some() {
                let place = (epoch, batch, self.batches_done);
                let counted = self.saving.take_counted();
                self.saving.stop(node, place, counted);
                self.is_cut = true;
                break;
            }
            let Some(record) = self.epoch(epoch, batch, node, tell)? else {
                self.is_cut = true;
                break;
            };
            tell(Event::Epoch(Box::new(record.clone())));
            batch = 0;
            epochs.push(record);
        }
        Ok(epochs)
    }

    /// One epoch from this batch on; nothing where a signal ended it.
    fn epoch(
        &mut self,
        epoch: u32,
        mut batch: usize,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<EpochRecord>, TrainError> {
        let lr = self.set_lr(node, epoch);
        let batches = self.source.train_batches();
        let (begin, waited) = (Instant::now(), self.prefetch.waited());
        let mut counted = self.saving.take_counted();
        let (seconds, data_wait_seconds) = (counted.seconds, counted.data_wait_seconds);
        let mut images_per_second = self.rate(batch, &counted);
        let mut timings = Vec::with_capacity(REPORT_EVERY);
        while batch < batches && self.batches_done < self.batches_in_all {
            match self.learn(node, epoch, batch, tell) {
                Ok(Some(timing)) => timings.push(timing),
                other => {
                    counted.tally.add(&node.kernels.take_report());
                    counted.seconds = seconds + begin.elapsed().as_secs_f64();
                    return self.give_up(node, (epoch, batch), counted, other.err());
                }
            }
            batch += 1;
            let last = batch == batches || self.batches_done == self.batches_in_all;
            let stops = !last && self.saving.stopped().is_some();
            let saves = !last && (stops || self.saving.is_due(self.batches_done));
            if batch.is_multiple_of(REPORT_EVERY) || last || saves {
                counted.tally.add(&node.kernels.take_report());
                counted.seconds = seconds + begin.elapsed().as_secs_f64();
                let waited = self.prefetch.waited().saturating_sub(waited);
                counted.data_wait_seconds = data_wait_seconds + waited.as_secs_f64();
                images_per_second = self.rate(batch, &counted);
                tell(Event::Progress(Progress {
                    epoch,
                    batch,
                    batches,
                    batches_done: self.batches_done,
                    batches_in_all: self.batches_in_all,
                    tally: counted.tally.clone(),
                    images_per_second,
                    lr,
                    timings: std::mem::take(&mut timings),
                }));
                self.saving.attend(tell)?;
            }
            let place = (epoch, batch, self.batches_done);
            if stops {
                self.saving.stop(node, place, counted);
                return Ok(None);
            }
            if saves {
                self.saving.save(node, place, counted.clone(), None);
            }
        }
        let ends = epoch + 1 == self.run.epochs || self.batches_done == self.batches_in_all;
        let evaluates = ends || (epoch + 1).is_multiple_of(self.run.evaluate_every);
        let mut test = None;
        if evaluates {
            match self.test(node, epoch, tell) {
                Ok(Some(tally)) => test = Some(tally),
                // Weights are as they were before the test: it comes again.
                other => return self.give_up(node, (epoch, batch), counted, other.err()),
            }
        }
        let record = EpochRecord {
            epoch,
            lr,
            train: counted.tally,
            test,
            train_seconds: counted.seconds,
            images_per_second,
            data_wait_seconds: counted.data_wait_seconds,
        };
        let next = self.next_place(epoch, batch);
        self.saving.end_of_epoch(node, &record, next, ends);
        Ok(Some(record))
    }

    /// Sets the learning rate of an epoch, and returns it.
    fn set_lr(&self, node: &mut Node, epoch: u32) -> f64 {
        let optimiser = &mut node.learner.optimiser;
        let base = optimiser.base_lr();
        let lr = self.run.schedule.lr(base, Epoch(epoch), self.run.epochs);
        optimiser.set_lr(lr);
        lr
    }

    /// Training images per second of so many batches of an epoch.
    fn rate(&self, batches: usize, counted: &Counted) -> f64 {
        let images = (batches * self.run.data.batch) as f64;
        if counted.seconds > 0.0 {
            images / counted.seconds
        } else {
            0.0
        }
    }

    /// Saves what was learnt before a signal, without an error, or before data gave out: the network
    /// is sound.
    fn give_up(
        &mut self,
        node: &mut Node,
        (epoch, batch): (u32, usize),
        counted: Counted,
        error: Option<TrainError>,
    ) -> Result<Option<EpochRecord>, TrainError> {
        if matches!(error, None | Some(TrainError::Data(_))) {
            let place = (epoch, batch, self.batches_done);
            self.saving.stop(node, place, counted);
        }
        error.map_or(Ok(None), Err)
    }

    /// Waits for what is being written, whose failures are told, and gives why the run ends.
    fn end(self, error: TrainError, tell: &mut dyn FnMut(Event)) -> TrainError {
        if let Err(more) = self.saving.finish(tell) {
            let more = more.to_string();
            // That another process has the folder may be why the run ends.
            if more != error.to_string() {
                tell(Event::Warning(more));
            }
        }
        error
    }

    /// The test set; nothing where a signal came.
    fn test(
        &mut self,
        node: &mut Node,
        epoch: u32,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Tally>, TrainError> {
        let stop = self.saving.stop_flag();
        let stops = || stop.load(Ordering::Relaxed) != 0;
        let saving = &mut self.saving;
        let tested = evaluate(
            node,
            &self.source,
            self.run.time_steps,
            &stops,
            &mut |bad| {
                saving.list_bad_samples(&bad);
                tell(Event::BadSamples(bad));
            },
        );
        tested.map_err(|error| match error {
            EvaluateError::Data(error) => error.into(),
            EvaluateError::Fault(fault) => TrainError::Evaluation { epoch, fault },
        })
    }

    /// Where training goes on after this batch: a checkpoint never lies behind an epoch's last.
    fn next_place(&self, epoch: u32, batch: usize) -> (u32, usize, u64) {
        if batch == self.source.train_batches() {
            (epoch + 1, 0, self.batches_done)
        } else {
            (epoch, batch, self.batches_done)
        }
    }

    /// Learns from a batch; nothing where a signal came before its data did.
    fn learn(
        &mut self,
        node: &mut Node,
        epoch: u32,
        batch: usize,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Timing>, TrainError> {
        let (asked, updates) = (Instant::now(), node.learner.optimiser.updates());
        let saving = &self.saving;
        let data = match self.prefetch.next_unless(&|| saving.stopped().is_some())? {
            Next::Batch(data) => data,
            Next::Stopped => return Ok(None),
            Next::End => unreachable!("the loop asks for as many batches as there are"),
        };
        let begin = Instant::now();
        if !data.bad.is_empty() {
            self.saving.list_bad_samples(&data.bad);
            tell(Event::BadSamples(data.bad.clone()));
        }
        let learnt = Batch {
            index: self.batches_done,
            input: Input::Static(&data.x_nhwc),
            labels: &data.labels,
            num_time_steps: self.run.time_steps,
            masks: Masks::Keyed,
        };
        let (learner, algorithm) = (&mut node.learner, &mut node.algorithm);
        let mut result = Ok(());
        node.kernels.run(&mut |kernels| {
            result = algorithm.learn(learner, kernels, &learnt, &mut Unobserved);
        });
        self.batches_done += 1;
        let timing = Timing {
            batch_seconds: begin.elapsed().as_secs_f64(),
            data_wait_seconds: (begin - asked).as_secs_f64(),
            updates: node.learner.optimiser.updates() - updates,
        };
        result
            .map(|()| Some(timing))
            .map_err(|fault| TrainError::Fault {
                epoch,
                batch,
                fault,
            })
    }
}
