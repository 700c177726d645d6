//! The list of the system's loader, `/etc/ld.so.cache`, as glibc's `ldconfig` writes it.
//!
//! # Source
//! glibc, `sysdeps/generic/dl-cache.h`: a header of 48 bytes, entries of 24, then the texts that they
//! point to, counted from the header.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// A larger file is no list of libraries.
const MAX_BYTES: u64 = 64 << 20;
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;

/// The folders of files of these names, in the order of the list; none where there is no such list.
pub(super) fn folders(list: &Path, names: &[&str]) -> Vec<PathBuf> {
    let mut bytes = Vec::new();
    let read = File::open(list).map(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    if !matches!(read, Ok(Ok(_))) {
        return Vec::new();
    }
    // An older form may stand before it.
    let start = bytes.windows(MAGIC.len()).position(|part| part == MAGIC);
    let Some(bytes) = start.and_then(|start| bytes.get(start..)) else {
        return Vec::new();
    };
    let number = number(bytes, 20).unwrap_or(0) as usize;
    let room = bytes.len().saturating_sub(HEADER_BYTES) / ENTRY_BYTES;
    let entries = (0..number.min(room)).map(|index| HEADER_BYTES + ENTRY_BYTES * index);
    let paths = entries.filter_map(|entry| {
        let name = text(bytes, self::number(bytes, entry + 4)?)?;
        let path = text(bytes, self::number(bytes, entry + 8)?)?;
        names.contains(&name).then(|| Path::new(path))
    });
    paths.filter_map(Path::parent).map(Path::to_owned).collect()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

fn text(bytes: &[u8], at: u32) -> Option<&str> {
    let rest = bytes.get(at as usize..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
pub(super) fn written(paths: &[&str]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let small = |number: usize| u32::try_from(number).unwrap();
    bytes.extend(small(paths.len()).to_ne_bytes());
    bytes.resize(HEADER_BYTES, 0);
    let mut texts = Vec::new();
    let begin = HEADER_BYTES + ENTRY_BYTES * paths.len();
    for path in paths {
        let value = small(begin + texts.len());
        texts.extend(path.bytes().chain([0]));
        let key = value + small(path.rfind('/').unwrap()) + 1;
        bytes.extend(0x0303_u32.to_ne_bytes());
        bytes.extend(key.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
        bytes.extend([0; 12]);
    }
    bytes.extend(texts);
    bytes
}
