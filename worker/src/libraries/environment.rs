//! What the search for libraries knows of the machine, so that it can be tried on another one.

use super::version::{self, Version};
use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

/// What the search for libraries knows of the machine. [`Environment::default`] knows nothing and
/// looks at the root of this machine's files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `SYNFIRE_LIBRARIES`: folders with a colon between them.
    pub synfire_libraries: Option<OsString>,
    /// `LD_LIBRARY_PATH`, likewise.
    pub ld_library_path: Option<OsString>,
    /// `VIRTUAL_ENV`: the active environment of Python.
    pub virtual_env: Option<OsString>,
    /// `CONDA_PREFIX`: the active environment of conda.
    pub conda_prefix: Option<OsString>,
    /// `PATH`, on which `python3` is.
    pub path: Option<OsString>,
    /// `HOME`, with packages of the user.
    pub home: Option<OsString>,
    /// `CUDA_HOME`, then `CUDA_PATH`: toolkits.
    pub toolkits: Vec<OsString>,
    /// What stands for `/`; absent: `/`.
    pub root: Option<PathBuf>,
    /// The newest CUDA that the driver takes, where that is known.
    pub driver_cuda: Option<Version>,
}

impl Environment {
    /// That of this process. The driver's version is what its files say.
    pub fn of_process() -> Self {
        let value = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let mut environment = Self {
            synfire_libraries: value("SYNFIRE_LIBRARIES"),
            ld_library_path: value("LD_LIBRARY_PATH"),
            virtual_env: value("VIRTUAL_ENV"),
            conda_prefix: value("CONDA_PREFIX"),
            path: value("PATH"),
            home: value("HOME"),
            toolkits: ["CUDA_HOME", "CUDA_PATH"]
                .into_iter()
                .filter_map(value)
                .collect(),
            root: None,
            driver_cuda: None,
        };
        environment.driver_cuda = version::driver_cuda(&environment);
        environment
    }

    /// The driver's own version, as 580.65.06, by what its kernel module says.
    pub fn driver(&self) -> Option<Version> {
        version::driver(self)
    }

    /// An absolute path on the machine that is searched.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        let root = self.root.as_deref();
        let inside = path.trim_start_matches('/');
        root.map_or_else(|| PathBuf::from(path), |root| root.join(inside))
    }
}
