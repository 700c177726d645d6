//! Where the libraries of CUDA are: the driver, NVRTC, cuDNN and NCCL are looked for in folders, and
//! nothing is loaded to find them.
//!
//! # Layout
//!
//! - this file: what is looked for, and what is found.
//! - `environment`: what the search knows of the machine.
//! - `places`: the folders, in order.
//! - `cache`: the list of the system's loader.
//! - `binary`: whether a file is a library for this machine.
//! - `version`: versions, by the names of files.
//! - `open`: a library is loaded, and asked what it is (feature `cuda`).
//! - `cudnn`: the parts of cuDNN, which are loaded before it (feature `cuda`).
//! - `gpu`: the GPUs, as the driver lists them (feature `cuda`).

mod binary;
mod cache;
#[cfg(feature = "cuda")]
mod cudnn;
mod environment;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod open;
mod places;
mod version;

pub use environment::Environment;
#[cfg(feature = "cuda")]
pub use gpu::gpus;
#[cfg(feature = "cuda")]
pub use open::{OpenError, Opened, architectures, open, version_of};
pub use version::Version;

use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// The first CUDA whose driver takes what this version is built against.
pub const OLDEST_DRIVER: [u32; 2] = [13, 0];
/// The first NVRTC that knows every architecture that kernels are written for.
pub const OLDEST_NVRTC: [u32; 2] = [12, 8];

/// A library that is loaded when it is first needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Library {
    /// The driver's own, which belongs to the kernel module.
    Driver,
    /// The compiler of kernels.
    Nvrtc,
    /// Convolutions.
    Cudnn,
    /// Averages between GPUs.
    Nccl,
}

impl Library {
    /// All of them, in the order in which they are needed.
    pub const ALL: [Self; 4] = [Self::Driver, Self::Nvrtc, Self::Cudnn, Self::Nccl];

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "NVIDIA's driver",
            Self::Nvrtc => "NVRTC",
            Self::Cudnn => "cuDNN",
            Self::Nccl => "NCCL",
        }
    }

    /// Names of its file, the best first.
    pub const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1"],
            Self::Nvrtc => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            Self::Cudnn => &["libcudnn.so.9"],
            Self::Nccl => &["libnccl.so.2"],
        }
    }

    /// What to do where there is none.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Driver => {
                "install NVIDIA's driver 580 or newer on the machine; a container gets it from the \
                 machine, by NVIDIA's container toolkit (docker run --gpus all)"
            }
            Self::Nvrtc => {
                "pip install 'nvidia-cuda-nvrtc==13.0.*' in the active environment, or set \
                 SYNFIRE_LIBRARIES to the folder that has it"
            }
            Self::Cudnn => {
                "pip install nvidia-cudnn-cu13 in the active environment, or set SYNFIRE_LIBRARIES \
                 to the folder that has it"
            }
            Self::Nccl => {
                "pip install nvidia-nccl-cu13 in the active environment, or set SYNFIRE_LIBRARIES to \
                 the folder that has it"
            }
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A library's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Which it is.
    pub library: Library,
    /// Its file, as it is to be loaded: an absolute path.
    pub path: PathBuf,
    /// Its version by names of files; it may have fewer parts than the library's own, or be unknown.
    pub version: Option<Version>,
    /// The Python package that brought it, with its version.
    pub package: Option<String>,
    /// By which rule its folder was looked in.
    pub place: &'static str,
    /// Files before it that were not taken.
    pub passed_over: Vec<PassedOver>,
}

/// A file of the right name that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
}

/// A library that is in none of the places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}", self.told())]
pub struct NotFound {
    /// Which it is.
    pub library: Library,
    /// Names of its file.
    pub names: &'static [&'static str],
    /// Where they were looked for, in order; what does not exist too.
    pub looked_in: Vec<PathBuf>,
    /// Files of these names that would not do.
    pub passed_over: Vec<PassedOver>,
    /// What to do.
    pub remedy: &'static str,
}

impl NotFound {
    fn told(&self) -> String {
        let folders: Vec<String> = self
            .looked_in
            .iter()
            .map(|p| p.display().to_string())
            .collect();
        let mut parts = vec![
            format!(
                "{} ({}) was not found",
                self.names.join(" or "),
                self.library
            ),
            format!("looked in {}", folders.join(", ")),
        ];
        let passed = self.passed_over.iter();
        parts.extend(passed.map(|passed| format!("{} {}", passed.path.display(), passed.why)));
        format!("{}: {}", parts.join("; "), self.remedy)
    }
}

