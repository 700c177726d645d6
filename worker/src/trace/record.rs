//! Records a run as a pair of trace files, in the format that [`super::replay`] reads.

use super::common::LAMBDA;
use super::file::{TraceFile, TraceTensor};
use super::samples::nchw;
use crate::engine::Network;
use crate::graph::{Graph, Op};
use crate::kernel::{Arena, Kernels, Neuron, Reset};
use crate::learn::{Algorithm, Batch, Fault, Input, LearnError, Learner, Masks, Observer};
use crate::shape::Shape;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use synfire_shared::run;

/// Why a run cannot be recorded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The format has no word for something of the run.
    #[error("a trace cannot hold {what}: {remedy}")]
    NotInFormat {
        /// What.
        what: String,
        /// What to set instead.
        remedy: &'static str,
    },
    /// The loss stopped being finite.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A batch to record: one picture per sample, `[N, H, W, C]`, and labels.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Pictures.
    pub x_nhwc: Vec<f32>,
    /// Classes.
    pub labels: Vec<u32>,
}

/// Learns from the batches and returns the two files: what is shared by all algorithms of the net,
/// and what this algorithm made of it.
///
/// # Errors
/// If the format cannot hold the run, or its loss stops being finite.
pub fn record(
    run: &run::Run,
    graph: &Graph,
    learner: &mut Learner,
    algorithm: &mut dyn Algorithm,
    kernels: &mut dyn Kernels,
    batches: &[Recorded],
) -> Result<(TraceFile, TraceFile), RecordError> {
    let loss = loss_word(run.loss)?;
    let sgd = sgd(run.optimiser)?;
    let mut common = TraceFile::default();
    start(&mut common, graph, &learner.network, kernels);
    let mut seen = Recorder::new(graph, run.time_steps);
    for (index, recorded) in batches.iter().enumerate() {
        seen.batch = index;
        let batch = Batch {
            index: index as u64,
            input: Input::Static(&recorded.x_nhwc),
            labels: &recorded.labels,
            num_time_steps: run.time_steps,
            masks: Masks::Keyed,
        };
        let mut result = Ok(());
        kernels.run(&mut |kernels| {
            result = algorithm.learn(learner, kernels, &batch, &mut seen);
        });
        result.map_err(LearnError::alone)?;
    }
    samples(&mut common, graph, run.time_steps, batches);
    let settings = &learner.network.plan().settings;
    let words = [
        ("graph", Value::Array(nodes(graph)).to_string()),
        ("output", graph.value(graph.output()).name.clone()),
        ("loss", loss.into()),
        ("neuron", neuron(&settings.neuron).to_string()),
        ("sgd", sgd.to_string()),
        ("bn_eps", settings.bn_eps.to_string()),
        ("bn_momentum", settings.bn_momentum.to_string()),
        ("batches", batches.len().to_string()),
        ("T", run.time_steps.to_string()),
        ("seed", run.seed.to_string()),
        ("param_order", json!(seen.parameter_names).to_string()),
        ("lif_order", json!(seen.layer_names).to_string()),
        ("recorded_by", recorded_by(kernels)),
    ];
    common.metadata = words.map(|(key, text)| (key.to_owned(), text)).into();
    let (mut own, masks) = seen.files(graph, batches.len(), settings.samples);
    common.tensors.extend(masks);
    let (class, args, update) = match run.algorithm {
        run::Algorithm::Stol { window } => {
            ("STOL", json!({"k": window, "variant": "saved"}), "step")
        }
        run::Algorithm::Bptt => ("BPTT", json!({}), "batch"),
    };
    for (key, text) in [
        ("class", class.to_owned()),
        ("args", args.to_string()),
        ("update", update.to_owned()),
        ("neuron", neuron(&settings.neuron).to_string()),
        ("recorded_by", recorded_by(kernels)),
    ] {
        own.metadata.insert(key.to_owned(), text);
    }
    Ok((common, own))
}

fn recorded_by(kernels: &dyn Kernels) -> String {
    format!(
        "synfire {} on {}",
        env!("CARGO_PKG_VERSION"),
        kernels.name()
    )
}

fn loss_word(loss: run::Loss) -> Result<&'static str, RecordError> {
    match loss {
        run::Loss::Ce => Ok("ce"),
        run::Loss::Paper { lambda } | run::Loss::CeMse { lambda }
            if (lambda - f64::from(LAMBDA)).abs() > 1e-9 =>
        {
            Err(RecordError::NotInFormat {
                what: format!("loss.lambda = {lambda}"),
                remedy: "set loss.lambda = 0.05",
            })
        }
        run::Loss::Paper { .. } => Ok("paper"),
        run::Loss::CeMse { .. } => Ok("ce+mse"),
    }
}

