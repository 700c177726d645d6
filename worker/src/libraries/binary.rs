//! Whether a file is a library for this machine, by the first bytes of it.
//!
//! # Source
//! The ELF header of the System V ABI.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

const HEADER_BYTES: usize = 20;
const SHARED_OBJECT: u16 = 3;

/// Why a file cannot be loaded; [`Ok`] where nothing speaks against it.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let unreadable = |error: std::io::Error| format!("cannot be read ({error})");
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err("is no file".into());
    }
    let mut header = [0; HEADER_BYTES];
    let mut file = File::open(path).map_err(unreadable)?;
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"\x7fELF") {
        return Err("is no library".into());
    }
    let is_big = header[5] == 2;
    let two = |at: usize| {
        let bytes = [header[at], header[at + 1]];
        if is_big {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    };
    if two(16) != SHARED_OBJECT {
        return Err("is no library".into());
    }
    let is_wide = header[4] == 2;
    if is_wide != cfg!(target_pointer_width = "64") || machine().is_some_and(|m| m != two(18)) {
        return Err("is a library for another kind of machine".into());
    }
    Ok(())
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
