//! One GPU: its memory, its order of work, its kernels, graphs and convolutions, and its errors.
//!
//! The tests run on a GPU and on the stand-in of `tests/cuda` alike; those named `stand_in` only there.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails the test that called it, and prints for it"
)]
#![allow(unsafe_code, reason = "arguments of kernels")]

#[path = "cuda_device/convolutions.rs"]
mod convolutions;
#[path = "cuda_device/errors.rs"]
mod errors;
#[path = "cuda_device/memory.rs"]
mod memory;
#[path = "cuda_device/support.rs"]
mod support;

use support::{BlockSum, Convert, Draws, Fill, floats_of, increase, open};
use synfire::kernel::cuda::device::{
    Compiled, Convolution, CudaError, Device, Graph, Later, Memory, compile,
};

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
    // The first writes wait for nothing, not even for the memory to be made 0.
    device.wait();
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
    let graph = device.end_capture().unwrap();
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
fn needs_cuda_what_cannot_be_captured_is_refused_and_the_device_goes_on() {
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

    // The capture is refused; the device goes on.
    device.zero(memory.pointer(), 64);
    device.begin_capture();
    device.write(memory.pointer(), &[1; 64]);
    device.launch([1, 1, 1], 32, &arguments);
    let refusal = CudaError::WhileCapturing { call: "write" };
    assert_eq!(device.end_capture().err(), Some(refusal));
    assert_eq!(device.fault(), None);
    assert_eq!(floats_of(&device, &memory), [0.0; 16], "nothing was done");
    device.launch([1, 1, 1], 32, &arguments);
    assert_eq!(floats_of(&device, &memory), [7.0; 16]);

    assert_eq!(device.end_capture().err(), Some(CudaError::NoCapture));
    assert_eq!(device.fault(), None);
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

#[test]
fn what_a_device_gives_may_change_its_thread() {
    fn sent<T: Send>() {}
    sent::<Device>();
    sent::<Memory>();
    sent::<Graph>();
    sent::<Later>();
    sent::<Convolution>();
}
