//! From a graph to what runs: stages with their buffers, for one batch size and one window.
//!
//! Nothing is allocated here: a [`Plan`] is data, so `synfire inspect` can print what a network
//! would need. Handles are indices into [`Plan::buffers`].

use super::arena::Layout;
use super::fuse::{self, Chain, Fused};
use crate::graph::{Graph, Op, ValueId};
use crate::kernel::{
    Buffer, BufferSpec, Conv, Dropout, Lif, Neuron, Norm, NormLif, Pool, PoolKind, Residual,
};
use crate::shape::Shape;

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

struct Builder<'a> {
    graph: &'a Graph,
    settings: &'a Settings,
    layout: &'a Layout,
    root: &'a [ValueId],
    buffers: Vec<PlannedBuffer>,
    values: Vec<Option<Buffer>>,
    num_convs: usize,
    lif_counter: Vec<Option<usize>>,
    num_lifs: usize,
}

impl Builder<'_> {
    fn push(&mut self, spec: BufferSpec, role: Role, name: String) -> Buffer {
        let handle = Buffer(u32::try_from(self.buffers.len()).expect("fewer than 2^32 buffers"));
        self.buffers.push(PlannedBuffer { spec, role, name });
        handle
    }

    fn kept(&mut self, samples: usize, shape: Shape, name: String) -> Buffer {
        let spec = BufferSpec::plain(samples, shape, self.settings.window);
        self.push(spec, Role::Kept, name)
    }

    /// Gives every value that some stage makes or reads a buffer with exactly the slots needed.
    fn allocate_values(&mut self, stages: &[Fused]) {
        let k = self.settings.window;
        let num_values = self.graph.values().len();
        let (mut operand, mut plain) = (vec![0; num_values], vec![0; num_values]);
        let mut stored = vec![false; num_values];
        stored[0] = true;
        let mut reads = |v: ValueId, slots: usize| plain[v.0] = slots.max(plain[v.0]);
        for stage in stages {
            match stage {
                Fused::Single {
                    node,
                    inputs,
                    output,
                } => {
                    stored[output.0] = true;
                    match self.graph.nodes()[*node].op {
                        // Algorithm 1, line 18 needs the inputs of the whole window.
                        Op::Conv { .. } | Op::Linear { .. } => operand[inputs[0].0] = k,
                        // da = g b, db = g a or g (1 - a), of the step.
                        Op::Residual(_) => inputs.iter().for_each(|&v| reads(v, k)),
                        Op::BatchNorm
                        | Op::Lif
                        | Op::MaxPool { .. }
                        | Op::AvgPool { .. }
                        | Op::AdaptiveAvgPool { .. }
                        | Op::Flatten
                        | Op::Dropout { .. } => reads(inputs[0], 1),
                    }
                }
                Fused::NormLif(chain) => {
                    // Norm's backward needs its input of the whole window; neurons keep u.
                    reads(chain.z, if chain.norm.is_some() { k } else { 1 });
                    chain.before.iter().for_each(|&v| reads(v, 1));
                    chain.after.iter().for_each(|&v| reads(v, 1));
                    for value in chain.y.iter().chain(&chain.out) {
                        stored[value.0] = true;
                    }
                }
            }
        }
        let output = self.root[self.graph.output().0];
        reads(output, 1);
        for (index, value) in self.graph.values().iter().enumerate() {
            if !stored[index] || self.root[index].0 != index {
                continue;
            }
            let spec = BufferSpec {
                samples: self.settings.samples,
                shape: value.shape,
                content: value.content,
                operand_slots: operand[index],
                plain_slots: plain[index],
            };
            let kept = operand[index] > 0 || plain[index] == k && k > 1 || self.normed(index);
            let role = if kept { Role::Kept } else { Role::Transient };
            self.values[index] = Some(self.push(spec, role, value.name.clone()));
        }
    }

    /// Whether a batch norm reads the value.
    fn normed(&self, value: usize) -> bool {
        let readers = self.graph.readers(ValueId(value));
        let mut ops = readers.map(|r| &self.graph.nodes()[r].op);
        ops.any(|op| *op == Op::BatchNorm)
    }

    fn stage(&mut self, fused: &Fused) -> Stage {
        match fused {
            Fused::NormLif(chain) => self.norm_lif(chain),
            Fused::Single {
                node,
                inputs,
                output,
            } => self.single(*node, inputs, *output),
        }
    }

    fn single(&mut self, index: usize, inputs: &[ValueId], y: ValueId) -> Stage {
        let node = &self.graph.nodes()[index];
        let x = inputs[0];
        let (input, output) = (self.graph.value(x).shape, self.graph.value(y).shape);
        let samples = self.settings.samples;
        let mut conv = |kernel, stride, padding| {
            let conv = self.conv(&node.name, (input, output), (kernel, stride, padding));
            Stage::Conv { conv, x, y }
        };
        let pool = |kind| Stage::Pool {
            pool: Pool {
                samples,
                input,
                output,
                kind,
            },
            x,
            y,
        };
        match node.op {
            Op::Conv {
                kernel,
                stride,
                padding,
                ..
            } => conv(kernel, stride, padding),
            Op::Linear { .. } => conv(1, 1, 0),
            Op::MaxPool {
                kernel,
                stride,
                padding,
            } => {
                let argmax = self.kept(samples, output, format!("{}: argmax", node.name));
                pool(PoolKind::Max {
                    kernel,
                    stride,
                    padding,
                    argmax,
                })
            }
            Op::AvgPool { kernel } => pool(PoolKind::Average { kernel }),
            Op::AdaptiveAvgPool { .. } => pool(PoolKind::Adaptive),
            Op::Flatten => Stage::Flatten { input, x, y },
            Op::Dropout { p } => {
                let dropout = self.dropout(&node.name, input, p);
                Stage::Dropout { dropout, x, y }
            }
            Op::Residual(join) => {
                let (a, b) = (x, inputs[1]);
                let buffer = |v: ValueId| self.values[v.0].expect("stored above");
                let residual = Residual {
                    samples,
                    shape: output,
                    join,
                    a: buffer(a),
                    b: buffer(b),
                    y: buffer(y),
                };
                Stage::Residual { residual, a, b, y }
            }
            Op::BatchNorm | Op::Lif => unreachable!("norms and neurons are chains"),
        }
    }

    fn conv(
        &mut self,
        node: &str,
        (input, output): (Shape, Shape),
        (kernel, stride, padding): (usize, usize, usize),
    ) -> Conv {
        let parameter = |part: &str| self.layout.parameter(&format!("{node}.{part}"));
        self.num_convs += 1;
        Conv {
            index: self.num_convs - 1,
            samples: self.settings.samples,
            input,
            output,
            kernel,
            stride,
            padding,
            weight: parameter("weight").expect("the layout has every weight"),
            bias: parameter("bias"),
        }
    }

    fn dropout(&mut self, node: &str, shape: Shape, p: f32) -> Dropout {
        let samples = self.settings.samples;
        let scale = if self.settings.dropout_rescale {
            1.0 / (1.0 - p)
        } else {
            1.0
        };
        Dropout {
            samples,
            shape,
            mask: self.kept(samples, shape, format!("{node}: mask")),
            p,
            scale,
        }
    }

    fn norm_lif(&mut self, chain: &Chain) -> Stage {
        let shape = self.graph.value(chain.z).shape;
        let norm = chain.norm.map(|index| self.norm(index, shape));
        let lif = chain.lif.map(|index| {
            self.lif_counter[index] = Some(self.num_lifs);
            self.num_lifs += 1;
            let name = format!("{}: u", self.graph.nodes()[index].name);
            Lif {
                neuron: self.settings.neuron,
                index: self.num_lifs - 1,
                u: self.kept(self.settings.samples, shape, name),
            }
        });
        let buffer = |v: Option<ValueId>| v.and_then(|v| self.values[v.0]);
        let layer = NormLif {
            samples: self.settings.samples,
            shape,
            norm,
            lif,
            z: buffer(Some(chain.z)).expect("stored above"),
            before: buffer(chain.before),
            y: buffer(chain.y),
            after: buffer(chain.after),
            out: buffer(chain.out),
        };
        let chain = ChainValues {
            z: chain.z,
            before: chain.before,
            y: chain.y,
            after: chain.after,
            out: chain.out,
        };
        Stage::NormLif { layer, chain }
    }

    fn norm(&mut self, index: usize, shape: Shape) -> Norm {
        let name = &self.graph.nodes()[index].name;
        let parameter = |part: &str| {
            let span = self.layout.parameter(&format!("{name}.{part}"));
            span.expect("the layout has every norm")
        };
        let statistic = |part: &str| {
            let span = self.layout.statistic(&format!("{name}.{part}"));
            span.expect("the layout has every norm")
        };
        let (gamma, beta) = (parameter("weight"), parameter("bias"));
        let (running_mean, running_var) = (statistic("running_mean"), statistic("running_var"));
        let shape = Shape::new(1, 2, shape.channels);
        Norm {
            gamma,
            beta,
            running_mean,
            running_var,
            eps: self.settings.bn_eps,
            momentum: self.settings.bn_momentum,
            moments: self.kept(1, shape, format!("{name}: mean, 1/std")),
        }
    }

    /// Every layer of neurons of the graph, twins included, with its counter.
    fn neurons(&self) -> Vec<(String, usize)> {
        let nodes = self.graph.nodes();
        let lifs = nodes.iter().filter(|n| n.op == Op::Lif);
        lifs.map(|n| {
            let root = self.root[n.output.0];
            let holder = nodes.iter().position(|m| m.output == root);
            let counter = holder.and_then(|h| self.lif_counter[h]);
            (
                n.name.clone(),
                counter.expect("every root neuron is in a chain"),
            )
        })
        .collect()
    }
}

