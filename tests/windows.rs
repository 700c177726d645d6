//! What STOL computes at a time step is the gradient of that step's loss through the newest k time
//! steps, as autodiff finds it.
//!
//! Weights are frozen (lr = 0): then the older time steps that Algorithm 1 saved are those that
//! autodiff runs again.

use std::collections::BTreeSet;

use synfire::graph::{Graph, Op, ValueId};
use synfire::kernel::{Kernels, Neuron, Reset};
use synfire::learn::Algorithm;
use synfire::learn::bptt::Bptt;
use synfire::learn::stol::Stol;
use synfire::shape::{Join, Shape};
use synfire_tests::oracle::{Oracle, resets};
use synfire_tests::outcome::{Tolerance, assert_close};
use synfire_tests::random::Random;
use synfire_tests::rig::reference;
use synfire_tests::training::{Frames, PAPER, Seen, Setup, Tensors, Training, cpu};

#[path = "windows/models.rs"]
mod models;

const NUM_TIME_STEPS: usize = 4;
const SAMPLES: usize = 3;
const CLASSES: usize = 5;

/// A potential nearer to the threshold than this may fire on one side only: forward values are
/// within 1e-5 of their largest (about 4), and typically ten times nearer.
const MARGIN: f32 = 4e-6;

/// The convolution that has a bias, in spite of the norm behind it.
const BIASED: &str = "enter";

/// The graph under construction.
struct Net(Graph);

impl Net {
    fn add(&mut self, name: &str, op: Op, inputs: &[ValueId]) -> ValueId {
        self.0.add(name, op, inputs).expect("it fits")
    }

    fn conv(&mut self, name: &str, x: ValueId, outputs: usize, filter: [usize; 2]) -> ValueId {
        let [kernel, stride] = filter;
        let op = Op::Conv {
            outputs,
            kernel,
            stride,
            padding: kernel / 2,
            bias: name == BIASED,
        };
        let y = self.add(name, op, &[x]);
        self.add(&format!("{name}.bn"), Op::BatchNorm, &[y])
    }

    fn lif(&mut self, name: &str, x: ValueId) -> ValueId {
        self.add(name, Op::Lif, &[x])
    }
}

/// Everything that a network may be made of, in sizes drawn from `seed`: a stem with a max pool; a
/// block whose spikes are joined with its shortcut's; two blocks on a real stream, the second with
/// a twin neuron and a strided shortcut; pools; dropout.
fn network(join: Join, seed: u64) -> Graph {
    let mut random = Random::new(seed);
    let width = 4 + random.below(4);
    let (height, side) = (7 + random.below(3), 6 + random.below(3));
    let mut net = Net(Graph::new(Shape::new(height, side, 2)));
    let x = net.conv("stem", net.0.input(), width, [3, 1]);
    let x = net.lif("stem.sn", x);
    let pool = Op::MaxPool {
        kernel: 3,
        stride: 2,
        padding: 1,
    };
    let x = net.add("stem.pool", pool, &[x]);
    let a = net.conv("spiking", x, width, [3, 1]);
    let a = net.lif("spiking.sn", a);
    let x = net.add("spiking.join", Op::Residual(join), &[a, x]);

    let stream = net.conv(BIASED, x, width + 1, [1, 1]);
    let h = net.lif("real1.sn", stream);
    let h = net.conv("real1", h, width + 1, [3, 1]);
    let stream = net.add("real1.add", Op::Residual(Join::Add), &[h, stream]);
    let h = net.lif("real2.sn", stream);
    let twin = net.lif("real2.twin", stream);
    let h = net.conv("real2", h, width + 2, [3, 2]);
    let short = net.conv("real2.short", twin, width + 2, [1, 2]);
    let stream = net.add("real2.add", Op::Residual(Join::Add), &[h, short]);
    let x = net.lif("head.sn", stream);

    let x = net.add("average", Op::AvgPool { kernel: 2 }, &[x]);
    let x = net.add("adaptive", Op::AdaptiveAvgPool { side: 2 }, &[x]);
    let x = net.add("flat", Op::Flatten, &[x]);
    let x = net.add("drop", Op::Dropout { p: 0.25 }, &[x]);
    let logits = net.add("fc", Op::Linear { outputs: CLASSES }, &[x]);
    net.0.finish(logits).expect("it is whole")
}

/// Weights that keep layers alive.
fn parameters(graph: &Graph, seed: u64) -> Tensors {
    let mut random = Random::new(seed ^ 0xabc);
    let all = graph.parameters().into_iter();
    all.map(|p| {
        let fan_in: usize = p.shape[1..].iter().product();
        let (mean, scale) = match (&graph.nodes()[p.node].op, p.name.ends_with("weight")) {
            (Op::BatchNorm, true) => (1.2, 0.2),
            (Op::BatchNorm, false) => (0.3, 0.2),
            (_, true) => (0.0, 1.0 / (fan_in as f32).sqrt()),
            (_, false) => (0.0, 0.1),
        };
        let values = random.normal(p.elements());
        (p.name, values.iter().map(|x| mean + scale * x).collect())
    })
    .collect()
}

