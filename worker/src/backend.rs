//! Which back end computes: an engine on a device.

use crate::kernel::Kernels;
use crate::kernel::cpu::{CpuError, CpuKernels};
use crate::kernel::reference::ReferenceKernels;
use crate::libraries::NotFound;
use synfire_shared::run::{Device, Engine, Precision, Run};

/// Why a back end cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackEndError {
    /// The one for processors.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The program has none for GPUs.
    #[error("this synfire was built without CUDA: cargo build --release --features cuda,nccl")]
    NoCuda,
    /// The program has no tensors of burn on GPUs.
    #[error(
        "this synfire was built without burn's CUDA device: cargo build --release --features \
         burn-cuda, with a network (see README.md, \"On a GPU\"); --engine fast needs none"
    )]
    NoBurnCuda,
    /// A library is in none of the places.
    #[error(transparent)]
    Library(#[from] NotFound),
    /// A library is there and cannot be used.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Open(#[from] crate::libraries::OpenError),
}

/// An engine, the device it runs on, and how it rounds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackEnd {
    /// What computes.
    pub engine: Engine,
    /// On what; a GPU without a number is the first.
    pub device: Device,
    /// What is multiplied, on a GPU.
    pub precision: Precision,
    /// Whether a GPU may round f32 operands to TF32.
    pub tf32: bool,
    /// Threads on processors; 0: one per core.
    pub threads: usize,
}

impl BackEnd {
    /// That of a run.
    pub fn of(run: &Run) -> Self {
        Self {
            engine: run.engine,
            device: run.device,
            precision: run.precision,
            tf32: run.tf32,
            threads: run.threads,
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// If the program was built without it, the machine lacks what it needs, or it cannot start.
    pub fn open(&self) -> Result<Box<dyn Kernels>, BackEndError> {
        match (self.device, self.engine) {
            (Device::Cpu, Engine::Fast) => Ok(Box::new(CpuKernels::new(self.threads, None)?)),
            (Device::Cpu, Engine::Burn) => Ok(Box::new(ReferenceKernels::new())),
            (Device::Cuda(ordinal), Engine::Fast) => self.cuda(ordinal.unwrap_or(0)),
            (Device::Cuda(ordinal), Engine::Burn) => burn_on_cuda(ordinal.unwrap_or(0)),
        }
    }

    /// The fast engine of GPUs.
    #[expect(
        clippy::unused_self,
        reason = "a build with CUDA has roundings to hand on"
    )]
    fn cuda(&self, _ordinal: u32) -> Result<Box<dyn Kernels>, BackEndError> {
        Err(BackEndError::NoCuda)
    }
}

/// Plain tensors on a GPU. burn panics without its libraries, so they are looked for first; a build
/// with the feature `cuda` loads them from where they are found, any other where the system's loader
/// finds them.
#[cfg(feature = "burn-cuda")]
fn burn_on_cuda(ordinal: u32) -> Result<Box<dyn Kernels>, BackEndError> {
    use crate::libraries::{self, Library};
    for library in [Library::Driver, Library::Nvrtc] {
        #[cfg(feature = "cuda")]
        libraries::open(library)?;
        #[cfg(not(feature = "cuda"))]
        libraries::find(library)?;
    }
    let device = burn::tensor::Device::cuda(ordinal as usize);
    Ok(Box::new(ReferenceKernels::on(device)))
}

#[cfg(not(feature = "burn-cuda"))]
fn burn_on_cuda(_ordinal: u32) -> Result<Box<dyn Kernels>, BackEndError> {
    Err(BackEndError::NoBurnCuda)
}

#[cfg(test)]
mod tests {
    use super::*;
    use synfire_shared::run::QUICKSTART;

    fn open(set: &[&str]) -> Result<String, BackEndError> {
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        let run = Run::from_toml(QUICKSTART, "quickstart", &set).unwrap();
        BackEnd::of(&run).open().map(|kernels| kernels.name())
    }

    #[test]
    fn engine_and_device_name_a_back_end() {
        let fast = open(&[]).unwrap();
        assert!(fast.starts_with("cpu"), "{fast}");
        assert_eq!(open(&["run.engine=cpu"]).unwrap(), fast, "its older name");
        let burn = open(&["run.engine=burn"]).unwrap();
        assert!(burn.starts_with("reference"), "{burn}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_build_one_with_it() {
        let error = open(&["run.device=cuda:1", "run.precision=bf16"]).unwrap_err();
        let told = error.to_string();
        assert!(
            told.ends_with("cargo build --release --features cuda,nccl"),
            "{told}"
        );
    }

    #[cfg(not(feature = "burn-cuda"))]
    #[test]
    fn a_build_without_burns_cuda_device_says_how_to_build_one_with_it() {
        let error = open(&["run.device=cuda", "run.engine=burn"]).unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("--features burn-cuda") && told.contains("README.md"),
            "{told}"
        );
    }
}
