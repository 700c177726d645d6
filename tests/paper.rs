//! One test per equation or sentence of the paper that the engine implements: Xue, Liu, Wang, Qu,
//! *Reasonable Gradients for Online Training Algorithms in Spiking Neural Networks*.
//!
//! Each is checked on every back end with a network small enough to compute by hand. Where the
//! paper and its released code differ, the test of our choice is named in ARCHITECTURE.md.

use synfire::kernel::{Arena, Neuron, Reset};
use synfire::learn::bptt::Bptt;
use synfire::learn::stol::Stol;
use synfire_tests::training::{Frames, PAPER, Seen, Setup, Training, back_ends};

#[path = "paper/chain.rs"]
mod chain;
#[path = "paper/layers.rs"]
mod layers;
#[path = "paper/neurons.rs"]
mod neurons;

use chain::{Chain, Row, Weights};

/// Both neurons see what is put in; the readout tells them apart.
const PLAIN: Weights = Weights {
    first: [1.0, 0.0],
    second: [1.0, 0.0],
    readout: [0.8, -0.4],
    shifts: [0.0, 0.0],
};

/// Numbers of a few operations in f32.
#[track_caller]
fn assert_near(got: f32, expected: f64) {
    let off = (f64::from(got) - expected).abs();
    assert!(
        off <= 2e-6 * (1.0 + expected.abs()),
        "{got}, should be {expected}"
    );
}

#[track_caller]
fn assert_all_near(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .for_each(|(g, e)| assert_near(*g, *e));
}

/// Potentials of a layer over time.
fn potentials(seen: &Seen, layer: &str) -> Vec<f32> {
    seen.steps.iter().map(|step| step.u[layer][0]).collect()
}

/// Spikes of a layer over time.
fn spikes(seen: &Seen, layer: &str) -> Vec<u64> {
    seen.steps.iter().map(|step| step.spikes[layer]).collect()
}

/// A gradient after each update.
fn gradients(seen: &Seen, parameter: &str) -> Vec<f32> {
    let of = |update: &synfire_tests::training::SeenUpdate| update.gradients[parameter][0];
    seen.updates.iter().map(of).collect()
}

/// STOL of window k on every back end.
fn each_stol(chain: &Chain, window: usize, check: impl Fn(&Seen)) {
    for kernels in back_ends() {
        check(&chain.on(kernels, &mut Stol { window }));
    }
}

/// Everything that Algorithm 1 makes of the chain.
fn assert_as_by_hand(chain: &Chain, window: usize) {
    let rows = chain.by_hand(window);
    each_stol(chain, window, |seen| {
        assert_eq!(
            (seen.steps.len(), seen.updates.len()),
            (rows.len(), rows.len())
        );
        for (t, row) in rows.iter().enumerate() {
            let Row {
                u,
                gradients,
                weights,
                ..
            } = row;
            assert_near(seen.steps[t].u["sn1"][0], u[0]);
            assert_near(seen.steps[t].u["sn2"][0], u[1]);
            for (expected, got) in [
                (gradients, &seen.updates[t].gradients),
                (weights, &seen.updates[t].weights),
            ] {
                let layer = |n| {
                    [
                        got[&format!("fc{n}.weight")][0],
                        got[&format!("fc{n}.bias")][0],
                    ]
                };
                assert_all_near(&layer(1), &expected.first);
                assert_all_near(&layer(2), &expected.second);
                assert_all_near(&got["fc3.weight"], &expected.readout);
                assert_all_near(&got["fc3.bias"], &expected.shifts);
            }
        }
    });
}

/// Algorithm 1, line 15: the error at the logits of t - 1 is 0: the readout learns from step t
/// alone, though both neurons fired at t - 1.
#[test]
fn line_15_no_error_enters_at_the_logits_of_older_time_steps() {
    let chain = Chain::new(PLAIN, &[1.2, 0.0]);
    for window in [2, 3] {
        each_stol(&chain, window, |seen| {
            assert_eq!(spikes(seen, "sn2"), [1, 0]);
            let readout = gradients(seen, "fc3.weight");
            assert!(readout[0].abs() > 0.1, "{readout:?}");
            assert_near(readout[1], 0.0);
        });
    }
}

