//! Networks in training on any back end, and what is seen of them.

use std::collections::BTreeMap;

use synfire::engine::Network;
use synfire::engine::plan::{Settings, Stage};
use synfire::graph::Graph;
use synfire::graph::init;
use synfire::graph::models::{self, ModelOptions};
use synfire::kernel::cpu::CpuKernels;
use synfire::kernel::cpu::simd::Isa;
use synfire::kernel::reference::ReferenceKernels;
use synfire::kernel::{Arena, Kernels, Loss, Neuron, Norms, Reset};
use synfire::learn::optimiser::Optimiser;
use synfire::learn::{
    Algorithm, Batch, Fault, Input, LearnError, Learner, Masks, Observer, Unobserved,
};
use synfire_shared::run;

/// Numbers by the name of their tensor.
pub type Tensors = BTreeMap<String, Vec<f32>>;

/// The paper's neuron: tau = 2, threshold 1, alpha 1, hard reset.
pub const PAPER: Neuron = Neuron {
    tau_m: 2.0,
    v_th: 1.0,
    alpha: 1.0,
    reset: Reset::Hard,
    detach_reset: false,
};

/// The CPU back end with the best instruction set of the machine.
///
/// # Panics
/// If the system gives no threads.
pub fn cpu(threads: usize) -> Box<dyn Kernels> {
    Box::new(CpuKernels::new(threads, None).expect("the system has threads"))
}

/// The definition, and the CPU back end with every instruction set of the machine; where
/// `SYNFIRE_TEST_CUDA` is set, a GPU in f32.
///
/// # Panics
/// If the system gives no threads, or no GPU.
pub fn back_ends() -> Vec<Box<dyn Kernels>> {
    let mut all: Vec<Box<dyn Kernels>> = vec![Box::new(ReferenceKernels::new())];
    for isa in Isa::available() {
        let kernels = CpuKernels::new(2, Some(isa)).expect("the system has threads");
        all.push(Box::new(kernels));
    }
    #[cfg(feature = "cuda")]
    if std::env::var_os("SYNFIRE_TEST_CUDA").is_some() {
        all.push(crate::rig::cuda(synfire::kernel::cuda::Precision::F32));
    }
    all
}

/// What a test chooses.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Samples in a batch.
    pub samples: usize,
    /// Slots of the rings: what the algorithm needs for its time steps.
    pub window: usize,
    /// The neurons.
    pub neuron: Neuron,
    /// The weights of cross-entropy and mean squared error.
    pub loss: (f32, f32),
    /// Learning rate, momentum, weight decay.
    pub sgd: [f64; 3],
    /// Whether dropout divides by 1 - p.
    pub dropout_rescale: bool,
    /// The seed of dropout.
    pub seed: u64,
    /// Over whose samples batch norms take their statistics.
    pub norms: Norms,
    /// The place of the first sample in the batch of all ranks.
    pub first_sample: usize,
}

impl Setup {
    /// The paper's neuron, cross-entropy, and weights that stay as they are.
    pub fn new(samples: usize, window: usize) -> Self {
        Self {
            samples,
            window,
            neuron: PAPER,
            loss: (1.0, 0.0),
            sgd: [0.0; 3],
            dropout_rescale: true,
            seed: 0,
            norms: Norms::Own,
            first_sample: 0,
        }
    }

    /// What the engine is told.
    pub fn settings(&self) -> Settings {
        Settings {
            samples: self.samples,
            window: self.window,
            neuron: self.neuron,
            bn_eps: 1e-5,
            bn_momentum: 0.1,
            dropout_rescale: self.dropout_rescale,
            seed: self.seed,
            norms: self.norms,
            first_sample: self.first_sample,
        }
    }
}

/// A network in training on a back end.
pub struct Training {
    /// The back end.
    pub kernels: Box<dyn Kernels>,
    /// The network, its loss and its optimiser.
    pub learner: Learner,
}

impl std::fmt::Debug for Training {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Training")
            .field("kernels", &self.kernels.name())
            .finish_non_exhaustive()
    }
}

