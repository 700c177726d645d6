//! Training by ranks whose gradients lie on GPUs is training through the host.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use synfire::collective::{Collective, Nccl, Wire};
use synfire::engine::Network;
use synfire::engine::plan::Settings;
use synfire::graph::init;
use synfire::graph::models::{self, ModelName, ModelOptions};
use synfire::kernel::cuda::device::Arguments;
use synfire::kernel::cuda::{CudaKernels, Options, Precision};
use synfire::kernel::{Arena, Kernels, Loss, Neuron, Norms, Report, Without};
use synfire::learn::bptt::Bptt;
use synfire::learn::exchange::{Exchange, Part, measured_between_devices};
use synfire::learn::optimiser::Optimiser;
use synfire::learn::stol::Stol;
use synfire::learn::{Algorithm, Batch, Input, Learner, Masks, Unobserved};
use synfire::shape::Shape;
use synfire_shared::run;

use super::job::Seat;

/// Two of them are like earlier ones; the last, in which ranks tell each other more, is of its own.
const TIME_STEPS: usize = 5;
/// Those of which each has graphs of its own.
const APART: usize = 4;
/// Time steps are recorded on a GPU when they come the second time, where they can be; in the last batch all
/// are replayed.
const BATCHES: usize = 3;

/// What is trained, and how it travels.
#[derive(Clone)]
struct Plan {
    batch: usize,
    places: Range<usize>,
    wire: Wire,
    overlaps: bool,
    bptt: bool,
    norms: Norms,
    precision: Precision,
}

impl Plan {
    /// Two samples for each rank, in f32.
    fn of(seat: &Seat) -> Self {
        Self {
            batch: 2 * seat.world,
            places: 2 * seat.rank..2 * seat.rank + 2,
            wire: Wire::F32,
            overlaps: true,
            bptt: false,
            norms: Norms::Pooled,
            precision: Precision::F32,
        }
    }
}

/// What came of it.
struct Trained {
    weights: Vec<f32>,
    statistics: Vec<f32>,
    report: Report,
    stopped: Option<usize>,
    graphs: usize,
    /// Time steps that are replayed.
    recorded: usize,
}

pub(super) fn compare(seat: &Seat) {
    let equal = Plan::of(seat);
    both(seat, &equal, 0.0);
    both(
        seat,
        &Plan {
            precision: Precision::Bf16,
            ..equal.clone()
        },
        0.0,
    );
    both(
        seat,
        &Plan {
            norms: Norms::Synchronised,
            ..equal.clone()
        },
        0.0,
    );
    both(
        seat,
        &Plan {
            overlaps: false,
            ..equal.clone()
        },
        0.0,
    );
    both(
        seat,
        &Plan {
            bptt: true,
            norms: Norms::Synchronised,
            ..equal.clone()
        },
        0.0,
    );
    // bf16 is rounded at other moments; of a single rank the host rounds nothing.
    if seat.world > 1 {
        both(
            seat,
            &Plan {
                wire: Wire::Bf16,
                norms: Norms::Synchronised,
                ..equal.clone()
            },
            2e-3,
        );
    }
    // One rank has 3 samples and the others 2: factors are rounded elsewhere.
    let begin = |rank: usize| 2 * rank + rank.min(1);
    let unequal = Plan {
        batch: 2 * seat.world + 1,
        places: begin(seat.rank)..begin(seat.rank + 1),
        ..equal
    };
    both(seat, &unequal, 2e-5);
    both(
        seat,
        &Plan {
            norms: Norms::Synchronised,
            ..unequal
        },
        2e-5,
    );
    println!("training passed");
}

fn kernels(gpu: u32, precision: Precision, records: bool) -> CudaKernels {
    let options = Options {
        ordinal: gpu,
        precision,
        without: Without {
            graphs: !records,
            ..Without::default()
        },
        ..Options::default()
    };
    CudaKernels::open(&options).unwrap()
}

