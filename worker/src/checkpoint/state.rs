//! What a checkpoint saves of a node: copied out, as bytes, and back in.

use super::CheckpointError;
use crate::engine::Network;
use crate::kernel::{Arena, Kernels, Span};
use crate::node::Node;
use crate::trace::file::{self, TraceFile, TraceTensor};
use crate::weights::{self, Readout};
use synfire_shared::checkpoint::{Hits, ManifestName, Position};

/// The kind of the part with weights and running statistics: a weights file of its own.
pub(super) const WEIGHTS: &str = "weights.safetensors";
/// The kind of the part with the optimiser's state.
pub(super) const STATE: &str = "state.safetensors";
/// The kind of the part in which the training loop keeps what it has counted.
pub(super) const PROGRESS: &str = "progress.json";

/// A copy of everything that a run needs to go on.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) position: Position,
    pub(super) test: Option<Hits>,
    pub(super) weights: TraceFile,
    pub(super) state: TraceFile,
    pub(super) progress: Vec<u8>,
}

impl Snapshot {
    /// Copies a node as it is between two batches. `progress` is the training loop's own; the test
    /// set is given where an epoch has just ended with it.
    pub fn of(node: &mut Node, position: Position, test: Option<Hits>, progress: Vec<u8>) -> Self {
        let Node {
            kernels, learner, ..
        } = node;
        let states = learner.optimiser.num_states();
        Self {
            position,
            test,
            weights: weights::collect(&learner.network, &mut **kernels),
            state: optimiser_state(&learner.network, &mut **kernels, states),
            progress,
        }
    }

    /// The bytes of each part by its kind.
    pub(super) fn parts(&self) -> Result<[(&'static str, Vec<u8>); 3], CheckpointError> {
        Ok([
            (WEIGHTS, file::to_bytes(&self.weights, WEIGHTS)?),
            (STATE, file::to_bytes(&self.state, STATE)?),
            (PROGRESS, self.progress.clone()),
        ])
    }
}

/// The arenas of an optimiser, with the word before a parameter's name that keeps them apart.
fn arenas(states: usize) -> impl Iterator<Item = (&'static str, Arena)> {
    let all = [
        ("state", Arena::State),
        ("second_state", Arena::SecondState),
    ];
    all.into_iter().take(states)
}

fn optimiser_state(network: &Network, kernels: &mut dyn Kernels, states: usize) -> TraceFile {
    let mut saved = TraceFile::default();
    for (word, arena) in arenas(states) {
        for (parameter, span) in network.plan().layout.parameters() {
            let mut values = vec![0.0; span.len];
            kernels.read_arena(arena, span.offset, &mut values);
            let tensor = TraceTensor::f32(&parameter.shape, values);
            saved
                .tensors
                .insert(format!("{word}.{}", parameter.name), tensor);
        }
    }
    let format = ("format".into(), "synfire optimiser state 1".into());
    saved.metadata.extend([format]);
    saved
}

/// A checkpoint that was read, its digests checked.
#[derive(Debug)]
pub struct Loaded {
    /// What messages call it.
    pub name: String,
    /// Which it is.
    pub manifest: ManifestName,
    /// Where training goes on.
    pub position: Position,
    pub(super) weights: TraceFile,
    pub(super) state: TraceFile,
    /// What the training loop had counted.
    pub progress: Vec<u8>,
}

impl Loaded {
    /// Makes a node what it was when the checkpoint was saved.
    ///
    /// # Errors
    /// If a tensor is not the network's; nothing is changed then.
    pub fn restore(&self, node: &mut Node) -> Result<(), CheckpointError> {
        let Node {
            kernels, learner, ..
        } = node;
        let refused = |source| CheckpointError::Tensors {
            name: self.name.clone(),
            source: Box::new(source),
        };
        let mut writes: Vec<(Arena, Span, &[f32])> = Vec::new();
        for (word, arena) in arenas(learner.optimiser.num_states()) {
            for (parameter, span) in learner.network.plan().layout.parameters() {
                let name = format!("{word}.{}", parameter.name);
                let values = weights::find(&self.state, &name, span.len).map_err(refused)?;
                writes.push((arena, *span, values));
            }
        }
        let (network, kernels) = (&learner.network, &mut **kernels);
        weights::apply(&self.weights, network, kernels, Readout::Take).map_err(refused)?;
        for (arena, span, values) in writes {
            kernels.write_arena(arena, span.offset, values);
        }
        learner.optimiser.set_updates(self.position.update);
        Ok(())
    }

    /// The weights and running statistics alone.
    pub fn weights(&self) -> &TraceFile {
        &self.weights
    }
}
