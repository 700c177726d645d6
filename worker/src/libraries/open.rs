//! A library is loaded, once for the life of the process, and asked what it is. Every function is looked
//! up by its name and a missing one is an error: nothing here panics.
#![allow(
    unsafe_code,
    reason = "libraries are loaded, and functions of C called in them"
)]

use super::{Environment, Found, Library, NotFound, Version, cudnn, find_in};
use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW, Symbol};
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A library that stays loaded until the process ends.
#[derive(Debug)]
pub struct Opened {
    /// Its file.
    pub found: Found,
    /// The loader's handle; functions of it may be kept for ever.
    pub handle: Handle,
}

/// Why a library cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is nowhere.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The loader refuses the file.
    #[error("{}: {}", self.problem(), library.remedy())]
    Load {
        /// Which it is.
        library: Library,
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The library lacks a function.
    #[error("{}: {}", self.problem(), library.remedy())]
    Symbol {
        /// Which it is.
        library: Library,
        /// The file.
        path: PathBuf,
        /// The function.
        name: &'static str,
    },
    /// A function says that it cannot do its work.
    #[error("{}: {}", self.problem(), library.remedy())]
    Call {
        /// Which it is.
        library: Library,
        /// The file.
        path: PathBuf,
        /// The function.
        name: &'static str,
        /// What the library says.
        reason: String,
    },
}

impl OpenError {
    /// What is wrong, without what to do; that is [`Library::remedy`].
    pub fn problem(&self) -> String {
        match self {
            Self::NotFound(error) => error.to_string(),
            Self::Load {
                library,
                path,
                reason,
            } => format!("{library} at {} cannot be loaded: {reason}", path.display()),
            Self::Symbol {
                library,
                path,
                name,
            } => format!(
                "{library} at {} has no function {name}: is it too old?",
                path.display()
            ),
            Self::Call {
                path, name, reason, ..
            } => format!("{name} of {} fails: {reason}", path.display()),
        }
    }
}

/// Those that are loaded.
static OPENED: Mutex<Vec<&'static Opened>> = Mutex::new(Vec::new());

/// Loads a library where [`super::find`] finds it, at the first call; later calls give the same one.
/// Its functions are open to all of the process, so that who loads it by its bare name later gets
/// this one.
///
/// # Errors
/// [`OpenError::NotFound`] and [`OpenError::Load`], each with the place.
pub fn open(library: Library) -> Result<&'static Opened, OpenError> {
    let mut all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(opened) = all.iter().find(|opened| opened.found.library == library) {
        return Ok(opened);
    }
    let mut environment = Environment::of_process();
    let driver = all
        .iter()
        .find(|opened| opened.found.library == Library::Driver);
    if let Some(Ok(version)) = driver.map(|driver| version_of(driver)) {
        environment.driver_cuda = Some(version);
    }
    let found = find_in(library, &environment)?;
    if library == Library::Nvrtc {
        builtins(&found.path);
    }
    if library == Library::Cudnn {
        cudnn::load_parts(&found.path)?;
    }
    let handle = load(&found.path).map_err(|error| OpenError::Load {
        library,
        path: found.path.clone(),
        reason: told(&error),
    })?;
    let opened: &'static Opened = Box::leak(Box::new(Opened { found, handle }));
    all.push(opened);
    Ok(opened)
}

/// NVRTC loads another file by its bare name, beside it in Python's packages, where the loader would
/// not look. Where this fails NVRTC says so itself when it compiles.
fn builtins(nvrtc: &Path) {
    let Some(folder) = nvrtc.parent() else { return };
    let major = nvrtc.extension().unwrap_or_default().to_string_lossy();
    let start = format!("libnvrtc-builtins.so.{major}.");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start));
    if let Some(entry) = names.next()
        && let Ok(handle) = load(&entry.path())
    {
        std::mem::forget(handle);
    }
}

/// The loader's own words.
pub(super) fn told(error: &libloading::Error) -> String {
    let words = std::error::Error::source(error);
    words.map_or_else(|| error.to_string(), ToString::to_string)
}

fn load(path: &Path) -> Result<Handle, libloading::Error> {
    // SAFETY: the initialisers of the file run. It is a library of CUDA by its name, from a folder of
    // the system, of the user or that the user named; what they do is as trusted as this program.
    unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
}

/// Loads a part of a library, which is opened by its bare name later and stays loaded. A bare name is
/// looked for by the system's loader.
pub(super) fn load_part(file: &Path) -> Result<(), libloading::Error> {
    // SAFETY: as in `load`. Its functions are found by who opens it, and by nobody else.
    let handle = unsafe { Handle::open(Some(file), RTLD_NOW | RTLD_LOCAL) }?;
    std::mem::forget(handle);
    Ok(())
}

