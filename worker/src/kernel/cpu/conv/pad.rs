//! Inputs copied into a border of zeros, so that kernels need no edge cases.
use super::{ConvShape, Operand};
use crate::kernel::cpu::simd::dense::Strides;
use rayon::prelude::*;

/// A channels-last image inside a frame that may cut it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// Rows, columns and channels of the image.
    pub(super) image: [usize; 3],
    /// Rows and columns of the frame.
    pub(super) size: [usize; 2],
    /// The image's first pixel in the frame.
    pub(super) at: [usize; 2],
}

impl Frame {
    /// Of the forward input: exactly what the taps of all outputs see.
    pub(super) fn of_input(shape: &ConvShape) -> Self {
        let side = |out: usize| (out - 1) * shape.stride + shape.kernel;
        Self {
            image: [shape.height, shape.width, shape.inputs],
            size: [side(shape.out_height()), side(shape.out_width())],
            at: [shape.padding; 2],
        }
    }

    /// Values of one sample.
    pub(super) fn values(&self) -> usize {
        self.size[0] * self.size[1] * self.image[2]
    }

    /// Whether the frame is the image itself.
    pub(super) fn is_image(&self) -> bool {
        self.at == [0, 0] && self.size == [self.image[0], self.image[1]]
    }

    /// Positions `step` pixels apart, the first at the frame's corner.
    pub(super) fn strides(&self, step: usize) -> Strides {
        let row = self.size[1] * self.image[2];
        Strides {
            origin: 0,
            sample: self.values(),
            row: step * row,
            column: step * self.image[2],
        }
    }

    /// Copies samples into frames; spikes become 0 and 1.
    pub(super) fn fill(&self, x: Operand<'_>, frames: &mut [f32]) {
        let [height, width, channels] = self.image;
        let words = channels.div_ceil(64);
        let (top, left) = (self.at[0], self.at[1]);
        // Columns of the image that the frame shows.
        let shown = width.min(self.size[1].saturating_sub(left));
        let row_values = self.size[1] * channels;
        frames
            .par_chunks_mut(row_values)
            .enumerate()
            .for_each(|(row, to)| {
                let (sample, y) = (row / self.size[0], (row % self.size[0]).wrapping_sub(top));
                if y >= height || shown == 0 {
                    return to.fill(0.0);
                }
                let pixel = (sample * height + y) * width;
                let (before, rest) = to.split_at_mut(left * channels);
                let (inside, after) = rest.split_at_mut(shown * channels);
                before.fill(0.0);
                after.fill(0.0);
                match x {
                    Operand::Real(x) => {
                        inside.copy_from_slice(&x[pixel * channels..(pixel + shown) * channels]);
                    }
                    Operand::Spikes(bits) => {
                        let bits = bits[pixel * words..].chunks_exact(words);
                        for (to, bits) in inside.chunks_exact_mut(channels).zip(bits) {
                            unpack(bits, to);
                        }
                    }
                }
            });
    }
}

/// Bits to 0 and 1.
fn unpack(bits: &[u64], to: &mut [f32]) {
    for (to, word) in to.chunks_mut(64).zip(bits) {
        for (c, to) in to.iter_mut().enumerate() {
            *to = f32::from(u8::from(word >> c & 1 == 1));
        }
    }
}
