//! JPEG: baseline and progressive; grey, YCbCr, RGB, CMYK and YCCK.
//!
//! Half of the time goes into the Huffman codes of the scan, and they can only be read in order. So
//! where the rows below some row are not needed, a sequential picture is decoded as if it ended
//! there: a shorter picture of the same scan is what a header with fewer rows means.

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
    frame: Option<Frame>,
    /// Where the first scan's segment begins.
    scan: usize,
}

/// What the frame header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    height: u32,
    width: u32,
    /// Where the two bytes of the height are.
    height_at: usize,
    /// Rows that are coded together, in a picture whose one scan can be read in part.
    rows_at_once: Option<u32>,
}

impl Frame {
    /// Reads the frame header that begins at `at`, with its marker and without its length.
    fn new(marker: u8, segment: &[u8], at: usize) -> Option<Self> {
        let &[_, h1, h0, w1, w0, num_components, ref components @ ..] = segment else {
            return None;
        };
        let side = |high, low| u32::from(u16::from_be_bytes([high, low]));
        // Each has a name, its sampling factors and a table.
        let mut factors = components
            .chunks_exact(3)
            .map(|component| component[1] & 15);
        let sequential =
            matches!(marker, 0xc0 | 0xc1) && components.len() == 3 * usize::from(num_components);
        let most = factors.by_ref().max().filter(|most| (1..=4).contains(most));
        Some(Self {
            height: side(h1, h0),
            width: side(w1, w0),
            height_at: at + 1,
            rows_at_once: most.filter(|_| sequential).map(|most| 8 * u32::from(most)),
        })
    }

    /// The rows to decode so that the first `num_rows` are as in the whole picture: whole blocks,
    /// and another row of them for what is interpolated.
    fn rows_to_decode(&self, num_rows: u32) -> u32 {
        let Some(rows_at_once) = self.rows_at_once else {
            return self.height;
        };
        let blocks = num_rows.div_ceil(rows_at_once) + 1;
        blocks.saturating_mul(rows_at_once).min(self.height)
    }
}

pub(super) fn decode_top(
    bytes: &[u8],
    num_rows: impl FnOnce(u32, u32) -> u32,
    picture: &mut Picture,
) -> Result<(), PictureError> {
    let truncated = PictureError::Truncated { format: FORMAT };
    let Some(head) = head(bytes) else {
        return Err(truncated);
    };
    let Some(frame) = head.frame else {
        return Err(damaged("a scan before the frame header"));
    };
    let Frame { height, width, .. } = frame;
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
    let height = frame.rows_to_decode(num_rows(width, height));
    let mut shortened = Vec::new();
    let mut bytes = bytes;
    if height < frame.height {
        shortened.extend_from_slice(bytes);
        // At most the height that was in these two bytes.
        let [.., high, low] = height.to_be_bytes();
        shortened[frame.height_at..frame.height_at + 2].copy_from_slice(&[high, low]);
        bytes = &shortened;
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
            (0xda, scan) => {
                head.scan = at;
                // Where a scan has not all components, all scans are needed for any row.
                let num_components = scan.first().copied();
                if let Some(frame) = &mut head.frame
                    && bytes.get(frame.height_at + 4).copied() != num_components
                {
                    frame.rows_at_once = None;
                }
                return Some(head);
            }
            (0xc0..=0xc2, segment) => head.frame = Frame::new(marker, segment, at + 2),
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
        bytes.extend([0xff, 0xc0, 0, 11, 8, 0, 3, 1, 0, 1, 7, 0x12, 0]);
        bytes.extend([0xff, 0xda, 0, 3, 1]);
        let frame = Frame {
            height: 3,
            width: 256,
            height_at: 17,
            rows_at_once: Some(16),
        };
        let expected = Head {
            frame: Some(frame),
            scan: bytes.len() - 3,
        };
        assert_eq!(head(&bytes), Some(expected));
        for end in 0..bytes.len() {
            assert_eq!(head(&bytes[..end]), None, "cut at {end}");
        }
    }
    #[test]
    fn only_a_sequential_picture_of_one_scan_is_read_in_part() {
        // Three components, of which the second has twice the rows.
        let header = [8, 0, 100, 0, 9, 3, 1, 0x21, 0, 2, 0x12, 1, 3, 0x11, 1];
        let head_of = |marker, num_scanned: u8| {
            let mut bytes = vec![0xff, 0xd8, 0xff, marker, 0, 17];
            bytes.extend(header);
            bytes.extend([0xff, 0xda, 0, 3, num_scanned]);
            head(&bytes).unwrap().frame.unwrap()
        };
        assert_eq!(head_of(0xc0, 3).rows_at_once, Some(16));
        assert_eq!(head_of(0xc1, 3).rows_at_once, Some(16));
        assert_eq!(head_of(0xc0, 1).rows_at_once, None);
        assert_eq!(head_of(0xc2, 3).rows_at_once, None);
        let frame = head_of(0xc0, 3);
        let rows = [1, 16, 17, 84, 100].map(|rows| frame.rows_to_decode(rows));
        assert_eq!(rows, [32, 32, 48, 100, 100]);
        assert_eq!(head_of(0xc2, 3).rows_to_decode(1), 100);
    }
}