fn sgd(optimiser: run::Optimiser) -> Result<Value, RecordError> {
    match optimiser {
        run::Optimiser::Sgd {
            lr,
            momentum,
            weight_decay,
        } => Ok(json!({"lr": lr, "momentum": momentum, "weight_decay": weight_decay})),
        run::Optimiser::AdamW { .. } => Err(RecordError::NotInFormat {
            what: "optimiser.name = \"adamw\"".into(),
            remedy: "set optimiser.name = \"sgd\"",
        }),
    }
}

fn neuron(neuron: &Neuron) -> Value {
    json!({
        "tau": neuron.tau_m,
        "v_th": neuron.v_th,
        "alpha": neuron.alpha,
        "reset": match neuron.reset {
            Reset::Hard => "hard",
            Reset::Soft => "soft",
            Reset::None => "none",
        },
        "detach_reset": neuron.detach_reset,
        "spike": "heaviside",
    })
}

/// The graph as the format writes it.
fn nodes(graph: &Graph) -> Vec<Value> {
    let name = |id| graph.value(id).name.clone();
    let node = |node: &crate::graph::Node| {
        let inputs: Vec<String> = node.inputs.iter().map(|&i| name(i)).collect();
        let attrs = match node.op {
            Op::Conv {
                stride,
                padding,
                bias,
                ..
            } => json!({"s": stride, "p": padding, "bias": bias}),
            Op::MaxPool {
                kernel,
                stride,
                padding,
            } => json!({"k": kernel, "s": stride, "p": padding}),
            Op::AvgPool { kernel } => json!({"k": kernel}),
            Op::AdaptiveAvgPool { side } => json!({"o": side}),
            Op::Dropout { p } => json!({"p": p}),
            Op::Linear { .. } | Op::BatchNorm | Op::Lif | Op::Flatten | Op::Residual(_) => {
                json!({})
            }
        };
        json!({
            "kind": node.op.kind(),
            "name": node.name,
            "ins": inputs,
            "out": name(node.output),
            "attrs": attrs,
        })
    };
    graph.nodes().iter().map(node).collect()
}

/// Starting parameters and running statistics.
fn start(common: &mut TraceFile, graph: &Graph, network: &Network, kernels: &mut dyn Kernels) {
    for parameter in graph.parameters() {
        let values = network.get(kernels, Arena::Weights, &parameter.name);
        let values = values.expect("the layout has every parameter of the graph");
        let tensor = TraceTensor::f32(&parameter.shape, values);
        let name = format!("param/{}", parameter.name);
        common.tensors.insert(name, tensor);
    }
    for (name, _) in network.plan().layout.statistics() {
        let values = network.get(kernels, Arena::Statistics, name);
        let values = values.expect("the layout lists it");
        let tensor = TraceTensor::f32(&[values.len()], values);
        common.tensors.insert(format!("buffer/{name}"), tensor);
    }
}

/// The shape of a value over batches, time steps and samples, channels first.
fn full_shape(leading: &[usize], shape: Shape) -> Vec<usize> {
    let mut full = leading.to_vec();
    full.push(shape.channels);
    if !shape.is_vector() {
        full.extend([shape.height, shape.width]);
    }
    full
}

/// Inputs (each picture at every time step) and labels.
fn samples(common: &mut TraceFile, graph: &Graph, num_time_steps: usize, batches: &[Recorded]) {
    let shape = graph.value(graph.input()).shape;
    let n = batches.first().map_or(0, |b| b.labels.len());
    let mut inputs = Vec::new();
    let mut labels = Vec::new();
    for batch in batches {
        let picture = nchw(&batch.x_nhwc, shape);
        for _ in 0..num_time_steps {
            inputs.extend_from_slice(&picture);
        }
        labels.extend(batch.labels.iter().map(|&label| i64::from(label)));
    }
    let full = full_shape(&[batches.len(), num_time_steps, n], shape);
    let tensors = &mut common.tensors;
    tensors.insert("input".into(), TraceTensor::f32(&full, inputs));
    tensors.insert(
        "labels".into(),
        TraceTensor::i64(&[batches.len(), n], labels),
    );
}

