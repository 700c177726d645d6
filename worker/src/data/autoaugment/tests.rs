use synfire_shared::checkpoint::Digest;

use super::*;
use crate::data::picture::Picture;

const CROP: &[u8] = include_bytes!("../../../../tests/golden/pictures/crop.png");
const MADE: &[u8] = include_bytes!("../../../../tests/golden/pictures/made.png");
const EXPECTED: &str = include_str!("../../../../tests/golden/pictures/autoaugment.csv");

const KINDS: [(&str, Kind); 14] = [
    ("ShearX", Kind::ShearX),
    ("ShearY", Kind::ShearY),
    ("TranslateX", Kind::TranslateX),
    ("TranslateY", Kind::TranslateY),
    ("Rotate", Kind::Rotate),
    ("Brightness", Kind::Brightness),
    ("Color", Kind::Color),
    ("Contrast", Kind::Contrast),
    ("Sharpness", Kind::Sharpness),
    ("Posterize", Kind::Posterize),
    ("Solarize", Kind::Solarize),
    ("AutoContrast", Kind::AutoContrast),
    ("Equalize", Kind::Equalize),
    ("Invert", Kind::Invert),
];

fn kind(name: &str) -> Kind {
    KINDS.iter().find(|(known, _)| *known == name).unwrap().1
}

fn picture(name: &str) -> (Vec<u8>, Size) {
    let bytes = match name {
        "crop.png" => CROP,
        "made.png" => MADE,
        other => panic!("{other}"),
    };
    let mut picture = Picture::default();
    picture.decode(bytes).unwrap();
    let size = Size {
        height: picture.height as usize,
        width: picture.width as usize,
    };
    (picture.pixels, size)
}

fn apply(operation: Operation, pixels: &[u8], width: usize) -> Vec<u8> {
    let size = Size {
        height: pixels.len() / 3 / width,
        width,
    };
    let mut pixels = pixels.to_vec();
    operation.apply(&mut pixels, size, &mut vec![77]);
    pixels
}

/// Every operation, magnitude and sign, and every sub-policy, in each of two pictures.
#[test]
fn pixels_are_torchvisions_on_pillow() {
    let (mut num_operations, mut num_policies) = (0, 0);
    let mut scratch = Vec::new();
    for row in EXPECTED.lines().skip(1) {
        let columns: Vec<&str> = row.split(',').collect();
        let [name, what, index, sign, digest] = columns[..] else {
            panic!("{row}");
        };
        if name == "policy" {
            continue;
        }
        let (mut pixels, size) = picture(name);
        let index: usize = index.parse().unwrap();
        if what == "sub-policy" {
            let draws = Draws {
                sub_policy: index,
                happens: [true; 2],
                negative: [false, true],
            };
            draws.apply(&mut pixels, size, &mut scratch);
            num_policies += 1;
        } else {
            let operation = Operation::new(kind(what), index, sign == "-1", size);
            operation.apply(&mut pixels, size, &mut scratch);
            num_operations += 1;
        }
        assert_eq!(Digest::of(&pixels).to_string(), digest, "{row}");
    }
    // Nine operations with a sign, two without, three without a magnitude.
    assert_eq!(num_operations, 2 * (9 * 20 + 2 * 10 + 3));
    assert_eq!(num_policies, 2 * 25);
}

#[test]
fn the_policy_has_torchvisions_kinds_and_probabilities() {
    let rows = EXPECTED.lines().filter(|row| row.starts_with("policy,"));
    let mut num_rows = 0;
    for (row, [first, second]) in rows.zip(POLICY) {
        let columns: Vec<&str> = row.split(',').collect();
        let (one, other) = columns[1].split_once(' ').unwrap();
        assert_eq!((kind(one), kind(other)), (first.kind, second.kind), "{row}");
        let expected = [columns[3], columns[4]].map(|p| p.parse::<f64>().unwrap().to_bits());
        let probabilities = [first.probability, second.probability].map(f64::to_bits);
        assert_eq!(probabilities, expected, "{row}");
        num_rows += 1;
    }
    assert_eq!(num_rows, 25);
}

