//! Builds the stages of a plan and gives every value exactly the slots that somebody reads.

use super::super::arena::Layout;
use super::super::fuse::{Chain, Fused};
use super::{ChainValues, PlannedBuffer, Role, Settings, Stage};
use crate::graph::{Graph, Op, ValueId};
use crate::kernel::{
    Buffer, BufferSpec, Conv, Dropout, Lif, Norm, NormLif, Norms, Pool, PoolKind, Residual,
};
use crate::shape::Shape;

pub(super) struct Builder<'a> {
    pub(super) graph: &'a Graph,
    pub(super) settings: &'a Settings,
    pub(super) layout: &'a Layout,
    pub(super) root: &'a [ValueId],
    pub(super) buffers: Vec<PlannedBuffer>,
    pub(super) values: Vec<Option<Buffer>>,
    pub(super) num_convs: usize,
    pub(super) lif_counter: Vec<Option<usize>>,
    pub(super) num_lifs: usize,
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
    pub(super) fn allocate_values(&mut self, stages: &[Fused]) {
        let k = self.settings.window;
        let num_values = self.graph.values().len();
        let (mut operand, mut plain) = (vec![0; num_values], vec![0; num_values]);
        let (mut stored, mut of_conv) = (vec![false; num_values], vec![false; num_values]);
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
                        Op::Conv { .. } | Op::Linear { .. } => {
                            operand[inputs[0].0] = k;
                            of_conv[output.0] = true;
                        }
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
                of_conv: of_conv[index],
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

    pub(super) fn stage(&mut self, fused: &Fused) -> Stage {
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
            first_sample: self.settings.first_sample,
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
        let across = self.settings.norms;
        Norm {
            gamma,
            beta,
            running_mean,
            running_var,
            eps: self.settings.bn_eps,
            momentum: self.settings.bn_momentum,
            moments: self.kept(1, shape, format!("{name}: mean, 1/std")),
            across,
            sums: (across == Norms::Synchronised)
                .then(|| self.kept(1, shape, format!("{name}: sums"))),
        }
    }

    /// Every layer of neurons of the graph, twins included, with its counter.
    pub(super) fn neurons(&self) -> Vec<(String, usize)> {
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
