//! Pictures as bytes, and what is still to be done to them: shifted, flipped, cut out, normalised.
//!
//! A byte is a quarter of the value that it becomes; a back end that has to carry its input somewhere
//! carries bytes and makes the values there ([`Kernels::write_pictures`](super::Kernels::write_pictures)).

use crate::shape::Shape;

/// Half the side of the square that [`Change::cutout`] sets to 0.
pub const CUTOUT_HALF: u32 = 8;

/// What is done to one picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The pixel in row y comes from row y + `row_shift`, a zero byte where that is outside.
    pub row_shift: i32,
    /// The same of columns, before the flip.
    pub column_shift: i32,
    /// Whether left and right are exchanged.
    pub flips: bool,
    /// The row and the column in the middle of the square that is set to zero bytes, after the flip:
    /// [`CUTOUT_HALF`] pixels before it, and as many from it on.
    pub cutout: Option<(u32, u32)>,
    /// Whether there is no picture: all values are 0.0, not those of the byte 0.
    pub is_empty: bool,
}

impl Change {
    /// Where the pixel that lands at row y and column x begins in its picture, unless it is a zero.
    fn source(&self, shape: Shape, y: usize, x: usize) -> Option<usize> {
        let half = CUTOUT_HALF as usize;
        // max(c - 8, 0) .. min(c + 8, side), without the subtraction.
        let near = |place: usize, centre: u32| {
            place + half >= centre as usize && place < centre as usize + half
        };
        let cutout = self.cutout;
        if cutout.is_some_and(|(row, column)| near(y, row) && near(x, column)) {
            return None;
        }
        let x = if self.flips { shape.width - 1 - x } else { x };
        let row = y.checked_add_signed(self.row_shift as isize)?;
        let column = x.checked_add_signed(self.column_shift as isize)?;
        let is_inside = row < shape.height && column < shape.width;
        is_inside.then_some((row * shape.width + column) * shape.channels)
    }
}

/// The pictures of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Pictures<'a> {
    /// H, W and C of each.
    pub shape: Shape,
    /// `[N, H, W, C]`; those of an empty place have no meaning.
    pub bytes_nhwc: &'a [u8],
    /// `[N]`
    pub changes: &'a [Change],
    /// `[C]` tables: the value of each byte.
    pub tables: &'a [[f32; 256]],
}

impl Pictures<'_> {
    /// How many values they become, N H W C.
    ///
    /// # Panics
    /// If the parts do not fit each other.
    pub fn elements(&self) -> usize {
        let elements = self.changes.len() * self.shape.elements();
        assert_eq!(self.bytes_nhwc.len(), elements, "bytes of pictures");
        assert_eq!(self.tables.len(), self.shape.channels, "tables of channels");
        elements
    }

    /// The values, `[N, H, W, C]`. What any back end makes of the pictures has these bits, or those of
    /// these values rounded to the type in which it keeps them.
    ///
    /// # Panics
    /// If the parts do not fit each other.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        let Shape {
            width, channels, ..
        } = self.shape;
        let image_len = self.shape.elements();
        let pictures = self.bytes_nhwc.chunks_exact(image_len).zip(self.changes);
        for (values, (bytes, change)) in values.chunks_exact_mut(image_len).zip(pictures) {
            if change.is_empty {
                continue;
            }
            for (place, pixel) in values.chunks_exact_mut(channels).enumerate() {
                let source = change.source(self.shape, place / width, place % width);
                for (channel, (value, table)) in pixel.iter_mut().zip(self.tables).enumerate() {
                    let byte = source.map_or(0, |pixel| bytes[pixel + channel]);
                    *value = table[usize::from(byte)];
                }
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel c of byte b is 1000 (c + 1) + b.
    fn tables(channels: usize) -> Vec<[f32; 256]> {
        let value = |channel: usize, byte: usize| (1000 * (channel + 1) + byte) as f32;
        let table = |channel| std::array::from_fn(|byte| value(channel, byte));
        (0..channels).map(table).collect()
    }

    #[test]
    fn each_picture_has_its_own_change_and_an_empty_place_is_zero() {
        let changes = [
            Change::default(),
            Change {
                flips: true,
                row_shift: 1,
                ..Change::default()
            },
            Change {
                is_empty: true,
                ..Change::default()
            },
            Change {
                cutout: Some((9, 0)),
                ..Change::default()
            },
        ];
        let bytes: Vec<u8> = (1..=16).collect();
        let pictures = Pictures {
            shape: Shape::new(2, 1, 2),
            bytes_nhwc: &bytes,
            changes: &changes,
            tables: &tables(2),
        };
        let expected = [
            [1001.0, 2002.0, 1003.0, 2004.0],
            [1007.0, 2008.0, 1000.0, 2000.0],
            [0.0; 4],
            // The square begins in row 1.
            [1013.0, 2014.0, 1000.0, 2000.0],
        ];
        assert_eq!(pictures.values(), expected.as_flattened());
    }

    #[test]
    #[should_panic(expected = "bytes of pictures")]
    fn pictures_that_are_cut_off_are_refused() {
        let pictures = Pictures {
            shape: Shape::new(2, 2, 1),
            bytes_nhwc: &[1; 7],
            changes: &[Change::default(); 2],
            tables: &tables(1),
        };
        pictures.elements();
    }
}
