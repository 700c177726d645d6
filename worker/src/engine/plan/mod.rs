//! From a graph to what runs: stages with their buffers, for one batch size and one window.
//!
//! Nothing is allocated here: a [`Plan`] is data, so `synfire inspect` can print what a network
//! would need. Handles are indices into [`Plan::buffers`].
//!
//! # Layout
//!
//! - this file: [`Settings`], [`Stage`], [`Plan`].
//! - `build`: stages, and a buffer for every value that somebody reads.
//! - `errors`: buffers for errors, shared by values that never live together.

mod build;
mod errors;

use super::arena::Layout;
use super::fuse::{self, Chain, Fused};
use crate::graph::{Graph, ValueId};
use crate::kernel::{Buffer, BufferSpec, Conv, Dropout, Neuron, NormLif, Norms, Pool, Residual};
use crate::shape::Shape;
use build::Builder;
use errors::plan_errors;

/// What a network needs to know beside its graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Samples in a batch on this rank.
    pub samples: usize,
    /// The window k: the newest time steps that the error reaches.
    pub window: usize,
    /// The neurons' equations.
    pub neuron: Neuron,
    /// Added to the variance in batch norm.
    pub bn_eps: f32,
    /// How far running statistics move.
    pub bn_momentum: f32,
    /// Whether dropout divides what it keeps by 1 - p (our default; ARCHITECTURE, "dropout").
    pub dropout_rescale: bool,
    /// The seed of dropout's masks.
    pub seed: u64,
    /// Over whose samples batch norms take their statistics.
    pub norms: Norms,
    /// The place of this rank's first sample in the batch of all ranks; 0 where there is one rank.
    pub first_sample: usize,
}

/// Why a buffer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The backward reads it: one slot per time step of the window.
    Kept,
    /// Only the time step itself reads it.
    Transient,
    /// Errors on their way down: one slot per time step of the window, reused by several values.
    Error,
}

/// A buffer with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedBuffer {
    /// What it holds.
    pub spec: BufferSpec,
    /// Why it is there.
    pub role: Role,
    /// Whose it is: a value's name, or the node and what of it.
    pub name: String,
}

/// One thing to run per time step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// A convolution or linear layer.
    Conv {
        /// Its description.
        conv: Conv,
        /// The value that it reads.
        x: ValueId,
        /// The value that it makes.
        y: ValueId,
    },
    /// Norm, sum, neurons, sum.
    NormLif {
        /// Its description.
        layer: NormLif,
        /// Which values its buffers are.
        chain: ChainValues,
    },
    /// A pool.
    Pool {
        /// Its description.
        pool: Pool,
        /// The value that it reads.
        x: ValueId,
        /// The value that it makes.
        y: ValueId,
    },
    /// A picture as a vector.
    Flatten {
        /// The shape of the picture.
        input: Shape,
        /// The value that it reads.
        x: ValueId,
        /// The value that it makes.
        y: ValueId,
    },
    /// Dropout.
    Dropout {
        /// Its description.
        dropout: Dropout,
        /// The value that it reads.
        x: ValueId,
        /// The value that it makes.
        y: ValueId,
    },
    /// AND and IAND; ADD where it could not be fused is a `NormLif`.
    Residual {
        /// Its description.
        residual: Residual,
        /// The branch.
        a: ValueId,
        /// The shortcut.
        b: ValueId,
        /// The value that it makes.
        y: ValueId,
    },
}

/// The values around a fused stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainValues {
    /// The input.
    pub z: ValueId,
    /// The shortcut before the neurons.
    pub before: Option<ValueId>,
    /// The value before the neurons, where others read it.
    pub y: Option<ValueId>,
    /// The shortcut after the neurons.
    pub after: Option<ValueId>,
    /// The spikes, or their sum with `after`.
    pub out: Option<ValueId>,
}

impl Stage {
    /// The values that it makes.
    pub fn outputs(&self) -> impl Iterator<Item = ValueId> {
        let pair = match self {
            Self::Conv { y, .. }
            | Self::Pool { y, .. }
            | Self::Flatten { y, .. }
            | Self::Dropout { y, .. }
            | Self::Residual { y, .. } => [Some(*y), None],
            Self::NormLif { chain, .. } => [chain.y, chain.out],
        };
        pair.into_iter().flatten()
    }

    /// The values that it reads.
    pub fn inputs(&self) -> impl Iterator<Item = ValueId> {
        let triple = match self {
            Self::Conv { x, .. }
            | Self::Pool { x, .. }
            | Self::Flatten { x, .. }
            | Self::Dropout { x, .. } => [Some(*x), None, None],
            Self::Residual { a, b, .. } => [Some(*a), Some(*b), None],
            Self::NormLif { chain, .. } => [Some(chain.z), chain.before, chain.after],
        };
        triple.into_iter().flatten()
    }
}

