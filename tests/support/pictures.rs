//! Pictures as bytes with every change that there is.

use synfire::kernel::{Change, Pictures};
use synfire::shape::Shape;

use crate::random::Random;

/// Pictures that own what they are made of.
#[derive(Clone, Debug)]
pub struct Made {
    shape: Shape,
    bytes: Vec<u8>,
    changes: Vec<Change>,
    tables: Vec<[f32; 256]>,
}

impl Made {
    /// Random bytes; shifts over every edge, flips and cutouts by chance, every fifth place empty; tables
    /// of a deviation, without a 0.
    ///
    /// # Panics
    /// Never.
    pub fn new(samples: usize, shape: Shape, deviation: f32, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let bytes = (0..samples * shape.elements()).map(|_| random.below(256));
        let bytes = bytes.map(|byte| u8::try_from(byte).expect("below 256"));
        let bytes = bytes.collect();
        let shift = |random: &mut Random, side: usize| {
            // Up to a row or column more than there are, to either side.
            let drawn = random.below(2 * side + 3).cast_signed() - side.cast_signed() - 1;
            i32::try_from(drawn).expect("a side is short")
        };
        let place = |random: &mut Random, side: usize| {
            u32::try_from(random.below(side)).expect("a side is short")
        };
        let changes = (0..samples).map(|sample| Change {
            row_shift: shift(&mut random, shape.height / 2),
            column_shift: shift(&mut random, shape.width),
            flips: random.coin(),
            cutout: random.coin().then(|| {
                let row = place(&mut random, shape.height);
                (row, place(&mut random, shape.width))
            }),
            is_empty: sample % 5 == 4,
        });
        let changes = changes.collect();
        let tables = (0..shape.channels).map(|channel| {
            let mean = 0.4 + 0.1 * channel as f32;
            std::array::from_fn(|byte| (byte as f32 / 255.0 - mean) / deviation)
        });
        Self {
            shape,
            bytes,
            changes,
            tables: tables.collect(),
        }
    }

    /// As back ends take them.
    pub fn pictures(&self) -> Pictures<'_> {
        Pictures {
            shape: self.shape,
            bytes_nhwc: &self.bytes,
            changes: &self.changes,
            tables: &self.tables,
        }
    }
}
