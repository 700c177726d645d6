//! The archives of `torch.save`: zip files whose entries are stored as they are.
//!
//! Only what is in the list at the end of the file is seen; an entry is a part of the file's bytes,
//! so nothing is copied.
//!
//! # Source
//!
//! APPNOTE.TXT of PKWARE, ".ZIP File Format Specification", sections 4.3.7, 4.3.12, 4.3.16.

use std::cell::Cell;
use std::collections::BTreeMap;

/// What such a file begins with.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

const END: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
/// The longest comment behind the end of the list.
const MAX_COMMENT_BYTES: usize = 0xffff;
const LISTED: &[u8] = b"PK\x01\x02";
const LISTED_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// The entries of an archive by their names.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    entries: BTreeMap<&'a str, Entry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    data: &'a [u8],
    crc32: u32,
    /// Whether that was compared: once is enough for a storage of many tensors.
    is_checked: Cell<bool>,
}

impl<'a> Archive<'a> {
    /// Reads the list of entries.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let cut_off = || "the list at its end is damaged: it is cut off or altered".to_owned();
        let searched = bytes.len().saturating_sub(END_BYTES + MAX_COMMENT_BYTES);
        let end = bytes[searched..].windows(END_BYTES);
        let end = end.rev().find(|end| end.starts_with(END));
        let end = end.ok_or_else(cut_off)?;
        let (count, list_bytes, start) = (short(end, 10), long(end, 12), long(end, 16));
        if count == 0xffff || start == u32::MAX as usize {
            return Err("its list is that of an archive of more than 4 GiB".into());
        }
        let list = start.checked_add(list_bytes);
        let list = list.and_then(|stop| bytes.get(start..stop));
        let mut list = list.ok_or_else(cut_off)?;
        let mut archive = Self {
            entries: BTreeMap::new(),
        };
        let mut data_bytes = 0_usize;
        for _ in 0..count {
            let Some(header) = list.get(..LISTED_BYTES).filter(|h| h.starts_with(LISTED)) else {
                return Err(cut_off());
            };
            let name_end = LISTED_BYTES + short(header, 28);
            let next = name_end + short(header, 30) + short(header, 32);
            let name = list.get(LISTED_BYTES..name_end).ok_or_else(cut_off)?;
            let name = std::str::from_utf8(name).map_err(|_| cut_off())?;
            let entry = Entry::of(bytes, header).map_err(|what| format!("{name:?} {what}"))?;
            data_bytes += entry.data.len();
            if data_bytes > bytes.len() || archive.entries.insert(name, entry).is_some() {
                return Err(format!(
                    "{name:?} lies where, or is called as, another entry"
                ));
            }
            list = list.get(next..).ok_or_else(cut_off)?;
        }
        Ok(archive)
    }

    /// The names of all entries.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.entries.keys().copied()
    }

    /// The bytes of an entry, nothing if there is none of this name.
    pub(super) fn get(&self, name: &str) -> Result<Option<&'a [u8]>, String> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        if !entry.is_checked.get() && crc32fast::hash(entry.data) != entry.crc32 {
            return Err(format!(
                "{name:?} does not have its checksum: it is altered"
            ));
        }
        entry.is_checked.set(true);
        Ok(Some(entry.data))
    }
}

impl<'a> Entry<'a> {
    /// The entry that the list has with this header.
    fn of(bytes: &'a [u8], header: &[u8]) -> Result<Self, String> {
        let (flags, method) = (short(header, 8), short(header, 10));
        if flags & 1 != 0 || method != 0 {
            return Err(
                "is compressed or encrypted, which torch.save does not do: save it \
                        again with torch.save"
                    .into(),
            );
        }
        let (len, offset) = (long(header, 24), long(header, 42));
        let local = offset.checked_add(LOCAL_BYTES);
        let local = local.and_then(|end| bytes.get(offset..end));
        let local = local.filter(|local| local.starts_with(MAGIC));
        // Name and padding there need not be as long as in the list.
        let data = local.and_then(|local| {
            let start = offset + LOCAL_BYTES + short(local, 26) + short(local, 28);
            bytes.get(start..start.checked_add(len)?)
        });
        Ok(Self {
            data: data.ok_or("lies beyond the file: it is cut off or altered")?,
            crc32: u32::from_le_bytes(header[16..20].try_into().expect("four bytes")),
            is_checked: Cell::new(false),
        })
    }
}