#[test]
fn a_flat_channel_stays_when_stretched_or_flattened() {
    // Red is flat; green has two values, blue three; too few pixels for a step of equalisation.
    let pixels = [9, 10, 0, 9, 20, 128, 9, 20, 255];
    assert_eq!(
        apply(Operation::AutoContrast, &pixels, 3),
        [9, 0, 0, 9, 255, 128, 9, 255, 255]
    );
    assert_eq!(apply(Operation::Equalize, &pixels, 3), pixels);
    // Of 510 zeros and 2 fives the step is 2: 1/2 and 511/2, which is clipped by nothing.
    let mut pixels = vec![0; 3 * 510];
    pixels.extend([5; 6]);
    let equal = apply(Operation::Equalize, &pixels, 512);
    assert_eq!((equal[0], equal[3 * 510]), (0, 255));
}

#[test]
fn pictures_of_one_pixel_or_row_pass_every_operation() {
    for (height, width) in [(1, 1), (1, 7), (7, 1), (2, 2), (3, 3)] {
        let size = Size { height, width };
        for (name, kind) in KINDS {
            for magnitude in 0..NUM_MAGNITUDES {
                let mut pixels = vec![100; height * width * 3];
                let operation = Operation::new(kind, magnitude, true, size);
                operation.apply(&mut pixels, size, &mut Vec::new());
                assert_eq!(pixels.len(), height * width * 3, "{name}");
            }
        }
    }
}

#[test]
fn draws_are_pinned_and_depend_on_each_word() {
    // Made by this code at its first version; they hold until every run may change.
    let many = |seed, epoch, first: u32| -> Vec<Draws> {
        (first..first + 8)
            .map(|sample| Draws::new(seed, Epoch(epoch), sample))
            .collect()
    };
    let sub_policies: Vec<usize> = many(1, 0, 0).iter().map(|draws| draws.sub_policy).collect();
    assert_eq!(sub_policies, [12, 18, 4, 21, 17, 13, 12, 11]);
    assert_eq!(many(1, 0, 0), many(1, 0, 0));
    for other in [many(2, 0, 0), many(1, 1, 0), many(1, 0, 8)] {
        assert_ne!(many(1, 0, 0), other);
    }
}

/// Of 50,000 draws: each sub-policy 2000 times, within five standard errors of 44.
#[test]
fn draws_have_the_policys_distribution() {
    let (mut counts, mut happens, mut negative) = ([0; 25], [[0; 2]; 25], [[0; 2]; 25]);
    for sample in 0..50_000 {
        let draws = Draws::new(3, Epoch(1), sample);
        counts[draws.sub_policy] += 1;
        for index in 0..2 {
            happens[draws.sub_policy][index] += i32::from(draws.happens[index]);
            negative[draws.sub_policy][index] += i32::from(draws.negative[index]);
        }
    }
    for (sub_policy, steps) in POLICY.iter().enumerate() {
        let count = counts[sub_policy];
        assert!((1780..2220).contains(&count), "{sub_policy}: {count}");
        for (index, step) in steps.iter().enumerate() {
            let part =
                |counts: &[[i32; 2]; 25]| f64::from(counts[sub_policy][index]) / f64::from(count);
            // A standard error of at most 0.012; certain ones are certain.
            let error = (part(&happens) - step.probability).abs();
            let certain = [0.0_f64, 1.0].map(f64::to_bits);
            let certain = certain.contains(&step.probability.to_bits());
            assert!(
                error < if certain { 1e-9 } else { 0.06 },
                "{sub_policy}: {error}"
            );
            assert!((part(&negative) - 0.5).abs() < 0.06, "{sub_policy}");
        }
    }
}
