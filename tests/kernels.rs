//! Every back end computes what the reference computes.
//!
//! The reference itself goes through the suite too, which shows that it is deterministic; that it
//! is right is shown by `gradients.rs` (autodiff) and `loops.rs` (plain f64 loops).

use synfire::kernel::cpu::simd::Isa;
#[cfg(feature = "cuda")]
use synfire::kernel::cuda::{Interface, Precision};
use synfire::kernel::{Arena, BufferSpec, Kernels, Lif, Neuron, NormLif, Phase, Reset, Span};
use synfire::shape::{Content, Shape};
use synfire_tests::cases::{conv, loss, norm_lif::rows, pointwise, pool, update};
use synfire_tests::rig::{Case, Make, cpu, hold_to_reference_within, hold_to_same_bits, reference};
#[cfg(feature = "cuda")]
use synfire_tests::rig::{cuda, cuda_by};

/// The suite for one back end.
macro_rules! suite {
    ($back_end:ident, $make:expr) => {
        suite!($back_end, $make, 0.0,);
    };
    // What it rounds by, and attributes of all tests.
    ($back_end:ident, $make:expr, $rounding:expr, $(#[$attribute:meta])*) => {
        mod $back_end {
            use super::*;

            const MAKE: Make = $make;

            fn hold_to_reference<C: Case>(cases: &[C], make: Make) {
                hold_to_reference_within(cases, make, $rounding);
            }

            #[test]
            $(#[$attribute])*
            fn convolutions_of_awkward_shapes() {
                hold_to_reference(&conv::edges(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn convolutions_of_random_shapes() {
                hold_to_reference(&conv::random(60), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn neurons_with_every_reset_and_window() {
                hold_to_reference(&rows::neurons(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn norms() {
                hold_to_reference(&rows::norms(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn norms_and_neurons_with_every_part() {
                hold_to_reference(&rows::parts(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn norms_and_neurons_of_awkward_sizes() {
                hold_to_reference(&rows::sizes(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn norms_and_neurons_in_evaluation() {
                hold_to_reference(&rows::evaluations(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn norms_of_several_ranks() {
                hold_to_reference(&rows::across(true), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn pools_and_flatten() {
                hold_to_reference(&pool::all(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn layers_between_convolutions() {
                hold_to_reference(&rows::between_convolutions(), MAKE);
                hold_to_reference(&pool::between_convolutions(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn dropout() {
                hold_to_reference(&pointwise::dropouts(), MAKE);
                hold_to_reference(&pointwise::dropouts_off(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn residuals() {
                hold_to_reference(&pointwise::residuals(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn losses_and_counts() {
                hold_to_reference(&loss::all(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn updates() {
                hold_to_reference(&update::all(), MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn memory_comes_zeroed_and_rings_wrap() {
                super::memory_comes_zeroed_and_rings_wrap(MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn numbers_that_are_not_finite_are_found() {
                super::numbers_that_are_not_finite_are_found(MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn silent_neurons_are_those_of_a_whole_batch() {
                super::silent_neurons_are_those_of_a_whole_batch(MAKE);
            }

            #[test]
            $(#[$attribute])*
            fn a_loss_that_is_not_finite_is_a_fault() {
                super::a_loss_that_is_not_finite_is_a_fault(MAKE);
            }
        }
    };
}

// One line per back end.
suite!(reference_back_end, reference);
suite!(cpu_of_one_thread, || cpu(1, None));
suite!(cpu_of_two_threads, || cpu(2, None));
suite!(cpu_portable, || cpu(2, Some(Isa::Portable)));
suite!(cpu_without_avx512, || {
    let mut forms = [Isa::Avx2, Isa::Portable].into_iter();
    cpu(2, forms.find(|isa| isa.is_available()))
});

#[cfg(feature = "cuda")]
suite!(
    needs_cuda_f32,
    || cuda(Precision::F32),
    0.0,
    #[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
);
// Eight bits of a number are kept, wherever a convolution reads or writes.
#[cfg(feature = "cuda")]
suite!(
    needs_cuda_bf16,
    || cuda(Precision::Bf16),
    0.02,
    #[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
);

/// Nothing else of a back end knows by which interface its convolutions are computed.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_convolutions_by_the_graph_api() {
    let all: [(Make, f32); 2] = [
        (|| cuda_by(Precision::F32, Interface::Graph), 0.0),
        (|| cuda_by(Precision::Bf16, Interface::Graph), 0.02),
    ];
    for (make, rounding) in all {
        assert!(make().name().contains("graph API"), "{}", make().name());
        hold_to_reference_within(&conv::edges(), make, rounding);
        hold_to_reference_within(&conv::random(60), make, rounding);
    }
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_blocks_that_take_several_turns() {
    let make: Make = || cuda(Precision::F32);
    hold_to_reference_within(&rows::large(), make, 0.0);
    hold_to_reference_within(&pool::large(), make, 0.0);
}

#[test]
fn bits_on_the_cpu_do_not_depend_on_the_number_of_threads() {
    let (one, three): (Make, Make) = (|| cpu(1, None), || cpu(3, None));
    hold_to_same_bits(&conv::edges(), one, three);
    hold_to_same_bits(&conv::random(60), one, three);
    hold_to_same_bits(&rows::norms(), one, three);
    hold_to_same_bits(&rows::parts(), one, three);
    hold_to_same_bits(&rows::across(true), one, three);
    hold_to_same_bits(&pool::all(), one, three);
    hold_to_same_bits(&loss::all(), one, three);
}
fn memory_comes_zeroed_and_rings_wrap(make: Make) {
    let mut kernels = make();
    let shape = Shape::new(2, 3, 5);
    let spec = BufferSpec::plain(2, shape, 3);
    let buffer = kernels.allocate(&spec);
    let other = kernels.allocate(&spec);
    assert_ne!(buffer, other);
    assert!(kernels.bytes(&spec) >= 4 * 3 * spec.elements() as u64);
    let mut values = vec![f32::NAN; spec.elements()];
    for t in 0..3 {
        kernels.read(buffer, t, &mut values);
        assert_eq!(values, vec![0.0; spec.elements()]);
    }
    let of = |t: usize| vec![t as f32 + 0.5; spec.elements()];
    for t in 0..5 {
        kernels.write(buffer, t, &of(t));
    }
    for t in 2..5 {
        kernels.read(buffer, t, &mut values);
        assert_eq!(values, of(t));
    }
    kernels.read(buffer, 0, &mut values);
    assert_eq!(values, of(3), "slot of t is t mod 3");
    kernels.zero(buffer, 2, shape, 7);
    kernels.read(buffer, 1, &mut values);
    assert_eq!(
        values,
        vec![0.0; spec.elements()],
        "t = 7 and t = 1 share a slot"
    );
    kernels.read(buffer, 2, &mut values);
    assert_eq!(values, of(2), "others keep theirs");
    kernels.read(other, 0, &mut values);
    assert_eq!(values, vec![0.0; spec.elements()], "buffers do not overlap");
}

fn numbers_that_are_not_finite_are_found(make: Make) {
    let mut kernels = make();
    kernels.allocate_arenas(synfire::kernel::ArenaSizes {
        parameters: 100,
        statistics: 10,
        moments: 0,
        states: 1,
    });
    let all = Span {
        offset: 0,
        len: 100,
    };
    let spec = BufferSpec::plain(3, Shape::new(3, 1, 7), 2);
    let buffer = kernels.allocate(&spec);
    assert!(kernels.is_finite(buffer, 0));
    assert!(kernels.arena_is_finite(Arena::Gradients, all));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 31, 62] {
            let mut values = vec![1.0; spec.elements()];
            values[place] = bad;
            kernels.write(buffer, 1, &values);
            assert!(!kernels.is_finite(buffer, 1), "{bad} at {place}");
            assert!(kernels.is_finite(buffer, 0));
        }
        kernels.write_arena(Arena::Gradients, 40, &[bad]);
        assert!(!kernels.arena_is_finite(Arena::Gradients, all));
        let before = Span { offset: 0, len: 40 };
        assert!(kernels.arena_is_finite(Arena::Gradients, before));
        let after = Span {
            offset: 41,
            len: 59,
        };
        assert!(kernels.arena_is_finite(Arena::Gradients, after));
        kernels.write_arena(Arena::Gradients, 40, &[1.0]);
    }
}

/// Two layers of 2 x 1 x 70 neurons without memory: one whose spikes are stored as bits, and one
/// whose spikes nothing reads. A one in z is a spike.
fn silent_neurons_are_those_of_a_whole_batch(make: Make) {
    let mut kernels = make();
    let (samples, shape) = (3, Shape::new(2, 1, 70));
    let z = kernels.allocate(&BufferSpec::plain(samples, shape, 1));
    let layers = [0, 1].map(|index| NormLif {
        samples,
        shape,
        norm: None,
        lif: Some(Lif {
            neuron: Neuron {
                tau_m: 2.0,
                v_th: 0.5,
                alpha: 1.0,
                reset: Reset::Hard,
                detach_reset: false,
            },
            index,
            u: kernels.allocate(&BufferSpec::plain(samples, shape, 2)),
        }),
        z,
        before: None,
        y: None,
        after: None,
        out: (index == 0).then(|| {
            kernels.allocate(&BufferSpec {
                content: Content::Spikes,
                operand_slots: 2,
                plain_slots: 0,
                ..BufferSpec::plain(samples, shape, 0)
            })
        }),
    });
    // Neurons 0, 69 and 139 of samples 0, 1 and 2 spike at these time steps.
    let step = |kernels: &mut dyn Kernels, t, spikes: &[(usize, usize)]| {
        let mut values = vec![0.0; samples * shape.elements()];
        for (sample, neuron) in spikes {
            values[sample * shape.elements() + neuron] = 1.0;
        }
        kernels.write(z, t, &values);
        for layer in &layers {
            kernels.norm_lif_forward(layer, t, Phase::Train);
        }
    };
    let kernels = &mut *kernels;
    let counts = |kernels: &mut dyn Kernels| {
        let report = kernels.take_report();
        (report.silent, report.observed)
    };
    step(kernels, 0, &[(0, 0), (1, 0)]);
    step(kernels, 1, &[(2, 139), (1, 69), (0, 0)]);
    step(kernels, 0, &[(1, 7)]);
    step(kernels, 1, &[]);
    // 137 in the first batch and 139 in the second: each begins anew.
    assert_eq!(counts(kernels), (vec![276; 2], vec![280; 2]));
    // A report ends a batch; what comes after it counts as one.
    step(kernels, 0, &[(0, 1)]);
    assert_eq!(counts(kernels), (vec![139; 2], vec![140; 2]));
    step(kernels, 1, &[(0, 2), (2, 2), (2, 3)]);
    assert_eq!(counts(kernels), (vec![138; 2], vec![140; 2]));
    let nothing = counts(kernels);
    assert!(nothing.0.iter().chain(&nothing.1).all(|&count| count == 0));
}

fn a_loss_that_is_not_finite_is_a_fault(make: Make) {
    let mut kernels = make();
    let shape = Shape::vector(4);
    let logits = kernels.allocate(&BufferSpec::plain(2, shape, 1));
    let loss = synfire::kernel::Loss {
        samples: 2,
        classes: 4,
        ce: 1.0,
        mse: 0.0,
    };
    kernels.write_labels(&[1, 3]);
    let step = |kernels: &mut dyn synfire::kernel::Kernels, t, first| {
        let mut values = [0.1; 8];
        values[0] = first;
        kernels.write(logits, t, &values);
        kernels.loss(&loss, t, logits, None);
    };
    step(&mut *kernels, 0, 0.2);
    assert_eq!(kernels.poll_fault(), None);
    for (t, first) in [(1, 0.2), (2, f32::NAN), (3, f32::NAN), (4, 0.3)] {
        step(&mut *kernels, t, first);
    }
    // A device may answer late, but not later than the batch after.
    for t in 0..5 {
        step(&mut *kernels, t, 0.2);
    }
    assert_eq!(kernels.poll_fault(), Some(2));
    let report = kernels.take_report();
    assert_eq!(report.batches, [2; 5]);
    assert_eq!(kernels.poll_fault(), None, "a new report starts");
}
