//! The training loop: epochs, batches, evaluation. Data come from [`crate::data`], everything below
//! the batch is the algorithm's.

use crate::data::{self, Augment, DataError, Dataset, Loader, Place, Prefetch};
use crate::kernel::Report;
use crate::learn::{Batch, Fault, Input, Masks, Unobserved};
use crate::node::{self, Node, NodeError};
use crate::shape::Shape;
use std::sync::Arc;
use std::time::{Duration, Instant};
use synfire_shared::ids::Epoch;
use synfire_shared::run::{self, Run};

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

/// Sums of some batches, as rates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Per time step: losses summed over batches.
    pub loss: Vec<f64>,
    /// Per time step: samples that are right by the logits summed so far.
    pub correct: Vec<u64>,
    /// Per time step: samples.
    pub samples: Vec<u64>,
    /// Per time step: batches.
    pub batches: Vec<u64>,
    /// Per layer of neurons: spikes.
    pub spikes: Vec<u64>,
    /// Per layer of neurons: chances to spike.
    pub neurons: Vec<u64>,
}

impl Tally {
    /// Adds what the back end has summed since it was last asked.
    pub fn add(&mut self, report: &Report) {
        fn sum<T: Copy + Default + std::ops::AddAssign>(all: &mut Vec<T>, more: &[T]) {
            all.resize(all.len().max(more.len()), T::default());
            all.iter_mut().zip(more).for_each(|(a, &m)| *a += m);
        }
        sum(&mut self.loss, &report.loss);
        sum(&mut self.correct, &report.correct);
        sum(&mut self.samples, &report.samples);
        sum(&mut self.batches, &report.batches);
        sum(&mut self.spikes, &report.spikes);
        sum(&mut self.neurons, &report.neurons);
    }

    /// The mean loss over time steps and batches.
    pub fn mean_loss(&self) -> f64 {
        self.loss.iter().sum::<f64>() / self.batches.iter().sum::<u64>().max(1) as f64
    }

    /// The share that is right, by the logits summed up to each time step.
    pub fn accuracies(&self) -> Vec<f64> {
        let pairs = self.correct.iter().zip(&self.samples);
        pairs.map(|(&c, &n)| c as f64 / n.max(1) as f64).collect()
    }

    /// The share that is right after the last time step.
    pub fn accuracy(&self) -> f64 {
        self.accuracies().last().copied().unwrap_or(0.0)
    }

    /// Spikes per neuron and time step, by layer.
    pub fn firing_rates(&self) -> Vec<f64> {
        let pairs = self.spikes.iter().zip(&self.neurons);
        pairs.map(|(&s, &n)| s as f64 / n.max(1) as f64).collect()
    }

    /// Spikes per neuron and time step, over all layers.
    pub fn firing_rate(&self) -> f64 {
        self.spikes.iter().sum::<u64>() as f64 / self.neurons.iter().sum::<u64>().max(1) as f64
    }
}

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
    },
    /// Some more batches.
    Progress(Progress),
    /// An epoch.
    Epoch(Box<EpochRecord>),
}

/// A finished run with its network.
#[derive(Debug)]
pub struct Trained {
    /// Every epoch.
    pub epochs: Vec<EpochRecord>,
    /// The network as it is now, with its back end.
    pub node: Node,
    /// Seconds in all.
    pub seconds: f64,
}

/// Reads the data set of a run.
///
/// # Errors
/// If it cannot be read.
pub fn dataset(data: &run::Data) -> Result<Dataset, DataError> {
    match &data.source {
        run::Source::FashionMnistSubset => data::fashion::load(),
        run::Source::Cifar10 { path } => data::cifar::read(path),
    }
}

fn augment(data: &run::Data) -> Augment {
    match (data.augment, &data.source) {
        (run::Augment::None, _) => Augment::None,
        (run::Augment::Standard, run::Source::FashionMnistSubset) => Augment::Fashion,
        (run::Augment::Standard, run::Source::Cifar10 { .. }) => Augment::Cifar,
    }
}

