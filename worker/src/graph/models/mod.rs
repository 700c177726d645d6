//! The networks by name (ALGORITHMS, section 3). Nothing here computes.
//!
//! # Layout
//!
//! - this file: names, options, and [`build`].
//! - `builder`: what the networks share: scaled channels, padding that keeps sides, blocks, head.
//! - `small`, `vgg`, `ms_resnet`, `sew_resnet`: one family each.

mod builder;
mod ms_resnet;
mod sew_resnet;
mod small;
mod vgg;

use std::fmt;
use std::str::FromStr;

use super::{Graph, GraphError, MAX_ELEMENTS};
use crate::shape::{Join, Shape};
use builder::Builder;

/// A network of which only the sizes are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelName {
    /// Three convolutions for trials: a minute of a laptop shows whether something learns.
    Small,
    /// MS-ResNet with 18 convolutions on its longest path: Hu, Deng, Wu, Yao, Li, "Advancing
    /// Spiking Neural Networks towards Deep Residual Learning", 2021,
    /// <https://arxiv.org/abs/2112.08954>. The residual network of the paper's CIFAR rows.
    MsResnet18,
    /// MS-ResNet with 34.
    MsResnet34,
    /// SEW-ResNet with basic blocks 2-2-2-2: Fang, Yu, Chen, Huang, Masquelier, Tian, "Deep
    /// Residual Learning in Spiking Neural Networks", 2021, <https://arxiv.org/abs/2102.04159>.
    SewResnet18,
    /// SEW-ResNet with basic blocks 3-4-6-3.
    SewResnet34,
    /// VGG-11 for event cameras, average pools in place of max pools; the plan of layers is
    /// Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    /// 2014, <https://arxiv.org/abs/1409.1556>, configuration A.
    Vgg11,
}

impl ModelName {
    /// Every model, in the order of tables.
    pub const ALL: [Self; 6] = [
        Self::Small,
        Self::MsResnet18,
        Self::MsResnet34,
        Self::SewResnet18,
        Self::SewResnet34,
        Self::Vgg11,
    ];

    /// The word for it in run files and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::MsResnet18 => "ms_resnet18",
            Self::MsResnet34 => "ms_resnet34",
            Self::SewResnet18 => "sew_resnet18",
            Self::SewResnet34 => "sew_resnet34",
            Self::Vgg11 => "vgg11",
        }
    }

    fn is_ms(self) -> bool {
        matches!(self, Self::MsResnet18 | Self::MsResnet34)
    }

    fn is_sew(self) -> bool {
        matches!(self, Self::SewResnet18 | Self::SewResnet34)
    }

    /// The least side of a picture of which something is left after the average pools. Strided
    /// convolutions and padded max pools round up, so that a residual network takes any side.
    fn least_side(self) -> usize {
        match self {
            Self::Small => 1 << small::NUM_POOLS,
            Self::Vgg11 => 1 << vgg::NUM_POOLS,
            Self::MsResnet18 | Self::MsResnet34 | Self::SewResnet18 | Self::SewResnet34 => 1,
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for ModelName {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let named = Self::ALL.into_iter().find(|name| name.as_str() == text);
        named.ok_or_else(|| ModelError::UnknownName(text.into()))
    }
}

/// What a residual network begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stem {
    /// A 3x3 convolution that keeps the sides: pictures of about 32x32.
    Cifar,
    /// A 7x7 convolution with stride 2 and a max pool that halves again: about 224x224.
    Imagenet,
}

