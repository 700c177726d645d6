//! Which back end computes: an engine on a device.

use crate::kernel::cpu::{CpuError, CpuKernels};
use crate::kernel::reference::ReferenceKernels;
use crate::kernel::{Kernels, Without};
use crate::libraries::NotFound;
use synfire_shared::run::{Convolutions, Device, Engine, Precision, Run};

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
    /// A machine has fewer GPUs than ranks.
    #[error(
        "this is rank {local_rank} of its machine, counted from 0, and the machine has {gpus} GPUs: \
         start no more ranks on a machine than it has GPUs"
    )]
    FewGpus {
        /// How many ranks of the machine come before this one.
        local_rank: u32,
        /// The GPUs that this process is shown.
        gpus: u32,
    },
    /// A library is in none of the places.
    #[error(transparent)]
    Library(#[from] NotFound),
    /// A GPU cannot be opened.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::kernel::cuda::device::CudaError),
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
    /// By which interface of cuDNN a GPU computes convolutions.
    pub convolutions: Convolutions,
    /// Threads on processors; 0: one per core.
    pub threads: usize,
    /// What a GPU does without.
    pub without: Without,
}

impl BackEnd {
    /// That of a run.
    pub fn of(run: &Run) -> Self {
        Self {
            engine: run.engine,
            device: run.device,
            precision: run.precision,
            tf32: run.tf32,
            convolutions: run.convolutions,
            threads: run.threads,
            without: Without::default(),
        }
    }

    /// That of one of several ranks: of GPUs without a number, the one of its place among the ranks of
    /// its machine. A process that is shown a single GPU takes that: some launchers show each its own.
    ///
    /// # Errors
    /// If the machine has fewer GPUs than ranks, or the driver does not say.
    pub fn of_rank(self, local_rank: u32) -> Result<Self, BackEndError> {
        let device = match self.device {
            Device::Cuda(None) => Device::Cuda(Some(gpu_of(local_rank, num_gpus()?)?)),
            named @ (Device::Cpu | Device::Cuda(Some(_))) => named,
        };
        Ok(Self { device, ..self })
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
    #[cfg(feature = "cuda")]
    fn cuda(&self, ordinal: u32) -> Result<Box<dyn Kernels>, BackEndError> {
        use crate::kernel::cuda::{self, CudaKernels, Options};
        let precision = match (self.precision, self.tf32) {
            (Precision::Bf16, _) => cuda::Precision::Bf16,
            (Precision::F32, true) => cuda::Precision::Tf32,
            (Precision::F32, false) => cuda::Precision::F32,
        };
        let interface = match self.convolutions {
            Convolutions::Legacy => cuda::Interface::Legacy,
            Convolutions::Graph => cuda::Interface::Graph,
        };
        let options = Options {
            ordinal,
            precision,
            interface,
            without: self.without,
        };
        Ok(Box::new(CudaKernels::open(&options)?))
    }

    /// The fast engine of GPUs.
    #[cfg(not(feature = "cuda"))]
    #[expect(
        clippy::unused_self,
        reason = "a build with CUDA has roundings to hand on"
    )]
    fn cuda(&self, _ordinal: u32) -> Result<Box<dyn Kernels>, BackEndError> {
        Err(BackEndError::NoCuda)
    }
}

fn gpu_of(local_rank: u32, gpus: u32) -> Result<u32, BackEndError> {
    match gpus {
        // Where there is none, opening it says so.
        0 | 1 => Ok(0),
        _ if local_rank < gpus => Ok(local_rank),
        _ => Err(BackEndError::FewGpus { local_rank, gpus }),
    }
}

#[cfg(feature = "cuda")]
fn num_gpus() -> Result<u32, BackEndError> {
    use crate::libraries::{self, Library};
    let gpus = libraries::gpus(libraries::open(Library::Driver)?)?;
    Ok(u32::try_from(gpus.len()).unwrap_or(u32::MAX))
}

/// Nobody can say; what computes on a GPU says what is missing.
#[cfg(not(feature = "cuda"))]
#[expect(
    clippy::unnecessary_wraps,
    reason = "a build with CUDA asks the driver"
)]
fn num_gpus() -> Result<u32, BackEndError> {
    Ok(1)
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

    #[test]
    fn each_rank_of_a_machine_takes_a_gpu_of_its_own() {
        assert_eq!(gpu_of(3, 4).unwrap(), 3);
        assert_eq!(gpu_of(3, 1).unwrap(), 0);
        let text = gpu_of(2, 2).unwrap_err().to_string();
        let expected = "this is rank 2 of its machine, counted from 0, and the machine has 2 GPUs";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(gpu_of(0, 0).unwrap(), 0);
        let named =
            BackEnd::of(&Run::from_toml(QUICKSTART, "", &["run.device=cuda:3".into()]).unwrap());
        assert_eq!(named.of_rank(1).unwrap(), named);
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
