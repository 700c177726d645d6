//! Named files of a source, from a folder or from an archive, into memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use flate2::read::MultiGzDecoder;
use md5::{Digest as _, Md5};
use synfire_shared::dataset::hex;
use synfire_shared::storage::Store;

use super::devkit;
use super::error::PackError;

/// The most bytes of an archive and of any file from it: CIFAR's have 180 MB.
const LIMIT_BYTES: u64 = 1 << 30;
/// Bytes of a file that are hashed at once.
const HASHED_BYTES: usize = 1 << 20;
/// Entries of an archive that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// The official archives and their MD5 (Krizhevsky 2009,
/// <https://www.cs.toronto.edu/~kriz/cifar.html>; ImageNet's as torchvision has it).
const OFFICIAL: [(&str, &str); 5] = [
    (devkit::ARCHIVE, "fa75699e90414af021442c21a62c3abf"),
    ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    (
        "cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
    ),
    ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    (
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
    ),
];

/// Files found in a source, by their name without folders and without `.gz`.
#[derive(Debug)]
pub(super) struct Files {
    /// The source, for messages.
    pub(super) place: String,
    found: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// The files of `wanted` that are in `source`, a folder or a tar archive, packed or not.
    pub(super) fn read(source: &str, wanted: &[&str]) -> Result<Self, PackError> {
        Self::read_any(source, wanted, false)
    }

    /// [`Self::read`], where `takes_any` also an archive that has an official one's name and another
    /// MD5.
    pub(super) fn read_any(
        source: &str,
        wanted: &[&str],
        takes_any: bool,
    ) -> Result<Self, PackError> {
        if is_archive(source) {
            let (store, key) = Store::open_parent(source)?;
            let place = store.name(&key);
            let bytes = store.get(&key, LIMIT_BYTES)?;
            if !takes_any {
                check_official(&place, &key, &bytes)?;
            }
            let found = if key.ends_with("gz") {
                unpack(&place, MultiGzDecoder::new(&bytes[..]), wanted)
            } else {
                unpack(&place, &bytes[..], wanted)
            };
            return Ok(Self {
                found: found?,
                place,
            });
        }
        let store = Store::open(source)?;
        let mut entries = store.list("")?;
        // Of two files of one name, the one nearer to the top.
        entries.sort_by_key(|entry| entry.key.matches('/').count());
        let mut found = BTreeMap::new();
        for entry in entries {
            let Some((name, is_packed)) = wanted_name(&entry.key, wanted) else {
                continue;
            };
            if found.contains_key(name) {
                continue;
            }
            let bytes = store.get(&entry.key, LIMIT_BYTES)?;
            let place = store.name(&entry.key);
            found.insert(name.to_owned(), plain(&place, bytes.into(), is_packed)?);
        }
        Ok(Self {
            place: store.url().into(),
            found,
        })
    }

    /// Whether the file is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.found.contains_key(name)
    }

    /// Takes a file out.
    pub(super) fn take(&mut self, name: &str, remedy: &'static str) -> Result<Vec<u8>, PackError> {
        let missing = || PackError::Missing {
            place: self.place.clone(),
            file: name.into(),
            remedy,
        };
        self.found.remove(name).ok_or_else(missing)
    }

    /// What a file is called in messages.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.place)
    }
}

/// Whether a source's name is that of a tar archive.
pub(super) fn is_archive(source: &str) -> bool {
    [".tar", ".tar.gz", ".tgz"]
        .iter()
        .any(|end| source.ends_with(end))
}

/// The name without folders and `.gz`, and whether it ended so, when it is wanted.
fn wanted_name<'a>(path: &'a str, wanted: &[&str]) -> Option<(&'a str, bool)> {
    let base = path.rsplit('/').next().unwrap_or(path);
    let name = base.strip_suffix(".gz").unwrap_or(base);
    wanted.contains(&name).then_some((name, name != base))
}

