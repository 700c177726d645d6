//! Three convolutions, for trials.

use super::builder::{Builder, Filter};
use crate::graph::{GraphError, Op, ValueId};

/// How often the sides are halved.
pub(super) const NUM_POOLS: usize = CHANNELS.len();

const CHANNELS: [usize; 3] = [32, 64, 128];

pub(super) fn build(net: &mut Builder) -> Result<ValueId, GraphError> {
    let mut x = net.input();
    for (i, channels) in (1..).zip(CHANNELS) {
        x = net.conv(&format!("conv{i}"), Filter::new(channels), x)?;
        x = net.norm(&format!("bn{i}"), x)?;
        x = net.lif(&format!("sn{i}"), x)?;
        x = net.add(&format!("pool{i}"), Op::AvgPool { kernel: 2 }, x)?;
    }
    net.pooled(1, x)
}
