//! Runs a recorded net again, on any back end, and compares every number.

use super::algorithm::{AlgorithmTrace, TracedAlgorithm};
use super::common::CommonTrace;
use super::compare::{Comparison, Quantity, Tolerance};
use crate::engine::Network;
use crate::engine::plan::Settings;
use crate::kernel::{Arena, Kernels, Loss, Norms};
use crate::learn::bptt::Bptt;
use crate::learn::optimiser::Optimiser;
use crate::learn::stol::Stol;
use crate::learn::{Algorithm, Batch, Fault, Input, Learner, Masks, Observer};
use synfire_shared::run;

/// Why a trace could not be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The algorithm, or an option of it, is not in this version.
    #[error("{file}: {what} is not built in this version")]
    NotBuilt {
        /// The trace.
        file: String,
        /// The algorithm or option.
        what: String,
    },
    /// The replay's loss stopped being finite.
    #[error("{file} could not be replayed")]
    Fault {
        /// The trace.
        file: String,
        /// Where.
        #[source]
        fault: Fault,
    },
}

/// The algorithm of a trace.
///
/// # Errors
/// If it, or an option of it, is not built.
fn algorithm(trace: &AlgorithmTrace) -> Result<Box<dyn Algorithm>, ReplayError> {
    let missing = |what| ReplayError::NotBuilt {
        file: trace.name.clone(),
        what,
    };
    if let Some(what) = trace.algorithm.not_built() {
        return Err(missing(what));
    }
    Ok(match trace.algorithm {
        TracedAlgorithm::Stol { window, .. } => Box::new(Stol { window }),
        TracedAlgorithm::Bptt => Box::new(Bptt),
        TracedAlgorithm::Sltt => return Err(missing("algorithm sltt".into())),
        TracedAlgorithm::Fptt => return Err(missing("algorithm fptt".into())),
        TracedAlgorithm::Ottt => return Err(missing("algorithm ottt".into())),
    })
}

/// Replays a trace on a back end that holds nothing yet.
///
/// # Errors
/// If the algorithm is not built, or the loss stops being finite.
///
/// # Panics
/// If the network has another tensor than the traces: the loader has compared them, so the engine
/// is at fault then.
pub fn replay(
    common: &CommonTrace,
    trace: &AlgorithmTrace,
    kernels: &mut dyn Kernels,
) -> Result<Comparison, ReplayError> {
    let mut algorithm = algorithm(trace)?;
    let mut learner = learner(common, &settings(common, trace), kernels);
    let mut seen = Comparer {
        common,
        trace,
        comparison: Comparison::new(),
        batch: 0,
        updates: 0,
        logits: vec![0.0; common.num_samples * common.num_classes],
    };
    for batch in 0..common.num_batches {
        // Of a device that has failed nothing is compared: whoever asks it next is told.
        if kernels.failure().is_some() {
            break;
        }
        seen.batch = batch;
        let frames: Vec<f32> = (0..common.num_time_steps)
            .flat_map(|t| common.input(batch, t).iter().copied())
            .collect();
        let given = |node: &str, t: usize| Some(common.mask(node, batch, t).to_vec());
        let batch = Batch {
            index: batch as u64,
            input: Input::Frames(&frames),
            labels: common.labels(batch),
            num_time_steps: common.num_time_steps,
            masks: Masks::Given(&given),
        };
        let mut result = Ok(());
        kernels.run(&mut |kernels| {
            result = algorithm.learn(&mut learner, kernels, &batch, &mut seen);
        });
        result.map_err(|error| ReplayError::Fault {
            file: trace.name.clone(),
            fault: error.alone(),
        })?;
    }
    Ok(seen.comparison)
}

/// What the engine is told for a trace.
pub fn settings(common: &CommonTrace, trace: &AlgorithmTrace) -> Settings {
    let window = algorithm(trace).map_or(1, |a| a.window(common.num_time_steps));
    Settings {
        samples: common.num_samples,
        window,
        neuron: trace.neuron,
        bn_eps: common.bn_eps,
        bn_momentum: common.bn_momentum,
        dropout_rescale: false,
        seed: 0,
        norms: Norms::Own,
        first_sample: 0,
    }
}