impl Training {
    /// All parameters are 0.
    ///
    /// # Panics
    /// Never.
    pub fn new(mut kernels: Box<dyn Kernels>, graph: &Graph, setup: &Setup) -> Self {
        let network = Network::new(graph, &setup.settings(), 1, &mut *kernels);
        let [lr, momentum, weight_decay] = setup.sgd;
        let loss = Loss {
            samples: setup.samples,
            classes: network.num_classes(),
            ce: setup.loss.0,
            mse: setup.loss.1,
        };
        let optimiser = Optimiser::new(run::Optimiser::Sgd {
            lr,
            momentum,
            weight_decay,
        });
        let learner = Learner::new(network, loss, optimiser);
        Self { kernels, learner }
    }

    /// A model by name, with the initial parameters of a seed.
    ///
    /// # Panics
    /// If the options do not fit.
    pub fn of_model(
        kernels: Box<dyn Kernels>,
        model: &ModelOptions,
        setup: &Setup,
        seed: u64,
    ) -> Self {
        let graph = models::build(model).expect("the options fit the model");
        let mut training = Self::new(kernels, &graph, setup);
        for (name, values) in init::parameters(model, &graph, seed) {
            training.set(&name, &values);
        }
        training
    }

    /// Sets a parameter.
    ///
    /// # Panics
    /// If the network has no such tensor of that size.
    pub fn set(&mut self, name: &str, values: &[f32]) {
        let set = self.learner.network.set(&mut *self.kernels, name, values);
        set.expect("the network has this tensor");
    }

    /// Sets all parameters.
    pub fn set_all(&mut self, parameters: &Tensors) {
        for (name, values) in parameters {
            self.set(name, values);
        }
    }

    /// Learns from a batch of frames with keyed masks; what was seen, or where it broke and what
    /// was seen before.
    pub fn learn(
        &mut self,
        algorithm: &mut dyn Algorithm,
        frames: &Frames,
        index: u64,
    ) -> (Seen, Result<(), Fault>) {
        let mut seen = Seen::default();
        let result = self.learn_as(algorithm, frames, index, &mut seen);
        (seen, result)
    }

    /// As [`Training::learn`], unseen.
    ///
    /// # Panics
    /// If the loss is not finite.
    pub fn learn_unseen(&mut self, algorithm: &mut dyn Algorithm, frames: &Frames, index: u64) {
        let result = self.learn_as(algorithm, frames, index, &mut Unobserved);
        result.expect("the loss is finite");
    }

    fn learn_as(
        &mut self,
        algorithm: &mut dyn Algorithm,
        frames: &Frames,
        index: u64,
        observer: &mut dyn Observer,
    ) -> Result<(), Fault> {
        let batch = frames.batch(index);
        let learner = &mut self.learner;
        let mut result = Ok(());
        self.kernels.run(&mut |kernels| {
            result = algorithm.learn(learner, kernels, &batch, observer);
        });
        result.map_err(LearnError::alone)
    }

    /// All parameters as they are.
    pub fn weights(&mut self) -> Tensors {
        tensors(&self.learner.network, &mut *self.kernels, Arena::Weights)
    }

    /// The bits of everything that training changes: weights, velocities, running statistics.
    pub fn state(&mut self) -> Vec<u32> {
        let layout = &self.learner.network.plan().layout;
        let (parameters, statistics) = (layout.len(), layout.statistics_len());
        let arenas = [
            (Arena::Weights, parameters),
            (Arena::State, parameters),
            (Arena::Statistics, statistics),
        ];
        let mut bits = Vec::new();
        for (arena, len) in arenas {
            let mut values = vec![0.0; len];
            self.kernels.read_arena(arena, 0, &mut values);
            bits.extend(values.into_iter().map(f32::to_bits));
        }
        bits
    }
}