/// A network to build. Options that a model does not have must be as [`ModelOptions::new`] set
/// them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOptions {
    /// Which network.
    pub name: ModelName,
    /// The shape of one sample at one time step.
    pub input: Shape,
    /// Logits.
    pub classes: usize,
    /// Multiplies every number of channels, which is rounded and at least 1.
    pub width: f64,
    /// The stem (MS-ResNet only). [`Stem::Imagenet`] has a bias before its batch norm.
    pub stem: Stem,
    /// Whether batch norms stand behind the convolutions (MS-ResNet only). Without them, as in
    /// Figure 3, the convolutions get no bias instead.
    pub batch_norm: bool,
    /// How a block's branch meets its shortcut (SEW-ResNet only).
    pub join: Join,
    /// Share of the readout's inputs dropped in training (VGG only); 0 leaves the node out.
    pub dropout: f32,
    /// Whether each block starts as the identity (SEW-ResNet only). The STOL authors start without.
    pub zero_init_residual: bool,
}

impl ModelOptions {
    /// The model for the data that it is mostly trained on, at full width and without dropout:
    /// 3x32x32 and 10 classes, SEW-ResNet 3x224x224 and 1000, VGG-11 2x48x48 and 10.
    pub fn new(name: ModelName) -> Self {
        let (input, classes, stem) = match name {
            ModelName::Small | ModelName::MsResnet18 | ModelName::MsResnet34 => {
                (Shape::new(32, 32, 3), 10, Stem::Cifar)
            }
            ModelName::SewResnet18 | ModelName::SewResnet34 => {
                (Shape::new(224, 224, 3), 1000, Stem::Imagenet)
            }
            ModelName::Vgg11 => (Shape::new(48, 48, 2), 10, Stem::Cifar),
        };
        Self {
            name,
            input,
            classes,
            width: 1.0,
            stem,
            batch_norm: true,
            join: Join::Add,
            dropout: 0.0,
            zero_init_residual: false,
        }
    }

    fn check(&self) -> Result<(), ModelError> {
        let (model, input) = (self.name, self.input);
        let usual = Self::new(model);
        let (ms, sew, vgg) = (model.is_ms(), model.is_sew(), model == ModelName::Vgg11);
        for (option, applies, changed) in [
            ("stem", ms, self.stem != usual.stem),
            ("batch_norm", ms, self.batch_norm != usual.batch_norm),
            ("join", sew, self.join != usual.join),
            ("zero_init_residual", sew, self.zero_init_residual),
            // Not a comparison with 0: NaN is a change, too.
            ("dropout", vgg, self.dropout.abs().to_bits() != 0),
        ] {
            if changed && !applies {
                return Err(ModelError::Inapplicable { model, option });
            }
        }
        if !(self.width.is_finite() && self.width > 0.0) {
            return Err(ModelError::Width(self.width));
        }
        if self.classes == 0 {
            return Err(ModelError::NoClasses);
        }
        let least = model.least_side();
        if input.height < least || input.width < least || input.channels == 0 {
            return Err(ModelError::InputTooSmall {
                model,
                input,
                least,
            });
        }
        let pixels = input.height.checked_mul(input.width);
        match pixels.and_then(|p| p.checked_mul(input.channels)) {
            Some(elements) if elements <= MAX_ELEMENTS => Ok(()),
            _ => Err(ModelError::InputTooLarge(input)),
        }
    }
}

/// Why a network cannot be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// No model has this name.
    #[error("there is no model {0:?}: choose one of {known}", known = known_names())]
    UnknownName(String),
    /// An option that the model does not have differs from its default.
    #[error("model {model} has no option {option}: leave it out")]
    Inapplicable {
        /// The model.
        model: ModelName,
        /// The option.
        option: &'static str,
    },
    /// The multiplier of channels is no positive number.
    #[error("width is {0}: it multiplies the number of channels and must be more than 0")]
    Width(f64),
    /// Nothing to tell apart.
    #[error("the number of classes is 0: it must be at least 1")]
    NoClasses,
    /// Nothing of the input would be left.
    #[error(
        "input {input} is too small for model {model}: \
         it needs sides of at least {least}, and a channel"
    )]
    InputTooSmall {
        /// The model.
        model: ModelName,
        /// The shape of a sample.
        input: Shape,
        /// The least side.
        least: usize,
    },
    /// The input has more elements than any value may have.
    #[error("input {0} is too large: a sample has at most {MAX_ELEMENTS} numbers")]
    InputTooLarge(Shape),
    /// The graph was refused, for size or the dropout rate.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// The graph of a network, finished. Twins (neurons of MS-ResNet's shortcuts that repeat the first
