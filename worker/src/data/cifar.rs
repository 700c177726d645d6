//! The binary files of CIFAR-10 (Krizhevsky 2009, <https://www.cs.toronto.edu/~kriz/cifar.html>).
//!
//! A file is a row of records: one byte of label, then 1,024 red, 1,024 green and 1,024 blue bytes,
//! each plane row by row. In memory the channels of a pixel are neighbours.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::dataset::{Dataset, Normalise, Split};
use super::error::DataError;

const SIDE: usize = 32;
const CHANNELS: usize = 3;
const PLANE_BYTES: usize = SIDE * SIDE;
const IMAGE_BYTES: usize = CHANNELS * PLANE_BYTES;
const RECORD_BYTES: usize = 1 + IMAGE_BYTES;
/// All 60,000 images in one file, and some room.
const LIMIT_BYTES: u64 = 100_000 * RECORD_BYTES as u64;

const TRAIN_FILES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
const TEST_FILE: &str = "test_batch.bin";
const CLASS_NAMES: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// CIFAR-10 from a folder with `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or
/// from one file of records, which is then the training part, with an empty test part.
///
/// A folder may lack some of the five training files, not all: a warning names those missing.
///
/// # Errors
///
/// [`DataError::Missing`] when a needed file is not there, and the errors of [`read_file`].
pub fn read(path: &Path) -> Result<Dataset, DataError> {
    if !path.exists() {
        let remedy = "give the folder of data_batch_1.bin to data_batch_5.bin and test_batch.bin, \
                      or one such file";
        return Err(DataError::Missing {
            path: path.into(),
            remedy,
        });
    }
    let (train, test) = if path.is_dir() {
        (read_train(path)?, read_file(&path.join(TEST_FILE))?)
    } else {
        tracing::warn!(path = %path.display(), "one file of CIFAR-10: the test set is empty");
        (read_file(path)?, Split::default())
    };
    Ok(Dataset {
        train,
        test,
        classes: CLASS_NAMES.len(),
        class_names: CLASS_NAMES.map(String::from).to_vec(),
        height: SIDE,
        width: SIDE,
        channels: CHANNELS,
        normalise: Normalise {
            mean: vec![0.4914, 0.4822, 0.4465],
            std: vec![0.2023, 0.1994, 0.2010],
        },
        name: "cifar10".into(),
    })
}

/// The images of one file of records.
///
/// # Errors
///
/// [`DataError::Missing`], [`DataError::Read`], [`DataError::TooLarge`], [`DataError::Length`] or
/// [`DataError::Label`]; each names the file and what to do.
pub fn read_file(path: &Path) -> Result<Split, DataError> {
    let mut split = Split::default();
    append_file(path, &mut split)?;
    Ok(split)
}

fn read_train(folder: &Path) -> Result<Split, DataError> {
    let is_there = |name: &&str| folder.join(name).exists();
    let (found, missing): (Vec<&str>, Vec<&str>) = TRAIN_FILES.into_iter().partition(is_there);
    if found.is_empty() {
        let remedy = "put the unpacked files of the CIFAR-10 binary version there";
        return Err(DataError::Missing {
            path: folder.join(TRAIN_FILES[0]),
            remedy,
        });
    }
    if !missing.is_empty() {
        tracing::warn!(
            folder = %folder.display(),
            missing = missing.join(", "),
            "training on a part of CIFAR-10"
        );
    }
    let mut split = Split::default();
    for name in found {
        append_file(&folder.join(name), &mut split)?;
    }
    Ok(split)
}

fn append_file(path: &Path, split: &mut Split) -> Result<(), DataError> {
    if !path.exists() {
        let remedy = "put the unpacked file of the CIFAR-10 binary version there";
        return Err(DataError::Missing {
            path: path.into(),
            remedy,
        });
    }
    append_records(path, &read_limited(path)?, split)
}

