//! How a network learns: algorithm, loss, optimiser.

use serde::Serialize;

use crate::named::named;
use crate::values::Values;

/// When to update, and how far back the error reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Algorithm {
    /// Algorithm 1: an update at every time step.
    Stol {
        /// Newest time steps that an error reaches: from 1 to the run's time steps.
        window: usize,
    },
    /// Backpropagation through time: one update per batch, through all time steps.
    Bptt,
}

named! {
    pub(crate) enum AlgorithmName {
        Stol = "stol",
        Bptt = "bptt",
    }
}

named! {
    /// Where the activations of earlier time steps come from.
    pub enum History {
        /// They are kept as they were when their time step ran.
        Saved = "saved",
    }
}

impl Algorithm {
    pub(crate) fn from_values(values: &Values, time_steps: usize) -> Self {
        match AlgorithmName::from_name(&values.text("algorithm.name")) {
            // A window that was written is checked against the time steps; the default gives way.
            AlgorithmName::Stol => Self::Stol {
                window: values.count("algorithm.window").min(time_steps),
            },
            AlgorithmName::Bptt => Self::Bptt,
        }
    }

    /// The name that configuration files use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stol { .. } => AlgorithmName::Stol.name(),
            Self::Bptt => AlgorithmName::Bptt.name(),
        }
    }
}

/// The loss of one time step, from cross-entropy CE and mean squared error MSE.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(tag = "kind")]
pub enum Loss {
    /// Eq. (11): (1 - lambda) CE + lambda MSE.
    #[serde(rename = "paper")]
    Paper {
        /// Weight of the squared error, in [0, 1].
        lambda: f64,
    },
    /// CE alone.
    #[serde(rename = "ce")]
    Ce,
    /// CE + lambda MSE.
    #[serde(rename = "ce+mse")]
    CeMse {
        /// Weight of the squared error, in [0, 1].
        lambda: f64,
    },
}

named! {
    pub(crate) enum LossKind {
        Paper = "paper",
        Ce = "ce",
        CeMse = "ce+mse",
    }
}

impl Loss {
    pub(crate) fn from_values(values: &Values) -> Self {
        match LossKind::from_name(&values.text("loss.kind")) {
            LossKind::Paper => Self::Paper {
                lambda: values.real("loss.lambda"),
            },
            LossKind::Ce => Self::Ce,
            LossKind::CeMse => Self::CeMse {
                lambda: values.real("loss.lambda"),
            },
        }
    }

    /// The name that configuration files use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Paper { .. } => LossKind::Paper.name(),
            Self::Ce => LossKind::Ce.name(),
            Self::CeMse { .. } => LossKind::CeMse.name(),
        }
    }
}

/// The rule of an update.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Optimiser {
    /// Gradient descent with momentum: v <- momentum v + g + `weight_decay` p, p <- p - lr v.
    Sgd {
        /// Learning rate before the schedule, at least 0.
        lr: f64,
        /// Share of v that is kept, in [0, 1).
        momentum: f64,
        /// Weight decay, at least 0.
        weight_decay: f64,
    },
    /// Adam with decoupled weight decay (Loshchilov, Hutter, 2019,
    /// <https://arxiv.org/abs/1711.05101>).
    AdamW {
        /// Learning rate before the schedule, at least 0.
        lr: f64,
        /// Share of the gradient's running mean that is kept, in [0, 1).
        beta1: f64,
        /// Share of the squared gradient's running mean that is kept, in [0, 1).
        beta2: f64,
        /// Added to the root of the squared gradient's mean, more than 0.
        epsilon: f64,
        /// Weight decay, at least 0.
        weight_decay: f64,
    },
}

named! {
    pub(crate) enum OptimiserName {
        Sgd = "sgd",
        AdamW = "adamw",
    }
}

impl Optimiser {
    pub(crate) fn from_values(values: &Values) -> Self {
        let lr = values.real("optimiser.lr");
        let weight_decay = values.real("optimiser.weight_decay");
        match OptimiserName::from_name(&values.text("optimiser.name")) {
            OptimiserName::Sgd => Self::Sgd {
                lr,
                momentum: values.real("optimiser.momentum"),
                weight_decay,
            },
            OptimiserName::AdamW => Self::AdamW {
                lr,
                beta1: values.real("optimiser.beta1"),
                beta2: values.real("optimiser.beta2"),
                epsilon: values.real("optimiser.epsilon"),
                weight_decay,
            },
        }
    }

    /// The learning rate before the schedule.
    pub const fn lr(self) -> f64 {
        match self {
            Self::Sgd { lr, .. } | Self::AdamW { lr, .. } => lr,
        }
    }

    /// The name that configuration files use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sgd { .. } => OptimiserName::Sgd.name(),
            Self::AdamW { .. } => OptimiserName::AdamW.name(),
        }
    }
}
