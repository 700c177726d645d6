//! MS-ResNet: neurons stand before convolutions, and blocks add to a real-valued stream.

use super::Stem;
use super::builder::{Block, Builder, Filter, STAGE_CHANNELS};
use crate::graph::{GraphError, Op, ValueId};
use crate::shape::Join;

pub(super) fn build(
    net: &mut Builder,
    stem: Stem,
    num_blocks: [usize; 4],
) -> Result<ValueId, GraphError> {
    let mut x = build_stem(net, stem)?;
    for block in super::builder::blocks(num_blocks) {
        x = build_block(net, &block, x)?;
    }
    x = net.lif("head.sn", x)?;
    net.pooled(1, x)
}

/// No neuron ends it: the stream is real from the start.
fn build_stem(net: &mut Builder, stem: Stem) -> Result<ValueId, GraphError> {
    let cifar = Filter::new(STAGE_CHANNELS[0]);
    let filter = match stem {
        Stem::Cifar => cifar,
        Stem::Imagenet => Filter {
            kernel: 7,
            stride: 2,
            bias: true,
            ..cifar
        },
    };
    let x = net.conv("stem.conv", filter, net.input())?;
    let x = net.norm("stem.bn", x)?;
    match stem {
        Stem::Cifar => Ok(x),
        Stem::Imagenet => net.stem_pool(x),
    }
}

fn build_block(net: &mut Builder, block: &Block, x: ValueId) -> Result<ValueId, GraphError> {
    let node = |part: &str| format!("{}.{part}", block.name);
    let strided = Filter {
        stride: block.stride,
        ..Filter::new(block.channels)
    };
    let s = net.lif(&node("sn1"), x)?;
    let shortcut = if net.keeps_shape(block, x) {
        x
    } else {
        let narrow = Filter {
            kernel: 1,
            ..strided
        };
        // The twin of sn1: it reads the same value.
        let twin = net.lif(&node("down.sn"), x)?;
        let down = net.conv(&node("down.conv"), narrow, twin)?;
        net.norm(&node("down.bn"), down)?
    };
    let h = net.conv(&node("conv1"), strided, s)?;
    let h = net.norm(&node("bn1"), h)?;
    let h = net.lif(&node("sn2"), h)?;
    let h = net.conv(&node("conv2"), Filter::new(block.channels), h)?;
    let h = net.norm(&node("bn2"), h)?;
    net.join(&node("add"), Op::Residual(Join::Add), h, shortcut)
}