/// Trains as the run says.
///
/// # Errors
/// If the data cannot be read, the network cannot be built, or the loss stops being finite.
pub fn train(run: &Run, tell: &mut dyn FnMut(Event)) -> Result<Trained, TrainError> {
    let begin = Instant::now();
    let dataset = Arc::new(dataset(&run.data)?);
    let shape = dataset.shape();
    let input = Shape::new(shape.height, shape.width, shape.channels);
    let loader = Loader::new(
        Arc::clone(&dataset),
        augment(&run.data),
        run.seed,
        run.data.batch,
    );
    if loader.train_batches() == 0 {
        return Err(TrainError::BatchTooLarge {
            len: dataset.train.len(),
            batch: run.data.batch,
        });
    }
    let mut node = node::build(run, input, dataset.classes)?;
    let parameters = node.graph.parameters();
    tell(Event::Began {
        engine: node.kernels.name(),
        algorithm: node.algorithm.name(),
        parameters: parameters
            .iter()
            .map(crate::graph::Parameter::elements)
            .sum(),
        images: (dataset.train.len(), dataset.test.len()),
    });
    let first = Place {
        epoch: Epoch(0),
        batch_index: 0,
    };
    let whole = u64::from(run.epochs) * loader.train_batches() as u64;
    let mut training = Training {
        run,
        prefetch: Prefetch::start(loader.clone(), first, Epoch(run.epochs)),
        loader,
        batches_done: 0,
        batches_in_all: run.max_batches.map_or(whole, |most| most.min(whole)),
    };
    let mut epochs = Vec::new();
    for epoch in 0..run.epochs {
        if training.batches_done == training.batches_in_all {
            break;
        }
        let record = training.epoch(epoch, &mut node, tell)?;
        tell(Event::Epoch(Box::new(record.clone())));
        epochs.push(record);
    }
    Ok(Trained {
        epochs,
        node,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

struct Training<'a> {
    run: &'a Run,
    loader: Loader,
    prefetch: Prefetch,
    batches_done: u64,
    batches_in_all: u64,
}

impl Training<'_> {
    fn epoch(
        &mut self,
        epoch: u32,
        node: &mut Node,
        tell: &mut dyn FnMut(Event),
    ) -> Result<EpochRecord, TrainError> {
        let optimiser = &mut node.learner.optimiser;
        let base = optimiser.base_lr();
        let lr = self.run.schedule.lr(base, Epoch(epoch), self.run.epochs);
        optimiser.set_lr(lr);
        let batches = self.loader.train_batches();
        let (begin, waited) = (Instant::now(), self.prefetch.waited());
        let mut tally = Tally::default();
        let mut images_per_second = 0.0;
        let mut batch = 0;
        while batch < batches && self.batches_done < self.batches_in_all {
            self.learn(node, epoch, batch)?;
            batch += 1;
            let last = batch == batches || self.batches_done == self.batches_in_all;
            if batch % REPORT_EVERY == 0 || last {
                tally.add(&node.kernels.take_report());
                let images = (batch * self.run.data.batch) as f64;
                images_per_second = images / begin.elapsed().as_secs_f64();
                tell(Event::Progress(Progress {
                    epoch,
                    batch,
                    batches,
                    batches_done: self.batches_done,
                    batches_in_all: self.batches_in_all,
                    tally: tally.clone(),
                    images_per_second,
                }));
            }
        }
        let train_seconds = begin.elapsed().as_secs_f64();
        let data_wait = self.prefetch.waited().saturating_sub(waited);
        let ends = epoch + 1 == self.run.epochs || self.batches_done == self.batches_in_all;
        let evaluates = ends || (epoch + 1).is_multiple_of(self.run.evaluate_every);
        Ok(EpochRecord {
            epoch,
            lr,
            train: tally,
            test: if evaluates {
                let test = evaluate(node, &self.loader, self.run.time_steps);
                Some(test.map_err(|fault| TrainError::Evaluation { epoch, fault })?)
            } else {
                None
            },
            train_seconds,
            images_per_second,
            data_wait_seconds: Duration::as_secs_f64(&data_wait),
        })
    }

    fn learn(&mut self, node: &mut Node, epoch: u32, batch: usize) -> Result<(), TrainError> {
        let data = self.prefetch.next_batch();
        let data = data.expect("the loop asks for as many batches as there are");
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
        result.map_err(|fault| TrainError::Fault {
            epoch,
            batch,
            fault,
        })
    }
}

/// The test set, every sample once, with running statistics.
///
/// # Errors
/// If a loss or a membrane potential is not finite.
pub fn evaluate(node: &mut Node, loader: &Loader, num_time_steps: usize) -> Result<Tally, Fault> {
    let (n, mut tally) = (loader.batch(), Tally::default());
    let mut x_nhwc = vec![0.0; loader.batch_len()];
    let mut labels = vec![0; n];
    for index in 0..loader.test_batches(n) {
        loader.fill_test(index, &mut x_nhwc, &mut labels);
        let batch = Batch {
            index: index as u64,
            input: Input::Static(&x_nhwc),
            labels: &labels,
            num_time_steps,
            masks: Masks::Keyed,
        };
        let learner = &mut node.learner;
        let mut result = Ok(());
        node.kernels.run(&mut |kernels| {
            learner.evaluate(kernels, &batch);
            result = learner.check(kernels);
        });
        result?;
        tally.add(&node.kernels.take_report());
    }
    Ok(tally)
}
