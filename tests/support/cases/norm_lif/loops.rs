//! The forward in plain f64 loops.

use synfire::kernel::{Phase, Reset};

use super::{EPS, MOMENTUM, NormLifCase, NormLifData};
use crate::outcome::{Outcome, Tolerance};
use crate::rig::at;

/// The running statistics and what each time step gives.
struct Loops {
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
    steps: Vec<Step>,
}

struct Step {
    /// Means, then 1 / standard deviations.
    moments: Vec<f64>,
    y: Vec<f64>,
    u: Vec<f64>,
    s: Vec<f64>,
    out: Vec<f64>,
}

impl NormLifCase {
    /// What the loops say.
    pub fn loops(&self) -> Outcome {
        let mut outcome = Outcome::default();
        let loops = self.simulate(&self.data());
        let mut note = |name: String, values: &[f64]| {
            outcome.note(name, Tolerance::Forward, narrow(values));
        };
        for (t, step) in loops.steps.iter().enumerate() {
            if self.store_y {
                note(at("y", t), &step.y);
            }
            if self.neuron.is_some() {
                note(at("u", t), &step.u);
                note(at("out", t), &step.out);
            }
            if self.norm && self.phase == Phase::Train {
                note(at("moments", t), &step.moments);
            }
        }
        if self.norm {
            note("running mean".into(), &loops.running_mean);
            note("running variance".into(), &loops.running_var);
        }
        if self.neuron.is_some() {
            let fired = loops.steps.iter().flat_map(|step| &step.s);
            let spikes = [0.0, fired.sum::<f64>()];
            let neurons = [0.0, (self.num_steps * self.elements()) as f64];
            for (name, counts) in [("spikes", spikes), ("neurons", neurons)] {
                outcome.note(format!("report {name}"), Tolerance::Exact, narrow(&counts));
            }
        }
        outcome
    }

    /// How close any membrane potential comes to the threshold.
    pub(super) fn distance_to_threshold(&self) -> f64 {
        let Some(neuron) = self.neuron else {
            return f64::INFINITY;
        };
        let loops = self.simulate(&self.data());
        let us = loops.steps.iter().flat_map(|step| &step.u);
        let distances = us.map(|u| (u - f64::from(neuron.v_th)).abs());
        distances.fold(f64::INFINITY, f64::min)
    }

    fn simulate(&self, data: &NormLifData) -> Loops {
        let mut loops = Loops {
            running_mean: wide(&data.running_mean),
            running_var: wide(&data.running_var),
            steps: Vec::new(),
        };
        let mut state = vec![(0.0, 0.0); self.elements()];
        for t in 0..self.num_steps {
            let z = wide(&data.z[t]);
            let moments = self.moments(&z, &mut loops);
            let channels = self.shape.channels;
            let mut step = Step {
                moments,
                y: Vec::new(),
                u: Vec::new(),
                s: Vec::new(),
                out: Vec::new(),
            };
            for (i, z) in z.iter().enumerate() {
                let c = i % channels;
                let mut y = *z;
                if self.norm {
                    let (mean, inv) = (step.moments[c], step.moments[channels + c]);
                    y = f64::from(data.gamma[c]) * (y - mean) * inv + f64::from(data.beta[c]);
                }
                if self.before {
                    y += f64::from(data.before[t][i]);
                }
                let (u, s) = self.neuron_step(state[i], y);
                state[i] = (u, s);
                let after = self.after.map_or(0.0, |_| f64::from(data.after[t][i]));
                step.y.push(y);
                step.u.push(u);
                step.s.push(s);
                step.out.push(s + after);
            }
            loops.steps.push(step);
        }
        loops
    }

    fn neuron_step(&self, (u, s): (f64, f64), x: f64) -> (f64, f64) {
        let Some(neuron) = self.neuron else {
            return (0.0, 0.0);
        };
        let v_th = f64::from(neuron.v_th);
        let left = match neuron.reset {
            Reset::Hard => u * (1.0 - s),
            Reset::Soft => u - v_th * s,
            Reset::None => u,
        };
        let u = left / f64::from(neuron.tau_m) + x;
        (u, if u >= v_th { 1.0 } else { 0.0 })
    }

    /// Moments of a time step; in training, running statistics move.
    fn moments(&self, z: &[f64], loops: &mut Loops) -> Vec<f64> {
        let channels = self.shape.channels;
        if !self.norm {
            return Vec::new();
        }
        let n = (z.len() / channels) as f64;
        let (eps, momentum) = (f64::from(EPS), f64::from(MOMENTUM));
        let (mut means, mut invs) = (Vec::new(), Vec::new());
        for c in 0..channels {
            let of_channel = || z.iter().skip(c).step_by(channels);
            let (running_mean, running_var) =
                (&mut loops.running_mean[c], &mut loops.running_var[c]);
            let (mean, variance) = match self.phase {
                Phase::Evaluate => (*running_mean, *running_var),
                Phase::Train => {
                    let mean = of_channel().sum::<f64>() / n;
                    let square = of_channel().map(|z| (z - mean) * (z - mean)).sum::<f64>();
                    *running_mean += momentum * (mean - *running_mean);
                    let unbiased = square / (n - 1.0).max(1.0);
                    *running_var += momentum * (unbiased - *running_var);
                    (mean, square / n)
                }
            };
            means.push(mean);
            invs.push(1.0 / (variance + eps).sqrt());
        }
        means.append(&mut invs);
        means
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "compared as f32")]
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}
