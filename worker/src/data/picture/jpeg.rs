//! JPEG: baseline and progressive; grey, YCbCr, RGB, CMYK and YCCK.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{LIMIT_SIDE, Picture, PictureError, check_size};

const FORMAT: &str = "JPEG";
/// Scans of a progressive picture: each costs a pass over all of it. Usual ones have about ten.
const LIMIT_SCANS: usize = 64;

/// What the segments before the first scan say; only what the decoder does not.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    /// H and W by the frame header.
    size: Option<(u32, u32)>,
    /// Where the first scan's segment begins.
    scan: usize,
}

pub(super) fn decode(bytes: &[u8], picture: &mut Picture) -> Result<(), PictureError> {
    let truncated = PictureError::Truncated { format: FORMAT };
    let Some(head) = head(bytes) else {
        return Err(truncated);
    };
    let Some((height, width)) = head.size else {
        return Err(damaged("a scan before the frame header"));
    };
    check_size(width, height)?;
    // A scan stuffs its own 0xff, so only the end of the image looks like it. The decoder would
    // fill what is missing with grey.
    if !bytes[head.scan..]
        .windows(2)
        .rev()
        .any(|pair| pair == [0xff, 0xd9])
    {
        return Err(truncated);
    }
    picture.reshape(width, height)?;
    // CMYK is stored inverted, as Adobe does, with and without Adobe's segment; Pillow assumes the
    // same.
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .jpeg_set_max_scans(LIMIT_SCANS)
        .set_max_width(LIMIT_SIDE as usize)
        .set_max_height(LIMIT_SIDE as usize);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|source| error(&source))?;
    if decoder.dimensions() != Some((width as usize, height as usize)) {
        return Err(damaged("two frame headers that differ"));
    }
    decoder
        .decode_into(&mut picture.pixels)
        .map_err(|source| error(&source))
}

fn error(error: &DecodeErrors) -> PictureError {
    if matches!(
        error,
        DecodeErrors::ExhaustedData | DecodeErrors::IoErrors(_)
    ) {
        return PictureError::Truncated { format: FORMAT };
    }
    damaged(error.to_string().trim())
}

fn damaged(reason: &str) -> PictureError {
    PictureError::Damaged {
        format: FORMAT,
        reason: reason.into(),
    }
}

/// The segments up to the first scan, or `None` when the bytes end before it.
fn head(bytes: &[u8]) -> Option<Head> {
    let mut head = Head::default();
    let mut at = 2;
    loop {
        // Any number of 0xff may stand before a marker; other bytes between segments are skipped,
        // as every decoder does.
        while *bytes.get(at)? != 0xff || matches!(*bytes.get(at + 1)?, 0 | 0xff) {
            at += 1;
        }
        let marker = *bytes.get(at + 1)?;
        at += 2;
        // Markers without a segment: temporary, restarts, start of image.
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let length = usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let segment = bytes.get(at + 2..at + length.max(2))?;
        match (marker, segment) {
            (0xda, _) => {
                head.scan = at;
                return Some(head);
            }
            (0xc0..=0xc2, &[_, h1, h0, w1, w0, ..]) => {
                let side = |high, low| u32::from(u16::from_be_bytes([high, low]));
                head.size = Some((side(h1, h0), side(w1, w0)));
            }
            _ => {}
        }
        at += length.max(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_what_stands_before_the_scan() {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xff, 0xee, 0, 7];
        bytes.extend_from_slice(b"Adobe");
        bytes.extend([0xff, 0xc0, 0, 8, 8, 0, 3, 1, 0, 4, 0xff, 0xda, 0, 2]);
        let expected = Head {
            size: Some((3, 256)),
            scan: bytes.len() - 2,
        };
        assert_eq!(head(&bytes), Some(expected));
        for end in 0..bytes.len() {
            assert_eq!(head(&bytes[..end]), None, "cut at {end}");
        }
    }
}
