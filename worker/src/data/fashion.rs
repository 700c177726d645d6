//! The set built into the program: a class-balanced subset of Fashion-MNIST (Zalando Research).
//!
//! `worker/assets/README.md` has its origin and licence, and the script there its format.

use std::io::Read;

use flate2::read::GzDecoder;

use super::dataset::{Dataset, Normalise, Split};
use super::error::DataError;

static ASSET: &[u8] = include_bytes!("../../assets/fashion-mnist-subset.bin.gz");

const MAGIC: &[u8; 8] = b"SYNFSET\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 7 * 4;
/// The asset unpacks to 9 MB; a header that asks for more than this is damaged.
const LIMIT_BYTES: u64 = 64 << 20;

const CLASS_NAMES: [&str; 10] = [
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

/// The built-in set: 10,000 training and 2,000 test images of 28x28 grey pixels, 10 classes.
///
/// # Errors
///
/// [`DataError::BuiltIn`] when the bytes inside the program were damaged.
pub fn load() -> Result<Dataset, DataError> {
    decode(ASSET).map_err(|reason| DataError::BuiltIn { reason })
}

fn decode(packed: &[u8]) -> Result<Dataset, String> {
    let mut unpacked = GzDecoder::new(packed);
    let mut header = [0; HEADER_BYTES];
    unpacked
        .read_exact(&mut header)
        .map_err(|error| format!("header: {error}"))?;
    let sizes = Sizes::parse(&header)?;
    let train_labels = read_bytes(&mut unpacked, sizes.train)?;
    let test_labels = read_bytes(&mut unpacked, sizes.test)?;
    let train = split(&mut unpacked, &train_labels, sizes)?;
    let test = split(&mut unpacked, &test_labels, sizes)?;
    // Only a read at the end makes the decoder compare the checksum.
    if !at_end(&mut unpacked)? {
        return Err("bytes after the last image".into());
    }
    Ok(Dataset {
        train,
        test,
        classes: CLASS_NAMES.len(),
        class_names: CLASS_NAMES.map(String::from).to_vec(),
        height: sizes.height,
        width: sizes.width,
        channels: 1,
        // Of all 60,000 training images, not of the subset: as others quote it.
        normalise: Normalise {
            mean: vec![0.2860],
            std: vec![0.3530],
        },
        name: "fashion-mnist-subset".into(),
    })
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    train: usize,
    test: usize,
    height: usize,
    width: usize,
}

impl Sizes {
    fn parse(header: &[u8; HEADER_BYTES]) -> Result<Self, String> {
        let (magic, words) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err("the first bytes are not those of a built-in set".into());
        }
        let mut words = words.chunks_exact(4).map(|word| {
            u32::from_le_bytes(word.try_into().expect("chunks_exact(4) gives four bytes"))
        });
        let mut next = || words.next().expect("the header has seven words");
        let [version, train, test, classes, height, width, channels] =
            std::array::from_fn(|_| next());
        if version != VERSION || classes as usize != CLASS_NAMES.len() || channels != 1 {
            return Err(format!(
                "version {version}, {classes} classes, {channels} channels"
            ));
        }
        let total = (u64::from(train) + u64::from(test))
            .checked_mul(u64::from(height) * u64::from(width) + 1)
            .filter(|&total| total <= LIMIT_BYTES);
        if total.is_none() {
            return Err(format!(
                "{train} + {test} images of {height}x{width} exceed the limit"
            ));
        }
        let [train, test, height, width] = [train, test, height, width].map(|size| size as usize);
        Ok(Self {
            train,
            test,
            height,
            width,
        })
    }
}

fn split(unpacked: &mut impl Read, labels: &[u8], sizes: Sizes) -> Result<Split, String> {
    if let Some(label) = labels
        .iter()
        .find(|&&label| usize::from(label) >= CLASS_NAMES.len())
    {
        return Err(format!("label {label} of {} classes", CLASS_NAMES.len()));
    }
    let pixels = read_bytes(unpacked, labels.len() * sizes.height * sizes.width)?;
    Ok(Split {
        pixels,
        labels: labels.iter().map(|&label| u32::from(label)).collect(),
    })
}