/// Frames that change with time.
fn frames(input: Shape, num_time_steps: usize, samples: usize, classes: usize) -> Frames {
    let mut random = Random::new(99);
    let labels = (0..samples).map(|_| u32::try_from(random.below(classes)).expect("few classes"));
    let labels = labels.collect();
    Frames {
        frames: random.normal(num_time_steps * samples * input.elements()),
        labels,
        num_time_steps,
    }
}

/// A network with everything that its gradients depend on.
struct Case {
    name: String,
    graph: Graph,
    parameters: Tensors,
    frames: Frames,
    neuron: Neuron,
}

impl Case {
    fn new(join: Join, neuron: Neuron, seed: u64) -> Self {
        let graph = network(join, seed);
        let input = graph.value(graph.input()).shape;
        Self {
            name: format!("{join:?}, {neuron:?}, seed {seed}"),
            parameters: parameters(&graph, seed),
            frames: frames(input, NUM_TIME_STEPS, SAMPLES, CLASSES),
            graph,
            neuron,
        }
    }

    fn setup(&self, window: usize) -> Setup {
        Setup {
            neuron: self.neuron,
            loss: (0.95, 0.05),
            seed: 5,
            ..Setup::new(SAMPLES, window)
        }
    }

    fn learn(&self, kernels: Box<dyn Kernels>, algorithm: &mut dyn Algorithm) -> Seen {
        let setup = self.setup(algorithm.window(NUM_TIME_STEPS));
        let mut training = Training::new(kernels, &self.graph, &setup);
        training.set_all(&self.parameters);
        let (seen, result) = training.learn(algorithm, &self.frames, 0);
        assert_eq!(result, Ok(()));
        let margin = seen.margin(self.neuron.v_th, NUM_TIME_STEPS);
        assert!(
            margin > MARGIN,
            "{}: {margin:e}: take another seed",
            self.name
        );
        assert!(
            training.weights() == self.parameters,
            "lr = 0 freezes weights"
        );
        seen
    }

    /// Runs on both back ends, which must have drawn the same masks; the masks.
    fn seen(&self, algorithm: &mut dyn Algorithm) -> ([Seen; 2], Vec<Tensors>) {
        let both = [reference(), cpu(2)].map(|kernels| self.learn(kernels, algorithm));
        let masks = |seen: &Seen| -> Vec<Tensors> {
            seen.steps.iter().map(|step| step.masks.clone()).collect()
        };
        let drawn = masks(&both[0]);
        assert!(drawn == masks(&both[1]), "{}: masks", self.name);
        let factors: BTreeSet<u32> = drawn
            .iter()
            .flat_map(Tensors::values)
            .flatten()
            .map(|f| f.to_bits())
            .collect();
        assert_eq!(factors.len(), 2, "something is dropped, something kept");
        (both, drawn)
    }

    fn assert_gradients(&self, what: &str, expected: &Tensors, got: &Tensors) {
        assert!(expected.keys().eq(got.keys()), "{what}");
        for (name, expected) in expected {
            let what = format!("{}: {what}: {name}", self.name);
            let tolerance = if name.strip_suffix(".bias") == Some(BIASED) {
                Tolerance::BiasBeforeNorm
            } else {
                Tolerance::Gradient
            };
            assert_close(&what, tolerance, expected, &got[name]);
        }
    }

    /// STOL with window k at every time step, on both back ends, against autodiff.
    fn hold_stol_to_autodiff(&self, window: usize) {
        let (both, masks) = self.seen(&mut Stol { window });
        let setup = self.setup(window);
        let oracle = self.oracle(&setup, &masks);
        for t in 0..NUM_TIME_STEPS {
            let oldest = (t + 1).saturating_sub(window);
            let told = oracle.gradients(oldest, t..t + 1);
            for (seen, back_end) in both.iter().zip(["reference", "cpu"]) {
                let what = format!("{back_end}, k = {window}, t = {t}");
                let loss = [narrow(seen.steps[t].loss)];
                assert_close(&what, Tolerance::Forward, &told.losses, &loss);
                let got = &seen.updates[t].gradients;
                self.assert_gradients(&what, &told.gradients, got);
            }
        }
    }

    fn oracle<'a>(&'a self, setup: &'a Setup, masks: &'a [Tensors]) -> Oracle<'a> {
        Oracle {
            graph: &self.graph,
            setup,
            parameters: &self.parameters,
            frames: &self.frames,
            masks,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "compared as f32")]
