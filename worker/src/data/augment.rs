//! Random shift, flip and cutout of training images.
//!
//! A draw depends on (seed, epoch, sample) alone, and the image on the draw alone: the same sample
//! is the same image on any number of threads and after any resume.

use synfire_shared::ids::Epoch;
use synfire_shared::random::{Purpose, below, keyed};

use super::dataset::Shape;

/// What is done to a training image; test images stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Augment {
    /// Nothing.
    None,
    /// A shift by -2..=2 pixels each way with zeros moving in, and a flip with probability 1/2.
    Fashion,
    /// A shift by -4..=4 pixels each way with zeros moving in (zero-pad 4, then crop at offsets
    /// 0..=8), a flip with probability 1/2, then a cutout of at most 16x16 pixels.
    Cifar,
}

/// Half the side of the square that [`Augment::Cifar`] sets to 0.
pub const CUTOUT_HALF: usize = 8;

/// Everything that chance decides about one image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Draws {
    /// The pixel in row y comes from row y + `row_shift`, a zero where that is outside.
    pub row_shift: isize,
    /// The same of columns, before the flip.
    pub column_shift: isize,
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// The row and the column in the middle of the square that is set to 0, after the flip.
    pub cutout: Option<(usize, usize)>,
}

impl Augment {
    /// The draws of one sample in one epoch.
    ///
    /// # Panics
    ///
    /// When a side of the image is 0 or does not fit a u32.
    pub fn draw(self, shape: Shape, seed: u64, epoch: Epoch, sample: u32) -> Draws {
        let (reach, cutout) = match self {
            Self::None => return Draws::default(),
            Self::Fashion => (2, false),
            Self::Cifar => (4, true),
        };
        let mut rng = keyed(
            seed,
            Purpose::Augment,
            &[u64::from(epoch.0), u64::from(sample)],
        );
        let mut draw = |bound: usize| {
            let bound = u32::try_from(bound).expect("a side that fits a u32");
            below(&mut rng, bound) as usize
        };
        let mut shift = || draw(2 * reach + 1).cast_signed() - reach.cast_signed();
        let (row_shift, column_shift) = (shift(), shift());
        let flip = draw(2) == 1;
        let cutout = cutout.then(|| (draw(shape.height), draw(shape.width)));
        Draws {
            row_shift,
            column_shift,
            flip,
            cutout,
        }
    }
}

impl Draws {
    /// Writes the image these draws make of `image_hwc`, each byte through `value`(channel, byte).
    ///
    /// Pixels that come from outside and pixels that are cut out are `value`(channel, 0): they are
    /// set to 0 before they are normalised.
    ///
    /// # Shapes
    ///
    /// `image_hwc` and `out_hwc`: `[H, W, C]`
    ///
    /// # Panics
    ///
    /// When a slice has not H W C elements.
    pub fn apply<T>(
        &self,
        shape: Shape,
        image_hwc: &[u8],
        out_hwc: &mut [T],
        value: impl Fn(usize, u8) -> T,
    ) {
        assert_eq!(image_hwc.len(), shape.image_len(), "bytes of an image");
        assert_eq!(out_hwc.len(), shape.image_len(), "values of an image");
        for (place, out) in out_hwc.chunks_exact_mut(shape.channels).enumerate() {
            let source = self.source(shape, place / shape.width, place % shape.width);
            for (channel, out) in out.iter_mut().enumerate() {
                *out = value(
                    channel,
                    source.map_or(0, |pixel| image_hwc[pixel + channel]),
                );
            }
        }
    }

