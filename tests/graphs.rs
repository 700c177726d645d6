//! Whatever graph passes the checks runs on every back end, and all of them agree.

use proptest::prelude::*;
use synfire::graph::{Graph, Op, ValueId};
use synfire::learn::stol::Stol;
use synfire::shape::{Join, Shape};
use synfire_tests::training::{Frames, Seen, Setup, Training, back_ends};

const SAMPLES: usize = 2;
const TIME_STEPS: usize = 3;
const INPUT: Shape = Shape {
    height: 4,
    width: 4,
    channels: 3,
};

/// One draw: which operation, and which values it reads.
type Drawn = (u8, usize, usize);

fn op(kind: u8) -> Op {
    match kind % 12 {
        0 | 1 => Op::Conv {
            outputs: 3,
            kernel: 3,
            stride: 1,
            padding: 1,
            bias: kind.is_multiple_of(2),
        },
        2 | 3 => Op::BatchNorm,
        4..=6 => Op::Lif,
        7 | 8 => Op::Residual(Join::Add),
        9 => Op::Residual(Join::And),
        10 => Op::Residual(Join::Iand),
        _ => Op::Dropout {
            p: if kind.is_multiple_of(2) { 0.0 } else { 0.25 },
        },
    }
}

/// A graph of what was drawn, ending in a readout; nodes that nothing reads are left out.
fn graph(drawn: &[Drawn]) -> Option<Graph> {
    // Values by number: 0 is the input, i + 1 what draw i makes.
    let inputs = |at: usize, (kind, a, b): Drawn| {
        // Near values are likelier: chains, not stars.
        let near = |n: usize| at - (n % at.clamp(1, 3)).min(at);
        let count = if matches!(op(kind), Op::Residual(_)) {
            2
        } else {
            1
        };
        [near(a), near(b)]
            .into_iter()
            .take(count)
            .collect::<Vec<_>>()
    };
    let mut used = vec![false; drawn.len() + 1];
    used[drawn.len()] = true;
    for (i, &draw) in drawn.iter().enumerate().rev() {
        if used[i + 1] {
            for value in inputs(i, draw) {
                used[value] = true;
            }
        }
    }
    let mut g = Graph::new(INPUT);
    let mut ids = vec![ValueId(0)];
    for (i, &draw) in drawn.iter().enumerate() {
        if !used[i + 1] {
            ids.push(ValueId(0));
            continue;
        }
        let reads: Vec<ValueId> = inputs(i, draw).iter().map(|&v| ids[v]).collect();
        ids.push(g.add(&format!("n{i}"), op(draw.0), &reads).ok()?);
    }
    let pool = Op::AdaptiveAvgPool { side: 1 };
    let pool = g.add("pool", pool, &[ids[drawn.len()]]).ok()?;
    let flat = g.add("flat", Op::Flatten, &[pool]).ok()?;
    let out = g.add("fc", Op::Linear { outputs: 4 }, &[flat]).ok()?;
    g.finish(out).ok()
}

/// Numbers that depend on a name and a position, in -1..1.
fn numbers(name: &str, len: usize) -> Vec<f32> {
    let salt = name
        .bytes()
        .fold(17u32, |h, b| h.wrapping_mul(31) ^ u32::from(b));
    let at = |i: usize| {
        let i = u32::try_from(i).expect("small");
        let mixed = (i.wrapping_mul(2_654_435_761) ^ salt).wrapping_mul(2_246_822_519);
        f32::from(u16::try_from(mixed >> 16).expect("16 bits")) / 32_768.0 - 1.0
    };
    (0..len).map(at).collect()
}

fn learn(g: &Graph, window: usize, mut training: Training) -> (Seen, bool) {
    for p in g.parameters() {
        let mut values = numbers(&p.name, p.elements());
        if p.shape.len() == 1 && p.name.ends_with("weight") {
            for value in &mut values {
                *value = 1.0 + *value / 4.0;
            }
        }
        training.set(&p.name, &values);
    }
    let frames = Frames {
        frames: numbers("x", TIME_STEPS * SAMPLES * INPUT.elements())
            .iter()
            .map(|x| x * 2.0)
            .collect(),
        labels: vec![1, 3],
        num_time_steps: TIME_STEPS,
    };
    let (seen, result) = training.learn(&mut Stol { window }, &frames, 0);
    (seen, result.is_ok())
}

