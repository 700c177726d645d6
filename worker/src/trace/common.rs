//! What all algorithms of one net share: the network, its start, and what is shown to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::TraceError;
use super::error::shown;
use super::file::{self, TraceFile};
use super::metadata::Source;
use super::network;
use super::samples::{self, Mask, Sizes, nhwc};
use crate::graph::{Graph, Op};
use crate::kernel::{Neuron, Step};

/// The weight of the mean squared error in the losses that have one.
pub const LAMBDA: f32 = 0.05;

/// The loss at one time step (Eq. 11 and what the released code has instead).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedLoss {
    /// Cross-entropy.
    Ce,
    /// Cross-entropy + lambda times the mean squared error.
    CeMse,
    /// Eq. (11): (1 - lambda) cross-entropy + lambda times the mean squared error.
    Paper,
}

impl TracedLoss {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ce, Self::CeMse, Self::Paper];

    /// The word for it in traces.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ce => "ce",
            Self::CeMse => "ce+mse",
            Self::Paper => "paper",
        }
    }

    /// The weights of the cross-entropy and of the mean squared error.
    pub fn weights(self) -> (f32, f32) {
        match self {
            Self::Ce => (1.0, 0.0),
            Self::CeMse => (1.0, LAMBDA),
            Self::Paper => (1.0 - LAMBDA, LAMBDA),
        }
    }
}

/// The optimiser of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracedSgd {
    /// The learning rate.
    pub lr: f32,
    /// The momentum.
    pub momentum: f32,
    /// The weight decay, on every parameter.
    pub weight_decay: f32,
}

impl TracedSgd {
    /// As the kernels take it.
    pub fn step(self) -> Step {
        Step::Sgd {
            lr: self.lr,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
        }
    }
}

/// The checked content of `<net>.common.safetensors`.
///
/// Every parameter, statistic and mask that the graph has is there, with the shape that it needs,
/// and all numbers are finite.
#[derive(Clone, Debug)]
pub struct CommonTrace {
    /// What messages call the file.
    pub name: String,
    /// The network.
    pub graph: Graph,
    /// The loss.
    pub loss: TracedLoss,
    /// The neuron, unless an algorithm's file has another.
    pub neuron: Neuron,
    /// The optimiser.
    pub sgd: TracedSgd,
    /// Added to variances under the root.
    pub bn_eps: f32,
    /// How far running statistics move.
    pub bn_momentum: f32,
    /// Batches.
    pub num_batches: usize,
    /// Time steps T of a batch.
    pub num_time_steps: usize,
    /// Samples N of a batch.
    pub num_samples: usize,
    /// Classes K.
    pub num_classes: usize,
    /// The names of all parameters, in the order of the file.
    pub param_order: Vec<String>,
    /// The names of the layers of neurons, in the order of the columns of `rate`.
    pub lif_order: Vec<String>,
    inputs: Vec<f32>,
    labels: Vec<u32>,
    parameters: BTreeMap<String, Vec<f32>>,
    buffers: BTreeMap<String, Vec<f32>>,
    masks: BTreeMap<String, Mask>,
}

