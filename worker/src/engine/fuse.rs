//! Rewrites a graph's list of nodes into the list of stages that the engine runs.
//!
//! Twin neurons (same input, hence same spikes) become one; a flattened vector is the vector itself;
//! batch norm, sum with a shortcut, neurons, sum with a shortcut become one stage, which needs one
//! pass over memory instead of four.

use crate::graph::{Graph, Op, ValueId};
use crate::shape::Join;

/// One stage by the nodes that it stands for; values are already resolved through aliases.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fused {
    /// A node that stays as it is.
    Single {
        node: usize,
        inputs: Vec<ValueId>,
        output: ValueId,
    },
    /// Norm, sum, neurons, sum.
    NormLif(Chain),
}

/// The parts of a fused stage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    /// The norm's node.
    pub(super) norm: Option<usize>,
    /// The neurons' node.
    pub(super) lif: Option<usize>,
    pub(super) z: ValueId,
    pub(super) before: Option<ValueId>,
    /// The value before the neurons, and whether somebody else reads it.
    pub(super) y: Option<ValueId>,
    pub(super) after: Option<ValueId>,
    pub(super) out: Option<ValueId>,
}

/// The result of the rewriting.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) stages: Vec<Fused>,
    /// For every value of the graph, the value that holds its numbers.
    pub(super) root: Vec<ValueId>,
}

pub(super) fn rewrite(graph: &Graph) -> Rewritten {
    let root = aliases(graph);
    let mut pass = Pass {
        graph,
        available: vec![false; graph.values().len()],
        absorbed: vec![false; graph.nodes().len()],
        root,
        stages: Vec::new(),
    };
    pass.available[0] = true;
    for index in 0..graph.nodes().len() {
        pass.visit(index);
    }
    Rewritten {
        stages: pass.stages,
        root: pass.root,
    }
}

/// Values that are other values: twins, flattened vectors, dropout that drops nothing.
fn aliases(graph: &Graph) -> Vec<ValueId> {
    let mut root: Vec<ValueId> = (0..graph.values().len()).map(ValueId).collect();
    let mut neurons: Vec<(ValueId, ValueId)> = Vec::new();
    for node in graph.nodes() {
        let input = root[node.inputs[0].0];
        // A sum of a value and its alias needs both.
        let summed = |value: ValueId| {
            graph.readers(node.output).any(|reader| {
                let inputs = &graph.nodes()[reader].inputs;
                inputs.len() == 2 && inputs.iter().any(|i| root[i.0] == value)
            })
        };
        let alias = match &node.op {
            Op::Flatten if graph.value(input).shape.is_vector() => Some(input),
            Op::Dropout { p } if *p == 0.0 => Some(input),
            Op::Lif => {
                let twin = neurons.iter().find(|(z, _)| *z == input);
                twin.map(|&(_, spikes)| spikes)
            }
            Op::Conv { .. }
            | Op::Linear { .. }
            | Op::BatchNorm
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::AdaptiveAvgPool { .. }
            | Op::Flatten
            | Op::Dropout { .. }
            | Op::Residual(_) => None,
        };
        let alias = alias.filter(|&value| !summed(value));
        if node.op == Op::Lif && alias.is_none() {
            neurons.push((input, node.output));
        }
        if let Some(value) = alias {
            root[node.output.0] = value;
        }
    }
    root
}

struct Pass<'a> {
    graph: &'a Graph,
    root: Vec<ValueId>,
    available: Vec<bool>,
    absorbed: Vec<bool>,
    stages: Vec<Fused>,
}

