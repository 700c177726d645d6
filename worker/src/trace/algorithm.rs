//! What one algorithm made of a net, time step by time step.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::TraceError;
use super::common::{CommonTrace, statistics};
use super::compare::Quantity;
use super::error::shown;
use super::file::{self, TraceFile};
use super::metadata::Source;
use crate::kernel::Neuron;

/// What a window's older time steps are computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedHistory {
    /// What was kept when they ran.
    Saved,
    /// They run again with the weights of now, as in the released code.
    Recomputed {
        /// Whether an all-zero time step runs before the first.
        phantom: bool,
        /// Whether running statistics move a second time.
        rerun_moves_statistics: bool,
    },
}

/// Which error reaches a window's older time step (the released code's modes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedMode {
    /// The neuron's own and that from above: STOL.
    S,
    /// The neuron's own only: what the paper calls OTTT.
    T,
    /// None: what the paper calls FPTT.
    O,
}

/// The algorithm that made a trace (ALGORITHMS, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedAlgorithm {
    /// Algorithm 1, and longer windows.
    Stol {
        /// The window k.
        window: usize,
        /// What older steps are computed from.
        history: TracedHistory,
        /// Which error reaches them.
        mode: TracedMode,
    },
    /// Backpropagation through time.
    Bptt,
    /// Instantaneous gradients, one update per batch.
    Sltt,
    /// Instantaneous gradients, an update per time step; no regulariser.
    Fptt,
    /// Presynaptic traces.
    Ottt,
}

impl TracedAlgorithm {
    /// What this version does not have of it; `None` if it can be replayed.
    pub fn not_built(&self) -> Option<String> {
        match self {
            Self::Bptt => None,
            Self::Sltt => Some("algorithm sltt".into()),
            Self::Fptt => Some("algorithm fptt".into()),
            Self::Ottt => Some("algorithm ottt".into()),
            Self::Stol { history, mode, .. } => {
                let history = match history {
                    TracedHistory::Saved => None,
                    TracedHistory::Recomputed { .. } => Some("history = recomputed"),
                };
                let mode = match mode {
                    TracedMode::S => None,
                    TracedMode::T => Some("mode = t"),
                    TracedMode::O => Some("mode = o"),
                };
                let missing: Vec<&str> = [history, mode].into_iter().flatten().collect();
                (!missing.is_empty()).then(|| missing.join(", "))
            }
        }
    }

    fn update(self) -> TracedUpdate {
        match self {
            Self::Stol { .. } | Self::Fptt | Self::Ottt => TracedUpdate::TimeStep,
            Self::Bptt | Self::Sltt => TracedUpdate::Batch,
        }
    }
}

/// When the weights changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracedUpdate {
    /// At every time step.
    TimeStep,
    /// At the end of every batch.
    Batch,
}

/// The checked content of `<net>.<algorithm>.safetensors`.
///
/// Everything that the graph calls for is there, with the shape that it needs, and all numbers are
/// finite.
#[derive(Clone, Debug)]
pub struct AlgorithmTrace {
    /// What messages call the file.
    pub name: String,
    /// The algorithm.
    pub algorithm: TracedAlgorithm,
    /// The neuron.
    pub neuron: Neuron,
    /// When the weights changed.
    pub update: TracedUpdate,
    /// Time steps of all batches.
    pub num_time_steps: usize,
    /// Updates of all batches.
    pub num_updates: usize,
    loss: Rows,
    logits: Rows,
    rate: Rows,
    gradients: BTreeMap<String, Rows>,
    parameters: BTreeMap<String, Rows>,
    statistics: BTreeMap<String, Rows>,
}

/// A tensor by its leading axis.
#[derive(Clone, Debug)]
struct Rows {
    elements: usize,
    values: Vec<f32>,
}

impl AlgorithmTrace {
    /// Reads and checks a file beside the one that it belongs to.
    ///
    /// # Errors
    /// As [`file::read`] and [`AlgorithmTrace::from_file`].
    pub fn read(path: &Path, common: &CommonTrace) -> Result<Self, TraceError> {
        Self::from_file(&file::read(path)?, common)
    }

    /// Checks the content of a file against the one that it belongs to.
    ///
    /// # Errors
    /// If anything is missing, unknown, of the wrong shape, or no number.
    pub fn from_file(file: &TraceFile, common: &CommonTrace) -> Result<Self, TraceError> {
        let source = Source(file);
        source.check_version()?;
        let algorithm = algorithm(source)?;
        let update = update(source, algorithm)?;
        let steps = common.num_batches * common.num_time_steps;
        let updates = match update {
            TracedUpdate::TimeStep => steps,
            TracedUpdate::Batch => common.num_batches,
        };
        let rows = |tensor: &str, rows: usize, shape: &[usize]| {
            let full: Vec<usize> = [&[rows], shape].concat();
            let values = source.floats_of(tensor, &full)?.to_vec();
            let elements = values.len() / rows;
            Ok::<_, TraceError>(Rows { elements, values })
        };
        let mut gradients = BTreeMap::new();
        let mut parameters = BTreeMap::new();
        for p in common.graph.parameters() {
            let gradient = rows(&format!("grad/{}", p.name), updates, &p.shape)?;
            let parameter = rows(&format!("param/{}", p.name), updates, &p.shape)?;
            gradients.insert(p.name.clone(), gradient);
            parameters.insert(p.name, parameter);
        }
        let mut moved = BTreeMap::new();
        for (name, shape) in statistics(&common.graph) {
            let values = rows(&format!("buffer/{name}"), steps, &shape)?;
            moved.insert(name, values);
        }
        let rate = rows("rate", steps, &[common.lif_order.len()])?;
        let outside = rate.values.iter().position(|r| !(0.0..=1.0).contains(r));
        if let Some(index) = outside {
            let value = rate.values[index];
            return Err(source.wrong_value("rate", index, value, "a rate from 0 to 1"));
        }
        let trace = Self {
            name: source.name(),
            algorithm,
            neuron: source.neuron()?.unwrap_or(common.neuron),
            update,
            num_time_steps: steps,
            num_updates: updates,
            loss: rows("loss", steps, &[])?,
            logits: rows("logits", steps, &[common.num_samples, common.num_classes])?,
            rate,
            gradients,
            parameters,
            statistics: moved,
        };
        source.no_others(|tensor| trace.knows(tensor))?;
        Ok(trace)
    }

