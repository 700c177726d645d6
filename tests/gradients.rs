//! Every backward pass is what autodiff makes of the forward pass.
//!
//! The neurons' step function gets its surrogate, Eq. (4), by adding F - F to the spikes, where
//! only the first F has a gradient and F' = H'. Nothing else about the oracle is ours: burn's
//! autodiff finds every gradient, the temporal ones of Algorithm 1, line 17, included.

use synfire::kernel::Phase;
use synfire::kernel::cpu::simd::Isa;
use synfire_tests::cases::conv::{self, ConvCase};
use synfire_tests::cases::loss::{self, LossCase};
use synfire_tests::cases::norm_lif::{NormLifCase, rows};
use synfire_tests::cases::pointwise::{self, PointwiseCase};
use synfire_tests::cases::pool::{self, PoolCase};
use synfire_tests::outcome::Outcome;
use synfire_tests::rig::{Case, Make, cpu, reference, run};

fn hold_to<C: Case>(cases: &[C], make: Make, oracle: fn(&C) -> Outcome) {
    assert!(!cases.is_empty());
    for case in cases {
        let actual = run(case, make);
        oracle(case).assert_met_by(&actual, &case.name());
    }
}

/// The suite for one back end.
macro_rules! suite {
    ($back_end:ident, $make:expr) => {
        mod $back_end {
            use super::*;

            const MAKE: Make = $make;

            #[test]
            fn convolutions_match_autodiff() {
                hold_to(&conv::edges(), MAKE, ConvCase::autodiff);
                hold_to(&conv::random(60), MAKE, ConvCase::autodiff);
            }

            #[test]
            fn neurons_match_truncated_autodiff_for_every_window_and_reset() {
                hold_to(&rows::neurons(), MAKE, NormLifCase::autodiff);
            }

            #[test]
            fn norms_match_autodiff() {
                hold_to(&rows::norms(), MAKE, NormLifCase::autodiff);
            }

            #[test]
            fn norms_and_neurons_match_autodiff_with_every_part() {
                let cases = rows::parts();
                assert!(cases.iter().all(|case| case.phase == Phase::Train));
                hold_to(&cases, MAKE, NormLifCase::autodiff);
            }

            #[test]
            fn norms_and_neurons_match_autodiff_in_every_size() {
                hold_to(&rows::sizes(), MAKE, NormLifCase::autodiff);
            }

            #[test]
            fn norms_of_several_ranks_match_autodiff_where_there_is_one() {
                hold_to(&rows::across(false), MAKE, NormLifCase::autodiff);
            }

            #[test]
            fn pools_and_flatten_match_autodiff() {
                hold_to(&pool::all(), MAKE, PoolCase::autodiff);
            }

            #[test]
            fn dropout_matches_autodiff() {
                hold_to(&pointwise::dropouts(), MAKE, PointwiseCase::autodiff);
            }

            #[test]
            fn residuals_match_autodiff() {
                hold_to(&pointwise::residuals(), MAKE, PointwiseCase::autodiff);
            }

            #[test]
            fn losses_match_autodiff() {
                hold_to(&loss::all(), MAKE, LossCase::autodiff);
            }
        }
    };
}

// One line per back end.
suite!(reference_back_end, reference);
suite!(cpu_of_one_thread, || cpu(1, None));
suite!(cpu_of_two_threads, || cpu(2, None));
suite!(cpu_portable, || cpu(2, Some(Isa::Portable)));
