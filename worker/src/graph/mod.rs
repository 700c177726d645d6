//! What a network is: nodes in topological order and the values between them.
//!
//! The same form as in the recorded traces. Nothing here computes; models build graphs, the engine
//! lowers them.
//!
//! # Layout
//!
//! - this file: [`Graph`], [`Node`], [`Op`], and the checks that every graph has passed.
//! - [`models`]: the networks by name.
//! - [`init`]: initial parameters.

pub mod init;
pub mod models;

use crate::shape::{Content, Join, Shape};

/// The largest number of elements that a value may have per sample, and a parameter in all.
///
/// Ten times what ImageNet networks need; graphs also come from files, which are not trusted.
pub const MAX_ELEMENTS: usize = 1 << 28;
/// The largest number of nodes.
pub const MAX_NODES: usize = 10_000;
/// The largest kernel, stride, padding or output side of a node.
pub const MAX_ATTRIBUTE: usize = 1 << 12;

/// A value of a graph, by its position in [`Graph::values`]. Value 0 is the network's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// An operation at one time step (ALGORITHMS, sections 1 and 2).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Cross-correlation with `outputs` square filters.
    Conv {
        /// Output channels.
        outputs: usize,
        /// Side of the filter.
        kernel: usize,
        /// Distance between output pixels.
        stride: usize,
        /// Zeros around the input.
        padding: usize,
        /// Whether a bias per output channel is added.
        bias: bool,
    },
    /// `y = x W^T + b`; its input is a vector.
    Linear {
        /// Output features.
        outputs: usize,
    },
    /// Batch norm over N, H, W of one time step.
    BatchNorm,
    /// Leaky integrate-and-fire neurons (Eqs. 1 to 3).
    Lif,
    /// Maximum over windows; padding counts as minus infinity.
    MaxPool {
        /// Side of the window.
        kernel: usize,
        /// Distance between windows.
        stride: usize,
        /// Padding around the input, less than the kernel.
        padding: usize,
    },
    /// Mean over windows of side and stride `kernel`; a remainder is ignored.
    AvgPool {
        /// Side of the window.
        kernel: usize,
    },
    /// Mean over `side` x `side` bins [floor(i n/o), ceil((i+1) n/o)).
    AdaptiveAvgPool {
        /// Rows and columns of the output.
        side: usize,
    },
    /// A picture as a vector, channel by channel as PyTorch orders it.
    Flatten,
    /// Dropout with a fresh mask per time step.
    Dropout {
        /// Share of the inputs that are dropped, 0 <= p < 1.
        p: f32,
    },
    /// A branch (first input) joined with its shortcut (second input).
    Residual(Join),
}

impl Op {
    /// The word for it in traces and tables.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Conv { .. } => "conv",
            Self::Linear { .. } => "linear",
            Self::BatchNorm => "bn",
            Self::Lif => "lif",
            Self::MaxPool { .. } => "maxpool",
            Self::AvgPool { .. } => "avgpool",
            Self::AdaptiveAvgPool { .. } => "adaptavg",
            Self::Flatten => "flatten",
            Self::Dropout { .. } => "dropout",
            Self::Residual(Join::Add) => "add",
            Self::Residual(Join::And) => "and",
            Self::Residual(Join::Iand) => "iand",
        }
    }

    fn arity(&self) -> usize {
        if matches!(self, Self::Residual(_)) {
            2
        } else {
            1
        }
    }
}

/// One operation with the values it reads and the one it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name, unique in the graph; parameters are called `<name>.weight` and `<name>.bias`.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<ValueId>,
    /// What it makes.
    pub output: ValueId,
}

/// A value: what flows between nodes at one time step.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// The name of the value; that of its node, `x` for the input.
    pub name: String,
    /// The shape of one sample.
    pub shape: Shape,
    /// What its numbers are.
    pub content: Content,
}

/// A trained tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// `<node>.weight` or `<node>.bias`.
    pub name: String,
    /// OIHW for convolutions, `[out, in]` for linear layers, `[channels]` else.
    pub shape: Vec<usize>,
    /// The position of its node.
    pub node: usize,
}

