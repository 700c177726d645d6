//! Shares of a batch on several ranks are one batch: running statistics, synchronised batch norm
//! forward and backward, dropout.
//!
//! The ranks are threads, and all that they tell each other are weighted means in f32, as the engine
//! asks for them.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use synfire::engine::{Network, Shared};
use synfire::graph::{Graph, Op, ValueId};
use synfire::kernel::{
    Arena, BufferSpec, Kernels, Loss, Norm, NormLif, Norms, Phase, Span, Step, Window,
};
use synfire::shape::{Join, Shape};
use synfire_tests::random::Random;
use synfire_tests::rig::{Make, cpu, reference};
use synfire_tests::training::{Setup, Tensors};

/// Samples of all ranks.
const SAMPLES: usize = 8;
/// Ways to cut them into shares.
const CUTS: [&[usize]; 3] = [&[4, 4], &[3, 5], &[2, 1, 5]];
const BACK_ENDS: [Make; 2] = [reference, || cpu(2, None)];

/// One rank's end of the exchange. A rank that dies drops it, and the others end too.
struct Exchange {
    samples: Vec<usize>,
    rank: usize,
    to: Vec<SyncSender<Vec<f32>>>,
    from: Vec<Receiver<Vec<f32>>>,
}

impl Exchange {
    fn all(samples: &[usize]) -> Vec<Self> {
        let end = |rank| Self {
            samples: samples.to_vec(),
            rank,
            to: Vec::new(),
            from: Vec::new(),
        };
        let mut ends: Vec<Self> = (0..samples.len()).map(end).collect();
        for sender in 0..samples.len() {
            for receiver in 0..samples.len() {
                let (to, from) = sync_channel(2);
                ends[sender].to.push(to);
                ends[receiver].from.push(from);
            }
        }
        ends
    }

    /// Puts the mean over ranks in the place of numbers, weighted by samples.
    fn pool(&self, values: &mut [f32]) {
        for to in &self.to {
            to.send(values.to_vec()).expect("the other rank lives");
        }
        values.fill(0.0);
        for (samples, from) in self.samples.iter().zip(&self.from) {
            let theirs = from.recv().expect("the other rank lives");
            assert_eq!(theirs.len(), values.len(), "numbers of every rank");
            let weight = *samples as f32 / SAMPLES as f32;
            for (sum, value) in values.iter_mut().zip(theirs) {
                *sum += weight * value;
            }
        }
    }

    /// Samples of this rank, and the place of its first.
    fn share(&self) -> (usize, usize) {
        let first = self.samples[..self.rank].iter().sum();
        (self.samples[self.rank], first)
    }
}

/// Runs a rank for each share, all at once; what they give, by rank.
fn on_ranks<T: Send>(samples: &[usize], rank: impl Fn(&Exchange) -> T + Sync) -> Vec<T> {
    let rank = &rank;
    std::thread::scope(|scope| {
        let ends = Exchange::all(samples).into_iter();
        let threads: Vec<_> = ends.map(|end| scope.spawn(move || rank(&end))).collect();
        let ends = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        ends.map(|end| end.expect("every rank ends")).collect()
    })
}

