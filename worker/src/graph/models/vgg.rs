//! VGG-11 for event cameras. A bias before a batch norm has no effect but for rounding; it is kept
//! because the authors' parameter count has it.

use super::builder::{Builder, Filter};
use crate::graph::{GraphError, Op, ValueId};

/// How often the sides are halved.
pub(super) const NUM_POOLS: usize = 5;

/// Channels of each convolution, and whether a pool follows.
const PLAN: [(usize, bool); 8] = [
    (64, true),
    (128, true),
    (256, false),
    (256, true),
    (512, false),
    (512, true),
    (512, false),
    (512, true),
];

/// The side of the readout's input.
const HEAD_SIDE: usize = 7;

pub(super) fn build(net: &mut Builder, dropout: f32) -> Result<ValueId, GraphError> {
    let (mut x, mut num_pools) = (net.input(), 0);
    for (i, (channels, pool)) in (1..).zip(PLAN) {
        let filter = Filter {
            bias: true,
            ..Filter::new(channels)
        };
        x = net.conv(&format!("conv{i}"), filter, x)?;
        x = net.norm(&format!("bn{i}"), x)?;
        x = net.lif(&format!("sn{i}"), x)?;
        if pool {
            num_pools += 1;
            x = net.add(&format!("pool{num_pools}"), Op::AvgPool { kernel: 2 }, x)?;
        }
    }
    x = net.pooled(HEAD_SIDE, x)?;
    if dropout != 0.0 {
        x = net.add("head.drop", Op::Dropout { p: dropout }, x)?;
    }
    Ok(x)
}