/// A graph made ready to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was planned for.
    pub settings: Settings,
    /// What runs, in order.
    pub stages: Vec<Stage>,
    /// The names of the stages: the nodes joined by `+`.
    pub stage_names: Vec<String>,
    /// The nodes of each stage, in the order of the graph.
    pub stage_nodes: Vec<Vec<usize>>,
    /// The buffers to allocate; handles count from 0 in this order.
    pub buffers: Vec<PlannedBuffer>,
    /// Where the arenas put parameters.
    pub layout: Layout,
    /// The buffer of each value, by [`ValueId`]; `None` where it is fused away.
    pub values: Vec<Option<Buffer>>,
    /// The buffer of each value's errors; `None` where no error is needed.
    pub errors: Vec<Option<Buffer>>,
    /// The value that holds each value's numbers (twins, flattened vectors).
    pub root: Vec<ValueId>,
    /// The shape of each value.
    pub shapes: Vec<Shape>,
    /// The logits.
    pub output: ValueId,
    /// Layers of neurons in the order of the graph: the name and the number of its counter. Twins
    /// share a counter.
    pub neurons: Vec<(String, usize)>,
}

impl Plan {
    /// Plans a graph.
    pub fn new(graph: &Graph, settings: &Settings) -> Self {
        let rewritten = fuse::rewrite(graph);
        let backward_order: Vec<usize> = rewritten
            .stages
            .iter()
            .rev()
            .filter_map(|stage| match stage {
                Fused::Single { node, .. } => Some(*node),
                Fused::NormLif(chain) => chain.norm,
            })
            .collect();
        let layout = Layout::new(graph, &backward_order);
        let mut builder = Builder {
            graph,
            settings,
            layout: &layout,
            root: &rewritten.root,
            buffers: Vec::new(),
            values: vec![None; graph.values().len()],
            num_convs: 0,
            lif_counter: vec![None; graph.nodes().len()],
            num_lifs: 0,
        };
        builder.allocate_values(&rewritten.stages);
        let mut stages = Vec::new();
        let mut stage_names = Vec::new();
        let mut stage_nodes = Vec::new();
        for fused in &rewritten.stages {
            stages.push(builder.stage(fused));
            let nodes = match fused {
                Fused::Single { node, .. } => vec![*node],
                Fused::NormLif(c) => c.nodes(graph, &rewritten.root),
            };
            let names: Vec<&str> = nodes.iter().map(|&n| &*graph.nodes()[n].name).collect();
            stage_names.push(names.join(" + "));
            stage_nodes.push(nodes);
        }
        let neurons = builder.neurons();
        let (mut buffers, values) = (builder.buffers, builder.values);
        let output = rewritten.root[graph.output().0];
        let errors = plan_errors(graph, settings, &stages, output, &mut buffers);
        Self {
            settings: settings.clone(),
            stages,
            stage_names,
            stage_nodes,
            buffers,
            layout,
            values,
            errors,
            shapes: graph.values().iter().map(|v| v.shape).collect(),
            output,
            root: rewritten.root,
            neurons,
        }
    }

    /// The first time step that is like this one: its window is as full, and it has the same slots of all
    /// buffers.
    pub fn first_like(&self, t: usize) -> usize {
        let specs = self.buffers.iter().map(|planned| &planned.spec);
        let slots = specs.flat_map(|spec| [spec.operand_slots, spec.plain_slots]);
        let period = slots
            .filter(|&slots| slots > 0)
            .fold(1, least_common_multiple);
        // From there on the window is full, and there is a time step before.
        let full = self.settings.window.max(2) - 1;
        if t < full {
            t
        } else {
            full + (t - full) % period
        }
    }

    /// The buffer of a value that is not fused away.
    pub(super) fn buffer(&self, value: ValueId) -> Buffer {
        self.values[value.0].expect("the planner stores every value that a stage reads")
    }
}

