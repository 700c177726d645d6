//! The libraries of CUDA and the GPUs. A build with the feature `cuda` loads the libraries and asks
//! them; any other says what their files say.

use super::{Features, Missing};
use crate::libraries::{Environment, Found, Gpu, Library, NotFound, OLDEST_DRIVER, PassedOver};
use crate::libraries::{Tool, Version, find_tool};
use serde::Serialize;
use std::path::PathBuf;

/// The oldest GPUs that the kernels are compiled for: those that round to bf16 themselves.
const OLDEST_GPU: [u32; 2] = [8, 0];

/// How far one got with a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// It is loaded and answers.
    Ready,
    /// There is a file, which this build does not load.
    #[cfg_attr(
        feature = "cuda",
        expect(dead_code, reason = "a build with CUDA loads what it finds")
    )]
    Found,
    /// There is a file, which is of no use.
    Broken,
    /// There is none.
    Missing,
}

/// What is known of a library.
#[derive(Debug, Serialize)]
pub(super) struct LibraryReport {
    pub(super) library: Library,
    pub(super) name: &'static str,
    pub(super) enables: &'static str,
    pub(super) state: State,
    pub(super) path: Option<PathBuf>,
    /// By what the library says, or else by its file's name. The driver's own is `driver`.
    pub(super) version: Option<Version>,
    /// The newest CUDA that the driver takes.
    pub(super) cuda: Option<Version>,
    pub(super) package: Option<String>,
    pub(super) place: Option<&'static str>,
    pub(super) passed_over: Vec<PassedOver>,
    /// Every place, where there is none.
    pub(super) looked_in: Vec<PathBuf>,
    /// Why it is of no use.
    pub(super) problem: Option<String>,
    pub(super) remedy: Option<String>,
}

/// A program of the toolkit.
#[derive(Debug, Serialize)]
pub(super) struct ToolReport {
    pub(super) name: &'static str,
    pub(super) path: Option<PathBuf>,
}

/// What there is of CUDA.
pub(super) struct Cuda {
    pub(super) libraries: Vec<LibraryReport>,
    pub(super) gpus: Option<Vec<Gpu>>,
    pub(super) tools: Vec<ToolReport>,
    /// Why the driver does not list GPUs.
    no_gpus: Option<String>,
    is_built_in: bool,
}

impl Cuda {
    pub(super) fn look(features: Features) -> Self {
        let libraries: Vec<_> = Library::ALL.into_iter().map(LibraryReport::look).collect();
        let (gpus, no_gpus) = match (libraries[0].state, gpus()) {
            (State::Ready, Ok(gpus)) => (gpus, None),
            (State::Ready, Err(why)) => (None, Some(why)),
            (State::Found | State::Broken | State::Missing, _) => (None, None),
        };
        let environment = Environment::of_process();
        let tools = [Tool::Ptxas, Tool::ComputeSanitizer].map(|tool| ToolReport {
            name: tool.file(),
            path: find_tool(tool, &environment),
        });
        Self {
            libraries,
            gpus,
            tools: tools.into(),
            no_gpus,
            is_built_in: features.cuda,
        }
    }

    /// The GPUs on which training works.
    pub(super) fn trains_on(&self) -> Vec<String> {
        let needed = |report: &&LibraryReport| report.library != Library::Nccl;
        let mut libraries = self.libraries.iter().filter(needed);
        if !self.is_built_in || !libraries.all(|report| report.state == State::Ready) {
            return Vec::new();
        }
        let gpus = self.gpus.iter().flatten();
        gpus.filter(|gpu| gpu.capability >= OLDEST_GPU)
            .map(|gpu| format!("cuda:{}", gpu.ordinal))
            .collect()
    }

    /// What is not there, what GPUs need first.
    pub(super) fn missing(&self, features: Features) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut push = |what, why: String, remedy: &str, cuda_needs_it| {
            missing.push(Missing {
                what,
                why,
                remedy: remedy.to_owned(),
                cuda_needs_it,
            });
        };
        let build = "cargo build --release --features cuda,nccl";
        if !features.cuda {
            push(
                "CUDA",
                "this synfire was built without CUDA".into(),
                build,
                true,
            );
        } else if !features.nccl {
            push(
                "NCCL",
                "this synfire was built without NCCL".into(),
                build,
                false,
            );
        }
        for report in &self.libraries {
            if let (Some(problem), Some(remedy)) = (&report.problem, &report.remedy) {
                let is_needed = report.library != Library::Nccl;
                push(report.name, problem.clone(), remedy, is_needed);
            }
        }
        if let Some(why) = &self.no_gpus {
            push("GPU", why.clone(), NO_GPU, true);
        }
        if self.gpus.as_ref().is_some_and(Vec::is_empty) {
            push(
                "GPU",
                "the driver shows no GPU to this process".into(),
                NO_GPU,
                true,
            );
        }
        for gpu in self.gpus.iter().flatten() {
            if gpu.capability < OLDEST_GPU {
                let ([major, minor], [old, older]) = (gpu.capability, OLDEST_GPU);
                let why = format!(
                    "cuda:{} ({}) has compute capability {major}.{minor}, less than {old}.{older}",
                    gpu.ordinal, gpu.name
                );
                let is_only = self.trains_on().is_empty();
                push(
                    "GPU",
                    why,
                    "train on a GPU of the Ampere generation or newer",
                    is_only,
                );
            }
        }
        missing
    }
}

