//! Whole networks on a GPU: recorded time steps, memory, determinism, bf16.
//!
//! That every operation is the reference's is shown by `kernels.rs`; traces, windows and faults are
//! gone through on a GPU, too, where `SYNFIRE_TEST_CUDA` is set.
#![allow(
    unsafe_code,
    reason = "a launch that fails is one of a kernel with a promised argument"
)]

use std::collections::BTreeSet;
use synfire::engine::Network;
use synfire::graph::init;
use synfire::graph::models::{self, ModelName, ModelOptions};
use synfire::kernel::cuda::device::Arguments;
use synfire::kernel::cuda::{CudaKernels, Interface, Options, Precision};
use synfire::kernel::{Arena, ArenaSizes, BufferSpec, Kernels, Loss, Report, Without};
use synfire::learn::optimiser::Optimiser;
use synfire::learn::stol::Stol;
use synfire::learn::{Algorithm, Learner, Unobserved};
use synfire::shape::{Join, Shape};
use synfire_shared::run;
use synfire_tests::random::Random;
use synfire_tests::training::{Frames, Setup, Training, cpu};

#[path = "cuda_engine/repetitions.rs"]
mod repetitions;
#[path = "cuda_engine/slots.rs"]
mod slots;

const SAMPLES: usize = 3;
const NUM_TIME_STEPS: usize = 5;
/// Graphs of a batch, however long it is: for the first time step, and for two of which each later one is like
/// one.
const NUM_GRAPHS: usize = 3;

fn options(precision: Precision) -> Options {
    Options {
        ordinal: 0,
        precision,
        ..Options::default()
    }
}

/// One model of every kind: linear readouts, dropout, pools, shortcuts on spikes and on real streams.
fn all_models() -> Vec<ModelOptions> {
    let model = |name, width| ModelOptions {
        width,
        input: Shape::new(16, 16, 3),
        ..ModelOptions::new(name)
    };
    vec![
        model(ModelName::Small, 0.25),
        model(ModelName::MsResnet18, 0.0625),
        ModelOptions {
            input: Shape::new(32, 32, 3),
            join: Join::Add,
            ..model(ModelName::SewResnet18, 0.0625)
        },
        ModelOptions {
            dropout: 0.5,
            input: Shape::new(32, 32, 3),
            ..model(ModelName::Vgg11, 0.0625)
        },
    ]
}

fn frames(model: &ModelOptions, seed: u64) -> Frames {
    frames_of(model, seed, NUM_TIME_STEPS)
}

fn frames_of(model: &ModelOptions, seed: u64, num_time_steps: usize) -> Frames {
    let mut random = Random::new(seed);
    Frames {
        frames: random.normal(num_time_steps * SAMPLES * model.input.elements()),
        labels: vec![1, 0, 2],
        num_time_steps,
    }
}

fn setup(window: usize) -> Setup {
    Setup {
        sgd: [0.05, 0.9, 1e-4],
        loss: (0.95, 0.05),
        seed: 5,
        ..Setup::new(SAMPLES, window)
    }
}

/// A network in training whose back end can be asked more than any other.
struct OnGpu {
    kernels: CudaKernels,
    learner: Learner,
    algorithm: Stol,
    num_time_steps: usize,
}

impl OnGpu {
    fn new(model: &ModelOptions, precision: Precision) -> Self {
        Self::with(model, options(precision))
    }

    fn with(model: &ModelOptions, options: Options) -> Self {
        Self::over_time(model, options, Stol { window: 2 }, NUM_TIME_STEPS)
    }

