//! ImageNet (ILSVRC2012) from its official archives, of which nothing is unpacked, or from a tree.
//!
//! The training archive holds an archive for each class; a picture is a range of its bytes. The
//! validation archive is flat, and its labels come from the file that goes with it at Kaggle, or
//! from the devkit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use synfire_shared::dataset::{Class, LeftOut};
use synfire_shared::storage::Store;

use super::devkit;
use super::error::PackError;
use super::set::{Archive, Item, Origin, SPLITS, Set, classes, imagenet_normalise};
use super::tree;

const TRAIN_TAR: &str = "ILSVRC2012_img_train.tar";
const VAL_TAR: &str = "ILSVRC2012_img_val.tar";
/// The MD5 of the official ones (as torchvision has them).
const TRAIN_MD5: &str = "1d675b47d978889d74fa0da5fadfb00e";
const VAL_MD5: &str = "29b22e2961454d5413ddabcf34fc5622";
const VAL_CSV: &str = "LOC_val_solution.csv";
/// The file of labels has 50,000 lines and 2 million bytes.
const CSV_LIMIT_BYTES: u64 = 64 << 20;
/// More pictures than any archive of the set holds.
const MAX_ENTRIES: usize = 20_000_000;

/// ImageNet in the folder `source`: the archives `ILSVRC2012_img_train.tar` and
/// `ILSVRC2012_img_val.tar` with `LOC_val_solution.csv` or with the devkit, packed or unpacked; or
/// else a tree of folders named for the wnids below `train` and `val`. A label is the position of
/// the wnid among the sorted ones.
///
/// Unless `takes_any`, the archives must be the official ones; that is found out while they are
/// packed.
///
/// # Errors
///
/// A [`PackError`] that names the file and what to do.
pub fn find(source: &str, listed: Option<Vec<Class>>, takes_any: bool) -> Result<Set, PackError> {
    let store = Store::open(source)?;
    let has_tar = store.head(TRAIN_TAR)?.is_some();
    if !has_tar {
        return tree::find(source, "imagenet", listed);
    }
    let missing = |file: &str, remedy| PackError::Missing {
        place: store.url().into(),
        file: file.into(),
        remedy,
    };
    let Some(folder) = store.folder() else {
        let remedy = "the archives are read in place, so they must lie in a folder of this machine";
        return Err(missing(TRAIN_TAR, remedy));
    };
    let train = open(&folder.join(TRAIN_TAR))?;
    let mut found = Found::default();
    found.train(&train, &store.name(TRAIN_TAR))?;
    let val = match store.head(VAL_TAR)? {
        None => {
            return Err(missing(
                VAL_TAR,
                "put the validation archive beside the other",
            ));
        }
        Some(_) => open(&folder.join(VAL_TAR))?,
    };
    let Some(labels) = Labels::find(&store, folder, takes_any)? else {
        let remedy = "put Kaggle's file of validation labels or the devkit beside the archives, or \
                      unpack the validation pictures into val/<wnid>/ and the others into \
                      train/<wnid>/";
        let wanted = format!("{VAL_CSV}, {} or {}", devkit::ARCHIVE, devkit::FOLDER);
        return Err(missing(&wanted, remedy));
    };
    found.val(&val, &store.name(VAL_TAR), &labels)?;
    let mut classes = found.classes(store.url(), listed)?;
    for class in &mut classes {
        // Those that were listed have the names that they are to have.
        if class.name == class.key
            && let Some(words) = labels.words.get(&class.key)
        {
            class.name.clone_from(words);
        }
    }
    let archive = |file, name, md5| Archive {
        file,
        name: store.name(name),
        official_md5: (!takes_any).then_some(md5),
    };
    let train = archive(train, TRAIN_TAR, TRAIN_MD5);
    let val = archive(val, VAL_TAR, VAL_MD5);
    found.set(store.url(), classes, vec![train, val])
}

/// The classes of the validation pictures.
struct Labels {
    /// The file that says so.
    source: String,
    /// From a picture's name without ending to its wnid.
    wnids: BTreeMap<String, String>,
    /// What the wnids are called, where that is known.
    words: BTreeMap<String, String>,
}

