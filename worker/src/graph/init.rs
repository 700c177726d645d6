//! Initial parameters (ALGORITHMS, section 3, "Initialisation").
//!
//! Every parameter draws from a stream keyed by its name, so that the draws depend neither on the
//! number of threads nor on which other layers a network has.

use rayon::prelude::*;
use synfire_shared::random::{Purpose, keyed, normal, uniform};

use super::models::{ModelName, ModelOptions};
use super::{Graph, Node, Op, Parameter};
use crate::shape::Join;

/// The standard deviation of VGG's readout: torchvision's, which the authors' network follows
/// (<https://docs.pytorch.org/vision/stable/models/vgg.html>).
const VGG_READOUT_DEVIATION: f64 = 0.01;

/// How the numbers of a parameter begin.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    /// All the same.
    Constant(f32),
    /// Independent, of mean 0 and this standard deviation.
    Normal(f64),
    /// Independent, between minus and plus this bound.
    Uniform(f64),
}

/// Every parameter of `graph.parameters()` with its name, in that order.
///
/// The same options, seed and names give the same bits; running statistics of batch norms are no
/// parameters and start at 0 and 1.
///
/// # Shapes
/// Each as [`Parameter::shape`] says, row-major: OIHW for convolutions, `[out, in]` for
/// linear layers.
///
/// # Source
/// Convolutions: He, Zhang, Ren, Sun, "Delving Deep into Rectifiers", 2015,
/// <https://arxiv.org/abs/1502.01852>, by fan-out. Linear layers of residual networks, and biases:
/// the default of `torch.nn`, uniform within 1/sqrt(fan-in). `gamma` 0 at the end of a block:
/// Goyal et al., "Accurate, Large Minibatch SGD", 2017, <https://arxiv.org/abs/1706.02677>; with
/// `beta` 1 for AND: Fang et al., SEW-ResNet, 2021, <https://arxiv.org/abs/2102.04159>.
pub fn parameters(options: &ModelOptions, graph: &Graph, seed: u64) -> Vec<(String, Vec<f32>)> {
    let all = graph.parameters();
    let drawn = all.into_par_iter().map(|parameter| {
        let start = start_of(options, graph, &parameter);
        let numbers = draw(start, &parameter, seed);
        (parameter.name, numbers)
    });
    drawn.collect()
}

fn draw(start: Start, parameter: &Parameter, seed: u64) -> Vec<f32> {
    let mut rng = keyed(seed, Purpose::Initialise, &[name_hash(&parameter.name)]);
    let elements = 0..parameter.elements();
    match start {
        Start::Constant(value) => vec![value; parameter.elements()],
        Start::Normal(deviation) => elements
            .map(|_| single(deviation * normal(&mut rng)))
            .collect(),
        Start::Uniform(bound) => elements
            .map(|_| single(uniform(&mut rng, -bound, bound)))
            .collect(),
    }
}

fn start_of(options: &ModelOptions, graph: &Graph, parameter: &Parameter) -> Start {
    let node = &graph.nodes()[parameter.node];
    let is_weight = parameter.name.ends_with(".weight");
    let is_vgg = options.name == ModelName::Vgg11;
    let inputs = graph.value(node.inputs[0]).shape.channels as f64;
    match node.op {
        Op::Conv {
            outputs, kernel, ..
        } => {
            let taps = (kernel * kernel) as f64;
            match (is_weight, is_vgg) {
                (true, _) => Start::Normal((2.0 / (taps * outputs as f64)).sqrt()),
                (false, true) => Start::Constant(0.0),
                (false, false) => Start::Uniform(1.0 / (taps * inputs).sqrt()),
            }
        }
        Op::Linear { .. } => match (is_weight, is_vgg) {
            (true, true) => Start::Normal(VGG_READOUT_DEVIATION),
            (false, true) => Start::Constant(0.0),
            (_, false) => Start::Uniform(1.0 / inputs.sqrt()),
        },
        Op::BatchNorm => match (options.zero_init_residual, block_join(graph, node)) {
            (true, Some(join)) => identity(join, is_weight),
            (true, None) | (false, _) => Start::Constant(if is_weight { 1.0 } else { 0.0 }),
        },
        Op::Lif
        | Op::MaxPool { .. }
        | Op::AvgPool { .. }
        | Op::AdaptiveAvgPool { .. }
        | Op::Flatten
        | Op::Dropout { .. }
        | Op::Residual(_) => unreachable!("{} has no parameters", node.name),
    }
}

/// The last batch norm of a branch that makes its block the identity: with `gamma` 0 the neurons
/// behind it see `beta`, are silent for 0 (neutral in a + b and (1 - a) b) and fire at every time
/// step for 1 = `V_th` (neutral in a b).
fn identity(join: Join, is_gamma: bool) -> Start {
    match (join, is_gamma) {
        (_, true) | (Join::Add | Join::Iand, false) => Start::Constant(0.0),
        (Join::And, false) => Start::Constant(1.0),
    }
}