impl CommonTrace {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// As [`file::read`] and [`CommonTrace::from_file`].
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        Self::from_file(&file::read(path)?)
    }

    /// Checks the content of a file.
    ///
    /// # Errors
    /// If anything is missing, unknown, of the wrong shape, or no number.
    pub fn from_file(file: &TraceFile) -> Result<Self, TraceError> {
        let source = Source(file);
        source.check_version()?;
        let sizes = Sizes::of(source)?;
        let graph = network::graph(source, sizes.input)?;
        let num_classes = graph.value(graph.output()).shape.channels;
        let parameter_names = graph.parameters().into_iter().map(|p| p.name);
        let lifs = graph.nodes().iter().filter(|n| n.op == Op::Lif);
        let lif_names = lifs.map(|n| n.name.clone()).collect();
        let neuron = source.neuron()?;
        let missing = |key| TraceError::MissingKey {
            file: source.name(),
            key,
        };
        let trace = Self {
            name: source.name(),
            loss: loss(source)?,
            neuron: neuron.ok_or_else(|| missing("neuron"))?,
            sgd: sgd(source)?,
            bn_eps: fraction(source, "bn_eps", 1e-5)?,
            bn_momentum: fraction(source, "bn_momentum", 0.1)?,
            num_batches: sizes.batches,
            num_time_steps: sizes.time_steps,
            num_samples: sizes.samples,
            num_classes,
            param_order: order(source, "param_order", parameter_names.collect())?,
            lif_order: order(source, "lif_order", lif_names)?,
            inputs: nhwc(source.floats("input")?, sizes.input),
            labels: samples::labels(source, &sizes, num_classes)?,
            parameters: parameters(source, &graph)?,
            buffers: buffers(source, &graph)?,
            masks: samples::masks(source, &graph, &sizes)?,
            graph,
        };
        source.no_others(|tensor| trace.knows(tensor))?;
        Ok(trace)
    }

    /// The input of one time step, `[N, H, W, C]`.
    ///
    /// # Panics
    /// If there is no such batch or time step.
    pub fn input(&self, batch: usize, t: usize) -> &[f32] {
        let elements = self.num_samples * self.graph.value(self.graph.input()).shape.elements();
        &self.inputs[self.row(batch, t) * elements..][..elements]
    }

    /// The labels of one batch.
    ///
    /// # Panics
    /// If there is no such batch.
    pub fn labels(&self, batch: usize) -> &[u32] {
        &self.labels[batch * self.num_samples..][..self.num_samples]
    }

    /// A parameter at the start, as stored: OIHW, `[out, in]` or `[channels]`.
    ///
    /// # Panics
    /// If the graph has no such parameter.
    pub fn parameter(&self, name: &str) -> &[f32] {
        let found = self.parameters.get(name);
        found.expect("every parameter of the graph was read, and this is one of them")
    }

    /// Running statistics at the start: `<bn>.running_mean` or `<bn>.running_var`.
    ///
    /// # Panics
    /// If the graph has no such batch norm.
    pub fn buffer(&self, name: &str) -> &[f32] {
        let found = self.buffers.get(name);
        found.expect("the statistics of every batch norm were read, and these are among them")
    }

    /// The factors of a dropout node at one time step, `[N, H, W, C]`.
    ///
    /// # Panics
    /// If there is no such node, batch or time step.
    pub fn mask(&self, node: &str, batch: usize, t: usize) -> &[f32] {
        let found = self.masks.get(node);
        let mask = found.expect("the masks of every dropout node were read, and this is one");
        &mask.values[self.row(batch, t) * mask.elements..][..mask.elements]
    }

    /// The position of a time step among those of all batches.
    ///
    /// # Panics
    /// If there is no such batch or time step.
    pub fn row(&self, batch: usize, t: usize) -> usize {
        assert!(
            batch < self.num_batches && t < self.num_time_steps,
            "the trace has {} batches of {} time steps, no time step {t} of batch {batch}",
            self.num_batches,
            self.num_time_steps
        );
        batch * self.num_time_steps + t
    }

    /// The neurons of a layer for one batch: those of a sample times N.
    ///
    /// # Panics
    /// If the graph has no such layer.
    pub fn neurons(&self, layer: &str) -> usize {
        let mut nodes = self.graph.nodes().iter();
        let node = nodes.find(|n| n.name == layer);
        let node = node.expect("the layer is one of lif_order");
        self.graph.value(node.output).shape.elements() * self.num_samples
    }

    /// Whether a parameter is a bias that only batch norms read: its true gradient is 0, and what
    /// is computed for it is rounding.
    pub fn is_bias_before_norm(&self, parameter: &str) -> bool {
        let nodes = self.graph.nodes();
        let node = parameter
            .strip_suffix(".bias")
            .and_then(|name| nodes.iter().find(|n| n.name == name));
        node.is_some_and(|node| {
            let adds_bias = matches!(node.op, Op::Conv { .. } | Op::Linear { .. });
            let mut readers = self.graph.readers(node.output).peekable();
            adds_bias
                && readers.peek().is_some()
                && readers.all(|reader| nodes[reader].op == Op::BatchNorm)
        })
    }

    fn knows(&self, tensor: &str) -> bool {
        match tensor.split_once('/') {
            Some(("param", name)) => self.parameters.contains_key(name),
            Some(("buffer", name)) => self.buffers.contains_key(name),
            Some(("mask", name)) => self.masks.contains_key(name),
            Some(_) => false,
            None => tensor == "input" || tensor == "labels",
        }
    }
}