fn narrow(x: f64) -> f32 {
    x as f32
}

/// The paper's neuron with another reset.
fn neuron(reset: Reset, detach_reset: bool) -> Neuron {
    Neuron {
        reset,
        detach_reset,
        ..PAPER
    }
}

#[test]
fn windows_of_1_to_t_match_autodiff_of_the_truncated_graph_under_every_reset() {
    for (seed, (reset, detach_reset)) in (20..).zip(resets()) {
        let case = Case::new(Join::Iand, neuron(reset, detach_reset), seed);
        for window in 1..=NUM_TIME_STEPS {
            case.hold_stol_to_autodiff(window);
        }
    }
}

#[test]
fn windows_of_2_and_3_match_autodiff_with_every_join() {
    for (join, seeds) in [
        (Join::Add, 40..42),
        (Join::And, 42..44),
        (Join::Iand, 44..46),
    ] {
        for seed in seeds {
            let case = Case::new(join, PAPER, seed);
            case.hold_stol_to_autodiff(2);
            case.hold_stol_to_autodiff(3);
        }
    }
}

#[test]
fn other_leaks_thresholds_and_slopes_match_autodiff() {
    for (seed, tau_m, v_th, alpha) in [
        (50, 4.0, 1.0, 1.0),
        (51, 2.0, 0.7, 0.8),
        (52, 1.3, 1.1, 2.0),
    ] {
        let neuron = Neuron {
            tau_m,
            v_th,
            alpha,
            ..PAPER
        };
        Case::new(Join::Add, neuron, seed).hold_stol_to_autodiff(2);
        let reset = Reset::Soft;
        Case::new(Join::And, Neuron { reset, ..neuron }, seed).hold_stol_to_autodiff(3);
    }
}

#[test]
fn bptt_matches_autodiff_of_the_sum_of_all_losses() {
    for (seed, (reset, detach_reset)) in (60..).zip(resets()) {
        let case = Case::new(Join::Add, neuron(reset, detach_reset), seed);
        let (both, masks) = case.seen(&mut Bptt);
        let setup = case.setup(NUM_TIME_STEPS);
        let told = case.oracle(&setup, &masks).gradients(0, 0..NUM_TIME_STEPS);
        for (seen, back_end) in both.iter().zip(["reference", "cpu"]) {
            assert_eq!(seen.updates.len(), 1);
            case.assert_gradients(back_end, &told.gradients, &seen.updates[0].gradients);
        }
    }
}

/// The sum over updates.
fn summed(seen: &Seen) -> Tensors {
    let mut updates = seen.updates.iter();
    let mut sum = updates.next().expect("there is one").gradients.clone();
    for update in updates {
        for (name, gradient) in &update.gradients {
            let sum = sum.get_mut(name).expect("every update has it");
            sum.iter_mut().zip(gradient).for_each(|(s, g)| *s += g);
        }
    }
    sum
}

#[test]
fn with_frozen_weights_and_the_whole_window_stol_sums_to_bptt() {
    let case = Case::new(Join::Add, PAPER, 70);
    let window = NUM_TIME_STEPS;
    let (stol, _) = case.seen(&mut Stol { window });
    let (bptt, _) = case.seen(&mut Bptt);
    for (stol, bptt) in stol.iter().zip(&bptt) {
        assert_eq!(stol.updates.len(), NUM_TIME_STEPS);
        case.assert_gradients("sum", &bptt.updates[0].gradients, &summed(stol));
    }
}

/// Whether some tensor differs by more than a hundred tolerances.
fn differ(a: &Tensors, b: &Tensors) -> bool {
    a.iter().any(|(name, a)| {
        let largest = a.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let mut pairs = a.iter().zip(&b[name]);
        pairs.any(|(a, b)| (a - b).abs() > 1e-2 * largest + 1e-4)
    })
}

#[test]
fn every_window_differs_from_the_next_longer_one_as_soon_as_it_can() {
    let case = Case::new(Join::Add, PAPER, 70);
    let windows: Vec<_> = (1..=NUM_TIME_STEPS)
        .map(|window| case.seen(&mut Stol { window }).0)
        .collect();
    for (window, pair) in (1..).zip(windows.windows(2)) {
        for (shorter, longer) in pair[0].iter().zip(&pair[1]) {
            for (t, (a, b)) in shorter.updates.iter().zip(&longer.updates).enumerate() {
                // Time step t has min(k, t + 1) time steps to reach.
                let differs = differ(&a.gradients, &b.gradients);
                assert_eq!(differs, t >= window, "k = {window} and the next at t = {t}");
            }
        }
    }
}