/// of their block) are nodes of their own here; merging them is a rewrite.
///
/// Names are those of the recorded traces: `layer2.0.down.conv`, `head.pool`, `fc`.
///
/// # Errors
/// If an option does not apply, is out of range, or the input does not fit the network.
pub fn build(options: &ModelOptions) -> Result<Graph, ModelError> {
    options.check()?;
    let mut net = Builder::new(options);
    let features = match options.name {
        ModelName::Small => small::build(&mut net),
        ModelName::MsResnet18 => ms_resnet::build(&mut net, options.stem, [2, 2, 2, 2]),
        ModelName::MsResnet34 => ms_resnet::build(&mut net, options.stem, [3, 4, 6, 3]),
        ModelName::SewResnet18 => sew_resnet::build(&mut net, options.join, [2, 2, 2, 2]),
        ModelName::SewResnet34 => sew_resnet::build(&mut net, options.join, [3, 4, 6, 3]),
        ModelName::Vgg11 => vgg::build(&mut net, options.dropout),
    }?;
    Ok(net.readout(features, options.classes)?)
}

fn known_names() -> String {
    ModelName::ALL.map(ModelName::as_str).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Op, Parameter};
    use crate::shape::Content;

    /// A row of the table of ALGORITHMS, section 3: neurons and MMAC are those of one image at one
    /// time step.
    struct Row {
        options: ModelOptions,
        parameters: usize,
        convs: usize,
        neuron_layers: usize,
        mmac: f64,
        neurons: usize,
    }

    fn with(name: ModelName, change: impl FnOnce(&mut ModelOptions)) -> ModelOptions {
        let mut options = ModelOptions::new(name);
        change(&mut options);
        options
    }

    fn imagenet_ms(name: ModelName) -> ModelOptions {
        with(name, |o| {
            o.stem = Stem::Imagenet;
            o.input = Shape::new(224, 224, 3);
            o.classes = 1000;
        })
    }

    fn gesture_vgg() -> ModelOptions {
        with(ModelName::Vgg11, |o| {
            o.input = Shape::new(128, 128, 2);
            o.classes = 11;
        })
    }

    #[rustfmt::skip]
    fn table() -> Vec<Row> {
        use ModelName::{MsResnet18, MsResnet34, SewResnet18, SewResnet34, Small, Vgg11};
        let row = |options, parameters, convs, neuron_layers, mmac, neurons| Row {
            options, parameters, convs, neuron_layers, mmac, neurons,
        };
        vec![
            row(ModelOptions::new(MsResnet18), 11_173_962, 20, 20, 555.4, 671_744),
            row(with(MsResnet18, |o| o.classes = 100), 11_220_132, 20, 20, 555.5, 671_744),
            row(with(MsResnet18, |o| o.batch_norm = false), 11_164_362, 20, 20, 555.4, 671_744),
            row(ModelOptions::new(MsResnet34), 21_282_122, 36, 36, 1159.4, 1_081_344),
            row(with(MsResnet34, |o| o.classes = 100), 21_328_292, 36, 36, 1159.4, 1_081_344),
            row(imagenet_ms(MsResnet18), 11_689_576, 20, 20, 1814.1, 2_057_216),
            row(imagenet_ms(MsResnet34), 21_797_736, 36, 36, 3663.8, 3_311_616),
            row(ModelOptions::new(SewResnet18), 11_689_512, 20, 20, 1814.1, 2_483_712),
            row(ModelOptions::new(SewResnet34), 21_797_672, 36, 36, 3663.8, 3_738_112),
            row(ModelOptions::new(Vgg11), 9_476_298, 8, 8, 342.6, 340_992),
            row(gesture_vgg(), 9_501_387, 8, 8, 2435.1, 2_424_832),
            row(ModelOptions::new(Small), 94_762, 3, 3, 10.3, 57_344),
        ]
    }

    fn layers(graph: &Graph, kind: &str) -> usize {
        let of_kind = graph.nodes().iter().filter(|n| n.op.kind() == kind);
        of_kind.count()
    }

    #[test]
    fn sizes_equal_the_published_table() {
        for row in table() {
            let graph = build(&row.options).unwrap();
            let lif = graph.nodes().iter().filter(|n| n.op == Op::Lif);
            let neurons: usize = lif.map(|n| graph.value(n.output).shape.elements()).sum();
            let parameters: usize = graph.parameters().iter().map(Parameter::elements).sum();
            let mmac = graph.multiply_accumulates() as f64 / 1e6;
            let what = &row.options;
            assert_eq!(parameters, row.parameters, "parameters of {what:?}");
            assert_eq!(layers(&graph, "conv"), row.convs, "{what:?}");
            assert_eq!(layers(&graph, "lif"), row.neuron_layers, "{what:?}");
            assert_eq!(neurons, row.neurons, "neurons of {what:?}");
            // The table has one decimal, and gives the MMAC of 10 classes for 100, too.
            assert!((mmac - row.mmac).abs() <= 0.0501, "{mmac} of {what:?}");
            assert_eq!(
                graph.value(graph.output()).shape,
                Shape::vector(what.classes)
            );
        }
    }

    #[test]
    fn three_neuron_layers_of_ms_resnet_are_twins() {
        for name in [ModelName::MsResnet18, ModelName::MsResnet34] {
            let graph = build(&ModelOptions::new(name)).unwrap();
            let lif: Vec<_> = graph.nodes().iter().filter(|n| n.op == Op::Lif).collect();
            let is_twin = |i: usize| lif[..i].iter().any(|n| n.inputs == lif[i].inputs);
            assert_eq!((0..lif.len()).filter(|&i| is_twin(i)).count(), 3, "{name}");
        }
    }

    fn sides(options: &ModelOptions, values: &[&str]) -> Vec<usize> {
        let graph = build(options).unwrap();
        let shapes = values
            .iter()
            .map(|v| graph.value(graph.find(v).unwrap()).shape);
        shapes.map(|s| s.height).collect()
    }

    #[test]
    fn sides_equal_the_published_ones() {
        let stages = [
            "layer1.1.add",
            "layer2.1.add",
            "layer3.1.add",
            "layer4.1.add",
        ];
        let (ms, sew) = (ModelName::MsResnet18, ModelName::SewResnet18);
        assert_eq!(sides(&ModelOptions::new(ms), &stages), [32, 16, 8, 4]);
        assert_eq!(sides(&imagenet_ms(ms), &stages), [56, 28, 14, 7]);
        assert_eq!(sides(&ModelOptions::new(sew), &stages), [56, 28, 14, 7]);
        let pooled = ["sn1", "sn2", "sn4", "sn6", "sn8", "pool5", "head.pool"];
        let cifar_dvs = sides(&ModelOptions::new(ModelName::Vgg11), &pooled);
        assert_eq!(cifar_dvs, [48, 24, 12, 6, 3, 1, 7]);
        assert_eq!(sides(&gesture_vgg(), &pooled), [128, 64, 32, 16, 8, 4, 7]);
    }

    fn names(options: &ModelOptions) -> Vec<String> {
        let graph = build(options).unwrap();
        graph.nodes().iter().map(|n| n.name.clone()).collect()
    }

    fn words(text: &str) -> Vec<&str> {
        text.split_whitespace().collect()
    }

    #[test]
    fn names_and_order_of_nodes_are_those_of_the_recorded_traces() {
        let small = "conv1 bn1 sn1 pool1 conv2 bn2 sn2 pool2 conv3 bn3 sn3 pool3
            head.pool head.flat fc";
        assert_eq!(names(&ModelOptions::new(ModelName::Small)), words(small));
        let ms = names(&ModelOptions::new(ModelName::MsResnet18));
        let head = "stem.conv stem.bn
            layer1.0.sn1 layer1.0.conv1 layer1.0.bn1
            layer1.0.sn2 layer1.0.conv2 layer1.0.bn2 layer1.0.add
            layer1.1.sn1 layer1.1.conv1 layer1.1.bn1
            layer1.1.sn2 layer1.1.conv2 layer1.1.bn2 layer1.1.add
            layer2.0.sn1 layer2.0.down.sn layer2.0.down.conv layer2.0.down.bn
            layer2.0.conv1 layer2.0.bn1
            layer2.0.sn2 layer2.0.conv2 layer2.0.bn2 layer2.0.add layer2.1.sn1";
        assert_eq!(ms[..words(head).len()], words(head));
        let tail = "layer4.1.bn2 layer4.1.add head.sn head.pool head.flat fc";
        assert_eq!(ms[ms.len() - 6..], words(tail));
        let sew = names(&ModelOptions::new(ModelName::SewResnet34));
        let at = sew.iter().position(|n| n == "layer1.2.add").unwrap();
        let stem = "stem.conv stem.bn stem.sn stem.pool layer1.0.conv1";
        assert_eq!(sew[..5], words(stem));
        let block = "layer1.2.add
            layer2.0.conv1 layer2.0.bn1 layer2.0.sn1 layer2.0.conv2 layer2.0.bn2 layer2.0.sn2
            layer2.0.down.conv layer2.0.down.bn layer2.0.down.sn layer2.0.add layer2.1.conv1";
        assert_eq!(sew[at..at + words(block).len()], words(block));
        assert_eq!(
            sew[sew.len() - 4..],
            words("layer4.2.add head.pool head.flat fc")
        );
        let vgg = names(&with(ModelName::Vgg11, |o| o.dropout = 0.3));
        assert_eq!(
            vgg[vgg.len() - 5..],
            words("pool5 head.pool head.flat head.drop fc")
        );
    }

    #[test]
    fn dropout_of_zero_is_no_node() {
        let graph = build(&ModelOptions::new(ModelName::Vgg11)).unwrap();
        assert_eq!(layers(&graph, "dropout"), 0);
    }

    #[test]
    fn small_takes_digits_at_half_width() {
        let options = with(ModelName::Small, |o| {
            o.input = Shape::new(28, 28, 1);
            o.width = 0.5;
        });
        let graph = build(&options).unwrap();
        let pool = graph.value(graph.find("pool3").unwrap()).shape;
        assert_eq!(pool, Shape::new(3, 3, 64));
    }

    #[test]
    fn every_model_is_built_at_any_width_and_from_its_least_input() {
        for name in ModelName::ALL {
            let least = name.least_side();
            for side in [(least, least), (least, least + 1), (33, 47)] {
                for width in [1e-9, 0.01, 0.13, 1.01] {
                    let options = with(name, |o| {
                        o.input = Shape::new(side.0, side.1, 1);
                        (o.width, o.classes) = (width, 1);
                    });
                    let built = build(&options);
                    assert!(built.is_ok(), "{options:?}: {built:?}");
                }
            }
        }
    }

    #[test]
    fn width_rounds_the_channels_and_keeps_one() {
        let channels = |width| {
            let graph = build(&with(ModelName::Small, |o| o.width = width)).unwrap();
            let of = |name| graph.value(graph.find(name).unwrap()).shape.channels;
            [of("conv1"), of("conv2"), of("conv3")]
        };
        assert_eq!(channels(0.05), [2, 3, 6]);
        assert_eq!(channels(0.001), [1, 1, 1]);
        assert_eq!(channels(2.0), [64, 128, 256]);
    }

    #[test]
    fn and_and_iand_keep_spikes_and_add_counts() {
        let content = |join| {
            let graph = build(&with(ModelName::SewResnet18, |o| o.join = join)).unwrap();
            let node = &graph.nodes()[graph.nodes().len() - 4];
            assert_eq!(node.op, Op::Residual(join));
            graph.value(node.output).content
        };
        assert_eq!(content(Join::Add), Content::Counts);
        assert_eq!(content(Join::And), Content::Spikes);
        assert_eq!(content(Join::Iand), Content::Spikes);
    }

    #[test]
    fn without_norms_no_node_but_the_norms_is_missing() {
        let ms = ModelName::MsResnet18;
        let without = names(&with(ms, |o| o.batch_norm = false));
        let mut with_norms = names(&ModelOptions::new(ms));
        with_norms.retain(|n| !n.contains("bn"));
        assert_eq!(without, with_norms);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in ModelName::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        let refused = "resnet".parse::<ModelName>().unwrap_err().to_string();
        let expected = "there is no model \"resnet\": choose one of small, ms_resnet18, \
            ms_resnet34, sew_resnet18, sew_resnet34, vgg11";
        assert_eq!(refused, expected);
    }

    fn refusal(name: ModelName, change: impl FnOnce(&mut ModelOptions)) -> String {
        build(&with(name, change)).unwrap_err().to_string()
    }

    #[test]
    fn options_that_a_model_does_not_have_are_refused() {
        let (small, ms) = (ModelName::Small, ModelName::MsResnet18);
        let (sew, vgg) = (ModelName::SewResnet18, ModelName::Vgg11);
        for (text, expected) in [
            (
                refusal(small, |o| o.stem = Stem::Imagenet),
                "small has no option stem",
            ),
            (
                refusal(sew, |o| o.stem = Stem::Cifar),
                "sew_resnet18 has no option stem",
            ),
            (
                refusal(vgg, |o| o.batch_norm = false),
                "vgg11 has no option batch_norm",
            ),
            (
                refusal(ms, |o| o.join = Join::And),
                "ms_resnet18 has no option join",
            ),
            (
                refusal(ms, |o| o.zero_init_residual = true),
                "no option zero_init_residual",
            ),
            (
                refusal(ms, |o| o.dropout = 0.5),
                "ms_resnet18 has no option dropout",
            ),
            (
                refusal(ms, |o| o.dropout = f32::NAN),
                "ms_resnet18 has no option dropout",
            ),
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused_by_name() {
        let (small, vgg) = (ModelName::Small, ModelName::Vgg11);
        for (text, expected) in [
            (refusal(small, |o| o.width = 0.0), "width is 0"),
            (refusal(small, |o| o.width = f64::NAN), "width is NaN"),
            (refusal(small, |o| o.width = f64::INFINITY), "width is inf"),
            (refusal(small, |o| o.width = 1e300), "number of channels"),
            (refusal(small, |o| o.classes = 0), "number of classes is 0"),
            (refusal(small, |o| o.classes = usize::MAX), "\"fc\""),
            (refusal(vgg, |o| o.dropout = 1.0), "dropout rate"),
            (refusal(vgg, |o| o.dropout = f32::NAN), "dropout rate"),
            (
                refusal(vgg, |o| o.input.channels = 0),
                "input 0x48x48 is too small",
            ),
            (refusal(vgg, |o| o.input.width = 31), "sides of at least 32"),
            (
                refusal(small, |o| o.input.height = 7),
                "sides of at least 8",
            ),
            (
                refusal(small, |o| o.input.height = usize::MAX),
                "is too large",
            ),
        ] {
            assert!(text.contains(expected), "{text}");
        }
        let empty = refusal(ModelName::MsResnet18, |o| o.input.height = 0);
        assert!(empty.contains("sides of at least 1"), "{empty}");
    }
}
