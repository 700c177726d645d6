//! Batch norms: in training, back, and with the running statistics that training left.

use super::Make;
use super::case::{Case, NOW, Picture, Rig, norm_lif, only, spans, to};
use crate::kernel::{Arena, Buffer, BufferSpec, Norm, NormLif, NormLifErrors, Norms, Phase, Span};
use crate::shape::{Content, Shape};
use crate::trace::TraceError;
use crate::trace::compare::{Comparison, Quantity};

/// A batch norm whose running statistics start at 0 and 1.
pub(super) fn check(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
) -> Result<(), TraceError> {
    let run = Run::read(case)?;
    let mut check = |quantity, what: &str, got: &[f32], expected: &[f32]| {
        let label = case.label(what, Content::Real);
        comparison.check(quantity, &label, 0, got, expected);
    };
    let (mut rig, layer, out) = run.build(make);
    let (first, second) = run.spans();
    rig.kernels.norm_lif_forward(&layer, 0, Phase::Train);
    check(Quantity::Value, "y", &rig.read(out, &run.y), &run.y.values);
    let got = rig.arena(Arena::Statistics, first);
    check(Quantity::Statistic, "running_mean", &got, run.mean);
    let got = rig.arena(Arena::Statistics, second);
    check(Quantity::Statistic, "running_var", &got, run.variance);

    let gy = rig.store(&run.gy, &run.gy.spec());
    let gx = rig.room(&run.gx);
    let errors = NormLifErrors {
        out: None,
        y: Some(only(gy)),
        z: Some(to(gx)),
        before: None,
        after: None,
    };
    rig.kernels.norm_lif_backward(&layer, NOW, &errors);
    check(
        Quantity::Gradient,
        "gx",
        &rig.read(gx, &run.gx),
        &run.gx.values,
    );
    let got = rig.arena(Arena::Gradients, first);
    check(Quantity::Gradient, "grad/weight", &got, run.gamma_gradient);
    let got = rig.arena(Arena::Gradients, second);
    check(Quantity::Gradient, "grad/bias", &got, run.beta_gradient);

    rig.kernels.norm_lif_forward(&layer, 0, Phase::Evaluate);
    check(
        Quantity::Value,
        "y_eval",
        &rig.read(out, &run.y_eval),
        &run.y_eval.values,
    );
    Ok(())
}

struct Run<'a> {
    x: Picture,
    y: Picture,
    y_eval: Picture,
    gy: Picture,
    gx: Picture,
    gamma: &'a [f32],
    beta: &'a [f32],
    gamma_gradient: &'a [f32],
    beta_gradient: &'a [f32],
    mean: &'a [f32],
    variance: &'a [f32],
}

impl<'a> Run<'a> {
    fn read(case: &mut Case<'a, '_>) -> Result<Self, TraceError> {
        let x = case.picture("x")?;
        let vector = [x.shape.channels];
        Ok(Self {
            y: case.picture_of("y", x.samples, x.shape)?,
            y_eval: case.picture_of("y_eval", x.samples, x.shape)?,
            gy: case.picture_of("gy", x.samples, x.shape)?,
            gx: case.picture_of("gx", x.samples, x.shape)?,
            x,
            gamma: case.numbers("param/weight", &vector)?,
            beta: case.numbers("param/bias", &vector)?,
            gamma_gradient: case.numbers("grad/weight", &vector)?,
            beta_gradient: case.numbers("grad/bias", &vector)?,
            mean: case.numbers("buffer/running_mean", &vector)?,
            variance: case.numbers("buffer/running_var", &vector)?,
        })
    }

    /// Where gamma and beta lie, and the running mean and variance.
    fn spans(&self) -> (Span, Span) {
        let channels = self.x.shape.channels;
        spans(channels, channels)
    }

    /// The back end, the layer, and where its result goes.
    fn build(&self, make: &mut Make<'_>) -> (Rig, NormLif, Buffer) {
        let channels = self.x.shape.channels;
        let (first, second) = self.spans();
        let arena = second.offset + second.len;
        let mut rig = Rig::new(make(), arena, arena);
        let kernels = &mut rig.kernels;
        kernels.write_arena(Arena::Weights, first.offset, self.gamma);
        kernels.write_arena(Arena::Weights, second.offset, self.beta);
        kernels.write_arena(Arena::Statistics, first.offset, &vec![0.0; channels]);
        kernels.write_arena(Arena::Statistics, second.offset, &vec![1.0; channels]);
        let moments = BufferSpec::plain(1, Shape::new(1, 2, channels), 1);
        let norm = Norm {
            gamma: first,
            beta: second,
            running_mean: first,
            running_var: second,
            eps: 1e-5,
            momentum: 0.1,
            moments: kernels.allocate(&moments),
            across: Norms::Own,
            sums: None,
        };
        let z = rig.store(&self.x, &self.x.spec());
        let out = rig.room(&self.y);
        let layer = NormLif {
            norm: Some(norm),
            y: Some(out),
            ..norm_lif(self.x.samples, self.x.shape, z)
        };
        (rig, layer, out)
    }
}