    fn over_time(
        model: &ModelOptions,
        options: Options,
        algorithm: Stol,
        num_time_steps: usize,
    ) -> Self {
        let mut kernels = match CudaKernels::open(&options) {
            Ok(kernels) => kernels,
            Err(error) => panic!("{error}"),
        };
        let graph = models::build(model).expect("the options fit the model");
        let setup = setup(algorithm.window(num_time_steps));
        let network = Network::new(&graph, &setup.settings(), 1, &mut kernels);
        let loss = Loss {
            samples: SAMPLES,
            classes: network.num_classes(),
            ce: setup.loss.0,
            mse: setup.loss.1,
        };
        let [lr, momentum, weight_decay] = setup.sgd;
        let optimiser = Optimiser::new(run::Optimiser::Sgd {
            lr,
            momentum,
            weight_decay,
        });
        for (name, values) in init::parameters(model, &graph, 1) {
            let set = network.set(&mut kernels, &name, &values);
            set.expect("the network has its parameters");
        }
        Self {
            learner: Learner::new(network, loss, optimiser),
            kernels,
            algorithm,
            num_time_steps,
        }
    }

    /// Learns from one batch after the other; what was counted.
    fn learn(&mut self, model: &ModelOptions, batches: std::ops::Range<u64>) -> Report {
        for index in batches {
            let frames = frames_of(model, index, self.num_time_steps);
            let batch = frames.batch(index);
            let learnt = self.algorithm.learn(
                &mut self.learner,
                &mut self.kernels,
                &batch,
                &mut Unobserved,
            );
            learnt.expect("every number is finite");
        }
        self.report()
    }

    /// Looks at one batch after the other; what was counted.
    fn evaluate(&mut self, model: &ModelOptions, batches: std::ops::Range<u64>) -> Report {
        for index in batches {
            let frames = frames_of(model, index, self.num_time_steps);
            let batch = frames.batch(index);
            self.learner.evaluate(&mut self.kernels, &batch);
        }
        self.report()
    }

    fn report(&mut self) -> Report {
        let report = self.kernels.take_report();
        assert_eq!(self.kernels.failure(), None);
        report
    }

    /// The bits of everything that training changes.
    fn bits(&mut self) -> Vec<u32> {
        let layout = &self.learner.network.plan().layout;
        let arenas = [
            (Arena::Weights, layout.len()),
            (Arena::State, layout.len()),
            (Arena::Statistics, layout.statistics_len()),
        ];
        let mut bits = Vec::new();
        for (arena, len) in arenas {
            let mut values = vec![0.0; len];
            self.kernels.read_arena(arena, 0, &mut values);
            bits.extend(values.into_iter().map(f32::to_bits));
        }
        bits
    }
}

fn without_graphs(options: Options) -> Options {
    let without = Without {
        graphs: true,
        ..options.without
    };
    Options { without, ..options }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_recorded_time_steps_give_the_bits_of_those_run_as_written() {
    for model in all_models() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut written = OnGpu::with(&model, without_graphs(options(precision)));
            let mut recorded = OnGpu::new(&model, precision);
            let reports = [&mut written, &mut recorded].map(|one| one.learn(&model, 0..5));
            let what = format!("{} in {precision:?}", model.name);
            assert_eq!(reports[0], reports[1], "{what}");
            assert!(written.bits() == recorded.bits(), "{what}");
            assert_eq!(recorded.kernels.num_graphs(), NUM_GRAPHS, "{what}");
            assert_eq!(written.kernels.num_graphs(), 0, "{what}");
        }
    }
}

/// A batch of any length has a graph for each time step that is like no earlier one, in training and in evaluation.
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_graphs_of_any_window_give_the_bits_of_time_steps_run_as_written() {
    let models = all_models();
    // The largest has dropout, whose masks are of a time step.
    for (model, window, num_time_steps) in [
        (&models[1], 1, 5),
        (&models[1], 2, 1),
        (&models[1], 3, 8),
        (&models[1], 4, 3),
        (&models[3], 3, 6),
    ] {
        let what = format!("{} with k = {window}, T = {num_time_steps}", model.name);
        let options = options(Precision::F32);
        let [written, recorded] = [without_graphs(options), options].map(|options| {
            let mut one = OnGpu::over_time(model, options, Stol { window }, num_time_steps);
            let mut seen = Vec::new();
            // Evaluation comes between, as in training.
            for begin in [0, 2] {
                seen.push(one.learn(model, begin..begin + 2));
                seen.push(one.evaluate(model, 7..10));
            }
            (seen, one)
        });
        assert_eq!(written.0, recorded.0, "{what}");
        let plan = recorded.1.learner.network.plan();
        let firsts: BTreeSet<usize> = (0..num_time_steps).map(|t| plan.first_like(t)).collect();
        let graphs = [&written, &recorded].map(|(_, one)| one.kernels.num_graphs());
        assert_eq!(graphs, [0, 2 * firsts.len()], "{what}");
        let [mut written, mut recorded] = [written.1, recorded.1];
        assert!(written.bits() == recorded.bits(), "{what}");
    }
}