impl Parameter {
    /// Numbers in it.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Why a graph is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Two nodes or values share a name.
    #[error("two nodes are called {0:?}: names must be unique")]
    DuplicateName(String),
    /// A node reads the wrong number of values.
    #[error("node {node:?} ({kind}) reads {got} values, needs {want}")]
    Arity {
        /// The node.
        node: String,
        /// Its operation.
        kind: &'static str,
        /// Values that it reads.
        got: usize,
        /// Values that its operation needs.
        want: usize,
    },
    /// A node reads a value that no earlier node makes.
    #[error(
        "node {node:?} reads value {value:?}, which no earlier node makes: the graph is cyclic, out of order or incomplete"
    )]
    UnknownValue {
        /// The node.
        node: String,
        /// The value.
        value: String,
    },
    /// The shapes do not fit.
    #[error("node {node:?} ({kind}) does not fit its input {input}: {reason}")]
    Shape {
        /// The node.
        node: String,
        /// Its operation.
        kind: &'static str,
        /// The shape that it was given, channels first.
        input: Shape,
        /// What is wrong.
        reason: String,
    },
    /// Something is larger than any network needs.
    #[error("node {node:?}: {what} is {got}, more than the limit of {limit}")]
    TooLarge {
        /// The node.
        node: String,
        /// What is too large.
        what: &'static str,
        /// How large it is.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// A branch is joined with itself.
    #[error("node {0:?} joins a value with itself: its branch and its shortcut must differ")]
    SameInput(String),
    /// The graph has no nodes.
    #[error("the graph has no nodes")]
    Empty,
    /// A node's result is never read.
    #[error("the value of node {0:?} is never read and is not the output: remove the node")]
    Unused(String),
    /// The output is not a vector of logits.
    #[error("the output {name:?} has shape {shape}: logits are a vector (flatten it first)")]
    Output {
        /// The value.
        name: String,
        /// Its shape.
        shape: Shape,
    },
}

/// A network: nodes in topological order. Every graph that exists has passed the checks of
/// [`Graph::add`] and, once [`Graph::finish`]ed, has an output.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<ValueInfo>,
    output: ValueId,
}

impl Graph {
    /// A graph that has only its input `x`, with the given sample shape.
    pub fn new(input: Shape) -> Self {
        let x = ValueInfo {
            name: "x".into(),
            shape: input,
            content: Content::Real,
        };
        Self {
            nodes: Vec::new(),
            values: vec![x],
            output: ValueId(0),
        }
    }

    /// The network's input.
    pub fn input(&self) -> ValueId {
        ValueId(0)
    }

    /// The logits.
    pub fn output(&self) -> ValueId {
        self.output
    }

