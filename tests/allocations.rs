//! After the first batch, the loop over time steps allocates nothing on the CPU back end.
//!
//! One test alone, because the count is of all threads of the process.

use synfire::graph::models::{ModelName, ModelOptions};
use synfire::learn::bptt::Bptt;
use synfire::learn::stol::Stol;
use synfire::learn::{Algorithm, Batch, Input, Masks, Unobserved};
use synfire::shape::{Join, Shape};
use synfire_tests::allocator::{Counting, count};
use synfire_tests::random::Random;
use synfire_tests::training::{Setup, Training, cpu};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NUM_TIME_STEPS: usize = 5;
const SAMPLES: usize = 4;

fn models() -> Vec<ModelOptions> {
    let model = |name, width, input| ModelOptions {
        width,
        input,
        classes: 10,
        ..ModelOptions::new(name)
    };
    let picture = |side| Shape::new(side, side, 3);
    vec![
        model(ModelName::Small, 1.0, picture(16)),
        model(ModelName::MsResnet18, 1.0 / 8.0, picture(16)),
        ModelOptions {
            dropout: 0.3,
            ..model(ModelName::Vgg11, 1.0 / 8.0, Shape::new(32, 32, 2))
        },
        ModelOptions {
            join: Join::Iand,
            ..model(ModelName::SewResnet18, 1.0 / 8.0, picture(32))
        },
    ]
}

/// Allocations of each batch inside `Kernels::run`, and where the first of the last batch that had
/// one came from.
fn allocations(
    model: &ModelOptions,
    algorithm: &mut dyn Algorithm,
    threads: usize,
    num_batches: u64,
) -> (Vec<u64>, String) {
    let setup = Setup {
        sgd: [0.01, 0.9, 5e-4],
        ..Setup::new(SAMPLES, algorithm.window(NUM_TIME_STEPS))
    };
    let mut training = Training::of_model(cpu(threads), model, &setup, 1);
    let mut random = Random::new(4);
    let frames = random.normal(NUM_TIME_STEPS * SAMPLES * model.input.elements());
    let labels = [1, 2, 3, 0];
    let (mut counts, mut place) = (Vec::new(), String::new());
    for index in 0..num_batches {
        let batch = Batch {
            index,
            input: Input::Frames(&frames),
            labels: &labels,
            num_time_steps: NUM_TIME_STEPS,
            masks: Masks::Keyed,
        };
        let learner = &mut training.learner;
        let mut seen = (0, String::new());
        training.kernels.run(&mut |kernels| {
            let mut result = Ok(());
            seen = count(|| {
                result = algorithm.learn(learner, kernels, &batch, &mut Unobserved);
            });
            assert!(result.is_ok(), "{result:?}");
        });
        counts.push(seen.0);
        if seen.0 > 0 {
            place = seen.1;
        }
    }
    (counts, place)
}

/// The counter sees a deliberate allocation, of the thread itself or of another, and none where
/// there is none.
fn assert_the_counter_works() {
    let (none, _) = count(|| ());
    assert_eq!(none, 0);
    let (one, place) = count(|| drop(std::hint::black_box(Vec::<u8>::with_capacity(100))));
    assert_eq!(one, 1);
    assert!(place.contains("allocations"), "{place}");
    let mut vector = vec![1_u8];
    let (grown, _) = count(|| vector.reserve_exact(1000));
    assert_eq!(grown, 1);
    let (elsewhere, _) = count(|| {
        let work = || drop(std::hint::black_box(vec![0_u8; 100]));
        std::thread::spawn(work).join().expect("it does not panic");
    });
    // Its own and those of starting it.
    assert!(elsewhere > 1, "{elsewhere}");
}

#[test]
fn after_the_first_batch_no_time_step_allocates() {
    assert_the_counter_works();
    for model in models() {
        for threads in [1, 2] {
            let algorithms: [Box<dyn Algorithm>; 2] =
                [Box::new(Stol { window: 2 }), Box::new(Bptt)];
            for mut algorithm in algorithms {
                let (counts, place) = allocations(&model, &mut *algorithm, threads, 4);
                let what = format!("{}, {}, {threads} threads", model.name, algorithm.name());
                assert!(counts[0] > 0, "{what}: buffers grow in the first batch");
                assert!(
                    counts[1..].iter().all(|n| *n == 0),
                    "{what}: {counts:?}\n{place}"
                );
            }
        }
    }
}
