//! The cases that tests go through.

use synfire::kernel::{Neuron, Norms, Phase, Reset};
use synfire::shape::{Content, Shape};

use super::NormLifCase;
use crate::random::Random;

/// Every reset, its error kept or detached.
pub const RESETS: [(Reset, bool); 6] = [
    (Reset::Hard, false),
    (Reset::Hard, true),
    (Reset::Soft, false),
    (Reset::Soft, true),
    (Reset::None, false),
    (Reset::None, true),
];

/// The paper's neuron with another reset.
pub fn neuron(reset: Reset, detach_reset: bool) -> Neuron {
    Neuron {
        tau_m: 2.0,
        v_th: 1.0,
        alpha: 1.0,
        reset,
        detach_reset,
    }
}

/// Batch norm and neurons over the newest `window` of `num_steps` steps, an error for the newest.
pub fn norm_and_neurons(num_steps: usize, window: usize) -> NormLifCase {
    NormLifCase {
        samples: 2,
        shape: Shape::new(4, 3, 5),
        norm: true,
        neuron: Some(neuron(Reset::Hard, false)),
        before: false,
        after: None,
        store_y: false,
        phase: Phase::Train,
        num_steps,
        window,
        out_arrived: Some(1),
        y_arrived: None,
        want_z: true,
        accumulate: false,
        across: Norms::Own,
        others: false,
        quarters: false,
        z_of_conv: false,
        out_of_conv: false,
        seed: 1,
    }
}

/// Neurons alone: every reset, windows of 1, 2, 3 and all 5 time steps, errors for the newest step
/// or for all of the window; and with many membrane potentials at the threshold.
pub fn neurons() -> Vec<NormLifCase> {
    let mut cases = Vec::new();
    for (reset, detach_reset) in RESETS {
        for window in [1, 2, 3, 5] {
            for arrived in [1, window] {
                let case = NormLifCase {
                    norm: false,
                    neuron: Some(Neuron {
                        tau_m: if window == 3 { 4.0 } else { 2.0 },
                        ..neuron(reset, detach_reset)
                    }),
                    out_arrived: Some(arrived),
                    ..norm_and_neurons(5, window)
                };
                cases.push(case.clear_of_threshold());
            }
        }
        cases.push(NormLifCase {
            norm: false,
            neuron: Some(neuron(reset, detach_reset)),
            quarters: true,
            ..norm_and_neurons(4, 3)
        });
    }
    cases
}

/// Batch norm alone, as at the end of an MS-ResNet block: with every combination of a shortcut and
/// of wanted errors; a batch of one number per channel; a constant batch.
pub fn norms() -> Vec<NormLifCase> {
    let norm = |window| NormLifCase {
        neuron: None,
        out_arrived: None,
        store_y: true,
        y_arrived: Some(window),
        ..norm_and_neurons(window + 1, window)
    };
    let mut cases = Vec::new();
    for window in 1..=4 {
        let with_shortcut = NormLifCase {
            before: true,
            accumulate: true,
            y_arrived: Some(1),
            ..norm(window)
        };
        let first_layer = NormLifCase {
            want_z: false,
            ..norm(window)
        };
        cases.extend([norm(window), with_shortcut, first_layer]);
    }
    let one_number = NormLifCase {
        samples: 1,
        shape: Shape::vector(7),
        ..norm(2)
    };
    let large = NormLifCase {
        samples: 8,
        shape: Shape::new(12, 12, 33),
        ..norm(2)
    };
    let sum_alone = NormLifCase {
        norm: false,
        before: true,
        accumulate: true,
        ..norm(3)
    };
    cases.extend([one_number, large, sum_alone]);
    cases
}

