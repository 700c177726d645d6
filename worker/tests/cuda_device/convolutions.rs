//! Convolutions and their gradients, against plain loops.

use crate::support::{Draws, floats_of, in_a_process, open};
use std::ffi::OsStr;
use synfire::kernel::cuda::device::{
    Convolution, ConvolutionShape, CudaError, Device, Memory, Operands, Pointer,
};

/// A convolution, slowly, in f64: y, dx for dy = `errors`, dw.
fn naive(shape: &ConvolutionShape, x: &[f32], w: &[f32], errors: &[f32]) -> [Vec<f64>; 3] {
    let ([h, width, c], [oh, ow, k]) = (shape.input, shape.output);
    let side = shape.kernel;
    let mut y = vec![0.0; errors.len()];
    let mut dx = vec![0.0; x.len()];
    let mut dw = vec![0.0; w.len()];
    let within = |out: usize, tap: usize, sides: usize| {
        (out * shape.stride + tap)
            .checked_sub(shape.padding)
            .filter(|&at| at < sides)
    };
    for n in 0..shape.samples {
        for (out, tap) in pairs(oh * ow, side * side) {
            let (Some(ih), Some(iw)) = (
                within(out / ow, tap / side, h),
                within(out % ow, tap % side, width),
            ) else {
                continue;
            };
            let y_at = (n * oh * ow + out) * k;
            let x_at = ((n * h + ih) * width + iw) * c;
            for (i, j) in pairs(k, c) {
                let w_at = (i * side * side + tap) * c + j;
                y[y_at + i] += f64::from(x[x_at + j]) * f64::from(w[w_at]);
                dx[x_at + j] += f64::from(errors[y_at + i]) * f64::from(w[w_at]);
                dw[w_at] += f64::from(errors[y_at + i]) * f64::from(x[x_at + j]);
            }
        }
    }
    [y, dx, dw]
}

fn pairs(first: usize, second: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..first).flat_map(move |i| (0..second).map(move |j| (i, j)))
}

/// The nearest bf16, as an f32.
fn rounded(values: &[f32]) -> Vec<f32> {
    let round = |x: &f32| {
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
    };
    values.iter().map(round).collect()
}

/// Numbers of a convolution on the device, in the form that its operands have.
struct Values {
    memory: Memory,
    bf16: bool,
    /// How far one of them may be off, where sums are about 1.
    step: f64,
}

impl Values {
    fn new(device: &Device, values: &[f32], operands: Operands) -> Self {
        let bf16 = operands == Operands::Bf16;
        let bytes = values.len() as u64 * if bf16 { 2 } else { 4 };
        let memory = device.allocate(bytes).unwrap();
        if bf16 {
            let bits: Vec<u16> = values.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            device.write_values(memory.pointer(), &bits);
        } else {
            device.write_values(memory.pointer(), values);
        }
        let step = match operands {
            Operands::F32 => 1e-6,
            Operands::Tf32 => 0.001,
            Operands::Bf16 => 0.004,
        };
        Self { memory, bf16, step }
    }

    fn at(&self) -> Pointer {
        self.memory.pointer()
    }

    fn read(&self, device: &Device) -> Vec<f32> {
        if !self.bf16 {
            return floats_of(device, &self.memory);
        }
        let mut bits = vec![0_u16; usize::try_from(self.memory.bytes() / 2).unwrap()];
        device.read_values(self.at(), &mut bits);
        bits.into_iter()
            .map(|bits| f32::from_bits(u32::from(bits) << 16))
            .collect()
    }

    /// Whether all are near `expected + before`: within the rounding of operands, and of sums of `terms`.
    fn check(&self, device: &Device, expected: &[f64], before: f32, terms: usize, what: &str) {
        let found = self.read(device);
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = expected + f64::from(before);
            let bound = self.step * (expected.abs() + (terms as f64).sqrt());
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= bound, "{what}[{i}]: {found} for {expected}");
        }
    }
}

