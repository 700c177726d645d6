//! `synfire bench`.

use super::engine::EngineArguments;
use super::model::{self, ModelArguments, NAMES};
use super::say;
use super::table::{Table, duration};
use crate::data::{self, Augment, Loader};
use crate::engine::Network;
use crate::engine::plan::{Role, Settings};
use crate::engine::profile::Work;
use crate::graph::models::{ModelName, ModelOptions, build};
use crate::graph::{Graph, init};
use crate::kernel::{Kernels, Loss, Neuron, Norms};
use crate::learn::optimiser::Optimiser;
use crate::learn::{Algorithm, Batch, Input, Learner, Masks, Unobserved};
use crate::memory::peak_resident_mib;
use crate::shape::Shape;
use crate::train::Tally;
use crate::{node, weights};
use clap::ValueEnum;
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use synfire_shared::random::{Purpose, below, keyed, normal};
use synfire_shared::run;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AlgorithmArgument {
    Stol,
    Bptt,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --images, pictures are fixed noise; without --weights, weights are \
freshly drawn. The fast engine's speed on processors depends on how many neurons spike, so time it on both. A \
median whose minimum and maximum differ by more than a tenth was disturbed: time again."
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
    /// Batches before timing starts
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(..=100_000))]
    warmup: u32,
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
    resident_before_mib: f64,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
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
        let mut kernels = arguments.engine.open()?;
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
            resident_before_mib,
        })
    }

    /// Warms up, then times batch by batch.
    fn time(&mut self, arguments: &Arguments) -> anyhow::Result<Tally> {
        for index in 0..u64::from(arguments.warmup) {
            self.warmup_seconds += self.batch(arguments, index)?;
        }
        let _ = self.kernels.take_report();
        self.learner.network.start_profile();
        for index in 0..u64::from(arguments.iterations) {
            let seconds = self.batch(arguments, u64::from(arguments.warmup) + index)?;
            self.seconds.push(seconds);
        }
        let mut tally = Tally::default();
        tally.add(&self.kernels.take_report());
        Ok(tally)
    }

    fn batch(&mut self, arguments: &Arguments, index: u64) -> anyhow::Result<f64> {
        self.pictures.next(index);
        let batch = Batch {
            index,
            input: Input::Static(&self.pictures.x_nhwc),
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
        result?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Median, minimum and maximum of images per second.
    fn rates(&self, arguments: &Arguments) -> (f64, f64, f64) {
        let rates = self.seconds.iter().map(|s| f64::from(arguments.batch) / s);
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        (median(&rates), rates[0], rates[rates.len() - 1])
    }

    fn json(&self, arguments: &Arguments, tally: &Tally) -> serde_json::Value {
        let (middle, least, most) = self.rates(arguments);
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let works = Work::ALL.map(|work| {
            let total = self.work_seconds(work) / self.seconds.len() as f64;
            (work.name().replace(' ', "_"), json!(total))
        });
        let loss = tally.mean_loss();
        let is_cuda = arguments.engine.device().is_cuda();
        json!({
            "engine": "synfire",
            "back_end": self.kernels.name(),
            "algorithm": self.algorithm.name(),
            "model": arguments.model.to_string(),
            "batch": arguments.batch,
            "steps_T": arguments.time_steps,
            "dtype": arguments.engine.precision().name(),
            "device": if is_cuda { "cuda" } else { "cpu" },
            "device_name": if is_cuda { self.kernels.name() } else { "cpu".into() },
            "threads": arguments.engine.threads(),
            "channels_last": true,
            "images_per_second": {"median": middle, "min": least, "max": most},
            "seconds_per_batch": median(&seconds),
            "iterations": arguments.iterations,
            "warmup": arguments.warmup,
            "warmup_seconds": self.warmup_seconds,
            "peak_memory_mib": peak_resident_mib(),
            "peak_memory_is": "process maximum resident size",
            "resident_before_mib": self.resident_before_mib,
            "window_mib": mib(self.learner.network.bytes(&*self.kernels, Role::Kept)),
            "firing_rate": tally.firing_rate(),
            "images": arguments.images.as_ref().map(|p| p.display().to_string()),
            "weights": arguments.weights.as_ref().map(|p| p.display().to_string()),
            "seconds_by_work": serde_json::Map::from_iter(works),
            "synfire": env!("CARGO_PKG_VERSION"),
            "loss": loss,
            "loss_is_finite": loss.is_finite(),
        })
    }

    fn work_seconds(&self, work: Work) -> f64 {
        let rows = self.learner.network.profile.rows();
        rows.iter()
            .map(|row| row[work as usize].as_secs_f64())
            .sum()
    }

    fn text(&self, arguments: &Arguments, tally: &Tally) -> String {
        let (middle, least, most) = self.rates(arguments);
        let batches = self.seconds.len() as f64;
        let all: f64 = self.seconds.iter().sum();
        let mut text = format!(
            "{}, batch {}, T {}, {} on {}: milliseconds per batch, mean of {} batches\n\n",
            arguments.model,
            arguments.batch,
            arguments.time_steps,
            self.algorithm.name(),
            self.kernels.name(),
            self.seconds.len(),
        );
        text.push_str(&self.layers(batches, all).text());
        let _ = write!(
            text,
            "\nimages/s        {middle:.2} (median; {least:.2} to {most:.2})\n\
             firing rate     {:.4}\n\
             warm-up         {}\n",
            tally.firing_rate(),
            duration(self.warmup_seconds),
        );
        let network = &self.learner.network;
        let _ = writeln!(
            text,
            "window          {:.1} MiB",
            mib(network.bytes(&*self.kernels, Role::Kept))
        );
        if let Some(peak) = peak_resident_mib() {
            let _ = writeln!(
                text,
                "peak resident   {peak:.0} MiB, {:.0} of them before the network was built",
                self.resident_before_mib
            );
        }
        text
    }

    fn layers(&self, batches: f64, all: f64) -> Table {
        let mut head = vec!["layer", "output"];
        head.extend(Work::ALL.iter().map(|work| work.name()));
        head.extend(["sum", "share"]);
        let mut table = Table::new(&head);
        let plan = self.learner.network.plan();
        let rows = self.learner.network.profile.rows();
        let mut push = |name: &str, shape: String, row: &[f64]| {
            let total: f64 = row.iter().sum();
            let mut cells = vec![name.to_owned(), shape];
            let number = |ms: f64| {
                if ms == 0.0 {
                    String::new()
                } else {
                    format!("{ms:.2}")
                }
            };
            cells.extend(row.iter().map(|&s| number(1e3 * s / batches)));
            cells.push(number(1e3 * total / batches));
            cells.push(format!("{:.1} %", 100.0 * total / all));
            table.push(cells);
        };
        let seconds = |row: &[std::time::Duration; Work::ALL.len()]| row.map(|d| d.as_secs_f64());
        for (index, row) in rows.iter().enumerate() {
            let name = plan
                .stage_names
                .get(index)
                .map_or("loss, update", |name| name);
            let shape = plan.stage_nodes.get(index).and_then(|nodes| nodes.last());
            let shape = shape.map(|&n| self.graph.value(self.graph.nodes()[n].output).shape);
            push(
                name,
                shape.map_or(String::new(), |s| s.to_string()),
                &seconds(row),
            );
        }
        let sums = Work::ALL.map(|work| self.work_seconds(work));
        push("all", String::new(), &sums);
        table
    }
}

fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The batches: fixed noise, or pictures one batch after the other.
struct Pictures {
    x_nhwc: Vec<f32>,
    labels: Vec<u32>,
    loader: Option<Loader>,
}

impl Pictures {
    fn new(arguments: &Arguments, options: &ModelOptions) -> anyhow::Result<Self> {
        let n = arguments.batch as usize;
        let mut pictures = Self {
            x_nhwc: vec![0.0; n * options.input.elements()],
            labels: vec![0; n],
            loader: None,
        };
        if let Some(path) = &arguments.images {
            let dataset = data::cifar::read(path)?;
            let shape = dataset.shape();
            let shape = Shape::new(shape.height, shape.width, shape.channels);
            anyhow::ensure!(
                shape == options.input && dataset.classes <= options.classes,
                "{} holds {shape} pictures of {} classes, {} takes {} and {}: set --input and \
                 --classes",
                path.display(),
                dataset.classes,
                options.name,
                options.input,
                options.classes,
            );
            let loader = Loader::new(Arc::new(dataset), Augment::None, arguments.seed, n);
            anyhow::ensure!(
                loader.train_batches() > 0,
                "{} holds fewer pictures than --batch",
                path.display()
            );
            pictures.loader = Some(loader);
            return Ok(pictures);
        }
        let mut draw = keyed(arguments.seed, Purpose::Augment, &[]);
        #[expect(clippy::cast_possible_truncation, reason = "noise is noise in f32 too")]
        pictures
            .x_nhwc
            .iter_mut()
            .for_each(|x| *x = normal(&mut draw) as f32);
        let classes = u32::try_from(options.classes)?;
        pictures
            .labels
            .iter_mut()
            .for_each(|label| *label = below(&mut draw, classes));
        Ok(pictures)
    }

    fn next(&mut self, index: u64) {
        let Some(loader) = &self.loader else { return };
        let order = loader.order(synfire_shared::ids::Epoch(0));
        let batches = loader.train_batches() as u64;
        let index = usize::try_from(index % batches).expect("fewer batches than pictures");
        loader.fill_train(&order, index, &mut self.x_nhwc, &mut self.labels);
    }
}