impl Chain {
    /// The nodes that the chain stands for: norm, sum, neurons, sum.
    fn nodes(&self, graph: &Graph, root: &[ValueId]) -> Vec<usize> {
        let adds = |other: Option<ValueId>, result: Option<ValueId>| {
            let other = other?;
            graph.nodes().iter().position(|n| {
                n.inputs.len() == 2
                    && n.inputs.iter().any(|i| root[i.0] == other)
                    && result.is_none_or(|r| n.output == r)
            })
        };
        // Where y is not stored, the sum is what the neurons read.
        let summed = self
            .y
            .or_else(|| self.lif.map(|l| root[graph.nodes()[l].inputs[0].0]));
        let before = adds(self.before, summed);
        let after = adds(self.after, self.out);
        [self.norm, before, self.lif, after]
            .into_iter()
            .flatten()
            .collect()
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Op;
    use crate::shape::Join;

    fn settings(window: usize) -> Settings {
        Settings {
            samples: 2,
            window,
            neuron: Neuron::default(),
            bn_eps: 1e-5,
            bn_momentum: 0.1,
            dropout_rescale: true,
            seed: 1,
            norms: Norms::Own,
            first_sample: 0,
        }
    }

    fn network() -> Graph {
        let mut g = Graph::new(Shape::new(4, 4, 3));
        let conv = Op::Conv {
            outputs: 8,
            kernel: 3,
            stride: 1,
            padding: 1,
            bias: false,
        };
        let c = g.add("conv1", conv.clone(), &[ValueId(0)]).unwrap();
        let b = g.add("bn1", Op::BatchNorm, &[c]).unwrap();
        let s = g.add("sn1", Op::Lif, &[b]).unwrap();
        let c = g.add("conv2", conv, &[s]).unwrap();
        let b2 = g.add("bn2", Op::BatchNorm, &[c]).unwrap();
        let sum = Op::Residual(Join::Add);
        let x = g.add("add", sum, &[b2, b]).unwrap();
        let s = g.add("sn2", Op::Lif, &[x]).unwrap();
        let p = g
            .add("pool", Op::AdaptiveAvgPool { side: 1 }, &[s])
            .unwrap();
        let f = g.add("flat", Op::Flatten, &[p]).unwrap();
        let out = g.add("fc", Op::Linear { outputs: 5 }, &[f]).unwrap();
        g.finish(out).unwrap()
    }

    #[test]
    fn only_what_the_window_needs_is_kept() {
        let plan = Plan::new(&network(), &settings(2));
        let slots = |name: &str| {
            let buffer = plan.buffers.iter().find(|b| b.name == name);
            buffer.map(|b| (b.spec.operand_slots, b.spec.plain_slots))
        };
        assert_eq!(slots("sn1"), Some((2, 0)), "conv2 reads it over the window");
        assert_eq!(slots("conv1"), Some((0, 2)), "bn1 normalised it");
        assert_eq!(slots("bn1"), Some((0, 1)), "the sum reads it at once");
        assert_eq!(slots("sn1: u"), Some((0, 2)));
        assert_eq!(slots("add"), None, "fused away");
        assert_eq!(slots("fc"), Some((0, 1)));
    }

    #[test]
    fn time_steps_are_alike_where_slots_and_window_are() {
        for window in 1..5 {
            let plan = Plan::new(&network(), &settings(window));
            let slots = plan.buffers.iter().map(|b| b.spec);
            let slots = slots.flat_map(|spec| [spec.operand_slots, spec.plain_slots]);
            let slots: Vec<usize> = slots.filter(|&slots| slots > 0).collect();
            // What a time step sees: whether there is one before, its window, and its slots.
            let sees = |t: usize| {
                let slots: Vec<usize> = slots.iter().map(|slots| t % slots).collect();
                (t == 0, window.min(t + 1), slots)
            };
            for t in 0..20 {
                let first = (0..=t).find(|&s| sees(s) == sees(t));
                assert_eq!(Some(plan.first_like(t)), first, "window {window}, t = {t}");
            }
        }
    }

    #[test]
    fn values_that_live_together_never_share_an_error_buffer() {
        let g = network();
        let plan = Plan::new(&g, &settings(2));
        for (index, stage) in plan.stages.iter().enumerate() {
            let mut live: Vec<Buffer> = Vec::new();
            // Live while this stage runs: its own, and what later readers left for earlier stages.
            for (value, error) in plan.errors.iter().enumerate() {
                let id = ValueId(value);
                let made = plan
                    .stages
                    .iter()
                    .position(|s| s.outputs().any(|v| v == id));
                let read = plan
                    .stages
                    .iter()
                    .rposition(|s| s.inputs().any(|v| v == id));
                let (Some(made), Some(error)) = (made, error) else {
                    continue;
                };
                if made <= index && read.is_none_or(|r| r >= index) {
                    live.push(*error);
                }
            }
            let mut unique = live.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len(), live.len(), "at stage {stage:?}");
        }
    }

    #[test]
    fn the_arena_follows_the_backward() {
        let plan = Plan::new(&network(), &settings(2));
        let names: Vec<&str> = plan
            .layout
            .parameters()
            .iter()
            .map(|(p, _)| &*p.name)
            .collect();
        assert_eq!(
            &names[..4],
            ["fc.weight", "fc.bias", "bn2.weight", "bn2.bias"]
        );
        assert_eq!(names[names.len() - 1], "conv1.weight");
    }
}
