//! PNG: every colour type, to eight bits.

use std::io::Cursor;

use ::png::{ColorType, Decoder, DecodingError, Limits, Transformations};

use super::{LIMIT_PIXELS, Picture, PictureError, check_size};

const FORMAT: &str = "PNG";
/// Texts, profiles and rows: all that the decoder may hold besides our pixels.
const LIMIT_BYTES: usize = 1 << 24;

pub(super) fn decode(bytes: &[u8], picture: &mut Picture) -> Result<(), PictureError> {
    let limits = Limits { bytes: LIMIT_BYTES };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder
        .read_header_info()
        .map_err(|source| error(&source))?;
    check_size(info.width, info.height)?;
    let mut reader = decoder.read_info().map_err(|source| error(&source))?;
    let (width, height) = reader.info().size();
    picture.reshape(width, height)?;
    let (colours, _) = reader.output_color_type();
    if colours == ColorType::Rgb {
        reader
            .next_frame(&mut picture.pixels)
            .map_err(|source| error(&source))?;
        return Ok(());
    }
    // At most four bytes a pixel, of pixels that were checked.
    let limit = usize::try_from(4 * LIMIT_PIXELS).unwrap_or(usize::MAX);
    let len = reader.output_buffer_size().filter(|&len| len <= limit);
    let mut frame = vec![0; len.ok_or(PictureError::Size { width, height })?];
    reader
        .next_frame(&mut frame)
        .map_err(|source| error(&source))?;
    let pixels = picture.pixels.chunks_exact_mut(3);
    match colours {
        ColorType::Grayscale => pixels.zip(&frame).for_each(|(rgb, &grey)| rgb.fill(grey)),
        ColorType::GrayscaleAlpha => {
            let grey = frame.chunks_exact(2);
            pixels.zip(grey).for_each(|(rgb, grey)| rgb.fill(grey[0]));
        }
        ColorType::Rgba => {
            let rgba = frame.chunks_exact(4);
            pixels
                .zip(rgba)
                .for_each(|(rgb, rgba)| rgb.copy_from_slice(&rgba[..3]));
        }
        ColorType::Rgb | ColorType::Indexed => {
            return Err(PictureError::Damaged {
                format: FORMAT,
                reason: "a palette that was not expanded".into(),
            });
        }
    }
    Ok(())
}

fn error(error: &DecodingError) -> PictureError {
    if matches!(error, DecodingError::IoError(_)) {
        return PictureError::Truncated { format: FORMAT };
    }
    PictureError::Damaged {
        format: FORMAT,
        reason: error.to_string(),
    }
}
