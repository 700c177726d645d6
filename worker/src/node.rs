//! Builds what one rank needs from a checked run: back end, network, algorithm.

use crate::backend::{BackEnd, BackEndError};
use crate::engine::Network;
use crate::engine::plan::{Plan, Settings};
use crate::graph::models::{self, ModelError, ModelName, ModelOptions, Stem};
use crate::graph::{Graph, init};
use crate::kernel::{Failure, Kernels, Loss, Neuron, Norms, Reset, Shortage};
use crate::learn::bptt::Bptt;
use crate::learn::optimiser::Optimiser;
use crate::learn::stol::Stol;
use crate::learn::{Algorithm, Learner};
use crate::memory;
use crate::shape::{Join, Shape};
use std::ops::Range;
use synfire_shared::run::{self, Run};

/// Why a run cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The model cannot be built for this input.
    #[error("the model cannot be built")]
    Model(#[from] ModelError),
    /// The back end cannot start.
    #[error("the back end cannot start")]
    BackEnd(#[from] BackEndError),
    /// The device cannot hold the network, or computes no more.
    #[error("the device failed: {0}")]
    Device(Failure),
    /// The network does not fit into memory.
    #[error(
        "{} with a window of {window} needs {needed_mib} MiB and {available_mib} MiB are free: {}",
        batch_of(*batch, *of), remedy(*fits)
    )]
    Memory {
        /// Samples of this rank in the batch.
        batch: usize,
        /// Samples of all ranks in it.
        of: usize,
        /// Time steps that are kept.
        window: usize,
        /// What buffers, weights and optimiser need.
        needed_mib: u64,
        /// What the machine has left.
        available_mib: u64,
        /// The largest batch, of all ranks, that fits; 0 if none does.
        fits: u64,
    },
}

fn batch_of(batch: usize, of: usize) -> String {
    if batch == of {
        format!("a batch of {batch}")
    } else {
        format!("this rank's {batch} samples of a batch of {of}")
    }
}

fn remedy(fits: u64) -> String {
    match fits {
        0 => "use fewer time steps (bptt keeps them all), a smaller window or a narrower model"
            .into(),
        fits => format!("a batch of {fits} would fit"),
    }
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
    /// Samples of all ranks in a batch.
    pub batch: usize,
}

impl Node {
    /// As [`failure`], of this node's back end and batch.
    pub fn failure(&mut self) -> Option<Failure> {
        let samples = self.learner.network.plan().settings.samples;
        failure(&mut *self.kernels, samples, self.batch)
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("kernels", &self.kernels.name())
            .field("algorithm", &self.algorithm.name())
            .finish_non_exhaustive()
    }
}

/// What one rank has of each batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its places in the global batch.
    pub places: Range<usize>,
    /// Over whose samples its norms take their statistics.
    pub norms: Norms,
    /// How many ranks of its machine come before this one.
    pub local_rank: u32,
}

impl Share {
    /// Of the only rank.
    pub fn whole(run: &Run) -> Self {
        Self {
            places: 0..run.data.batch,
            norms: Norms::Own,
            local_rank: 0,
        }
    }
}

/// Builds the node of the only rank with freshly drawn weights; see [`build_share`].
///
/// # Errors
/// If the model does not fit the input, or the back end cannot start.
pub fn build(run: &Run, input: Shape, classes: usize) -> Result<Node, NodeError> {
    build_share(run, input, classes, &Share::whole(run))
}

/// Builds a rank's node with freshly drawn weights, the same on all ranks.
///
/// # Errors
/// If the model does not fit the input, or the back end cannot start.
///
/// # Panics
/// Never: initial values are drawn for the graph's own parameters.
pub fn build_share(
    run: &Run,
    input: Shape,
    classes: usize,
    share: &Share,
) -> Result<Node, NodeError> {
    let options = model_options(&run.model, input, classes);
    let graph = models::build(&options)?;
    let mut kernels = BackEnd::of(run).of_rank(share.local_rank)?.open()?;
    let algorithm = algorithm(run.algorithm);
    let settings = Settings {
        samples: share.places.len(),
        window: algorithm.window(run.time_steps),
        neuron: neuron(&run.neuron),
        bn_eps: 1e-5,
        bn_momentum: 0.1,
        dropout_rescale: true,
        seed: run.seed,
        norms: share.norms,
        first_sample: share.places.start,
    };
    let optimiser = Optimiser::new(run.optimiser);
    let states = optimiser.num_states();
    check_memory(&graph, &settings, run.data.batch, states, &*kernels)?;
    let network = Network::new(&graph, &settings, optimiser.num_states(), &mut *kernels);
    for (name, values) in init::parameters(&options, &graph, run.seed) {
        let set = network.set(&mut *kernels, &name, &values);
        set.expect("initial values are drawn for the graph's own parameters");
    }
    if let Some(what) = failure(&mut *kernels, settings.samples, run.data.batch) {
        return Err(NodeError::Device(what));
    }
    let loss = loss(run.loss, share.places.len(), classes);
    let learner = Learner::new(network, loss, optimiser);
    Ok(Node {
        kernels,
        learner,
        algorithm,
        graph,
        batch: run.data.batch,
    })
}