fn shape(
    samples: usize,
    input: [usize; 3],
    outputs: usize,
    (kernel, stride, padding): (usize, usize, usize),
    operands: Operands,
) -> ConvolutionShape {
    let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    ConvolutionShape {
        samples,
        input,
        output: [side(input[0]), side(input[1]), outputs],
        kernel,
        stride,
        padding,
        operands,
    }
}

/// All directions of a convolution, twice: set, and added to what was there.
fn check_convolution(device: &Device, shape: &ConvolutionShape) {
    let operands = shape.operands;
    let bf16 = operands == Operands::Bf16;
    let ([h, w, c], [oh, ow, k]) = (shape.input, shape.output);
    let mut draws = Draws(7);
    let mut draw = |count: usize| {
        let values = draws.floats(count);
        if bf16 { rounded(&values) } else { values }
    };
    let (xs, ws) = (
        draw(shape.samples * h * w * c),
        draw(k * shape.kernel.pow(2) * c),
    );
    let errors = draw(shape.samples * oh * ow * k);
    let [y, dx, dw] = naive(shape, &xs, &ws, &errors);

    let convolution = Convolution::new(device, shape).unwrap();
    let algorithms = convolution.algorithms();
    // Those that cuDNN's documentation calls not deterministic.
    for other in ["BWD_DATA_ALGO_0", "BWD_FILTER_ALGO_0", "BWD_FILTER_ALGO_3"] {
        assert!(!algorithms.contains(other), "{algorithms}");
    }
    let scratch = device.allocate(convolution.workspace().max(1)).unwrap();
    let workspace = (scratch.pointer(), scratch.bytes());
    let (x, weights) = (
        Values::new(device, &xs, operands),
        Values::new(device, &ws, operands),
    );
    let dy = Values::new(device, &errors, operands);
    // What is set must not read what was there.
    let [out, x_out, w_out] =
        [&errors, &xs, &ws].map(|like| Values::new(device, &vec![f32::NAN; like.len()], operands));
    let taps = shape.kernel.pow(2);
    let name = shape.to_string();
    convolution.forward(device, x.at(), weights.at(), out.at(), workspace);
    out.check(device, &y, 0.0, taps * c, &format!("{name}: y"));
    let data = |accumulate| {
        convolution.data_gradient(
            device,
            dy.at(),
            weights.at(),
            x_out.at(),
            accumulate,
            workspace,
        );
    };
    let weight = |accumulate| {
        convolution.weight_gradient(device, x.at(), dy.at(), w_out.at(), accumulate, workspace);
    };
    data(false);
    x_out.check(device, &dx, 0.0, taps * k, &format!("{name}: dx"));
    weight(false);
    let terms = shape.samples * oh * ow;
    w_out.check(device, &dw, 0.0, terms, &format!("{name}: dw"));
    let before = Values::new(device, &vec![2.0; xs.len()], operands);
    device.copy(before.at(), x_out.at(), x_out.memory.bytes());
    data(true);
    x_out.check(device, &dx, 2.0, taps * k, &format!("{name}: dx added"));
    let before = Values::new(device, &vec![-3.0; ws.len()], operands);
    device.copy(before.at(), w_out.at(), w_out.memory.bytes());
    weight(true);
    w_out.check(device, &dw, -3.0, terms, &format!("{name}: dw added"));
    assert_eq!(device.fault(), None, "{name}");
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_convolutions_and_their_gradients_are_those_of_plain_loops() {
    let device = open();
    for operands in [Operands::F32, Operands::Tf32, Operands::Bf16] {
        for (samples, input, outputs, geometry) in [
            (2, [8, 8, 16], 32, (3, 1, 1)),
            (3, [9, 7, 8], 16, (3, 2, 1)),
            (2, [8, 8, 16], 8, (1, 1, 0)),
            (2, [8, 6, 8], 24, (1, 2, 0)),
            (1, [17, 17, 3], 8, (7, 2, 3)),
            (2, [5, 5, 4], 4, (3, 1, 0)),
            (4, [1, 1, 40], 10, (1, 1, 0)),
        ] {
            check_convolution(&device, &shape(samples, input, outputs, geometry, operands));
        }
    }
    assert_eq!(device.allocated(), 0);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_convolutions_are_captured_and_give_the_same_bits_again() {
    let device = open();
    let shape = shape(2, [16, 16, 32], 64, (3, 1, 1), Operands::F32);
    let mut draws = Draws(11);
    let x = Values::new(&device, &draws.floats(2 * 16 * 16 * 32), Operands::F32);
    let w = Values::new(&device, &draws.floats(64 * 9 * 32), Operands::F32);
    let y = Values::new(&device, &vec![0.0; 2 * 16 * 16 * 64], Operands::F32);
    let dw = Values::new(&device, &vec![0.0; 64 * 9 * 32], Operands::F32);
    let convolution = Convolution::new(&device, &shape).unwrap();
    let scratch = device.allocate(convolution.workspace().max(1)).unwrap();
    let workspace = (scratch.pointer(), scratch.bytes());
    let work = || {
        convolution.forward(&device, x.at(), w.at(), y.at(), workspace);
        convolution.weight_gradient(&device, x.at(), y.at(), dw.at(), false, workspace);
    };
    work();
    let eager = (y.read(&device), dw.read(&device));
    device.begin_capture();
    work();
    let graph = device.end_capture().unwrap();
    for _ in 0..3 {
        for values in [&y, &dw] {
            device.zero(values.at(), values.memory.bytes());
        }
        device.replay(&graph);
        assert!((y.read(&device), dw.read(&device)) == eager);
    }
    assert_eq!(device.fault(), None);
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_an_algorithm_with_a_huge_workspace_is_passed_over() {
    let test =
        "convolutions::needs_cuda_stand_in_an_algorithm_with_a_huge_workspace_is_passed_over";
    let chosen = |mib: &str| {
        let environment = [("SYNFIRE_STAND_IN_WORKSPACE_MIB", OsStr::new(mib))];
        in_a_process(test, &environment, || {
            let device = open();
            let operands = [Operands::F32, Operands::Tf32, Operands::Bf16];
            let told = operands.map(|operands| {
                let shape = shape(2, [8, 8, 16], 32, (3, 1, 1), operands);
                let convolution = Convolution::new(&device, &shape).unwrap();
                if convolution.workspace() < 1 << 20 {
                    // What was asked after it has not changed its descriptor.
                    check_convolution(&device, &shape);
                }
                convolution.algorithms()
            });
            told.join("; ")
        })
    };
    let counts = |told: &str| {
        let names = ["IMPLICIT_GEMM", "WINOGRAD", "PRECOMP_GEMM", "ALGO_1"];
        names.map(|name| told.matches(&format!("{name} (")).count())
    };
    // The first that are deterministic: of an exact convolution's gradients there is but one.
    let within = chosen("1000");
    assert_eq!(counts(&within), [3, 4, 0, 2], "{within}");
    let beyond = chosen("1100");
    assert_eq!(counts(&beyond), [0, 0, 3, 6], "{beyond}");
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_convolution_that_is_none_is_refused() {
    let device = open();
    let good = shape(2, [8, 8, 4], 4, (3, 1, 1), Operands::F32);
    let mut bad = good.clone();
    bad.output = [8, 9, 4];
    let error = Convolution::new(&device, &bad).unwrap_err();
    assert!(
        matches!(error, CudaError::BadConvolution { width: 8, .. }),
        "{error}"
    );
    let mut bad = good.clone();
    bad.samples = 0;
    let error = Convolution::new(&device, &bad).unwrap_err();
    assert!(matches!(error, CudaError::Cudnn { .. }), "{error}");
    assert!(error.to_string().contains("0 x 8x8x4"), "{error}");
    assert_eq!(device.fault(), None);
    // Too small a workspace is a fault that names call and shape.
    let convolution = Convolution::new(&device, &good).unwrap();
    let x = device.allocate(2 * 8 * 8 * 4 * 4).unwrap();
    let w = device.allocate(4 * 9 * 4 * 4).unwrap();
    let nowhere = Pointer(0);
    convolution.forward(&device, x.pointer(), w.pointer(), nowhere, (nowhere, 0));
    let fault = device.fault().unwrap();
    assert!(matches!(fault, CudaError::Cudnn { .. }), "{fault}");
}