    /// Nodes in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Values, the input first.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &ValueInfo {
        &self.values[id.0]
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.values.iter().position(|v| v.name == name).map(ValueId)
    }

    /// The positions of the nodes that read a value.
    pub fn readers(&self, value: ValueId) -> impl Iterator<Item = usize> + '_ {
        let reads = move |node: &Node| node.inputs.contains(&value);
        (0..self.nodes.len()).filter(move |&i| reads(&self.nodes[i]))
    }

    /// Appends a node whose value has the node's name; that value becomes the output.
    ///
    /// # Errors
    /// If the name is taken, an input does not exist yet, or shapes do not fit.
    pub fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> Result<ValueId, GraphError> {
        self.add_as(name, op, inputs, name)
    }

    /// Appends a node whose value is called `value_name`; that value becomes the output.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn add_as(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[ValueId],
        value_name: &str,
    ) -> Result<ValueId, GraphError> {
        if self.find(value_name).is_some() || self.nodes.iter().any(|n| n.name == name) {
            return Err(GraphError::DuplicateName(name.into()));
        }
        limit(name, "the number of nodes", self.nodes.len() + 1, MAX_NODES)?;
        if inputs.len() != op.arity() {
            return Err(GraphError::Arity {
                node: name.into(),
                kind: op.kind(),
                got: inputs.len(),
                want: op.arity(),
            });
        }
        if let Some(missing) = inputs.iter().find(|i| i.0 >= self.values.len()) {
            return Err(GraphError::UnknownValue {
                node: name.into(),
                value: format!("number {}", missing.0),
            });
        }
        if inputs.len() == 2 && inputs[0] == inputs[1] {
            return Err(GraphError::SameInput(name.into()));
        }
        let ins: Vec<&ValueInfo> = inputs.iter().map(|&i| self.value(i)).collect();
        let shape = output_shape(name, &op, &ins)?;
        let content = output_content(&op, &ins);
        let output = ValueId(self.values.len());
        self.values.push(ValueInfo {
            name: value_name.into(),
            shape,
            content,
        });
        self.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.to_vec(),
            output,
        });
        self.output = output;
        Ok(output)
    }

    /// Sets the output and checks the whole: it is a vector, and every other value is read.
    ///
    /// # Errors
    /// If there are no nodes, the output is no vector, or a value is never read.
    pub fn finish(mut self, output: ValueId) -> Result<Self, GraphError> {
        if self.nodes.is_empty() || output.0 == 0 || output.0 >= self.values.len() {
            return Err(GraphError::Empty);
        }
        self.output = output;
        let out = self.value(output);
        if !out.shape.is_vector() {
            return Err(GraphError::Output {
                name: out.name.clone(),
                shape: out.shape,
            });
        }
        for node in &self.nodes {
            if node.output != output && self.readers(node.output).next().is_none() {
                return Err(GraphError::Unused(node.name.clone()));
            }
        }
        Ok(self)
    }

    /// Every trained tensor, in the order of the nodes; a node's weight before its bias.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut all = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let mut push = |part: &str, shape: Vec<usize>| {
                all.push(Parameter {
                    name: format!("{}.{part}", node.name),
                    shape,
                    node: index,
                });
            };
            let input = self.value(node.inputs[0]).shape;
            match node.op {
                Op::Conv {
                    outputs,
                    kernel,
                    bias,
                    ..
                } => {
                    push("weight", vec![outputs, input.channels, kernel, kernel]);
                    if bias {
                        push("bias", vec![outputs]);
                    }
                }
                Op::Linear { outputs } => {
                    push("weight", vec![outputs, input.channels]);
                    push("bias", vec![outputs]);
                }
                Op::BatchNorm => {
                    push("weight", vec![input.channels]);
                    push("bias", vec![input.channels]);
                }
                Op::Lif
                | Op::MaxPool { .. }
                | Op::AvgPool { .. }
                | Op::AdaptiveAvgPool { .. }
                | Op::Flatten
                | Op::Dropout { .. }
                | Op::Residual(_) => {}
            }
        }
        all
    }

    /// The names of the batch norms with their channels, in the order of the nodes; their running
    /// statistics are called `<name>.running_mean` and `<name>.running_var`.
    pub fn batch_norms(&self) -> Vec<(String, usize)> {
        let norms = self.nodes.iter().filter(|n| n.op == Op::BatchNorm);
        norms
            .map(|n| (n.name.clone(), self.value(n.output).shape.channels))
            .collect()
    }

    /// Multiply-accumulates of convolutions and linear layers: one sample, one time step, forward.
    pub fn multiply_accumulates(&self) -> u64 {
        let parameters = self.parameters();
        let weights = parameters.iter().filter(|p| p.shape.len() > 1);
        weights
            .map(|p| {
                let pixels = self.value(self.nodes[p.node].output).shape.pixels();
                p.elements() as u64 * pixels as u64
            })
            .sum()
    }
}

fn limit(node: &str, what: &'static str, got: usize, limit: usize) -> Result<(), GraphError> {
    if got <= limit {
        return Ok(());
    }
    Err(GraphError::TooLarge {
        node: node.into(),
        what,
        got,
        limit,
    })
}

/// The output side of a window sliding over `n` pixels: floor((n + 2p - k)/s) + 1.
fn sliding_side(n: usize, kernel: usize, stride: usize, padding: usize) -> Option<usize> {
    let room = (n + 2 * padding).checked_sub(kernel)?;
    Some(room.checked_div(stride)? + 1)
}

