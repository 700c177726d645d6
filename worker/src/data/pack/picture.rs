//! What a picture's bytes say that it is, whatever its name says.
//!
//! Only headers are read: whether the pixels decode shows when they are decoded.

/// The kinds of pictures that are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Jpeg,
    Png,
}

impl Kind {
    /// The ending of a file of this kind.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
        }
    }
}

const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";
/// A picture that claims more pixels is a bomb, or of no use as a sample.
const MAX_PIXELS: u64 = 178_956_970;

/// The kind of a picture whose header holds, or the reason to leave it out.
pub(super) fn check(bytes: &[u8]) -> Result<Kind, String> {
    let (kind, sides) = if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        (Kind::Jpeg, jpeg_sides(bytes)?)
    } else if bytes.starts_with(PNG_MAGIC) {
        (Kind::Png, png_sides(bytes)?)
    } else {
        return Err(unknown(bytes).into());
    };
    let [height, width] = sides;
    if height == 0 || width == 0 {
        return Err(format!("{width} x {height} pixels are no picture"));
    }
    if u64::from(height) * u64::from(width) > MAX_PIXELS {
        return Err(format!("{width} x {height} pixels, more than {MAX_PIXELS}"));
    }
    Ok(kind)
}

/// Grey or RGB pixels as a PNG; the same pixels give the same bytes.
pub(super) fn png(
    pixels: &[u8],
    [height, width]: [u32; 2],
    channels: u32,
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(match channels {
        1 => png::ColorType::Grayscale,
        _ => png::ColorType::Rgb,
    });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

fn unknown(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "no bytes",
        [b'G', b'I', b'F', b'8', ..] => "a GIF, neither JPEG nor PNG",
        [b'B', b'M', ..] => "a BMP, neither JPEG nor PNG",
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => "a TIFF, neither JPEG nor PNG",
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => "a WebP, neither JPEG nor PNG",
        _ => "neither JPEG nor PNG",
    }
}

/// Height and width from the frame header; the first scan must follow.
fn jpeg_sides(bytes: &[u8]) -> Result<[u32; 2], String> {
    let cut = || "a JPEG cut before its first scan".to_owned();
    let mut sides = None;
    let mut at = 2;
    loop {
        // A marker may be led by any number of fill bytes.
        let marker = match bytes.get(at..at + 2) {
            Some(&[0xff, 0xff]) => {
                at += 1;
                continue;
            }
            Some(&[0xff, marker]) => marker,
            Some(_) => return Err("a JPEG whose header is damaged".into()),
            None => return Err(cut()),
        };
        at += 2;
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let len = match bytes.get(at..at + 2) {
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return Err(cut()),
        };
        let segment = bytes.get(at..at + len.max(2)).ok_or_else(cut)?;
        match marker {
            // Start of frame; C4, C8 and CC share the range and are none.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                sides = Some(frame_sides(segment)?);
            }
            0xda => return sides.ok_or_else(|| "a JPEG without a frame header".into()),
            0xd9 => return Err("a JPEG without a scan".into()),
            _ => {}
        }
        at += len.max(2);
    }
}

fn frame_sides(segment: &[u8]) -> Result<[u32; 2], String> {
    let &[_, _, _, h1, h0, w1, w0, components, ..] = segment else {
        return Err("a JPEG whose frame header is cut".into());
    };
    if !matches!(components, 1 | 3 | 4) {
        return Err(format!("a JPEG of {components} components"));
    }
    let side = |high, low| u32::from(u16::from_be_bytes([high, low]));
    Ok([side(h1, h0), side(w1, w0)])
}

fn png_sides(bytes: &[u8]) -> Result<[u32; 2], String> {
    let cut = || "a PNG cut before its pixels".to_owned();
    let word = |at: usize| -> Option<u32> {
        let word = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(word.try_into().ok()?))
    };
    let mut at = PNG_MAGIC.len();
    if bytes.get(at + 4..at + 8) != Some(b"IHDR") || word(at) != Some(13) {
        return Err("a PNG without its header".into());
    }
    let sides = [
        word(at + 12).ok_or_else(cut)?,
        word(at + 8).ok_or_else(cut)?,
    ];
    loop {
        let len = word(at).ok_or_else(cut)? as usize;
        match bytes.get(at + 4..at + 8) {
            Some(b"IDAT") => return Ok(sides),
            Some(_) => {
                let next = at.checked_add(len).and_then(|next| next.checked_add(12));
                at = next.ok_or_else(cut)?;
            }
            None => return Err(cut()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The head of a JPEG up to its first scan.
    fn jpeg(height: u16, width: u16, components: u8) -> Vec<u8> {
        let mut bytes = vec![
            0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 2, 0xff, 0xff, 0xc0, 0, 11, 8,
        ];
        bytes.extend(height.to_be_bytes());
        bytes.extend(width.to_be_bytes());
        bytes.extend([components, 1, 0x11, 0, 0xff, 0xda, 0, 4, 1, 1, 9, 9]);
        bytes
    }

    #[test]
    fn content_decides_and_headers_must_hold() {
        assert_eq!(check(&jpeg(3, 4, 3)), Ok(Kind::Jpeg));
        assert_eq!(check(&png(&[7; 12], [2, 2], 3).unwrap()), Ok(Kind::Png));
        assert_eq!(check(&png(&[7; 4], [2, 2], 1).unwrap()), Ok(Kind::Png));
        let cases = [
            (jpeg(0, 4, 3), "4 x 0 pixels"),
            (jpeg(60000, 60000, 3), "more than"),
            (jpeg(3, 4, 2), "2 components"),
            (jpeg(3, 4, 3)[..20].to_vec(), "cut before its first scan"),
            (vec![0xff, 0xd8, 0xff, 0xd9, 0, 2], "without a scan"),
            (vec![0xff, 0xd8, 0xff, 0xe0, 0, 2, 5, 5], "damaged"),
            (
                png(&[7; 12], [2, 2], 3).unwrap()[..33].to_vec(),
                "a PNG cut",
            ),
            (PNG_MAGIC.to_vec(), "a PNG without"),
            (b"GIF89a".to_vec(), "a GIF"),
            (b"<html>".to_vec(), "neither JPEG nor PNG"),
            (vec![], "no bytes"),
        ];
        for (bytes, reason) in cases {
            let error = check(&bytes).expect_err(reason);
            assert!(error.contains(reason), "{error}, not {reason}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_check_panic(
            tail in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..60,
        ) {
            let _ = check(&tail);
            for head in [jpeg(3, 4, 3), png(&[7; 12], [2, 2], 3).unwrap()] {
                let head = &head[..cut.min(head.len())];
                let _ = check(&[head, &tail].concat());
            }
        }
    }
}