impl Pass<'_> {
    fn root(&self, value: ValueId) -> ValueId {
        self.root[value.0]
    }

    /// Nodes that are not aliases and read this value or an alias of it.
    fn readers(&self, value: ValueId) -> Vec<usize> {
        let reads = |&i: &usize| {
            let node = &self.graph.nodes()[i];
            self.root(node.output) == node.output
                && node.inputs.iter().any(|&v| self.root(v) == value)
        };
        (0..self.graph.nodes().len()).filter(reads).collect()
    }

    fn is_output(&self, value: ValueId) -> bool {
        self.root(self.graph.output()) == value
    }

    fn visit(&mut self, index: usize) {
        let node = &self.graph.nodes()[index];
        if self.absorbed[index] || self.root(node.output) != node.output {
            return;
        }
        let z = self.root(node.inputs[0]);
        let empty = Chain {
            norm: None,
            lif: None,
            z,
            before: None,
            y: None,
            after: None,
            out: None,
        };
        match node.op {
            Op::BatchNorm => {
                let mut chain = Chain {
                    norm: Some(index),
                    ..empty
                };
                let mut y = node.output;
                if let Some((add, other)) = self.only_reader_adds(y, &[Some(z)]) {
                    chain.before = Some(other);
                    self.absorbed[add] = true;
                    y = self.graph.nodes()[add].output;
                }
                self.close(chain, Some(y));
            }
            Op::Residual(Join::Add) => {
                let chain = Chain {
                    before: Some(self.root(node.inputs[1])),
                    ..empty
                };
                self.close(chain, Some(node.output));
            }
            Op::Lif => self.fire(
                Chain {
                    lif: Some(index),
                    ..empty
                },
                node.output,
            ),
            Op::Conv { .. }
            | Op::Linear { .. }
            | Op::MaxPool { .. }
            | Op::AvgPool { .. }
            | Op::AdaptiveAvgPool { .. }
            | Op::Flatten
            | Op::Dropout { .. }
            | Op::Residual(Join::And | Join::Iand) => {
                self.available[node.output.0] = true;
                self.stages.push(Fused::Single {
                    node: index,
                    inputs: node.inputs.iter().map(|&v| self.root(v)).collect(),
                    output: node.output,
                });
            }
        }
    }

    /// The node that alone reads `value`, if it adds something that is there already; and that.
    ///
    /// What the chain holds already (`held`) is not taken a second time: a back end may assume that
    /// the parts of a stage are different values.
    fn only_reader_adds(
        &self,
        value: ValueId,
        held: &[Option<ValueId>],
    ) -> Option<(usize, ValueId)> {
        let &[reader] = self.readers(value).as_slice() else {
            return None;
        };
        let node = &self.graph.nodes()[reader];
        if node.op != Op::Residual(Join::Add) || self.is_output(value) || self.absorbed[reader] {
            return None;
        }
        let inputs = [self.root(node.inputs[0]), self.root(node.inputs[1])];
        let other = if inputs[0] == value {
            inputs[1]
        } else {
            inputs[0]
        };
        let free = other != value && !held.contains(&Some(other));
        (free && self.available[other.0]).then_some((reader, other))
    }

    /// Adds the neurons that read `y`, if there are any.
    fn close(&mut self, mut chain: Chain, y: Option<ValueId>) {
        let value = y.expect("a norm or a sum makes a value");
        let readers = self.readers(value);
        let is_lif = |&&i: &&usize| self.graph.nodes()[i].op == Op::Lif && !self.absorbed[i];
        let lif = readers.iter().find(is_lif).copied();
        let read_by_others = readers.len() > usize::from(lif.is_some());
        if read_by_others || lif.is_none() || self.is_output(value) {
            chain.y = Some(value);
            self.available[value.0] = true;
        }
        match lif {
            Some(lif) => {
                chain.lif = Some(lif);
                self.absorbed[lif] = true;
                self.fire(chain, self.graph.nodes()[lif].output);
            }
            None => self.stages.push(Fused::NormLif(chain)),
        }
    }

    /// Ends a chain with neurons whose spikes are `spikes`.
    fn fire(&mut self, mut chain: Chain, spikes: ValueId) {
        let mut out = spikes;
        let held = [Some(chain.z), chain.before, chain.y];
        if let Some((add, other)) = self.only_reader_adds(spikes, &held) {
            chain.after = Some(other);
            self.absorbed[add] = true;
            out = self.graph.nodes()[add].output;
        }
        chain.out = Some(out);
        self.available[out.0] = true;
        self.stages.push(Fused::NormLif(chain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    fn block() -> Graph {
        let mut g = Graph::new(Shape::new(8, 8, 4));
        let conv = Op::Conv {
            outputs: 4,
            kernel: 3,
            stride: 1,
            padding: 1,
            bias: false,
        };
        let add = Op::Residual(Join::Add);
        let c = g.add("stem.conv", conv.clone(), &[ValueId(0)]).unwrap();
        let b = g.add("stem.bn", Op::BatchNorm, &[c]).unwrap();
        let s1 = g.add("sn1", Op::Lif, &[b]).unwrap();
        let twin = g.add("twin", Op::Lif, &[b]).unwrap();
        let c1 = g.add("conv1", conv.clone(), &[s1]).unwrap();
        let b1 = g.add("bn1", Op::BatchNorm, &[c1]).unwrap();
        let c2 = g.add("conv2", conv, &[twin]).unwrap();
        let sum = g.add("sum", add.clone(), &[b1, c2]).unwrap();
        let sum = g.add("add", add, &[sum, b]).unwrap();
        let s2 = g.add("sn2", Op::Lif, &[sum]).unwrap();
        let p = Op::AdaptiveAvgPool { side: 1 };
        let p = g.add("pool", p, &[s2]).unwrap();
        let f = g.add("flat", Op::Flatten, &[p]).unwrap();
        let out = g.add("fc", Op::Linear { outputs: 3 }, &[f]).unwrap();
        g.finish(out).unwrap()
    }

    #[test]
    fn twins_are_computed_once_and_flattened_vectors_cost_nothing() {
        let g = block();
        let r = rewrite(&g);
        let id = |name| g.find(name).unwrap();
        assert_eq!(r.root[id("twin").0], id("sn1"));
        assert_eq!(r.root[id("flat").0], id("pool"));
    }

    #[test]
    fn norm_sum_and_neurons_become_one_stage() {
        let g = block();
        let id = |name| g.find(name);
        let chains: Vec<Chain> = rewrite(&g)
            .stages
            .into_iter()
            .filter_map(|s| match s {
                Fused::NormLif(c) => Some(c),
                Fused::Single { .. } => None,
            })
            .collect();
        // stem.bn feeds neurons and the later sum: y is kept for it.
        assert_eq!(chains[0].y, id("stem.bn"));
        assert_eq!(chains[0].out, id("sn1"));
        // bn1 cannot take the sum: conv2 comes later. The sum starts a chain of its own.
        assert_eq!((chains[1].y, chains[1].lif), (id("bn1"), None));
        let last = &chains[chains.len() - 1];
        assert_eq!((last.z, last.before), (id("sum").unwrap(), id("stem.bn")));
        assert_eq!((last.y, last.out), (None, id("sn2")));
    }
}