/// Every part present or absent, every way for errors to arrive, in training.
pub fn parts() -> Vec<NormLifCase> {
    let mut cases = Vec::new();
    let afters = [
        None,
        Some(Content::Spikes),
        Some(Content::Counts),
        Some(Content::Real),
    ];
    for index in 0..64_u64 {
        let bit = |position: u32| index >> position & 1 == 1;
        let mut random = Random::new(index);
        let window = 1 + random.below(4);
        let (reset, detach_reset) = random.pick(&RESETS);
        let mut arrives = |wanted: bool| {
            let len = random.pick(&[1, window]);
            wanted.then_some(len)
        };
        // At least one error arrives.
        let out_arrived = arrives(bit(2) || !bit(3));
        let y_arrived = arrives(bit(3));
        let channels = random.pick(&[1, 3, 16, 31, 64, 67]);
        let case = NormLifCase {
            samples: 1 + random.below(3),
            shape: Shape::new(1 + random.below(4), 2 + random.below(4), channels),
            norm: bit(0),
            neuron: Some(Neuron {
                tau_m: random.pick(&[2.0, 4.0, 1.5]),
                v_th: random.pick(&[1.0, 0.75]),
                alpha: random.pick(&[1.0, 0.8]),
                ..neuron(reset, detach_reset)
            }),
            before: bit(1),
            after: random.pick(&afters),
            store_y: bit(3) || bit(4),
            num_steps: window + random.below(3),
            window,
            out_arrived,
            y_arrived,
            want_z: bit(4) || !bit(5),
            accumulate: bit(5),
            across: Norms::Own,
            others: false,
            quarters: false,
            z_of_conv: false,
            out_of_conv: false,
            seed: index,
            phase: Phase::Train,
        };
        cases.push(case.clear_of_threshold());
    }
    cases
}

/// So many rows that the blocks of a GPU's kernels take several turns, and in the last of them more than
/// two samples; so few spikes that a place in a sample makes a difference to which neurons are silent.
pub fn large() -> Vec<NormLifCase> {
    vec![NormLifCase {
        samples: 107,
        shape: Shape::new(100, 100, 8),
        norm: false,
        neuron: Some(Neuron {
            v_th: 2.5,
            ..neuron(Reset::Hard, false)
        }),
        quarters: true,
        ..norm_and_neurons(1, 1)
    }]
}

/// The layers of the networks of the paper, as convolutions before and behind them leave z and errors: numbers that
/// eight bits hold. Values per channel are a power of two or not.
pub fn between_convolutions() -> Vec<NormLifCase> {
    let mut cases = Vec::new();
    for channels in [8, 16, 64, 136, 256] {
        for (samples, side) in [(2, 4), (3, 3)] {
            for (arrived, accumulate) in [(1, false), (1, true), (2, false), (2, true)] {
                let plain = NormLifCase {
                    samples,
                    shape: Shape::new(side, side, channels),
                    out_arrived: Some(arrived),
                    accumulate,
                    quarters: true,
                    z_of_conv: true,
                    out_of_conv: true,
                    ..norm_and_neurons(3, 2)
                };
                let membrane_shortcut = NormLifCase {
                    before: true,
                    store_y: true,
                    y_arrived: Some(2),
                    ..plain.clone()
                };
                let spike_shortcut = NormLifCase {
                    after: Some(Content::Counts),
                    out_of_conv: false,
                    ..plain.clone()
                };
                cases.extend([plain, membrane_shortcut, spike_shortcut]);
            }
        }
    }
    cases
        .into_iter()
        .map(NormLifCase::clear_of_threshold)
        .collect()
}

/// Training of several ranks, as one of them sees it: alone, or with what the others have.
pub fn across(others: bool) -> Vec<NormLifCase> {
    let cases = parts().into_iter().chain(norms()).chain(sizes());
    // The deviation of one number is 0, and 1/std makes much of how its mean is rounded.
    let spread = |case: &NormLifCase| case.samples * case.shape.pixels() > 1;
    let with_norm = cases.filter(|case| case.norm && spread(case));
    let both = with_norm.flat_map(|case| {
        [Norms::Pooled, Norms::Synchronised].map(|across| NormLifCase {
            across,
            others,
            ..case.clone()
        })
    });
    both.collect()
}

/// Evaluation: running statistics, nothing moves, no backward.
pub fn evaluations() -> Vec<NormLifCase> {
    let of = |case: NormLifCase| NormLifCase {
        phase: Phase::Evaluate,
        ..case
    };
    let cases = parts().into_iter().step_by(5).chain(norms());
    cases.map(|case| of(case).clear_of_threshold()).collect()
}

/// Sizes at which back ends change their loops.
pub fn sizes() -> Vec<NormLifCase> {
    let mut cases = Vec::new();
    for channels in [1, 2, 15, 16, 17, 63, 64, 65, 128, 130] {
        for (samples, side) in [(1, 1), (3, 1), (2, 4), (5, 3)] {
            let case = NormLifCase {
                samples,
                shape: Shape::new(side, side, channels),
                // Two numbers make a norm whose gradient is rounding; one makes it 0.
                norm: samples * side * side > 3,
                ..norm_and_neurons(3, 2)
            };
            cases.push(case.clear_of_threshold());
        }
    }
    cases
}
