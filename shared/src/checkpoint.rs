//! What a checkpoint is: its manifest, its names, when it exists, and which are kept.
//!
//! A checkpoint exists exactly when its manifest does. Parts are written first, the manifest last,
//! each at once or not at all; a part's name holds its digest, so writing one again never changes
//! what an older manifest names. It holds the generation, too: a process that another generation has
//! taken the place of can only harm what is of its own or an older one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The form of manifests that this version writes and reads.
pub const VERSION: u32 = 1;
/// What `format` says in every manifest.
pub const FORMAT: &str = "synfire checkpoint";
/// A longer manifest is refused.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// A manifest with more parts is refused.
pub const MAX_PARTS: usize = 64;
/// A manifest with a longer part is refused.
pub const MAX_PART_BYTES: u64 = 1 << 34;

const MANIFEST_END: &str = ".json";
const NUMBER_DIGITS: usize = 12;

/// A SHA-256, in files as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of a run's settings ([`crate::Run::settings`]).
    pub fn of_settings(settings: &BTreeMap<String, String>) -> Self {
        let lines = settings
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        Self::of(lines.collect::<String>().as_bytes())
    }

    /// The digest of several byte strings, each behind its length.
    pub fn of_all(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// Its 32 bytes.
    pub fn bytes(self) -> [u8; 32] {
        self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let digit = |at: usize| match text.as_bytes()[at] {
            digit @ b'0'..=b'9' => Some(digit - b'0'),
            digit @ b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() {
            return Err("a digest has 64 hexadecimal digits");
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            let (Some(high), Some(low)) = (digit(2 * index), digit(2 * index + 1)) else {
                return Err("a digest has 64 hexadecimal digits, 0 to 9 and a to f");
            };
            *byte = 16 * high + low;
        }
        Ok(Self(bytes))
    }
}

/// A share of a test set, as whole numbers: JSON keeps those to the last bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hits {
    /// Samples that are right.
    pub correct: u64,
    /// Samples.
    pub samples: u64,
}

impl Hits {
    /// The share that is right; 0 of none.
    pub fn share(self) -> f64 {
        self.correct as f64 / self.samples.max(1) as f64
    }
}

/// One file of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name beside the manifest, made by [`part_name`].
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// Where training goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Batches done in it.
    pub batch: u64,
    /// Updates done in the whole run.
    pub update: u64,
    /// Batches done in the whole run.
    pub batches_done: u64,
}

/// What is in a checkpoint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The version of the program that wrote it.
    pub written_by: String,
    /// Where training goes on.
    pub position: Position,
    /// The digest of `settings`.
    pub configuration: Digest,
    /// What the numbers of the run depend on, by key.
    pub settings: BTreeMap<String, String>,
    /// The digest of the training set.
    pub data: Digest,
    /// How much of the test set was right, where an epoch has just ended with it.
    pub test: Option<Hits>,
    /// The generation of ranks that wrote it; absent where a process alone did. Left out then, so
    /// that the seals of older manifests hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Its files by what they are.
    pub parts: BTreeMap<String, Part>,
    /// The digest of all of the above, set by [`Manifest::sealed`].
    pub seal: Digest,
}

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It is of another version.
    #[error(
        "it is of form {got}, this version reads {VERSION}: resume with the version that wrote it, \
         or start again in another run.folder"
    )]
    Version {
        /// Its version.
        got: u64,
    },
    /// It is no manifest, or a damaged one.
    #[error("it is no manifest of a checkpoint, or a damaged one: {reason}")]
    Damaged {
        /// What is wrong, in one line.
        reason: String,
    },
}

/// What every version has.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