/// Collects what a run makes, row by row.
struct Recorder {
    num_time_steps: usize,
    batch: usize,
    num_updates: usize,
    parameter_names: Vec<String>,
    layer_names: Vec<String>,
    /// By the tensor's name in the file: the shape of a row, and the rows so far.
    rows: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    masks: BTreeMap<String, (Shape, Vec<f32>)>,
    /// How close a membrane potential came to the threshold.
    margin: f32,
}

impl Recorder {
    fn new(graph: &Graph, num_time_steps: usize) -> Self {
        let lifs = graph.nodes().iter().filter(|n| n.op == Op::Lif);
        let mut rows = BTreeMap::new();
        for parameter in graph.parameters() {
            for kind in ["grad", "param"] {
                let key = format!("{kind}/{}", parameter.name);
                rows.insert(key, (parameter.shape.clone(), Vec::new()));
            }
        }
        Self {
            num_time_steps,
            batch: 0,
            num_updates: 0,
            parameter_names: graph.parameters().into_iter().map(|p| p.name).collect(),
            layer_names: lifs.map(|n| n.name.clone()).collect(),
            rows,
            masks: BTreeMap::new(),
            margin: f32::INFINITY,
        }
    }

    fn push(&mut self, tensor: &str, shape: &[usize], values: &[f32]) {
        let empty = || (shape.to_vec(), Vec::new());
        let (_, rows) = self.rows.entry(tensor.into()).or_insert_with(empty);
        rows.extend_from_slice(values);
    }

    /// The algorithm's file and the masks of the common one.
    fn files(
        self,
        graph: &Graph,
        num_batches: usize,
        num_samples: usize,
    ) -> (TraceFile, BTreeMap<String, TraceTensor>) {
        let steps = num_batches * self.num_time_steps;
        let mut own = TraceFile::default();
        for (name, (shape, values)) in self.rows {
            let leading = if name.starts_with("grad/") || name.starts_with("param/") {
                self.num_updates
            } else {
                steps
            };
            let full = [&[leading][..], &shape].concat();
            own.tensors.insert(name, TraceTensor::f32(&full, values));
        }
        let margin = format!("{:e}", self.margin);
        own.metadata.insert("threshold_margin".into(), margin);
        let leading = [num_batches, self.num_time_steps, num_samples];
        let masks = self.masks.into_iter().map(|(node, (shape, values))| {
            let tensor = TraceTensor::f32(&full_shape(&leading, shape), values);
            (format!("mask/{node}"), tensor)
        });
        debug_assert!(graph.output().0 > 0, "a finished graph has an output");
        (own, masks.collect())
    }
}

impl Observer for Recorder {
    fn after_forward(&mut self, network: &Network, kernels: &mut dyn Kernels, t: usize) {
        let report = kernels.take_report();
        #[expect(clippy::cast_possible_truncation, reason = "the format stores f32")]
        self.push("loss", &[], &[report.loss[t] as f32]);
        let (n, k) = (network.plan().settings.samples, network.num_classes());
        let mut logits = vec![0.0; n * k];
        network.read_logits(kernels, t, &mut logits);
        self.push("logits", &[n, k], &logits);
        let neurons = &network.plan().neurons;
        #[expect(clippy::cast_possible_truncation, reason = "the format stores f32")]
        let rates: Vec<f32> = neurons
            .iter()
            .map(|(_, i)| (report.spikes[*i] as f64 / report.neurons[*i] as f64) as f32)
            .collect();
        self.push("rate", &[rates.len()], &rates);
        for (name, _) in network.plan().layout.statistics() {
            let values = network.get(kernels, Arena::Statistics, name);
            let values = values.expect("the layout lists it");
            self.push(&format!("buffer/{name}"), &[values.len()], &values);
        }
        let masks = &mut self.masks;
        network.read_masks(kernels, t, &mut |node, shape, mask| {
            let (_, rows) = masks.entry(node.into()).or_insert((shape, Vec::new()));
            rows.extend(nchw(mask, shape));
        });
        let margin = network.threshold_margin(kernels, t);
        self.margin = self.margin.min(margin);
    }

    fn after_update(&mut self, network: &Network, kernels: &mut dyn Kernels) {
        self.num_updates += 1;
        for name in self.parameter_names.clone() {
            for (kind, arena) in [("grad", Arena::Gradients), ("param", Arena::Weights)] {
                let values = network.get(kernels, arena, &name);
                let values = values.expect("the layout has every parameter of the graph");
                self.push(&format!("{kind}/{name}"), &[], &values);
            }
        }
    }
}
