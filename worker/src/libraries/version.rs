//! Versions, by the names of files: nothing is loaded for them.

use super::{Environment, Library};
use serde::{Serialize, Serializer};
use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

/// More entries of a folder than these are not looked at.
const MAX_ENTRIES: usize = 16_384;
/// More of `/proc/driver/nvidia/version` is not read.
const MAX_BYTES: u64 = 4096;
/// Parts of a version that are kept.
const MAX_PARTS: usize = 4;

/// Numbers with dots between them, as 13.0.88; at least one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    parts: Vec<u32>,
}

impl Version {
    /// Of these numbers; the first four are kept.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(parts: &[u32]) -> Self {
        assert!(!parts.is_empty(), "a version has a number");
        Self {
            parts: parts[..parts.len().min(MAX_PARTS)].to_vec(),
        }
    }

    /// Of a text of numbers with dots between them.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        parts.ok().map(|parts| Self::new(&parts))
    }

    /// The first number.
    pub fn major(&self) -> u32 {
        self.parts[0]
    }

    /// The second number, where it is known.
    pub fn minor(&self) -> Option<u32> {
        self.parts.get(1).copied()
    }

    /// Whether it is certainly before the first two numbers of another.
    pub fn is_before(&self, other: [u32; 2]) -> bool {
        let minor = self.minor().unwrap_or(u32::MAX);
        (self.major(), minor) < (other[0], other[1])
    }

    /// Whether it certainly goes beyond another in the first two numbers.
    pub fn is_after(&self, other: &Self) -> bool {
        let limit = (other.major(), other.minor().unwrap_or(u32::MAX));
        (self.major(), self.minor().unwrap_or(0)) > limit
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(u32::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A library's version by the files around it, the most exact one, and the Python package that has it.
pub(super) fn of_file(library: Library, path: &Path) -> (Option<Version>, Option<String>) {
    if let Some((package, version)) = package(library, path) {
        let shown = format!("{package} {version}");
        return (Version::parse(&version), Some(shown));
    }
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let own = [&real, path].map(|path| suffix(path.file_name()?.to_str()?));
    let [real, named] = own;
    let beside = (library == Library::Nvrtc)
        .then(|| builtins(path))
        .flatten();
    let all = [real, beside, named];
    // Of as many parts the first is the best: the real file's own.
    let best = all
        .into_iter()
        .flatten()
        .rev()
        .max_by_key(|version| version.parts.len());
    // The driver's file has the driver's number, and only that says anything.
    let best = best.filter(|version| library != Library::Driver || version.parts.len() > 1);
    (best, None)
}

/// What follows ".so." in a file's name.
fn suffix(name: &str) -> Option<Version> {
    Version::parse(name.split_once(".so.")?.1)
}

/// NVRTC's other file says the minor version where its own does not.
fn builtins(path: &Path) -> Option<Version> {
    let major = suffix(path.file_name()?.to_str()?).map(|version| version.major());
    let names = entries(path.parent()?);
    let versions = names.filter_map(|name| {
        let rest = name.strip_prefix("libnvrtc-builtins.so.")?;
        Version::parse(rest)
    });
    versions
        .filter(|version| major.is_none_or(|major| version.major() == major))
        .max()
}

/// Name and version of the Python package that a library lies in, by the folder that pip keeps of it:
/// `nvidia_cudnn_cu13-9.12.0.46.dist-info`.
fn package(library: Library, path: &Path) -> Option<(String, String)> {
    let nvidia = path.ancestors().find(|folder| folder.ends_with("nvidia"))?;
    let major = suffix(path.file_name()?.to_str()?).map(|version| version.major());
    let wanted = match library {
        Library::Driver => return None,
        Library::Nvrtc => "nvidia_cuda_nvrtc",
        Library::Cudnn => "nvidia_cudnn",
        Library::Nccl => "nvidia_nccl",
    };
    let found = entries(nvidia.parent()?).filter_map(|name| {
        let stem = name.strip_suffix(".dist-info")?;
        let (package, version) = stem.rsplit_once('-')?;
        let package = package.replace('-', "_").to_lowercase();
        let rest = package.strip_prefix(wanted)?;
        let is_it = rest.is_empty() || rest.starts_with("_cu");
        // Two packages of NVRTC may lie side by side.
        let parsed = Version::parse(version)?;
        let fits = major.is_none_or(|major| parsed.major() == major);
        (is_it && fits).then(|| (package.replace('_', "-"), version.to_owned()))
    });
    found.max_by_key(|(_, version)| Version::parse(version))
}

fn entries(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.take(MAX_ENTRIES);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// The driver's own version, as 580.65.06, by what its kernel module says.
pub(super) fn driver(environment: &Environment) -> Option<Version> {
    let path = environment.at("/proc/driver/nvidia/version");
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with("NVRM version:"))?;
    let mut words = line.split_whitespace();
    words.find_map(|word| word.contains('.').then(|| Version::parse(word))?)
}

/// The newest CUDA that the driver takes, by its own version.
pub(super) fn driver_cuda(environment: &Environment) -> Option<Version> {
    cuda_of_driver(driver(environment)?.major())
}

/// The newest CUDA that a driver of this number takes; absent where that is not known.
///
/// # Source
/// NVIDIA, CUDA Toolkit Release Notes, table "CUDA Toolkit and Corresponding Driver Versions".
pub(super) fn cuda_of_driver(major: u32) -> Option<Version> {
    let [cuda, minor] = match major {
        525..530 => [12, 0],
        530..535 => [12, 1],
        535..545 => [12, 2],
        545..550 => [12, 3],
        550..555 => [12, 4],
        555..560 => [12, 5],
        560..565 => [12, 6],
        565..570 => [12, 7],
        570..575 => [12, 8],
        575..580 => [12, 9],
        580..590 => [13, 0],
        590..595 => [13, 1],
        _ => return None,
    };
    Some(Version::new(&[cuda, minor]))
}
