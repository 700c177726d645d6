//! `synfire bench`.
//!
//! # Layout
//!
//! - `pictures`: what is learnt from.
//! - `figures`: what was measured, for programs and for people.
//! - this file: the arguments, and the timing.

mod figures;
mod pictures;

use super::engine::EngineArguments;
use super::model::{self, ModelArguments, NAMES};
use super::say;
use crate::engine::Network;
use crate::engine::plan::Settings;
use crate::graph::models::{ModelName, build};
use crate::graph::{Graph, init};
use crate::kernel::{DeviceMemory, Kernels, Loss, Neuron, Norms, Without};
use crate::learn::optimiser::Optimiser;
use crate::learn::{Algorithm, Batch, Input, Learner, Masks, Unobserved};
use crate::memory::peak_resident_mib;
use crate::node::{self, NodeError};
use crate::train::Tally;
use crate::weights;
use clap::ValueEnum;
use pictures::Pictures;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use synfire_shared::run;

/// Batches before a GPU is timed: time steps run as they are written first, are recorded when they come
/// again, and after these batches the clocks are up.
const WARMUP_ON_GPUS: u32 = 5;
/// At least so many, or what is timed is not what training repeats.
const LEAST_WARMUP_ON_GPUS: u32 = 2;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AlgorithmArgument {
    Stol,
    Bptt,
}

/// What makes a GPU fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Saving {
    /// Time steps replayed as graphs
    Graphs,
    /// A convolution's gradients of all time steps of the window at once
    Windows,
    /// Updates of small layers joined
    Updates,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --images, pictures are fixed noise; without --weights, weights are \
freshly drawn. The fast engine's speed on processors depends on how many neurons spike, so time it on both. A \
median whose minimum and maximum differ by more than a tenth was disturbed: time again.

A GPU is waited for after each batch. Its time steps are recorded when they come the second time, and \
replayed after; \
--profile then runs as many batches again as they are written, and waits after each layer, so these are \
slower in sum."
)]
pub(super) struct Arguments {
    #[arg(long, value_parser = model::name, help = format!("The model: {NAMES}"))]
    model: ModelName,
    #[command(flatten)]
    options: ModelArguments,
    /// Samples in a batch
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Time steps T
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1024))]
    time_steps: u32,
    /// The algorithm
    #[arg(long, value_enum, default_value = "stol")]
    algorithm: AlgorithmArgument,
    /// The window of stol
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    window: u32,
    /// Timed batches
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    iterations: u32,
    /// Batches before timing starts [default: 2; on a GPU 5, and at least 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=100_000))]
    warmup: Option<u32>,
    #[command(flatten)]
    engine: EngineArguments,
    /// Weights to start from: a safetensors file of `synfire train --save-weights`
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Pictures: plain CIFAR-10 records (`data_batch_1.bin`) or the folder that holds them
    #[arg(long, value_name = "FILE")]
    images: Option<PathBuf>,
    /// The learning rate of the timed updates
    #[arg(long, default_value_t = 0.05, value_parser = learning_rate)]
    lr: f64,
    /// Seed of weights, noise pictures and labels
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Copy pictures to the device with the first batch alone, and learn from them in all
    #[arg(long, conflicts_with = "images")]
    keep_input: bool,
    /// Leave out what makes a GPU fast, to measure what it gives: one or more
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    without: Vec<Saving>,
    /// Time layers and phases on a GPU as well, which are always timed on processors
    #[arg(long)]
    profile: bool,
    /// Print one JSON object on standard output and nothing else
    #[arg(long)]
    json: bool,
}

fn learning_rate(text: &str) -> Result<f64, String> {
    let lr: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1e6).contains(&lr) {
        Ok(lr)
    } else {
        Err("it must be a number from 0 to 1000000".into())
    }
}

/// What is timed.
struct Bench {
    kernels: Box<dyn Kernels>,
    learner: Learner,
    algorithm: Box<dyn Algorithm>,
    graph: Graph,
    pictures: Pictures,
    seconds: Vec<f64>,
    warmup_seconds: f64,
    /// Of all batches that were run again to time their parts.
    profiled_seconds: f64,
    resident_before_mib: f64,
    /// Of a device, after the warm-up and at the end.
    memory: [Option<Taken>; 2],
}

/// What is taken of a device's memory, in bytes.
#[derive(Clone, Copy)]
struct Taken {
    memory: DeviceMemory,
    /// What the driver says is left, whoever took the rest.
    free: Option<u64>,
}

impl Arguments {
    fn warmup(&self) -> u32 {
        let usual = if self.is_on_gpu() { WARMUP_ON_GPUS } else { 2 };
        self.warmup.unwrap_or(usual)
    }

    fn without(&self) -> Without {
        let is_named = |saving| self.without.contains(&saving);
        Without {
            graphs: is_named(Saving::Graphs),
            windows: is_named(Saving::Windows),
            updates: is_named(Saving::Updates),
        }
    }

