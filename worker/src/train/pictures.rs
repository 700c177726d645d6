//! Batches of bytes, as back ends take them that make the values themselves.

use crate::data::augment::{self, Draws};
use crate::data::{self, Batch};
use crate::kernel::{Change, Pictures, pictures};
use crate::learn::Input;
use crate::shape::Shape;

const _: () = assert!(
    augment::CUTOUT_HALF == pictures::CUTOUT_HALF as usize,
    "both cut out the same square"
);

/// What is done to the pictures of a batch; memory that is used again.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    /// The pictures of a batch; nothing where it has values instead.
    pub(super) fn of<'a>(
        &'a mut self,
        batch: &'a Batch,
        shape: data::Shape,
    ) -> Option<Pictures<'a>> {
        let raw = batch.raw.as_ref()?;
        self.0.clear();
        self.0.extend(raw.draws.iter().copied().map(change));
        Some(Pictures {
            shape: Shape::new(shape.height, shape.width, shape.channels),
            bytes_nhwc: &raw.bytes_nhwc,
            changes: &self.0,
            tables: &raw.tables,
        })
    }
}

/// The input that a batch is, as pictures if it has them.
pub(super) fn input<'a>(pictures: Option<&'a Pictures<'a>>, batch: &'a Batch) -> Input<'a> {
    pictures.map_or(Input::Static(&batch.x_nhwc), Input::Pictures)
}

fn change(draws: Option<Draws>) -> Change {
    let Some(draws) = draws else {
        return Change {
            is_empty: true,
            ..Change::default()
        };
    };
    let small = |shift: isize| i32::try_from(shift).expect("shifts are a few pixels");
    let place = |place: usize| u32::try_from(place).expect("sides fit a u32");
    let Draws {
        row_shift,
        column_shift,
        flip,
        cutout,
    } = draws;
    Change {
        row_shift: small(row_shift),
        column_shift: small(column_shift),
        flips: flip,
        cutout: cutout.map(|(row, column)| (place(row), place(column))),
        is_empty: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Augment, Place, Raw};
    use synfire_shared::ids::Epoch;

    /// A batch of 40 pictures: those that are drawn, those at the edges, and an empty place.
    fn made(shape: data::Shape) -> Batch {
        let drawn = (0..30).map(|sample| {
            let augment = [Augment::None, Augment::Fashion, Augment::Cifar][sample as usize % 3];
            Some(augment.draw(shape, 3, Epoch(1), sample))
        });
        let far = shape.height.max(shape.width).cast_signed();
        let edges = (0..9).map(|at| {
            Some(Draws {
                row_shift: (at % 3 - 1) * far,
                column_shift: (at / 3 - 1) * (far - 1),
                flip: at % 2 == 1,
                cutout: (at == 4).then_some((shape.height - 1, 0)),
            })
        });
        let draws: Vec<Option<Draws>> = drawn.chain(edges).chain([None]).collect();
        let image_len = shape.image_len();
        let value = |channel: usize, byte: usize| (byte as f32 - 100.0) / (channel as f32 + 3.0);
        let table = |channel| std::array::from_fn(|byte| value(channel, byte));
        Batch {
            place: Place {
                epoch: Epoch(1),
                batch_index: 0,
            },
            x_nhwc: Vec::new(),
            raw: Some(Raw {
                bytes_nhwc: (1..=251).cycle().take(draws.len() * image_len).collect(),
                tables: (0..shape.channels).map(table).collect(),
                draws,
            }),
            labels: vec![0; 40],
            samples: Vec::new(),
            bad: Vec::new(),
        }
    }

    #[test]
    fn what_back_ends_make_of_pictures_is_what_draws_make_of_them() {
        for (height, width, channels) in [(32, 32, 3), (28, 28, 1), (7, 5, 3), (1, 9, 2)] {
            let shape = data::Shape {
                height,
                width,
                channels,
            };
            let batch = made(shape);
            let raw = batch.raw.as_ref().expect("made of bytes");
            let mut changes = Changes::default();
            let pictures = changes.of(&batch, shape).expect("made of bytes");
            let actual = pictures.values();
            let image_len = shape.image_len();
            let bytes = raw.bytes_nhwc.chunks_exact(image_len);
            let actual = actual.chunks_exact(image_len);
            for ((actual, bytes), draws) in actual.zip(bytes).zip(&raw.draws) {
                let mut expected = vec![0.0; image_len];
                if let Some(draws) = draws {
                    let value = |channel: usize, byte: u8| raw.tables[channel][usize::from(byte)];
                    draws.apply(shape, bytes, &mut expected, value);
                }
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                assert!(actual.iter().zip(&expected).all(same), "{draws:?}");
            }
        }
    }

    #[test]
    fn a_batch_of_values_is_no_pictures() {
        let shape = data::Shape {
            height: 2,
            width: 2,
            channels: 1,
        };
        let batch = Batch {
            raw: None,
            ..made(shape)
        };
        assert!(Changes::default().of(&batch, shape).is_none());
        assert!(matches!(input(None, &batch), Input::Static([])));
    }
}
