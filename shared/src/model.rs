//! The network and its neurons.

use serde::Serialize;

use crate::named::named;
use crate::values::Values;

/// A network and its width.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Model {
    /// The network.
    #[serde(flatten)]
    pub network: Network,
    /// Factor on every layer's number of channels, more than 0 and at most 4.
    pub width: f64,
}

/// A network, with what only it has.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Network {
    /// Three convolutions with batch norm, and a readout.
    Small,
    /// A residual network that adds real-valued streams.
    MsResnet {
        /// How many layers.
        depth: Depth,
        /// The first layers.
        stem: Stem,
        /// What follows each convolution.
        norm: Norm,
    },
    /// A residual network that joins spikes.
    SewResnet {
        /// How many layers.
        depth: Depth,
        /// How a branch meets its shortcut.
        residual: Residual,
        /// Whether the last normalisation of each block starts with a gain of 0.
        zero_init_residual: bool,
    },
    /// Eight convolutions with average pools between.
    Vgg11 {
        /// Fraction of the readout's inputs set to 0 while training, in [0, 1).
        dropout: f64,
    },
}

/// How many layers a residual network has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum Depth {
    /// Eighteen: 2, 2, 2 and 2 blocks in its four stages.
    #[serde(rename = "18")]
    Eighteen,
    /// Thirty-four: 3, 4, 6 and 3 blocks in its four stages.
    #[serde(rename = "34")]
    ThirtyFour,
}

named! {
    pub(crate) enum ModelName {
        Small = "small",
        MsResnet18 = "ms_resnet18",
        MsResnet34 = "ms_resnet34",
        SewResnet18 = "sew_resnet18",
        SewResnet34 = "sew_resnet34",
        Vgg11 = "vgg11",
    }
}

named! {
    /// The first layers of an MS-ResNet.
    pub enum Stem {
        /// One 3x3 convolution that keeps the image's size.
        Cifar = "cifar",
        /// A 7x7 convolution and a max pool that divide the image's sides by 4.
        Imagenet = "imagenet",
    }
}

named! {
    /// What follows each convolution of an MS-ResNet.
    pub enum Norm {
        /// Batch norm, with the statistics of one time step.
        Batch = "batch",
        /// Nothing.
        None = "none",
    }
}

named! {
    /// How a SEW block's branch a meets its shortcut b.
    pub enum Residual {
        /// a + b.
        Add = "add",
        /// a b.
        And = "and",
        /// (1 - a) b.
        Iand = "iand",
    }
}

impl Network {
    /// The name that configuration files use.
    pub const fn name(self) -> &'static str {
        let name = match self {
            Self::Small => ModelName::Small,
            Self::MsResnet {
                depth: Depth::Eighteen,
                ..
            } => ModelName::MsResnet18,
            Self::MsResnet {
                depth: Depth::ThirtyFour,
                ..
            } => ModelName::MsResnet34,
            Self::SewResnet {
                depth: Depth::Eighteen,
                ..
            } => ModelName::SewResnet18,
            Self::SewResnet {
                depth: Depth::ThirtyFour,
                ..
            } => ModelName::SewResnet34,
            Self::Vgg11 { .. } => ModelName::Vgg11,
        };
        name.name()
    }
}

impl Model {
    pub(crate) fn from_values(values: &Values) -> Self {
        let ms_resnet = |depth| Network::MsResnet {
            depth,
            stem: Stem::from_name(&values.text("model.stem")),
            norm: Norm::from_name(&values.text("model.norm")),
        };
        let sew_resnet = |depth| Network::SewResnet {
            depth,
            residual: Residual::from_name(&values.text("model.residual")),
            zero_init_residual: values.bool("model.zero_init_residual"),
        };
        let network = match ModelName::from_name(&values.text("model.name")) {
            ModelName::Small => Network::Small,
            ModelName::MsResnet18 => ms_resnet(Depth::Eighteen),
            ModelName::MsResnet34 => ms_resnet(Depth::ThirtyFour),
            ModelName::SewResnet18 => sew_resnet(Depth::Eighteen),
            ModelName::SewResnet34 => sew_resnet(Depth::ThirtyFour),
            ModelName::Vgg11 => Network::Vgg11 {
                dropout: values.real("model.dropout"),
            },
        };
        Self {
            network,
            width: values.real("model.width"),
        }
    }
}

/// The leaky integrate-and-fire neuron of Eq. (2), the same in every layer.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Neuron {
    /// Membrane time constant: the potential keeps 1/`tau_m` from one time step to the next.
    ///
    /// # Units
    ///
    /// Time steps, at least 1.
    pub tau_m: f64,
    /// Threshold `V_th`, more than 0.
    pub v_th: f64,
    /// Height of the surrogate gradient of Eq. (4), and 1 / half its width; more than 0.
    pub alpha: f64,
    /// What a spike does to the potential.
    pub reset: Reset,
    /// Whether the path through the reset is left out of the gradient; false without a reset.
    pub detach_reset: bool,
}

named! {
    /// What a spike does to the potential.
    pub enum Reset {
        /// Sets it to 0.
        Hard = "hard",
        /// Subtracts `V_th`.
        Soft = "soft",
        /// Nothing.
        None = "none",
    }
}

/// How batch norms take their statistics on several ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct BatchNorm {
    /// Whether they are those of all ranks' samples, not of each rank's share.
    pub sync: bool,
}

impl BatchNorm {
    pub(crate) fn from_values(values: &Values) -> Self {
        Self {
            sync: values.bool("batch_norm.sync"),
        }
    }
}

impl Neuron {
    pub(crate) fn from_values(values: &Values) -> Self {
        Self {
            tau_m: values.real("neuron.tau_m"),
            v_th: values.real("neuron.v_th"),
            alpha: values.real("neuron.alpha"),
            reset: Reset::from_name(&values.text("neuron.reset")),
            detach_reset: values.bool("neuron.detach_reset"),
        }
    }
}
