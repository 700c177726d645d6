//! Pictures that come as bytes and become values on the device.

use super::arguments;
use super::values::narrow;
use super::{CudaKernels, Purpose};
use crate::kernel::Buffer;
use crate::kernel::pictures::{CUTOUT_HALF, Change, Pictures};

/// The table of each channel that the device has.
pub(super) type Tables = Vec<[f32; 256]>;

/// Where changes begin behind bytes.
const ALIGNMENT: usize = 256;
/// Words of a `Change` in pictures.cu.
const WORDS: usize = 5;

/// A change as the kernel takes it.
fn words_of(change: &Change) -> [u32; WORDS] {
    let (row, column) = change.cutout.unwrap_or_default();
    let what = [change.flips, change.cutout.is_some(), change.is_empty];
    let what = what
        .iter()
        .rev()
        .fold(0, |bits, &is_so| 2 * bits + u32::from(is_so));
    let shifts = [change.row_shift, change.column_shift].map(i32::cast_unsigned);
    [shifts[0], shifts[1], what, row, column]
}

fn are_same(some: &[[f32; 256]], others: &[[f32; 256]]) -> bool {
    fn bits(tables: &[[f32; 256]]) -> impl Iterator<Item = u32> {
        tables.as_flattened().iter().map(|value| value.to_bits())
    }
    bits(some).eq(bits(others))
}

impl CudaKernels {
    /// Bytes and changes go to the device; values are made there.
    pub(super) fn make_pictures(&mut self, buffer: Buffer, t: usize, pictures: &Pictures<'_>) {
        let elements = pictures.elements();
        self.rooms.becomes_f32(buffer);
        let y = self.rooms.slot(buffer, elements, t);
        let tables = self.scratch(Purpose::Tables, 4 * 256 * pictures.tables.len() as u64);
        if !are_same(&self.tables, pictures.tables) {
            self.write_numbers(tables, pictures.tables.as_flattened());
            self.tables = pictures.tables.to_vec();
        }
        let words = pictures.changes.iter().flat_map(words_of);
        let words: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        let behind = elements.next_multiple_of(ALIGNMENT);
        let bytes = self.scratch(Purpose::Pictures, (behind + words.len()) as u64);
        let changes = bytes.offset(behind as u64);
        self.device.write(bytes, pictures.bytes_nhwc);
        self.device.write(changes, &words);
        let make = arguments::Pictures {
            y,
            bytes,
            changes,
            tables,
            elements: elements as u64,
            height: narrow(pictures.shape.height),
            width: narrow(pictures.shape.width),
            channels: narrow(pictures.shape.channels),
            cutout_half: CUTOUT_HALF,
        };
        self.launch(make.elements, &make);
        self.refresh_operand(buffer, elements, t);
    }
}
