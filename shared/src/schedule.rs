//! The learning rate over the epochs.

use std::f64::consts::PI;

use serde::Serialize;

use crate::ids::Epoch;
use crate::named::named;
use crate::values::Values;

/// The learning rate as a function of the epoch.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Schedule {
    /// The form of the curve.
    #[serde(flatten)]
    pub kind: ScheduleKind,
    /// Epochs of linear warm-up: epoch e < `warmup_epochs` is scaled by (e + 1) / `warmup_epochs`.
    pub warmup_epochs: u32,
}

/// The form of the learning rate's curve, but for the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ScheduleKind {
    /// The same in every epoch.
    Constant,
    /// Half a cosine wave from 1 at epoch 0 to 0 at epoch `t_max`.
    Cosine {
        /// The epoch at which the rate is 0; absent: the number of epochs of the run.
        t_max: Option<u32>,
    },
}

impl ScheduleKind {
    /// The name that configuration files use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant => ScheduleName::Constant.name(),
            Self::Cosine { .. } => ScheduleName::Cosine.name(),
        }
    }
}

impl Schedule {
    /// The learning rate of an epoch in a run of so many epochs.
    ///
    /// The cosine is used as written: past `t_max` the rate rises again. The authors' runs of 300
    /// epochs have `t_max` 200 and end near half their first rate.
    pub fn lr(&self, base_lr: f64, epoch: Epoch, epochs: u32) -> f64 {
        let e = f64::from(epoch.0);
        let curve = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine { t_max } => {
                let t_max = f64::from(t_max.unwrap_or(epochs));
                f64::midpoint(1.0, (PI * e / t_max).cos())
            }
        };
        let warmup = if epoch.0 < self.warmup_epochs {
            (e + 1.0) / f64::from(self.warmup_epochs)
        } else {
            1.0
        };
        base_lr * curve * warmup
    }
}

named! {
    pub(crate) enum ScheduleName {
        Constant = "constant",
        Cosine = "cosine",
    }
}

impl Schedule {
    pub(crate) fn from_values(values: &Values) -> Self {
        Self {
            kind: match ScheduleName::from_name(&values.text("schedule.kind")) {
                ScheduleName::Constant => ScheduleKind::Constant,
                ScheduleName::Cosine => ScheduleKind::Cosine {
                    t_max: values.optional_small("schedule.t_max"),
                },
            },
            warmup_epochs: values.small("schedule.warmup_epochs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values below are exact fractions of the base rate or cosines known in closed form.
    fn assert_near(value: f64, expected: f64) {
        assert!(
            (value - expected).abs() < 1e-15,
            "{value} is not {expected}"
        );
    }

    #[test]
    fn cosine_falls_from_the_base_rate_to_zero_at_the_last_epoch() {
        let kind = ScheduleKind::Cosine { t_max: None };
        let schedule = Schedule {
            kind,
            warmup_epochs: 0,
        };
        assert_near(schedule.lr(0.05, Epoch(0), 200), 0.05);
        assert_near(
            schedule.lr(0.05, Epoch(50), 200),
            0.025 * (1.0 + 0.5_f64.sqrt()),
        );
        assert_near(schedule.lr(0.05, Epoch(100), 200), 0.025);
        assert_near(schedule.lr(0.05, Epoch(200), 200), 0.0);
    }

    #[test]
    fn past_t_max_the_rate_rises_to_half_as_in_the_released_runs() {
        let kind = ScheduleKind::Cosine { t_max: Some(200) };
        let schedule = Schedule {
            kind,
            warmup_epochs: 0,
        };
        assert_near(schedule.lr(0.02, Epoch(200), 300), 0.0);
        assert_near(schedule.lr(0.02, Epoch(300), 300), 0.01);
    }

    #[test]
    fn warm_up_reaches_the_full_rate_in_its_last_epoch() {
        let schedule = Schedule {
            kind: ScheduleKind::Constant,
            warmup_epochs: 4,
        };
        let rates = [0, 1, 2, 3, 4, 9].map(|epoch| schedule.lr(0.8, Epoch(epoch), 10));
        for (rate, expected) in rates.into_iter().zip([0.2, 0.4, 0.6, 0.8, 0.8, 0.8]) {
            assert_near(rate, expected);
        }
    }

    #[test]
    fn warm_up_scales_the_cosine_of_its_epoch() {
        let kind = ScheduleKind::Cosine { t_max: Some(4) };
        let schedule = Schedule {
            kind,
            warmup_epochs: 3,
        };
        assert_near(schedule.lr(0.3, Epoch(1), 8), 0.1 * (1.0 + 0.5_f64.sqrt()));
    }
}