impl Opened {
    /// A function by its name.
    ///
    /// # Errors
    /// [`OpenError::Symbol`] if there is none.
    ///
    /// # Safety
    /// `T` is the function's own type, as the library's header has it.
    pub unsafe fn symbol<T: Copy>(&self, name: &'static str) -> Result<T, OpenError> {
        // SAFETY: the caller vouches for the type; the library is never unloaded.
        let symbol: Result<Symbol<T>, _> = unsafe { self.handle.get(name) };
        symbol.map(|symbol| *symbol).map_err(|_| OpenError::Symbol {
            library: self.found.library,
            path: self.found.path.clone(),
            name,
        })
    }

    pub(super) fn failed(&self, name: &'static str, reason: String) -> OpenError {
        OpenError::Call {
            library: self.found.library,
            path: self.found.path.clone(),
            name,
            reason,
        }
    }
}

/// A function that writes one number.
pub(super) type GetInt = unsafe extern "C" fn(*mut c_int) -> c_int;

/// What the library itself says of its version; the driver: the newest CUDA that it takes.
///
/// # Errors
/// [`OpenError::Symbol`] and [`OpenError::Call`].
pub fn version_of(opened: &Opened) -> Result<Version, OpenError> {
    match opened.found.library {
        // cuda.h: 1000 major + 10 minor.
        Library::Driver => {
            let number = number(opened, "cuDriverGetVersion")?;
            Ok(Version::new(&[number / 1000, number % 1000 / 10]))
        }
        Library::Nvrtc => nvrtc_version(opened),
        Library::Cudnn => {
            let name = "cudnnGetVersion";
            // SAFETY: cudnn_version.h: size_t cudnnGetVersion(void).
            let call: unsafe extern "C" fn() -> usize = unsafe { opened.symbol(name) }?;
            // SAFETY: it takes nothing and needs nothing.
            let number = u32::try_from(unsafe { call() }).unwrap_or(0);
            // 10000 major + 100 minor + patch, since cuDNN 9.
            let parts = [number / 10_000, number / 100 % 100, number % 100];
            Ok(Version::new(&parts))
        }
        Library::Nccl => {
            let number = number(opened, "ncclGetVersion")?;
            // nccl.h: likewise, since NCCL 2.9.
            let parts = [number / 10_000, number / 100 % 100, number % 100];
            Ok(Version::new(&parts))
        }
    }
}

fn number(opened: &Opened, name: &'static str) -> Result<u32, OpenError> {
    // SAFETY: cuda.h and nccl.h: cuDriverGetVersion and ncclGetVersion take an int* and return an enum.
    let call: GetInt = unsafe { opened.symbol(name) }?;
    let mut number = 0;
    // SAFETY: `number` is alive, and neither function needs anything before it.
    let status = unsafe { call(&raw mut number) };
    if status != 0 {
        return Err(opened.failed(name, format!("status {status}")));
    }
    Ok(u32::try_from(number).unwrap_or(0))
}

fn nvrtc_version(opened: &Opened) -> Result<Version, OpenError> {
    type Get = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    let name = "nvrtcVersion";
    // SAFETY: nvrtc.h: nvrtcResult nvrtcVersion(int *major, int *minor).
    let call: Get = unsafe { opened.symbol(name) }?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are alive.
    let status = unsafe { call(&raw mut major, &raw mut minor) };
    if status != 0 {
        return Err(opened.failed(name, format!("status {status}")));
    }
    let [major, minor] = [major, minor].map(|part| u32::try_from(part).unwrap_or(0));
    Ok(Version::new(&[major, minor]))
}

/// The architectures that an NVRTC compiles for, as 90 for compute capability 9.0.
///
/// # Errors
/// [`OpenError::Symbol`] and [`OpenError::Call`].
pub fn architectures(nvrtc: &Opened) -> Result<Vec<u32>, OpenError> {
    // SAFETY: nvrtc.h: nvrtcResult nvrtcGetNumSupportedArchs(int *numArchs).
    let count: GetInt = unsafe { nvrtc.symbol("nvrtcGetNumSupportedArchs") }?;
    // SAFETY: nvrtc.h: nvrtcResult nvrtcGetSupportedArchs(int *supportedArchs).
    let get: GetInt = unsafe { nvrtc.symbol("nvrtcGetSupportedArchs") }?;
    let mut number = 0;
    // SAFETY: `number` is alive.
    let status = unsafe { count(&raw mut number) };
    let number = usize::try_from(number).unwrap_or(0);
    if status != 0 || !(1..=1024).contains(&number) {
        return Err(nvrtc.failed("nvrtcGetNumSupportedArchs", format!("status {status}")));
    }
    let mut all = vec![0; number];
    // SAFETY: it writes as many numbers as it has said.
    let status = unsafe { get(all.as_mut_ptr()) };
    if status != 0 {
        return Err(nvrtc.failed("nvrtcGetSupportedArchs", format!("status {status}")));
    }
    Ok(all
        .into_iter()
        .filter_map(|a| u32::try_from(a).ok())
        .collect())
}