impl Manifest {
    /// The manifest with its own digest, without which it is refused.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.seal = Digest::default();
        self.seal = Digest::of(&self.to_bytes());
        self
    }

    /// Its bytes; the same content has the same.
    ///
    /// # Panics
    ///
    /// Never: maps with text keys and numbers can always be written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("text keys and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads bytes that may come from anywhere.
    ///
    /// # Errors
    ///
    /// If they are no whole manifest of this version, or one that this version would never write.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |reason: String| {
            let reason = reason
                .chars()
                .take(200)
                .flat_map(char::escape_debug)
                .collect();
            ManifestError::Damaged { reason }
        };
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            let got = bytes.len();
            return Err(damaged(format!(
                "{got} bytes, more than {MAX_MANIFEST_BYTES}"
            )));
        }
        let head: Head = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if head.format != FORMAT {
            return Err(damaged(format!("its format is not {FORMAT:?}")));
        }
        if head.version != u64::from(VERSION) {
            return Err(ManifestError::Version { got: head.version });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        match manifest.fault() {
            None => Ok(manifest),
            Some(fault) => Err(damaged(fault)),
        }
    }

    /// What contradicts itself.
    fn fault(&self) -> Option<String> {
        if self.clone().sealed().seal != self.seal {
            return Some("it does not have the digest that it names".into());
        }
        if self.configuration != Digest::of_settings(&self.settings) {
            return Some("its settings do not have the digest that it names".into());
        }
        if self.parts.len() > MAX_PARTS {
            return Some(format!("{} parts, more than {MAX_PARTS}", self.parts.len()));
        }
        if self.test.is_some_and(|test| test.correct > test.samples) {
            return Some("more of its test set is right than there is".into());
        }
        let own = ManifestName {
            batches_done: self.position.batches_done,
            generation: self.generation.unwrap_or(0),
        };
        // Those of ranks had no generation in their names once.
        let older = ManifestName {
            generation: 0,
            ..own
        };
        self.parts.iter().find_map(|(kind, part)| {
            if part.bytes > MAX_PART_BYTES {
                return Some(format!("part {kind:?} has {} bytes", part.bytes));
            }
            // So a name never leads out of the folder.
            let is_of = |manifest| part.name == part_name(manifest, kind, part.sha256);
            let fits = is_of(own) || is_of(older);
            (!fits).then(|| format!("part {kind:?} is called {:?}", part.name))
        })
    }
}

/// The name of the manifest of the checkpoint after so many batches: by name is by age.
pub fn manifest_name(batches_done: u64) -> String {
    format!("{batches_done:0NUMBER_DIGITS$}{MANIFEST_END}")
}

/// The number of batches in the name of a manifest without a generation; absent of any other.
pub fn manifest_number(name: &str) -> Option<u64> {
    let number = number(name.strip_suffix(MANIFEST_END)?)?;
    (manifest_name(number) == name).then_some(number)
}

/// What the name of a manifest tells: by age, within a line of generations.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ManifestName {
    /// Batches done in the whole run.
    pub batches_done: u64,
    /// The generation that wrote it; 0 of a process alone.
    pub generation: u64,
}

impl fmt::Display for ManifestName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            batches_done,
            generation,
        } = *self;
        formatter.write_str(&manifest_name_of(batches_done, Some(generation)))
    }
}

/// The name of a manifest: `000000000060-g000003.json`, or that of [`manifest_name`] where a
/// process alone wrote it.
pub fn manifest_name_of(batches_done: u64, generation: Option<u64>) -> String {
    match generation {
        None | Some(0) => manifest_name(batches_done),
        Some(generation) => {
            format!("{batches_done:0NUMBER_DIGITS$}-g{generation:06}{MANIFEST_END}")
        }
    }
}

/// What a manifest's name tells, in either form; absent where it is none.
pub fn manifest_of_name(name: &str) -> Option<ManifestName> {
    let stem = name.strip_suffix(MANIFEST_END)?;
    let (digits, generation) = match stem.split_once("-g") {
        None => (stem, 0),
        Some((digits, generation)) => (digits, generation.parse().ok().filter(|&g| g > 0)?),
    };
    let found = ManifestName {
        batches_done: number(digits)?,
        generation,
    };
    // Each has one name.
    let again = manifest_name_of(found.batches_done, Some(generation));
    (again == name).then_some(found)
}

/// The name of a part of the checkpoint with this manifest:
/// `000000000060-g000003-0123456789abcdef.weights.safetensors`, without the generation where a
/// process alone wrote it.
pub fn part_name(manifest: ManifestName, kind: &str, digest: Digest) -> String {
    let manifest = manifest.to_string();
    let stem = manifest.trim_end_matches(MANIFEST_END);
    let digest = digest.to_string();
    let kind: String = kind
        .chars()
        .filter(|&c| c.is_ascii_alphanumeric() || c == '.')
        .collect();
    format!("{stem}-{}.{kind}", &digest[..16])
}

/// What a part's name tells of the manifest that it was written for; absent where it is none.
pub fn manifest_of_part(name: &str) -> Option<ManifestName> {
    if manifest_of_name(name).is_some() {
        return None;
    }
    let (digits, rest) = name.split_once('-')?;
    // No digest begins so.
    let Some(rest) = rest.strip_prefix('g') else {
        let batches_done = number(digits)?;
        return Some(ManifestName {
            batches_done,
            generation: 0,
        });
    };
    let (generation, _) = rest.split_once('-')?;
    manifest_of_name(&format!("{digits}-g{generation}{MANIFEST_END}"))
}

