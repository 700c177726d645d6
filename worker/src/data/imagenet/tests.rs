use std::path::Path;

use proptest::prelude::*;

use super::*;

const MADE: &[u8] = include_bytes!("../../../../tests/golden/pictures/made.png");
const CENTRE: &[u8] = include_bytes!("../../../../tests/golden/pictures/centre.png");
const CROP: &[u8] = include_bytes!("../../../../tests/golden/pictures/crop.png");
const CENTRE_MEANS: &str = include_str!("../../../../tests/golden/pictures/centre_means.csv");

fn decoded(bytes: &[u8]) -> Picture {
    let mut picture = Picture::default();
    picture.decode(bytes).unwrap();
    picture
}

fn transform() -> Transform {
    // Of mean 0 and deviation 1, so that values are bytes / 255.
    transform_with(Options::default())
}

fn transform_with(options: Options) -> Transform {
    let normalise = Normalise {
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    };
    Transform::new(&normalise, options)
}

fn values() -> Vec<f32> {
    vec![f32::NAN; (SIDE * SIDE * 3) as usize]
}

fn assert_pixels_are_pillows(transform: &Transform, expected: &[u8]) {
    let pixels = transform.out.iter();
    let expected = decoded(expected);
    let apart = pixels.zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b));
    let (mut largest, mut sum, mut num) = (0, 0, 0);
    for apart in apart {
        largest = largest.max(apart);
        sum += u32::from(apart);
        num += 1;
    }
    assert_eq!(num, SIDE * SIDE * 3);
    // One level, in a sixth of the places: the two passes round between them, in another order.
    assert!(largest <= 1, "{largest} levels");
    assert!(f64::from(sum) / f64::from(num) < 0.2, "{sum} of {num}");
}

#[test]
fn the_centre_is_pillows() {
    let mut transform = transform();
    transform.test(MADE, &mut values()).unwrap();
    assert_pixels_are_pillows(&transform, CENTRE);
}

#[test]
fn a_crop_is_pillows_and_uses_no_pixel_outside() {
    let mut transform = transform();
    transform.picture = decoded(MADE);
    transform.resize_crop(Crop {
        top: 17,
        left: 31,
        height: 142,
        width: 201,
    });
    assert_pixels_are_pillows(&transform, CROP);
}

#[test]
fn a_training_picture_is_its_crop_flipped_and_normalised() {
    let normalise = normalise();
    let mut transform = Transform::new(&normalise, Options::default());
    let mut flips = [false; 2];
    for sample in 0..8 {
        let mut out = values();
        transform
            .train(MADE, (1, Epoch(0), sample), &mut out)
            .unwrap();
        let draws = Draws::new(301, 203, 1, Epoch(0), sample);
        flips[usize::from(draws.flip)] = true;
        transform.resize_crop(draws.crop);
        let (y, x, c) = (100, 7, 2);
        let from = if draws.flip { SIDE as usize - 1 - x } else { x };
        let byte = transform.out[(y * SIDE as usize + from) * 3 + c];
        let value = (f32::from(byte) / 255.0 - 0.406) / 0.225;
        assert_eq!(
            out[(y * SIDE as usize + x) * 3 + c].to_bits(),
            value.to_bits()
        );
        assert!(out.iter().all(|value| value.is_finite()));
    }
    assert_eq!(flips, [true; 2]);
}

