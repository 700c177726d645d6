//! Sentences about the neuron and the way up: Eqs. (2) to (4), section 3.3, Algorithm 1, line 4.

use synfire::kernel::Reset;
use synfire::learn::stol::Stol;
use synfire_tests::training::{Frames, PAPER, Setup, Training, back_ends};

use super::chain::{self, Chain, Weights, surrogate};
use super::{
    PLAIN, assert_all_near, assert_as_by_hand, assert_near, each_stol, gradients, potentials,
    spikes,
};

/// Eq. (2): `u_t = u_{t-1} (1 - s_{t-1}) / tau_m + x_t`: the leak is a factor 1 / tau, a spike
/// resets to zero, and the input is not divided. Of the inputs 0.6 0.6 0.9 0.3 the third
/// makes it fire.
#[test]
fn eq_2_the_potential_leaks_by_1_over_tau_and_a_spike_resets_it() {
    for (reset, expected) in [
        (Reset::Hard, [0.6, 0.9, 1.35, 0.3]),
        (Reset::Soft, [0.6, 0.9, 1.35, 0.475]),
        (Reset::None, [0.6, 0.9, 1.35, 0.975]),
    ] {
        let mut chain = Chain::new(PLAIN, &[0.6, 0.6, 0.9, 0.3]);
        chain.neuron.reset = reset;
        each_stol(&chain, 2, |seen| {
            assert_all_near(&potentials(seen, "sn1"), &expected);
            assert_eq!(spikes(seen, "sn1"), [0, 0, 1, 0]);
        });
    }
}

/// Eq. (2): Table 2's tau of 4 leaks to a quarter, not (as a leak of 1 - 1 / tau would) to three.
#[test]
fn eq_2_tau_of_4_leaves_a_quarter_and_does_not_divide_the_input() {
    let mut chain = Chain::new(PLAIN, &[0.8, 0.4, 0.0]);
    chain.neuron.tau_m = 4.0;
    each_stol(&chain, 2, |seen| {
        assert_all_near(&potentials(seen, "sn1"), &[0.8, 0.6, 0.15]);
    });
}

/// Eq. (3): `s = 1` where `u >= V_th`: the threshold itself fires.
#[test]
fn eq_3_a_potential_equal_to_the_threshold_fires() {
    let below = f64::from(1.0_f32.next_down());
    for (input, fires) in [(1.0, 1), (below, 0), (0.0, 0), (1.5, 1), (-1.0, 0)] {
        each_stol(&Chain::new(PLAIN, &[input]), 2, |seen| {
            assert_eq!(spikes(seen, "sn1"), [fires], "u = {input}");
        });
    }
}

/// Eq. (4): `H'(u) = max(0, alpha - alpha^2 |u - V_th|)`; printed without the absolute value, it
/// would be 2 at u = 0. It is 0 at u = 0 and u = 2, and alpha at the threshold.
#[test]
fn eq_4_the_surrogate_is_a_triangle_that_is_zero_at_0_and_2() {
    // Neuron 1 never fires into neuron 2 here: its potential is the shift, whatever happens.
    for (u, expected) in [
        (0.0, 0.0),
        (2.0, 0.0),
        (-1.0, 0.0),
        (3.0, 0.0),
        (0.5, 0.5),
        (1.0, 1.0),
        (1.25, 0.75),
        (0.25, 0.25),
    ] {
        let weights = Weights {
            second: [0.0, u],
            ..PLAIN
        };
        each_stol(&Chain::new(weights, &[0.0]), 1, |seen| {
            // dL/ds2: softmax of (0.8 s, -0.4 s), class 1.
            let s = f64::from(u8::from(u >= 1.0));
            let p0 = 1.0 / (1.0 + (-1.2 * s).exp());
            let from_above = p0 * 0.8 - p0 * -0.4;
            assert_near(gradients(seen, "fc2.bias")[0], from_above * expected);
        });
        assert!((surrogate(&PAPER, u) - expected).abs() < 1e-12);
    }
}

/// Eq. (4): alpha is height and slope: with 2 the triangle is 2 high and reaches from 0.5 to 1.5.
#[test]
fn eq_4_alpha_is_the_height_and_the_inverse_of_the_half_width() {
    for (u, expected) in [(0.5, 0.0), (1.5, 0.0), (0.75, 1.0), (1.0, 2.0)] {
        let weights = Weights {
            second: [0.0, u],
            ..PLAIN
        };
        let mut chain = Chain::new(weights, &[0.0]);
        chain.neuron.alpha = 2.0;
        assert!((surrogate(&chain.neuron, u) - expected).abs() < 1e-12);
        assert_as_by_hand(&chain, 1);
    }
}

/// Section 3.3: `u_0 = s_0 = 0` before the first time step, of every batch.
#[test]
fn section_3_3_every_batch_starts_from_u_and_s_of_zero() {
    for window in [1, 2, 3] {
        for kernels in back_ends() {
            let mut training = Training::new(kernels, &chain::graph(), &Setup::new(1, window));
            training.set("fc1.weight", &[1.0]);
            training.set("fc2.weight", &[0.5]);
            let batch = |frames: &[f32]| Frames {
                frames: frames.to_vec(),
                labels: vec![1],
                num_time_steps: frames.len(),
            };
            // The first batch ends with a spike at the one and a high potential at the other.
            let mut learn = |frames: &[f32], index| {
                let (seen, result) = training.learn(&mut Stol { window }, &batch(frames), index);
                assert_eq!(result, Ok(()));
                seen
            };
            learn(&[1.5, 0.9, 1.6], 0);
            let second = learn(&[0.7, 0.2, 0.1], 1);
            assert_all_near(&potentials(&second, "sn1"), &[0.7, 0.55, 0.375]);
            assert_all_near(&potentials(&second, "sn2"), &[0.0, 0.0, 0.0]);
        }
    }
}

/// Algorithm 1, line 4: `x_t^l = w^l s_t^{l-1}`: spikes cross all layers within a time step, where
/// Eq. (2) has `s_{t-1}^{l-1}`.
#[test]
fn line_4_a_layer_reads_the_spikes_of_the_same_time_step() {
    each_stol(&Chain::new(PLAIN, &[1.2, 0.0]), 2, |seen| {
        assert_eq!(spikes(seen, "sn1"), [1, 0]);
        assert_all_near(&potentials(seen, "sn2"), &[1.0, 0.0]);
    });
}
