//! Loss, batch norm's statistics and dropout: sentences about layers without time.

use synfire::graph::{Graph, Op};
use synfire::learn::stol::Stol;
use synfire::shape::Shape;
use synfire_tests::training::{Frames, Setup, Training, back_ends};

use super::{assert_all_near, assert_near};

/// Eq. (11): `L = (1 - lambda) CE + lambda MSE`, lambda = 0.05, and what the released code has in
/// its place. Two samples, three classes; the logits are the readout's biases.
#[test]
fn eq_11_the_loss_is_a_weighted_sum_of_cross_entropy_and_squared_error() {
    let logits = [1.0_f64, -0.5, 0.25];
    let labels = [2_u32, 0];
    let sum: f64 = logits.iter().map(|y| y.exp()).sum();
    let ce = labels.map(|l| sum.ln() - logits[l as usize]);
    let ce = f64::midpoint(ce[0], ce[1]);
    let target = |c: usize, label: u32| f64::from(u8::from(c == label as usize));
    let squares = |label: u32| -> f64 {
        let each = logits.iter().enumerate();
        each.map(|(c, y)| (y - target(c, label)).powi(2)).sum()
    };
    let mse = (squares(2) + squares(0)) / 6.0;
    for (loss, expected) in [
        ((0.95, 0.05), 0.95 * ce + 0.05 * mse),
        ((1.0, 0.0), ce),
        ((1.0, 0.05), ce + 0.05 * mse),
    ] {
        for kernels in back_ends() {
            let mut graph = Graph::new(Shape::vector(1));
            let x = graph.input();
            let y = graph
                .add("fc", Op::Linear { outputs: 3 }, &[x])
                .expect("it fits");
            let graph = graph.finish(y).expect("it is whole");
            let setup = Setup {
                loss,
                ..Setup::new(2, 1)
            };
            let mut training = Training::new(kernels, &graph, &setup);
            training.set("fc.bias", &[1.0, -0.5, 0.25]);
            let frames = Frames {
                frames: vec![0.0; 2],
                labels: labels.into(),
                num_time_steps: 1,
            };
            let (seen, _) = training.learn(&mut Stol { window: 1 }, &frames, 0);
            assert!((seen.steps[0].loss - expected).abs() < 1e-6, "{loss:?}");
            let gradient = |c: usize| -> f64 {
                let of = |label| {
                    let off = logits[c].exp() / sum - target(c, label);
                    let square = 2.0 * (logits[c] - target(c, label)) / 3.0;
                    f64::from(loss.0) * off + f64::from(loss.1) * square
                };
                f64::midpoint(of(2), of(0))
            };
            let expected = [gradient(0), gradient(1), gradient(2)];
            assert_all_near(&seen.updates[0].gradients["fc.bias"], &expected);
        }
    }
}

/// A batch norm on the input, then a neuron and a readout.
fn normed() -> Graph {
    let mut graph = Graph::new(Shape::vector(1));
    let mut x = graph.input();
    for (name, op) in [
        ("bn", Op::BatchNorm),
        ("sn", Op::Lif),
        ("fc", Op::Linear { outputs: 2 }),
    ] {
        x = graph.add(name, op, &[x]).expect("it fits");
    }
    graph.finish(x).expect("it is whole")
}

