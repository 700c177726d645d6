//! Neurons over a window of two time steps, and the losses.

use super::Make;
use super::case::{Case, Rig, norm_lif, to};
use crate::kernel::{
    Buffer, BufferSpec, Errors, Lif, Loss, Neuron, NormLif, NormLifErrors, Phase, Reset, Window,
};
use crate::shape::{Content, Shape};
use crate::trace::TraceError;
use crate::trace::common::TracedLoss;
use crate::trace::compare::{Comparison, Quantity};

/// The longest window that the file has numbers for.
const WINDOW: usize = 2;

/// Neurons with one kind of reset: forward, and after each time step back over the window.
///
/// Row t of `gs` is what arrives at the current time step t, row t of `gs_old` what arrives at t-1.
pub(super) fn lif(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
    reset: Reset,
) -> Result<(), TraceError> {
    let shape = case.shape("x", 3)?;
    let mut all = |key| case.numbers(key, shape);
    let (x, u, s) = (all("x")?, all("u")?, all("s")?);
    let (gs, gs_old) = (all("gs")?, all("gs_old")?);
    let (gu, gu_old) = (all("gu")?, all("gu_old_s")?);
    for mode in ["t", "o"] {
        let key = format!("gu_old_{mode}");
        case.numbers(&key, shape)?;
        comparison.wait(format!("{}: waits for mode {mode}", case.full(&key)));
    }
    let elements = shape[1] * shape[2];
    let row = |all: &'_ [f32], t: usize| all[t * elements..][..elements].to_vec();
    let mut run = Run::new(make, shape[1], Shape::vector(shape[2]), reset);
    for t in 0..shape[0] {
        let mut check = |quantity, what: &str, got: &[f32], expected: &[f32]| {
            let label = case.label(what, Content::Real);
            comparison.check(quantity, &label, t, got, expected);
        };
        run.forward(t, &row(x, t));
        check(Quantity::Value, "u", &run.read(run.u, t), &row(u, t));
        check(Quantity::Spikes, "s", &run.read(run.s, t), &row(s, t));
        let older = t.checked_sub(1);
        run.backward(t, &row(gs, t), older.map(|_| row(gs_old, t)).as_deref());
        check(Quantity::Gradient, "gu", &run.read(run.gu, t), &row(gu, t));
        if let Some(older) = older {
            let got = run.read(run.gu, older);
            check(Quantity::Gradient, "gu_old_s", &got, &row(gu_old, t));
        }
    }
    Ok(())
}

struct Run {
    rig: Rig,
    elements: usize,
    layer: NormLif,
    u: Buffer,
    s: Buffer,
    gs: Buffer,
    gu: Buffer,
}

impl Run {
    fn new(make: &mut Make<'_>, samples: usize, shape: Shape, reset: Reset) -> Self {
        let mut rig = Rig::new(make(), 0, 0);
        let plain = BufferSpec::plain(samples, shape, WINDOW);
        let spikes = BufferSpec {
            content: Content::Spikes,
            ..plain
        };
        let [z, u, gs, gu] = [plain; 4].map(|spec| rig.kernels.allocate(&spec));
        let s = rig.kernels.allocate(&spikes);
        let neuron = Neuron {
            tau_m: 2.0,
            v_th: 1.0,
            alpha: 1.0,
            reset,
            detach_reset: false,
        };
        let layer = NormLif {
            lif: Some(Lif {
                neuron,
                index: 0,
                u,
            }),
            out: Some(s),
            ..norm_lif(samples, shape, z)
        };
        let elements = plain.elements();
        Self {
            rig,
            elements,
            layer,
            u,
            s,
            gs,
            gu,
        }
    }

    fn forward(&mut self, t: usize, x: &[f32]) {
        let kernels = &mut self.rig.kernels;
        kernels.write(self.layer.z, t, x);
        kernels.norm_lif_forward(&self.layer, t, Phase::Train);
    }

    fn backward(&mut self, t: usize, gs: &[f32], gs_old: Option<&[f32]>) {
        let kernels = &mut self.rig.kernels;
        let mut window = Window { newest: t, len: 1 };
        kernels.write(self.gs, t, gs);
        if let Some(gs_old) = gs_old {
            window.len = WINDOW;
            kernels.write(self.gs, t - 1, gs_old);
        }
        let errors = NormLifErrors {
            out: Some(Errors {
                buffer: self.gs,
                steps: window,
            }),
            y: None,
            z: Some(to(self.gu)),
            before: None,
            after: None,
        };
        kernels.norm_lif_backward(&self.layer, window, &errors);
    }

    fn read(&mut self, buffer: Buffer, t: usize) -> Vec<f32> {
        self.rig.read_at(buffer, t, self.elements)
    }
}

/// All losses, on one batch of logits.
pub(super) fn loss(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
) -> Result<(), TraceError> {
    let logits = case.picture("logits")?;
    let (samples, classes) = (logits.samples, logits.shape.elements());
    let labels = case.labels(samples, classes)?;
    for kind in TracedLoss::ALL {
        let (value_key, gradient_key) = (
            format!("{}/value", kind.word()),
            format!("{}/grad", kind.word()),
        );
        let value = case.numbers(&value_key, &[1])?;
        let gradient = case.picture_of(&gradient_key, samples, logits.shape)?;
        let (ce, mse) = kind.weights();
        let layer = Loss {
            samples,
            classes,
            ce,
            mse,
        };
        let mut rig = Rig::new(make(), 0, 0);
        let y = rig.store(&logits, &logits.spec());
        let dy = rig.room(&gradient);
        rig.kernels.write_labels(&labels);
        rig.kernels.loss(&layer, 0, y, Some(dy));
        let got = rig.read(dy, &gradient);
        let label = case.full(&gradient_key);
        comparison.check(Quantity::Gradient, &label, 0, &got, &gradient.values);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the file has 32-bit floats"
        )]
        let got: Vec<f32> = rig
            .kernels
            .take_report()
            .loss
            .iter()
            .map(|&l| l as f32)
            .collect();
        let label = case.full(&value_key);
        comparison.check(Quantity::Loss, &label, 0, &got, value);
    }
    Ok(())
}
