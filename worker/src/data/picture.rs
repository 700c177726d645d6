//! Pictures to pixels: JPEG and PNG, told apart by their bytes and never by a name.
//!
//! What comes out is what the usual loaders see: grey repeated to RGB, CMYK as RGB, alpha dropped,
//! orientations in EXIF ignored. The bytes are untrusted: sides and pixels have limits that hold
//! before anything is allocated, and a picture that ends early is an error.

mod jpeg;
mod png;

/// The most pixels of a side.
pub const LIMIT_SIDE: u32 = 1 << 14;
/// The most pixels of a picture; the largest of ImageNet has about 20 million.
pub const LIMIT_PIXELS: u64 = 1 << 25;

/// The first bytes of every JPEG: start of image, then a marker.
const JPEG_MAGIC: &[u8] = &[0xff, 0xd8, 0xff];
const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Formats that people rename to JPEG, by their first bytes.
const OTHER_FORMATS: [(&[u8], &str); 5] = [
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"RIFF", "WebP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
];

/// Why bytes are no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PictureError {
    /// There are no bytes.
    #[error("the picture has no bytes: fetch it again")]
    Empty,
    /// Neither JPEG nor PNG.
    #[error("the bytes are {found}, neither JPEG nor PNG: convert or replace the picture")]
    Format {
        /// What they seem to be.
        found: String,
    },
    /// Too many pixels, or none: refused before anything is allocated.
    #[error(
        "the picture has {width} x {height} pixels: a side may have 1 to {LIMIT_SIDE}, and the \
         picture {LIMIT_PIXELS}"
    )]
    Size {
        /// The pixels of a row.
        width: u32,
        /// The rows.
        height: u32,
    },
    /// Not of the size that all pictures of its set have.
    #[error(
        "the picture has {width} x {height} pixels, those of its set have {want_width} x \
         {want_height}: pack the set again"
    )]
    OtherSize {
        /// The pixels of a row.
        width: u32,
        /// The rows.
        height: u32,
        /// The pixels of a row that it should have.
        want_width: usize,
        /// The rows that it should have.
        want_height: usize,
    },
    /// The end of the picture is missing.
    #[error("the {format} ends early: fetch it again")]
    Truncated {
        /// JPEG or PNG.
        format: &'static str,
    },
    /// The decoder refuses the bytes.
    #[error("the {format} does not decode ({reason}): fetch it again")]
    Damaged {
        /// JPEG or PNG.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
}

/// A decoded picture, whose memory is used again for the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// W, the pixels of a row.
    pub width: u32,
    /// H, the rows.
    pub height: u32,
    /// # Shapes
    ///
    /// `[H, W, 3]`, or `[H, W]` after [`Picture::to_grey`]
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Decodes `bytes` to RGB into this picture.
    ///
    /// # Errors
    ///
    /// A [`PictureError`], after which the picture's content has no meaning.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<(), PictureError> {
        self.decode_top(bytes, |_, height| height)
    }

    /// Decodes at least the first rows of `bytes` to RGB into this picture: as many as `num_rows`
    /// says when it is given the picture's width and height, 1 to all. [`Picture::height`] is then
    /// the number of rows that were decoded. They are those of the whole picture; damage below them
    /// may stay unseen, though not a missing end.
    ///
    /// # Errors
    ///
    /// As [`Picture::decode`]. `num_rows` is called once, unless the header is at fault.
    pub fn decode_top(
        &mut self,
        bytes: &[u8],
        num_rows: impl FnOnce(u32, u32) -> u32,
    ) -> Result<(), PictureError> {
        if bytes.starts_with(JPEG_MAGIC) {
            return jpeg::decode_top(bytes, num_rows, self);
        }
        if bytes.starts_with(PNG_MAGIC) {
            png::decode(bytes, self)?;
            num_rows(self.width, self.height);
            return Ok(());
        }
        if bytes.is_empty() {
            return Err(PictureError::Empty);
        }
        let other = |(magic, _): &&(&[u8], &str)| bytes.starts_with(magic);
        let found = match OTHER_FORMATS.iter().find(other) {
            Some((_, name)) => format!("a {name}"),
            None => format!("unknown (they begin {:02x?})", &bytes[..bytes.len().min(8)]),
        };
        Err(PictureError::Format { found })
    }

    /// Replaces each pixel by its luma (ITU-R BT.601, in 16 bits and rounded); grey stays grey.
    pub fn to_grey(&mut self) {
        let num_pixels = self.pixels.len() / 3;
        for index in 0..num_pixels {
            let [red, green, blue] = [0, 1, 2].map(|c| u32::from(self.pixels[3 * index + c]));
            let luma = (19_595 * red + 38_470 * green + 7_471 * blue + 0x8000) >> 16;
            // The weights sum to 2^16, so the luma is at most 255.
            self.pixels[index] = u8::try_from(luma).unwrap_or(u8::MAX);
        }
        self.pixels.truncate(num_pixels);
    }

    /// Gives the picture this size and room for its RGB pixels.
    fn reshape(&mut self, width: u32, height: u32) -> Result<(), PictureError> {
        check_size(width, height)?;
        (self.width, self.height) = (width, height);
        self.pixels.resize(width as usize * height as usize * 3, 0);
        Ok(())
    }
}

fn check_size(width: u32, height: u32) -> Result<(), PictureError> {
    let sides = 1..=LIMIT_SIDE;
    let num_pixels = u64::from(width) * u64::from(height);
    if !sides.contains(&width) || !sides.contains(&height) || num_pixels > LIMIT_PIXELS {
        return Err(PictureError::Size { width, height });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
