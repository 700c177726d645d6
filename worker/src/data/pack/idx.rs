//! The idx files of MNIST and its kin (Yann `LeCun` and others,
//! <http://yann.lecun.com/exdb/mnist/>), here those of Fashion-MNIST.
//!
//! A big-endian header: 0, 0, the type (8 = bytes), the number of dimensions, then each dimension;
//! the values follow.

use synfire_shared::dataset::Normalise;

use super::error::PackError;
use super::files::Files;
use super::set::{Item, Origin, SPLITS, Set, classes};

const FASHION: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];
/// Pictures and labels of each split.
const FILES: [[&str; 2]; 2] = [
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"],
    ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
];
/// The most rows or columns of a picture.
const MAX_SIDE: usize = 4096;

/// Fashion-MNIST in `source`, a folder or an archive of the four files, packed or not.
///
/// # Errors
///
/// A [`PackError`] that names the file, and the record where it is about one.
pub fn find_fashion(source: &str) -> Result<Set, PackError> {
    let mut files = Files::read(source, &FILES.concat())?;
    let mut pixels = Vec::new();
    let mut splits = [Vec::new(), Vec::new()];
    let mut shape = None;
    for (split, items) in splits.iter_mut().enumerate() {
        let [pictures, labels] = FILES[split].map(|name| -> Result<_, PackError> {
            let remedy = "give the folder of the four idx files of Fashion-MNIST, as they are or \
                          unpacked";
            Ok((files.take(name, remedy)?, files.name(name)))
        });
        let ((pictures, pictures_name), (labels, labels_name)) = (pictures?, labels?);
        let ([num, height, width], values) =
            read::<3>(&pictures).map_err(|reason| PackError::damaged(&pictures_name, reason))?;
        let ([num_labels], labels) =
            read::<1>(&labels).map_err(|reason| PackError::damaged(&labels_name, reason))?;
        let damaged = |reason| Err(PackError::damaged(&pictures_name, reason));
        if num != num_labels {
            return damaged(format!("{num} pictures, but {num_labels} labels"));
        }
        if !(1..=MAX_SIDE).contains(&height) || !(1..=MAX_SIDE).contains(&width) || num == 0 {
            return damaged(format!("{num} pictures of {width} x {height} pixels"));
        }
        if *shape.get_or_insert([height, width]) != [height, width] {
            return damaged(format!(
                "{width} x {height} pixels, unlike the training part"
            ));
        }
        for (i, &label) in labels.iter().enumerate() {
            if usize::from(label) >= FASHION.len() {
                let reason = format!("record {i}: label {label}, beyond 0 to 9");
                return Err(PackError::damaged(labels_name, reason));
            }
            items.push(Item {
                name: format!("{} {i}", SPLITS[split]),
                label: label.into(),
                bytes: (height * width) as u64,
                start: (pixels.len() + i * height * width) as u64,
                archive: 0,
            });
        }
        pixels.extend_from_slice(values);
    }
    let side = |side| u32::try_from(side).unwrap_or(u32::MAX);
    Ok(Set {
        name: "fashion-mnist".into(),
        classes: classes(&FASHION),
        splits,
        left_out: Vec::new(),
        normalise: Normalise {
            mean: vec![0.2860],
            std: vec![0.3530],
        },
        channels: 1,
        shape: shape.map(|[height, width]| [side(height), side(width)]),
        origin: Origin::Pixels(pixels),
    })
}

/// The dimensions and the values of a file of bytes in `N` dimensions.
fn read<const N: usize>(bytes: &[u8]) -> Result<([usize; N], &[u8]), String> {
    let number = u8::try_from(N).expect("one or three dimensions");
    if bytes.get(..4) != Some(&[0, 0, 8, number]) {
        return Err(format!("no idx file of bytes in {N} dimensions"));
    }
    let mut dimensions = [0; N];
    for (i, dimension) in dimensions.iter_mut().enumerate() {
        let word = bytes.get(4 + 4 * i..8 + 4 * i);
        let word = word.ok_or("its header is cut")?;
        *dimension = u32::from_be_bytes(word.try_into().expect("four bytes")) as usize;
    }
    let values = &bytes[4 + 4 * N..];
    let num = dimensions
        .iter()
        .try_fold(1usize, |product, &d| product.checked_mul(d));
    if num != Some(values.len()) {
        let len = values.len();
        return Err(format!("{len} values, but its header says {dimensions:?}"));
    }
    Ok((dimensions, values))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_must_fit_its_values() {
        assert_eq!(
            read::<1>(&[0, 0, 8, 1, 0, 0, 0, 2, 7, 9]),
            Ok(([2], &[7, 9][..]))
        );
        for bytes in [
            &[0, 0, 8, 1, 0, 0, 0, 3, 7, 9][..],
            &[0, 0, 8, 1, 0, 0, 0],
            &[0, 0, 9, 1, 0, 0, 0, 2, 7, 9],
            &[31, 139],
            &[],
        ] {
            assert!(read::<1>(bytes).is_err());
        }
        let huge = [&[0, 0, 8, 3][..], &[255; 12], &[1; 9]].concat();
        assert!(read::<3>(&huge).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = read::<1>(&bytes);
            let _ = read::<3>(&[&[0, 0, 8, 3], &bytes[..]].concat());
        }
    }
}