/// Grows with what is really there, so a header that lies costs no memory.
fn read_bytes(unpacked: &mut impl Read, len: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = unpacked.take(len as u64).read_to_end(&mut bytes);
    read.map_err(|error| format!("unpacking: {error}"))?;
    if bytes.len() == len {
        Ok(bytes)
    } else {
        Err(format!("{} bytes where {len} are announced", bytes.len()))
    }
}

fn at_end(unpacked: &mut impl Read) -> Result<bool, String> {
    let read = unpacked
        .read(&mut [0])
        .map_err(|error| format!("unpacking: {error}"))?;
    Ok(read == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("a Vec takes every byte");
        encoder.finish().expect("a Vec takes every byte")
    }

    fn header(words: [u32; 7]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    /// Two training images and one test image of 1x2 pixels.
    fn small() -> Vec<u8> {
        let mut bytes = header([1, 2, 1, 10, 1, 2, 1]);
        bytes.extend([3, 9, 0]);
        bytes.extend([10, 11, 12, 13, 14, 15]);
        bytes
    }

    fn fault(bytes: &[u8]) -> String {
        decode(bytes).expect_err("the bytes are faulty")
    }

    #[test]
    fn the_built_in_set_has_the_announced_counts_and_balance() {
        let set = load().expect("the asset decodes");
        set.assert_consistent();
        assert_eq!(
            (set.height, set.width, set.channels, set.classes),
            (28, 28, 1, 10)
        );
        for (split, per_class) in [(&set.train, 1000), (&set.test, 200)] {
            for class in 0..10 {
                let found = split.labels.iter().filter(|&&label| label == class).count();
                assert_eq!(found, per_class, "class {class}");
            }
        }
    }

    /// Pinned from the originals by a separate reading of them.
    #[test]
    fn the_built_in_set_is_the_start_of_the_originals() {
        let set = load().expect("the asset decodes");
        assert_eq!(set.train.labels[..10], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]);
        assert_eq!(set.test.labels[..10], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]);
        let sum = |split: &Split| {
            split
                .pixels
                .iter()
                .map(|&pixel| u64::from(pixel))
                .sum::<u64>()
        };
        assert_eq!(
            (sum(&set.train), sum(&set.test)),
            (573_133_949, 114_072_606)
        );
        assert_eq!(set.train.image(0)[3 * 28 + 12..][..6], [1, 0, 0, 13, 73, 0]);
    }

    #[test]
    fn images_and_labels_go_to_their_parts() {
        let set = decode(&pack(&small())).expect("the small set is well formed");
        assert_eq!(
            set.train,
            Split {
                pixels: vec![10, 11, 12, 13],
                labels: vec![3, 9]
            }
        );
        assert_eq!(
            set.test,
            Split {
                pixels: vec![14, 15],
                labels: vec![0]
            }
        );
    }

    #[test]
    fn every_damage_is_named() {
        let good = small();
        let mut magic = good.clone();
        magic[0] = b'X';
        assert!(fault(&pack(&magic)).contains("first bytes"));
        assert!(fault(&pack(&header([2, 2, 1, 10, 1, 2, 1]))).contains("version 2"));
        assert!(fault(&pack(&header([1, 2, 1, 9, 1, 2, 1]))).contains("9 classes"));
        let mut label = good.clone();
        label[HEADER_BYTES] = 10;
        assert!(fault(&pack(&label)).contains("label 10"));
        assert!(fault(&pack(&good[..good.len() - 1])).contains("1 bytes where 2"));
        assert!(fault(&pack(&[&good[..], &[0]].concat())).contains("after the last image"));
        assert!(fault(b"not gzip").contains("header"));
        let mut checksum = pack(&good);
        let place = checksum.len() - 8;
        checksum[place] ^= 1;
        assert!(fault(&checksum).contains("unpacking"));
    }

    #[test]
    fn announced_sizes_beyond_the_limit_are_refused_before_reading() {
        for words in [
            [1, u32::MAX, u32::MAX, 10, u32::MAX, u32::MAX, 1],
            [1, 1, 0, 10, 8192, 8192, 1],
        ] {
            assert!(fault(&pack(&header(words))).contains("exceed the limit"));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            let _ = decode(&pack(&bytes));
            let _ = decode(&pack(&[&small()[..MAGIC.len()], &bytes].concat()));
        }
    }

    #[test]
    fn a_damaged_program_says_what_to_do() {
        let error = DataError::BuiltIn { reason: fault(b"") };
        assert!(error.to_string().contains("install synfire again"));
    }
}
