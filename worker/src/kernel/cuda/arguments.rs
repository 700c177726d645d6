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
use super::values::{Steps, Tile, Values};
use crate::kernel::{Neuron, Reset};

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
