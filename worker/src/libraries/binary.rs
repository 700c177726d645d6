//! Whether a file is a whole library for this machine, by its headers: the loader of the system trusts
//! them, and ends the process over a file that was cut short.
//!
//! # Source
//! The ELF header and program header of the System V ABI, in their 64-bit form.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::path::Path;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const SHARED_OBJECT: u16 = 3;
/// A segment that is loaded.
const LOAD: u32 = 1;

/// Why a file cannot be loaded; [`Ok`] where nothing speaks against it.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let unreadable = |error: std::io::Error| format!("cannot be read ({error})");
    let meta = path.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err("is no file".into());
    }
    let mut header = [0; HEADER_BYTES];
    let mut file = File::open(path).map_err(unreadable)?;
    let is_whole = file.read_exact(&mut header).is_ok();
    if !is_whole || !header.starts_with(b"\x7fELF") {
        return Err("is no library".into());
    }
    let is_like_this = header[4]
        == if cfg!(target_pointer_width = "64") {
            2
        } else {
            1
        }
        && header[5] == if cfg!(target_endian = "little") { 1 } else { 2 };
    if !is_like_this || machine().is_some_and(|number| number != two(&header, 18)) {
        return Err("is a library for another kind of machine".into());
    }
    if two(&header, 16) != SHARED_OBJECT {
        return Err("is no library".into());
    }
    if cfg!(target_pointer_width = "64") {
        let end = end_of_segments(&mut file, &header).ok_or("is no library")?;
        if end > meta.len() {
            let len = meta.len();
            return Err(format!(
                "has {len} bytes of {end} and more: it was cut short"
            ));
        }
    }
    Ok(())
}

/// Where the last part ends that the loader maps; absent where the file has no such list.
fn end_of_segments(file: &mut File, header: &[u8; HEADER_BYTES]) -> Option<u64> {
    let size = usize::from(two(header, 54));
    let count = usize::from(two(header, 56));
    if size != SEGMENT_BYTES || count == 0 {
        return None;
    }
    file.seek(SeekFrom::Start(eight(header, 32))).ok()?;
    let mut segments = vec![0; size * count];
    file.read_exact(&mut segments).ok()?;
    let segments = segments.chunks_exact(size);
    let loaded = segments.filter(|segment| four(segment, 0) == LOAD);
    let ends = loaded.map(|segment| eight(segment, 8).checked_add(eight(segment, 32)));
    ends.collect::<Option<Vec<u64>>>()?.into_iter().max()
}

/// This machine's number in the header.
const fn machine() -> Option<u16> {
    if cfg!(target_arch = "x86_64") {
        Some(62)
    } else if cfg!(target_arch = "aarch64") {
        Some(183)
    } else {
        None
    }
}

fn two(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(part(bytes, at))
}

fn four(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(part(bytes, at))
}

fn eight(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(part(bytes, at))
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as many bytes")
}