/// Why a back end computes no more, if so. Where memory is not there, that names the largest `batch` of all
/// ranks that would fit; `samples` of the one that does not are this rank's.
pub fn failure(kernels: &mut dyn Kernels, samples: usize, batch: usize) -> Option<Failure> {
    let mut failure = kernels.failure()?;
    if let Some(shortage) = kernels.shortage() {
        let remedy = remedy(fits(&shortage, samples, batch));
        failure.what = format!("{}; {remedy}", failure.what);
    }
    Some(failure)
}

/// The largest batch of all ranks that fits, where this rank's `samples` of a `batch` do not: what is not
/// fixed grows with it.
fn fits(shortage: &Shortage, samples: usize, batch: usize) -> u64 {
    let left = shortage.available.saturating_sub(shortage.fixed);
    let growing = shortage.needed.saturating_sub(shortage.fixed).max(1);
    let (samples, batch) = (samples as u128, batch as u128);
    let fits = u128::from(left) * samples / u128::from(growing);
    // Memory in pieces may be too little where their sum is enough.
    let fits = fits.min(samples.saturating_sub(1)) * batch / samples.max(1);
    u64::try_from(fits).unwrap_or(u64::MAX)
}

/// Whether a network's buffers fit into the memory that is free, before anything is allocated. `batch`
/// is that of all ranks.
///
/// # Errors
/// If they do not; the error names the largest batch that does.
pub fn check_memory(
    graph: &Graph,
    settings: &Settings,
    batch: usize,
    optimiser_states: usize,
    kernels: &dyn Kernels,
) -> Result<(), NodeError> {
    let available = match kernels.available_bytes() {
        // The rest is for cuDNN's workspace and what else lives no longer than a call: ARCHITECTURE, "GPUs".
        Some(of_device) => of_device - of_device / 8,
        // Where the system does not say: more than any machine that trains without a GPU has.
        None => memory::available_bytes().unwrap_or(1 << 40),
    };
    let plan = Plan::new(graph, settings);
    // Weights, gradients, states, and the packed forms of the weights that back ends keep.
    let arenas = 4 * plan.layout.len() as u64 * (2 + optimiser_states as u64 + 2);
    let buffers = plan.buffers.iter().map(|b| kernels.bytes(&b.spec));
    let buffers = buffers.fold(0, u64::saturating_add);
    let needed = arenas.saturating_add(buffers);
    if needed <= available {
        return Ok(());
    }
    let shortage = Shortage {
        available,
        needed,
        fixed: arenas,
    };
    Err(NodeError::Memory {
        batch: settings.samples,
        of: batch,
        window: settings.window,
        needed_mib: needed >> 20,
        available_mib: available >> 20,
        fits: fits(&shortage, settings.samples, batch),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_batch_that_fits_grows_with_what_is_left_beside_what_is_fixed() {
        // 100 bytes, and 10 for each of 64 samples.
        let of = |available| Shortage {
            available,
            needed: 740,
            fixed: 100,
        };
        assert_eq!(fits(&of(500), 64, 64), 40);
        assert_eq!(fits(&of(509), 64, 64), 40);
        // One of two ranks.
        assert_eq!(fits(&of(500), 64, 128), 80);
        // In pieces that are too small.
        assert_eq!(fits(&of(800), 64, 64), 63);
        assert_eq!(fits(&of(800), 1, 2), 0);
        assert_eq!(fits(&of(90), 64, 64), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_batch_that_does_not_fit_is_refused_with_one_that_does() {
        let set = |batch: u64| vec![format!("data.batch={batch}")];
        let run = |batch| Run::from_toml(run::QUICKSTART, "quickstart", &set(batch)).unwrap();
        // 10^6 pictures of 784 pixels, 16 channels, several values: more than 100 GiB.
        let error = build(&run(1_000_000), Shape::new(28, 28, 1), 10).unwrap_err();
        let NodeError::Memory { fits, .. } = error else {
            panic!("{error}");
        };
        assert!(fits > 1000 && fits < 1_000_000, "{fits}");
        assert!(build(&run(8), Shape::new(28, 28, 1), 10).is_ok());
        // One rank of two.
        let half = Share {
            places: 0..500_000,
            norms: Norms::Pooled,
            local_rank: 1,
        };
        let error = build_share(&run(1_000_000), Shape::new(28, 28, 1), 10, &half).unwrap_err();
        let text = error.to_string();
        let begin = "this rank's 500000 samples of a batch of 1000000 with a window of";
        assert!(text.starts_with(begin), "{text}");
        let NodeError::Memory { fits: of_two, .. } = error else {
            panic!("{error}");
        };
        assert!(of_two > fits * 3 / 2, "{of_two} {fits}");
    }
}
