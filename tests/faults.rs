//! Numbers that stop being finite are noticed in the time step in which they do, by the name of the
//! layer where it began; nothing is updated from them.

use synfire::graph::models::{ModelName, ModelOptions};
use synfire::learn::bptt::Bptt;
use synfire::learn::stol::Stol;
use synfire::learn::{Algorithm, Fault};
use synfire::shape::Shape;
use synfire_tests::random::Random;
use synfire_tests::training::{Frames, Seen, Setup, Training, back_ends};

const SAMPLES: usize = 3;
const NUM_TIME_STEPS: usize = 4;

fn small() -> ModelOptions {
    ModelOptions {
        width: 0.25,
        input: Shape::new(8, 8, 3),
        ..ModelOptions::new(ModelName::Small)
    }
}

/// On a real stream, with and without batch norm.
fn ms(batch_norm: bool) -> ModelOptions {
    ModelOptions {
        width: 0.0625,
        input: Shape::new(8, 8, 3),
        batch_norm,
        ..ModelOptions::new(ModelName::MsResnet18)
    }
}

fn frames(model: &ModelOptions) -> Frames {
    let mut random = Random::new(8);
    Frames {
        frames: random.normal(NUM_TIME_STEPS * SAMPLES * model.input.elements()),
        labels: vec![1, 0, 2],
        num_time_steps: NUM_TIME_STEPS,
    }
}

/// Learns from one batch on every back end; checks what came of it.
fn each(
    model: &ModelOptions,
    lr: f64,
    spoil: impl Fn(&mut Training, &mut Frames),
    algorithm: &mut dyn Algorithm,
    check: impl Fn(&Seen, &Fault),
) {
    for kernels in back_ends() {
        let setup = Setup {
            sgd: [lr, 0.9, 0.0],
            loss: (0.95, 0.05),
            ..Setup::new(SAMPLES, algorithm.window(NUM_TIME_STEPS))
        };
        let mut training = Training::of_model(kernels, model, &setup, 1);
        let mut frames = frames(model);
        spoil(&mut training, &mut frames);
        let before = training.weights();
        let (seen, result) = training.learn(algorithm, &frames, 0);
        let fault = result.expect_err("the numbers are spoilt");
        assert_eq!(
            seen.steps.len(),
            fault.time_step,
            "steps before it were seen"
        );
        // Nothing after it is updated.
        let last = seen
            .updates
            .last()
            .map_or(&before, |update| &update.weights);
        let after = training.weights();
        for (name, values) in last {
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(values), bits(&after[name]), "{name}");
        }
        check(&seen, &fault);
    }
}

fn fault(time_step: usize, place: &str) -> Fault {
    let place = place.into();
    Fault { time_step, place }
}

#[test]
fn a_nan_in_the_input_is_named_with_its_time_step() {
    for model in [small(), ms(true), ms(false)] {
        for t in [0, 2] {
            let len = SAMPLES * model.input.elements();
            let spoil = |_: &mut Training, frames: &mut Frames| {
                frames.frames[t * len + len / 2] = f32::NAN;
            };
            each(
                &model,
                0.01,
                spoil,
                &mut Stol { window: 2 },
                |seen, found| {
                    assert_eq!(*found, fault(t, "the input"));
                    assert_eq!(seen.updates.len(), t);
                },
            );
        }
    }
}

#[test]
fn an_infinite_weight_is_named_with_its_layer() {
    for (model, layer) in [
        (small(), "conv1"),
        (small(), "conv3"),
        (ms(true), "layer2.0.conv2"),
        (ms(false), "layer1.0.conv1"),
        (small(), "fc"),
    ] {
        let name = format!("{layer}.weight");
        let spoil = |training: &mut Training, _: &mut Frames| {
            // The whole weight: spikes may leave out any one number.
            let mut weight = training.weights().remove(&name).expect("it is there");
            weight.fill(f32::INFINITY);
            training.set(&name, &weight);
        };
        each(&model, 0.01, spoil, &mut Stol { window: 2 }, |_, found| {
            assert_eq!(found.place, format!("the weights of {layer}"));
        });
    }
}

/// With batch norm and spikes, weights of 1e30 give finite numbers everywhere but in the squared
/// error.
#[test]
fn a_learning_rate_of_1e30_is_noticed_in_the_loss_of_the_next_time_step() {
    for model in [small(), ms(false)] {
        each(
            &model,
            1e30,
            |_, _| (),
            &mut Stol { window: 2 },
            |_, found| {
                // The first time step is computed with the weights of the start.
                assert_eq!(*found, fault(1, "the loss itself"));
            },
        );
    }
}

#[test]
fn weights_that_overflow_are_named_in_the_next_time_step() {
    for model in [small(), ms(true), ms(false)] {
        // Infinite in f32.
        each(
            &model,
            1e39,
            |_, _| (),
            &mut Stol { window: 2 },
            |seen, found| {
                assert_eq!(seen.updates.len(), 1);
                let first = if model.name == ModelName::Small {
                    "conv1"
                } else {
                    "stem.conv"
                };
                assert_eq!(*found, fault(1, &format!("the weights of {first}")));
            },
        );
    }
}

#[test]
fn an_output_that_overflows_is_named_with_its_layer() {
    let model = ms(false);
    let spoil = |training: &mut Training, _: &mut Frames| {
        // Large enough that a sum of a few overflows.
        let mut weight = training
            .weights()
            .remove("stem.conv.weight")
            .expect("it is there");
        weight.fill(3e38);
        training.set("stem.conv.weight", &weight);
    };
    each(&model, 0.01, spoil, &mut Stol { window: 2 }, |_, found| {
        assert_eq!(*found, fault(0, "the output of stem.conv"));
    });
}

#[test]
fn bptt_stops_before_its_only_update() {
    let model = small();
    let len = SAMPLES * model.input.elements();
    let spoil = |_: &mut Training, frames: &mut Frames| frames.frames[3 * len] = f32::NAN;
    each(&model, 0.01, spoil, &mut Bptt, |seen, found| {
        assert_eq!(*found, fault(3, "the input"));
        assert!(seen.updates.is_empty());
    });
}

#[test]
fn a_fault_says_what_to_do() {
    let text = fault(2, "the weights of conv1").to_string();
    assert!(
        text.contains("time step 2") && text.contains("conv1"),
        "{text}"
    );
    assert!(text.contains("lower optimiser.lr"), "{text}");
}