/// How the branch that this batch norm ends is joined, if its neurons' spikes are such a branch.
fn block_join(graph: &Graph, norm: &Node) -> Option<Join> {
    let readers = |node: &Node| graph.readers(node.output).map(|i| &graph.nodes()[i]);
    let neurons = readers(norm).find(|n| n.op == Op::Lif)?;
    readers(neurons).find_map(|n| match n.op {
        Op::Residual(join) if n.inputs[0] == neurons.output => Some(join),
        Op::Conv { .. }
        | Op::Linear { .. }
        | Op::BatchNorm
        | Op::Lif
        | Op::MaxPool { .. }
        | Op::AvgPool { .. }
        | Op::AdaptiveAvgPool { .. }
        | Op::Flatten
        | Op::Dropout { .. }
        | Op::Residual(_) => None,
    })
}

/// FNV-1a with 64 bits (Fowler, Noll, Vo, Eastlake, Hansen, "The FNV Non-Cryptographic Hash
/// Algorithm", 2024, <https://datatracker.ietf.org/doc/draft-eastlake-fnv>).
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "draws are far inside f32; rounding keeps them within a bound rounded alike"
)]
fn single(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::models::{Stem, build};

    fn with(name: ModelName, change: impl FnOnce(&mut ModelOptions)) -> ModelOptions {
        let mut options = ModelOptions::new(name);
        change(&mut options);
        options
    }

    fn drawn(options: &ModelOptions, seed: u64) -> Vec<(String, Vec<f32>)> {
        parameters(options, &build(options).unwrap(), seed)
    }

    fn one<'a>(all: &'a [(String, Vec<f32>)], name: &str) -> &'a [f32] {
        &all.iter().find(|(n, _)| n == name).unwrap().1
    }

    fn moments(numbers: &[f32]) -> (f64, f64) {
        let count = numbers.len() as f64;
        let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
        let square = |&x: &f32| (f64::from(x) - mean).powi(2);
        (
            mean,
            (numbers.iter().map(square).sum::<f64>() / count).sqrt(),
        )
    }

    fn bits(all: &[(String, Vec<f32>)]) -> Vec<(&str, Vec<u32>)> {
        let words = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect();
        all.iter().map(|(n, x)| (n.as_str(), words(x))).collect()
    }

    #[test]
    fn parameters_come_in_the_order_and_size_of_the_graph() {
        for name in ModelName::ALL {
            let options = with(name, |o| o.width = 0.1);
            let graph = build(&options).unwrap();
            let got = parameters(&options, &graph, 0);
            let sizes = got.iter().map(|(n, x)| (n.clone(), x.len()));
            let all = graph.parameters();
            let wanted = all.iter().map(|p| (p.name.clone(), p.elements()));
            assert!(sizes.eq(wanted), "{name}");
        }
    }

    #[test]
    fn convolutions_are_normal_by_fan_out() {
        for name in ModelName::ALL {
            let options = with(name, |o| o.width = 0.7);
            let graph = build(&options).unwrap();
            let all = parameters(&options, &graph, 3);
            let mut num_checked = 0;
            for (parameter, (name, numbers)) in graph.parameters().iter().zip(&all) {
                // 2 % are at least five standard errors of the deviation, 1/sqrt(2 n).
                if parameter.shape.len() < 4 || numbers.len() < 32_000 {
                    continue;
                }
                let fan_out = parameter.shape[0] * parameter.shape[2] * parameter.shape[3];
                let wanted = (2.0 / fan_out as f64).sqrt();
                let (mean, deviation) = moments(numbers);
                assert!(
                    (deviation / wanted - 1.0).abs() < 0.02,
                    "{name}: {deviation}"
                );
                assert!(mean.abs() < 0.03 * wanted, "{name}: mean {mean}");
                // A uniform draw of that deviation ends at 1.73 of it.
                let largest = numbers.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                assert!(f64::from(largest) > 3.5 * wanted, "{name} is not normal");
                num_checked += 1;
            }
            assert!(num_checked > 0, "{name}");
        }
    }

    /// Within the bound, near it on both sides, and of a uniform draw's deviation.
    fn assert_uniform(numbers: &[f32], bound: f64, tolerance: f64) {
        let bound32 = single(bound);
        assert!(numbers.iter().all(|x| x.abs() <= bound32));
        let (mean, deviation) = moments(numbers);
        let wanted = bound / 3.0_f64.sqrt();
        assert!(
            (deviation / wanted - 1.0).abs() < tolerance,
            "{deviation} for {wanted}"
        );
        assert!(mean.abs() < 2.0 * tolerance * wanted, "mean {mean}");
        let near = |sign: f32| numbers.iter().any(|x| x * sign > 0.9 * bound32);
        assert!(near(1.0) && near(-1.0));
    }

    /// One parameter alone: large networks take seconds to draw.
    fn drawn_alone(options: &ModelOptions, name: &str, seed: u64) -> Vec<f32> {
        let graph = build(options).unwrap();
        let all = graph.parameters();
        let parameter = all.iter().find(|p| p.name == name).unwrap();
        draw(start_of(options, &graph, parameter), parameter, seed)
    }

    #[test]
    fn readouts_of_residual_networks_are_uniform_by_fan_in() {
        for (name, fan_in) in [
            (ModelName::MsResnet18, 512.0_f64),
            (ModelName::SewResnet18, 512.0),
            (ModelName::Small, 128.0),
        ] {
            let options = with(name, |o| o.classes = 1000);
            let bound = 1.0 / fan_in.sqrt();
            assert_uniform(&drawn_alone(&options, "fc.weight", 4), bound, 0.02);
            // 1000 numbers: five standard errors of a uniform draw's deviation are 7 %.
            assert_uniform(&drawn_alone(&options, "fc.bias", 4), bound, 0.08);
        }
    }

    #[test]
    fn bias_of_an_imagenet_stem_is_uniform_by_fan_in() {
        let options = with(ModelName::MsResnet18, |o| {
            o.stem = Stem::Imagenet;
            o.width = 4.0;
        });
        // 256 numbers: five standard errors are 14 %. 147 = 7 * 7 * 3.
        let bias = drawn_alone(&options, "stem.conv.bias", 5);
        assert_uniform(&bias, 1.0 / 147.0_f64.sqrt(), 0.14);
    }

    #[test]
    fn vgg_has_biases_of_zero_and_a_readout_of_deviation_a_hundredth() {
        let options = ModelOptions::new(ModelName::Vgg11);
        let all = drawn(&with(ModelName::Vgg11, |o| o.width = 0.1), 6);
        for (name, numbers) in all.iter().filter(|(n, _)| n.contains(".bias")) {
            assert!(numbers.iter().all(|&x| x == 0.0), "{name}");
        }
        let (mean, deviation) = moments(&drawn_alone(&options, "fc.weight", 6));
        assert!((deviation / 0.01 - 1.0).abs() < 0.02, "{deviation}");
        assert!(mean.abs() < 1e-4, "{mean}");
    }

    fn all_are(all: &[(String, Vec<f32>)], name: &str, value: f32) -> bool {
        one(all, name)
            .iter()
            .all(|x| x.to_bits() == value.to_bits())
    }

    #[test]
    fn batch_norms_start_with_gamma_one_and_beta_zero() {
        for name in ModelName::ALL {
            let options = with(name, |o| o.width = 0.1);
            let graph = build(&options).unwrap();
            let all = parameters(&options, &graph, 7);
            for (norm, _) in graph.batch_norms() {
                assert!(all_are(&all, &format!("{norm}.weight"), 1.0), "{norm}");
                assert!(all_are(&all, &format!("{norm}.bias"), 0.0), "{norm}");
            }
        }
    }

    #[test]
    fn zero_init_residual_makes_blocks_the_identity() {
        for (join, beta) in [(Join::Add, 0.0), (Join::And, 1.0), (Join::Iand, 0.0)] {
            let options = with(ModelName::SewResnet18, |o| {
                (o.join, o.zero_init_residual, o.width) = (join, true, 0.1);
            });
            let graph = build(&options).unwrap();
            let all = parameters(&options, &graph, 8);
            for (norm, _) in graph.batch_norms() {
                let last = norm.contains(".bn2");
                let (gamma, beta) = if last { (0.0, beta) } else { (1.0, 0.0) };
                assert!(all_are(&all, &format!("{norm}.weight"), gamma), "{norm}");
                assert!(all_are(&all, &format!("{norm}.bias"), beta), "{norm}");
            }
        }
    }

    #[test]
    fn a_seed_gives_its_bits_again_and_another_seed_gives_others() {
        let options = ModelOptions::new(ModelName::Small);
        let (first, again, other) = (drawn(&options, 1), drawn(&options, 1), drawn(&options, 2));
        assert_eq!(bits(&first), bits(&again));
        for name in ["conv1.weight", "conv3.weight", "fc.weight", "fc.bias"] {
            assert_ne!(one(&first, name), one(&other, name), "{name}");
        }
    }

    #[test]
    fn an_added_layer_leaves_the_draws_of_the_others() {
        let [small, large] = [ModelName::MsResnet18, ModelName::MsResnet34]
            .map(|name| drawn(&with(name, |o| o.width = 0.1), 1));
        for name in ["stem.conv.weight", "layer4.1.conv2.weight", "fc.weight"] {
            assert_eq!(one(&small, name), one(&large, name), "{name}");
        }
    }

    #[test]
    fn parameters_of_one_shape_differ() {
        let all = drawn(&with(ModelName::MsResnet18, |o| o.width = 0.1), 1);
        let (a, b) = ("layer1.0.conv1.weight", "layer1.0.conv2.weight");
        assert_ne!(one(&all, a), one(&all, b));
    }

    #[test]
    fn names_are_hashed_by_fnv_1a() {
        // Test vectors of the draft's authors, http://www.isthe.com/chongo/tech/comp/fnv/.
        assert_eq!(name_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(name_hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(name_hash("foobar"), 0x8594_4171_f739_67e8);
    }
}
