//! The case on a back end.

use synfire::kernel::{
    Arena, Buffer, Errors, ErrorsOut, Lif, Norm, NormLif, NormLifErrors, Norms, Phase, Span,
};
use synfire::shape::{Content, Shape};

use super::{EPS, MOMENTUM, NormLifCase, NormLifData};
use crate::outcome::Tolerance;
use crate::rig::{Case, Rig, at};

impl Case for NormLifCase {
    fn name(&self) -> String {
        format!("{self:?}")
    }

    fn run(&self, rig: &mut Rig) {
        let data = self.data();
        let layer = self.layer(rig, &data);
        for t in 0..self.num_steps {
            self.forward(rig, &layer, &data, t);
        }
        if let Some(norm) = &layer.norm {
            for (name, span) in [
                ("running mean", norm.running_mean),
                ("running variance", norm.running_var),
            ] {
                rig.note_arena(name, Tolerance::Forward, Arena::Statistics, span);
            }
        }
        rig.note_report("report");
        if self.phase == Phase::Train {
            self.backward(rig, &layer, &data);
        }
    }
}

impl NormLifCase {
    fn layer(&self, rig: &mut Rig, data: &NormLifData) -> NormLif {
        let norm = self.norm.then(|| self.norm(rig));
        rig.allocate_arenas();
        if let Some(norm) = &norm {
            for (arena, span, values) in [
                (Arena::Weights, norm.gamma, &data.gamma),
                (Arena::Weights, norm.beta, &data.beta),
                (Arena::Statistics, norm.running_mean, &data.running_mean),
                (Arena::Statistics, norm.running_var, &data.running_var),
            ] {
                rig.kernels.write_arena(arena, span.offset, values);
            }
        }
        let plain =
            |rig: &mut Rig, content, slots| rig.plain(self.samples, self.shape, content, slots);
        let lif = self.neuron.map(|neuron| Lif {
            neuron,
            index: 1,
            u: plain(rig, Content::Real, self.window),
        });
        let out = self.neuron.map(|_| {
            let content = self.after.unwrap_or(Content::Spikes);
            let content = match content {
                Content::Spikes if self.after.is_some() => Content::Counts,
                Content::Spikes | Content::Counts | Content::Real => content,
            };
            // Read by convolutions, by others, or by both.
            let slots = [[self.window, 0], [0, 1], [self.window, 1]][self.window % 3];
            rig.operand(self.samples, self.shape, content, slots)
        });
        NormLif {
            samples: self.samples,
            shape: self.shape,
            norm,
            lif,
            z: {
                let slots = if self.norm { self.window } else { 1 };
                rig.written(self.samples, self.shape, slots, self.z_of_conv)
            },
            before: self.before.then(|| plain(rig, Content::Real, 1)),
            y: self.store_y.then(|| plain(rig, Content::Real, 1)),
            after: self.after.map(|content| plain(rig, content, 1)),
            out,
        }
    }

    fn norm(&self, rig: &mut Rig) -> Norm {
        let channels = self.shape.channels;
        let moments = Shape::new(1, 2, channels);
        Norm {
            gamma: rig.parameter(channels),
            beta: rig.parameter(channels),
            running_mean: rig.statistic(channels),
            running_var: rig.statistic(channels),
            eps: EPS,
            momentum: MOMENTUM,
            moments: rig.plain(1, moments, Content::Real, self.window),
            across: self.across,
            sums: (self.across == Norms::Synchronised)
                .then(|| rig.plain(1, moments, Content::Real, self.window)),
        }
    }

    fn forward(&self, rig: &mut Rig, layer: &NormLif, data: &NormLifData, t: usize) {
        let elements = self.elements();
        rig.kernels.write(layer.z, t, &data.z[t]);
        for (buffer, series) in [(layer.before, &data.before), (layer.after, &data.after)] {
            if let Some(buffer) = buffer {
                rig.kernels.write(buffer, t, &series[t]);
            }
        }
        let trained = layer.norm.filter(|_| self.phase == Phase::Train);
        if let Some(norm) = &trained
            && self.across == Norms::Synchronised
        {
            rig.kernels.norm_moments(layer, t);
            self.exchange_moments(rig, norm, t);
        }
        rig.kernels.norm_lif_forward(layer, t, self.phase);
        if let Some(norm) = &trained
            && self.across != Norms::Own
        {
            if self.across == Norms::Pooled {
                self.exchange_moments(rig, norm, t);
            }
            // As many values again on another rank.
            let ranks = if self.others { 2 } else { 1 };
            let count = ranks * self.samples * self.shape.pixels();
            rig.kernels.apply_moments(norm, count as u64);
        }
        let mut note = |name, tolerance, buffer: Option<Buffer>, len| {
            if let Some(buffer) = buffer {
                rig.note(name, tolerance, buffer, t, len);
            }
        };
        note("y", Tolerance::Forward, layer.y, elements);
        note(
            "u",
            Tolerance::Forward,
            layer.lif.map(|lif| lif.u),
            elements,
        );
        note("out", Tolerance::Forward, layer.out, elements);
        if let (Some(norm), Phase::Train) = (&layer.norm, self.phase) {
            let channels = self.shape.channels;
            note(
                "moments",
                Tolerance::Forward,
                Some(norm.moments),
                2 * channels,
            );
        }
    }