    /// What is expected of a tensor: loss `[1]`, logits `[N, K]`, rate `[layers]`, gradients,
    /// parameters and statistics as stored. `name` is the parameter or statistic; the loss, logits
    /// and rate have none.
    ///
    /// A row is an update for gradients and parameters, else a time step of all batches.
    ///
    /// # Panics
    /// If there is no such tensor or row.
    pub fn expected(&self, quantity: Quantity, name: &str, row: usize) -> &[f32] {
        let among = |all: &'_ BTreeMap<String, Rows>| all.contains_key(name);
        let rows = match quantity {
            Quantity::Loss => &self.loss,
            Quantity::Logits => &self.logits,
            Quantity::Spikes => &self.rate,
            Quantity::Gradient if among(&self.gradients) => &self.gradients[name],
            Quantity::Parameter if among(&self.parameters) => &self.parameters[name],
            Quantity::Statistic if among(&self.statistics) => &self.statistics[name],
            Quantity::Gradient | Quantity::Parameter | Quantity::Statistic | Quantity::Value => {
                panic!("the trace {} has no {quantity} of {name:?}", self.name)
            }
        };
        &rows.values[row * rows.elements..][..rows.elements]
    }

    fn knows(&self, tensor: &str) -> bool {
        match tensor.split_once('/') {
            Some(("grad" | "param", name)) => self.parameters.contains_key(name),
            Some(("buffer", name)) => self.statistics.contains_key(name),
            Some(_) => false,
            None => ["loss", "logits", "rate"].contains(&tensor),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StolText {
    k: usize,
    variant: String,
    mode: Option<String>,
    phantom: Option<bool>,
    bn_rerun_updates: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

fn algorithm(source: Source<'_>) -> Result<TracedAlgorithm, TraceError> {
    let algorithm = match source.text("class")? {
        "STOL" => return stol(source),
        "BPTT" => TracedAlgorithm::Bptt,
        "SLTT" => TracedAlgorithm::Sltt,
        "FPTT" => TracedAlgorithm::Fptt,
        "OTTT" => TracedAlgorithm::Ottt,
        other => {
            let reason = format!(
                "{} is unknown: STOL, BPTT, SLTT, FPTT or OTTT",
                shown(other)
            );
            return Err(source.wrong_key("class", reason));
        }
    };
    source.json::<NoArguments>("args")?;
    Ok(algorithm)
}

fn stol(source: Source<'_>) -> Result<TracedAlgorithm, TraceError> {
    let wrong = |reason: String| Err(source.wrong_key("args", reason));
    let args: StolText = source.required("args")?;
    if args.k == 0 {
        return wrong("the window k must be at least 1".into());
    }
    let history = match args.variant.as_str() {
        "saved" if args.phantom.is_some() || args.bn_rerun_updates.is_some() => {
            return wrong("phantom and bn_rerun_updates belong to variant \"recompute\"".into());
        }
        "saved" => TracedHistory::Saved,
        "recompute" => TracedHistory::Recomputed {
            phantom: args.phantom.unwrap_or(true),
            rerun_moves_statistics: args.bn_rerun_updates.unwrap_or(true),
        },
        other => {
            let other = shown(other);
            return wrong(format!("variant {other} is unknown: saved or recompute"));
        }
    };
    let mode = match args.mode.as_deref() {
        None | Some("s") => TracedMode::S,
        Some("t") => TracedMode::T,
        Some("o") => TracedMode::O,
        Some(other) => return wrong(format!("mode {} is unknown: s, t or o", shown(other))),
    };
    Ok(TracedAlgorithm::Stol {
        window: args.k,
        history,
        mode,
    })
}

fn update(source: Source<'_>, algorithm: TracedAlgorithm) -> Result<TracedUpdate, TraceError> {
    let update = match source.text("update")? {
        "step" => TracedUpdate::TimeStep,
        "batch" => TracedUpdate::Batch,
        other => {
            let reason = format!("{} is unknown: step or batch", shown(other));
            return Err(source.wrong_key("update", reason));
        }
    };
    // Only OTTT has both cadences (OTTT_O and OTTT_A).
    if update == algorithm.update() || algorithm == TracedAlgorithm::Ottt {
        return Ok(update);
    }
    let reason = format!("{algorithm:?} does not update the weights then");
    Err(source.wrong_key("update", reason))
}
