//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their binary and Python layouts.
//!
//! Binary: records of the label bytes, then the red, green and blue plane. Python: pickled
//! dictionaries with the same planes as rows of an array.

use synfire_shared::dataset::Normalise;

use super::cifar_names::{COARSE, FINE, TEN};
use super::error::PackError;
use super::files::Files;
use super::pickle;
use super::set::{Item, Origin, SPLITS, Set, classes};

const PLANE_BYTES: usize = 32 * 32;
const IMAGE_BYTES: usize = 3 * PLANE_BYTES;

const TEN_TRAIN: [&str; 5] = [
    "data_batch_1",
    "data_batch_2",
    "data_batch_3",
    "data_batch_4",
    "data_batch_5",
];

/// Which of the sets, and which of its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cifar {
    /// Ten classes.
    Ten,
    /// A hundred classes.
    Hundred,
    /// The twenty groups of the hundred classes.
    HundredCoarse,
}

impl Cifar {
    fn class_names(self) -> &'static [&'static str] {
        match self {
            Self::Ten => &TEN,
            Self::Hundred => &FINE,
            Self::HundredCoarse => &COARSE,
        }
    }

    /// The files of a split, without the ending of the binary layout.
    fn files(self, split: usize) -> &'static [&'static str] {
        match (self, split) {
            (Self::Ten, 0) => &TEN_TRAIN,
            (Self::Ten, _) => &["test_batch"],
            (Self::Hundred | Self::HundredCoarse, 0) => &["train"],
            (Self::Hundred | Self::HundredCoarse, _) => &["test"],
        }
    }

    /// The label bytes of a record, and which of them counts.
    fn label_bytes(self) -> (usize, usize) {
        match self {
            Self::Ten => (1, 0),
            Self::Hundred => (2, 1),
            Self::HundredCoarse => (2, 0),
        }
    }

    fn list(self) -> &'static str {
        match self {
            Self::Ten => "labels",
            Self::Hundred => "fine_labels",
            Self::HundredCoarse => "coarse_labels",
        }
    }
}

/// The set in `source`, a folder or an archive.
///
/// # Errors
///
/// A [`PackError`] that names the file, and the record where it is about one.
pub fn find(cifar: Cifar, source: &str) -> Result<Set, PackError> {
    let stems: Vec<&str> = (0..2)
        .flat_map(|split| cifar.files(split))
        .copied()
        .collect();
    let binary: Vec<String> = stems.iter().map(|stem| format!("{stem}.bin")).collect();
    let wanted: Vec<&str> = binary.iter().map(String::as_str).chain(stems).collect();
    let mut files = Files::read(source, &wanted)?;
    let is_binary = binary.iter().any(|name| files.has(name));
    let mut pixels = Vec::new();
    let mut splits = [Vec::new(), Vec::new()];
    for (split, items) in splits.iter_mut().enumerate() {
        for stem in cifar.files(split) {
            let name = format!("{stem}{}", if is_binary { ".bin" } else { "" });
            let remedy = "give the folder or the archive of all of CIFAR's files, in the binary \
                          or the python version";
            let bytes = files.take(&name, remedy)?;
            let place = files.name(&name);
            if is_binary {
                append_records(cifar, &place, &bytes, &mut pixels, items)?;
            } else {
                append_pickle(cifar, &place, &bytes, &mut pixels, items)?;
            }
        }
        for (i, item) in items.iter_mut().enumerate() {
            item.name = format!("{} {i}", SPLITS[split]);
        }
    }
    Ok(set(cifar, pixels, splits))
}

fn set(cifar: Cifar, pixels: Vec<u8>, splits: [Vec<Item>; 2]) -> Set {
    let (name, normalise) = match cifar {
        Cifar::Ten => (
            "cifar10",
            [[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]],
        ),
        Cifar::Hundred => ("cifar100", [[0.507, 0.487, 0.441], [0.267, 0.256, 0.276]]),
        Cifar::HundredCoarse => (
            "cifar100 (coarse)",
            [[0.507, 0.487, 0.441], [0.267, 0.256, 0.276]],
        ),
    };
    let [mean, std] = normalise.map(|numbers| numbers.to_vec());
    Set {
        name: name.into(),
        classes: classes(cifar.class_names()),
        splits,
        left_out: Vec::new(),
        normalise: Normalise { mean, std },
        channels: 3,
        shape: Some([32, 32]),
        origin: Origin::Pixels(pixels),
    }
}

fn append_records(
    cifar: Cifar,
    place: &str,
    bytes: &[u8],
    pixels: &mut Vec<u8>,
    items: &mut Vec<Item>,
) -> Result<(), PackError> {
    let (num_labels, which) = cifar.label_bytes();
    let record_bytes = num_labels + IMAGE_BYTES;
    if bytes.is_empty() || !bytes.len().is_multiple_of(record_bytes) {
        let len = bytes.len();
        let reason = format!("{len} bytes are no positive multiple of {record_bytes}, a record");
        return Err(PackError::damaged(place, reason));
    }
    for (record, bytes) in bytes.chunks_exact(record_bytes).enumerate() {
        let label = i64::from(bytes[which]);
        let picture = &bytes[num_labels..];
        append(cifar, (place, record), label, picture, (pixels, items))?;
    }
    Ok(())
}