/// The part of an arena of every parameter.
fn tensors(network: &Network, kernels: &mut dyn Kernels, arena: Arena) -> Tensors {
    let parameters = network.plan().layout.parameters();
    let get = |name: &String| network.get(kernels, arena, name).expect("it is listed");
    let names = parameters.iter().map(|(p, _)| p.name.clone());
    let names: Vec<String> = names.collect();
    let values: Vec<Vec<f32>> = names.iter().map(get).collect();
    names.into_iter().zip(values).collect()
}

/// A batch of frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Frames {
    /// `[T, N, H, W, C]`.
    pub frames: Vec<f32>,
    /// Classes.
    pub labels: Vec<u32>,
    /// Time steps T.
    pub num_time_steps: usize,
}

impl Frames {
    /// As an algorithm takes it, with keyed masks.
    pub fn batch(&self, index: u64) -> Batch<'_> {
        Batch {
            index,
            input: Input::Frames(&self.frames),
            labels: &self.labels,
            num_time_steps: self.num_time_steps,
            masks: Masks::Keyed,
        }
    }
}

/// What was seen of learning from a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Each time step.
    pub steps: Vec<SeenStep>,
    /// Each update.
    pub updates: Vec<SeenUpdate>,
}

/// After forward and loss of a time step.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenStep {
    /// The loss.
    pub loss: f64,
    /// The logits.
    pub logits: Vec<f32>,
    /// Spikes by layer of neurons.
    pub spikes: BTreeMap<String, u64>,
    /// Membrane potentials by layer of neurons, `[N, H, W, C]`.
    pub u: Tensors,
    /// Factors by dropout layer, `[N, H, W, C]`.
    pub masks: Tensors,
}

/// After an update.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenUpdate {
    /// What it used.
    pub gradients: Tensors,
    /// What it made.
    pub weights: Tensors,
}

impl Seen {
    /// How near a membrane potential came to a threshold, up to time step t.
    pub fn margin(&self, v_th: f32, t: usize) -> f32 {
        let steps = self.steps.iter().take(t + 1);
        let potentials = steps.flat_map(|step| step.u.values()).flatten();
        potentials.fold(f32::INFINITY, |nearest, u| nearest.min((u - v_th).abs()))
    }
}

impl Observer for Seen {
    fn after_forward(&mut self, network: &Network, kernels: &mut dyn Kernels, t: usize) {
        let report = kernels.take_report();
        let plan = network.plan();
        let mut logits = vec![0.0; plan.settings.samples * network.num_classes()];
        network.read_logits(kernels, t, &mut logits);
        let (mut u, mut masks) = (Tensors::new(), Tensors::new());
        for (stage, name) in plan.stages.iter().zip(&plan.stage_names) {
            let mut read = |buffer, len| {
                let mut values = vec![0.0; len];
                kernels.read(buffer, t, &mut values);
                values
            };
            match stage {
                Stage::NormLif { layer, .. } => {
                    let Some(lif) = layer.lif else { continue };
                    let values = read(lif.u, layer.samples * layer.shape.elements());
                    let named = plan
                        .neurons
                        .iter()
                        .find(|(_, counter)| *counter == lif.index);
                    let (layer, _) = named.expect("every counter has a layer");
                    u.insert(layer.clone(), values);
                }
                Stage::Dropout { dropout, .. } => {
                    let len = dropout.samples * dropout.shape.elements();
                    masks.insert(name.clone(), read(dropout.mask, len));
                }
                Stage::Conv { .. }
                | Stage::Pool { .. }
                | Stage::Flatten { .. }
                | Stage::Residual { .. } => {}
            }
        }
        let spikes = plan.neurons.iter();
        let spikes = spikes.map(|(name, counter)| (name.clone(), report.spikes[*counter]));
        self.steps.push(SeenStep {
            loss: report.loss[t],
            logits,
            spikes: spikes.collect(),
            u,
            masks,
        });
    }

    fn after_update(&mut self, network: &Network, kernels: &mut dyn Kernels) {
        self.updates.push(SeenUpdate {
            gradients: tensors(network, kernels, Arena::Gradients),
            weights: tensors(network, kernels, Arena::Weights),
        });
    }
}
