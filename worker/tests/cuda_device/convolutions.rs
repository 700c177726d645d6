//! Convolutions and their gradients, against plain loops.

use crate::support::{Draws, floats_of, in_a_process, open};
use std::ffi::OsStr;
use synfire::kernel::cuda::device::{
    Convolution, ConvolutionShape, CudaError, Device, Memory, Operands, Pass, Pointer,
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

/// A convolution by one of cuDNN's interfaces.
type Make = fn(&Device, &ConvolutionShape) -> Result<Convolution, CudaError>;

const INTERFACES: [Make; 2] = [Convolution::new, Convolution::by_graphs];

const PASSES: [Pass; 5] = [
    Pass::Forward,
    Pass::Data { accumulate: false },
    Pass::Data { accumulate: true },
    Pass::Weight { accumulate: false },
    Pass::Weight { accumulate: true },
];

/// Those that add to what is there.
const ADDING: [Pass; 2] = [
    Pass::Data { accumulate: true },
    Pass::Weight { accumulate: true },
];

/// Ready for all passes that there are: there may be no plan that adds to what is there, for which a kernel is then.
fn prepared(
    make: Make,
    device: &Device,
    shape: &ConvolutionShape,
) -> (Convolution, impl Fn(Pass) -> bool) {
    let mut convolution = make(device, shape).unwrap();
    let mut missing = Vec::new();
    for pass in PASSES {
        match convolution.prepare(device, pass) {
            Ok(bytes) => assert!(bytes <= convolution.workspace()),
            Err(CudaError::NoPlan { .. }) if ADDING.contains(&pass) => missing.push(pass),
            Err(error) => panic!("{error}"),
        }
    }
    (convolution, move |pass| !missing.contains(&pass))
}

/// Numbers for x, w and dy, as the operands have them.
struct Numbers {
    x: Vec<f32>,
    w: Vec<f32>,
    errors: Vec<f32>,
}

impl Numbers {
    fn draw(shape: &ConvolutionShape) -> Self {
        let ([h, w, c], [oh, ow, k]) = (shape.input, shape.output);
        let mut draws = Draws(7);
        let mut draw = |count: usize| {
            let values = draws.floats(count);
            match shape.operands {
                Operands::Bf16 => rounded(&values),
                Operands::F32 | Operands::Tf32 => values,
            }
        };
        Self {
            x: draw(shape.samples * h * w * c),
            w: draw(k * shape.kernel.pow(2) * c),
            errors: draw(shape.samples * oh * ow * k),
        }
    }
}

/// What each pass that there is gives; dx is added to 2, dw to -3.
fn compute(
    device: &Device,
    shape: &ConvolutionShape,
    (convolution, is_there): &(Convolution, impl Fn(Pass) -> bool),
    numbers: &Numbers,
) -> Vec<(Pass, Values)> {
    let scratch = device.allocate(convolution.workspace().max(1)).unwrap();
    let workspace = (scratch.pointer(), scratch.bytes());
    let of = |values: &[f32]| Values::new(device, values, shape.operands);
    let (x, w, dy) = (of(&numbers.x), of(&numbers.w), of(&numbers.errors));
    let pass = |pass: Pass| {
        // What is set must not read what was there.
        let filled = |like: &[f32], added: Option<f32>| {
            Values::new(
                device,
                &vec![added.unwrap_or(f32::NAN); like.len()],
                shape.operands,
            )
        };
        match pass {
            Pass::Forward => {
                let y = filled(&numbers.errors, None);
                convolution.forward(device, x.at(), w.at(), y.at(), workspace);
                y
            }
            Pass::Data { accumulate } => {
                let dx = filled(&numbers.x, accumulate.then_some(2.0));
                let (dy, w) = (dy.at(), w.at());
                convolution.data_gradient(device, dy, w, dx.at(), accumulate, workspace);
                dx
            }
            Pass::Weight { accumulate } => {
                let dw = filled(&numbers.w, accumulate.then_some(-3.0));
                let (x, dy) = (x.at(), dy.at());
                convolution.weight_gradient(device, x, dy, dw.at(), accumulate, workspace);
                dw
            }
        }
    };
    let passes = PASSES.into_iter().filter(|&pass| is_there(pass));
    let all = passes.map(|of| (of, pass(of))).collect();
    assert_eq!(device.fault(), None, "{shape}");
    all
}

/// All directions of a convolution by both interfaces, twice: set, and added to what was there.
fn check_convolution(device: &Device, shape: &ConvolutionShape) {
    for make in INTERFACES {
        check_interface(make, device, shape);
    }
}

fn check_interface(make: Make, device: &Device, shape: &ConvolutionShape) {
    let numbers = Numbers::draw(shape);
    let [y, dx, dw] = naive(shape, &numbers.x, &numbers.w, &numbers.errors);
    let convolution = prepared(make, device, shape);
    let algorithms = convolution.0.algorithms();
    // Those that cuDNN's documentation calls not deterministic, and engines that say so.
    for other in [
        "BWD_DATA_ALGO_0",
        "BWD_FILTER_ALGO_0",
        "BWD_FILTER_ALGO_3",
        "NONDETERMINISTIC",
    ] {
        assert!(!algorithms.contains(other), "{algorithms}");
    }
    let found = compute(device, shape, &convolution, &numbers);
    let ([_, _, c], [oh, ow, k]) = (shape.input, shape.output);
    let taps = shape.kernel.pow(2);
    let terms = shape.samples * oh * ow;
    for (pass, found) in &found {
        let added = |accumulate: bool, before: f32| if accumulate { before } else { 0.0 };
        let (expected, before, terms) = match *pass {
            Pass::Forward => (&y, 0.0, taps * c),
            Pass::Data { accumulate } => (&dx, added(accumulate, 2.0), taps * k),
            Pass::Weight { accumulate } => (&dw, added(accumulate, -3.0), terms),
        };
        found.check(
            device,
            expected,
            before,
            terms,
            &format!("{shape}: {pass:?}"),
        );
    }
}

/// Ordinary and odd shapes.
fn shapes(operands: Operands) -> Vec<ConvolutionShape> {
    let all = [
        (2, [8, 8, 16], 32, (3, 1, 1)),
        (3, [9, 7, 8], 16, (3, 2, 1)),
        (2, [8, 8, 16], 8, (1, 1, 0)),
        (2, [8, 6, 8], 24, (1, 2, 0)),
        (1, [17, 17, 3], 8, (7, 2, 3)),
        (2, [5, 5, 4], 4, (3, 1, 0)),
        (4, [1, 1, 40], 10, (1, 1, 0)),
        (3, [5, 3, 7], 13, (3, 1, 1)),
    ];
    let shape =
        |(samples, input, outputs, geometry)| shape(samples, input, outputs, geometry, operands);
    all.map(shape).into()
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_convolutions_and_their_gradients_are_those_of_plain_loops() {
    let device = open();
    for operands in [Operands::F32, Operands::Tf32, Operands::Bf16] {
        for shape in shapes(operands) {
            check_convolution(&device, &shape);
        }
    }
    assert_eq!(device.allocated(), 0);
}

/// On a GPU the interfaces may take kernels that sum in another order.
#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_both_interfaces_give_the_same_bits() {
    let device = open();
    for operands in [Operands::F32, Operands::Bf16] {
        for shape in shapes(operands) {
            let numbers = Numbers::draw(&shape);
            let [legacy, graph] = INTERFACES.map(|make| {
                let convolution = prepared(make, &device, &shape);
                let values = compute(&device, &shape, &convolution, &numbers);
                let bits = |(_, values): &(Pass, Values)| {
                    let values = values.read(&device).into_iter();
                    values.map(f32::to_bits).collect::<Vec<u32>>()
                };
                values.iter().map(bits).collect::<Vec<_>>()
            });
            assert_eq!([legacy.len(), graph.len()], [PASSES.len(); 2]);
            for (pass, (legacy, graph)) in PASSES.iter().zip(legacy.iter().zip(&graph)) {
                assert!(legacy == graph, "{shape}: {pass:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_convolutions_are_captured_and_give_the_same_bits_again() {
    let device = open();
    for make in INTERFACES {
        for operands in [Operands::F32, Operands::Bf16] {
            let shape = shape(2, [16, 16, 32], 64, (3, 1, 1), operands);
            check_captured(make, &device, &shape);
        }
    }
}

fn check_captured(make: Make, device: &Device, shape: &ConvolutionShape) {
    let numbers = Numbers::draw(shape);
    let of = |values: &[f32]| Values::new(device, values, shape.operands);
    let (x, w) = (of(&numbers.x), of(&numbers.w));
    let (y, dw) = (of(&numbers.errors), of(&numbers.w));
    let (convolution, _) = prepared(make, device, shape);
    let scratch = device.allocate(convolution.workspace().max(1)).unwrap();
    let workspace = (scratch.pointer(), scratch.bytes());
    let work = || {
        convolution.forward(device, x.at(), w.at(), y.at(), workspace);
        convolution.weight_gradient(device, x.at(), y.at(), dw.at(), false, workspace);
    };
    work();
    let eager = (y.read(device), dw.read(device));
    device.begin_capture();
    work();
    let graph = device.end_capture().unwrap();
    for _ in 0..3 {
        for values in [&y, &dw] {
            device.zero(values.at(), values.memory.bytes());
        }
        device.replay(&graph);
        assert!((y.read(device), dw.read(device)) == eager, "{shape}");
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

/// The first layer of a network hands no error down: what is not there for it is not missed.
#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_a_direction_without_an_algorithm_is_an_error_of_that_direction() {
    let test = "convolutions::needs_cuda_stand_in_a_direction_without_an_algorithm_is_an_error_of_that_direction";
    let environment = [("SYNFIRE_STAND_IN_LACKS", OsStr::new("data:3"))];
    in_a_process(test, &environment, || {
        let device = open();
        for (channels, is_there) in [(3, false), (4, true)] {
            let shape = shape(2, [8, 8, channels], 4, (3, 1, 1), Operands::F32);
            let mut convolution = Convolution::new(&device, &shape).unwrap();
            let needs = PASSES.map(|pass| {
                let prepared = convolution.prepare(&device, pass);
                let is_data = matches!(pass, Pass::Data { .. });
                assert_eq!(prepared.is_err(), is_data && !is_there, "{pass:?}");
                if let Err(error) = &prepared {
                    let told = error.to_string();
                    let words = ["data gradient of a 3x3", "\"graph\""];
                    assert!(words.iter().all(|words| told.contains(words)), "{told}");
                }
                prepared.unwrap_or(0)
            });
            // The stand-in wants another number in each direction.
            let [forward, data, _, weight, _] = needs;
            assert!(forward < weight && (data > weight) == is_there, "{needs:?}");
            assert_eq!(convolution.algorithms().contains("none"), !is_there);
        }
        assert_eq!(device.fault(), None);
        String::new()
    });
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_plan_is_made_before_a_capture_and_once() {
    let device = open();
    let shape = shape(2, [8, 8, 4], 4, (3, 1, 1), Operands::F32);
    let mut convolution = Convolution::by_graphs(&device, &shape).unwrap();
    assert_eq!(convolution.workspace(), 0);
    device.begin_capture();
    let error = convolution.prepare(&device, Pass::Forward).unwrap_err();
    let refusal = CudaError::WhileCapturing {
        call: "a new convolution",
    };
    assert_eq!(error, refusal);
    device.abandon_capture();
    let bytes = convolution.prepare(&device, Pass::Forward).unwrap();
    let words = convolution.algorithms();
    device.begin_capture();
    assert_eq!(convolution.prepare(&device, Pass::Forward), Ok(bytes));
    device.abandon_capture();
    assert_eq!(convolution.algorithms(), words);
    assert_eq!(words.matches("engine").count(), 1, "{words}");
    assert_eq!(device.fault(), None);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_convolution_that_is_none_is_refused() {
    for make in INTERFACES {
        check_refusals(make);
    }
}

fn check_refusals(make: Make) {
    let device = open();
    let good = shape(2, [8, 8, 4], 4, (3, 1, 1), Operands::F32);
    let mut bad = good.clone();
    bad.output = [8, 9, 4];
    let error = make(&device, &bad).unwrap_err();
    assert!(
        matches!(error, CudaError::BadConvolution { width: 8, .. }),
        "{error}"
    );
    let mut bad = good.clone();
    bad.samples = 0;
    let made = make(&device, &bad);
    let error = made.and_then(|mut made| made.prepare(&device, Pass::Forward));
    let error = error.unwrap_err();
    assert!(matches!(error, CudaError::Cudnn { .. }), "{error}");
    assert!(error.to_string().contains("0 x 8x8x4"), "{error}");
    assert_eq!(device.fault(), None);
    // Too small a workspace is a fault that names call and shape, where one is needed at all.
    for pass in PASSES {
        let device = open();
        let (mut convolution, is_there) = prepared(make, &device, &good);
        let bytes = if is_there(pass) {
            convolution.prepare(&device, pass).unwrap()
        } else {
            0
        };
        if bytes == 0 {
            continue;
        }
        let [x, y, scratch] =
            [1 << 16, 1 << 16, bytes].map(|bytes| device.allocate(bytes).unwrap());
        let w = device.allocate(4 * 9 * 4 * 4).unwrap();
        let [x, w, y] = [&x, &w, &y].map(Memory::pointer);
        let few = (scratch.pointer(), bytes - 1);
        match pass {
            Pass::Forward => convolution.forward(&device, x, w, y, few),
            Pass::Data { accumulate } => {
                convolution.data_gradient(&device, y, w, x, accumulate, few);
            }
            Pass::Weight { accumulate } => {
                convolution.weight_gradient(&device, x, y, w, accumulate, few);
            }
        }
        let fault = device.fault().unwrap();
        assert!(matches!(fault, CudaError::Cudnn { .. }), "{fault}");
        let told = fault.to_string();
        let number = format!("{} bytes", bytes - 1);
        for words in ["a workspace that is too small", &number, "2 x 8x8x4"] {
            assert!(told.contains(words), "{pass:?}: {told}");
        }
    }
}