fn append_pickle(
    cifar: Cifar,
    place: &str,
    bytes: &[u8],
    pixels: &mut Vec<u8>,
    items: &mut Vec<Item>,
) -> Result<(), PackError> {
    let damaged = |reason: String| PackError::damaged(place, reason);
    let batch = pickle::read(bytes).map_err(damaged)?;
    let name = cifar.list();
    let labels = batch.list(name);
    let labels = labels.ok_or_else(|| damaged(format!("it has no list {name:?}")))?;
    if batch.row_bytes != IMAGE_BYTES || labels.len() != batch.num_rows || labels.is_empty() {
        return Err(damaged(format!(
            "{} labels and {} rows of {} bytes, not of {IMAGE_BYTES}",
            labels.len(),
            batch.num_rows,
            batch.row_bytes
        )));
    }
    for (record, (&label, row)) in labels
        .iter()
        .zip(batch.data.chunks(IMAGE_BYTES))
        .enumerate()
    {
        append(cifar, (place, record), label, row, (pixels, items))?;
    }
    Ok(())
}

/// One picture; its planes become neighbouring channels.
fn append(
    cifar: Cifar,
    (place, record): (&str, usize),
    label: i64,
    planes: &[u8],
    (pixels, items): (&mut Vec<u8>, &mut Vec<Item>),
) -> Result<(), PackError> {
    let num_classes = cifar.class_names().len();
    let label = u32::try_from(label).ok();
    let label = label.filter(|&label| (label as usize) < num_classes);
    let Some(label) = label else {
        let reason = format!("record {record}: a label beyond 0 to {}", num_classes - 1);
        return Err(PackError::damaged(place, reason));
    };
    items.push(Item {
        name: String::new(),
        label,
        bytes: IMAGE_BYTES as u64,
        start: pixels.len() as u64,
        archive: 0,
    });
    let (red, rest) = planes.split_at(PLANE_BYTES);
    let (green, blue) = rest.split_at(PLANE_BYTES);
    let channels = red.iter().zip(green).zip(blue);
    pixels.extend(channels.flat_map(|((&r, &g), &b)| [r, g, b]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::super::pickle::tests::pickled;
    use super::*;

    /// A folder of its own for each test, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("synfire-pack-cifar-{}-{test}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn source(&self, name: &str) -> String {
            self.0.join(name).display().to_string()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn planes(seed: u8) -> Vec<u8> {
        (0..=250)
            .cycle()
            .skip(seed.into())
            .take(IMAGE_BYTES)
            .collect()
    }

    #[test]
    fn both_layouts_of_ten_classes_give_the_same_set() {
        let folder = Folder::new("ten");
        for (seed, name) in (1..).zip(TEN_TRAIN.iter().chain(&["test_batch"])) {
            let rows = [planes(seed), planes(seed + 100)];
            let pickle = pickled(&[("labels", &[seed, 9])], &[&rows[0], &rows[1]]);
            folder.write(&format!("python/{name}"), &pickle);
            let binary = [&[seed][..], &rows[0], &[9], &rows[1]].concat();
            folder.write(&format!("binary/{name}.bin"), &binary);
        }
        let python = find(Cifar::Ten, &folder.source("python")).unwrap();
        let binary = find(Cifar::Ten, &folder.source("binary")).unwrap();
        assert_eq!((python.splits[0].len(), python.splits[1].len()), (10, 2));
        assert_eq!(python.digest(1 << 20), binary.digest(1 << 20));
        let error = find(Cifar::Hundred, &folder.source("python")).unwrap_err();
        assert!(error.to_string().contains("has no train"), "{error}");
    }

    #[test]
    fn both_layouts_of_a_hundred_classes_give_the_same_set() {
        let folder = Folder::new("hundred");
        for (seed, name) in [(1, "train"), (2, "test")] {
            let row = planes(seed);
            let lists: [(&str, &[u8]); 2] = [("coarse_labels", &[19]), ("fine_labels", &[72])];
            folder.write(&format!("python/{name}"), &pickled(&lists, &[&row]));
            folder.write(
                &format!("binary/{name}.bin"),
                &[&[19, 72][..], &row].concat(),
            );
        }
        for (cifar, label) in [(Cifar::Hundred, 72), (Cifar::HundredCoarse, 19)] {
            let python = find(cifar, &folder.source("python")).unwrap();
            let binary = find(cifar, &folder.source("binary")).unwrap();
            assert_eq!(python.splits[1][0].label, label);
            assert_eq!(python.digest(1 << 20), binary.digest(1 << 20));
        }
    }

    #[test]
    fn python_files_that_do_not_fit_are_named() {
        let folder = Folder::new("wrong");
        let row = planes(1);
        let refused = |bytes: &[u8]| {
            folder.write("python/train", bytes);
            folder.write("python/test", bytes);
            let error = find(Cifar::Hundred, &folder.source("python")).unwrap_err();
            assert!(error.to_string().contains("python/train: "), "{error}");
            error.to_string()
        };
        let error = refused(&pickled(&[("coarse_labels", &[1])], &[&row]));
        assert!(error.contains("no list \"fine_labels\""), "{error}");
        let error = refused(&pickled(&[("fine_labels", &[1, 2])], &[&row]));
        assert!(error.contains("2 labels and 1 rows"), "{error}");
        let error = refused(&pickled(&[("fine_labels", &[100])], &[&row]));
        assert!(
            error.contains("record 0: a label beyond 0 to 99"),
            "{error}"
        );
        let error = refused(b"\x80\x02cos\nsystem\n.");
        assert!(error.contains("it would call"), "{error}");
    }
}