    fn is_on_gpu(&self) -> bool {
        self.engine.device().is_cuda()
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        !arguments.is_on_gpu() || arguments.warmup() >= LEAST_WARMUP_ON_GPUS,
        "--warmup must be at least {LEAST_WARMUP_ON_GPUS} on a GPU, which records time steps \
         when they come the second time"
    );
    let mut bench = Bench::new(arguments)?;
    let tally = bench.time(arguments)?;
    if arguments.json {
        say!("{}", bench.json(arguments, &tally));
    } else {
        say!("{}", bench.text(arguments, &tally).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

impl Bench {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        let resident_before_mib = peak_resident_mib().unwrap_or(0.0);
        let options = arguments.options.options(arguments.model);
        let graph = build(&options)?;
        let mut kernels = arguments.engine.open_without(arguments.without())?;
        let window = arguments.window as usize;
        let algorithm = node::algorithm(match arguments.algorithm {
            AlgorithmArgument::Stol => run::Algorithm::Stol { window },
            AlgorithmArgument::Bptt => run::Algorithm::Bptt,
        });
        let settings = Settings {
            samples: arguments.batch as usize,
            window: algorithm.window(arguments.time_steps as usize),
            neuron: Neuron::default(),
            bn_eps: 1e-5,
            bn_momentum: 0.1,
            dropout_rescale: true,
            seed: arguments.seed,
            norms: Norms::Own,
            first_sample: 0,
        };
        let optimiser = Optimiser::new(run::Optimiser::Sgd {
            lr: arguments.lr,
            momentum: 0.9,
            weight_decay: 5e-5,
        });
        let (samples, states) = (settings.samples, optimiser.num_states());
        node::check_memory(&graph, &settings, samples, states, &*kernels)?;
        let pictures = Pictures::new(arguments, &options)?;
        let network = Network::new(&graph, &settings, optimiser.num_states(), &mut *kernels);
        if let Some(path) = &arguments.weights {
            weights::load(&path.to_string_lossy(), &network, &mut *kernels)?;
        } else {
            for (name, values) in init::parameters(&options, &graph, arguments.seed) {
                network.set(&mut *kernels, &name, &values)?;
            }
        }
        if let Some(what) = node::failure(&mut *kernels, samples, samples) {
            return Err(NodeError::Device(what).into());
        }
        let learner = Learner::new(
            network,
            Loss {
                samples: settings.samples,
                classes: options.classes,
                ce: 1.0,
                mse: 0.0,
            },
            optimiser,
        );
        Ok(Self {
            kernels,
            learner,
            algorithm,
            graph,
            pictures,
            seconds: Vec::new(),
            warmup_seconds: 0.0,
            profiled_seconds: 0.0,
            resident_before_mib,
            memory: [None; 2],
        })
    }

    /// # Errors
    /// If the device computes no more.
    fn check_device(&mut self) -> Result<(), NodeError> {
        self.kernels.wait();
        let samples = self.learner.network.plan().settings.samples;
        let failure = node::failure(&mut *self.kernels, samples, samples);
        failure.map_or(Ok(()), |what| Err(NodeError::Device(what)))
    }

    fn taken(&self) -> Option<Taken> {
        let memory = self.kernels.device_memory()?;
        let free = self.kernels.available_bytes();
        Some(Taken { memory, free })
    }

    /// Warms up, then times batch by batch.
    fn time(&mut self, arguments: &Arguments) -> anyhow::Result<Tally> {
        let (warmup, timed) = (arguments.warmup() as usize, arguments.iterations as usize);
        let mut index = 0..u64::MAX;
        for index in index.by_ref().take(warmup) {
            self.warmup_seconds += self.batch(arguments, index)?;
        }
        let _ = self.kernels.take_report();
        self.check_device()?;
        self.memory[0] = self.taken();
        let is_on_gpu = arguments.is_on_gpu();
        if !is_on_gpu {
            self.learner.network.start_profile();
        }
        for index in index.by_ref().take(timed) {
            let seconds = self.batch(arguments, index)?;
            self.seconds.push(seconds);
        }
        let mut tally = Tally::default();
        tally.add(&self.kernels.take_report());
        self.check_device()?;
        self.memory[1] = self.taken();
        if is_on_gpu && arguments.profile {
            self.learner.network.start_profile();
            for index in index.take(timed) {
                self.profiled_seconds += self.batch(arguments, index)?;
            }
            self.check_device()?;
        }
        Ok(tally)
    }

    fn batch(&mut self, arguments: &Arguments, index: u64) -> anyhow::Result<f64> {
        self.pictures.next(index);
        let input = if arguments.keep_input && index > 0 {
            Input::Resident
        } else {
            Input::Static(&self.pictures.x_nhwc)
        };
        let batch = Batch {
            index,
            input,
            labels: &self.pictures.labels,
            num_time_steps: arguments.time_steps as usize,
            masks: Masks::Keyed,
        };
        let (learner, algorithm) = (&mut self.learner, &mut self.algorithm);
        let mut result = Ok(());
        let begin = Instant::now();
        self.kernels.run(&mut |kernels| {
            result = algorithm.learn(learner, kernels, &batch, &mut Unobserved);
        });
        self.kernels.wait();
        result?;
        Ok(begin.elapsed().as_secs_f64())
    }
}
