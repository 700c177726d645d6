//! Every family of models by name: both back ends learn the same from two batches.

use synfire::graph::models::{ModelName, ModelOptions, Stem};
use synfire::learn::stol::Stol;
use synfire::shape::{Join, Shape};
use synfire_tests::outcome::{Tolerance, assert_close};
use synfire_tests::rig::reference;
use synfire_tests::training::{Frames, Seen, Setup, Training, cpu};

use super::{frames, narrow};

const NUM_TIME_STEPS: usize = 3;
const SAMPLES: usize = 4;
/// Potentials of two correct runs differ by some 1e-6 once weights do; further from the threshold
/// than this they fire alike.
const MARGIN: f32 = 1e-5;

fn small_input(name: ModelName, width: f64, input: Shape) -> ModelOptions {
    ModelOptions {
        width,
        input,
        classes: 10,
        ..ModelOptions::new(name)
    }
}

fn ms(side: usize) -> ModelOptions {
    small_input(ModelName::MsResnet18, 1.0 / 16.0, Shape::new(side, side, 3))
}

fn sew(join: Join) -> ModelOptions {
    ModelOptions {
        join,
        ..small_input(ModelName::SewResnet18, 1.0 / 16.0, Shape::new(32, 32, 3))
    }
}

fn learn(training: &mut Training, batches: &[Frames]) -> Vec<Seen> {
    let mut all = Vec::new();
    for (index, frames) in (0..).zip(batches) {
        let (seen, result) = training.learn(&mut Stol { window: 2 }, frames, index);
        assert_eq!(result, Ok(()));
        all.push(seen);
    }
    all
}

/// Learns from two batches on both back ends: losses and gradients agree as long as no potential
/// comes near the threshold, which is so for these seeds.
fn assert_learns_alike(model: &ModelOptions, seed: u64) {
    let setup = Setup {
        sgd: [0.01, 0.9, 5e-4],
        ..Setup::new(SAMPLES, 2)
    };
    let mut first = frames(model.input, NUM_TIME_STEPS, SAMPLES, model.classes);
    // Twice the deviation: deep layers of narrow networks stay alive.
    first.frames.iter_mut().for_each(|x| *x *= 2.0);
    let mut second = first.clone();
    second.frames.reverse();
    let batches = [first, second];
    let [expected, got] = [reference(), cpu(2)].map(|kernels| {
        let mut training = Training::of_model(kernels, model, &setup, seed);
        learn(&mut training, &batches)
    });
    for (batch, (expected, got)) in expected.iter().zip(&got).enumerate() {
        let margin = expected.margin(setup.neuron.v_th, NUM_TIME_STEPS);
        assert!(
            margin > MARGIN,
            "{}: {margin:e}: take another seed",
            model.name
        );
        for t in 0..NUM_TIME_STEPS {
            let what = format!("{} at t = {t} of batch {batch}", model.name);
            let loss = [narrow(expected.steps[t].loss)];
            let relative = (loss[0] - narrow(got.steps[t].loss)).abs() / loss[0];
            assert!(relative < 1e-5, "{what}: loss is off by {relative:e}");
            assert_eq!(expected.steps[t].spikes, got.steps[t].spikes, "{what}");
            for (name, gradient) in &expected.updates[t].gradients {
                let got = &got.updates[t].gradients[name];
                let tolerance = if is_bias_before_norm(model, name) {
                    Tolerance::BiasBeforeNorm
                } else {
                    Tolerance::Gradient
                };
                assert_close(&format!("{what}: {name}"), tolerance, gradient, got);
            }
        }
    }
    let spikes = expected[0]
        .steps
        .iter()
        .flat_map(|step| step.spikes.values());
    assert!(spikes.sum::<u64>() > 0, "a silent network shows nothing");
}

fn is_bias_before_norm(model: &ModelOptions, parameter: &str) -> bool {
    let node = parameter.strip_suffix(".bias");
    model.name == ModelName::Vgg11 && node.is_some_and(|node| node.starts_with("conv"))
}

#[test]
fn small_learns_alike_on_both_back_ends() {
    let model = small_input(ModelName::Small, 0.5, Shape::new(8, 8, 3));
    assert_learns_alike(&model, 1);
}

#[test]
fn ms_resnet18_learns_alike_on_both_back_ends() {
    assert_learns_alike(&ms(16), 1);
}

#[test]
fn ms_resnet18_of_imagenet_learns_alike_on_both_back_ends() {
    let stem = Stem::Imagenet;
    assert_learns_alike(&ModelOptions { stem, ..ms(32) }, 2);
}

#[test]
fn ms_resnet18_without_norm_learns_alike_on_both_back_ends() {
    let batch_norm = false;
    assert_learns_alike(
        &ModelOptions {
            batch_norm,
            ..ms(16)
        },
        2,
    );
}

#[test]
fn sew_resnet18_learns_alike_on_both_back_ends_with_every_join() {
    for join in [Join::Add, Join::And, Join::Iand] {
        assert_learns_alike(&sew(join), 1);
    }
}

#[test]
fn vgg11_learns_alike_on_both_back_ends() {
    let model = ModelOptions {
        dropout: 0.3,
        ..small_input(ModelName::Vgg11, 1.0 / 16.0, Shape::new(32, 32, 2))
    };
    assert_learns_alike(&model, 1);
}