fn check_official(place: &str, name: &str, bytes: &[u8]) -> Result<(), PackError> {
    let Some((_, expected)) = OFFICIAL.iter().find(|(official, _)| *official == name) else {
        return Ok(());
    };
    let found = hex(&Md5::digest(bytes));
    if found == *expected {
        return Ok(());
    }
    Err(PackError::Digest {
        file: place.into(),
        found,
        expected,
    })
}

/// The MD5 of all of a file, whoever else reads in it.
pub(super) fn md5_of(file: &File) -> io::Result<String> {
    let mut hash = Md5::new();
    let mut buffer = vec![0; HASHED_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
        at += read as u64;
    }
}

fn unpack(
    place: &str,
    bytes: impl Read,
    wanted: &[&str],
) -> Result<BTreeMap<String, Vec<u8>>, PackError> {
    let torn = |error: std::io::Error| PackError::damaged(place, format!("a torn tar: {error}"));
    let mut found = BTreeMap::new();
    // Bounded as a whole, so that a packed bomb ends.
    let mut archive = tar::Archive::new(bytes.take(2 * LIMIT_BYTES));
    for entry in archive.entries().map_err(torn)?.take(MAX_ENTRIES) {
        let mut entry = entry.map_err(torn)?;
        let path = entry.path().map_err(torn)?.to_string_lossy().into_owned();
        let Some((name, is_packed)) = wanted_name(&path, wanted) else {
            continue;
        };
        if !entry.header().entry_type().is_file() || found.contains_key(name) {
            continue;
        }
        let file = format!("{place}/{path}");
        let size = entry.size();
        if size > LIMIT_BYTES {
            return Err(PackError::damaged(file, format!("it claims {size} bytes")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(torn)?;
        if bytes.len() as u64 != size {
            return Err(PackError::damaged(file, "a torn tar"));
        }
        found.insert(name.to_owned(), plain(&file, bytes, is_packed)?);
    }
    Ok(found)
}

fn plain(place: &str, bytes: Vec<u8>, is_packed: bool) -> Result<Vec<u8>, PackError> {
    if !is_packed {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(&bytes[..])
        .take(LIMIT_BYTES + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| PackError::damaged(place, format!("damaged gzip: {error}")))?;
    if unpacked.len() as u64 > LIMIT_BYTES {
        let reason = format!("it unpacks to more than {LIMIT_BYTES} bytes");
        return Err(PackError::damaged(place, reason));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in [("x/a.bin", &[7; 700][..]), ("b.bin", b"other")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, name, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn wanted_files_are_found_at_any_depth() {
        let found = unpack("made", &archive()[..], &["a.bin", "c.bin"]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found["a.bin"], [7; 700]);
        let torn = unpack("made", &archive()[..900], &["a.bin"]).unwrap_err();
        assert!(torn.to_string().contains("torn tar"), "{torn}");
    }

    #[test]
    fn all_of_a_file_is_hashed() {
        let path = std::env::temp_dir().join(format!("synfire-md5-{}", std::process::id()));
        std::fs::write(&path, vec![7; HASHED_BYTES + 3]).unwrap();
        let file = File::open(&path).unwrap();
        let want = hex(&Md5::digest(vec![7; HASHED_BYTES + 3]));
        assert_eq!(md5_of(&file).unwrap(), want);
        std::fs::remove_file(&path).unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..1500),
            at in 0usize..3000,
            byte in any::<u8>(),
        ) {
            let _ = unpack("made", &bytes[..], &["a.bin"]);
            let _ = plain("made", bytes.clone(), true);
            let mut whole = archive();
            let at = at % whole.len();
            whole[at] = byte;
            if let Ok(found) = unpack("made", &whole[..], &["a.bin"]) {
                prop_assert!(found.values().all(|file| file.len() <= whole.len()));
            }
            let _ = unpack("made", &[&whole[..at], &bytes].concat()[..], &["a.bin"]);
        }
    }
}
