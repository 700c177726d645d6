//! Buffers and arenas, and what they take.

use crate::shape::{Content, Shape};

/// A buffer of a back end, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(pub u32);

/// What a buffer has to hold.
///
/// A value may be wanted in two forms: as the operand of convolutions (bits or packed numbers), and
/// plainly, as everything else reads it. Each form has its own number of slots; a form with 0 slots
/// is not stored. A back end may store both forms as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSpec {
    /// Samples in a slot: the batch, or 1 for what does not depend on the sample.
    pub samples: usize,
    /// The shape of a sample.
    pub shape: Shape,
    /// What its numbers are.
    pub content: Content,
    /// Slots of the form that convolutions read.
    pub operand_slots: usize,
    /// Slots of the form that everything else reads.
    pub plain_slots: usize,
    /// Whether a convolution writes it: a back end whose convolutions round what they write may store
    /// it so.
    pub of_conv: bool,
}

impl BufferSpec {
    /// A buffer of plain numbers.
    pub fn plain(samples: usize, shape: Shape, slots: usize) -> Self {
        Self {
            samples,
            shape,
            content: Content::Real,
            operand_slots: 0,
            plain_slots: slots,
            of_conv: false,
        }
    }

    /// Numbers in one slot.
    pub fn elements(&self) -> usize {
        self.samples * self.shape.elements()
    }
}

/// A range of an arena, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Where it starts.
    pub offset: usize,
    /// How many numbers.
    pub len: usize,
}

impl Span {
    /// From the begin of this range to the end of one behind it.
    #[must_use]
    pub fn up_to(self, behind: Self) -> Self {
        Self {
            offset: self.offset,
            len: behind.offset + behind.len - self.offset,
        }
    }

    /// As an index.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// The flat buffers beside the values. The first four share one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arena {
    /// Trained parameters.
    Weights,
    /// Their gradients, summed over the window.
    Gradients,
    /// The optimiser's first state: velocity (SGD) or first moment (`AdamW`).
    State,
    /// `AdamW`'s second moment.
    SecondState,
    /// Running means and variances of batch norms.
    Statistics,
    /// Where there are several ranks, the moments of a time step, in the layout of
    /// [`Arena::Statistics`]. With the running mean m0, which is the same on all ranks: where that
    /// lies, d = E\[x\] - m0; where the running variance lies, q = Var\[x\] + d^2 = E\[(x - m0)^2\].
    ///
    /// Both are means over samples, so those of all ranks are the mean of the shares', each weighted
    /// by its number of samples. Taken about m0 and not about 0, because q - d^2 has the rounding of
    /// q: it is lost where the batch's mean is some hundred deviations away.
    Moments,
}

/// How large the arenas are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaSizes {
    /// Numbers in each of the arenas that follow the layout of the parameters.
    pub parameters: usize,
    /// Numbers in [`Arena::Statistics`].
    pub statistics: usize,
    /// Numbers in [`Arena::Moments`]: as many, or 0 where there is one rank.
    pub moments: usize,
    /// Optimiser states: 1 for SGD, 2 for `AdamW`, 0 for a network that only evaluates.
    pub states: usize,
}

impl ArenaSizes {
    /// Bytes of all arenas: there are gradients where there is a state.
    pub fn bytes(&self) -> u64 {
        let copies = 1 + self.states + usize::from(self.states > 0);
        let channels = self.statistics + self.moments;
        (size_of::<f32>() * (self.parameters * copies + channels)) as u64
    }
}

/// Where numbers that ranks average lie, for back ends whose memory is a GPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceArenas {
    /// The number of the GPU, as the driver counts those that this process is shown.
    pub ordinal: u32,
    /// The `CUstream` of all computation. Others use it in
    /// [`Kernels::in_between`](super::Kernels::in_between) alone, or where no
    /// [`Kernels::repeat`](super::Kernels::repeat) is under way.
    pub stream: u64,
    /// The address of [`Arena::Gradients`], f32.
    pub gradients: u64,
    /// The address of [`Arena::Moments`], f32; 0 if there are none.
    pub moments: u64,
    /// The address of as many bf16 as there are gradients, for
    /// [`Kernels::round_to_wire`](super::Kernels::round_to_wire); 0 if there are none.
    pub wire: u64,
}

/// Memory of a device, in bytes, and what else takes some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What is held now.
    pub held: u64,
    /// The most that was held at once.
    pub peak: u64,
    /// How many graphs are kept, for which the driver takes memory that it does not tell.
    pub graphs: usize,
}

/// Memory that a device did not have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What there is for this back end, whoever took the rest.
    pub available: u64,
    /// What it needs, as far as it was asked for: what was held, and all that was wanted in vain.
    pub needed: u64,
    /// Of what is needed, what does not grow with the batch.
    pub fixed: u64,
}