    /// Notes the moments of this rank and, if there are others, puts in their place the mean with
    /// those of a rank whose values are spread about another mean.
    fn exchange_moments(&self, rig: &mut Rig, norm: &Norm, t: usize) {
        let spans = [norm.running_mean, norm.running_var];
        for (name, span) in ["d", "q"].into_iter().zip(spans) {
            rig.note_arena(&at(name, t), Tolerance::Forward, Arena::Moments, span);
        }
        if !self.others {
            return;
        }
        let [mut d, mut q] = spans.map(|span| vec![0.0; span.len]);
        rig.kernels
            .read_arena(Arena::Moments, spans[0].offset, &mut d);
        rig.kernels
            .read_arena(Arena::Moments, spans[1].offset, &mut q);
        for (channel, (d, q)) in d.iter_mut().zip(&mut q).enumerate() {
            let other = 0.3 - channel as f32 * 0.01;
            *d = 0.75 * *d + 0.25 * other;
            *q = 0.75 * *q + 0.25 * (3.0 + other * other);
        }
        rig.kernels.write_arena(Arena::Moments, spans[0].offset, &d);
        rig.kernels.write_arena(Arena::Moments, spans[1].offset, &q);
    }

    /// The same for the sums of the backward.
    fn exchange_sums(&self, rig: &mut Rig, sums: Buffer) {
        let len = 2 * self.shape.channels;
        for t in self.handed_down().newest_first() {
            rig.note("sums", Tolerance::Gradient, sums, t, len);
            if self.others {
                let mut values = vec![0.0; len];
                rig.kernels.read(sums, t, &mut values);
                let mixed = values.iter().enumerate();
                let mixed = mixed.map(|(i, sum)| 0.75 * sum + 0.25 * (i as f32 - 2.0));
                let mixed: Vec<f32> = mixed.collect();
                rig.kernels.write(sums, t, &mixed);
            }
        }
    }

    fn backward(&self, rig: &mut Rig, layer: &NormLif, data: &NormLifData) {
        let (samples, shape, window) = (self.samples, self.shape, self.steps());
        let errors = |rig: &mut Rig, arrived: Option<usize>, values, of_conv| {
            arrived.map(|len| {
                let buffer = rig.written(samples, shape, window.len, of_conv);
                rig.errors_in(buffer, window, self.newest(len), values)
            })
        };
        let out: Option<Errors> = errors(rig, self.out_arrived, &data.g_out, self.out_of_conv);
        let y = errors(rig, self.y_arrived, &data.g_y, false);
        let place = |rig: &mut Rig, wanted: bool, of_conv| {
            wanted.then(|| rig.errors_out_of(samples, shape, window, self.accumulate, of_conv))
        };
        let errors = NormLifErrors {
            out,
            y,
            z: place(rig, self.want_z, self.z_of_conv),
            before: place(rig, self.before, false),
            after: place(rig, self.after.is_some() && out.is_some(), false),
        };
        rig.kernels.norm_lif_backward(layer, window, &errors);
        let sums = layer.norm.and_then(|norm| norm.sums);
        if let (Some(sums), Some(dz)) = (sums, errors.z) {
            self.exchange_sums(rig, sums);
            rig.kernels.norm_backward(layer, self.handed_down(), dz);
        }

        let elements = self.elements();
        let mut note = |name, to: Option<ErrorsOut>, steps| {
            if let Some(to) = to {
                rig.note_errors(name, to, steps, elements);
            }
        };
        note("dz", errors.z, self.handed_down());
        note("dbefore", errors.before, self.handed_down());
        if let Some(out) = out {
            note("dafter", errors.after, out.steps);
        }
        if let Some(norm) = &layer.norm {
            let mut note = |name, span: Span| {
                rig.note_arena(name, Tolerance::Gradient, Arena::Gradients, span);
            };
            note("dgamma", norm.gamma);
            note("dbeta", norm.beta);
        }
    }
}
