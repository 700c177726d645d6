//! Which samples go into which shard, and a shard's bytes.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use synfire_shared::dataset::{self, LeftOut, Shard};
use tar::Header;

use super::error::PackError;
use super::set::{SPLITS, Set};

const BLOCK: u64 = 512;

/// A shard to be made: consecutive samples of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The split, a position in [`SPLITS`].
    pub(super) split: usize,
    /// The file's name.
    pub(super) path: String,
    /// The samples.
    pub(super) items: Range<usize>,
}

/// The shards of a set: a pure function of it and the target size.
pub(super) fn plan(set: &Set, shard_bytes: u64) -> Vec<Part> {
    let mut parts = Vec::new();
    for (split, items) in set.splits.iter().enumerate() {
        let mut begin = 0;
        let mut bytes = 0;
        let mut num_parts = 0;
        let mut close = |items: Range<usize>| {
            let path = format!("{}-{num_parts:06}.tar", SPLITS[split]);
            num_parts += 1;
            parts.push(Part { split, path, items });
        };
        for (i, item) in items.iter().enumerate() {
            // The picture and its label, each behind a header.
            let more = item.bytes.next_multiple_of(BLOCK) + 3 * BLOCK;
            if bytes + more > shard_bytes && begin < i {
                close(begin..i);
                (begin, bytes) = (i, 0);
            }
            bytes += more;
        }
        if begin < items.len() {
            close(begin..items.len());
        }
    }
    parts
}

/// A shard that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) shard: Shard,
    pub(super) left_out: Vec<LeftOut>,
}

/// The bytes of a shard and what the index says of it.
pub(super) fn make(
    set: &Set,
    part: &Part,
    done: &(dyn Fn() + Sync),
) -> Result<(Made, Vec<u8>), PackError> {
    let mut tar = Vec::new();
    let mut left_out = Vec::new();
    let (mut offsets, mut lengths, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for i in part.items.clone() {
        let item = &set.splits[part.split][i];
        match set.picture(item)? {
            Ok((picture, kind)) => {
                append(&mut tar, &format!("{i:09}.{}", kind.extension()), &picture);
                offsets.push((tar.len() - padded(picture.len())) as u64);
                lengths.push(picture.len() as u64);
                labels.push(item.label);
                append(
                    &mut tar,
                    &format!("{i:09}.cls"),
                    item.label.to_string().as_bytes(),
                );
            }
            Err(reason) => left_out.push(LeftOut {
                sample: item.name.clone(),
                split: SPLITS[part.split].into(),
                reason,
            }),
        }
        done();
    }
    // The end of a tar file is two blocks of zeros.
    tar.resize(tar.len() + 2 * padded(1), 0);
    let shard = Shard {
        path: part.path.clone(),
        bytes: tar.len() as u64,
        sha256: dataset::hex(&Sha256::digest(&tar)),
        offsets,
        lengths,
        labels,
    };
    Ok((Made { shard, left_out }, tar))
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(512)
}

/// A file behind its header, the same bytes at any time and place.
fn append(tar: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let mut header = Header::new_ustar();
    header
        .set_path(name)
        .expect("the name is short and relative");
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(bytes);
    tar.resize(padded(tar.len()), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::set::{Item, Origin, classes, imagenet_normalise};
    use super::*;

    fn set(sizes: [&[u64]; 2]) -> Set {
        let item = |&bytes: &u64| Item {
            name: "made".into(),
            label: 0,
            bytes,
            start: 0,
            archive: 0,
        };
        Set {
            name: "made".into(),
            classes: classes(&["one"]),
            splits: sizes.map(|sizes| sizes.iter().map(item).collect()),
            left_out: Vec::new(),
            normalise: imagenet_normalise(),
            channels: 3,
            shape: None,
            origin: Origin::Pixels(Vec::new()),
        }
    }

    proptest! {
        #[test]
        fn the_plan_holds_every_sample_once_and_in_order(
            train in prop::collection::vec(0u64..5000, 0..50),
            test in prop::collection::vec(0u64..5000, 0..50),
            shard_bytes in 1u64..20_000,
        ) {
            let parts = plan(&set([&train, &test]), shard_bytes);
            for (split, sizes) in [&train, &test].into_iter().enumerate() {
                let mut next = 0;
                for (i, part) in parts.iter().filter(|p| p.split == split).enumerate() {
                    prop_assert_eq!(&part.path, &format!("{}-{i:06}.tar", SPLITS[split]));
                    prop_assert_eq!(part.items.start, next);
                    prop_assert!(!part.items.is_empty());
                    next = part.items.end;
                    let bytes: u64 = sizes[part.items.clone()]
                        .iter()
                        .map(|size| size.next_multiple_of(BLOCK) + 3 * BLOCK)
                        .sum();
                    prop_assert!(bytes <= shard_bytes || part.items.len() == 1);
                }
                prop_assert_eq!(next, sizes.len());
            }
        }
    }
}
