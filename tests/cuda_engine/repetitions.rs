//! What is repeated: in parts, cut short, and where it cannot be recorded.

use super::options;
use synfire::kernel::cuda::{CudaKernels, Precision};
use synfire::kernel::{Buffer, BufferSpec, Kernels, Repeat};
use synfire::shape::Shape;

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_what_cannot_be_recorded_runs_as_it_is_written() {
    let mut kernels = match CudaKernels::open(&options(Precision::F32)) {
        Ok(kernels) => kernels,
        Err(error) => panic!("{error}"),
    };
    let shape = Shape::new(1, 1, 4);
    let spec = BufferSpec::plain(1, shape, 1);
    let buffer = kernels.allocate(&spec);
    let what = Repeat {
        may_record: true,
        is_training: true,
        like: 0,
        ends_batch: false,
    };
    let mut in_between = 0;
    for round in 0_u8..4 {
        let value = f32::from(round);
        kernels.repeat(what, 0, None, &mut |kernels| {
            // Writing is what a recorded time step must not do, in neither of two parts.
            kernels.write(buffer, 0, &[0.0; 4]);
            kernels.in_between(&mut |_| in_between += 1);
            kernels.write(buffer, 0, &[value; 4]);
        });
        let mut values = [f32::NAN; 4];
        kernels.read(buffer, 0, &mut values);
        assert_eq!(values.map(f32::to_bits), [value.to_bits(); 4]);
        assert_eq!(kernels.failure(), None);
        assert_eq!(kernels.num_graphs(), 0);
        assert_eq!(in_between, round + 1);
    }
}

/// A body with two places in between: zeros a buffer, lets the host put `value` there, copies it to another,
/// lets the host look there, and zeros that.
struct InParts {
    kernels: CudaKernels,
    from: Buffer,
    to: Buffer,
    /// The bits that the host found in the two places.
    found: Vec<[u32; 4]>,
}

impl InParts {
    const SHAPE: Shape = Shape {
        height: 1,
        width: 1,
        channels: 4,
    };

    /// A buffer full of this.
    fn full(value: f32) -> [u32; 4] {
        [value.to_bits(); 4]
    }

    fn new() -> Self {
        let mut kernels = match CudaKernels::open(&options(Precision::F32)) {
            Ok(kernels) => kernels,
            Err(error) => panic!("{error}"),
        };
        let spec = BufferSpec::plain(1, Self::SHAPE, 1);
        Self {
            from: kernels.allocate(&spec),
            to: kernels.allocate(&spec),
            kernels,
            found: Vec::new(),
        }
    }

    /// Ends in the first place if `is_cut`.
    fn repeat(&mut self, value: f32, is_cut: bool) {
        let what = Repeat {
            may_record: true,
            is_training: true,
            like: 0,
            ends_batch: false,
        };
        let (from, to, found) = (self.from, self.to, &mut self.found);
        self.kernels.repeat(what, 0, None, &mut |kernels| {
            let mut look = |kernels: &mut dyn Kernels, buffer| {
                let mut values = [f32::NAN; 4];
                kernels.read(buffer, 0, &mut values);
                found.push(values.map(f32::to_bits));
            };
            kernels.zero(from, 1, Self::SHAPE, 0);
            let mut has_failed = false;
            kernels.in_between(&mut |kernels| {
                look(kernels, from);
                kernels.write(from, 0, &[value; 4]);
                has_failed = is_cut;
            });
            if has_failed {
                return;
            }
            kernels.flatten_forward(1, Self::SHAPE, 0, from, to);
            kernels.in_between(&mut |kernels| look(kernels, to));
            kernels.zero(to, 1, Self::SHAPE, 0);
        });
    }

    /// What lies in the second buffer.
    fn rest(&mut self) -> [u32; 4] {
        let mut values = [f32::NAN; 4];
        self.kernels.read(self.to, 0, &mut values);
        values.map(f32::to_bits)
    }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_what_stands_in_between_is_done_every_time_in_its_place() {
    let mut one = InParts::new();
    for round in 1_u8..6 {
        let value = f32::from(round);
        one.repeat(value, false);
        let expected = [0.0, value].map(InParts::full);
        assert_eq!(one.found, expected, "round {round}");
        assert_eq!(one.rest(), InParts::full(0.0));
        one.found.clear();
        assert_eq!(one.kernels.failure(), None);
        // Three parts, once it was recorded.
        let graphs = if round == 1 { 0 } else { 3 };
        assert_eq!(one.kernels.num_graphs(), graphs, "round {round}");
    }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_a_repetition_that_ends_early_does_nothing_further() {
    let mut one = InParts::new();
    (1_u8..4).for_each(|round| one.repeat(f32::from(round), false));
    one.kernels.write(one.to, 0, &[9.0; 4]);
    one.repeat(7.0, true);
    assert_eq!(one.rest(), InParts::full(9.0), "neither copied nor zeroed");
    // What comes after is done as ever.
    one.found.clear();
    one.repeat(8.0, false);
    assert_eq!(one.found, [0.0, 8.0].map(InParts::full));
    assert_eq!(one.rest(), InParts::full(0.0));
    assert_eq!(one.kernels.failure(), None);
}
