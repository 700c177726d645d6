use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

// 40 x 24 pixels, made by tests/golden/pictures/make.py.
const SMALL_JPEG: &[u8] = include_bytes!("../../../../tests/golden/pictures/small.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("../../../../tests/golden/pictures/progressive.jpg");
const CMYK: &[u8] = include_bytes!("../../../../tests/golden/pictures/cmyk.jpg");
const CMYK_PLAIN: &[u8] = include_bytes!("../../../../tests/golden/pictures/cmyk_no_adobe.jpg");
const CMYK_RGB: &[u8] = include_bytes!("../../../../tests/golden/pictures/cmyk.rgb");
const SMALL_RGB: &[u8] = include_bytes!("../../../../tests/golden/pictures/small.rgb");

fn decode(bytes: &[u8]) -> Result<Picture, PictureError> {
    let mut picture = Picture::default();
    picture.decode(bytes)?;
    Ok(picture)
}

fn png(colours: ::png::ColorType, depth: ::png::BitDepth, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, 2, 1);
    encoder.set_color(colours);
    encoder.set_depth(depth);
    if colours == ::png::ColorType::Indexed {
        encoder.set_palette(&[1, 2, 3, 4, 5, 6][..]);
    }
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(data).unwrap();
    writer.finish().unwrap();
    bytes
}

/// The largest and the mean difference of two pictures.
fn distance(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let apart = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = apart.clone().map(u64::from).sum();
    (apart.max().unwrap_or(0), sum as f64 / a.len() as f64)
}

#[test]
fn jpegs_have_the_pixels_that_pillow_sees() {
    // Inverse transforms and colours are rounded otherwise, chroma is interpolated otherwise.
    let small = decode(SMALL_JPEG).unwrap();
    assert_eq!((small.width, small.height), (40, 24));
    let apart = distance(&small.pixels, SMALL_RGB);
    assert!(apart.0 <= 8 && apart.1 < 0.6, "{apart:?}");
    let apart = distance(&decode(PROGRESSIVE).unwrap().pixels, SMALL_RGB);
    assert!(apart.0 <= 8 && apart.1 < 0.6, "progressive: {apart:?}");
}

/// The picture of its first rows, for some numbers of them.
fn assert_tops_are_the_wholes(name: &str, bytes: &[u8], numbers_of_rows: &[u32]) -> u32 {
    let whole = decode(bytes).unwrap();
    let (mut picture, mut num_shortened) = (Picture::default(), 0);
    for &num_rows in numbers_of_rows {
        let num_rows = num_rows.clamp(1, whole.height);
        let mut size = None;
        let rows = |width, height| {
            size = Some((width, height));
            num_rows
        };
        picture.decode_top(bytes, rows).unwrap();
        assert_eq!(size, Some((whole.width, whole.height)), "{name}");
        assert!(
            (num_rows..=whole.height).contains(&picture.height),
            "{name}"
        );
        assert_eq!(picture.width, whole.width, "{name}");
        let row = 3 * picture.width as usize;
        assert_eq!(
            picture.pixels.len(),
            picture.height as usize * row,
            "{name}"
        );
        let needed = num_rows as usize * row;
        assert!(
            picture.pixels[..needed] == whole.pixels[..needed],
            "{name}: {num_rows}"
        );
        num_shortened += u32::from(picture.height < whole.height);
    }
    num_shortened
}

#[test]
fn the_first_rows_are_those_of_the_whole_picture() {
    // 24 rows in blocks of 16: only one more than a block at a time would shorten it.
    let every: Vec<u32> = (1..=24).collect();
    assert_eq!(assert_tops_are_the_wholes("small", SMALL_JPEG, &every), 0);
    assert_eq!(assert_tops_are_the_wholes("cmyk", CMYK, &every), 8);
    let progressive = assert_tops_are_the_wholes("progressive", PROGRESSIVE, &every);
    assert_eq!(progressive, 0, "every scan has every row");
}

#[test]
fn an_early_end_is_seen_whatever_the_rows() {
    let cut = &CMYK[..CMYK.len() - 2];
    let seen = Picture::default().decode_top(cut, |_, _| 1);
    assert!(
        matches!(seen, Err(PictureError::Truncated { .. })),
        "{seen:?}"
    );
}