/// Trains with cuDNN's graph API, recorded or as it is written.
fn by_graph_api(model: &ModelOptions, precision: Precision, is_recorded: bool) -> OnGpu {
    let options = Options {
        interface: Interface::Graph,
        ..options(precision)
    };
    let recorded = OnGpu::with(model, options);
    if is_recorded {
        recorded
    } else {
        OnGpu::with(model, without_graphs(options))
    }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_time_steps_by_the_graph_api_are_recorded_and_give_the_same_bits() {
    let model = &all_models()[1];
    for precision in [Precision::F32, Precision::Bf16] {
        let mut ones = [false, true].map(|recorded| by_graph_api(model, precision, recorded));
        let [written, recorded] = ones.each_mut().map(|one| {
            let report = one.learn(model, 0..4);
            (report, one.bits())
        });
        assert!(written == recorded, "{precision:?}");
        assert_eq!(ones[1].kernels.num_graphs(), NUM_GRAPHS);
    }
}

/// What is left out changes what is called and nothing else, but that a window's gradients are summed in
/// another order: in bf16 each step's is rounded, which spikes may hang on.
#[test]
#[ignore = "needs the stand-in of tests/cuda"]
fn needs_cuda_stand_in_what_is_left_out_changes_calls_and_little_else() {
    let model = &all_models()[1];
    for precision in [Precision::F32, Precision::Bf16] {
        let mut all = OnGpu::new(model, precision);
        let expected = (all.learn(model, 0..3), all.bits());
        let windows = Without {
            windows: true,
            ..Without::default()
        };
        let updates = Without {
            updates: true,
            ..Without::default()
        };
        for without in [windows, updates] {
            let options = Options {
                without,
                ..options(precision)
            };
            let mut one = OnGpu::with(model, options);
            let (report, bits) = (one.learn(model, 0..3), one.bits());
            let what = format!("{precision:?} without {:?}", without.names());
            match (without.windows, precision) {
                (false, _) => assert!((report, bits) == expected, "{what}"),
                (true, Precision::Bf16) => {
                    assert!(distance(&bits, &bits).is_finite(), "{what}");
                    let [loss, other] = [&report, &expected.0].map(|r| r.loss.iter().sum::<f64>());
                    assert!((loss / other - 1.0).abs() < 0.1, "{what}: {loss}, {other}");
                }
                (true, _) => {
                    let distance = distance(&bits, &expected.1);
                    assert!(distance <= 1e-4, "{what}: {distance}");
                    assert_eq!(report.spikes, expected.0.spikes, "{what}");
                }
            }
            let convolutions = [&one, &all].map(|gpu| gpu.kernels.num_convolutions());
            // Forward and backward of a convolution have as many samples, or not.
            assert_eq!(convolutions[0] < convolutions[1], without.windows, "{what}");
            // The learner joins updates until they have so many numbers.
            assert_eq!(one.kernels.update_grain() == 1, without.updates, "{what}");
            assert_eq!(one.kernels.num_graphs(), NUM_GRAPHS, "{what}");
        }
    }
}

/// The largest difference of numbers given by their bits; infinite where one is no number.
fn distance(a: &[u32], b: &[u32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    let apart = pairs.map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs());
    let or_infinite = |apart: f32| if apart.is_nan() { f32::INFINITY } else { apart };
    apart.map(or_infinite).fold(0.0, f32::max)
}

/// On a GPU the interfaces of cuDNN may take kernels that sum in another order.
#[test]
#[ignore = "needs the stand-in of tests/cuda"]
fn needs_cuda_stand_in_training_by_the_graph_api_gives_the_bits_of_the_legacy_calls() {
    for model in all_models() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut legacy = OnGpu::new(&model, precision);
            let mut graph = by_graph_api(&model, precision, true);
            let reports = [&mut legacy, &mut graph].map(|one| one.learn(&model, 0..4));
            let what = format!("{} in {precision:?}", model.name);
            assert_eq!(reports[0], reports[1], "{what}");
            assert!(legacy.bits() == graph.bits(), "{what}");
            assert_eq!(graph.kernels.num_graphs(), NUM_GRAPHS, "{what}");
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_training_is_deterministic_and_follows_the_learning_rate() {
    let model = &all_models()[1];
    let run = |lr: f64| {
        let mut one = OnGpu::new(model, Precision::Bf16);
        one.learn(model, 0..3);
        // Recorded by now: a new rate must reach what is replayed.
        one.learner.optimiser.set_lr(lr);
        one.learn(model, 3..5);
        one.bits()
    };
    let first = run(0.05);
    assert!(first == run(0.05));
    assert!(first != run(0.04));
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_training_on_a_gpu_is_training_on_the_cpu() {
    for model in all_models() {
        let mut training = Training::of_model(cpu(1), &model, &setup(2), 1);
        for index in 0..2 {
            training.learn_unseen(&mut Stol { window: 2 }, &frames(&model, index), index);
        }
        let expected = training.kernels.take_report();
        let actual = OnGpu::new(&model, Precision::F32).learn(&model, 0..2);
        let what = model.name;
        assert_eq!(expected.batches, actual.batches, "{what}");
        assert_eq!(expected.samples, actual.samples, "{what}");
        assert_eq!(expected.neurons, actual.neurons, "{what}");
        for (t, (cpu, gpu)) in expected.loss.iter().zip(&actual.loss).enumerate() {
            let off = (cpu - gpu).abs() / cpu.abs();
            assert!(off < 1e-4, "{what} at t = {t}: {cpu} and {gpu}");
        }
    }
}

/// A spike that bf16 flips changes everything after it, so losses are not compared: bf16 is checked per
/// operation. But a network in bf16 learns a batch by heart.
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_a_network_in_bf16_learns() {
    let model = &all_models()[1];
    let mut one = OnGpu::new(model, Precision::Bf16);
    let mut losses = Vec::new();
    for _ in 0..12 {
        let report = one.learn(model, 0..1);
        losses.push(report.loss.iter().sum::<f64>());
    }
    assert!(losses[11] < 0.5 * losses[0], "{losses:?}");
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_memory_stays_as_it_is_after_the_second_batch() {
    let model = &all_models()[1];
    let mut one = OnGpu::new(model, Precision::Bf16);
    one.learn(model, 0..2);
    let (held, peak) = {
        let device = one.kernels.device();
        (device.allocated(), device.peak())
    };
    for index in 2..8 {
        one.learn(model, index..index + 1);
        assert_eq!(one.kernels.device().allocated(), held, "batch {index}");
        assert_eq!(one.kernels.device().peak(), peak, "batch {index}");
    }
    let device_bytes = one.learner.network.device_bytes(&one.kernels);
    // Beside what the network is said to take there is scratch, which these small layers fill badly.
    assert!(held >= device_bytes, "{held} {device_bytes}");
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_a_fault_in_a_recorded_time_step_is_told_late_and_nothing_is_updated_after_it() {
    let model = &all_models()[0];
    // One with a graph of its own, and one that is done by the graph of an earlier one.
    for spoilt in [0, 3] {
        fault_at(model, spoilt);
    }
}

/// Learns until a time step that is recorded has no numbers.
fn fault_at(model: &ModelOptions, time_step: usize) {
    let mut one = OnGpu::new(model, Precision::F32);
    one.learn(model, 0..3);
    assert_eq!(one.kernels.num_graphs(), NUM_GRAPHS);
    let mut spoilt = frames(model, 3);
    let len = SAMPLES * model.input.elements();
    spoilt.frames[time_step * len..][..len].fill(f32::NAN);
    let before = one.bits();
    let mut stol = Stol { window: 2 };
    let mut told = None;
    for index in 3..6 {
        let batch = spoilt.batch(index);
        let learnt = stol.learn(&mut one.learner, &mut one.kernels, &batch, &mut Unobserved);
        if let Err(error) = learnt {
            told = Some((index, error.alone().time_step));
            break;
        }
    }
    assert!(
        matches!(told, Some((3..=5, step)) if step == time_step),
        "{told:?}"
    );
    let after = one.bits();
    let weights = one.learner.network.plan().layout.len();
    // Running statistics move in the forward; weights before the fault alone.
    let is_same = before[..2 * weights] == after[..2 * weights];
    assert_eq!(is_same, time_step == 0);
    assert!(
        after[..2 * weights]
            .iter()
            .all(|bits| f32::from_bits(*bits).is_finite())
    );
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_what_is_asked_for_where_memory_is_out_is_counted_and_nothing_is_done() {
    let mut kernels = match CudaKernels::open(&options(Precision::F32)) {
        Ok(kernels) => kernels,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(kernels.shortage(), None);
    let before = kernels.device().allocated();
    let kept = BufferSpec::plain(1, Shape::new(1, 1, 64), 1);
    kernels.allocate(&kept);
    // 4 TiB, and what there would be room for.
    let huge = BufferSpec::plain(1024, Shape::new(1024, 1024, 1024), 1);
    let buffers = [huge, kept].map(|spec| kernels.allocate(&spec));
    let sizes = ArenaSizes {
        parameters: 1000,
        statistics: 10,
        moments: 0,
        states: 1,
    };
    kernels.allocate_arenas(sizes);
    kernels.write_arena(Arena::Weights, 0, &[1.0; 1000]);
    kernels.write(buffers[1], 0, &[1.0; 64]);
    kernels.wait();
    let failure = kernels.failure().expect("memory is out");
    assert!(failure.what.contains("out of memory"), "{failure}");
    assert!(!failure.may_pass);
    assert_eq!(kernels.device().fault(), None);
    let shortage = kernels.shortage().expect("memory is out");
    assert_eq!(shortage.fixed, sizes.bytes());
    let held = before + 2 * kernels.bytes(&kept);
    assert_eq!(shortage.needed, held + kernels.bytes(&huge) + sizes.bytes());
    assert!(shortage.available < shortage.needed);
}

/// The argument of a kernel that is not there.
#[derive(Clone, Copy)]
#[repr(C)]
struct Nothing(u64);

// SAFETY: nothing is launched with it.
unsafe impl Arguments for Nothing {
    const KERNEL: &'static str = "a_kernel_that_is_not_there";
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_a_device_that_fails_in_training_is_told_as_that_and_never_as_a_number() {
    let model = &all_models()[1];
    // Before anything was recorded, while it is, and after.
    for batches in 0..4 {
        let mut one = OnGpu::new(model, Precision::F32);
        one.learn(model, 0..batches);
        one.kernels.device().launch([1, 1, 1], 32, &Nothing(0));
        for index in batches..batches + 3 {
            let frames = frames(model, index);
            let batch = frames.batch(index);
            let mut stol = Stol { window: 2 };
            let learnt = stol.learn(&mut one.learner, &mut one.kernels, &batch, &mut Unobserved);
            assert!(learnt.is_ok(), "{learnt:?}");
        }
        let _ = one.kernels.take_report();
        assert_eq!(one.kernels.poll_fault(), None);
        let failure = one.kernels.failure().expect("the device has failed");
        assert!(failure.what.contains(Nothing::KERNEL), "{failure}");
    }
}
