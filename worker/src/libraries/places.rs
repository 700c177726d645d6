//! The folders in which a library is looked for, in order.

use super::{Environment, Library, cache};
use std::collections::BTreeSet;
use std::env::split_paths;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// More entries of a folder than these are not looked at.
const MAX_ENTRIES: usize = 4096;
/// Folders of the system, with those that containers and WSL put the driver in.
const SYSTEM: &[&str] = &[
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/lib",
];

/// A folder, and the rule by which it is looked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) rule: &'static str,
    /// What an error says of it.
    pub(super) shown: PathBuf,
}

impl Place {
    fn new(folder: PathBuf, rule: &'static str) -> Self {
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Self {
            shown: folder.clone(),
            folder,
            rule,
        }
    }
}

/// All places of a library, each folder once.
pub(super) fn places(library: Library, environment: &Environment) -> Vec<Place> {
    let mut places = Vec::new();
    let mut push = |rule: &'static str, folders: Vec<PathBuf>| {
        places.extend(folders.into_iter().map(|folder| Place::new(folder, rule)));
    };
    push(
        "SYNFIRE_LIBRARIES",
        listed(environment.synfire_libraries.as_ref()),
    );
    push(
        "LD_LIBRARY_PATH",
        listed(environment.ld_library_path.as_ref()),
    );
    // The driver comes with the machine alone; what a toolkit has of it is a stub.
    if library != Library::Driver {
        push("Python package", python(library, environment));
        push("CUDA toolkit", toolkit_libraries(environment));
    }
    push(
        "system",
        SYSTEM.iter().map(|path| environment.at(path)).collect(),
    );
    let file = environment.at("/etc/ld.so.cache");
    let known = cache::folders(&file, library.files());
    let is_silent = known.is_empty();
    push("system's loader", known);
    let mut seen = BTreeSet::new();
    places.retain(|place| seen.insert(place.folder.clone()));
    if is_silent {
        // It has been looked in, and that is to be told.
        let nowhere = file.join("-");
        places.push(Place {
            folder: nowhere,
            rule: "system's loader",
            shown: file,
        });
    }
    places
}

/// Folders of programs: on `PATH`, in the toolkit, in Python's packages.
pub(super) fn programs(environment: &Environment) -> Vec<PathBuf> {
    let mut folders = listed(environment.path.as_ref());
    let toolkits = toolkits(environment);
    folders.extend(toolkits.iter().map(|toolkit| toolkit.join("bin")));
    folders.extend(toolkits.iter().map(|kit| kit.join("compute-sanitizer")));
    for site in sites(environment) {
        for package in ["cu13", "cuda_nvcc", "cuda_sanitizer_api"] {
            folders.push(site.join("nvidia").join(package).join("bin"));
        }
    }
    folders
}

/// The folders of a list with colons. An empty one stands for the folder at hand, which nobody means.
fn listed(list: Option<&OsString>) -> Vec<PathBuf> {
    let list = list.into_iter().flat_map(split_paths);
    list.filter(|folder| !folder.as_os_str().is_empty())
        .collect()
}

/// A library's folders in Python's packages.
fn python(library: Library, environment: &Environment) -> Vec<PathBuf> {
    let packages: &[&str] = match library {
        Library::Driver => &[],
        Library::Nvrtc => &["cu13", "cuda_nvrtc"],
        Library::Cudnn => &["cudnn"],
        Library::Nccl => &["nccl"],
    };
    let sites = sites(environment);
    let inside = |site: &PathBuf| {
        let nvidia = site.join("nvidia");
        packages
            .iter()
            .map(move |name| nvidia.join(name).join("lib"))
    };
    sites.iter().flat_map(inside).collect()
}

/// Folders with Python's packages: of the active environments, of each `python3` on `PATH`, of the
/// user. No Python is run to know them.
fn sites(environment: &Environment) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = Vec::new();
    prefixes.extend(environment.virtual_env.iter().map(PathBuf::from));
    prefixes.extend(environment.conda_prefix.iter().map(PathBuf::from));
    for folder in listed(environment.path.as_ref()) {
        if !folder.join("python3").exists() {
            continue;
        }
        let Some(prefix) = folder.parent() else {
            continue;
        };
        if folder.ends_with("shims") {
            // pyenv: one script for all versions.
            prefixes.extend(children(&prefix.join("versions"), ""));
        } else {
            prefixes.push(prefix.to_owned());
        }
    }
    prefixes.extend([environment.at("/usr"), environment.at("/usr/local")]);
    prefixes.extend(
        environment
            .home
            .iter()
            .map(|home| Path::new(home).join(".local")),
    );
    let mut sites = Vec::new();
    for prefix in prefixes {
        // Debian's own Python has its packages in the first, pip's in the second or third.
        sites.push(prefix.join("lib/python3/dist-packages"));
        for python in children(&prefix.join("lib"), "python3.") {
            sites.push(python.join("site-packages"));
            sites.push(python.join("dist-packages"));
        }
    }
    let mut seen = BTreeSet::new();
    // /lib is /usr/lib on most systems.
    sites.retain(|site| fs::canonicalize(site).is_ok_and(|real| seen.insert(real)));
    sites
}

fn toolkit_libraries(environment: &Environment) -> Vec<PathBuf> {
    let inside = |toolkit: PathBuf| {
        let targets = ["x86_64-linux", "sbsa-linux"];
        let targets = targets.map(|target| toolkit.join("targets").join(target).join("lib"));
        [toolkit.join("lib64"), toolkit.join("lib")]
            .into_iter()
            .chain(targets.into_iter().filter(|folder| folder.is_dir()))
    };
    toolkits(environment).into_iter().flat_map(inside).collect()
}

/// Toolkits: those that are named, then the usual one, then others from new to old.
fn toolkits(environment: &Environment) -> Vec<PathBuf> {
    let named = environment.toolkits.iter().map(PathBuf::from);
    let mut toolkits: Vec<PathBuf> = named.collect();
    toolkits.push(environment.at("/usr/local/cuda"));
    toolkits.extend(children(&environment.at("/usr/local"), "cuda-"));
    toolkits
}

/// The folders in a folder whose names begin so, those with larger numbers first.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut named: Vec<(Vec<u32>, PathBuf)> = entries
        .take(MAX_ENTRIES)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(start))
        .map(|entry| (numbers(&entry.file_name().to_string_lossy()), entry.path()))
        .filter(|(_, path)| path.is_dir())
        .collect();
    named.sort_by(|a, b| b.cmp(a));
    named.into_iter().map(|(_, path)| path).collect()
}

/// The numbers in a name: 3 and 12 of `python3.12`.
fn numbers(name: &str) -> Vec<u32> {
    let parts = name.split(|letter: char| !letter.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}
