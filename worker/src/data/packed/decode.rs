//! The bytes of a sample to the values that the network sees.

use synfire_shared::ids::Epoch;

use crate::data::augment::{Augment, Draws};
use crate::data::dataset::{Normalise, Shape};
use crate::data::imagenet::{self, Transform};
use crate::data::picture::{Picture, PictureError};
use crate::data::raw::{Out, Tables};

/// What is done to every picture of a set.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Recipe {
    /// All pictures have this shape, and keep it.
    OneSize {
        normalise: Normalise,
        shape: Shape,
        augment: Augment,
    },
    /// Pictures have any size and are brought to one.
    AnySize {
        normalise: Normalise,
        options: imagenet::Options,
        /// Whether training pictures are cropped at random; else as test pictures.
        augments: bool,
    },
}

impl Recipe {
    /// The value of each byte.
    pub(super) fn tables(&self) -> Tables {
        match self {
            Self::OneSize { normalise, .. } | Self::AnySize { normalise, .. } => {
                normalise.tables().into()
            }
        }
    }

    /// H, W and C of what the network sees.
    pub(super) fn shape(&self) -> Shape {
        match self {
            Self::OneSize { shape, .. } => *shape,
            Self::AnySize { options, .. } => Shape {
                height: options.side as usize,
                width: options.side as usize,
                channels: 3,
            },
        }
    }
}

/// What a random change of a training sample depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) seed: u64,
    pub(super) epoch: Epoch,
    pub(super) sample: u32,
}

/// Decodes one picture after another, keeping its memory between them.
#[derive(Debug)]
pub(super) enum Decoder {
    OneSize {
        picture: Picture,
        tables: Vec<[f32; 256]>,
        shape: Shape,
        augment: Augment,
    },
    AnySize {
        transform: Box<Transform>,
        augments: bool,
    },
}

impl Decoder {
    pub(super) fn new(recipe: &Recipe) -> Self {
        match recipe {
            Recipe::OneSize {
                normalise,
                shape,
                augment,
            } => Self::OneSize {
                picture: Picture::default(),
                tables: normalise.tables(),
                shape: *shape,
                augment: *augment,
            },
            Recipe::AnySize {
                normalise,
                options,
                augments,
            } => Self::AnySize {
                transform: Box::new(Transform::new(normalise, *options)),
                augments: *augments,
            },
        }
    }

    /// Writes a sample to learn from, or without a key one to be judged on.
    ///
    /// # Shapes
    ///
    /// `out`: that of [`Recipe::shape`]
    ///
    /// # Errors
    ///
    /// A [`PictureError`] when `bytes` are no picture of the set; `out` then holds anything.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        key: Option<Key>,
        out: &mut Out<'_>,
    ) -> Result<(), PictureError> {
        match self {
            Self::OneSize {
                picture,
                tables,
                shape,
                augment,
            } => {
                decode_as(bytes, *shape, picture)?;
                let draws = key.map_or(Draws::default(), |key| {
                    augment.draw(*shape, key.seed, key.epoch, key.sample)
                });
                out.write(draws, *shape, &picture.pixels, tables);
                Ok(())
            }
            Self::AnySize {
                transform,
                augments,
            } => match key.filter(|_| *augments) {
                Some(key) => {
                    let key = (key.seed, key.epoch, key.sample);
                    transform.train(bytes, key, out.reborrow())
                }
                None => transform.test(bytes, out.reborrow()),
            },
        }
    }
}

/// Decodes a picture that must have this shape.
fn decode_as(bytes: &[u8], shape: Shape, picture: &mut Picture) -> Result<(), PictureError> {
    picture.decode(bytes)?;
    let (width, height) = (picture.width, picture.height);
    if (height as usize, width as usize) != (shape.height, shape.width) {
        return Err(PictureError::OtherSize {
            width,
            height,
            want_width: shape.width,
            want_height: shape.height,
        });
    }
    if shape.channels == 1 {
        picture.to_grey();
    }
    Ok(())
}