fn number(digits: &str) -> Option<u64> {
    let is_number = digits.len() >= NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// The checkpoints to delete: all but the newest `keep_last` and, where `keep_best` says so, the
/// one with the best test accuracy, the earlier of two equal ones.
///
/// Each is given by its number of batches, with its test accuracy where it has one.
pub fn superseded(
    checkpoints: &BTreeMap<u64, Option<f64>>,
    keep_last: usize,
    keep_best: bool,
) -> BTreeSet<u64> {
    let mut deleted: BTreeSet<u64> = checkpoints.keys().rev().skip(keep_last).copied().collect();
    let rated = checkpoints
        .iter()
        .filter_map(|(&number, a)| Some((number, (*a)?)));
    let better = |a: (u64, f64), b: (u64, f64)| if b.1 > a.1 { b } else { a };
    if let (true, Some((best, _))) = (keep_best, rated.reduce(better)) {
        deleted.remove(&best);
    }
    deleted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(batches_done: u64, generation: u64) -> ManifestName {
        ManifestName {
            batches_done,
            generation,
        }
    }

    fn manifest() -> Manifest {
        let settings = BTreeMap::from([("run.seed".to_owned(), "1".to_owned())]);
        let sha256 = Digest::of(b"abc");
        let part = Part {
            name: part_name(named(60, 0), "weights.safetensors", sha256),
            bytes: 3,
            sha256,
        };
        Manifest {
            format: FORMAT.into(),
            version: VERSION,
            written_by: "0.1.0".into(),
            position: Position {
                epoch: 1,
                batch: 29,
                update: 120,
                batches_done: 60,
            },
            configuration: Digest::of_settings(&settings),
            settings,
            data: Digest::of_all(&[b"pixels", b"labels"]),
            test: Some(Hits {
                correct: 3,
                samples: 7,
            }),
            generation: None,
            parts: BTreeMap::from([("weights.safetensors".to_owned(), part)]),
            seal: Digest::default(),
        }
        .sealed()
    }

    fn refusal(changed: impl Fn(&mut Manifest)) -> String {
        let mut manifest = manifest();
        changed(&mut manifest);
        Manifest::parse(&manifest.sealed().to_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_manifest_reads_back_equal() {
        assert_eq!(Manifest::parse(&manifest().to_bytes()).unwrap(), manifest());
    }

    #[test]
    fn digests_are_sha256_and_lengths_keep_parts_apart() {
        // FIPS 180-4's example for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), abc);
        assert_eq!(Digest::try_from(abc.to_owned()), Ok(Digest::of(b"abc")));
        assert_ne!(
            Digest::of_all(&[b"ab", b"c"]),
            Digest::of_all(&[b"a", b"bc"])
        );
        for wrong in [&abc[1..], &abc.to_uppercase(), &format!("é{}", &abc[2..])] {
            assert!(Digest::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_contradiction_is_refused_with_its_reason() {
        let other_version = refusal(|m| m.version = 2);
        assert!(
            other_version.contains("form 2, this version reads 1"),
            "{other_version}"
        );
        for (reason, changed) in [
            (
                "its format",
                (|m| m.format = "x".into()) as fn(&mut Manifest),
            ),
            ("its settings", |m| m.settings.clear()),
            ("than there is", |m| {
                m.test = Some(Hits {
                    correct: 8,
                    samples: 7,
                });
            }),
            ("is called", |m| {
                m.parts
                    .values_mut()
                    .for_each(|p| p.name = "../../etc/passwd".into());
            }),
            ("is called", |m| m.position.batches_done += 1),
            ("bytes", |m| {
                m.parts.values_mut().for_each(|p| p.bytes = u64::MAX);
            }),
            ("65 parts", |m| {
                for index in 0..64 {
                    let sha256 = Digest::of(b"");
                    let kind = format!("x{index}");
                    let name = part_name(named(60, 0), &kind, sha256);
                    let bytes = 0;
                    m.parts.insert(
                        kind,
                        Part {
                            name,
                            bytes,
                            sha256,
                        },
                    );
                }
            }),
        ] {
            let refused = refusal(changed);
            assert!(refused.contains(reason), "{reason}: {refused}");
        }
        let long = vec![b' '; 1 << 21];
        assert!(
            Manifest::parse(&long)
                .unwrap_err()
                .to_string()
                .contains("2097152 bytes")
        );
    }

    #[test]
    fn names_sort_by_age_and_read_back() {
        assert_eq!(manifest_name(60), "000000000060.json");
        assert!(manifest_name(99) < manifest_name(100));
        for number in [0, 60, 999_999_999_999, u64::MAX] {
            assert_eq!(manifest_number(&manifest_name(number)), Some(number));
            for of in [named(number, 0), named(number, 7), named(number, u64::MAX)] {
                for kind in ["state", "progress.json"] {
                    let part = part_name(of, kind, Digest::of(b""));
                    assert_eq!(manifest_of_part(&part), Some(of), "{part}");
                    let as_manifest = (manifest_number(&part), manifest_of_name(&part));
                    assert_eq!(as_manifest, (None, None), "{part}");
                }
            }
        }
        for other in [
            "60.json",
            "0000000000060.json",
            "x.json",
            ".json",
            "000000000060.jso",
        ] {
            assert_eq!(manifest_number(other), None, "{other}");
        }
        assert!(!part_name(named(1, 0), "../../x", Digest::of(b"")).contains('/'));
    }

    #[test]
    fn a_manifest_without_a_generation_is_as_before() {
        let text = String::from_utf8(manifest().to_bytes()).unwrap();
        assert!(!text.contains("generation"), "{text}");
        // Its parts are named as those of older versions were.
        let mut of_ranks = manifest();
        of_ranks.generation = Some(3);
        let read = Manifest::parse(&of_ranks.clone().sealed().to_bytes()).unwrap();
        assert_eq!(read.generation, Some(3));
        let mut renamed = of_ranks.clone();
        let mut rename = |of: ManifestName| {
            for (kind, part) in &mut renamed.parts {
                part.name = part_name(of, kind, part.sha256);
            }
            Manifest::parse(&renamed.clone().sealed().to_bytes())
        };
        let read = rename(named(60, 3)).unwrap();
        let part = read.parts.into_values().next().unwrap();
        assert_eq!(
            part.name,
            "000000000060-g000003-ba7816bf8f01cfea.weights.safetensors"
        );
        // Nobody else's.
        for other in [named(60, 2), named(60, 4), named(61, 3)] {
            let error = rename(other).unwrap_err().to_string();
            assert!(error.contains("is called"), "{error}");
        }
        let unsealed = Manifest::parse(&of_ranks.to_bytes()).unwrap_err();
        assert!(unsealed.to_string().contains("the digest that it names"));
    }

    #[test]
    fn names_tell_the_generation() {
        let name = manifest_name_of(60, Some(3));
        assert_eq!(name, "000000000060-g000003.json");
        let as_others = (manifest_number(&name), manifest_of_part(&name));
        assert_eq!(as_others, (None, None));
        for other in [
            "000000000060-g3-ab.state",
            "000000000060-g000003.json.damaged",
            "000000000060-gx-ab.state",
            "60-ab.state",
            "readme",
        ] {
            assert_eq!(manifest_of_part(other), None, "{other}");
        }
        for (batches_done, generation) in [(0, 0), (60, 3), (u64::MAX, u64::MAX)] {
            let name = manifest_name_of(batches_done, Some(generation));
            let found = ManifestName {
                batches_done,
                generation,
            };
            assert_eq!(manifest_of_name(&name), Some(found), "{name}");
        }
        for other in [
            "000000000060-g3.json",
            "000000000060-g000000.json",
            "000000000060-g0000003.json",
            "000000000060-g+00003.json",
            "60-g000003.json",
            "000000000060-g000003.jso",
            "000000000060-0123456789abcdef.state",
            "-g000003.json",
        ] {
            assert_eq!(manifest_of_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let all = BTreeMap::from([
            (1, Some(0.5)),
            (2, Some(0.9)),
            (3, None),
            (4, Some(0.9)),
            (5, Some(0.7)),
            (6, None),
        ]);
        let deleted = |last, best| Vec::from_iter(superseded(&all, last, best));
        assert_eq!(deleted(2, false), [1, 2, 3, 4]);
        assert_eq!(deleted(2, true), [1, 3, 4]);
        assert!(deleted(6, true).is_empty());
        assert!(superseded(&BTreeMap::new(), 1, true).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn random_bytes_are_no_manifest(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Manifest::parse(&bytes).is_err());
        }

        #[test]
        fn changed_or_cut_manifests_never_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = manifest().to_bytes();
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            if let Ok(read) = Manifest::parse(&bytes) {
                // White space may change.
                prop_assert_eq!(read, manifest());
            }
            let cut = &bytes[..end.index(bytes.len() - 1)];
            prop_assert!(Manifest::parse(cut).is_err());
        }

        #[test]
        fn the_newest_is_never_deleted(
            all in proptest::collection::btree_map(any::<u64>(), any::<Option<f64>>(), 1..20),
            last in 1_usize..5,
            best: bool,
        ) {
            let deleted = superseded(&all, last, best);
            prop_assert!(!deleted.contains(all.keys().last().unwrap()));
            let left = all.len() - deleted.len();
            prop_assert!(left >= last.min(all.len()) && left <= last + usize::from(best));
        }
    }
}
