//! Kernels of fill.cu, numbers that look random, and processes with an environment of their own.

use std::ffi::OsStr;
use std::process::Command;
use synfire::kernel::cuda::device::{Arguments, Device, Memory, Pointer};

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Fill {
    pub(crate) to: Pointer,
    pub(crate) elements: u64,
    pub(crate) value: f32,
    pub(crate) unused: u32,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for Fill {
    const KERNEL: &'static str = "fill";
}

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Increase {
    pub(crate) from: Pointer,
    pub(crate) to: Pointer,
    pub(crate) elements: u64,
    pub(crate) factor: f32,
    pub(crate) summand: f32,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for Increase {
    const KERNEL: &'static str = "increase";
}

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BlockSum {
    pub(crate) from: Pointer,
    pub(crate) to: Pointer,
    pub(crate) elements: u64,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for BlockSum {
    const KERNEL: &'static str = "block_sum";
}

/// As in fill.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Convert {
    pub(crate) from: Pointer,
    pub(crate) to: Pointer,
    pub(crate) elements: u64,
}

// SAFETY: the fields are those of fill.cu.
unsafe impl Arguments for Convert {
    const KERNEL: &'static str = "convert";
}

pub(crate) fn open() -> Device {
    Device::open(0).unwrap()
}

/// Numbers that look random: xorshift.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// In -1..1.
    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }
}

pub(crate) fn floats_of(device: &Device, memory: &Memory) -> Vec<f32> {
    let mut values = vec![0.0; usize::try_from(memory.bytes() / 4).unwrap()];
    device.read_values(memory.pointer(), &mut values);
    values
}

pub(crate) fn increase(device: &Device, from: &Memory, to: &Memory, factor: f32, summand: f32) {
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

/// In the process that a test has started: does the work and says what came of it.
///
/// In the test, whose path is `test`: starts a process that runs the same test with this environment, and gives
/// what it said.
pub(crate) fn in_a_process(
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
        .args(["--ignored", "--exact", "--nocapture"])
        .arg(test)
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
