//! A data set found in its source: which samples there are and how to get at their bytes.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use synfire_shared::dataset::{Class, LeftOut, Normalise};
use synfire_shared::storage::Store;

use super::error::PackError;
use super::files::md5_of;
use super::picture::{self, Kind};

/// The splits of a packed set, in the order of `Set::splits`.
pub(super) const SPLITS: [&str; 2] = ["train", "test"];
/// The most bytes of a picture's file.
const PICTURE_LIMIT_BYTES: u64 = 64 << 20;

/// A data set to be packed.
#[derive(Debug)]
pub struct Set {
    /// Its name in reports.
    pub name: String,
    /// Its classes; a label is a position here.
    pub classes: Vec<Class>,
    /// The samples to learn from, and those to be judged on.
    pub splits: [Vec<Item>; 2],
    /// What was seen to be no sample already.
    pub left_out: Vec<LeftOut>,
    /// How bytes become numbers.
    pub normalise: Normalise,
    /// C, the channels of a pixel.
    pub channels: u32,
    /// H and W of every picture, or `None` for any size.
    pub shape: Option<[u32; 2]>,
    /// Where the samples' bytes are.
    pub(super) origin: Origin,
}

/// A sample, not read yet.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its path or number in the source.
    pub name: String,
    /// Its class.
    pub label: u32,
    /// The bytes that it takes in the source.
    pub bytes: u64,
    /// Where these begin, in pixels or in an archive; 0 for a file of its own.
    pub(super) start: u64,
    /// Which archive it is in.
    pub(super) archive: usize,
}

/// Where samples come from.
#[derive(Debug)]
pub(super) enum Origin {
    /// Pixels in memory, their channels neighbours, all pictures of one shape.
    Pixels(Vec<u8>),
    /// A file for each sample.
    Objects(Store),
    /// Ranges of files.
    Archives(Vec<Archive>),
}

/// A file of which samples are ranges.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) file: File,
    /// What it is called in messages.
    pub(super) name: String,
    /// The MD5 that it must have, where it must be the official one.
    pub(super) official_md5: Option<&'static str>,
}

impl Archive {
    /// Reads all of it, if it must be the official one, and compares.
    fn check(&self) -> Result<(), PackError> {
        let Some(expected) = self.official_md5 else {
            return Ok(());
        };
        let found = md5_of(&self.file);
        let found = found.map_err(|e| PackError::damaged(&self.name, e.to_string()))?;
        if found == expected {
            return Ok(());
        }
        Err(PackError::Digest {
            file: self.name.clone(),
            found,
            expected,
        })
    }
}

impl Set {
    /// The number of samples found, those left out included.
    pub fn num_found(&self) -> u64 {
        let items: usize = self.splits.iter().map(Vec::len).sum();
        (items + self.left_out.len()) as u64
    }

    /// Whether the archives that must be the official ones are: the names of these. It reads them
    /// from end to end.
    pub(super) fn check_archives(&self) -> Result<Vec<String>, PackError> {
        let Origin::Archives(archives) = &self.origin else {
            return Ok(Vec::new());
        };
        archives.iter().try_for_each(Archive::check)?;
        let official = archives.iter().filter(|a| a.official_md5.is_some());
        Ok(official.map(|archive| archive.name.clone()).collect())
    }

    /// Tells this set, cut in this way, from others.
    pub(super) fn digest(&self, shard_bytes: u64) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(&format!(
            "pack 1 {shard_bytes} {:?} {:?}",
            self.shape, self.channels
        ));
        add(&self.name);
        add(&format!("{:?}", self.classes));
        for (split, items) in SPLITS.iter().zip(&self.splits) {
            add(split);
            for item in items {
                add(&item.name);
                add(&format!("{} {} {}", item.label, item.bytes, item.start));
            }
        }
        if let Origin::Pixels(pixels) = &self.origin {
            hash.update(pixels);
        }
        synfire_shared::dataset::hex(&hash.finalize())
    }

    /// The picture of a sample, or why it is none.
    pub(super) fn picture(&self, item: &Item) -> Result<Result<(Bytes, Kind), String>, PackError> {
        if item.bytes > PICTURE_LIMIT_BYTES {
            let mib = PICTURE_LIMIT_BYTES >> 20;
            return Ok(Err(format!("more than {mib} MiB, the limit of a picture")));
        }
        let bytes = match &self.origin {
            Origin::Pixels(pixels) => {
                let png = self.png(pixels, item)?;
                return Ok(Ok((png.into(), Kind::Png)));
            }
            Origin::Objects(store) => store.get(&item.name, PICTURE_LIMIT_BYTES)?,
            Origin::Archives(files) => {
                let len = usize::try_from(item.bytes).expect("below the limit of a picture");
                let mut bytes = vec![0; len];
                let read = files[item.archive]
                    .file
                    .read_exact_at(&mut bytes, item.start);
                read.map_err(|error| PackError::damaged(&item.name, error.to_string()))?;
                bytes.into()
            }
        };
        Ok(picture::check(&bytes).map(|kind| (bytes, kind)))
    }

    fn png(&self, pixels: &[u8], item: &Item) -> Result<Vec<u8>, PackError> {
        let [height, width] = self.shape.expect("pictures in memory have one shape");
        let range = usize::try_from(item.start).expect("a position in memory")
            ..usize::try_from(item.start + item.bytes).expect("a position in memory");
        picture::png(&pixels[range], [height, width], self.channels).map_err(|source| {
            PackError::Encode {
                sample: item.name.clone(),
                source,
            }
        })
    }
}

/// Classes whose keys are their names.
pub(super) fn classes<S: AsRef<str>>(names: &[S]) -> Vec<Class> {
    let class = |name: &S| Class {
        key: name.as_ref().into(),
        name: name.as_ref().into(),
    };
    names.iter().map(class).collect()
}

/// The published means and deviations of ImageNet, also used for sets that have none.
pub(super) fn imagenet_normalise() -> Normalise {
    Normalise {
        mean: vec![0.485, 0.456, 0.406],
        std: vec![0.229, 0.224, 0.225],
    }
}