/// Gives each value whose error is needed a buffer; values that never live together share one.
fn plan_errors(
    graph: &Graph,
    settings: &Settings,
    stages: &[Stage],
    output: ValueId,
    buffers: &mut Vec<PlannedBuffer>,
) -> Vec<Option<Buffer>> {
    let num_values = graph.values().len();
    let mut needed = vec![false; num_values];
    for stage in stages {
        let trains = match stage {
            Stage::Conv { .. } => true,
            Stage::NormLif { layer, .. } => layer.norm.is_some(),
            Stage::Pool { .. }
            | Stage::Flatten { .. }
            | Stage::Dropout { .. }
            | Stage::Residual { .. } => false,
        };
        if trains || stage.inputs().any(|v| needed[v.0]) {
            stage.outputs().for_each(|v| needed[v.0] = true);
        }
    }
    let mut errors: Vec<Option<Buffer>> = vec![None; num_values];
    let mut free: Vec<Buffer> = Vec::new();
    let mut take = |value: ValueId, free: &mut Vec<Buffer>| {
        let wanted = BufferSpec::plain(settings.samples, graph.value(value).shape, settings.window);
        let size = |b: &Buffer| buffers[b.0 as usize].spec.elements();
        let fits = free
            .iter()
            .enumerate()
            .filter(|(_, b)| size(b) >= wanted.elements());
        if let Some((position, _)) = fits.min_by_key(|(_, b)| size(b)) {
            return free.swap_remove(position);
        }
        let handle = Buffer(u32::try_from(buffers.len()).expect("fewer than 2^32 buffers"));
        buffers.push(PlannedBuffer {
            spec: wanted,
            role: Role::Error,
            name: format!("errors of {}", graph.value(value).name),
        });
        handle
    };
    for stage in stages.iter().rev() {
        for value in stage.outputs().chain(stage.inputs()) {
            // The logits' error comes from the loss; other values' from their last reader.
            if needed[value.0] && errors[value.0].is_none() {
                errors[value.0] = Some(take(value, &mut free));
            }
        }
        for value in stage.outputs() {
            // What is done may serve a value further down; the logits' buffer belongs to the loss.
            if let Some(buffer) = errors[value.0].filter(|_| value != output) {
                free.push(buffer);
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Reset;
    use crate::shape::Join;

    fn settings(window: usize) -> Settings {
        Settings {
            samples: 2,
            window,
            neuron: Neuron {
                tau_m: 2.0,
                v_th: 1.0,
                alpha: 1.0,
                reset: Reset::Hard,
                detach_reset: false,
            },
            bn_eps: 1e-5,
            bn_momentum: 0.1,
            dropout_rescale: true,
            seed: 1,
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
