//! Builds what one rank needs from a checked run: back end, network, algorithm.

use crate::engine::Network;
use crate::engine::plan::Settings;
use crate::graph::models::{self, ModelError, ModelName, ModelOptions, Stem};
use crate::graph::{Graph, init};
use crate::kernel::cpu::{CpuError, CpuKernels};
use crate::kernel::reference::ReferenceKernels;
use crate::kernel::{Kernels, Loss, Neuron, Reset};
use crate::learn::bptt::Bptt;
use crate::learn::optimiser::Optimiser;
use crate::learn::stol::Stol;
use crate::learn::{Algorithm, Learner};
use crate::shape::{Join, Shape};
use synfire_shared::run::{self, Run};

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The model cannot be built for this input.
    #[error("the model cannot be built: {0}")]
    Model(#[from] ModelError),
    /// The back end cannot start.
    #[error("the back end cannot start: {0}")]
    Cpu(#[from] CpuError),
}

/// What one rank computes with.
pub struct Node {
    /// The back end.
    pub kernels: Box<dyn Kernels>,
    /// Network, loss, optimiser.
    pub learner: Learner,
    /// How it learns.
    pub algorithm: Box<dyn Algorithm>,
    /// The network as it was described.
    pub graph: Graph,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("kernels", &self.kernels.name())
            .field("algorithm", &self.algorithm.name())
            .finish_non_exhaustive()
    }
}

/// Builds a rank's node with freshly drawn weights.
///
/// # Errors
/// If the model does not fit the input, or the back end cannot start.
///
/// # Panics
/// Never: initial values are drawn for the graph's own parameters.
pub fn build(run: &Run, input: Shape, classes: usize) -> Result<Node, NodeError> {
    let options = model_options(&run.model, input, classes);
    let graph = models::build(&options)?;
    let mut kernels = kernels(run.engine, run.threads)?;
    let algorithm = algorithm(run.algorithm);
    let settings = Settings {
        samples: run.data.batch,
        window: algorithm.window(run.time_steps),
        neuron: neuron(&run.neuron),
        bn_eps: 1e-5,
        bn_momentum: 0.1,
        dropout_rescale: true,
        seed: run.seed,
    };
    let optimiser = Optimiser::new(run.optimiser);
    let network = Network::new(&graph, &settings, optimiser.num_states(), &mut *kernels);
    for (name, values) in init::parameters(&options, &graph, run.seed) {
        let set = network.set(&mut *kernels, &name, &values);
        set.expect("initial values are drawn for the graph's own parameters");
    }
    let learner = Learner {
        loss: loss(run.loss, run.data.batch, classes),
        network,
        optimiser,
    };
    Ok(Node {
        kernels,
        learner,
        algorithm,
        graph,
    })
}

/// A back end by name.
///
/// # Errors
/// If it cannot start.
pub fn kernels(engine: run::Engine, threads: usize) -> Result<Box<dyn Kernels>, CpuError> {
    Ok(match engine {
        run::Engine::Cpu => Box::new(CpuKernels::new(threads, None)?),
        run::Engine::Burn => Box::new(ReferenceKernels::new()),
    })
}

/// An algorithm by name.
pub fn algorithm(algorithm: run::Algorithm) -> Box<dyn Algorithm> {
    match algorithm {
        run::Algorithm::Stol { window } => Box::new(Stol { window }),
        run::Algorithm::Bptt => Box::new(Bptt),
    }
}

/// A neuron as the kernels take it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the engine computes in f32"
)]
pub fn neuron(neuron: &run::Neuron) -> Neuron {
    Neuron {
        tau_m: neuron.tau_m as f32,
        v_th: neuron.v_th as f32,
        alpha: neuron.alpha as f32,
        reset: match neuron.reset {
            run::Reset::Hard => Reset::Hard,
            run::Reset::Soft => Reset::Soft,
            run::Reset::None => Reset::None,
        },
        detach_reset: neuron.detach_reset,
    }
}

/// A loss as two weights (Eq. 11).
#[expect(
    clippy::cast_possible_truncation,
    reason = "the engine computes in f32"
)]
pub fn loss(loss: run::Loss, samples: usize, classes: usize) -> Loss {
    let (ce, mse) = match loss {
        run::Loss::Paper { lambda } => (1.0 - lambda, lambda),
        run::Loss::Ce => (1.0, 0.0),
        run::Loss::CeMse { lambda } => (1.0, lambda),
    };
    Loss {
        samples,
        classes,
        ce: ce as f32,
        mse: mse as f32,
    }
}

/// A model of a run for the data's input and classes.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a rate is a rate in f32 too"
)]
pub fn model_options(model: &run::Model, input: Shape, classes: usize) -> ModelOptions {
    use run::Depth::{Eighteen, ThirtyFour};
    let name = match model.network {
        run::Network::Small => ModelName::Small,
        run::Network::MsResnet {
            depth: Eighteen, ..
        } => ModelName::MsResnet18,
        run::Network::MsResnet {
            depth: ThirtyFour, ..
        } => ModelName::MsResnet34,
        run::Network::SewResnet {
            depth: Eighteen, ..
        } => ModelName::SewResnet18,
        run::Network::SewResnet {
            depth: ThirtyFour, ..
        } => ModelName::SewResnet34,
        run::Network::Vgg11 { .. } => ModelName::Vgg11,
    };
    let mut options = ModelOptions {
        input,
        classes,
        width: model.width,
        ..ModelOptions::new(name)
    };
    match model.network {
        run::Network::Small => {}
        run::Network::MsResnet { stem, norm, .. } => {
            options.stem = match stem {
                run::Stem::Cifar => Stem::Cifar,
                run::Stem::Imagenet => Stem::Imagenet,
            };
            options.batch_norm = norm == run::Norm::Batch;
        }
        run::Network::SewResnet {
            residual,
            zero_init_residual,
            ..
        } => {
            options.join = match residual {
                run::Residual::Add => Join::Add,
                run::Residual::And => Join::And,
                run::Residual::Iand => Join::Iand,
            };
            options.zero_init_residual = zero_init_residual;
        }
        run::Network::Vgg11 { dropout } => options.dropout = dropout as f32,
    }
    options
}
