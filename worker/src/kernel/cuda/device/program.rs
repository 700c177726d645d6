//! The program of a device: all kernels, compiled for its architecture or taken from the cache.

use super::cache::{Cache, Key};
use super::sources::{FILES, HEADERS};
use super::{CudaError, libraries, nvrtc};

/// One file, compiled.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The file.
    pub file: &'static str,
    /// Machine code, or PTX for an architecture that NVRTC does not know.
    pub cubin: Vec<u8>,
    /// What NVRTC says: warnings.
    pub log: String,
}

/// Compiles every kernel for an architecture, as in 90. It needs NVRTC alone, no GPU and no driver.
///
/// # Errors
///
/// Where NVRTC is missing, or a file does not compile.
pub fn compile(architecture: u32) -> Result<Vec<Compiled>, CudaError> {
    libraries::open_nvrtc()?;
    let target = Target::new(architecture)?;
    FILES.iter().map(|&file| target.compile(file)).collect()
}

/// The images of all files, from the cache where it has them.
pub(super) fn images(architecture: u32, cache: &Cache) -> Result<Vec<Vec<u8>>, CudaError> {
    let target = Target::new(architecture)?;
    let version = nvrtc::version()?;
    let image = |&(name, source): &(&'static str, &'static str)| {
        let mut key = Key::new();
        key.add(format!("{version:?} {name}").as_bytes());
        key.add(target.options().join(" ").as_bytes());
        key.add(source.as_bytes());
        for (header, text) in HEADERS {
            key.add(header.as_bytes());
            key.add(text.as_bytes());
        }
        let key = key.finish();
        if let Some(image) = cache.get(&key) {
            return Ok(image);
        }
        tracing::info!(file = name, target = target.name(), "compiling kernels");
        let compiled = target.compile((name, source))?;
        if !compiled.log.is_empty() {
            tracing::warn!(file = name, log = compiled.log, "NVRTC warns");
        }
        cache.put(&key, &compiled.cubin);
        Ok(compiled.cubin)
    };
    FILES.iter().map(image).collect()
}

/// What is compiled for: the machine code of an architecture, or PTX that the driver compiles for one
/// that NVRTC does not know yet.
#[derive(Clone, Copy, Debug)]
struct Target {
    architecture: u32,
    ptx: bool,
}

impl Target {
    fn new(architecture: u32) -> Result<Self, CudaError> {
        let known = nvrtc::architectures()?;
        if known.contains(&architecture) {
            return Ok(Self {
                architecture,
                ptx: false,
            });
        }
        let newest = known.iter().copied().filter(|&a| a < architecture).max();
        newest
            .map(|architecture| Self {
                architecture,
                ptx: true,
            })
            .ok_or_else(|| CudaError::Compile {
                file: "the program".to_owned(),
                target: format!("sm_{architecture}"),
                log: format!("this NVRTC compiles for {known:?} alone"),
            })
    }

    fn name(self) -> String {
        let kind = if self.ptx { "compute" } else { "sm" };
        format!("{kind}_{}", self.architecture)
    }

    fn options(self) -> Vec<String> {
        vec![
            format!("--gpu-architecture={}", self.name()),
            "--std=c++17".to_owned(),
            // Products and sums round apart, as they do on the host.
            "--fmad=false".to_owned(),
            "-lineinfo".to_owned(),
        ]
    }

    fn compile(self, (name, source): (&'static str, &str)) -> Result<Compiled, CudaError> {
        match nvrtc::compile((name, source), HEADERS, &self.options(), self.ptx)? {
            Ok(output) => Ok(Compiled {
                file: name,
                cubin: output.image,
                log: output.log,
            }),
            Err(log) => Err(CudaError::Compile {
                file: name.to_owned(),
                target: self.name(),
                log,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CudaError, Target};
    use crate::kernel::cuda::device::libraries;

    #[test]
    #[ignore = "needs NVRTC: tests/run installs it"]
    fn needs_nvrtc_a_wrong_program_is_an_error_with_its_log() {
        libraries::open_nvrtc().unwrap();
        let target = Target::new(90).unwrap();
        let source = "#include \"kernel.cuh\"\nstruct A { u32 x; };\nKERNEL(wrong, A) { b = a.x; }";
        let error = target.compile(("wrong.cu", source)).unwrap_err();
        let CudaError::Compile { file, target, log } = &error else {
            panic!("{error}");
        };
        assert_eq!((file.as_str(), target.as_str()), ("wrong.cu", "sm_90"));
        assert!(log.contains("wrong.cu(3)") && log.contains('b'), "{log}");
    }
}
