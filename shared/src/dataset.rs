//! `index.json`: what a data set packed into shards holds, and where each sample's bytes lie.
//!
//! A shard is a tar file; an offset and a length are the byte range of one picture's own bytes
//! inside it, so that one range read fetches one picture. The file is written after every shard,
//! so a set without it is not whole. It is untrusted: [`Index::parse`] checks all of it.

mod check;
mod error;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use error::IndexError;

/// The name of the index beside its shards.
pub const INDEX_NAME: &str = "index.json";
/// The most bytes an index may have; that of ImageNet has about 30 million.
pub const LIMIT_BYTES: u64 = 1 << 30;

const FORMAT: &str = "synfire index";
const VERSION: u32 = 1;

/// A data set in shards, checked: every sample lies inside its shard and has a class.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    /// The set's name in reports.
    pub name: String,
    /// The classes; a label is a position here.
    pub classes: Vec<Class>,
    /// The samples to learn from.
    pub train: Split,
    /// The samples to be judged on; may be empty.
    pub test: Split,
    /// What the source held and the shards do not.
    pub left_out: Vec<LeftOut>,
    /// How bytes become numbers of mean about 0 and deviation about 1.
    pub normalise: Normalise,
    /// C, the channels of a pixel: 1 or 3.
    pub channels: u32,
    /// H and W of every picture, or `None` when pictures have any size.
    pub shape: Option<[u32; 2]>,
}

/// A class of a data set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// What tells it from the others, such as ImageNet's wnid.
    pub key: String,
    /// What people call it; names may repeat.
    pub name: String,
}

/// A sample of the source that no shard holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// Its path or number in the source.
    pub sample: String,
    /// The split it would be in.
    pub split: String,
    /// Why it was left out.
    pub reason: String,
}

/// Mean and deviation of each channel, of values in 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// Of each channel.
    pub mean: Vec<f32>,
    /// Of each channel, above 0.
    pub std: Vec<f32>,
}

/// A tar file and the samples in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Where it lies, relative to the index.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in lower-case hexadecimal digits.
    pub sha256: String,
    /// Where each picture begins, ascending.
    pub offsets: Vec<u64>,
    /// The bytes of each picture, at least 1.
    pub lengths: Vec<u64>,
    /// The class of each picture.
    pub labels: Vec<u32>,
}

impl Shard {
    /// The number of samples in the shard.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether the shard holds no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// The shards of one part of a data set; samples are counted through all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split {
    shards: Vec<Shard>,
    /// The number of samples up to and with each shard.
    ends: Vec<u64>,
}

impl Split {
    /// The samples of these shards, in their order.
    pub fn new(shards: Vec<Shard>) -> Self {
        let mut num_samples = 0;
        let ends = shards.iter().map(|shard| {
            num_samples += shard.len() as u64;
            num_samples
        });
        let ends = ends.collect();
        Self { shards, ends }
    }

    /// The shards, in the order of their samples.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The number of samples.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where sample `index` lies, or `None` beyond the last; takes O(log shards).
    pub fn sample(&self, index: u64) -> Option<Sample> {
        if index >= self.len() {
            return None;
        }
        let shard_index = self.ends.partition_point(|&end| end <= index);
        let shard = self.shards.get(shard_index)?;
        let before = self.ends[shard_index] - shard.len() as u64;
        let in_shard = usize::try_from(index - before).ok()?;
        Some(Sample {
            shard_index,
            in_shard,
            offset: shard.offsets[in_shard],
            len_bytes: shard.lengths[in_shard],
            label: shard.labels[in_shard],
        })
    }
}

/// Where one sample lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The position of its shard in [`Split::shards`].
    pub shard_index: usize,
    /// Its position in the shard.
    pub in_shard: usize,
    /// Where its picture begins in the shard.
    pub offset: u64,
    /// The bytes of its picture.
    pub len_bytes: u64,
    /// Its class.
    pub label: u32,
}

