//! The one argument of each kernel: the same fields in the same order as the struct of that name in
//! `kernels/*.cu`.
//!
//! The device layer compares the size of each with that of the compiled kernel; that fields mean the
//! same on both sides is what the suite of `tests/kernels.rs` shows.
#![allow(
    unsafe_code,
    reason = "a struct is promised to be laid out as the kernel's"
)]

use super::device::{Arguments, Pointer};
use crate::kernel::{Neuron, Reset};

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Type {
    F32 = 0,
    Bf16 = 1,
}

impl Type {
    /// Bytes of a number.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Numbers of one slot, or nothing.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Values {
    pub(super) at: Pointer,
    pub(super) kind: Type,
    is_there: u32,
}

impl Values {
    pub(super) const NONE: Self = Self::new(Pointer(0), Type::F32);

    pub(super) const fn new(at: Pointer, kind: Type) -> Self {
        Self {
            at,
            kind,
            is_there: (at.0 != 0) as u32,
        }
    }
}

/// Numbers of a ring: time step t lies in slot t mod `slots`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub(super) at: Pointer,
    /// Numbers from one slot to the next.
    pub(super) stride: u64,
    pub(super) kind: Type,
    pub(super) slots: u32,
}

impl Ring {
    pub(super) const NONE: Self = Self {
        at: Pointer(0),
        stride: 0,
        kind: Type::F32,
        slots: 1,
    };

    /// The slot of time step t.
    pub(super) fn slot(&self, t: usize) -> Values {
        let slot = t as u64 % u64::from(self.slots);
        let at = self.at.offset(slot * self.stride * self.kind.bytes());
        Values::new(at, self.kind)
    }

    /// The slots of so many steps, newest first.
    pub(super) fn steps(&self, newest: usize, len: usize) -> Steps<Values> {
        std::array::from_fn(|age| {
            if age < len {
                self.slot(newest - age)
            } else {
                Values::NONE
            }
        })
    }
}

/// How rows and channels are cut: for sums per channel, and for kernels whose blocks take rows in turns.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Tile {
    /// Pixels of all samples.
    pub(super) rows: u64,
    pub(super) channels: u32,
    /// 2^this quads of channels are a block's.
    pub(super) log_quads: u32,
    /// Blocks along the rows, where sums are taken.
    pub(super) blocks: u32,
    pub(super) rows_of_block: u32,
}

/// Threads of a block of a tile, and of one that adds up partial sums (`TILE_THREADS`, `MERGE_THREADS`).
pub(super) const TILE_THREADS: u32 = 256;
/// Channels of a thread of norm and neurons forward (`FORWARD_WIDTH`).
pub(super) const FORWARD_WIDTH: u32 = 8;
/// Channels of a thread of everything else.
pub(super) const QUAD: u32 = 4;
/// Channels of a block that adds up partial sums.
pub(super) const MERGE_CHANNELS: u32 = 32;

impl Tile {
    /// Numbers that a block takes at least, so that few partial sums are left.
    const NUMBERS_OF_BLOCK: u64 = 16_384;
    /// Some times what a GPU holds at once, so that it is busy to the end; the cut decides bits of sums.
    const MOST_BLOCKS: u64 = 1024;
    /// Where blocks take turns the cut decides no bits: ten times what a GPU holds at once, so that the last
    /// blocks leave little of it idle.
    const MOST_BLOCKS_IN_TURNS: u64 = 4096;

    /// By the shape alone: the same sums on any device.
    pub(super) fn of(rows: usize, channels: usize) -> Self {
        let (rows, quads) = (rows as u64, channels.div_ceil(4) as u64);
        let blocks = (rows * channels as u64).div_ceil(Self::NUMBERS_OF_BLOCK);
        let blocks = blocks.clamp(1, Self::MOST_BLOCKS);
        Self {
            rows,
            channels: narrow(channels),
            log_quads: quads.next_power_of_two().min(32).trailing_zeros(),
            blocks: blocks as u32,
            rows_of_block: narrow_count(rows.div_ceil(blocks)),
        }
    }

    /// Blocks side by side.
    fn columns(&self) -> u32 {
        self.channels.div_ceil(4).div_ceil(1 << self.log_quads)
    }

    /// The grid of a kernel that sums.
    pub(super) fn grid(&self) -> [u32; 3] {
        [self.blocks, self.columns(), 1]
    }

    /// The grid of a kernel whose blocks take rows in turns, and whose threads so many channels each where
    /// rows are whole groups of these.
    pub(super) fn grid_in_turns(&self, width: u32) -> [u32; 3] {
        let columns = self.columns();
        let groups = if self.channels.is_multiple_of(width) {
            width / 4
        } else {
            1
        };
        let lanes = u64::from((TILE_THREADS * groups) >> self.log_quads);
        let most = (Self::MOST_BLOCKS_IN_TURNS / u64::from(columns)).max(1);
        let blocks = self.rows.div_ceil(lanes).min(most);
        [narrow_count(blocks), columns, 1]
    }