fn short(header: &[u8], at: usize) -> usize {
    u16::from_le_bytes([header[at], header[at + 1]]).into()
}

fn long(header: &[u8], at: usize) -> usize {
    let bytes = header[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes) as usize
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An archive as `torch.save` lays it out, without its padding.
    pub(in super::super) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).unwrap().to_le_bytes();
        let name_len = |name: &str| u16::try_from(name.len()).unwrap().to_le_bytes();
        let (mut bytes, mut list) = (Vec::new(), Vec::new());
        for (name, data) in entries {
            let offset = bytes.len();
            // Checksum and sizes are in the list alone: flag 8.
            bytes.extend([MAGIC, &[0, 0, 8, 8], &[0; 18], &name_len(name), &[2, 0]].concat());
            bytes.extend([name.as_bytes(), b"FB", data].concat());
            list.extend([LISTED, &[0, 0, 0, 0, 8, 8], &[0; 6]].concat());
            list.extend(crc32fast::hash(data).to_le_bytes());
            list.extend([number(data.len()), number(data.len())].concat());
            list.extend([&name_len(name)[..], &[0; 12], &number(offset)].concat());
            list.extend(name.as_bytes());
        }
        let count = u16::try_from(entries.len()).unwrap().to_le_bytes();
        let start = bytes.len();
        bytes.extend(&list);
        bytes.extend([END, &[0; 4], &count, &count].concat());
        bytes.extend([&number(list.len())[..], &number(start), &[0, 0]].concat());
        bytes
    }

    #[test]
    fn entries_are_parts_of_the_file() {
        let bytes = archive(&[("a/x", b"hello"), ("a/y", b""), ("b", b"PK\x05\x06")]);
        let read = Archive::read(&bytes).unwrap();
        assert_eq!(read.names().collect::<Vec<_>>(), ["a/x", "a/y", "b"]);
        assert_eq!(read.get("a/x").unwrap(), Some(&b"hello"[..]));
        assert_eq!(read.get("a/y").unwrap(), Some(&b""[..]));
        assert_eq!(read.get("c").unwrap(), None);
        // A comment may follow.
        let mut commented = bytes.clone();
        let len = commented.len();
        commented[len - 2] = 3;
        commented.extend(b"abc");
        assert!(Archive::read(&commented).is_ok());
    }

    #[test]
    fn damage_is_told() {
        let bytes = archive(&[("x", b"hello"), ("y", b"there")]);
        let refused = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            match Archive::read(&bytes) {
                Ok(archive) => archive.get("x").unwrap_err(),
                Err(error) => error,
            }
        };
        let list = bytes.windows(4).position(|w| w == LISTED).unwrap();
        assert!(refused(34, b'H').contains("\"x\" does not have its checksum"));
        assert!(refused(list + 10, 8).contains("\"x\" is compressed"));
        assert!(refused(list + 8, 1).contains("encrypted"));
        assert!(refused(list + 26, 1).contains("\"x\" lies beyond the file"));
        assert!(refused(list + 42, 1).contains("\"x\" lies beyond the file"));
        assert!(refused(list + 46, b'y').contains("is called as, another entry"));
        assert!(refused(list + 46, 0xff).contains("list at its end is damaged"));
        assert!(refused(bytes.len() - 12, 3).contains("list at its end"));
        let cut = Archive::read(&bytes[..bytes.len() - 1]).unwrap_err();
        assert!(cut.contains("cut off"), "{cut}");
        assert!(Archive::read(b"PK\x03\x04").is_err());
    }

    #[test]
    fn entries_that_share_their_bytes_are_refused() {
        let data = [7; 200];
        let mut bytes = archive(&[("a", &data), ("b", b""), ("c", b"")]);
        let list = bytes.windows(4).position(|w| w == LISTED).unwrap();
        for entry in 1..3 {
            let at = list + entry * (LISTED_BYTES + 1);
            let (head, tail) = bytes.split_at_mut(at);
            tail[16..28].copy_from_slice(&head[list + 16..list + 28]);
            tail[42..46].copy_from_slice(&[0; 4]);
        }
        let error = Archive::read(&bytes).unwrap_err();
        assert!(error.contains("lies where"), "{error}");
    }
}