fn agree(g: &Graph, window: usize) {
    let mut setup = Setup::new(SAMPLES, window);
    setup.sgd = [0.01, 0.9, 0.0];
    let mut reference: Option<Seen> = None;
    for kernels in back_ends() {
        let name = kernels.name();
        let (seen, _) = learn(g, window, Training::new(kernels, g, &setup));
        let Some(want) = &reference else {
            reference = Some(seen);
            continue;
        };
        for t in 0..want
            .steps
            .len()
            .min(want.updates.len())
            .min(seen.updates.len())
        {
            // Where a potential comes near the threshold, rounding may make another spike.
            if want.margin(1.0, t) < 1e-4 {
                break;
            }
            let (got, want_loss) = (seen.steps[t].loss, want.steps[t].loss);
            let near = (got - want_loss).abs() <= 1e-3 * want_loss.abs() + 1e-4;
            assert!(near, "{name}, t = {t}: loss {got}, reference {want_loss}");
            for (tensor, g_want) in &want.updates[t].gradients {
                let largest = g_want.iter().fold(0.0f32, |m, g| m.max(g.abs()));
                let pairs = seen.updates[t].gradients[tensor].iter().zip(g_want);
                // Ten times the tolerance of the traces: these weights are large and unchosen.
                let worst = pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                let allowed = 1e-3 * largest + 1e-4;
                assert!(
                    worst <= allowed,
                    "{name}, t = {t}, {tensor}: off by {worst}"
                );
            }
        }
    }
}

/// The graph of these nodes: name, operation, inputs.
fn of(nodes: &[(&str, u8, &[&str])]) -> Graph {
    let mut g = Graph::new(INPUT);
    for (name, kind, inputs) in nodes {
        let reads: Vec<ValueId> = inputs
            .iter()
            .map(|i| g.find(i).expect("the graph is written by hand"))
            .collect();
        g.add(name, op(*kind), &reads)
            .expect("the graph is written by hand");
    }
    let last = g
        .find(nodes[nodes.len() - 1].0)
        .expect("the graph is written by hand");
    let pool = g
        .add("pool", Op::AdaptiveAvgPool { side: 1 }, &[last])
        .expect("the graph is written by hand");
    let flat = g
        .add("flat", Op::Flatten, &[pool])
        .expect("the graph is written by hand");
    let out = g
        .add("fc", Op::Linear { outputs: 4 }, &[flat])
        .expect("the graph is written by hand");
    g.finish(out).expect("the graph is written by hand")
}

#[test]
fn a_shortcut_around_a_part_of_a_stage_is_a_stage_of_its_own() {
    let (conv, bn, lif, add) = (1, 2, 4, 7);
    let graphs: [&[(&str, u8, &[&str])]; 5] = [
        &[
            ("a", conv, &["x"]),
            ("s", lif, &["a"]),
            ("o", add, &["s", "a"]),
        ],
        &[
            ("a", conv, &["x"]),
            ("b", bn, &["a"]),
            ("o", add, &["b", "a"]),
        ],
        &[
            ("a", conv, &["x"]),
            ("b", bn, &["a"]),
            ("s", lif, &["b"]),
            ("o", add, &["s", "b"]),
        ],
        &[
            ("a", conv, &["x"]),
            ("b", bn, &["a"]),
            ("e", add, &["b", "a"]),
            ("s", lif, &["e"]),
            ("o", add, &["s", "a"]),
        ],
        &[
            ("c", conv, &["x"]),
            ("a", conv, &["x"]),
            ("b", bn, &["a"]),
            ("e", add, &["b", "c"]),
            ("s", lif, &["e"]),
            ("o", add, &["s", "c"]),
        ],
    ];
    for nodes in graphs {
        for window in [1, 2, 3] {
            agree(&of(nodes), window);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600, failure_persistence: None, ..ProptestConfig::default()
    })]
    #[test]
    fn any_graph_runs_on_every_back_end_and_all_agree(
        drawn in prop::collection::vec((any::<u8>(), 0usize..3, 0usize..3), 1..12),
        window in 1usize..=3,
    ) {
        if let Some(g) = graph(&drawn) {
            agree(&g, window);
        }
    }
}
