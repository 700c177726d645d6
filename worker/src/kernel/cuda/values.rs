//! Where numbers lie, and how rows and channels are cut: parts of the kernels' arguments, in the same layout as in
//! `kernels/values.cuh` and `kernels/rows.cuh`.

use super::device::Pointer;

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

/// Time steps that one pass of a layer's backward takes (`MAX_STEPS`).
pub(super) const MAX_STEPS: usize = 2;

/// What a pass takes of each of its steps, newest first.
pub(super) type Steps<T> = [T; MAX_STEPS];

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