fn output_shape(name: &str, op: &Op, inputs: &[&ValueInfo]) -> Result<Shape, GraphError> {
    let x = inputs[0].shape;
    let misfit = |reason: &str| GraphError::Shape {
        node: name.into(),
        kind: op.kind(),
        input: x,
        reason: reason.into(),
    };
    let window = |kernel, stride, padding, channels| {
        let sizes = [
            ("the kernel", kernel),
            ("the stride", stride),
            ("the padding", padding),
        ];
        for (what, got) in sizes {
            limit(name, what, got, MAX_ATTRIBUTE)?;
        }
        limit(name, "the number of channels", channels, MAX_ELEMENTS)?;
        slid_shape(x, kernel, stride, padding, channels).map_err(misfit)
    };
    let shape = match *op {
        Op::Conv {
            outputs,
            kernel,
            stride,
            padding,
            ..
        } => {
            let shape = window(kernel, stride, padding, outputs)?;
            weight_limit(name, outputs, x.channels, kernel)?;
            shape
        }
        Op::Linear { outputs } => {
            if !x.is_vector() {
                return Err(misfit("a linear layer reads a vector: flatten it first"));
            }
            weight_limit(name, outputs, x.channels, 1)?;
            Shape::vector(outputs)
        }
        Op::MaxPool {
            kernel,
            stride,
            padding,
        } => {
            if kernel > 15 {
                return Err(misfit("the window of a max pool is at most 15 x 15"));
            }
            window(kernel, stride, padding, x.channels)?
        }
        Op::AvgPool { kernel } => window(kernel, kernel, 0, x.channels)?,
        Op::AdaptiveAvgPool { side } => {
            limit(name, "the output side", side, MAX_ATTRIBUTE)?;
            Shape::new(side, side, x.channels)
        }
        Op::Flatten => Shape::vector(x.elements()),
        Op::Dropout { p } if !(0.0..1.0).contains(&p) => {
            return Err(misfit("the dropout rate must be at least 0 and below 1"));
        }
        Op::Residual(_) if inputs[1].shape != x => {
            return Err(misfit(&format!("its shortcut is {}", inputs[1].shape)));
        }
        Op::BatchNorm | Op::Lif | Op::Dropout { .. } | Op::Residual(_) => x,
    };
    if shape.height == 0 || shape.width == 0 || shape.channels == 0 {
        return Err(misfit("its result would be empty"));
    }
    let pixels = shape.height.checked_mul(shape.width);
    let elements = pixels.and_then(|p| p.checked_mul(shape.channels));
    let elements = elements.unwrap_or(usize::MAX);
    limit(name, "the size of its value", elements, MAX_ELEMENTS)?;
    Ok(shape)
}

/// The shape that a filter sliding over x makes, or why there is none.
fn slid_shape(
    x: Shape,
    kernel: usize,
    stride: usize,
    padding: usize,
    channels: usize,
) -> Result<Shape, &'static str> {
    if kernel == 0 || stride == 0 {
        return Err("kernel and stride must be at least 1");
    }
    if padding >= kernel && padding > 0 {
        return Err("the padding must be smaller than the kernel");
    }
    let side = |n| sliding_side(n, kernel, stride, padding);
    match (side(x.height), side(x.width)) {
        (Some(h), Some(w)) => Ok(Shape::new(h, w, channels)),
        _ => Err("the kernel is larger than the padded input"),
    }
}

fn weight_limit(name: &str, out: usize, inp: usize, kernel: usize) -> Result<(), GraphError> {
    limit(name, "the number of outputs", out, MAX_ELEMENTS)?;
    let elements = out
        .checked_mul(inp)
        .and_then(|e| e.checked_mul(kernel * kernel));
    limit(
        name,
        "the size of its weight",
        elements.unwrap_or(usize::MAX),
        MAX_ELEMENTS,
    )
}

fn output_content(op: &Op, inputs: &[&ValueInfo]) -> Content {
    let x = inputs[0].content;
    match op {
        Op::Lif => Content::Spikes,
        Op::MaxPool { .. } | Op::Flatten => x,
        Op::Residual(join) => match (join, x, inputs[1].content) {
            // (1 - a) b may be negative where a counts.
            (_, Content::Real, _) | (_, _, Content::Real) | (Join::Iand, Content::Counts, _) => {
                Content::Real
            }
            (Join::And | Join::Iand, Content::Spikes, Content::Spikes) => Content::Spikes,
            (Join::And | Join::Iand | Join::Add, _, _) => Content::Counts,
        },
        Op::Conv { .. }
        | Op::Linear { .. }
        | Op::BatchNorm
        | Op::AvgPool { .. }
        | Op::AdaptiveAvgPool { .. }
        | Op::Dropout { .. } => Content::Real,
    }
}