impl Labels {
    /// Those that lie beside the archives, Kaggle's before the devkit's.
    fn find(store: &Store, folder: &Path, takes_any: bool) -> Result<Option<Self>, PackError> {
        if store.head(VAL_CSV)?.is_some() {
            let csv = store.get(VAL_CSV, CSV_LIMIT_BYTES)?;
            return Ok(Some(Self {
                source: VAL_CSV.into(),
                wnids: labels_of(&String::from_utf8_lossy(&csv)),
                words: BTreeMap::new(),
            }));
        }
        let found = [devkit::ARCHIVE, devkit::FOLDER];
        let found = found.into_iter().find(|name| folder.join(name).exists());
        let Some(source) = found else {
            return Ok(None);
        };
        let devkit = devkit::read(&store.name(source), takes_any)?;
        let name = |picture: usize| format!("ILSVRC2012_val_{picture:08}");
        let wnids = devkit.wnids.into_iter().zip(1..);
        Ok(Some(Self {
            source: source.into(),
            wnids: wnids.map(|(wnid, picture)| (name(picture), wnid)).collect(),
            words: devkit.words,
        }))
    }
}

fn open(path: &Path) -> Result<File, PackError> {
    let damaged = |error: io::Error| {
        PackError::damaged(path.display().to_string(), format!("not readable: {error}"))
    };
    File::open(path).map_err(damaged)
}

/// From a picture's name without ending to its wnid: lines `ILSVRC2012_val_00048981,n03995372 ...`.
fn labels_of(csv: &str) -> BTreeMap<String, String> {
    let labels = csv.lines().filter_map(label_of);
    labels
        .map(|(image, wnid)| (image.into(), wnid.into()))
        .collect()
}

fn label_of(line: &str) -> Option<(&str, &str)> {
    let (image, boxes) = line.split_once(',')?;
    let wnid = boxes.split_ascii_whitespace().next()?;
    is_wnid(wnid).then_some((image, wnid))
}

