//! Kernels of fill.cu, and numbers that look random.

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