/// # Panics
/// Beyond `allowed` times the largest expected number; names the worst.
fn assert_near(what: &str, expected: &[f32], actual: &[f32], allowed: f32) {
    assert_eq!(expected.len(), actual.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
    for (i, (e, a)) in expected.iter().zip(actual).enumerate() {
        let off = (e - a).abs();
        assert!(
            off <= allowed * largest,
            "{what}: element {i} is {a}, should be {e}, largest {largest}"
        );
    }
}

/// The mean, the deviation and the running mean at the start of each channel.
type Channels = [[f32; 3]; 5];

const NORM_SHAPE: Shape = Shape {
    height: 3,
    width: 3,
    channels: 5,
};

/// Running means, then variances after some time steps of a norm alone.
fn running(make: Make, channels: Channels, norms: Norms, exchange: &Exchange) -> [Vec<f32>; 2] {
    let (samples, first) = exchange.share();
    let mut kernels = make();
    let c = channels.len();
    let spans = [0, 16].map(|offset| Span { offset, len: c });
    kernels.allocate_arenas(synfire::kernel::ArenaSizes {
        parameters: 32,
        statistics: 32,
        moments: 32,
        states: 1,
    });
    let [means, ones] = [channels.map(|[.., m0]| m0).to_vec(), vec![1.0; c]];
    kernels.write_arena(Arena::Statistics, spans[0].offset, &means);
    kernels.write_arena(Arena::Statistics, spans[1].offset, &ones);
    let norm = Norm {
        gamma: spans[0],
        beta: spans[1],
        running_mean: spans[0],
        running_var: spans[1],
        eps: 1e-5,
        momentum: 0.1,
        moments: kernels.allocate(&BufferSpec::plain(1, Shape::new(1, 2, c), 1)),
        across: norms,
        sums: None,
    };
    let spec = BufferSpec::plain(samples, NORM_SHAPE, 1);
    let layer = NormLif {
        samples,
        shape: NORM_SHAPE,
        norm: Some(norm),
        lif: None,
        z: kernels.allocate(&spec),
        before: None,
        y: Some(kernels.allocate(&spec)),
        after: None,
        out: None,
    };
    for t in 0..5 {
        let elements = NORM_SHAPE.elements();
        let drawn = Random::new(t as u64).normal(SAMPLES * elements);
        // Shares differ: samples have means of their own.
        let z = drawn.iter().enumerate().map(|(i, x)| {
            let [mean, deviation, _] = channels[i % c];
            mean + deviation * (x + (i / elements) as f32 * 0.3)
        });
        let own = z.skip(first * elements).take(samples * elements);
        kernels.write(layer.z, t, &own.collect::<Vec<f32>>());
        kernels.norm_lif_forward(&layer, t, Phase::Train);
        if norms == Norms::Pooled {
            let mut moments = vec![0.0; 32];
            kernels.read_arena(Arena::Moments, 0, &mut moments);
            exchange.pool(&mut moments);
            kernels.write_arena(Arena::Moments, 0, &moments);
            kernels.apply_moments(&norm, (SAMPLES * NORM_SHAPE.pixels()) as u64);
        }
    }
    spans.map(|span| {
        let mut values = vec![0.0; c];
        kernels.read_arena(Arena::Statistics, span.offset, &mut values);
        values
    })
}

/// Holds the running statistics of shares to those of one rank: `allowed(mean, deviation, m0)`, by
/// channel and relative to the mean and to the variance.
fn hold_running(channels: Channels, allowed: impl Fn([f32; 3]) -> [f32; 2]) {
    for make in BACK_ENDS {
        let one = on_ranks(&[SAMPLES], |end| running(make, channels, Norms::Own, end));
        for cut in CUTS {
            let shares = on_ranks(cut, |end| running(make, channels, Norms::Pooled, end));
            for rank in &shares {
                assert_eq!(rank, &shares[0], "every rank has the same bits");
            }
            for (part, name) in ["mean", "variance"].into_iter().enumerate() {
                for (c, channel) in channels.into_iter().enumerate() {
                    let what = format!("running {name} of channel {c}, {cut:?}");
                    let (want, got) = (one[0][part][c], shares[0][part][c]);
                    assert_near(&what, &[want], &[got], allowed(channel)[part]);
                }
            }
        }
    }
}

#[test]
fn running_statistics_of_shares_are_those_of_the_batch() {
    let channels = [
        [0.0, 1.0, 0.0],
        [3.0, 0.5, 2.0],
        [1000.0, 1.0, 1001.0],
        [-300.0, 2.0, -295.0],
        [20.0, 1.0, 18.0],
    ];
    // The means of shares are rounded to f32, which near 1000 has steps of 6e-5.
    hold_running(channels, |[mean, deviation, _]| {
        let step = f32::EPSILON / 2.0 * mean.abs() / deviation;
        [1e-6, 1e-6 + step / 2.0]
    });
}

/// Far from the running mean the variance is a difference of large numbers: its error is that of the
/// square of the distance in f32, and running means that follow make an end of it.
#[test]
fn far_from_the_running_mean_variances_are_as_good_as_the_square_of_the_distance() {
    let far = |deviation| [100.0, deviation, 0.0];
    let channels = [1.0, 3.0, 10.0, 30.0, 100.0].map(far);
    hold_running(channels, |[mean, deviation, m0]| {
        let ratio = (mean - m0) / deviation;
        [1e-6, 1e-6 + 1e-7 * ratio * ratio]
    });
}

const CLASSES: usize = 4;
const NUM_TIME_STEPS: usize = 3;
const NUM_BATCHES: u64 = 2;
const WINDOW: usize = 2;
const INPUT: Shape = Shape {
    height: 4,
    width: 4,
    channels: 2,
};

/// A norm on the input; one whose value a later sum reads; two of one value, so that the error of
/// one adds to the other's; dropout.
fn network() -> Graph {
    let mut graph = Graph::new(INPUT);
    let mut add =
        |name: &str, op: Op, inputs: &[ValueId]| graph.add(name, op, inputs).expect("it fits");
    let conv = |outputs| Op::Conv {
        outputs,
        kernel: 3,
        stride: 1,
        padding: 1,
        bias: false,
    };
    let sum = || Op::Residual(Join::Add);
    let x = add("bn0", Op::BatchNorm, &[ValueId(0)]);
    let x = add("conv1", conv(5), &[x]);
    let stream = add("bn1", Op::BatchNorm, &[x]);
    let x = add("sn1", Op::Lif, &[stream]);
    let x = add("conv2", conv(5), &[x]);
    let [a, b] = ["bn2", "bn3"].map(|name| add(name, Op::BatchNorm, &[x]));
    let x = add("add2", sum(), &[a, b]);
    let x = add("add3", sum(), &[x, stream]);
    let x = add("sn2", Op::Lif, &[x]);
    let x = add("pool", Op::AvgPool { kernel: 2 }, &[x]);
    let x = add("flat", Op::Flatten, &[x]);
    let x = add("drop", Op::Dropout { p: 0.3 }, &[x]);
    let logits = add("fc", Op::Linear { outputs: CLASSES }, &[x]);
    graph.finish(logits).expect("it is whole")
}

/// A time step of training, as a rank sees it.
#[derive(Default)]
struct Seen {
    /// Of its share.
    logits: Vec<f32>,
    /// Of its share.
    masks: Vec<f32>,
    /// Averaged over ranks.
    gradients: Tensors,
    statistics: Tensors,
    margin: f32,
}

/// Trains by STOL on a share.
fn train(make: Make, norms: Norms, seed: u64, exchange: &Exchange) -> Vec<Seen> {
    let (samples, first) = exchange.share();
    let setup = Setup {
        norms,
        first_sample: first,
        seed,
        ..Setup::new(samples, WINDOW)
    };
    let graph = network();
    let mut kernels = make();
    let kernels = &mut *kernels;
    let mut network = Network::new(&graph, &setup.settings(), 1, kernels);
    let mut random = Random::new(seed);
    for parameter in graph.parameters() {
        let scale = if parameter.name.starts_with("bn") {
            0.3
        } else {
            0.4
        };
        let shift = f32::from(parameter.name.starts_with("bn"));
        let drawn = random.normal(parameter.elements());
        let values: Vec<f32> = drawn.iter().map(|x| shift + scale * x).collect();
        let set = network.set(kernels, &parameter.name, &values);
        set.expect("the network has its own parameters");
    }
    let loss = Loss {
        samples,
        classes: CLASSES,
        ce: 0.95,
        mse: 0.05,
    };
    let mut seen = Vec::new();
    for batch in 0..NUM_BATCHES {
        let label = |_| u32::try_from(random.below(CLASSES)).expect("few classes");
        let labels: Vec<u32> = (0..SAMPLES).map(label).collect();
        kernels.write_labels(&labels[first..first + samples]);
        for t in 0..NUM_TIME_STEPS {
            let len = INPUT.elements();
            let frames = random.normal(SAMPLES * len).into_iter().enumerate();
            // Shares differ: samples have means of their own.
            let frames = frames.map(|(i, x)| x + (i / len) as f32 * 0.3);
            let own: Vec<f32> = frames.skip(first * len).take(samples * len).collect();
            network.write_input(kernels, t, &own);
            network.draw_masks(kernels, batch, t);
            let mut pool = |kernels: &mut dyn Kernels, what: Shared| {
                let mut numbers = vec![0.0; what.len()];
                what.read(kernels, &mut numbers);
                exchange.pool(&mut numbers);
                what.write(kernels, &numbers);
            };
            network.forward_across(kernels, t, Phase::Train, &mut pool);
            network.loss(kernels, &loss, t, Phase::Train);
            let window = Window {
                newest: t,
                len: WINDOW.min(t + 1),
            };
            let seeded = window.newest_only();
            network.backward_across(kernels, window, seeded, &mut pool, &mut |_, _, _| {});
            seen.push(update(kernels, &mut network, t, exchange));
        }
    }
    seen
}

/// The rest of a time step: averages over ranks, the update.
fn update(kernels: &mut dyn Kernels, network: &mut Network, t: usize, exchange: &Exchange) -> Seen {
    let mut seen = Seen {
        logits: vec![0.0; network.plan().settings.samples * CLASSES],
        margin: network.threshold_margin(kernels, t),
        ..Seen::default()
    };
    network.read_logits(kernels, t, &mut seen.logits);
    let take = &mut |_: &str, _, mask: &[f32]| seen.masks.extend_from_slice(mask);
    network.read_masks(kernels, t, take);
    let len = network.plan().layout.len();
    // The moments ride behind the gradients.
    let mut travelling = vec![0.0; len + network.moments_len()];
    kernels.read_arena(Arena::Gradients, 0, &mut travelling[..len]);
    network.read_moments(kernels, &mut travelling[len..]);
    exchange.pool(&mut travelling);
    kernels.write_arena(Arena::Gradients, 0, &travelling[..len]);
    network.write_moments(kernels, &travelling[len..]);
    network.apply_moments(kernels, SAMPLES);
    let step = Step::Sgd {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 0.0,
    };
    Network::update(kernels, &mut network.profile, Span { offset: 0, len }, step);
    let layout = &network.plan().layout;
    let mut get = |arena, name: &String| {
        let values = network.get(kernels, arena, name);
        (name.clone(), values.expect("it is listed"))
    };
    let gradients = layout.parameters().iter();
    seen.gradients = gradients
        .map(|(p, _)| get(Arena::Gradients, &p.name))
        .collect();
    let statistics = layout.statistics().iter();
    seen.statistics = statistics
        .map(|(name, _)| get(Arena::Statistics, name))
        .collect();
    seen
}

/// One rank with a whole batch whose membrane potentials are away from the threshold, so that
/// rounding decides about no spike.
fn one_rank(make: Make) -> (u64, Vec<Seen>) {
    let clear = |seed| {
        let mut ranks = on_ranks(&[SAMPLES], |end| train(make, Norms::Own, seed, end));
        let seen = ranks.remove(0);
        let is_clear = seen.iter().all(|step| step.margin > 1e-4);
        is_clear.then_some((seed, seen))
    };
    (0..100).find_map(clear).expect("a smaller net would do")
}

#[test]
fn shares_with_synchronised_norms_are_one_batch() {
    for make in BACK_ENDS {
        let (seed, one) = one_rank(make);
        for cut in CUTS {
            let ranks = on_ranks(cut, |end| train(make, Norms::Synchronised, seed, end));
            for (index, whole) in one.iter().enumerate() {
                let what = |name: &str| format!("{name} after {index} updates, {cut:?}");
                let all = ranks.iter().flat_map(|rank| &rank[index].logits);
                let logits: Vec<f32> = all.copied().collect();
                assert_near(&what("logits"), &whole.logits, &logits, 1e-5);
                for rank in &ranks {
                    let step = &rank[index];
                    for (name, expected) in &whole.gradients {
                        assert_near(&what(name), expected, &step.gradients[name], 1e-5);
                    }
                    for (name, expected) in &whole.statistics {
                        assert_near(&what(name), expected, &step.statistics[name], 1e-5);
                    }
                    assert_eq!(step.gradients, ranks[0][index].gradients, "the same bits");
                    assert_eq!(step.statistics, ranks[0][index].statistics, "the same bits");
                }
            }
        }
    }
}

#[test]
fn masks_of_shares_are_those_of_the_batch() {
    for make in BACK_ENDS {
        let one = on_ranks(&[SAMPLES], |end| train(make, Norms::Own, 1, end));
        for cut in CUTS {
            let ranks = on_ranks(cut, |end| train(make, Norms::Pooled, 1, end));
            for (index, whole) in one[0].iter().enumerate() {
                let masks = ranks.iter().flat_map(|rank| &rank[index].masks);
                assert!(masks.eq(&whole.masks), "after {index} updates, {cut:?}");
                let dropped = whole.masks.iter().filter(|mask| **mask == 0.0).count();
                assert!((1..whole.masks.len()).contains(&dropped));
            }
        }
    }
}

/// One rank alone is all ranks: what travels is its own.
#[test]
fn one_synchronised_rank_is_one_rank() {
    for make in BACK_ENDS {
        let (seed, one) = one_rank(make);
        let alone = on_ranks(&[SAMPLES], |end| {
            train(make, Norms::Synchronised, seed, end)
        });
        for (want, got) in one.iter().zip(&alone[0]) {
            assert_near("logits", &want.logits, &got.logits, 1e-5);
            for (name, expected) in &want.gradients {
                assert_near(name, expected, &got.gradients[name], 1e-5);
            }
        }
    }
}