/// Trains both ways, and between GPUs with and without graphs. Where W is a power of two nothing is rounded differently.
fn both(seat: &Seat, plan: &Plan, tolerance: f32) {
    let exact = tolerance == 0.0 && seat.world.is_power_of_two();
    let tolerance = if exact { 0.0 } else { tolerance.max(2e-5) };
    let gpu = u32::try_from(seat.rank).unwrap();
    let host = train(
        kernels(gpu, plan.precision, true),
        Box::new(seat.tcp()),
        plan,
    );
    let [written, device] = [false, true].map(|records| {
        let mut group: Box<dyn Collective> = Box::new(seat.tcp());
        Nccl::join(&mut group, gpu, super::LONG).unwrap();
        train(kernels(gpu, plan.precision, records), group, plan)
    });
    near(&written.weights, &device.weights, 0.0);
    near(&written.statistics, &device.statistics, 0.0);
    assert_eq!(written.report, device.report);
    // BPTT's batch is no row of time steps that are alike. A time step of others is cut by its buckets.
    assert_eq!(written.graphs, 0);
    if plan.bptt {
        assert_eq!([host.graphs, device.graphs], [0, 0]);
    } else {
        assert_eq!([host.recorded, device.recorded], [APART; 2]);
        assert!(host.graphs >= APART, "{}", host.graphs);
        assert!(device.graphs >= 4 * APART, "{}", device.graphs);
    }
    near(&host.weights, &device.weights, tolerance);
    near(&host.statistics, &device.statistics, tolerance);
    assert_eq!(host.stopped, Some(15));
    assert_eq!(device.stopped, Some(15));
    let samples: u64 = device.report.samples.iter().sum();
    assert_eq!(samples, (plan.batch * TIME_STEPS * BATCHES) as u64);
    assert_eq!(host.report.samples, device.report.samples);
    if exact {
        assert_eq!(host.report, device.report);
    }
}

fn near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().any(|value| *value != 0.0));
    let distance = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(distance <= tolerance, "{distance} and {tolerance}");
}

/// What happens before the last batch, when time steps are replayed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Rank 1 is gone.
    Killed,
    /// GPUs of these ranks do nothing any more; what they give to averages is finite.
    Broken(&'static [usize]),
}

/// The argument of a kernel that is not there.
#[derive(Clone, Copy)]
#[repr(C)]
struct Nothing(u64);

// SAFETY: nothing is launched with it.
unsafe impl Arguments for Nothing {
    const KERNEL: &'static str = "a_kernel_that_is_not_there";
}

/// Learning ends for the others, with its name, and their GPUs can be asked further.
pub(super) fn in_trouble(seat: &Seat, trouble: Trouble) {
    let gpu = u32::try_from(seat.rank).unwrap();
    let plan = Plan::of(seat);
    let mut group: Box<dyn Collective> = Box::new(seat.tcp());
    Nccl::join(&mut group, gpu, super::LONG).unwrap();
    let mut kernels = kernels(gpu, plan.precision, true);
    let mut learner = learner(&mut kernels, &plan, 2);
    let exchange = exchange(&mut kernels, group, &plan, &learner, &Arc::default());
    learner.exchange = Some(exchange);
    for index in 0..BATCHES {
        let is_last = index + 1 == BATCHES;
        match trouble {
            Trouble::Killed if is_last && seat.rank == 1 => super::signal("KILL"),
            Trouble::Broken(ranks) if is_last && ranks.contains(&seat.rank) => {
                kernels.device().launch([1, 1, 1], 32, &Nothing(0));
            }
            Trouble::Killed | Trouble::Broken(_) => {}
        }
        let (x, labels) = data(index, &plan);
        let batch = Batch {
            index: index as u64,
            input: Input::Static(&x),
            labels: &labels,
            num_time_steps: TIME_STEPS,
            masks: Masks::Keyed,
        };
        let mut stol = Stol { window: 2 };
        let learnt = stol.learn(&mut learner, &mut kernels, &batch, &mut Unobserved);
        if let Err(error) = learnt {
            assert!(is_last, "{error}");
            println!("over: {error}");
        }
    }
    assert_eq!(kernels.num_recorded(), APART);
    assert!(kernels.num_graphs() >= 4 * APART);
    let is_broken = matches!(trouble, Trouble::Broken(ranks) if ranks.contains(&seat.rank));
    assert_eq!(kernels.failure().is_some(), is_broken);
    let mut weights = vec![0.0; learner.network.plan().layout.len()];
    kernels.read_arena(Arena::Weights, 0, &mut weights);
    assert!(is_broken || weights.iter().any(|weight| *weight != 0.0));
    println!("passed");
}