#[test]
fn options_choose_the_side_and_whether_to_flip() {
    let options = Options {
        side: 64,
        flip: false,
        ..Options::default()
    };
    assert_eq!(options.short_side(), 73);
    assert_eq!(centre(500, 375, options), (97.0, 16.0), "16.5, to even");
    let (mut plain, mut small) = (transform(), transform_with(options));
    let mut out = vec![f32::NAN; 64 * 64 * 3];
    let sample = (0..20)
        .find(|&sample| Draws::new(301, 203, 1, Epoch(0), sample).flip)
        .unwrap();
    small.train(MADE, (1, Epoch(0), sample), &mut out).unwrap();
    // The crop is the one that is flipped elsewhere.
    plain.picture = decoded(MADE);
    let crop = Draws::new(301, 203, 1, Epoch(0), sample).crop;
    plain.resize_crop(crop);
    let left: f32 = out.chunks_exact(192).flat_map(|row| &row[..96]).sum();
    let rows = plain.out.chunks_exact(3 * 224);
    let expected: f32 = rows
        .flat_map(|row| &row[..336])
        .map(|&b| f32::from(b) / 255.0)
        .sum();
    let (left, expected) = (left / (64.0 * 96.0), expected / (224.0 * 336.0));
    assert!((left - expected).abs() < 0.005, "{left} {expected}");
    out.fill(f32::NAN);
    small.test(MADE, &mut out).unwrap();
    assert!(out.iter().all(|value| (0.0..=1.0).contains(value)));
}

#[test]
fn auto_augment_follows_the_flip_and_leaves_the_crop() {
    let mut plain = transform();
    let mut automatic = transform_with(Options {
        auto_augment: true,
        ..Options::default()
    });
    let side = SIDE as usize;
    let (mut num_flipped, mut num_changed) = (0, 0);
    for sample in 0..12 {
        let (mut expected, mut out) = (values(), values());
        plain
            .train(MADE, (1, Epoch(0), sample), &mut expected)
            .unwrap();
        automatic
            .train(MADE, (1, Epoch(0), sample), &mut out)
            .unwrap();
        let mut bytes: Vec<u8> = expected
            .iter()
            .map(|v| rounded(f64::from(v * 255.0)))
            .map(|byte| u8::try_from(byte).unwrap())
            .collect();
        let size = Size {
            height: side,
            width: side,
        };
        let draws = autoaugment::Draws::new(1, Epoch(0), sample);
        draws.apply(&mut bytes, size, &mut Vec::new());
        num_flipped += u32::from(Draws::new(301, 203, 1, Epoch(0), sample).flip);
        num_changed += u32::from(out != expected);
        let bytes = bytes.iter().map(|&byte| f32::from(byte) / 255.0);
        assert!(
            out.iter()
                .zip(bytes)
                .all(|(a, b)| a.to_bits() == b.to_bits())
        );
    }
    assert!(
        num_flipped > 2 && num_changed > 6,
        "{num_flipped} {num_changed}"
    );
}

#[test]
fn bytes_are_what_the_values_are_made_of() {
    let normalise = normalise();
    let tables = normalise.tables();
    for auto_augment in [false, true] {
        let options = Options {
            auto_augment,
            ..Options::default()
        };
        let mut transform = Transform::new(&normalise, options);
        let mut num_flipped = 0;
        for sample in 0..9 {
            let (mut expected, mut bytes) = (values(), vec![0; values().len()]);
            let (key, mut draws) = ((1, Epoch(0), sample), None);
            let out = Out::Bytes {
                bytes_hwc: &mut bytes,
                draws: &mut draws,
            };
            if sample == 8 {
                transform.test(MADE, out).unwrap();
                transform.test(MADE, &mut expected).unwrap();
            } else {
                num_flipped += u32::from(Draws::new(301, 203, 1, Epoch(0), sample).flip);
                transform.train(MADE, key, out).unwrap();
                transform.train(MADE, key, &mut expected).unwrap();
            }
            assert_eq!(draws, Some(augment::Draws::default()));
            let channels = [0, 1, 2].into_iter().cycle();
            let made = bytes.iter().zip(channels);
            let made = made.map(|(&byte, channel)| tables[channel][usize::from(byte)]);
            let same = made.zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "sample {sample}, AutoAugment {auto_augment}");
        }
        assert!((1..8).contains(&num_flipped), "{num_flipped}");
    }
}