#[test]
fn cmyk_is_inverted_with_and_without_adobe_as_pillow_has_it() {
    for (name, bytes) in [("Adobe", CMYK), ("plain", CMYK_PLAIN)] {
        let apart = distance(&decode(bytes).unwrap().pixels, CMYK_RGB);
        assert!(apart.0 <= 4 && apart.1 < 0.6, "{name}: {apart:?}");
    }
}

#[test]
fn pngs_of_every_colour_type_are_rgb() {
    use ::png::{BitDepth, ColorType};
    let eight = BitDepth::Eight;
    for (colours, depth, data, expected) in [
        (
            ColorType::Rgb,
            eight,
            &[1, 2, 3, 4, 5, 6][..],
            [1, 2, 3, 4, 5, 6],
        ),
        (
            ColorType::Rgba,
            eight,
            &[1, 2, 3, 0, 4, 5, 6, 9],
            [1, 2, 3, 4, 5, 6],
        ),
        (ColorType::Grayscale, eight, &[7, 8], [7, 7, 7, 8, 8, 8]),
        (
            ColorType::Grayscale,
            BitDepth::One,
            &[0x40],
            [0, 0, 0, 255, 255, 255],
        ),
        (
            ColorType::Grayscale,
            BitDepth::Sixteen,
            &[7, 0, 8, 0],
            [7, 7, 7, 8, 8, 8],
        ),
        (
            ColorType::GrayscaleAlpha,
            eight,
            &[7, 0, 8, 1],
            [7, 7, 7, 8, 8, 8],
        ),
        (ColorType::Indexed, eight, &[1, 0], [4, 5, 6, 1, 2, 3]),
    ] {
        let picture = decode(&png(colours, depth, data)).unwrap();
        assert_eq!(picture.pixels, expected, "{colours:?} {depth:?}");
    }
}

#[test]
fn grey_is_luma() {
    let mut picture = Picture {
        width: 2,
        height: 2,
        pixels: vec![255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9],
    };
    picture.to_grey();
    assert_eq!(picture.pixels, [76, 150, 29, 9]);
}

#[test]
fn what_is_no_picture_is_named() {
    let message = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
    assert!(message(b"").contains("no bytes"));
    assert!(message(b"GIF89a").contains("a GIF"));
    assert!(message(b"<html>").contains("unknown (they begin [3c, 68"));
    assert!(message(&[0xff, 0xd8, 0xff]).contains("JPEG ends early"));
    assert!(message(PNG_MAGIC).contains("PNG ends early"));
}

#[test]
fn a_picture_cut_anywhere_is_an_error() {
    let png = png(::png::ColorType::Grayscale, ::png::BitDepth::Eight, &[7, 8]);
    for end in 0..SMALL_JPEG.len() {
        assert!(decode(&SMALL_JPEG[..end]).is_err(), "JPEG cut at {end}");
    }
    // What follows the last pixel does not matter.
    let data_end = png.len() - 12 - 4;
    for end in 0..data_end {
        assert!(decode(&png[..end]).is_err(), "PNG cut at {end}");
    }
}

#[test]
fn bombs_are_refused_before_they_are_unpacked() {
    let mut jpeg = SMALL_JPEG.to_vec();
    let frame = jpeg
        .windows(4)
        .position(|w| w == [0xff, 0xc0, 0, 17])
        .unwrap();
    let mut png = png(::png::ColorType::Grayscale, ::png::BitDepth::Eight, &[7, 8]);
    for (width, height) in [(16_385, 1), (1, 65_535), (16_384, 2049), (0, 5), (5, 0)] {
        jpeg[frame + 5..][..2].copy_from_slice(&u16::to_be_bytes(height));
        jpeg[frame + 7..][..2].copy_from_slice(&u16::to_be_bytes(width));
        let error = decode(&jpeg).unwrap_err();
        assert!(matches!(error, PictureError::Size { .. }), "{error}");
        png[16..20].copy_from_slice(&u32::to_be_bytes(width.into()));
        png[20..24].copy_from_slice(&u32::to_be_bytes(height.into()));
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let mut picture = Picture::default();
        let error = picture.decode(&png).unwrap_err();
        assert_eq!(picture.pixels.capacity(), 0);
        assert!(
            width == 0 || height == 0 || matches!(error, PictureError::Size { .. }),
            "{error}"
        );
    }
}