fn train(mut kernels: CudaKernels, collective: Box<dyn Collective>, plan: &Plan) -> Trained {
    let mut algorithm: Box<dyn Algorithm> = if plan.bptt {
        Box::new(Bptt)
    } else {
        Box::new(Stol { window: 2 })
    };
    let mut learner = learner(&mut kernels, plan, algorithm.window(TIME_STEPS));
    let rank = collective.rank().0;
    let stop = Arc::default();
    let exchange = exchange(&mut kernels, collective, plan, &learner, &stop);
    learner.exchange = Some(exchange);
    for index in 0..BATCHES {
        // Rank 0 is told to stop in the last batch, and all hear it.
        if index + 1 == BATCHES && rank == 0 {
            stop.store(15, Ordering::Relaxed);
        }
        let (x, labels) = data(index, plan);
        let batch = Batch {
            index: index as u64,
            input: Input::Static(&x),
            labels: &labels,
            num_time_steps: TIME_STEPS,
            masks: Masks::Keyed,
        };
        let mut result = Ok(());
        kernels.run(&mut |kernels| {
            result = algorithm.learn(&mut learner, kernels, &batch, &mut Unobserved);
        });
        result.unwrap();
        let stopped = learner.exchange.as_ref().unwrap().stopped();
        assert_eq!(stopped.is_some(), index + 1 == BATCHES);
    }
    let layout = &learner.network.plan().layout;
    let (mut weights, mut statistics) =
        (vec![0.0; layout.len()], vec![0.0; layout.statistics_len()]);
    kernels.read_arena(Arena::Weights, 0, &mut weights);
    kernels.read_arena(Arena::Statistics, 0, &mut statistics);
    let exchange = learner.exchange.as_mut().unwrap();
    Trained {
        weights,
        statistics,
        report: exchange.take_report(),
        stopped: exchange.stopped(),
        graphs: kernels.num_graphs(),
        recorded: kernels.num_recorded(),
    }
}

fn learner(kernels: &mut dyn Kernels, plan: &Plan, window: usize) -> Learner {
    let options = ModelOptions {
        input: Shape::new(8, 8, 1),
        classes: 4,
        width: 0.25,
        ..ModelOptions::new(ModelName::Small)
    };
    let graph = models::build(&options).unwrap();
    let settings = Settings {
        samples: plan.places.len(),
        window,
        neuron: Neuron::default(),
        bn_eps: 1e-5,
        bn_momentum: 0.1,
        dropout_rescale: true,
        seed: 1,
        norms: plan.norms,
        first_sample: plan.places.start,
    };
    let network = Network::new(&graph, &settings, 1, kernels);
    for (name, values) in init::parameters(&options, &graph, 1) {
        network.set(kernels, &name, &values).unwrap();
    }
    let optimiser = Optimiser::new(run::Optimiser::Sgd {
        lr: 0.05,
        momentum: 0.9,
        weight_decay: 1e-4,
    });
    let loss = Loss {
        samples: plan.places.len(),
        classes: 4,
        ce: 1.0,
        mse: 0.0,
    };
    Learner::new(network, loss, optimiser)
}

fn exchange(
    kernels: &mut dyn Kernels,
    mut collective: Box<dyn Collective>,
    plan: &Plan,
    learner: &Learner,
    stop: &Arc<AtomicUsize>,
) -> Exchange {
    // A group without GPUs averages what the host reads of them.
    let is_between_gpus = collective.on_device().is_some();
    let arenas = kernels.device_arenas().filter(|_| is_between_gpus);
    if let Some(arenas) = &arenas {
        let len = learner.network.plan().layout.len();
        let chosen = measured_between_devices(&mut *collective, arenas, len, plan.wire).unwrap();
        assert!(chosen >= 64 << 10, "{chosen}");
    }
    let part = Part {
        places: plan.places.clone(),
        batch: plan.batch,
        wire: plan.wire,
        // Several buckets.
        bucket: 300,
        overlaps: plan.overlaps,
        stop: Arc::clone(stop),
        waiting: Arc::new(|_| ()),
    };
    let mut exchange = Exchange::new(collective, part, &learner.network, TIME_STEPS);
    if let Some(arenas) = arenas {
        exchange = exchange.between_devices(arenas);
    }
    assert!(exchange.buckets().count() > 2);
    exchange
}

/// This rank's part of a batch that is the same at any number of ranks.
fn data(index: usize, plan: &Plan) -> (Vec<f32>, Vec<u32>) {
    let pixel =
        |sample: usize, i: usize| ((sample * 31 + i * 7 + index * 13) % 17) as f32 / 8.0 - 0.5;
    let x = plan
        .places
        .clone()
        .flat_map(|s| (0..64).map(move |i| pixel(s, i)))
        .collect();
    let labels = plan
        .places
        .clone()
        .map(|s| u32::try_from((s + index) % 4).unwrap())
        .collect();
    (x, labels)
}
