//! Single layers of a trace, replayed on any back end.
//!
//! # Layout
//!
//! - this file: the cases by name, and the layers that have weights.
//! - `case`: the tensors of one case, checked.
//! - `pools`: pools.
//! - `neurons`: neurons over a window of two, and the losses.

mod case;
mod neurons;
mod pools;

use self::case::{Case, Reader, Rig, only, to};
use super::TraceError;
use super::compare::{Comparison, Quantity};
use super::file::TraceFile;
use super::metadata::Source;
use crate::graph::Op;
use crate::kernel::{
    Arena, BufferSpec, Conv, Kernels, Norm, NormLif, NormLifErrors, Phase, PoolKind, Reset,
};
use crate::shape::{Content, Shape};

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
                conv(case, make, &mut comparison, Some((stride, padding)))?;
            }
            Layer::Linear => conv(case, make, &mut comparison, None)?,
            Layer::BatchNorm => batch_norm(case, make, &mut comparison)?,
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

/// A convolution, or with `window` missing a linear layer: once for each way to store its input.
fn conv(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
    window: Option<(usize, usize)>,
) -> Result<(), TraceError> {
    let x = case.picture("x")?;
    let weight_shape = case.shape("param/weight", if window.is_some() { 4 } else { 2 })?;
    let (outputs, kernel) = (weight_shape[0], *weight_shape.get(2).unwrap_or(&1));
    let (stride, padding) = window.unwrap_or((1, 0));
    let output = case.output(
        x.shape,
        Op::Conv {
            outputs,
            kernel,
            stride,
            padding,
            bias: false,
        },
    )?;
    let mut filter = vec![outputs, x.shape.channels];
    if window.is_some() {
        filter.extend([kernel, kernel]);
    }
    let weight = case.numbers("param/weight", &filter)?;
    let weight_gradient = case.numbers("grad/weight", &filter)?;
    let mut bias = None;
    if case.has("param/bias") {
        let values = case.numbers("param/bias", &[outputs])?;
        bias = Some((values, case.numbers("grad/bias", &[outputs])?));
    }
    let y = case.picture_of("y", x.samples, output)?;
    let gy = case.picture_of("gy", x.samples, output)?;
    let gx = case.picture_of("gx", x.samples, x.shape)?;

    let (weight_span, bias_span) = case::spans(weight.len(), outputs);
    let layer = Conv {
        index: 0,
        samples: x.samples,
        input: x.shape,
        output,
        kernel,
        stride,
        padding,
        weight: weight_span,
        bias: bias.is_some().then_some(bias_span),
    };
    for content in x.contents() {
        let label = |what: &str| case.label(what, content);
        let mut rig = Rig::new(make(), bias_span.offset + bias_span.len, 0);
        rig.kernels
            .write_arena(Arena::Weights, weight_span.offset, weight);
        if let Some((values, _)) = bias {
            rig.kernels
                .write_arena(Arena::Weights, bias_span.offset, values);
        }
        let x_buffer = rig.store(&x, &x.spec_of_operand(content));
        let y_buffer = rig.room(&y);
        rig.kernels.conv_forward(&layer, 0, x_buffer, y_buffer);
        comparison.check(
            Quantity::Value,
            &label("y"),
            0,
            &rig.read(y_buffer, &y),
            &y.values,
        );

        let gy_buffer = rig.store(&gy, &gy.spec());
        let gx_buffer = rig.room(&gx);
        rig.kernels
            .conv_data_gradient(&layer, only(gy_buffer), to(gx_buffer));
        rig.kernels
            .conv_weight_gradient(&layer, x_buffer, only(gy_buffer));
        let mut check = |what: &str, got: &[f32], expected: &[f32]| {
            comparison.check(Quantity::Gradient, &label(what), 0, got, expected);
        };
        check("gx", &rig.read(gx_buffer, &gx), &gx.values);
        check(
            "grad/weight",
            &rig.arena(Arena::Gradients, weight_span),
            weight_gradient,
        );
        if let Some((_, gradient)) = bias {
            check(
                "grad/bias",
                &rig.arena(Arena::Gradients, bias_span),
                gradient,
            );
        }
    }
    Ok(())
}

fn batch_norm(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
) -> Result<(), TraceError> {
    let x = case.picture("x")?;
    let channels = x.shape.channels;
    let pictures = ["y", "y_eval", "gy", "gx"].map(|key| case.picture_of(key, x.samples, x.shape));
    let [y, y_eval, gy, gx] = pictures;
    let (y, y_eval, gy, gx) = (y?, y_eval?, gy?, gx?);
    let mut vector = |key| case.numbers(key, &[channels]);
    let (gamma, beta) = (vector("param/weight")?, vector("param/bias")?);
    let (gamma_gradient, beta_gradient) = (vector("grad/weight")?, vector("grad/bias")?);
    let mean = vector("buffer/running_mean")?;
    let variance = vector("buffer/running_var")?;

    let (first, second) = case::spans(channels, channels);
    let arena = second.offset + second.len;
    let mut rig = Rig::new(make(), arena, arena);
    rig.kernels.write_arena(Arena::Weights, first.offset, gamma);
    rig.kernels.write_arena(Arena::Weights, second.offset, beta);
    rig.kernels
        .write_arena(Arena::Statistics, second.offset, &vec![1.0; channels]);
    let z = rig.store(&x, &x.spec());
    let out = rig.room(&y);
    let moments = BufferSpec::plain(1, Shape::new(1, 2, channels), 1);
    let norm = Norm {
        gamma: first,
        beta: second,
        running_mean: first,
        running_var: second,
        eps: 1e-5,
        momentum: 0.1,
        moments: rig.kernels.allocate(&moments),
    };
    let layer = case::norm_lif(x.samples, x.shape, z);
    let layer = NormLif {
        norm: Some(norm),
        y: Some(out),
        ..layer
    };
    let mut check = |quantity, what: &str, got: &[f32], expected: &[f32]| {
        let label = case.label(what, Content::Real);
        comparison.check(quantity, &label, 0, got, expected);
    };
    rig.kernels.norm_lif_forward(&layer, 0, Phase::Train);
    check(Quantity::Value, "y", &rig.read(out, &y), &y.values);
    let got = rig.arena(Arena::Statistics, first);
    check(Quantity::Statistic, "running_mean", &got, mean);
    let got = rig.arena(Arena::Statistics, second);
    check(Quantity::Statistic, "running_var", &got, variance);

    let gy_buffer = rig.store(&gy, &gy.spec());
    let gx_buffer = rig.room(&gx);
    let errors = NormLifErrors {
        out: None,
        y: Some(only(gy_buffer)),
        z: Some(to(gx_buffer)),
        before: None,
        after: None,
    };
    rig.kernels.norm_lif_backward(&layer, case::NOW, &errors);
    check(
        Quantity::Gradient,
        "gx",
        &rig.read(gx_buffer, &gx),
        &gx.values,
    );
    let got = rig.arena(Arena::Gradients, first);
    check(Quantity::Gradient, "grad/weight", &got, gamma_gradient);
    let got = rig.arena(Arena::Gradients, second);
    check(Quantity::Gradient, "grad/bias", &got, beta_gradient);

    rig.kernels.norm_lif_forward(&layer, 0, Phase::Evaluate);
    check(
        Quantity::Value,
        "y_eval",
        &rig.read(out, &y_eval),
        &y_eval.values,
    );
    Ok(())
}