/// The sum at the end of a PNG's chunk.
fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), bit)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_a_decoder_panic_or_exceed_the_limit(
        which in 0_usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let png = png(::png::ColorType::Rgba, ::png::BitDepth::Eight, &[9; 8]);
        let mut bytes = [SMALL_JPEG, PROGRESSIVE, CMYK, &png][which].to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        if let Ok(picture) = decode(&bytes) {
            prop_assert!(picture.pixels.len() as u64 <= 3 * LIMIT_PIXELS);
            let num_pixels = picture.width as usize * picture.height as usize;
            prop_assert_eq!(picture.pixels.len(), 3 * num_pixels);
        }
        let mut top = Picture::default();
        if top.decode_top(&bytes, |_, height| 1.max(height / 3)).is_ok() {
            let num_pixels = top.width as usize * top.height as usize;
            prop_assert_eq!(top.pixels.len(), 3 * num_pixels);
        }
    }

    #[test]
    fn no_arbitrary_bytes_make_a_decoder_panic(
        magic in 0_usize..3,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let magic = [&[][..], JPEG_MAGIC, PNG_MAGIC][magic];
        let _ = decode(&[magic, &bytes].concat());
    }
}

fn imagenet() -> PathBuf {
    let dir = std::env::var("SYNFIRE_SHARED").expect("set SYNFIRE_SHARED to the folder");
    Path::new(&dir).join("data/imagenet")
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_odd_files_do_as_expected() {
    let odd = imagenet().join("odd");
    let table = fs::read_to_string(odd.join("expected.csv")).unwrap();
    let plain = decode(&fs::read(odd.join("plain.JPEG")).unwrap()).unwrap();
    let mut num_files = 0;
    for row in table.lines().skip(1) {
        // Only the second column has commas inside quotes; sizes are counted from the end.
        let columns: Vec<&str> = row.split(',').collect();
        let (name, from_end) = (columns[0], |place: usize| columns[columns.len() - place]);
        let result = decode(&fs::read(odd.join(name)).unwrap());
        num_files += 1;
        match name {
            "gif_named.JPEG" => assert!(result.unwrap_err().to_string().contains("a GIF")),
            "truncated.JPEG" | "no_eoi.JPEG" | "header_only.JPEG" => {
                let error = result.unwrap_err();
                assert!(
                    matches!(error, PictureError::Truncated { .. }),
                    "{name}: {error}"
                );
            }
            "empty.JPEG" => assert!(matches!(result.unwrap_err(), PictureError::Empty)),
            "html_page.JPEG" => {
                assert!(matches!(result.unwrap_err(), PictureError::Format { .. }));
            }
            _ => {
                let picture = result.unwrap_or_else(|error| panic!("{name}: {error}"));
                let size = format!("{} {}", picture.width, picture.height);
                assert_eq!(size, format!("{} {}", from_end(4), from_end(3)), "{name}");
                if name.starts_with("exif_orientation") || name == "trailing_garbage.JPEG" {
                    assert_eq!(picture, plain, "{name}");
                }
                // Photographs of one scene: inverted or swapped colours are 60 levels away.
                if ["cmyk", "png", "prog", "subs", "rest"]
                    .iter()
                    .any(|n| name.starts_with(n))
                {
                    let apart = distance(&picture.pixels, &plain.pixels);
                    assert!(apart.1 < 6.0, "{name}: {apart:?}");
                }
            }
        }
    }
    assert_eq!(num_files, 34);
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_every_picture_decodes_to_its_size() {
    let table = fs::read_to_string(imagenet().join("index.csv")).unwrap();
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|h| *h == name).unwrap();
    let mut num_files = 0;
    for row in lines {
        let columns: Vec<&str> = row.split(',').collect();
        let name = columns[column("path")];
        let picture = decode(&fs::read(imagenet().join(name)).unwrap());
        let picture = picture.unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = format!("{} {}", picture.width, picture.height);
        let expected = format!("{} {}", columns[column("width")], columns[column("height")]);
        assert_eq!(size, expected, "{name}");
        num_files += 1;
    }
    assert_eq!(num_files, 927);
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_the_first_rows_are_those_of_the_whole_photograph() {
    let (mut num_files, mut num_shortened) = (0, 0);
    for class in fs::read_dir(imagenet().join("one_per_class")).unwrap() {
        for file in fs::read_dir(class.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let rows = [1, 16, 17, 97, 160, 203, 256, 311];
            num_shortened += assert_tops_are_the_wholes(&path.display().to_string(), &bytes, &rows);
            num_files += 1;
        }
    }
    assert_eq!(num_files, 377);
    assert!(num_shortened > 1000, "{num_shortened}");
}
