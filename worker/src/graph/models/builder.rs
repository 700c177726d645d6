//! What the networks share.

use super::ModelOptions;
use crate::graph::{Graph, GraphError, Op, ValueId};

/// The channels of the four stages of a residual network, before the multiplier (He, Zhang, Ren,
/// Sun, "Deep Residual Learning for Image Recognition", 2015, <https://arxiv.org/abs/1512.03385>).
pub(super) const STAGE_CHANNELS: [usize; 4] = [64, 128, 256, 512];

/// A square convolution that keeps the sides at stride 1 (padding is half its odd kernel).
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    /// Output channels, before the multiplier.
    pub(super) channels: usize,
    /// Odd.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) bias: bool,
}

impl Filter {
    /// 3x3, stride 1, no bias.
    pub(super) fn new(channels: usize) -> Self {
        Self {
            channels,
            kernel: 3,
            stride: 1,
            bias: false,
        }
    }
}

/// One block of a residual network.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// `layer<stage from 1>.<block from 0>`, the prefix of its nodes.
    pub(super) name: String,
    /// Output channels, before the multiplier.
    pub(super) channels: usize,
    /// 2 in the first block of every stage but the first.
    pub(super) stride: usize,
}

/// The blocks of a residual network, in order.
pub(super) fn blocks(num_blocks: [usize; 4]) -> impl Iterator<Item = Block> {
    let stages = STAGE_CHANNELS.into_iter().zip(num_blocks).enumerate();
    stages.flat_map(|(stage, (channels, num))| {
        (0..num).map(move |block| Block {
            name: format!("layer{}.{block}", stage + 1),
            channels,
            stride: if stage > 0 && block == 0 { 2 } else { 1 },
        })
    })
}

/// A graph under construction.
#[derive(Debug)]
pub(super) struct Builder {
    graph: Graph,
    width: f64,
    batch_norm: bool,
}

impl Builder {
    pub(super) fn new(options: &ModelOptions) -> Self {
        Self {
            graph: Graph::new(options.input),
            width: options.width,
            batch_norm: options.batch_norm,
        }
    }

    pub(super) fn input(&self) -> ValueId {
        self.graph.input()
    }

    pub(super) fn conv(
        &mut self,
        name: &str,
        filter: Filter,
        x: ValueId,
    ) -> Result<ValueId, GraphError> {
        let op = Op::Conv {
            outputs: self.scaled(filter.channels),
            kernel: filter.kernel,
            stride: filter.stride,
            padding: filter.kernel / 2,
            bias: filter.bias,
        };
        self.add(name, op, x)
    }

    /// Batch norm, or nothing in a network without.
    pub(super) fn norm(&mut self, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        if self.batch_norm {
            self.add(name, Op::BatchNorm, x)
        } else {
            Ok(x)
        }
    }

    pub(super) fn lif(&mut self, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
        self.add(name, Op::Lif, x)
    }

    /// Max pool 3x3, stride 2, padding 1: what ends a [`Stem::Imagenet`](super::Stem).
    pub(super) fn stem_pool(&mut self, x: ValueId) -> Result<ValueId, GraphError> {
        let op = Op::MaxPool {
            kernel: 3,
            stride: 2,
            padding: 1,
        };
        self.add("stem.pool", op, x)
    }

    /// `head.pool`, an adaptive average to side x side, and `head.flat`.
    pub(super) fn pooled(&mut self, side: usize, x: ValueId) -> Result<ValueId, GraphError> {
        let pool = self.add("head.pool", Op::AdaptiveAvgPool { side }, x)?;
        self.add("head.flat", Op::Flatten, pool)
    }

    pub(super) fn add(&mut self, name: &str, op: Op, x: ValueId) -> Result<ValueId, GraphError> {
        self.graph.add(name, op, &[x])
    }

    /// A node that reads a branch and its shortcut.
    pub(super) fn join(
        &mut self,
        name: &str,
        op: Op,
        branch: ValueId,
        shortcut: ValueId,
    ) -> Result<ValueId, GraphError> {
        self.graph.add(name, op, &[branch, shortcut])
    }

    /// Whether the block's output has the shape of its input `x`, which then is the shortcut.
    pub(super) fn keeps_shape(&self, block: &Block, x: ValueId) -> bool {
        let channels = self.graph.value(x).shape.channels;
        block.stride == 1 && channels == self.scaled(block.channels)
    }

    /// The linear layer `fc`, which ends the network.
    pub(super) fn readout(mut self, x: ValueId, classes: usize) -> Result<Graph, GraphError> {
        let logits = self.add("fc", Op::Linear { outputs: classes }, x)?;
        self.graph.finish(logits)
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the width is positive, and what saturates is above the graph's limits"
    )]
    fn scaled(&self, channels: usize) -> usize {
        ((self.width * channels as f64).round() as usize).max(1)
    }
}