    /// Numbers of so many partial sums per channel.
    pub(super) fn partials(&self, sums: usize) -> u64 {
        u64::from(self.blocks) * sums as u64 * u64::from(self.channels)
    }
}

/// A size as kernels take it.
///
/// # Panics
/// If it is 2^32 or more, which no dimension of a network is.
pub(super) fn narrow(size: usize) -> u32 {
    narrow_count(size as u64)
}

fn narrow_count(size: u64) -> u32 {
    u32::try_from(size).expect("dimensions are below 2^32")
}

/// The neurons' equations.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct NeuronArguments {
    tau_m: f32,
    v_th: f32,
    alpha: f32,
    reset: u32,
    detach_reset: u32,
}

impl From<Neuron> for NeuronArguments {
    fn from(neuron: Neuron) -> Self {
        Self {
            tau_m: neuron.tau_m,
            v_th: neuron.v_th,
            alpha: neuron.alpha,
            reset: match neuron.reset {
                Reset::Hard => 0,
                Reset::Soft => 1,
                Reset::None => 2,
            },
            detach_reset: u32::from(neuron.detach_reset),
        }
    }
}

/// Declares the argument of one or more kernels.
macro_rules! arguments {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $kind),* }
    };
}

/// Says which kernel takes which argument.
macro_rules! kernels {
    ($($name:ident: $kernel:literal),* $(,)?) => {
        $(
            // SAFETY: the struct has the fields of the kernel's argument in the same order, each of the
            // same size and alignment; all of them are plain numbers.
            unsafe impl Arguments for $name {
                const KERNEL: &'static str = $kernel;
            }
        )*
    };
}

arguments!(NormSums {
    z: Values,
    partials: Pointer,
    tile: Tile
});

/// What is done with the statistics of a time step.
pub(super) mod norm_use {
    /// Mean and 1/std go to the moments.
    pub(in super::super) const NORMALISE: u32 = 1;
    /// Running statistics move.
    pub(in super::super) const FOLLOW: u32 = 2;
    /// They go to where those of all ranks will be.
    pub(in super::super) const SHARE: u32 = 4;
}

/// Where mean and variance about the running mean travel.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Shared {
    pub(super) d: Pointer,
    pub(super) q: Pointer,
}

impl Shared {
    pub(super) const NONE: Self = Self {
        d: Pointer(0),
        q: Pointer(0),
    };
}

arguments!(NormStatistics {
    z: Values,
    partials: Pointer,
    moments: Pointer,
    running_mean: Pointer,
    running_var: Pointer,
    shared: Shared,
    count: u64,
    blocks: u32,
    channels: u32,
    uses: u32,
    eps: f32,
    momentum: f32,
    unused: u32,
});

arguments!(NormFrom {
    moments: Pointer,
    running_mean: Pointer,
    running_var: Pointer,
    shared: Shared,
    count: u64,
    channels: u32,
    uses: u32,
    eps: f32,
    momentum: f32,
});

arguments!(ColumnSums {
    v: Values,
    partials: Pointer,
    tile: Tile
});

arguments!(ColumnTotals {
    partials: Pointer,
    totals: Pointer,
    blocks: u32,
    channels: u32,
    accumulate: u32,
    unused: u32,
});

arguments!(NormLifForward {
    z: Values,
    before: Values,
    y: Values,
    after: Values,
    out: Values,
    moments: Pointer,
    gamma: Pointer,
    beta: Pointer,
    u: Pointer,
    u_before: Pointer,
    alive: Pointer,
    counts: Pointer,
    watch: Pointer,
    tile: Tile,
    pixels: u32,
    neuron: NeuronArguments,
});

arguments!(CountSilent {
    alive: Pointer,
    counts: Pointer,
    neurons: u32,
    unused: u32
});

/// What follows [`CountSilent`] takes the same.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct EndCount(pub(super) CountSilent);

/// Time steps that one pass of a layer's backward takes (`MAX_STEPS`).
pub(super) const MAX_STEPS: usize = 2;

/// What a pass takes of each of its steps, newest first.
pub(super) type Steps<T> = [T; MAX_STEPS];

arguments!(NormLifBackward {
    z: Steps<Values>,
    u: Steps<Values>,
    out: Steps<Values>,
    y: Steps<Values>,
    dz: Steps<Values>,
    before: Steps<Values>,
    after: Steps<Values>,
    moments: Steps<Pointer>,
    sums: Steps<Pointer>,
    gamma: Pointer,
    partials: Pointer,
    carry_in: Pointer,
    carry_out: Pointer,
    tile: Tile,
    count: u64,
    steps: u32,
    neurons: u32,
    dz_accumulates: u32,
    before_accumulates: u32,
    after_accumulates: u32,
    neuron: NeuronArguments,
});

/// The first pass takes what the second takes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct NormLifBackwardSums(pub(super) NormLifBackward);

arguments!(NormGradients {
    partials: Pointer,
    sums: Steps<Pointer>,
    dgamma: Pointer,
    dbeta: Pointer,
    blocks: u32,
    channels: u32,
    steps: u32,
    accumulate: u32,
});

