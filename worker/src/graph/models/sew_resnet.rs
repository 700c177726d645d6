//! SEW-ResNet: a neuron ends each branch, and blocks join spikes with spikes.

use super::builder::{Block, Builder, Filter, STAGE_CHANNELS};
use crate::graph::{GraphError, Op, ValueId};
use crate::shape::Join;

pub(super) fn build(
    net: &mut Builder,
    join: Join,
    num_blocks: [usize; 4],
) -> Result<ValueId, GraphError> {
    let filter = Filter {
        kernel: 7,
        stride: 2,
        ..Filter::new(STAGE_CHANNELS[0])
    };
    let x = net.conv("stem.conv", filter, net.input())?;
    let x = net.norm("stem.bn", x)?;
    let x = net.lif("stem.sn", x)?;
    let mut x = net.stem_pool(x)?;
    for block in super::builder::blocks(num_blocks) {
        x = build_block(net, join, &block, x)?;
    }
    // No neuron before the readout: it reads the counts of the last block.
    net.pooled(1, x)
}

fn build_block(
    net: &mut Builder,
    join: Join,
    block: &Block,
    x: ValueId,
) -> Result<ValueId, GraphError> {
    let node = |part: &str| format!("{}.{part}", block.name);
    let strided = Filter {
        stride: block.stride,
        ..Filter::new(block.channels)
    };
    let h = net.conv(&node("conv1"), strided, x)?;
    let h = net.norm(&node("bn1"), h)?;
    let h = net.lif(&node("sn1"), h)?;
    let h = net.conv(&node("conv2"), Filter::new(block.channels), h)?;
    let h = net.norm(&node("bn2"), h)?;
    let h = net.lif(&node("sn2"), h)?;
    let shortcut = if net.keeps_shape(block, x) {
        x
    } else {
        let narrow = Filter {
            kernel: 1,
            ..strided
        };
        let down = net.conv(&node("down.conv"), narrow, x)?;
        let down = net.norm(&node("down.bn"), down)?;
        net.lif(&node("down.sn"), down)?
    };
    let op = Op::Residual(join);
    let name = node(op.kind());
    net.join(&name, op, h, shortcut)
}
