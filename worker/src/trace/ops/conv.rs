//! Convolutions and linear layers.

use super::Make;
use super::case::{Case, Picture, Rig, only, spans, to};
use crate::graph::Op;
use crate::kernel::{Arena, Conv};
use crate::shape::Content;
use crate::trace::TraceError;
use crate::trace::compare::{Comparison, Quantity};

/// A convolution with this stride and padding, or without them a linear layer: once for each way to
/// store its input.
pub(super) fn check(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
    window: Option<(usize, usize)>,
) -> Result<(), TraceError> {
    let run = Run::read(case, window)?;
    for content in run.x.contents() {
        run.check(
            case,
            Rig::new(make(), run.parameters(), 0),
            comparison,
            content,
        );
    }
    Ok(())
}

struct Run<'a> {
    layer: Conv,
    x: Picture,
    y: Picture,
    gy: Picture,
    gx: Picture,
    weight: Trained<'a>,
    bias: Option<Trained<'a>>,
}

/// A parameter and its gradient.
struct Trained<'a> {
    value: &'a [f32],
    gradient: &'a [f32],
}

impl<'a> Trained<'a> {
    fn read(case: &mut Case<'a, '_>, part: &str, shape: &[usize]) -> Result<Self, TraceError> {
        Ok(Self {
            value: case.numbers(&format!("param/{part}"), shape)?,
            gradient: case.numbers(&format!("grad/{part}"), shape)?,
        })
    }
}

impl<'a> Run<'a> {
    fn read(case: &mut Case<'a, '_>, window: Option<(usize, usize)>) -> Result<Self, TraceError> {
        let x = case.picture("x")?;
        let rank = if window.is_some() { 4 } else { 2 };
        let shape = case.shape("param/weight", rank)?;
        let (outputs, kernel) = (shape[0], *shape.get(2).unwrap_or(&1));
        let (stride, padding) = window.unwrap_or((1, 0));
        let op = match window {
            None => Op::Linear { outputs },
            Some(_) => Op::Conv {
                outputs,
                kernel,
                stride,
                padding,
                bias: false,
            },
        };
        let output = case.output(x.shape, op)?;
        let filters = [outputs, x.shape.channels, kernel, kernel];
        let weight = Trained::read(case, "weight", &filters[..rank])?;
        let bias = if case.has("param/bias") {
            Some(Trained::read(case, "bias", &[outputs])?)
        } else {
            None
        };
        let (weight_span, bias_span) = spans(weight.value.len(), outputs);
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
        Ok(Self {
            layer,
            y: case.picture_of("y", x.samples, output)?,
            gy: case.picture_of("gy", x.samples, output)?,
            gx: case.picture_of("gx", x.samples, x.shape)?,
            x,
            weight,
            bias,
        })
    }

    fn parameters(&self) -> usize {
        let last = self.layer.bias.unwrap_or(self.layer.weight);
        last.offset + last.len
    }

    fn check(
        &self,
        case: &Case<'_, '_>,
        mut rig: Rig,
        comparison: &mut Comparison,
        content: Content,
    ) {
        let mut check = |quantity, what: &str, got: &[f32], expected: &[f32]| {
            comparison.check(quantity, &case.label(what, content), 0, got, expected);
        };
        let trained = [
            ("grad/weight", Some(self.layer.weight), Some(&self.weight)),
            ("grad/bias", self.layer.bias, self.bias.as_ref()),
        ];
        let trained = trained.map(|(what, span, trained)| Some((what, span?, trained?)));
        for (_, span, trained) in trained.iter().flatten() {
            rig.kernels
                .write_arena(Arena::Weights, span.offset, trained.value);
        }
        let x = rig.store(&self.x, &self.x.spec_of_operand(content));
        let y = rig.room(&self.y);
        rig.kernels.conv_forward(&self.layer, 0, x, y);
        check(Quantity::Value, "y", &rig.read(y, &self.y), &self.y.values);

        let gy = rig.store(&self.gy, &self.gy.spec());
        let gx = rig.room(&self.gx);
        rig.kernels
            .conv_data_gradient(&self.layer, only(gy), to(gx));
        rig.kernels.conv_weight_gradient(&self.layer, x, only(gy));
        check(
            Quantity::Gradient,
            "gx",
            &rig.read(gx, &self.gx),
            &self.gx.values,
        );
        for (what, span, trained) in trained.iter().flatten() {
            let got = rig.arena(Arena::Gradients, *span);
            check(Quantity::Gradient, what, &got, trained.gradient);
        }
    }
}
