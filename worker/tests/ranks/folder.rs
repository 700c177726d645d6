//! A run folder, on a disk or on the server of `s3/`, as far as a test looks into it.

use crate::s3::{BUCKET, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use synfire_shared::checkpoint::{Digest, Manifest, ManifestName, manifest_of_name};
use synfire_shared::generation::{Generation, Lineage};

/// A folder of this machine that goes when the test passes.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let folder = format!("synfire-ranks-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A run folder in it.
    pub(crate) fn folder(&self, name: &str) -> Folder<'static> {
        Folder::Disk(self.path(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A run folder.
#[derive(Clone)]
pub(crate) enum Folder<'a> {
    Disk(PathBuf),
    Store(&'a Server, String),
}

impl Folder<'_> {
    /// What `run.folder` says.
    pub(crate) fn location(&self) -> String {
        match self {
            Self::Disk(path) => path.display().to_string(),
            Self::Store(_, name) => format!("s3://{BUCKET}/{name}"),
        }
    }

    pub(crate) fn server(&self) -> Option<&Server> {
        match self {
            Self::Disk(_) => None,
            Self::Store(server, _) => Some(server),
        }
    }

    /// The names in one of its folders.
    fn names(&self, folder: &str) -> BTreeSet<String> {
        match self {
            Self::Disk(path) => names(&path.join(folder)),
            Self::Store(server, name) => {
                let objects = server.contents(&format!("{name}/{folder}/"));
                objects.into_keys().collect()
            }
        }
    }

    /// An object; nothing where it is gone.
    pub(crate) fn read(&self, key: &str) -> Option<Vec<u8>> {
        match self {
            Self::Disk(path) => match fs::read(path.join(key)) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                bytes => Some(bytes.unwrap()),
            },
            Self::Store(server, name) => {
                let mut objects = server.contents(&format!("{name}/{key}"));
                objects.remove("")
            }
        }
    }

    pub(crate) fn text(&self, key: &str) -> String {
        let bytes = self.read(key);
        let bytes = bytes.unwrap_or_else(|| panic!("there is no {key}"));
        String::from_utf8(bytes).unwrap()
    }

    /// All manifests of checkpoints, whether they count or not.
    pub(crate) fn manifests(&self) -> BTreeSet<ManifestName> {
        let names = self.names("checkpoints");
        names.iter().filter_map(|n| manifest_of_name(n)).collect()
    }

    /// Batches before the newest manifest.
    pub(crate) fn newest(&self) -> u64 {
        let newest = self.manifests().last().copied();
        newest.map_or(0, |manifest| manifest.batches_done)
    }

    /// All generations, by number.
    pub(crate) fn generations(&self) -> BTreeMap<u64, Generation> {
        let names = self.names("generations");
        let read = |name: &String| {
            // One may be withdrawn between the list and this.
            let bytes = self.read(&format!("generations/{name}"))?;
            let generation = Generation::parse(&bytes).unwrap();
            Some((generation.generation, generation))
        };
        names.iter().filter_map(read).collect()
    }

    pub(crate) fn lineage(&self) -> Lineage {
        Lineage::of(self.generations().values().map(Generation::link))
    }

    /// The newest checkpoint that counts, with all its parts checked.
    pub(crate) fn last_checkpoint(&self) -> Manifest {
        let newest = self.lineage().newest(self.manifests());
        let name = newest.expect("a checkpoint counts");
        let manifest = self.read(&format!("checkpoints/{name}")).unwrap();
        let manifest = Manifest::parse(&manifest).unwrap();
        for part in manifest.parts.values() {
            let bytes = self.read(&format!("checkpoints/{}", part.name));
            let digest = bytes.map(|bytes| Digest::of(&bytes));
            assert_eq!(digest, Some(part.sha256), "{} of {name}", part.name);
        }
        manifest
    }

    /// What the newest checkpoint that counts has, without what a clock has measured.
    pub(crate) fn bits(&self) -> (u64, Vec<(String, Digest)>) {
        let manifest = self.last_checkpoint();
        let parts = manifest.parts.into_iter();
        let parts = parts.filter(|(kind, _)| !kind.starts_with("progress"));
        let parts: Vec<_> = parts.map(|(kind, part)| (kind, part.sha256)).collect();
        assert!(
            parts.iter().any(|(kind, _)| kind.starts_with("weights")),
            "{parts:?}"
        );
        (manifest.position.batches_done, parts)
    }

    /// The lines of the epochs, without what a clock or the system has measured.
    pub(crate) fn numbers(&self) -> Vec<serde_json::Value> {
        let line = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            fields.retain(|name, _| {
                !name.ends_with("_mib") && !name.contains("seconds") && name != "images_per_second"
            });
            // Sums are joined at checkpoints, and where those fall is a matter of time.
            let loss = fields["loss"].as_f64().unwrap();
            fields["loss"] = format!("{loss:.10}").into();
            line
        };
        self.text("metrics.jsonl").lines().map(line).collect()
    }

    /// That generations follow each other: each starts from the newest checkpoint that counted, and
    /// nobody who was superseded wrote more than what was under way. `seen` are manifests that were
    /// there at any time.
    pub(crate) fn assert_one_line(&self, seen: &BTreeSet<ManifestName>) {
        let generations = self.generations();
        let links: Vec<_> = generations.values().map(Generation::link).collect();
        let mut last_start = 0;
        for (index, (number, generation)) in generations.iter().enumerate() {
            let start = generation.start.as_ref();
            let batches = start.map_or(0, |start| start.batches_done);
            assert!(batches >= last_start, "generation {number} went back");
            last_start = batches;
            let Some(start) = start else { continue };
            let start = manifest_of_name(&start.manifest).unwrap();
            let before = Lineage::of(links[..index].iter().copied());
            assert!(before.counts(start), "generation {number} from {start}");
        }
        let lineage = Lineage::of(links);
        let mut by_batch = BTreeMap::new();
        let mut late: BTreeMap<u64, Vec<ManifestName>> = BTreeMap::new();
        for &manifest in seen {
            assert!(generations.contains_key(&manifest.generation), "{manifest}");
            if !lineage.counts(manifest) {
                late.entry(manifest.generation).or_default().push(manifest);
            } else if let Some(other) = by_batch.insert(manifest.batches_done, manifest) {
                panic!("both {manifest} and {other} count");
            }
        }
        for (generation, manifests) in late {
            assert!(manifests.len() <= 1, "{generation}: {manifests:?}");
        }
        let generations = by_batch.values().map(|manifest| manifest.generation);
        assert!(generations.is_sorted(), "{by_batch:?}");
    }
}

/// The names in a folder that may not be there yet.
fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeSet::new();
    };
    // What is renamed meanwhile is not there; what is still being written (`name#1`) is not there yet.
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| !name.contains('#')).collect()
}