/// The length is asked first, so a huge file costs nothing, and limited again while reading.
fn read_limited(path: &Path) -> Result<Vec<u8>, DataError> {
    let refused = |source| DataError::Read {
        path: path.into(),
        source,
    };
    let too_large = || DataError::TooLarge {
        path: path.into(),
        limit_bytes: LIMIT_BYTES,
    };
    let meta = fs::metadata(path).map_err(refused)?;
    if !meta.is_file() {
        return Err(refused(std::io::Error::other("it is no file")));
    }
    if meta.len() > LIMIT_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(refused)?;
    file.take(LIMIT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(refused)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(too_large());
    }
    Ok(bytes)
}

fn append_records(path: &Path, bytes: &[u8], split: &mut Split) -> Result<(), DataError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(RECORD_BYTES) {
        return Err(DataError::Length {
            path: path.into(),
            len_bytes: bytes.len(),
            record_bytes: RECORD_BYTES,
        });
    }
    let num_records = bytes.len() / RECORD_BYTES;
    split.labels.reserve_exact(num_records);
    split.pixels.reserve_exact(num_records * IMAGE_BYTES);
    for (record_index, record) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let (label, planes) = (record[0], &record[1..]);
        if usize::from(label) >= CLASS_NAMES.len() {
            return Err(DataError::Label {
                path: path.into(),
                record_index,
                label,
                classes: CLASS_NAMES.len(),
            });
        }
        split.labels.push(u32::from(label));
        let (red, rest) = planes.split_at(PLANE_BYTES);
        let (green, blue) = rest.split_at(PLANE_BYTES);
        let pixels = red.iter().zip(green).zip(blue);
        split
            .pixels
            .extend(pixels.flat_map(|((&r, &g), &b)| [r, g, b]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// A folder of its own for each test, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("synfire-cifar-{}-{test}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).expect("the temporary folder takes files");
            Self(path)
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, bytes).expect("the temporary folder takes files");
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A record whose red, green and blue planes differ everywhere from each other.
    fn record(label: u8) -> Vec<u8> {
        let mut bytes = vec![label];
        for plane in [0, 80, 160] {
            bytes.extend((plane..plane + 80).cycle().take(PLANE_BYTES));
        }
        bytes
    }

    fn records(labels: &[u8]) -> Vec<u8> {
        labels.iter().flat_map(|&label| record(label)).collect()
    }

    #[test]
    fn planes_become_neighbouring_channels() {
        let folder = Folder::new("planes");
        let split = read_file(&folder.write("a.bin", &records(&[7, 0]))).expect("two records");
        assert_eq!(split.labels, [7, 0]);
        assert_eq!(split.pixels.len(), 2 * IMAGE_BYTES);
        for (pixel, red) in split.image(1).chunks_exact(CHANNELS).zip((0..80).cycle()) {
            assert_eq!(pixel, [red, red + 80, red + 160]);
        }
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_numbers() {
        let folder = Folder::new("order");
        for (name, label) in TRAIN_FILES.into_iter().zip(0..5).rev() {
            folder.write(name, &records(&[label, label + 5]));
        }
        folder.write(TEST_FILE, &records(&[9]));
        let set = read(&folder.0).expect("a whole folder");
        set.assert_consistent();
        assert_eq!(set.train.labels, [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]);
        assert_eq!(set.test.labels, [9]);
    }

    #[test]
    fn some_training_files_suffice_and_none_do_not() {
        let folder = Folder::new("some");
        folder.write(TEST_FILE, &records(&[1]));
        let error = read(&folder.0).expect_err("no training file");
        assert!(matches!(error, DataError::Missing { .. }), "{error}");
        assert!(
            error.to_string().contains("data_batch_1.bin is missing"),
            "{error}"
        );
        folder.write(TRAIN_FILES[3], &records(&[4]));
        assert_eq!(
            read(&folder.0).expect("one training file").train.labels,
            [4]
        );
    }

    #[test]
    fn one_file_is_a_training_set_alone() {
        let folder = Folder::new("one");
        let set = read(&folder.write("part.bin", &records(&[2, 3]))).expect("one file");
        set.assert_consistent();
        assert_eq!((set.train.len(), set.test.len()), (2, 0));
    }

    #[test]
    fn a_missing_path_names_itself_and_what_belongs_there() {
        let folder = Folder::new("missing");
        let error = read(&folder.0.join("absent")).expect_err("nothing is there");
        assert!(
            error
                .to_string()
                .contains("absent is missing: give the folder"),
            "{error}"
        );
        folder.write(TRAIN_FILES[0], &records(&[1]));
        let error = read(&folder.0).expect_err("no test file");
        assert!(matches!(error, DataError::Missing { .. }), "{error}");
        assert!(
            error.to_string().contains("test_batch.bin is missing"),
            "{error}"
        );
    }

    #[test]
    fn an_unreadable_file_keeps_the_systems_reason() {
        let folder = Folder::new("unreadable");
        // A folder in a file's place opens but does not read.
        fs::create_dir_all(folder.0.join(TRAIN_FILES[0])).expect("the temporary folder takes it");
        let error = read(&folder.0).expect_err("a folder is no file");
        assert!(matches!(error, DataError::Read { .. }), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_cut_or_empty_file_is_a_wrong_length() {
        let folder = Folder::new("cut");
        for len in [0, 1, RECORD_BYTES - 1, RECORD_BYTES + 1] {
            let bytes = &records(&[1, 2])[..len];
            let error = read_file(&folder.write("cut.bin", bytes)).expect_err("a cut file");
            assert!(
                matches!(error, DataError::Length { len_bytes, .. } if len_bytes == len),
                "{error}"
            );
        }
    }

    #[test]
    fn a_label_beyond_nine_names_its_record() {
        let folder = Folder::new("label");
        let path = folder.write("bad.bin", &records(&[9, 0, 10]));
        let error = read_file(&path).expect_err("label 10");
        assert!(
            matches!(
                error,
                DataError::Label {
                    record_index: 2,
                    label: 10,
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            error.to_string().contains("the classes are 0 to 9"),
            "{error}"
        );
    }

    #[test]
    fn a_huge_file_is_refused_unread() {
        let folder = Folder::new("huge");
        let path = folder.write("huge.bin", &[]);
        // A hole, which takes no disk.
        let file = File::options().write(true).open(&path).expect("just made");
        file.set_len(LIMIT_BYTES + 1)
            .expect("the file system has holes");
        let error = read_file(&path).expect_err("too large");
        assert!(matches!(error, DataError::TooLarge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_whole_records_or_an_error(
            num_bytes in 0..3 * RECORD_BYTES,
            whole in any::<bool>(),
            seed in prop::collection::vec(any::<u8>(), 1..50),
        ) {
            let len = if whole { num_bytes / RECORD_BYTES * RECORD_BYTES } else { num_bytes };
            let bytes: Vec<u8> = seed.iter().copied().cycle().take(len).collect();
            let mut split = Split::default();
            let fits = len > 0
                && len.is_multiple_of(RECORD_BYTES)
                && bytes.iter().step_by(RECORD_BYTES).all(|&label| label < 10);
            let result = append_records(Path::new("made"), &bytes, &mut split);
            prop_assert_eq!(result.is_ok(), fits);
            if fits {
                prop_assert_eq!(split.len(), len / RECORD_BYTES);
                prop_assert_eq!(split.pixels.len(), split.len() * IMAGE_BYTES);
            }
        }
    }

    #[test]
    #[ignore = "needs SYNFIRE_SHARED"]
    fn needs_shared_the_real_files_begin_as_published() {
        let shared = std::env::var("SYNFIRE_SHARED").expect("set SYNFIRE_SHARED to the folder");
        let folder = Folder::new("real");
        for name in [TRAIN_FILES[0], TEST_FILE] {
            let packed = Path::new(&shared).join(format!("data/cifar10/{name}.xz"));
            let unpacked = Command::new("xz")
                .arg("-dc")
                .arg(packed)
                .output()
                .expect("xz runs");
            assert!(unpacked.status.success(), "xz unpacks {name}");
            folder.write(name, &unpacked.stdout);
        }
        let set = read(&folder.0).expect("the real files");
        assert_eq!((set.train.len(), set.test.len()), (10_000, 10_000));
        assert_eq!(set.train.labels[..10], [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]);
        // The first image is the frog whose first pixels, as RGB, many tutorials print.
        assert_eq!(set.train.image(0)[..6], [59, 62, 63, 43, 46, 45]);
    }
}