arguments!(PoolShape {
    samples: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
    unused: u32,
});

arguments!(PoolForward {
    x: Values,
    y: Values,
    argmax: Pointer,
    shape: PoolShape,
    tile: Tile
});
arguments!(PoolBackward {
    dy: Values,
    dx: Values,
    argmax: Pointer,
    shape: PoolShape,
    tile: Tile,
    accumulate: u32,
    unused: u32,
});

/// A pool's argument under the name of one of its three kinds.
macro_rules! of_kinds {
    ($($name:ident($inner:ident)),* $(,)?) => {
        $(
            #[derive(Clone, Copy, Debug)]
            #[repr(transparent)]
            pub(super) struct $name(pub(super) $inner);
        )*
    };
}

of_kinds!(
    MaxForward(PoolForward),
    AverageForward(PoolForward),
    AdaptiveForward(PoolForward),
    MaxBackward(PoolBackward),
    AverageBackward(PoolBackward),
    AdaptiveBackward(PoolBackward),
);

arguments!(Flatten {
    from: Values,
    to: Values,
    samples: u64,
    pixels: u32,
    channels: u32,
    backward: u32,
    accumulate: u32,
});

arguments!(Pictures {
    y: Values,
    bytes: Pointer,
    changes: Pointer,
    tables: Pointer,
    elements: u64,
    height: u32,
    width: u32,
    channels: u32,
    cutout_half: u32,
});

arguments!(Convert {
    from: Values,
    to: Values,
    elements: u64,
    scale: f32,
    accumulate: u32
});
arguments!(AddBias {
    y: Values,
    bias: Pointer,
    elements: u64,
    channels: u32,
    unused: u32
});
arguments!(DropoutMask {
    mask: Pointer,
    key: u64,
    first: u64,
    elements: u64,
    p: f32,
    scale: f32,
});
arguments!(Multiply {
    x: Values,
    y: Values,
    mask: Pointer,
    elements: u64,
    accumulate: u32,
    unused: u32,
});
arguments!(ResidualForward {
    a: Values,
    b: Values,
    y: Values,
    elements: u64,
    join: u32,
    unused: u32,
});
arguments!(ResidualBackward {
    other: Values,
    dy: Values,
    dx: Values,
    elements: u64,
    join: u32,
    of_b: u32,
    accumulate: u32,
    unused: u32,
});
arguments!(FindNonFinite {
    v: Values,
    found: Pointer,
    elements: u64
});

arguments!(LossOfSamples {
    logits: Values,
    error: Values,
    so_far: Pointer,
    labels: Pointer,
    losses: Pointer,
    hits: Pointer,
    watch: Pointer,
    samples: u32,
    classes: u32,
    ce: f32,
    mse: f32,
});

/// Threads of a block of the loss (`LOSS_THREADS`).
pub(super) const LOSS_THREADS: u32 = 128;

arguments!(LossOfBatch {
    losses: Pointer,
    hits: Pointer,
    labels: Pointer,
    steps: Pointer,
    watch: Pointer,
    samples: u32,
    classes: u32,
    ce: f32,
    mse: f32,
});

arguments!(Update {
    weights: Pointer,
    gradients: Pointer,
    state: Pointer,
    second_state: Pointer,
    operands: Pointer,
    step: Pointer,
    fault: Pointer,
    elements: u64,
});

of_kinds!(Sgd(Update), AdamW(Update));

arguments!(Reorder {
    from: Pointer,
    to: Pointer,
    first: u64,
    elements: u64,
    outputs: u32,
    inputs: u32,
    taps: u32,
    to_device: u32,
});

kernels! {
    NormSums: "norm_sums",
    NormStatistics: "norm_statistics",
    NormFrom: "norm_from",
    ColumnSums: "column_sums",
    ColumnTotals: "column_totals",
    NormLifForward: "norm_lif_forward",
    CountSilent: "count_silent",
    EndCount: "end_count",
    NormLifBackwardSums: "norm_lif_backward_sums",
    NormLifBackward: "norm_lif_backward_errors",
    NormGradients: "norm_gradients",
    MaxForward: "max_pool_forward",
    AverageForward: "average_pool_forward",
    AdaptiveForward: "adaptive_pool_forward",
    MaxBackward: "max_pool_backward",
    AverageBackward: "average_pool_backward",
    AdaptiveBackward: "adaptive_pool_backward",
    Flatten: "flatten",
    Pictures: "pictures",
    Convert: "convert_numbers",
    AddBias: "add_bias",
    DropoutMask: "dropout_mask",
    Multiply: "multiply",
    ResidualForward: "residual_forward",
    ResidualBackward: "residual_backward",
    FindNonFinite: "find_non_finite",
    LossOfSamples: "loss_of_samples",
    LossOfBatch: "loss_of_batch",
    Sgd: "sgd",
    AdamW: "adamw",
    Reorder: "reorder",
}
