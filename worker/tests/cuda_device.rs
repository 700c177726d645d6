//! One GPU: its memory, its order of work, its kernels, graphs and convolutions, and its errors.
//!
//! The tests run on a GPU and on the stand-in of `tests/cuda` alike.
#![cfg(feature = "cuda")]
#![allow(unsafe_code, reason = "arguments of kernels")]

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;
use synfire::kernel::cuda::device::{
    Arguments, Compiled, Convolution, ConvolutionShape, CudaError, Device, Memory, Operands,
    Pointer, compile,
};

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fill {
    to: Pointer,
    elements: u64,
    value: f32,
    unused: u32,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for Fill {
    const KERNEL: &'static str = "fill";
}

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Increase {
    from: Pointer,
    to: Pointer,
    elements: u64,
    factor: f32,
    summand: f32,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for Increase {
    const KERNEL: &'static str = "increase";
}

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct BlockSum {
    from: Pointer,
    to: Pointer,
    elements: u64,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for BlockSum {
    const KERNEL: &'static str = "block_sum";
}

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct Convert {
    from: Pointer,
    to: Pointer,
    elements: u64,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for Convert {
    const KERNEL: &'static str = "convert";
}

fn open() -> Device {
    Device::open(0).unwrap()
}

/// Numbers that look random: xorshift.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// In -1..1.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }
}

fn floats_of(device: &Device, memory: &Memory) -> Vec<f32> {
    let mut values = vec![0.0; usize::try_from(memory.bytes() / 4).unwrap()];
    device.read_values(memory.pointer(), &mut values);
    values
}

fn increase(device: &Device, from: &Memory, to: &Memory, factor: f32, summand: f32) {
    device.launch(
        [7, 1, 1],
        128,
        &Increase {
            from: from.pointer(),
            to: to.pointer(),
            elements: from.bytes() / 4,
            factor,
            summand,
        },
    );
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_bytes_come_back_as_they_were_written() {
    let device = open();
    let mut draws = Draws(1);
    // The ring has 16 MiB: up to twice that, and nothing that fits it evenly.
    for count in [
        0,
        1,
        3,
        255,
        4097,
        (4 << 20) + 1,
        (16 << 20) + 7,
        (35 << 20) + 13,
    ] {
        let bytes = draws.bytes(count);
        let memory = device.allocate(count as u64 + 5).unwrap();
        assert_eq!(memory.pointer().0 % 256, 0);
        device.write(memory.pointer().offset(2), &bytes);
        let mut back = vec![1; count + 5];
        device.read(memory.pointer(), &mut back);
        assert_eq!(back[..2], [0; 2], "memory begins as 0");
        assert!(back[2..2 + count] == bytes, "{count} bytes");
        assert_eq!(back[2 + count..], [0; 3], "memory ends as 0");
    }
    assert_eq!(device.fault(), None);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_writes_kernels_and_reads_keep_their_order() {
    let device = open();
    let elements = 50_001;
    let x = device.allocate(4 * elements).unwrap();
    let y = device.allocate(4 * elements).unwrap();
    let mut laters = Vec::new();
    let mut values = vec![0.0_f32; usize::try_from(elements).unwrap()];
    // Nothing here waits: 100 times 200 kB go round the ring.
    for round in 0..100_u8 {
        values.fill(f32::from(round));
        device.write_values(x.pointer(), &values);
        increase(&device, &x, &y, 2.0, 1.0);
        laters.push(device.read_later(y.pointer().offset(4 * u64::from(round)), 8));
        // The kernel must have read `x` before this lands.
        device.write_values(x.pointer(), &[f32::NAN; 64]);
    }
    for (round, later) in laters.into_iter().enumerate() {
        let expected = (2.0 * round as f32 + 1.0).to_le_bytes().repeat(2);
        assert_eq!(later.wait(), expected, "round {round}");
    }
    assert_eq!(device.fault(), None);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_write_after_a_mark_waits_for_what_was_before_it() {
    let device = open();
    let slots = [
        device.allocate(1 << 20).unwrap(),
        device.allocate(1 << 20).unwrap(),
    ];
    let marks = [device.new_mark().unwrap(), device.new_mark().unwrap()];
    let sum = device.allocate(1 << 20).unwrap();
    let mut laters = Vec::new();
    for round in 0..40_u8 {
        let (slot, mark) = (
            &slots[usize::from(round % 2)],
            &marks[usize::from(round % 2)],
        );
        let values = vec![f32::from(round); 1 << 18];
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        device.write_after(mark, slot.pointer(), &bytes);
        increase(&device, slot, &sum, 1.0, 0.5);
        device.set_mark(mark);
        laters.push(device.read_later(sum.pointer().offset((1 << 20) - 4), 4));
    }
    for (round, later) in laters.into_iter().enumerate() {
        assert_eq!(later.wait(), (round as f32 + 0.5).to_le_bytes());
    }
    device.wait();
    assert!(marks[0].milliseconds_to(&marks[1]).unwrap() >= 0.0);
    assert_eq!(device.fault(), None);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_kernels_compute_what_the_host_computes() {
    let device = open();
    let mut draws = Draws(3);
    let values = draws.floats(10_007);
    let x = device.allocate(4 * 10_007).unwrap();
    let y = device.allocate(4 * 10_007).unwrap();
    device.write_values(x.pointer(), &values);
    increase(&device, &x, &y, 1.1, 0.3);
    // Bit by bit: nothing is fused.
    let expected: Vec<f32> = values.iter().map(|x| 1.1 * x + 0.3).collect();
    assert_eq!(floats_of(&device, &y), expected);

    let sums = device.allocate(4 * 3).unwrap();
    let arguments = BlockSum {
        from: x.pointer(),
        to: sums.pointer(),
        elements: 10_007,
    };
    device.launch([3, 1, 1], 256, &arguments);
    for (block, sum) in floats_of(&device, &sums).into_iter().enumerate() {
        assert_eq!(sum.to_bits(), block_sum(&values, block, 3).to_bits());
    }
    device.launch([0, 1, 1], 256, &arguments);
    assert_eq!(device.fault(), None);
}

/// What `block_sum` of fill.cu sums, in its order.
fn block_sum(values: &[f32], block: usize, blocks: usize) -> f32 {
    let mut sums = [0.0_f32; 256];
    for (thread, sum) in sums.iter_mut().enumerate() {
        *sum = values[block * 256 + thread..]
            .iter()
            .step_by(blocks * 256)
            .sum();
    }
    let mut half = 128;
    while half > 0 {
        for thread in 0..half {
            sums[thread] += sums[thread + half];
        }
        half /= 2;
    }
    sums[0]
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_bf16_is_rounded_to_the_nearest_even() {
    let device = open();
    let cases: [(u32, u16); 12] = [
        (0x3f80_0000, 0x3f80),
        (0x3f80_8000, 0x3f80), // Half way, down to even.
        (0x3f81_8000, 0x3f82), // Half way, up to even.
        (0x3f80_8001, 0x3f81),
        (0xbf80_ffff, 0xbf81),
        (0x7f7f_ffff, 0x7f80), // Too large: infinite.
        (0x7f80_0000, 0x7f80),
        (0xff80_0000, 0xff80),
        (0x7f80_0001, 0x7fff), // NaN stays NaN.
        (0x8000_0000, 0x8000),
        (0x0000_8001, 0x0001), // Denormal numbers are not flushed.
        (0x0000_8000, 0x0000),
    ];
    let x = device.allocate(4 * 12).unwrap();
    let y = device.allocate(2 * 12).unwrap();
    device.write_values(x.pointer(), &cases.map(|(bits, _)| bits));
    let arguments = Convert {
        from: x.pointer(),
        to: y.pointer(),
        elements: 12,
    };
    device.launch([1, 1, 1], 32, &arguments);
    let mut found = [0_u16; 12];
    device.read_values(y.pointer(), &mut found);
    assert_eq!(found, cases.map(|(_, rounded)| rounded));
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_out_of_memory_has_the_numbers_and_passes() {
    let device = open();
    let (free, total) = device.memory_info().unwrap();
    assert!(free <= total);
    let error = device.allocate(total + 1).unwrap_err();
    let CudaError::OutOfMemory {
        wanted,
        free: left,
        total: of,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((wanted, of), (total + 1, total));
    assert!(left <= total && left > 0);
    assert_eq!(device.fault(), None);
    let memory = device.allocate(1024).unwrap();
    assert_eq!(floats_of(&device, &memory), [0.0; 256]);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_allocated_bytes_come_back_to_none() {
    let device = open();
    for _ in 0..20 {
        let first = device.allocate(1000).unwrap();
        let second = device.allocate(3000).unwrap();
        assert_eq!(device.allocated(), 4000);
        device.copy(second.pointer(), first.pointer(), 1000);
        drop(first);
        assert_eq!(device.allocated(), 3000);
    }
    assert_eq!((device.allocated(), device.peak()), (0, 4000));
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_graph_does_again_what_was_captured() {
    let device = open();
    let x = device.allocate(4 * 3000).unwrap();
    let y = device.allocate(4 * 3000).unwrap();
    let z = device.allocate(4 * 3000).unwrap();
    let mut draws = Draws(5);
    let work = |factor: f32| {
        increase(&device, &x, &y, factor, 1.0);
        device.zero(z.pointer(), 400);
        device.copy(y.pointer(), z.pointer().offset(400), 400);
        increase(&device, &y, &y, 0.5, -0.25);
    };
    // The arguments are those of the capture, whatever happens to `factor` after it.
    let mut factor = 3.0;
    device.begin_capture();
    work(factor);
    let graph = device.end_capture();
    factor += 1.0;
    // Nothing was done yet.
    assert_eq!(floats_of(&device, &y), [0.0; 3000]);
    for round in 0..20 {
        let values = draws.floats(3000);
        // Eagerly.
        device.write_values(x.pointer(), &values);
        work(factor - 1.0);
        let (y_eager, z_eager) = (floats_of(&device, &y), floats_of(&device, &z));
        for memory in [&y, &z] {
            device.zero(memory.pointer(), memory.bytes());
        }
        device.replay(&graph);
        assert_eq!(floats_of(&device, &y), y_eager, "round {round}");
        assert_eq!(floats_of(&device, &z), z_eager, "round {round}");
        // Replayed twice in a row, and written between: the second reads what is new.
        device.replay(&graph);
        device.write_values(x.pointer(), &[2.0_f32; 3000]);
        device.replay(&graph);
        assert_eq!(floats_of(&device, &y), [3.25; 3000]);
    }
    assert_eq!(device.fault(), None);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_what_cannot_be_captured_is_a_fault_and_an_abandoned_capture_is_none() {
    let device = open();
    let memory = device.allocate(64).unwrap();
    device.begin_capture();
    let arguments = Fill {
        to: memory.pointer(),
        elements: 16,
        value: 7.0,
        unused: 0,
    };
    device.launch([1, 1, 1], 16, &arguments);
    assert!(matches!(
        device.allocate(64).unwrap_err(),
        CudaError::WhileCapturing { call: "allocate" }
    ));
    device.abandon_capture();
    assert_eq!(device.fault(), None);
    assert_eq!(floats_of(&device, &memory), [0.0; 16], "never launched");
    device.launch([1, 1, 1], 16, &arguments);
    assert_eq!(floats_of(&device, &memory), [7.0; 16]);

    device.begin_capture();
    device.write(memory.pointer(), &[1; 64]);
    let graph = device.end_capture();
    let fault = Some(CudaError::WhileCapturing { call: "write" });
    assert_eq!(device.fault(), fault);
    device.replay(&graph);
    // It stays, and nothing is done any more.
    assert_eq!(device.allocate(64).err(), fault);
    assert_eq!(floats_of(&device, &memory), [0.0; 16]);
    drop(device);

    let device = open();
    let _ = device.end_capture();
    assert_eq!(device.fault(), Some(CudaError::NoCapture));
}

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
    let graph = device.end_capture();
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

#[test]
#[ignore = "needs NVRTC: tests/run installs it"]
fn needs_nvrtc_every_kernel_compiles() {
    for architecture in [80, 90, 100] {
        let compiled = compile(architecture).unwrap();
        assert!(!compiled.is_empty());
        for Compiled { file, cubin, log } in compiled {
            // An ELF file for machine 190, EM_CUDA.
            assert_eq!(&cubin[..4], b"\x7fELF", "{file} for sm_{architecture}");
            assert_eq!(cubin[18..20], 190_u16.to_le_bytes(), "{file}");
            assert_eq!(log, "", "{file} for sm_{architecture}");
        }
    }
    // One that is not known yet gets PTX, one that is forgotten an error.
    let compiled = compile(10_000).unwrap();
    let fill = compiled
        .into_iter()
        .find(|compiled| compiled.file == "fill.cu");
    let ptx = String::from_utf8(fill.unwrap().cubin).unwrap();
    assert!(
        ptx.contains(".target sm_") && ptx.contains(".entry"),
        "{ptx}"
    );
    // Products and sums round apart.
    assert!(ptx.contains("mul.rn.f32") && !ptx.contains("fma."), "{ptx}");
    let error = compile(10).unwrap_err();
    assert!(matches!(error, CudaError::Compile { .. }), "{error}");
}

/// In the process that a test has started: does the work and says what came of it.
///
/// In the test: starts a process that runs the same test with this environment, and gives what it said.
fn in_a_process(
    test: &str,
    environment: &[(&str, &OsStr)],
    work: impl FnOnce() -> String,
) -> String {
    const CHILD: &str = "SYNFIRE_TEST_CHILD";
    const BEGIN: &str = "\ntold: ";
    if std::env::var_os(CHILD).is_some() {
        println!("{BEGIN}{}", work());
        std::process::exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", test])
        .env(CHILD, "1");
    for (name, value) in environment {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{test}: {text}{errors}");
    let (_, told) = text.split_once(BEGIN).expect("the process says something");
    told.trim().to_owned()
}

fn opening() -> String {
    match Device::open(0) {
        Ok(device) => format!("opened {}", device.name()),
        Err(error) => format!("{error:?} {error}"),
    }
}

/// A folder of its own for a test, empty.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("synfire-{name}-{}", std::process::id()));
    if std::env::var_os("SYNFIRE_TEST_CHILD").is_none() {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
    }
    folder
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_gpu_that_is_not_there_is_an_error_with_their_number() {
    let none = [
        ("CUDA_VISIBLE_DEVICES", OsStr::new("")),
        ("SYNFIRE_STAND_IN_DEVICES", OsStr::new("0")),
    ];
    let test = "needs_cuda_a_gpu_that_is_not_there_is_an_error_with_their_number";
    let told = in_a_process(test, &none, opening);
    assert!(
        told.starts_with("NoDevice { ordinal: 0, count: 0 }"),
        "{told}"
    );
    let error = Device::open(1000).unwrap_err();
    let CudaError::NoDevice { ordinal, count } = error else {
        panic!("{error}");
    };
    assert_eq!(ordinal, 1000);
    assert!(count >= 1);
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_fault_of_a_kernel_is_kept() {
    /// As in fill.cu.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Fault {
        thread: u64,
    }
    // SAFETY: the fields are those of fill.cu.
    unsafe impl Arguments for Fault {
        const KERNEL: &'static str = "fault";
    }
    // A process of its own: after a fault CUDA is lost to the whole of it.
    let told = in_a_process("needs_cuda_a_fault_of_a_kernel_is_kept", &[], || {
        let device = open();
        let memory = device.allocate(64).unwrap();
        // No thread has this number: nothing happens.
        device.launch([2, 1, 1], 32, &Fault { thread: 64 });
        device.wait();
        assert_eq!(device.fault(), None);
        device.launch([2, 1, 1], 32, &Fault { thread: 63 });
        device.wait();
        let fault = device.fault();
        assert_eq!(device.allocate(64).err(), fault);
        assert_eq!(device.memory_info().err(), fault);
        device.write(memory.pointer(), &[1; 64]);
        let later = device.read_later(memory.pointer(), 64);
        assert!(later.is_ready());
        assert_eq!(later.wait(), [0; 64]);
        drop(memory);
        drop(device);
        format!("{fault:?}")
    });
    assert!(told.starts_with("Some(Fault {"), "{told}");
    assert!(told.contains("CUDA_ERROR_LAUNCH_FAILED"), "{told}");
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_a_kernel_that_is_not_there_or_differs_is_a_fault() {
    #[derive(Clone, Copy)]
    struct Nothing;
    // SAFETY: no kernel is called so.
    unsafe impl Arguments for Nothing {
        const KERNEL: &'static str = "nothing";
    }
    #[derive(Clone, Copy)]
    struct Short(#[allow(dead_code, reason = "too short to be launched")] u64);
    // SAFETY: the size differs, which is found before the launch.
    unsafe impl Arguments for Short {
        const KERNEL: &'static str = "fill";
    }
    let device = open();
    device.launch([1, 1, 1], 32, &Nothing);
    let kernel = "nothing";
    assert_eq!(device.fault(), Some(CudaError::UnknownKernel { kernel }));
    let device = open();
    device.launch([1, 1, 1], 32, &Short(0));
    let (kernel, host, on_device) = ("fill", 8, 24);
    let expected = CudaError::ArgumentBytes {
        kernel,
        host,
        device: on_device,
    };
    assert_eq!(device.fault(), Some(expected));
}

#[test]
#[ignore = "needs a CUDA driver, or the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_kernels_are_cached_and_damaged_ones_compiled_again() {
    let test = "needs_cuda_kernels_are_cached_and_damaged_ones_compiled_again";
    let folder = folder("kernel-cache");
    let environment = [("SYNFIRE_CACHE", folder.as_os_str())];
    let entries = || -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        let read = |path: PathBuf| {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            (path.clone(), fs::read(path).unwrap(), modified)
        };
        paths.into_iter().map(read).collect()
    };
    let run = || in_a_process(test, &environment, opening);
    assert!(run().starts_with("opened"));
    let first = entries();
    assert!(!first.is_empty());
    assert!(run().starts_with("opened"));
    assert_eq!(entries(), first, "written once");
    for (path, bytes, _) in &first {
        let mut damaged = bytes.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(path, damaged).unwrap();
    }
    assert!(run().starts_with("opened"));
    for ((_, then, _), (_, now, _)) in first.iter().zip(&entries()) {
        assert!(then == now, "compiled again, to the same");
    }
    // No folder can be made under a file.
    let nowhere = first[0].0.join("folder");
    let told = in_a_process(test, &[("SYNFIRE_CACHE", nowhere.as_os_str())], opening);
    assert!(told.starts_with("opened"), "{told}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_an_old_driver_is_an_error_with_its_version() {
    let test = "needs_cuda_stand_in_an_old_driver_is_an_error_with_its_version";
    let old = [("SYNFIRE_STAND_IN_DRIVER_VERSION", OsStr::new("12080"))];
    let told = in_a_process(test, &old, opening);
    assert!(told.starts_with("OldDriver { found: \"12.8\""), "{told}");
    assert!(told.contains("CUDA 13.0 is wanted"), "{told}");
}

#[test]
#[ignore = "needs the stand-in of tests/cuda: tests/run builds that"]
fn needs_cuda_stand_in_what_is_missing_is_named_with_its_remedy() {
    let test = "needs_cuda_stand_in_what_is_missing_is_named_with_its_remedy";
    let folder = folder("libraries");
    let run = || {
        let environment = [
            ("LD_LIBRARY_PATH", folder.as_os_str()),
            ("SYNFIRE_LIBRARIES", folder.as_os_str()),
            ("VIRTUAL_ENV", OsStr::new("")),
            ("PATH", OsStr::new("")),
            ("HOME", OsStr::new("")),
            ("SYNFIRE_CACHE", folder.as_os_str()),
        ];
        in_a_process(test, &environment, opening)
    };
    let link = |name: &str, library: &str| {
        std::os::unix::fs::symlink(library_file(library), folder.join(name)).unwrap();
    };
    let shown = folder.display().to_string();
    let missing = |library: &str, remedy: &str| {
        let told = run();
        let begin = format!("MissingLibrary {{ library: {library}, ");
        assert!(told.starts_with(&begin), "{told}");
        assert!(told.contains(&shown) && told.contains(remedy), "{told}");
    };
    missing("Driver", "driver 580");
    link("libcuda.so.1", "libcuda.so.1");
    missing("Nvrtc", "pip install 'nvidia-cuda-nvrtc");
    link("libnvrtc.so.13", "libnvrtc.so.13");
    link("libnvrtc-builtins.so.13.0", "libnvrtc-builtins.so.13.0");
    missing("Cudnn", "pip install nvidia-cudnn-cu13");
    // A library that is another.
    link("libcudnn.so.9", "libcuda.so.1");
    let told = run();
    assert!(
        told.starts_with("MissingSymbol { library: Cudnn, "),
        "{told}"
    );
    assert!(told.contains("cudnnConvolutionBackwardData"), "{told}");
    // A file that is none.
    fs::remove_file(folder.join("libcudnn.so.9")).unwrap();
    fs::write(folder.join("libcudnn.so.9"), "no library").unwrap();
    missing("Cudnn", "pip install nvidia-cudnn-cu13");
    fs::remove_file(folder.join("libcudnn.so.9")).unwrap();
    link("libcudnn.so.9", "libcudnn.so.9");
    let told = run();
    assert!(told.starts_with("opened"), "{told}");
    fs::remove_dir_all(folder).unwrap();
}

/// A file of a library that this process could load.
fn library_file(name: &str) -> PathBuf {
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap();
    let mut files = std::env::split_paths(&folders).map(|folder| folder.join(name));
    let file = files.find(|file| file.exists());
    fs::canonicalize(file.unwrap_or_else(|| panic!("{name} is not in LD_LIBRARY_PATH"))).unwrap()
}
