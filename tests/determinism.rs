//! The same seed gives the same bits at any number of threads, and of pictures as values or as bytes.

use synfire::graph::models::{ModelName, ModelOptions};
use synfire::kernel::{Kernels, Report};
use synfire::learn::bptt::Bptt;
use synfire::learn::stol::Stol;
use synfire::learn::{Algorithm, Batch, Input, Masks, Unobserved};
use synfire::shape::{Content, Shape};
use synfire_tests::pictures::Made;
use synfire_tests::random::Random;
use synfire_tests::training::{Frames, Setup, Training, back_ends, cpu};

const SAMPLES: usize = 6;
const NUM_TIME_STEPS: usize = 3;
const NUM_BATCHES: u64 = 3;

fn small() -> ModelOptions {
    ModelOptions {
        input: Shape::new(32, 32, 3),
        ..ModelOptions::new(ModelName::Small)
    }
}

fn ms_resnet18() -> ModelOptions {
    ModelOptions {
        width: 0.125,
        ..ModelOptions::new(ModelName::MsResnet18)
    }
}

fn vgg11() -> ModelOptions {
    ModelOptions {
        width: 0.125,
        input: Shape::new(32, 32, 2),
        dropout: 0.3,
        ..ModelOptions::new(ModelName::Vgg11)
    }
}

/// Frames of random spikes.
fn batch(model: &ModelOptions, index: u64) -> Frames {
    let mut random = Random::new(100 + index);
    let elements = NUM_TIME_STEPS * SAMPLES * model.input.elements();
    let labels = (0..SAMPLES).map(|_| u32::try_from(random.below(10)).expect("ten classes"));
    Frames {
        labels: labels.collect(),
        frames: random.values(Content::Spikes, elements),
        num_time_steps: NUM_TIME_STEPS,
    }
}

/// The bits of everything that training changed, after some updates.
fn trained(
    model: &ModelOptions,
    algorithm: &mut dyn Algorithm,
    threads: usize,
    seed: u64,
) -> Vec<u32> {
    let setup = Setup {
        sgd: [0.05, 0.9, 5e-4],
        loss: (0.95, 0.05),
        seed,
        ..Setup::new(SAMPLES, algorithm.window(NUM_TIME_STEPS))
    };
    let mut training = Training::of_model(cpu(threads), model, &setup, seed);
    let start = training.state();
    for index in 0..NUM_BATCHES {
        training.learn_unseen(algorithm, &batch(model, index), index);
    }
    let state = training.state();
    let changed = start.iter().zip(&state).filter(|(a, b)| a != b).count();
    assert!(
        changed > start.len() / 2,
        "{changed} of {} numbers moved",
        start.len()
    );
    state
}

fn assert_same_with_any_threads(model: &ModelOptions, algorithm: &mut dyn Algorithm) {
    let one = trained(model, algorithm, 1, 7);
    for threads in [1, 2, 3] {
        let again = trained(model, algorithm, threads, 7);
        assert!(one == again, "{} with {threads} threads", model.name);
    }
}

#[test]
fn small_has_the_same_bits_with_one_two_and_three_threads() {
    assert_same_with_any_threads(&small(), &mut Stol { window: 2 });
    assert_same_with_any_threads(&small(), &mut Bptt);
}

#[test]
fn ms_resnet18_has_the_same_bits_with_one_two_and_three_threads() {
    assert_same_with_any_threads(&ms_resnet18(), &mut Stol { window: 2 });
}

#[test]
fn vgg11_with_dropout_has_the_same_bits_with_one_two_and_three_threads() {
    assert_same_with_any_threads(&vgg11(), &mut Stol { window: 2 });
}

#[test]
fn other_seeds_give_other_bits() {
    let mut stol = Stol { window: 2 };
    assert!(trained(&small(), &mut stol, 2, 7) != trained(&small(), &mut stol, 2, 8));
}

/// The same start and the same batches: the seed alone drops other inputs.
#[test]
fn the_seed_draws_the_masks_of_dropout() {
    let masks = |seed| {
        let setup = Setup {
            seed,
            ..Setup::new(SAMPLES, 2)
        };
        let mut training = Training::of_model(cpu(1), &vgg11(), &setup, 1);
        let mut stol = Stol { window: 2 };
        let mut seen = |index| training.learn(&mut stol, &batch(&vgg11(), 0), index).0;
        let batches = [seen(0), seen(1)];
        let masks = batches
            .iter()
            .flat_map(|b| &b.steps)
            .map(|step| step.masks.clone());
        masks.collect::<Vec<_>>()
    };
    let (seven, eight) = (masks(7), masks(8));
    assert!(seven == masks(7) && seven != eight);
    // Every time step of every batch has its own.
    let mut all = seven;
    all.extend(eight);
    for (i, mask) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|other| other != mask), "mask {i}");
    }
}

/// What training on pictures changes and counts, then what judging by them counts: as values or bytes.
fn trained_on_pictures(kernels: Box<dyn Kernels>, as_bytes: bool) -> (Vec<u32>, [Report; 2]) {
    let model = ModelOptions {
        width: 0.25,
        input: Shape::new(16, 16, 3),
        ..ModelOptions::new(ModelName::Small)
    };
    let setup = Setup {
        sgd: [0.05, 0.9, 5e-4],
        // Fewer slots than time steps: pictures stay where they are for the others.
        ..Setup::new(SAMPLES, 2)
    };
    let mut training = Training::of_model(kernels, &model, &setup, 1);
    let mut reports = Vec::new();
    for judges in [false, true] {
        for index in 0..5 {
            let made = Made::new(SAMPLES, model.input, 0.25, 10 + index);
            let (pictures, values) = (made.pictures(), made.pictures().values());
            let batch = Batch {
                index,
                input: if as_bytes {
                    Input::Pictures(&pictures)
                } else {
                    Input::Static(&values)
                },
                labels: &[3, 1, 4, 1, u32::MAX, 5],
                num_time_steps: NUM_TIME_STEPS,
                masks: Masks::Keyed,
            };
            let learner = &mut training.learner;
            training.kernels.run(&mut |kernels| {
                if judges {
                    learner.evaluate(kernels, &batch);
                } else {
                    let mut stol = Stol { window: 2 };
                    let learnt = stol.learn(learner, kernels, &batch, &mut Unobserved);
                    learnt.expect("every number is finite");
                }
            });
        }
        reports.push(training.kernels.take_report());
        assert_eq!(training.kernels.failure(), None);
    }
    let reports = reports.try_into().expect("two of them");
    (training.state(), reports)
}

#[test]
fn pictures_as_bytes_are_learnt_from_and_judged_by_as_their_values() {
    for (kernels, others) in back_ends().into_iter().zip(back_ends()) {
        let name = kernels.name();
        let (values, bytes) = (
            trained_on_pictures(kernels, false),
            trained_on_pictures(others, true),
        );
        assert_eq!(values.1, bytes.1, "{name}");
        assert!(values.0 == bytes.0, "{name}");
        assert!(values.1.iter().all(|report| report.loss[2] > 0.0), "{name}");
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_pictures_as_bytes_are_learnt_from_in_bf16_as_their_values() {
    use synfire::kernel::cuda::Precision;
    use synfire_tests::rig::cuda;

    let [values, bytes] =
        [false, true].map(|as_bytes| trained_on_pictures(cuda(Precision::Bf16), as_bytes));
    assert_eq!(values.1, bytes.1);
    assert!(values.0 == bytes.0);
}