fn loss(source: Source<'_>) -> Result<TracedLoss, TraceError> {
    let word = source.text("loss")?;
    let found = TracedLoss::ALL.into_iter().find(|l| l.word() == word);
    found.ok_or_else(|| {
        let reason = format!("{} is unknown: ce, ce+mse or paper", shown(word));
        source.wrong_key("loss", reason)
    })
}

fn sgd(source: Source<'_>) -> Result<TracedSgd, TraceError> {
    let sgd: TracedSgd = source.required("sgd")?;
    let values = [sgd.lr, sgd.momentum, sgd.weight_decay];
    if values.iter().all(|v| v.is_finite() && *v >= 0.0) {
        return Ok(sgd);
    }
    Err(source.wrong_key(
        "sgd",
        "lr, momentum and weight_decay must be finite, at least 0",
    ))
}

fn fraction(source: Source<'_>, key: &'static str, default: f32) -> Result<f32, TraceError> {
    let value = source.json::<f32>(key)?.unwrap_or(default);
    if value > 0.0 && value <= 1.0 {
        return Ok(value);
    }
    Err(source.wrong_key(key, format!("{value} is not above 0 and at most 1")))
}

/// The order that the file gives to the names of the graph, or theirs.
fn order(
    source: Source<'_>,
    key: &'static str,
    names: Vec<String>,
) -> Result<Vec<String>, TraceError> {
    let Some(order) = source.json::<Vec<String>>(key)? else {
        return Ok(names);
    };
    let known: BTreeSet<&String> = names.iter().collect();
    let mut seen = BTreeSet::new();
    for name in &order {
        if !known.contains(name) || !seen.insert(name) {
            let reason = format!("{} is not in the graph, or occurs twice", shown(name));
            return Err(source.wrong_key(key, reason));
        }
    }
    match names.iter().find(|name| !seen.contains(name)) {
        None => Ok(order),
        Some(name) => Err(source.wrong_key(key, format!("{} is not in it", shown(name)))),
    }
}

fn parameters(source: Source<'_>, graph: &Graph) -> Result<BTreeMap<String, Vec<f32>>, TraceError> {
    let mut all = BTreeMap::new();
    for parameter in graph.parameters() {
        let tensor = format!("param/{}", parameter.name);
        let values = source.floats_of(&tensor, &parameter.shape)?.to_vec();
        all.insert(parameter.name, values);
    }
    Ok(all)
}

fn buffers(source: Source<'_>, graph: &Graph) -> Result<BTreeMap<String, Vec<f32>>, TraceError> {
    let mut all = BTreeMap::new();
    for (name, shape) in statistics(graph) {
        let tensor = format!("buffer/{name}");
        let values = source.floats_of(&tensor, &shape)?;
        let negative = values.iter().position(|v| *v < 0.0);
        if let (true, Some(i)) = (name.ends_with("_var"), negative) {
            return Err(source.wrong_value(&tensor, i, values[i], "a variance, at least 0"));
        }
        all.insert(name, values.to_vec());
    }
    Ok(all)
}

/// The names and shapes of all running statistics.
pub(super) fn statistics(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let norms = graph.batch_norms().into_iter();
    norms
        .flat_map(|(name, channels)| {
            ["running_mean", "running_var"].map(|part| (format!("{name}.{part}"), vec![channels]))
        })
        .collect()
}
