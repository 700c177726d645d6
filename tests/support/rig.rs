//! A back end with its buffers filled, and what was read from it.

use synfire::kernel::cpu::CpuKernels;
use synfire::kernel::cpu::simd::Isa;
use synfire::kernel::reference::ReferenceKernels;
use synfire::kernel::{
    Arena, ArenaSizes, Buffer, BufferSpec, Errors, ErrorsOut, Kernels, Span, Window,
};
use synfire::shape::{Content, Shape};

use crate::outcome::{Outcome, Tolerance};
use crate::random::{Random, Series};

/// Makes a back end.
pub type Make = fn() -> Box<dyn Kernels>;

/// The definition.
pub fn reference() -> Box<dyn Kernels> {
    Box::new(ReferenceKernels::new())
}

/// Slices, threads and vectors: so many threads, the widest vectors of the machine or those given.
///
/// # Panics
/// If the machine lacks the vectors or cannot start threads.
pub fn cpu(threads: usize, isa: Option<Isa>) -> Box<dyn Kernels> {
    let kernels = CpuKernels::new(threads, isa);
    Box::new(kernels.expect("a machine starts two threads and runs what it says it has"))
}

/// A GPU, or the stand-in for one.
///
/// # Panics
/// If there is none.
#[cfg(feature = "cuda")]
pub fn cuda(precision: synfire::kernel::cuda::Precision) -> Box<dyn Kernels> {
    cuda_by(precision, synfire::kernel::cuda::Interface::Legacy)
}

/// A GPU, or the stand-in for one, with convolutions by an interface of cuDNN.
///
/// # Panics
/// If there is none.
#[cfg(feature = "cuda")]
pub fn cuda_by(
    precision: synfire::kernel::cuda::Precision,
    interface: synfire::kernel::cuda::Interface,
) -> Box<dyn Kernels> {
    use synfire::kernel::cuda::{CudaKernels, Options};
    let options = Options {
        ordinal: 0,
        precision,
        interface,
        ..Options::default()
    };
    match CudaKernels::open(&options) {
        Ok(kernels) => Box::new(kernels),
        Err(error) => panic!("{error}"),
    }
}

/// Something that a back end computes and an oracle may confirm.
pub trait Case: Sync {
    /// Its sizes and options, for messages.
    fn name(&self) -> String;

    /// Computes it and notes the results.
    fn run(&self, rig: &mut Rig);
}

/// Runs a case on a new back end, inside [`Kernels::run`].
pub fn run(case: &dyn Case, make: Make) -> Outcome {
    let mut outcome = Outcome::default();
    make().run(&mut |kernels| {
        let mut rig = Rig::new(kernels);
        case.run(&mut rig);
        outcome = std::mem::take(&mut rig.outcome);
    });
    outcome
}

/// Holds a back end to the reference, inside and outside of [`Kernels::run`].
///
/// # Panics
/// If results differ; names the case and the worst element.
pub fn hold_to_reference<C: Case>(cases: &[C], make: Make) {
    hold_to_reference_within(cases, make, 0.0);
}

/// As [`hold_to_reference`], for a back end that rounds what convolutions read and write: everything
/// but exact results may be off by this part of the largest number, too.
///
/// # Panics
/// If results differ; names the case and the worst element.
pub fn hold_to_reference_within<C: Case>(cases: &[C], make: Make, rounding: f32) {
    assert!(!cases.is_empty());
    for case in cases {
        let expected = run(case, reference).rounded_by(rounding);
        let actual = run(case, make);
        assert!(expected.names().eq(actual.names()), "{}", case.name());
        expected.assert_met_by(&actual, &case.name());
        let mut kernels = make();
        let mut outside = Rig::new(&mut *kernels);
        case.run(&mut outside);
        expected.assert_met_by(&outside.outcome, &format!("{}, outside run", case.name()));
    }
}

