//! What is written into slots: values of the host, pictures as bytes, and what a convolution makes of them.

use super::options;
use synfire::kernel::cuda::{CudaKernels, Precision};
use synfire::kernel::{Arena, ArenaSizes, Buffer, BufferSpec, Conv, Kernels, Repeat, Span};
use synfire::shape::{Content, Shape};
use synfire_tests::pictures::Made;

/// Two inputs of the same kind in one back end, and what a convolution makes of them: one is given
/// values, the other bytes.
struct Twins {
    kernels: CudaKernels,
    conv: Conv,
    inputs: [Buffer; 2],
    output: Buffer,
}

impl Twins {
    const SLOTS: usize = 2;

    /// `forms`: slots that convolutions read, slots that everything else reads.
    fn new(precision: Precision, samples: usize, shape: Shape, forms: (usize, usize)) -> Self {
        let mut kernels = match CudaKernels::open(&options(precision)) {
            Ok(kernels) => kernels,
            Err(error) => panic!("{error}"),
        };
        kernels.allocate_arenas(ArenaSizes {
            parameters: 3 * shape.channels,
            statistics: 0,
            moments: 0,
            states: 0,
        });
        let weights: Vec<f32> = (1..=3 * shape.channels).map(|i| i as f32).collect();
        kernels.write_arena(Arena::Weights, 0, &weights);
        let input = BufferSpec {
            operand_slots: forms.0,
            ..BufferSpec::plain(samples, shape, forms.1)
        };
        assert_eq!(input.content, Content::Real);
        let output = Shape::new(shape.height, shape.width, 3);
        Self {
            inputs: [(); 2].map(|()| kernels.allocate(&input)),
            output: kernels.allocate(&BufferSpec {
                of_conv: true,
                ..BufferSpec::plain(samples, output, Self::SLOTS)
            }),
            conv: Conv {
                index: 0,
                samples,
                input: shape,
                output,
                kernel: 1,
                stride: 1,
                padding: 0,
                weight: Span {
                    offset: 0,
                    len: weights.len(),
                },
                bias: None,
            },
            kernels,
        }
    }

    fn bits(&mut self, buffer: Buffer, t: usize, len: usize) -> Vec<u32> {
        let mut values = vec![f32::NAN; len];
        self.kernels.read(buffer, t, &mut values);
        values.into_iter().map(f32::to_bits).collect()
    }

    /// Gives both the same pictures; the bits of each, and those of the convolution if it can read it.
    fn give(&mut self, made: &Made, t: usize, convolves: bool) -> [[Vec<u32>; 2]; 2] {
        let pictures = made.pictures();
        let [values, bytes] = self.inputs;
        self.kernels.write(values, t, &pictures.values());
        self.kernels.write_pictures(bytes, t, &pictures);
        let len = self.conv.samples * self.conv.output.elements();
        self.inputs.map(|input| {
            let own = self.bits(input, t, pictures.elements());
            if !convolves {
                return [own, Vec::new()];
            }
            self.kernels.conv_forward(&self.conv, t, input, self.output);
            [own, self.bits(self.output, t, len)]
        })
    }
}

/// What is asked for first where a time step is recorded: a plan of cuDNN's, and scratch.
#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_a_recording_that_asks_for_memory_is_made_when_that_is_there() {
    let shape = Shape::new(5, 5, 2);
    let mut twins = Twins::new(Precision::Bf16, 2, shape, (1, 1));
    let values: Vec<f32> = (0..2 * shape.elements()).map(|i| i as f32 / 16.0).collect();
    twins.kernels.write(twins.inputs[0], 0, &values);
    let what = Repeat {
        may_record: true,
        is_training: true,
        like: 0,
        ends_batch: false,
    };
    let (input, output, conv) = (twins.inputs[0], twins.output, twins.conv);
    let len = conv.samples * conv.output.elements();
    let mut results = Vec::new();
    for round in 0..4 {
        twins.kernels.repeat(what, 0, None, &mut |kernels| {
            kernels.zero(output, conv.samples, conv.output, 0);
            if round > 0 {
                kernels.conv_forward(&conv, 0, input, output);
            }
        });
        assert_eq!(twins.kernels.failure(), None);
        assert_eq!(twins.kernels.num_graphs(), usize::from(round > 1));
        results.push(twins.bits(output, 0, len));
    }
    assert!(results[0].iter().all(|bits| *bits == 0));
    assert!(results[1].iter().any(|bits| *bits != 0));
    assert_eq!(results[1..], vec![results[1].clone(); 3][..]);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_pictures_as_bytes_give_the_bits_of_those_made_on_the_host() {
    let shapes = [(32, 32, 3), (28, 28, 1), (7, 5, 3), (9, 11, 1), (1, 1, 3)];
    for (height, width, channels) in shapes {
        let shape = Shape::new(height, width, channels);
        for precision in [Precision::F32, Precision::Bf16] {
            // In bf16: stored so for convolutions alone, as f32 for others alone, as both.
            for forms in [(2, 0), (0, 2), (2, 2)] {
                let mut twins = Twins::new(precision, 11, shape, forms);
                // The same tables again, then others, then the first.
                for (t, deviation) in [0.25, 0.25, 0.5, 0.25].into_iter().enumerate() {
                    let made = Made::new(11, shape, deviation, t as u64);
                    let [host, device] = twins.give(&made, t, forms.0 > 0);
                    let what = format!("{shape:?} in {precision:?}, {forms:?}, t = {t}");
                    assert_eq!(twins.kernels.failure(), None, "{what}");
                    assert!(host == device, "{what}");
                    let empty = &host[0][4 * shape.elements()..5 * shape.elements()];
                    assert!(empty.iter().all(|&bits| bits == 0), "{what}");
                    assert!(host[0].iter().any(|&bits| bits != 0), "{what}");
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda"]
fn needs_cuda_pictures_that_were_not_recorded_are_made_as_they_are_written() {
    let shape = Shape::new(4, 4, 3);
    let mut twins = Twins::new(Precision::F32, 2, shape, (0, 2));
    let what = Repeat {
        may_record: true,
        is_training: true,
        like: 0,
        ends_batch: false,
    };
    for round in 0_u8..4 {
        // Other tables each time: those of a recording that was refused never arrived.
        let made = Made::new(2, shape, 0.25 + f32::from(round), 1);
        let (input, kernels) = (twins.inputs[0], &mut twins.kernels);
        kernels.repeat(what, 0, None, &mut |kernels| {
            kernels.write_pictures(input, 0, &made.pictures());
        });
        let expected = made.pictures().values();
        let mut values = vec![f32::NAN; expected.len()];
        kernels.read(input, 0, &mut values);
        assert_eq!(values, expected, "round {round}");
        assert_eq!(kernels.failure(), None);
    }
}