/// Algorithm 1, line 17: `du_{t-1} = ds_{t-1} H'(u_{t-1}) + du_t (1 - s_{t-1} - u_{t-1}
/// H'(u_{t-1})) / tau_m`. Neuron 2 has u = 0.6, then 0.9: its error at t is g = (0.8 + 0.4) / 2
/// times H'(0.9) = 0.9; at t - 1 that times (1 - 0.6 * 0.6) / 2 = 0.32.
#[test]
fn line_17_the_error_of_the_older_step_is_carried_by_leak_and_reset() {
    let weights = Weights {
        second: [0.0, 0.6],
        ..PLAIN
    };
    let newest = 0.6 * 0.9;
    for (reset, detach_reset, carried) in [
        (Reset::Hard, false, 0.32),
        (Reset::Hard, true, 0.5),
        (Reset::Soft, false, (1.0 - 0.6) / 2.0),
        (Reset::Soft, true, 0.5),
        (Reset::None, false, 0.5),
    ] {
        let mut chain = Chain::new(weights, &[0.0, 0.0]);
        chain.neuron = Neuron {
            reset,
            detach_reset,
            ..PAPER
        };
        each_stol(&chain, 2, |seen| {
            let shift = gradients(seen, "fc2.bias");
            assert_all_near(&shift, &[0.6 * 0.6, newest * (1.0 + carried)]);
        });
    }
}

/// Algorithm 1, line 17, both terms at both layers, through spikes and silence.
#[test]
fn line_17_holds_at_every_layer_under_every_reset_and_window() {
    let weights = Weights {
        first: [0.9, 0.1],
        second: [0.7, 0.2],
        ..PLAIN
    };
    let inputs = [0.7, 1.1, 0.4, 0.8, 0.2];
    for (reset, detach_reset) in synfire_tests::oracle::resets() {
        let mut chain = Chain::new(weights, &inputs);
        chain.neuron = Neuron {
            reset,
            detach_reset,
            tau_m: 1.7,
            ..PAPER
        };
        for window in 1..=inputs.len() {
            assert_as_by_hand(&chain, window);
        }
    }
}

/// Algorithm 1, line 18: `dw = sum over t, t - 1 of du x`, with the input of each step: 0.5 at t,
/// -3 at t - 1.
#[test]
fn line_18_weight_gradients_are_summed_over_the_window_from_the_inputs_of_each_step() {
    let weights = Weights {
        first: [0.2, 1.1],
        second: [0.6, 0.0],
        ..PLAIN
    };
    let chain = Chain::new(weights, &[-3.0, 0.5]);
    let rows = chain.by_hand(2);
    // Neuron 1: u = 0.5, then 1.45; neuron 2: 0, then 0.6. Neuron 2's errors: 0.6 H'(0.6) at t,
    // half of that at t - 1; neuron 1's: those times 0.6 and H'(1.45), H'(0.5), and what is
    // carried.
    let [newest_above, older_above] = [0.6 * 0.6, 0.6 * 0.6 / 2.0];
    let newest = newest_above * 0.6 * 0.55;
    let older = older_above * 0.6 * 0.5 + newest * (1.0 - 0.5 * 0.5) / 2.0;
    assert!((rows[1].gradients.first[0] - (newest * 0.5 + older * -3.0)).abs() < 1e-12);
    each_stol(&chain, 2, |seen| {
        assert_near(
            gradients(seen, "fc1.weight")[1],
            newest * 0.5 + older * -3.0,
        );
        assert_near(gradients(seen, "fc1.bias")[1], newest + older);
    });
}

/// Algorithm 1, line 21: weights change at every time step; BPTT changes them once.
#[test]
fn line_21_weights_are_updated_at_every_time_step() {
    // Both neurons fire at every time step, whatever the updates.
    let weights = Weights {
        first: [1.5, 0.0],
        second: [1.6, 0.0],
        ..PLAIN
    };
    let mut chain = Chain::new(weights, &[1.2, 1.1, 1.3]);
    chain.lr = 0.1;
    each_stol(&chain, 2, |seen| {
        assert_eq!(seen.updates.len(), 3);
        let weights: Vec<f32> = seen
            .updates
            .iter()
            .map(|u| u.weights["fc3.weight"][0])
            .collect();
        assert!(
            weights.windows(2).all(|w| w[1] < w[0]) && weights[0] < 0.8,
            "{weights:?}"
        );
    });
    assert_as_by_hand(&chain, 2);
    for kernels in back_ends() {
        assert_eq!(chain.on(kernels, &mut Bptt).updates.len(), 1);
    }
}