/// Holds two back ends to the same bits: forms of one that differ in their threads.
///
/// # Panics
/// If a bit differs; names the case and the result.
pub fn hold_to_same_bits<C: Case>(cases: &[C], one: Make, other: Make) {
    for case in cases {
        let (one, other) = (run(case, one), run(case, other));
        assert!(one.names().eq(other.names()), "{}", case.name());
        for name in one.names() {
            let bits = |outcome: &Outcome| -> Vec<u32> {
                let values = outcome.get(name).unwrap_or_default();
                values.iter().map(|x| x.to_bits()).collect()
            };
            assert_eq!(bits(&one), bits(&other), "{}: {name}", case.name());
        }
    }
}

/// A back end under test.
pub struct Rig<'a> {
    /// The back end.
    pub kernels: &'a mut dyn Kernels,
    /// What was read from it.
    pub outcome: Outcome,
    parameters: usize,
    statistics: usize,
}

impl std::fmt::Debug for Rig<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rig")
            .field("kernels", &self.kernels.name())
            .finish_non_exhaustive()
    }
}

impl<'a> Rig<'a> {
    fn new(kernels: &'a mut dyn Kernels) -> Self {
        Self {
            kernels,
            outcome: Outcome::default(),
            parameters: 0,
            statistics: 0,
        }
    }

    /// The next range of the arenas that hold parameters, aligned as the engine aligns them.
    pub fn parameter(&mut self, len: usize) -> Span {
        next(&mut self.parameters, len)
    }

    /// The next range of the arena of running statistics.
    pub fn statistic(&mut self, len: usize) -> Span {
        next(&mut self.statistics, len)
    }

    /// Allocates the arenas for the ranges so far; gradients and states hold rubbish.
    pub fn allocate_arenas(&mut self) {
        self.kernels.allocate_arenas(ArenaSizes {
            parameters: self.parameters,
            statistics: self.statistics,
            moments: self.statistics,
            states: 2,
        });
        let mut random = Random::new(77);
        for arena in [Arena::Gradients, Arena::State, Arena::SecondState] {
            let rubbish: Vec<f32> = random.normal(self.parameters);
            let positive: Vec<f32> = rubbish.iter().map(|x| x.abs() + 0.1).collect();
            self.kernels.write_arena(arena, 0, &positive);
        }
    }

    /// A value in the form of convolutions: `slots` slots; and in the plain form.
    pub fn operand(
        &mut self,
        samples: usize,
        shape: Shape,
        content: Content,
        [operand_slots, plain_slots]: [usize; 2],
    ) -> Buffer {
        self.kernels.allocate(&BufferSpec {
            samples,
            shape,
            content,
            operand_slots,
            plain_slots,
            of_conv: false,
        })
    }

    /// A value in the plain form.
    pub fn plain(
        &mut self,
        samples: usize,
        shape: Shape,
        content: Content,
        slots: usize,
    ) -> Buffer {
        self.operand(samples, shape, content, [0, slots])
    }

    /// A value in the plain form that a convolution writes, or that something else does.
    pub fn written(&mut self, samples: usize, shape: Shape, slots: usize, of_conv: bool) -> Buffer {
        self.kernels.allocate(&BufferSpec {
            of_conv,
            ..BufferSpec::plain(samples, shape, slots)
        })
    }

    /// Errors that arrived at some steps of a window; at the others lies rubbish.
    pub fn errors(
        &mut self,
        samples: usize,
        shape: Shape,
        window: Window,
        steps: Window,
        values: &Series,
    ) -> Errors {
        let buffer = self.plain(samples, shape, Content::Real, window.len);
        self.errors_in(buffer, window, steps, values)
    }

    /// As [`Rig::errors`], in a buffer of so many slots as the window has steps.
    pub fn errors_in(
        &mut self,
        buffer: Buffer,
        window: Window,
        steps: Window,
        values: &Series,
    ) -> Errors {
        let rubbish = vec![1e6; values[steps.newest].len()];
        for t in window.newest_first() {
            self.kernels.write(buffer, t, &rubbish);
        }
        for t in steps.newest_first() {
            self.kernels.write(buffer, t, &values[t]);
        }
        Errors { buffer, steps }
    }