impl Index {
    /// The index in `bytes`, all of it checked; `name` is what errors call it.
    ///
    /// # Errors
    ///
    /// An [`IndexError`] that names the shard and the sample.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, IndexError> {
        check_length(bytes.len() as u64, name)?;
        let json = |source| IndexError::Json {
            name: name.into(),
            source,
        };
        let head: Head = serde_json::from_slice(bytes).map_err(json)?;
        if head.format != FORMAT || head.version != VERSION {
            return Err(IndexError::Version {
                name: name.into(),
                format: head.format,
                version: head.version,
            });
        }
        let file: File = serde_json::from_slice(bytes).map_err(json)?;
        let index = Self {
            name: file.name,
            classes: file.classes,
            train: Split::new(file.splits.train.shards),
            test: Split::new(file.splits.test.shards),
            left_out: file.left_out,
            normalise: file.normalise,
            channels: file.channels,
            shape: file.shape,
        };
        index.check(name)?;
        Ok(index)
    }

    /// The index as a file; equal indices have equal bytes.
    ///
    /// # Panics
    ///
    /// Never: strings, numbers and lists are always JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        let split = |split: &Split| SplitFile {
            shards: split.shards.clone(),
        };
        let file = File {
            format: FORMAT.into(),
            version: VERSION,
            name: self.name.clone(),
            classes: self.classes.clone(),
            splits: Splits {
                train: split(&self.train),
                test: split(&self.test),
            },
            left_out: self.left_out.clone(),
            normalise: self.normalise.clone(),
            channels: self.channels,
            shape: self.shape,
        };
        serde_json::to_vec(&file).expect("strings, numbers and lists are always JSON")
    }

    /// SHA-256 of [`Self::to_bytes`]: tells data sets apart, whatever their index's white space.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }

    /// [`Self::fingerprint`] in hexadecimal digits.
    pub fn fingerprint_hex(&self) -> String {
        hex(&self.fingerprint())
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string never fails.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

fn check_length(len_bytes: u64, name: &str) -> Result<(), IndexError> {
    if len_bytes > LIMIT_BYTES {
        return Err(IndexError::TooLarge {
            name: name.into(),
            len_bytes,
        });
    }
    Ok(())
}

/// What any version must have; read first, so that a newer version is named as such.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    version: u32,
    name: String,
    classes: Vec<Class>,
    splits: Splits,
    left_out: Vec<LeftOut>,
    normalise: Normalise,
    channels: u32,
    shape: Option<[u32; 2]>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Splits {
    train: SplitFile,
    test: SplitFile,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitFile {
    shards: Vec<Shard>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shard(path: &str, labels: &[u32]) -> Shard {
        let offsets: Vec<u64> = (0..labels.len() as u64).map(|i| 512 + 1024 * i).collect();
        Shard {
            path: path.into(),
            bytes: 1024 * (labels.len() as u64 + 1),
            sha256: "0f".repeat(32),
            lengths: vec![100; offsets.len()],
            offsets,
            labels: labels.to_vec(),
        }
    }

    fn small() -> Index {
        let class = |key: &str| Class {
            key: key.into(),
            name: "crane".into(),
        };
        Index {
            name: "made".into(),
            classes: vec![class("n1"), class("n2"), class("n3")],
            train: Split::new(vec![
                shard("train-000000.tar", &[0, 1, 2]),
                shard("train-000001.tar", &[]),
                shard("train-000002.tar", &[2, 1]),
            ]),
            test: Split::new(vec![shard("test-000000.tar", &[1])]),
            left_out: vec![LeftOut {
                sample: "n1/page.JPEG".into(),
                split: "train".into(),
                reason: "neither JPEG nor PNG".into(),
            }],
            normalise: Normalise {
                mean: vec![0.4914, 0.4822, 0.4465],
                std: vec![0.2023, 0.1994, 0.2010],
            },
            channels: 3,
            shape: None,
        }
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let index = small();
        let bytes = index.to_bytes();
        let read = Index::parse(&bytes, "index.json").expect("a whole index");
        assert_eq!(read, index);
        assert_eq!(read.to_bytes(), bytes);
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            value["splits"]["train"]["shards"][0]["offsets"][1],
            serde_json::json!(1536)
        );
        assert_eq!(value["shape"], serde_json::Value::Null);
    }

    #[test]
    fn the_fingerprint_ignores_white_space_and_sees_a_label() {
        let index = small();
        let value: serde_json::Value = serde_json::from_slice(&index.to_bytes()).unwrap();
        let spaced = serde_json::to_vec_pretty(&value).unwrap();
        let read = Index::parse(&spaced, "spaced").expect("the same index");
        assert_eq!(read.fingerprint_hex(), index.fingerprint_hex());
        assert_eq!(index.fingerprint_hex().len(), 64);
        let mut other = small();
        other.test = Split::new(vec![shard("test-000000.tar", &[2])]);
        assert_ne!(other.fingerprint(), index.fingerprint());
    }

    #[test]
    fn samples_are_counted_through_the_shards() {
        let split = small().train;
        assert_eq!(split.len(), 5);
        let found: Vec<_> = (0..7).map(|i| split.sample(i)).collect();
        let places = found
            .iter()
            .flatten()
            .map(|s| (s.shard_index, s.in_shard, s.label));
        assert_eq!(
            places.collect::<Vec<_>>(),
            [(0, 0, 0), (0, 1, 1), (0, 2, 2), (2, 0, 2), (2, 1, 1)]
        );
        assert_eq!(found[4].map(|s| (s.offset, s.len_bytes)), Some((1536, 100)));
        assert_eq!(found[5..], [None, None]);
        assert_eq!(Split::default().sample(0), None);
    }

    /// The error of the small index after a change.
    fn refused(change: impl FnOnce(&mut Index)) -> String {
        let mut index = small();
        change(&mut index);
        Index::parse(&index.to_bytes(), "i.json")
            .expect_err("a fault")
            .to_string()
    }

    fn refused_shard(change: impl FnOnce(&mut Shard)) -> String {
        refused(|index| {
            let mut shards = index.train.shards().to_vec();
            change(&mut shards[0]);
            index.train = Split::new(shards);
        })
    }

    #[test]
    fn faults_name_shard_and_sample() {
        let begin = "i.json: train shard \"train-000000.tar\"";
        let cases = [
            (refused_shard(|s| s.labels[2] = 3), ", sample 2: label 3"),
            (refused_shard(|s| s.lengths[1] = 0), ", sample 1: it has no"),
            (refused_shard(|s| s.lengths[0] = 2000), ", sample 1: it beg"),
            (refused_shard(|s| s.offsets[2] = 1), ", sample 2: it begins"),
            (refused_shard(|s| s.bytes = 2659), ", sample 2: 100 bytes"),
            (refused_shard(|s| s.offsets[1] = u64::MAX), ", sample 1: 10"),
            (refused_shard(|s| s.lengths.truncate(2)), ": it has 3 off"),
            (refused_shard(|s| s.sha256.push('0')), ": its sha256 is not"),
            (
                refused_shard(|s| s.sha256 = "0F".repeat(32)),
                ": its sha256",
            ),
        ];
        for (error, rest) in cases {
            assert!(error.starts_with(&format!("{begin}{rest}")), "{error}");
        }
    }

    #[test]
    fn shards_lie_beside_their_index() {
        for path in [
            "", "/a.tar", "../a.tar", "a/../b", "a\\b", "s3://b/a", "a//b", "a\n", ".",
        ] {
            let error = refused_shard(|s| s.path = path.into());
            assert!(error.contains("its path must be relative"), "{error}");
        }
        let error = refused_shard(|s| s.path = "test-000000.tar".into());
        assert!(error.contains("its path is given twice"), "{error}");
    }

    #[test]
    fn values_that_do_not_hold_name_their_key() {
        let cases = [
            (refused(|i| i.classes.clear()), "classes: there must be"),
            (refused(|i| i.classes[1].key = "n1".into()), "classes: two"),
            (refused(|i| i.channels = 2), "channels: 2 is neither"),
            (refused(|i| i.shape = Some([32, 0])), "shape: no side"),
            (refused(|i| i.normalise.mean.clear()), "normalise: mean and"),
            (refused(|i| i.normalise.std[0] = 0.0), "normalise: mean mus"),
        ];
        for (error, text) in cases {
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn other_formats_and_versions_are_named() {
        let text = String::from_utf8(small().to_bytes()).unwrap();
        let newer = text.replace("\"version\":1", "\"version\":2,\"new\":0");
        let error = Index::parse(newer.as_bytes(), "i").expect_err("newer");
        assert!(matches!(error, IndexError::Version { version: 2, .. }));
        let other = text.replace("synfire index", "tape");
        let error = Index::parse(other.as_bytes(), "i").expect_err("other");
        assert!(error.to_string().contains("\"tape\""), "{error}");
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            let error = Index::parse(&text.as_bytes()[..cut], "i").expect_err("cut");
            assert!(matches!(error, IndexError::Json { .. }), "{error}");
        }
        let error = check_length(LIMIT_BYTES + 1, "i").expect_err("too large");
        assert!(matches!(error, IndexError::TooLarge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..100),
            at in 0usize..2000,
            byte in any::<u8>(),
        ) {
            let _ = Index::parse(&bytes, "made");
            let mut whole = small().to_bytes();
            let at = at % whole.len();
            whole[at] = byte;
            if let Ok(index) = Index::parse(&whole, "made") {
                for i in 0..index.train.len() {
                    let sample = index.train.sample(i).expect("below the length");
                    let shard = &index.train.shards()[sample.shard_index];
                    prop_assert!(sample.offset + sample.len_bytes <= shard.bytes);
                    prop_assert!((sample.label as usize) < index.classes.len());
                }
            }
        }
    }
}