/// The window is min(k, t + 1): no phantom step stands before the first, where the released code
/// has one.
#[test]
fn the_window_never_reaches_before_the_first_time_step() {
    let weights = Weights {
        second: [0.0, 0.6],
        ..PLAIN
    };
    let chain = Chain::new(weights, &[0.0; 4]);
    let all: Vec<Vec<f32>> = (1..=4)
        .map(|window| {
            let kernels = synfire_tests::training::cpu(1);
            gradients(&chain.on(kernels, &mut Stol { window }), "fc2.bias")
        })
        .collect();
    for t in 0..4 {
        // At t, windows of t + 1 and more are the same window.
        assert!(
            all[t..]
                .iter()
                .all(|g| g[t].to_bits() == all[3][t].to_bits()),
            "t = {t}"
        );
        assert!(
            t == 0 || all[t - 1][t].to_bits() != all[t][t].to_bits(),
            "t = {t}"
        );
    }
    (1..=4).for_each(|window| assert_as_by_hand(&chain, window));
}

/// Section 3.4: errors of the older step go down through the weights of now (those of forward(t)),
/// while u, s and the inputs in dW are those that were saved (line 7).
#[test]
fn older_errors_go_through_the_weights_of_now_and_dw_uses_what_was_saved() {
    let weights = Weights {
        first: [1.0, 0.0],
        second: [0.7, 0.1],
        ..PLAIN
    };
    let mut chain = Chain::new(weights, &[1.02, 0.9, 1.05]);
    chain.lr = 0.8;
    let rows = chain.by_hand(2);
    // The updates are large: with today's weights neuron 1 would not have fired at t = 0.
    let today = rows[0].weights.first;
    assert!(
        rows[0].s[0] > 0.0 && today[0] * 1.02 + today[1] < 1.0,
        "{today:?}"
    );
    // And the two sets of weights give other errors at neuron 1.
    assert!(
        (rows[0].weights.second[0] - 0.7).abs() > 0.05,
        "{:?}",
        rows[0].weights
    );
    assert_as_by_hand(&chain, 2);
    assert_as_by_hand(&chain, 3);
}

/// BPTT's gradient is of the sum of the losses of all time steps: with frozen weights, STOL's with
/// the whole window, summed.
#[test]
fn bptt_sums_all_losses_over_the_whole_history() {
    let weights = Weights {
        second: [0.7, 0.2],
        ..PLAIN
    };
    let chain = Chain::new(weights, &[0.7, 1.1, 0.4]);
    let rows = chain.by_hand(3);
    let sum = |of: fn(&Weights) -> f64| rows.iter().map(|r| of(&r.gradients)).sum::<f64>();
    for kernels in back_ends() {
        let seen = chain.on(kernels, &mut Bptt);
        assert_near(gradients(&seen, "fc1.weight")[0], sum(|g| g.first[0]));
        assert_near(gradients(&seen, "fc2.weight")[0], sum(|g| g.second[0]));
        assert_near(gradients(&seen, "fc3.weight")[0], sum(|g| g.readout[0]));
    }
}

/// The velocities of the optimiser live on over time steps and batches.
#[test]
fn the_optimiser_keeps_its_state_over_time_steps_and_batches() {
    for kernels in back_ends() {
        let setup = Setup {
            sgd: [0.5, 0.9, 0.1],
            ..Setup::new(1, 2)
        };
        let mut training = Training::new(kernels, &chain::graph(), &setup);
        training.set("fc3.weight", &[1.0, 1.0]);
        let frames = Frames {
            frames: vec![0.0; 2],
            labels: vec![1],
            num_time_steps: 2,
        };
        // No spikes: the readout's weights see their decay alone: v <- 0.9 v + 0.1 p; p <- p - v/2.
        let (mut p, mut v) = (1.0, 0.0);
        for batch in 0..2 {
            let (seen, _) = training.learn(&mut Stol { window: 2 }, &frames, batch);
            for update in &seen.updates {
                v = 0.9 * v + 0.1 * p;
                p -= 0.5 * v;
                assert_near(update.weights["fc3.weight"][0], p);
            }
        }
        let network = &training.learner.network;
        let velocity = network.get(&mut *training.kernels, Arena::State, "fc3.weight");
        assert_near(velocity.expect("it is there")[0], v);
    }
}