const NO_GPU: &str = "see what nvidia-smi shows; a container is given GPUs by --gpus all, and \
                      CUDA_VISIBLE_DEVICES hides them";

const fn enables(library: Library) -> &'static str {
    match library {
        Library::Driver => "GPUs",
        Library::Nvrtc => "compiles the kernels of --device cuda",
        Library::Cudnn => "convolutions of --device cuda",
        Library::Nccl => "several GPUs",
    }
}

impl LibraryReport {
    fn look(library: Library) -> Self {
        look(library).judged()
    }

    fn found(found: Found, state: State) -> Self {
        Self {
            state,
            path: Some(found.path),
            version: found.version,
            package: found.package,
            place: Some(found.place),
            passed_over: found.passed_over,
            ..Self::empty(found.library)
        }
    }

    fn not_found(error: NotFound) -> Self {
        Self {
            problem: Some(short(&error)),
            remedy: Some(error.remedy.to_owned()),
            passed_over: error.passed_over,
            looked_in: error.looked_in,
            ..Self::empty(error.library)
        }
    }

    fn empty(library: Library) -> Self {
        Self {
            library,
            name: library.name(),
            enables: enables(library),
            state: State::Missing,
            path: None,
            version: None,
            cuda: None,
            package: None,
            place: None,
            passed_over: Vec::new(),
            looked_in: Vec::new(),
            problem: None,
            remedy: None,
        }
    }

    /// A driver that is too old is of no use.
    fn judged(mut self) -> Self {
        let cuda = self
            .cuda
            .as_ref()
            .filter(|cuda| cuda.is_before(OLDEST_DRIVER));
        if let Some(cuda) = cuda {
            let [major, minor] = OLDEST_DRIVER;
            self.problem = Some(format!(
                "the driver takes CUDA {cuda}, and this synfire needs {major}.{minor}"
            ));
            self.remedy = Some("install driver 580 or newer".into());
            self.state = State::Broken;
        }
        self
    }
}

/// An error without its list of places, which is long: the report has what was passed over.
fn short(error: &NotFound) -> String {
    let names = error.names.join(" or ");
    match error.passed_over.first() {
        None => format!(
            "{names} was not found in any of {} places, which --json lists",
            error.looked_in.len()
        ),
        Some(passed) => format!("{names}: {} {}", passed.path.display(), passed.why),
    }
}

#[cfg(feature = "cuda")]
fn look(library: Library) -> LibraryReport {
    use crate::libraries::{OpenError, open, version_of};
    let broken = |error: &OpenError| LibraryReport {
        state: State::Broken,
        problem: Some(error.problem()),
        remedy: Some(library.remedy().to_owned()),
        ..LibraryReport::empty(library)
    };
    let opened = match open(library) {
        Ok(opened) => opened,
        Err(OpenError::NotFound(error)) => return LibraryReport::not_found(error),
        Err(error) => return broken(&error),
    };
    let found = LibraryReport::found(opened.found.clone(), State::Ready);
    match version_of(opened) {
        Ok(cuda) if library == Library::Driver => LibraryReport {
            cuda: Some(cuda),
            version: found.version.or_else(driver_number),
            ..found
        },
        // A package's number is the more exact one where it is the same version.
        Ok(told) => LibraryReport {
            version: Some(
                found
                    .version
                    .filter(|v| is_more_exact(v, &told))
                    .unwrap_or(told),
            ),
            ..found
        },
        Err(error) => LibraryReport {
            path: found.path,
            passed_over: found.passed_over,
            ..broken(&error)
        },
    }
}

#[cfg(feature = "cuda")]
fn is_more_exact(file: &Version, told: &Version) -> bool {
    file.to_string().starts_with(&format!("{told}."))
}

#[cfg(feature = "cuda")]
fn gpus() -> Result<Option<Vec<Gpu>>, String> {
    use crate::libraries::{gpus, open};
    let gpus = open(Library::Driver).and_then(gpus);
    gpus.map(Some).map_err(|error| error.problem())
}

#[cfg(not(feature = "cuda"))]
fn look(library: Library) -> LibraryReport {
    match crate::libraries::find(library) {
        Ok(found) if library == Library::Driver => LibraryReport {
            cuda: Environment::of_process().driver_cuda,
            version: found.version.clone().or_else(driver_number),
            ..LibraryReport::found(found, State::Found)
        },
        Ok(found) => LibraryReport::found(found, State::Found),
        Err(error) => LibraryReport::not_found(error),
    }
}

#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "a build with CUDA may fail")]
fn gpus() -> Result<Option<Vec<Gpu>>, String> {
    Ok(None)
}

fn driver_number() -> Option<Version> {
    Environment::of_process().driver()
}