fn is_wnid(text: &str) -> bool {
    let digits = text.strip_prefix('n');
    digits.is_some_and(|d| d.len() == 8 && d.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Pictures with their wnids, by split.
#[derive(Default)]
struct Found {
    pictures: [Vec<(Item, String)>; 2],
    left_out: Vec<LeftOut>,
}

impl Found {
    fn train(&mut self, file: &File, place: &str) -> Result<(), PackError> {
        let len = file.metadata().map_err(|e| torn(place, &e))?.len();
        for class in entries(file, 0, len, place)? {
            let base = class.name.rsplit('/').next().unwrap_or("");
            let wnid = base.strip_suffix(".tar").filter(|wnid| is_wnid(wnid));
            let Some(wnid) = wnid else {
                self.leave_out(class.name, 0, "no archive of a class");
                continue;
            };
            let place = format!("{place}/{}", class.name);
            for entry in entries(file, class.start, class.start + class.bytes, &place)? {
                self.push(0, &entry, wnid, &format!("{wnid}/"));
            }
        }
        Ok(())
    }

    fn val(&mut self, file: &File, place: &str, labels: &Labels) -> Result<(), PackError> {
        let len = file.metadata().map_err(|e| torn(place, &e))?.len();
        let mut found = entries(file, 0, len, place)?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in found {
            let base = entry.name.rsplit('/').next().unwrap_or("");
            let stem = base.split('.').next().unwrap_or("");
            if let Some(wnid) = labels.wnids.get(stem) {
                self.push(1, &entry, wnid, "");
            } else {
                let reason = format!("no label in {}", labels.source);
                self.leave_out(entry.name, 1, &reason);
            }
        }
        Ok(())
    }

    fn push(&mut self, split: usize, entry: &Entry, wnid: &str, folder: &str) {
        let item = Item {
            name: format!("{folder}{}", entry.name),
            label: 0,
            bytes: entry.bytes,
            start: entry.start,
            archive: split,
        };
        self.pictures[split].push((item, wnid.into()));
    }

    fn leave_out(&mut self, sample: String, split: usize, reason: &str) {
        self.left_out.push(LeftOut {
            sample,
            split: SPLITS[split].into(),
            reason: reason.into(),
        });
    }

    /// The classes that were found, sorted, or those listed when these cover them.
    fn classes(&self, place: &str, listed: Option<Vec<Class>>) -> Result<Vec<Class>, PackError> {
        let all = self.pictures.iter().flatten();
        let found: BTreeSet<&str> = all.map(|(_, wnid)| wnid.as_str()).collect();
        let Some(listed) = listed else {
            return Ok(classes(&found.into_iter().collect::<Vec<_>>()));
        };
        let keys: BTreeSet<&str> = listed.iter().map(|c| c.key.as_str()).collect();
        match found.iter().find(|wnid| !keys.contains(*wnid)) {
            None => Ok(listed),
            Some(wnid) => Err(PackError::Classes {
                place: place.into(),
                reason: format!("{wnid} is in no line of --classes: add it there"),
            }),
        }
    }

    fn set(
        self,
        place: &str,
        classes: Vec<Class>,
        archives: Vec<Archive>,
    ) -> Result<Set, PackError> {
        let labels: BTreeMap<&str, u32> = classes.iter().map(|c| c.key.as_str()).zip(0..).collect();
        let splits = self.pictures.map(|pictures| -> Vec<Item> {
            let labelled = pictures.into_iter().map(|(item, wnid)| Item {
                label: labels[wnid.as_str()],
                ..item
            });
            labelled.collect()
        });
        if splits[0].is_empty() {
            return Err(PackError::Empty {
                place: place.into(),
                remedy: "the training archive holds archives named <wnid>.tar",
            });
        }
        Ok(Set {
            name: "imagenet".into(),
            classes,
            splits,
            left_out: self.left_out,
            normalise: imagenet_normalise(),
            channels: 3,
            shape: None,
            origin: Origin::Archives(archives),
        })
    }
}

/// A file in an archive, by its place in the outermost one.
struct Entry {
    name: String,
    start: u64,
    bytes: u64,
}

/// The files of the archive that lies at `begin..end` of a file.
fn entries(file: &File, begin: u64, end: u64, place: &str) -> Result<Vec<Entry>, PackError> {
    let window = Window {
        file,
        begin,
        end,
        at: begin,
    };
    let mut archive = tar::Archive::new(window);
    let mut found = Vec::new();
    let listed = archive.entries_with_seek().map_err(|e| torn(place, &e))?;
    for entry in listed {
        let entry = entry.map_err(|e| torn(place, &e))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let (start, bytes) = (begin + entry.raw_file_position(), entry.size());
        let is_inside = start.checked_add(bytes).is_some_and(|last| last <= end);
        let path = entry.path().map_err(|e| torn(place, &e))?;
        let name = path.to_string_lossy().into_owned();
        if !is_inside || found.len() >= MAX_ENTRIES {
            let reason = format!("a torn tar: {name:?} passes its end");
            return Err(PackError::damaged(place, reason));
        }
        found.push(Entry { name, start, bytes });
    }
    Ok(found)
}

fn torn(place: &str, error: &io::Error) -> PackError {
    PackError::damaged(place, format!("a torn tar: {error}"))
}

/// A part of a file as a file.
struct Window<'a> {
    file: &'a File,
    begin: u64,
    end: u64,
    at: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.at);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.file.read_at(&mut buffer[..len], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => self.begin.checked_add(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
            SeekFrom::End(offset) => self.end.checked_add_signed(offset),
        };
        let target = target.filter(|&target| target >= self.begin);
        self.at = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at - self.begin)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in [("n00000001.tar", &[7; 700][..]), ("b", b"other")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn labels_are_the_first_words_of_the_boxes() {
        let csv = "ImageId,PredictionString\na_1,n00000007 1 2 3 4 n00000008 1 2 3 4\nb,x\nc\n";
        let want = BTreeMap::from([("a_1".to_owned(), "n00000007".to_owned())]);
        assert_eq!(labels_of(csv), want);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn entries_lie_inside_their_archive_whatever_its_bytes(
            tail in prop::collection::vec(any::<u8>(), 0..1500),
            at in 0usize..3000,
            byte in any::<u8>(),
        ) {
            let path = std::env::temp_dir()
                .join(format!("synfire-imagenet-{}-entries", std::process::id()));
            let mut whole = archive();
            let at = at % whole.len();
            whole[at] = byte;
            for bytes in [&whole, &tail, &[&whole[..at], &tail].concat()] {
                std::fs::write(&path, bytes).unwrap();
                let file = File::open(&path).unwrap();
                let len = bytes.len() as u64;
                for begin in [0, len / 3] {
                    for entry in entries(&file, begin, len, "made").into_iter().flatten() {
                        prop_assert!(begin <= entry.start && entry.start + entry.bytes <= len);
                    }
                }
            }
            std::fs::remove_file(&path).unwrap();
        }
    }
}