#[test]
fn draws_are_pinned_and_depend_on_each_word() {
    // Made by this code at its first version; they hold until every run may change.
    let draws = Draws::new(500, 375, 1, Epoch(0), 0);
    let crop = Crop {
        top: 95,
        left: 68,
        height: 220,
        width: 257,
    };
    assert_eq!(draws, Draws { crop, flip: true });
    for other in [(2, 0, 0), (1, 1, 0), (1, 0, 1)] {
        let other = Draws::new(500, 375, other.0, Epoch(other.1), other.2);
        assert_ne!(other, draws);
    }
}

#[test]
fn where_no_crop_fits_the_central_one_is_taken() {
    // Of a row no try fits: 8 % of 1600 x 1 pixels are 128, and 9 pixels or more high.
    let draws = Draws::new(1600, 1, 1, Epoch(0), 0);
    let crop = |top, left, height, width| Crop {
        top,
        left,
        height,
        width,
    };
    assert_eq!(draws.crop, crop(0, 799, 1, 1));
    assert_eq!(
        Draws::new(3, 3000, 1, Epoch(0), 0).crop,
        crop(1498, 0, 4, 3)
    );
    assert_eq!(Draws::new(1, 1, 1, Epoch(0), 0).crop, crop(0, 0, 1, 1));
}

#[test]
fn crops_have_the_moments_of_their_rule() {
    // Of 4000 draws in a square of 1000: area uniform in 0.08..1, of which few do not fit.
    let (mut area, mut wide, mut flips, mut tries) = (0.0, 0, 0, 0);
    for sample in 0..4000 {
        let draws = Draws::new(1000, 1000, 5, Epoch(2), sample);
        let (h, w) = (f64::from(draws.crop.height), f64::from(draws.crop.width));
        assert!((0.08 - 1e-3..=1.0).contains(&(h * w / 1e6)), "{draws:?}");
        assert!((0.74..1.35).contains(&(w / h)), "{draws:?}");
        area += h * w / 1e6;
        wide += u32::from(w > h);
        flips += u32::from(draws.flip);
        tries += 1;
    }
    let share = |count| f64::from(count) / f64::from(tries);
    // Large areas fit more seldom, so the mean is below 0.54.
    assert!((0.46..0.54).contains(&(area / 4000.0)), "area {area}");
    assert!((0.46..0.54).contains(&share(wide)), "wide {wide}");
    assert!((0.46..0.54).contains(&share(flips)), "flips {flips}");
}

#[test]
fn centres_are_torchvisions() {
    assert_eq!(
        centre(500, 375, Options::default()),
        (341.0, 58.0),
        "(341 - 224) / 2 = 58.5, to even"
    );
    assert_eq!(centre(375, 500, Options::default()), (256.0, 16.0));
    assert_eq!(
        centre(331, 247, Options::default()),
        (343.0, 60.0),
        "59.5, to even"
    );
    assert_eq!(centre(1600, 40, Options::default()), (10_240.0, 5008.0));
}

#[test]
fn pictures_of_one_row_or_pixel_transform() {
    use ::png::{BitDepth, ColorType, Encoder};
    for (width, height) in [(1, 1), (1, 300), (16_384, 1), (224, 224), (256, 256)] {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, width, height);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Eight);
        let mut writer = encoder.write_header().unwrap();
        let data = vec![51; (width * height) as usize];
        writer.write_image_data(&data).unwrap();
        writer.finish().unwrap();
        let (mut transform, mut out) = (transform(), values());
        let is_grey = |out: &[f32]| out.iter().all(|&value| (value - 0.2).abs() < 1e-6);
        transform.test(&bytes, &mut out).unwrap();
        assert!(is_grey(&out), "centre of {width} x {height}");
        out.fill(f32::NAN);
        transform.train(&bytes, (1, Epoch(0), 0), &mut out).unwrap();
        assert!(is_grey(&out), "crop of {width} x {height}");
    }
}

