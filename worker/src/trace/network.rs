//! The graph that a file describes: a list of `{kind, name, ins, out, attrs}` in execution order.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::TraceError;
use super::error::shown;
use super::metadata::{Source, Unique};
use crate::graph::{Graph, GraphError, MAX_NODES, Op, ValueId};
use crate::shape::{Join, Shape};

/// The longest name of a node or value, in bytes.
const MAX_NAME: usize = 200;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeText {
    kind: String,
    name: String,
    ins: Vec<String>,
    out: String,
    #[serde(default)]
    attrs: Unique<Value>,
}

/// The list of nodes; errors name the position in it.
struct Nodes(Vec<NodeText>);

impl<'de> Deserialize<'de> for Nodes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Nodes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of nodes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Nodes, A::Error> {
                let mut nodes: Vec<NodeText> = Vec::new();
                loop {
                    let last = nodes.last().map(|n| format!(" (after {})", shown(&n.name)));
                    let place = format!("node {}{}", nodes.len(), last.unwrap_or_default());
                    let wrong = |e: A::Error| A::Error::custom(format!("{place}: {e}"));
                    let Some(node) = list.next_element().map_err(wrong)? else {
                        return Ok(Nodes(nodes));
                    };
                    if nodes.len() == MAX_NODES {
                        let many = format!("there are more nodes than the limit of {MAX_NODES}");
                        return Err(A::Error::custom(many));
                    }
                    nodes.push(node);
                }
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// Builds the graph; filters and output features come from the shapes of `param/<node>.weight`.
pub(super) fn graph(source: Source<'_>, input: Shape) -> Result<Graph, TraceError> {
    let output = source.text("output")?;
    let Nodes(nodes) = source.required("graph")?;
    let refused = |reason| TraceError::Graph {
        file: source.name(),
        reason,
    };
    let mut graph = Graph::new(input);
    let mut values = HashMap::from([("x", graph.input())]);
    for node in &nodes {
        let names = [&node.name, &node.out];
        if let Some(name) = names.iter().find(|n| n.is_empty() || n.len() > MAX_NAME) {
            let reason = format!("names have 1 to {MAX_NAME} bytes, not {}", name.len());
            return Err(wrong(source, node, reason));
        }
        let inputs = inputs(node, &values).map_err(refused)?;
        let op = operation(source, node)?;
        let added = graph.add_as(&node.name, op, &inputs, &node.out);
        values.insert(&node.out, added.map_err(refused)?);
    }
    let Some(&output) = values.get(output) else {
        let reason = format!("no node makes the value {}", shown(output));
        return Err(source.wrong_key("output", reason));
    };
    if output == graph.input() {
        return Err(source.wrong_key("output", "the logits cannot be the network's input"));
    }
    graph.finish(output).map_err(refused)
}

fn inputs(node: &NodeText, values: &HashMap<&str, ValueId>) -> Result<Vec<ValueId>, GraphError> {
    // More than any operation reads, few enough for a message.
    let named = node.ins.iter().take(MAX_NAME);
    named
        .map(|name| {
            let found = values.get(name.as_str()).copied();
            found.ok_or_else(|| GraphError::UnknownValue {
                node: node.name.clone(),
                value: name.chars().take(MAX_NAME).collect(),
            })
        })
        .collect()
}

fn operation(source: Source<'_>, node: &NodeText) -> Result<Op, TraceError> {
    let mut attributes = Attributes {
        source,
        node,
        asked: Vec::new(),
    };
    let op = match node.kind.as_str() {
        "conv" => {
            let shape = weight(source, node, 4)?;
            if shape[2] != shape[3] {
                let reason = format!("its filters are {} x {}, not square", shape[2], shape[3]);
                return Err(wrong(source, node, reason));
            }
            Op::Conv {
                outputs: shape[0],
                kernel: shape[2],
                stride: attributes.number("s")?,
                padding: attributes.number("p")?,
                bias: attributes.flag("bias")?.unwrap_or(false),
            }
        }
        "linear" => {
            if attributes.flag("bias")? == Some(false) {
                return Err(wrong(source, node, "a linear layer has a bias".into()));
            }
            let outputs = weight(source, node, 2)?[0];
            Op::Linear { outputs }
        }
        "bn" => Op::BatchNorm,
        "lif" => Op::Lif,
        "maxpool" => Op::MaxPool {
            kernel: attributes.number("k")?,
            stride: attributes.number("s")?,
            padding: attributes.number("p")?,
        },
        "avgpool" => Op::AvgPool {
            kernel: attributes.number("k")?,
        },
        "adaptavg" => Op::AdaptiveAvgPool {
            side: attributes.number("o")?,
        },
        "flatten" => Op::Flatten,
        "dropout" => Op::Dropout {
            p: attributes.rate("p")?,
        },
        "add" => Op::Residual(Join::Add),
        "and" => Op::Residual(Join::And),
        "iand" => Op::Residual(Join::Iand),
        other => {
            let reason = format!("the operation {} is unknown", shown(other));
            return Err(wrong(source, node, reason));
        }
    };
    attributes.no_others()?;
    Ok(op)
}

/// The shape of a node's weight.
fn weight<'a>(source: Source<'a>, node: &NodeText, rank: usize) -> Result<&'a [usize], TraceError> {
    let name = format!("param/{}.weight", node.name);
    let shape = &source.tensor(&name)?.shape;
    if shape.len() == rank {
        return Ok(shape);
    }
    let axes = if rank == 4 {
        "[O, I, k, k]"
    } else {
        "[out, in]"
    };
    Err(source.wrong_shape(&name, axes))
}

fn wrong(source: Source<'_>, node: &NodeText, reason: String) -> TraceError {
    TraceError::Node {
        file: source.name(),
        node: shown(&node.name),
        reason,
    }
}

/// The attributes of a node; each that it has must be asked for.
struct Attributes<'a> {
    source: Source<'a>,
    node: &'a NodeText,
    asked: Vec<&'static str>,
}

impl<'a> Attributes<'a> {
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.asked.push(key);
        self.node.attrs.0.get(key)
    }

    fn number(&mut self, key: &'static str) -> Result<usize, TraceError> {
        let number = self.get(key).and_then(Value::as_u64);
        let number = number.and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.needs(key, "a whole number"))
    }

    fn rate(&mut self, key: &'static str) -> Result<f32, TraceError> {
        let rate = self.get(key).and_then(Value::as_f64);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the engine has 32-bit floats"
        )]
        let rate = rate.map(|p| p as f32);
        rate.ok_or_else(|| self.needs(key, "a number"))
    }

    fn flag(&mut self, key: &'static str) -> Result<Option<bool>, TraceError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.needs(key, "true or false")),
        }
    }

    fn needs(&self, key: &str, what: &str) -> TraceError {
        let reason = format!("{} needs the attribute {key:?}, {what}", self.node.kind);
        wrong(self.source, self.node, reason)
    }

    fn no_others(&self) -> Result<(), TraceError> {
        let mut keys = self.node.attrs.0.keys();
        match keys.find(|key| !self.asked.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let kind = &self.node.kind;
                let reason = format!("the attribute {} of {kind} is unknown", shown(key));
                Err(wrong(self.source, self.node, reason))
            }
        }
    }
}