/// Line 7: what the window needs is saved, not run again: running statistics move once per time
/// step (the released code moves them twice), by a tenth, with the unbiased variance.
#[test]
fn running_statistics_move_once_per_time_step() {
    for kernels in back_ends() {
        let setup = Setup::new(2, 2);
        let mut training = Training::new(kernels, &normed(), &setup);
        let inputs = [[1.0, 3.0], [0.0, 4.0], [5.0, 5.0]];
        let frames = Frames {
            frames: inputs.concat(),
            labels: vec![0, 1],
            num_time_steps: 3,
        };
        let (_, result) = training.learn(&mut Stol { window: 2 }, &frames, 0);
        assert_eq!(result, Ok(()));
        let (mut mean, mut var) = (0.0, 1.0);
        for [a, b] in inputs {
            let (a, b) = (f64::from(a), f64::from(b));
            mean = 0.9 * mean + 0.1 * (a + b) / 2.0;
            // n = 2: n/(n-1) times the biased variance.
            var = 0.9 * var + 0.1 * 2.0 * ((a - b) / 2.0).powi(2);
        }
        let network = &training.learner.network;
        for (name, expected) in [("bn.running_mean", mean), ("bn.running_var", var)] {
            let arena = synfire::kernel::Arena::Statistics;
            let got = network.get(&mut *training.kernels, arena, name);
            assert_near(got.expect("it is there")[0], expected);
        }
    }
}

/// Statistics are those of one time step, not of all T: each step is normalised by itself.
#[test]
fn batch_norm_normalises_each_time_step_by_itself() {
    for kernels in back_ends() {
        let mut training = Training::new(kernels, &normed(), &Setup::new(2, 2));
        training.set("bn.weight", &[0.5]);
        let frames = Frames {
            frames: vec![1.0, 3.0, 100.0, 300.0],
            labels: vec![0, 1],
            num_time_steps: 2,
        };
        let (seen, _) = training.learn(&mut Stol { window: 2 }, &frames, 0);
        // xhat = -1, 1 up to eps = 1e-5; potentials -0.5, 0.5, then -0.75, 0.75.
        for (step, expected) in seen.steps.iter().zip([0.5, 0.75]) {
            for (u, sign) in step.u["sn"].iter().zip([-1.0, 1.0]) {
                assert!((f64::from(*u) - sign * expected).abs() < 1e-5, "{u}");
            }
        }
    }
}

/// Dropout draws a mask per time step; kept inputs are divided by 1 - p unless asked not to, as the
/// released code does not; the older step of a window has the mask of its own.
#[test]
fn dropout_draws_per_time_step_and_divides_by_1_minus_p_by_default() {
    let mut graph = Graph::new(Shape::vector(40));
    let x = graph.input();
    let x = graph
        .add("drop", Op::Dropout { p: 0.25 }, &[x])
        .expect("it fits");
    let x = graph
        .add("fc1", Op::Linear { outputs: 1 }, &[x])
        .expect("it fits");
    let x = graph.add("sn", Op::Lif, &[x]).expect("it fits");
    let x = graph
        .add("fc", Op::Linear { outputs: 2 }, &[x])
        .expect("it fits");
    let graph = graph.finish(x).expect("it is whole");
    for (dropout_rescale, kept) in [(true, 4.0 / 3.0), (false, 1.0)] {
        for kernels in back_ends() {
            let setup = Setup {
                dropout_rescale,
                ..Setup::new(1, 2)
            };
            let mut training = Training::new(kernels, &graph, &setup);
            training.set("fc1.bias", &[0.6]);
            training.set("fc.weight", &[0.8, -0.4]);
            let frames = Frames {
                frames: vec![1.0; 80],
                labels: vec![1],
                num_time_steps: 2,
            };
            let (seen, _) = training.learn(&mut Stol { window: 2 }, &frames, 0);
            let masks = [&seen.steps[0].masks["drop"], &seen.steps[1].masks["drop"]];
            assert_ne!(masks[0], masks[1]);
            for factor in masks.into_iter().flatten().filter(|f| **f > 0.0) {
                assert_near(*factor, kept);
            }
            // As in line 17's test: 0.6 * 0.9 at t, times 0.32 at t - 1; dw = sum of du x mask.
            let expected = |i: usize| {
                let [older, newest] = masks.map(|m| f64::from(m[i]));
                0.6 * 0.9 * (newest + 0.32 * older)
            };
            let expected: Vec<f64> = (0..40).map(expected).collect();
            assert_all_near(&seen.updates[1].gradients["fc1.weight"], &expected);
        }
    }
}