    /// A place for errors of a window: with something to add to, or a larger one, which served
    /// another value before.
    pub fn errors_out(
        &mut self,
        samples: usize,
        shape: Shape,
        window: Window,
        accumulate: bool,
    ) -> ErrorsOut {
        self.errors_out_of(samples, shape, window, accumulate, false)
    }

    /// As [`Rig::errors_out`], for a convolution that reads them or for something else.
    pub fn errors_out_of(
        &mut self,
        samples: usize,
        shape: Shape,
        window: Window,
        accumulate: bool,
        of_conv: bool,
    ) -> ErrorsOut {
        let served = if accumulate {
            shape
        } else {
            Shape::new(shape.height + 1, shape.width, shape.channels + 3)
        };
        let buffer = self.written(samples, served, window.len, of_conv);
        let elements = samples * served.elements();
        for t in window.newest_first() {
            let before = earlier_error(t, elements);
            self.kernels.write(buffer, t, &before);
        }
        ErrorsOut { buffer, accumulate }
    }

    /// Notes a slot.
    pub fn note(&mut self, name: &str, tolerance: Tolerance, buffer: Buffer, t: usize, len: usize) {
        let mut values = vec![f32::NAN; len];
        self.kernels.read(buffer, t, &mut values);
        self.outcome.note(at(name, t), tolerance, values);
    }

    /// Notes the errors of the steps of a window that should have been written.
    pub fn note_errors(&mut self, name: &str, errors: ErrorsOut, steps: Window, len: usize) {
        for t in steps.newest_first() {
            self.note(name, Tolerance::Gradient, errors.buffer, t, len);
        }
    }

    /// Notes a range of an arena.
    pub fn note_arena(&mut self, name: &str, tolerance: Tolerance, arena: Arena, span: Span) {
        let mut values = vec![f32::NAN; span.len];
        self.kernels.read_arena(arena, span.offset, &mut values);
        self.outcome.note(name, tolerance, values);
    }

    /// Notes and resets the back end's report. Zeros at the end of a list may be there or not.
    pub fn note_report(&mut self, name: &str) {
        let report = self.kernels.take_report();
        #[expect(clippy::cast_possible_truncation, reason = "losses are f32 numbers")]
        let loss: Vec<f32> = report.loss.iter().map(|loss| *loss as f32).collect();
        self.outcome
            .note(format!("{name} loss"), Tolerance::Forward, trimmed(loss));
        for (part, counts) in [
            ("correct", report.correct),
            ("samples", report.samples),
            ("batches", report.batches),
            ("spikes", report.spikes),
            ("neurons", report.neurons),
            ("silent", report.silent),
            ("observed", report.observed),
        ] {
            let counts = trimmed(counts.iter().map(|n| *n as f32).collect());
            self.outcome
                .note(format!("{name} {part}"), Tolerance::Exact, counts);
        }
    }
}

/// Without the zeros at its end.
pub fn trimmed(mut values: Vec<f32>) -> Vec<f32> {
    let len = values
        .iter()
        .rposition(|x| *x != 0.0)
        .map_or(0, |last| last + 1);
    values.truncate(len);
    values
}

fn next(used: &mut usize, len: usize) -> Span {
    let offset = used.next_multiple_of(16);
    *used = offset + len;
    Span { offset, len }
}

/// The name of a result at a time step.
pub fn at(name: &str, t: usize) -> String {
    format!("{name} at t = {t}")
}

/// What another reader of a value handed down before: [`Rig::errors_out`] puts it there.
pub fn earlier_error(t: usize, elements: usize) -> Vec<f32> {
    Random::new(1000 + t as u64).normal(elements)
}