    /// Where the pixel that lands at row y and column x begins, unless it is a zero.
    fn source(&self, shape: Shape, y: usize, x: usize) -> Option<usize> {
        // max(c - 8, 0) .. min(c + 8, side), without the subtraction.
        let near =
            |place: usize, centre| place + CUTOUT_HALF >= centre && place < centre + CUTOUT_HALF;
        if self
            .cutout
            .is_some_and(|(row, column)| near(y, row) && near(x, column))
        {
            return None;
        }
        let x = if self.flip { shape.width - 1 - x } else { x };
        let row = y
            .checked_add_signed(self.row_shift)
            .filter(|&row| row < shape.height)?;
        let column = x
            .checked_add_signed(self.column_shift)
            .filter(|&at| at < shape.width)?;
        Some((row * shape.width + column) * shape.channels)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SMALL: Shape = Shape {
        height: 2,
        width: 3,
        channels: 2,
    };
    const CIFAR: Shape = Shape {
        height: 32,
        width: 32,
        channels: 3,
    };

    fn apply(draws: Draws, shape: Shape, image: &[u8]) -> Vec<u8> {
        let mut out = vec![77; image.len()];
        draws.apply(shape, image, &mut out, |_, byte| byte);
        out
    }

    #[test]
    fn no_augmentation_changes_no_byte() {
        let image: Vec<u8> = (1..=12).collect();
        let draws = Augment::None.draw(SMALL, 1, Epoch(2), 3);
        assert_eq!(apply(draws, SMALL, &image), image);
    }

    #[test]
    fn a_flip_exchanges_columns_and_keeps_channels() {
        let image: Vec<u8> = (1..=12).collect();
        let draws = Draws {
            flip: true,
            ..Draws::default()
        };
        assert_eq!(
            apply(draws, SMALL, &image),
            [5, 6, 3, 4, 1, 2, 11, 12, 9, 10, 7, 8]
        );
    }

    #[test]
    fn a_shift_moves_zeros_in_on_each_side() {
        let image: Vec<u8> = (1..=12).collect();
        let shift = |row_shift, column_shift| Draws {
            row_shift,
            column_shift,
            ..Draws::default()
        };
        assert_eq!(
            apply(shift(1, 0), SMALL, &image),
            [7, 8, 9, 10, 11, 12, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            apply(shift(-1, 0), SMALL, &image),
            [0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
        );
        assert_eq!(
            apply(shift(0, 2), SMALL, &image),
            [5, 6, 0, 0, 0, 0, 11, 12, 0, 0, 0, 0]
        );
        assert_eq!(
            apply(shift(0, -1), SMALL, &image),
            [0, 0, 1, 2, 3, 4, 0, 0, 7, 8, 9, 10]
        );
        assert_eq!(apply(shift(2, 0), SMALL, &image), [0; 12]);
    }

    /// Zero-pad 4 and crop, then flip, as the table of data sets lists them.
    #[test]
    fn a_shift_and_a_flip_are_pad_crop_and_flip_in_that_order() {
        let shape = Shape {
            channels: 1,
            ..CIFAR
        };
        let image: Vec<u8> = (1..=251).cycle().take(1024).collect();
        let mut padded = vec![0; 40 * 40];
        for (y, row) in image.chunks_exact(32).enumerate() {
            padded[(y + 4) * 40 + 4..][..32].copy_from_slice(row);
        }
        for (top, left) in [(0, 0), (0, 8), (8, 3), (4, 4)] {
            let mut want: Vec<u8> = Vec::new();
            for y in 0..32 {
                want.extend(padded[(y + top) * 40 + left..][..32].iter().rev());
            }
            let draws = Draws {
                row_shift: top.cast_signed() - 4,
                column_shift: left.cast_signed() - 4,
                flip: true,
                cutout: None,
            };
            assert_eq!(apply(draws, shape, &image), want, "crop at {top}, {left}");
        }
    }

    #[test]
    fn cutout_clears_exactly_its_square_clipped_to_the_image() {
        for (row, column) in [(0, 0), (31, 31), (8, 24), (7, 25), (16, 0)] {
            let draws = Draws {
                cutout: Some((row, column)),
                ..Draws::default()
            };
            let out = apply(draws, CIFAR, &[9; 3072]);
            let sides = |centre: usize| centre.saturating_sub(8)..(centre + 8).min(32);
            for (place, pixel) in out.chunks_exact(3).enumerate() {
                let cut =
                    sides(row).contains(&(place / 32)) && sides(column).contains(&(place % 32));
                assert_eq!(
                    pixel,
                    [if cut { 0 } else { 9 }; 3],
                    "centre {row}, {column}: {place}"
                );
            }
        }
    }

    #[test]
    fn cutout_does_not_move_with_the_flip() {
        let draws = Draws {
            flip: true,
            cutout: Some((0, 0)),
            ..Draws::default()
        };
        let out = apply(draws, CIFAR, &[9; 3072]);
        assert_eq!((out[0], out[31 * 3]), (0, 9));
    }

    #[test]
    fn zeros_are_set_before_the_value_is_taken() {
        let draws = Draws {
            row_shift: 1,
            ..Draws::default()
        };
        let mut out = [0; 12];
        draws.apply(SMALL, &[5; 12], &mut out, |channel, byte| {
            100 * (channel + 1) + usize::from(byte)
        });
        assert_eq!(
            out,
            [105, 205, 105, 205, 105, 205, 100, 200, 100, 200, 100, 200]
        );
    }

    /// With 2,000 samples every value of each draw appears, unless it cannot.
    #[test]
    fn draws_reach_their_bounds_and_never_pass_them() {
        for (augment, reach) in [(Augment::Fashion, 2), (Augment::Cifar, 4)] {
            let all = (0..2000).map(|sample| augment.draw(CIFAR, 7, Epoch(1), sample));
            let all: Vec<Draws> = all.collect();
            let shifts: BTreeSet<isize> = (-reach..=reach).collect();
            assert_eq!(
                all.iter()
                    .map(|draws| draws.row_shift)
                    .collect::<BTreeSet<_>>(),
                shifts
            );
            assert_eq!(
                all.iter()
                    .map(|draws| draws.column_shift)
                    .collect::<BTreeSet<_>>(),
                shifts
            );
            assert_eq!(
                all.iter()
                    .map(|draws| draws.flip)
                    .collect::<BTreeSet<_>>()
                    .len(),
                2
            );
            let centres: Vec<_> = all.iter().filter_map(|draws| draws.cutout).collect();
            if augment == Augment::Fashion {
                assert!(centres.is_empty());
            } else {
                let whole: BTreeSet<usize> = (0..32).collect();
                assert_eq!(
                    centres
                        .iter()
                        .map(|centre| centre.0)
                        .collect::<BTreeSet<_>>(),
                    whole
                );
                assert_eq!(
                    centres
                        .iter()
                        .map(|centre| centre.1)
                        .collect::<BTreeSet<_>>(),
                    whole
                );
            }
        }
    }

    #[test]
    fn draws_depend_on_seed_epoch_and_sample() {
        let many = |seed, epoch, first: u32| -> Vec<Draws> {
            (first..first + 20)
                .map(|sample| Augment::Cifar.draw(CIFAR, seed, Epoch(epoch), sample))
                .collect()
        };
        assert_eq!(many(1, 2, 0), many(1, 2, 0));
        for other in [many(2, 2, 0), many(1, 3, 0), many(1, 2, 20)] {
            assert_ne!(many(1, 2, 0), other);
        }
    }
}
