//! Single layers of a trace, replayed on any back end.
//!
//! # Layout
//!
//! - this file: the cases by name.
//! - `case`: the tensors of one case, checked, and the back end that it runs on.
//! - `conv`: convolutions and linear layers.
//! - `batch_norm`: batch norms.
//! - `pools`: pools.
//! - `neurons`: neurons over a window of two, and the losses.

mod batch_norm;
mod case;
mod conv;
mod neurons;
mod pools;

use self::case::Reader;
use super::TraceError;
use super::compare::Comparison;
use super::file::TraceFile;
use super::metadata::Source;
use crate::graph::Op;
use crate::kernel::{Kernels, PoolKind, Reset};

/// Makes a back end that has nothing allocated yet.
pub type Make<'a> = dyn FnMut() -> Box<dyn Kernels> + 'a;

/// What a case checks, beyond what its tensors say.
#[derive(Clone, Copy, Debug)]
enum Layer {
    Conv { stride: usize, padding: usize },
    Linear,
    BatchNorm,
    MaxPool,
    AvgPool { kernel: usize },
    AdaptiveAvgPool,
    Lif(Reset),
    Loss,
}

/// The name of a case is all that says how its layer is built.
const CASES: [(&str, Layer); 17] = [
    ("conv3x3_s1", conv_layer(1, 1)),
    ("conv3x3_s2", conv_layer(2, 1)),
    ("conv1x1_s2", conv_layer(2, 0)),
    ("conv7x7_s2", conv_layer(2, 3)),
    ("bn", Layer::BatchNorm),
    ("bn_zero_input", Layer::BatchNorm),
    ("maxpool_ties", Layer::MaxPool),
    ("avgpool2", Layer::AvgPool { kernel: 2 }),
    ("avgpool2_odd", Layer::AvgPool { kernel: 2 }),
    ("adaptavg_1", Layer::AdaptiveAvgPool),
    ("adaptavg_7_from_4", Layer::AdaptiveAvgPool),
    ("adaptavg_7_from_1", Layer::AdaptiveAvgPool),
    ("linear", Layer::Linear),
    ("lif_hard", Layer::Lif(Reset::Hard)),
    ("lif_soft", Layer::Lif(Reset::Soft)),
    ("lif_none", Layer::Lif(Reset::None)),
    ("loss", Layer::Loss),
];

const fn conv_layer(stride: usize, padding: usize) -> Layer {
    Layer::Conv { stride, padding }
}

/// Replays every case of the file on back ends from `make`, one each.
///
/// # Errors
/// If a case is missing, unknown, or its tensors do not fit each other.
pub fn check(file: &TraceFile, make: &mut Make<'_>) -> Result<Comparison, TraceError> {
    let mut reader = Reader::new(Source(file));
    let mut comparison = Comparison::new();
    for (name, layer) in CASES {
        let mut case = reader.case(name);
        let case = &mut case;
        match layer {
            Layer::Conv { stride, padding } => {
                conv::check(case, make, &mut comparison, Some((stride, padding)))?;
            }
            Layer::Linear => conv::check(case, make, &mut comparison, None)?,
            Layer::BatchNorm => batch_norm::check(case, make, &mut comparison)?,
            Layer::MaxPool => pools::max(case, make, &mut comparison)?,
            Layer::AvgPool { kernel } => {
                let op = Op::AvgPool { kernel };
                pools::average(
                    case,
                    make,
                    &mut comparison,
                    op,
                    PoolKind::Average { kernel },
                )?;
            }
            Layer::AdaptiveAvgPool => {
                let side = case.picture("y")?.shape.height;
                let op = Op::AdaptiveAvgPool { side };
                pools::average(case, make, &mut comparison, op, PoolKind::Adaptive)?;
            }
            Layer::Lif(reset) => neurons::lif(case, make, &mut comparison, reset)?,
            Layer::Loss => neurons::loss(case, make, &mut comparison)?,
        }
    }
    reader.finish()?;
    Ok(comparison)
}