/// The net of a trace with its starting parameters and statistics.
fn learner(common: &CommonTrace, settings: &Settings, kernels: &mut dyn Kernels) -> Learner {
    let network = Network::new(&common.graph, settings, 1, kernels);
    for name in &common.param_order {
        let set = network.set(kernels, name, common.parameter(name));
        set.expect("the loader checked every parameter against the graph");
    }
    for (name, _) in network.plan().layout.statistics() {
        let set = network.set(kernels, name, common.buffer(name));
        set.expect("the loader checked every statistic against the graph");
    }
    let (ce, mse) = common.loss.weights();
    Learner::new(
        network,
        Loss {
            samples: common.num_samples,
            classes: common.num_classes,
            ce,
            mse,
        },
        Optimiser::new(run::Optimiser::Sgd {
            lr: f64::from(common.sgd.lr),
            momentum: f64::from(common.sgd.momentum),
            weight_decay: f64::from(common.sgd.weight_decay),
        }),
    )
}

/// Compares as the run goes.
struct Comparer<'a> {
    common: &'a CommonTrace,
    trace: &'a AlgorithmTrace,
    comparison: Comparison,
    batch: usize,
    updates: usize,
    logits: Vec<f32>,
}

impl Observer for Comparer<'_> {
    fn after_forward(&mut self, network: &Network, kernels: &mut dyn Kernels, t: usize) {
        // A device that has failed has nothing to compare.
        if kernels.failure().is_some() {
            return;
        }
        let row = self.common.row(self.batch, t);
        let report = kernels.take_report();
        #[expect(clippy::cast_possible_truncation, reason = "the trace stores f32")]
        let loss = [report.loss[t] as f32];
        let trace = self.trace;
        let expected = |quantity, name: &str| trace.expected(quantity, name, row);
        let all = &mut self.comparison;
        all.check(
            Quantity::Loss,
            "loss",
            row,
            &loss,
            expected(Quantity::Loss, ""),
        );
        network.read_logits(kernels, t, &mut self.logits);
        let logits = expected(Quantity::Logits, "");
        all.check(Quantity::Logits, "logits", row, &self.logits, logits);
        let rates = expected(Quantity::Spikes, "");
        for (layer, &rate) in self.common.lif_order.iter().zip(rates) {
            let neurons = &network.plan().neurons;
            let counter = neurons.iter().find(|(name, _)| name == layer);
            let (_, counter) = counter.expect("the plan lists every layer of the graph");
            let spikes = report.spikes[*counter];
            all.check_spikes(layer, row, spikes, rate, self.common.neurons(layer));
        }
        for (name, _) in network.plan().layout.statistics() {
            let got = network.get(kernels, Arena::Statistics, name);
            let got = got.expect("the layout lists it");
            let expected = trace.expected(Quantity::Statistic, name, row);
            all.check(Quantity::Statistic, name, row, &got, expected);
        }
    }

    fn after_update(&mut self, network: &Network, kernels: &mut dyn Kernels) {
        if kernels.failure().is_some() {
            return;
        }
        let row = self.updates;
        self.updates += 1;
        for name in &self.common.param_order {
            let mut compare = |quantity, arena, bias: bool| {
                let got = network.get(kernels, arena, name);
                let got = got.expect("the graph has it");
                let pair = (&got[..], self.trace.expected(quantity, name, row));
                let tolerance = if bias {
                    Tolerance::BIAS_BEFORE_NORM
                } else {
                    Tolerance::of(quantity)
                };
                let all = &mut self.comparison;
                all.check_within(quantity, name, row, pair, tolerance);
            };
            let bias = self.common.is_bias_before_norm(name);
            compare(Quantity::Gradient, Arena::Gradients, bias);
            compare(Quantity::Parameter, Arena::Weights, bias);
        }
    }
}