/// Finds a library on this machine; see [`find_in`].
///
/// # Errors
/// [`NotFound`] if it is nowhere; the error has every place.
pub fn find(library: Library) -> Result<Found, NotFound> {
    find_in(library, &Environment::of_process())
}

/// Finds a library: the first file of one of its names that is a library for this machine, in
/// `SYNFIRE_LIBRARIES`, `LD_LIBRARY_PATH`, Python's packages, CUDA's toolkit, the system's folders and
/// the list of the system's loader. Of several NVRTCs, the first that is not newer than the driver is
/// preferred: what a newer one makes may not load.
///
/// # Errors
/// [`NotFound`] if it is nowhere; the error has every place.
pub fn find_in(library: Library, environment: &Environment) -> Result<Found, NotFound> {
    let places = places::places(library, environment);
    let mut passed_over = Vec::new();
    let mut newer = None;
    for place in &places {
        for name in library.files() {
            let path = place.folder.join(name);
            if !path.exists() {
                continue;
            }
            if let Err(why) = fit(library, &path) {
                passed_over.push(PassedOver { path, why });
                continue;
            }
            let (version, package) = version::of_file(library, &path);
            let mut found = Found {
                library,
                path,
                version,
                package,
                place: place.rule,
                passed_over: Vec::new(),
            };
            match judge(&found, environment.driver_cuda.as_ref()) {
                Judgement::Good => {
                    found.passed_over = passed_over;
                    return Ok(found);
                }
                Judgement::TooOld(why) => passed_over.push(PassedOver {
                    path: found.path,
                    why,
                }),
                Judgement::Newer(why) => {
                    let path = found.path.clone();
                    newer.get_or_insert((found, passed_over.clone()));
                    passed_over.push(PassedOver { path, why });
                }
            }
        }
    }
    // Better than none: it may still know the GPU, and the driver says so if what it makes does not load.
    if let Some((mut found, before)) = newer {
        found.passed_over = before;
        return Ok(found);
    }
    Err(NotFound {
        library,
        names: library.files(),
        looked_in: places.into_iter().map(|place| place.shown).collect(),
        passed_over,
        remedy: library.remedy(),
    })
}

/// Whether a file may be loaded at all.
fn fit(library: Library, path: &Path) -> Result<(), String> {
    binary::check(path)?;
    // The toolkit's folder "stubs" has files to link against, which do nothing.
    let is_stub = path
        .parent()
        .is_some_and(|folder| folder.ends_with("stubs"));
    if library == Library::Driver && is_stub {
        return Err("is a stub to link against, no driver".into());
    }
    Ok(())
}

enum Judgement {
    Good,
    TooOld(String),
    Newer(String),
}

fn judge(found: &Found, driver: Option<&Version>) -> Judgement {
    let (Library::Nvrtc, Some(version)) = (found.library, &found.version) else {
        return Judgement::Good;
    };
    if version.is_before(OLDEST_NVRTC) {
        let [major, minor] = OLDEST_NVRTC;
        return Judgement::TooOld(format!(
            "is {version}, older than {major}.{minor}, the first that knows every architecture"
        ));
    }
    match driver {
        Some(driver) if version.is_after(driver) => Judgement::Newer(format!(
            "is {version}, newer than the driver's CUDA {driver}"
        )),
        _ => Judgement::Good,
    }
}

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its number, as in `cuda:0`.
    pub ordinal: u32,
    /// As NVIDIA calls it.
    pub name: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Its compute capability: 9 and 0.
    pub capability: [u32; 2],
    /// Its multiprocessors.
    pub multiprocessors: u32,
}

/// A program of CUDA's toolkit, for the checks of this repository and for `synfire doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The assembler: registers and spills of kernels.
    Ptxas,
    /// The checker of memory accesses.
    ComputeSanitizer,
}

impl Tool {
    /// The name of its file.
    pub const fn file(self) -> &'static str {
        match self {
            Self::Ptxas => "ptxas",
            Self::ComputeSanitizer => "compute-sanitizer",
        }
    }
}

/// Finds a program of the toolkit: on `PATH`, in the toolkit, in Python's packages.
pub fn find_tool(tool: Tool, environment: &Environment) -> Option<PathBuf> {
    let folders = places::programs(environment);
    let mut files = folders.into_iter().map(|folder| folder.join(tool.file()));
    files.find(|path| path.is_file())
}

#[cfg(test)]
mod tests;
