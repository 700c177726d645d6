//! Pictures as bytes, with what is still to be done to them: for whoever makes values of them elsewhere.

use std::sync::Arc;

use super::augment::Draws;
use super::dataset::Shape;

/// The value of each byte, for each channel.
pub type Tables = Arc<[[f32; 256]]>;

/// The pictures of a batch as bytes.
///
/// What [`Draws::apply`] makes of them through the tables are the values of the same batch, bit by bit.
#[derive(Debug)]
pub struct Raw {
    /// The pictures.
    ///
    /// # Shapes
    ///
    /// `[N, H, W, C]`
    pub bytes_nhwc: Vec<u8>,
    /// What chance decided about each; nothing where there is no picture, whose values are 0.0.
    ///
    /// # Shapes
    ///
    /// `[N]`
    pub draws: Vec<Option<Draws>>,
    /// What the bytes mean.
    ///
    /// # Shapes
    ///
    /// `[C]` tables
    pub tables: Tables,
}

impl Raw {
    /// Room for so many pictures of so many bytes each.
    pub(super) fn new(samples: usize, image_len: usize, tables: Tables) -> Self {
        Self {
            bytes_nhwc: vec![0; samples * image_len],
            draws: vec![None; samples],
            tables,
        }
    }

    /// The values that the pictures become.
    #[cfg(test)]
    pub(super) fn values(&self, shape: Shape) -> Vec<f32> {
        let image_len = shape.image_len();
        let mut values = vec![0.0; self.bytes_nhwc.len()];
        let pictures = self.bytes_nhwc.chunks_exact(image_len).zip(&self.draws);
        for (out, (bytes, draws)) in values.chunks_exact_mut(image_len).zip(pictures) {
            if let Some(draws) = draws {
                let value = |channel: usize, byte: u8| self.tables[channel][usize::from(byte)];
                draws.apply(shape, bytes, out, value);
            }
        }
        values
    }
}

/// The place of one picture in a batch.
#[derive(Debug)]
pub enum Out<'a> {
    /// It is written as values: `[H, W, C]`.
    Values(&'a mut [f32]),
    /// It is written as bytes.
    Bytes {
        /// `[H, W, C]`
        bytes_hwc: &'a mut [u8],
        /// What is still to be done to it.
        draws: &'a mut Option<Draws>,
    },
}

impl<'a> From<&'a mut [f32]> for Out<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self::Values(values)
    }
}

impl<'a> From<&'a mut Vec<f32>> for Out<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        Self::Values(values)
    }
}

impl Out<'_> {
    /// Writes what the draws make of a picture, or the picture and the draws.
    ///
    /// # Panics
    ///
    /// When the place has not the picture's length.
    pub(super) fn write(
        &mut self,
        draws: Draws,
        shape: Shape,
        image_hwc: &[u8],
        tables: &[[f32; 256]],
    ) {
        match self {
            Self::Values(out) => {
                let value = |channel: usize, byte: u8| tables[channel][usize::from(byte)];
                draws.apply(shape, image_hwc, out, value);
            }
            Self::Bytes {
                bytes_hwc,
                draws: left,
            } => {
                bytes_hwc.copy_from_slice(image_hwc);
                **left = Some(draws);
            }
        }
    }

    /// Marks the place as one without a picture.
    pub(super) fn clear(&mut self) {
        match self {
            Self::Values(out) => out.fill(0.0),
            Self::Bytes { bytes_hwc, draws } => {
                bytes_hwc.fill(0);
                **draws = None;
            }
        }
    }

    /// The same place for a shorter time.
    pub(super) fn reborrow(&mut self) -> Out<'_> {
        match self {
            Self::Values(out) => Out::Values(out),
            Self::Bytes { bytes_hwc, draws } => Out::Bytes { bytes_hwc, draws },
        }
    }
}

/// The places of a batch, of which either values or bytes are there.
pub(super) fn outs<'a>(
    x_nhwc: &'a mut [f32],
    raw: Option<&'a mut Raw>,
    image_len: usize,
) -> impl Iterator<Item = Out<'a>> {
    let values = x_nhwc.chunks_exact_mut(image_len).map(Out::Values);
    let bytes = raw.into_iter().flat_map(move |raw| {
        let pictures = raw.bytes_nhwc.chunks_exact_mut(image_len);
        let places = pictures.zip(&mut raw.draws);
        places.map(|(bytes_hwc, draws)| Out::Bytes { bytes_hwc, draws })
    });
    values.chain(bytes)
}