proptest! {
    #[test]
    fn a_random_crop_lies_inside_its_picture(
        width in 1_u32..16_384,
        height in 1_u32..16_384,
        small in 1_u32..8,
        sample: u32,
    ) {
        for (width, height) in [(width, height), (small, height), (width, small)] {
            let crop = Draws::new(width, height, 1, Epoch(0), sample).crop;
            prop_assert!(crop.width >= 1 && crop.left + crop.width <= width);
            prop_assert!(crop.height >= 1 && crop.top + crop.height <= height);
        }
    }
}

/// What is decoded of a picture must not be seen in what is made of it.
fn assert_rows_below_are_not_missed(name: &str, bytes: &[u8]) {
    let (mut short, mut whole) = (transform(), transform());
    let (mut out, mut expected) = (values(), values());
    for sample in 0..4 {
        short.train(bytes, (1, Epoch(0), sample), &mut out).unwrap();
        whole.picture.decode(bytes).unwrap();
        let Picture { width, height, .. } = whole.picture;
        let draws = Draws::new(width, height, 1, Epoch(0), sample);
        whole.resize_crop(draws.crop);
        whole.write(draws.flip, &mut expected);
        assert!(out == expected, "{name}: crop {sample}");
    }
    short.test(bytes, &mut out).unwrap();
    let Picture { width, height, .. } = whole.picture;
    whole.resize_centre(Centre::new(width, height, whole.options));
    whole.write(false, &mut expected);
    assert!(out == expected, "{name}: centre");
}

#[test]
fn rows_below_the_crop_are_not_missed() {
    assert_rows_below_are_not_missed(
        "small",
        include_bytes!("../../../../tests/golden/pictures/small.jpg"),
    );
    assert_rows_below_are_not_missed(
        "cmyk",
        include_bytes!("../../../../tests/golden/pictures/cmyk.jpg"),
    );
    assert_rows_below_are_not_missed("made", MADE);
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_rows_below_the_crop_of_a_photograph_are_not_missed() {
    let shared = std::env::var("SYNFIRE_SHARED").expect("set SYNFIRE_SHARED to the folder");
    let root = Path::new(&shared).join("data/imagenet/one_per_class");
    let mut num_files = 0;
    for class in std::fs::read_dir(root).unwrap() {
        for file in std::fs::read_dir(class.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert_rows_below_are_not_missed(&path.display().to_string(), &bytes);
            num_files += 1;
        }
    }
    assert_eq!(num_files, 377);
}

#[test]
#[ignore = "needs SYNFIRE_SHARED"]
fn needs_shared_centres_of_photographs_are_pillows() {
    let shared = std::env::var("SYNFIRE_SHARED").expect("set SYNFIRE_SHARED to the folder");
    let root = Path::new(&shared).join("data/imagenet/one_per_class");
    let (mut transform, mut num_files) = (transform(), 0);
    for row in CENTRE_MEANS.lines().skip(1) {
        let (name, means) = row.split_once(',').unwrap();
        let mut out = values();
        transform
            .test(&std::fs::read(root.join(name)).unwrap(), &mut out)
            .unwrap();
        for (place, mean) in means.split(',').enumerate() {
            let (block, c) = (place / 3, place % 3);
            let (top, left) = (block / 7 * 32, block % 7 * 32);
            let rows = (top..top + 32).flat_map(|y| (left..left + 32).map(move |x| y * 224 + x));
            let sum: f32 = rows.map(|pixel| 255.0 * out[pixel * 3 + c]).sum();
            let mean: f32 = mean.parse().unwrap();
            // Decoders differ by 1 level in many pixels, by more where chroma is interpolated.
            assert!(
                (sum / 1024.0 - mean).abs() < 1.5,
                "{name}: {place}: {sum} {mean}"
            );
        }
        num_files += 1;
    }
    assert_eq!(num_files, 13);
}
