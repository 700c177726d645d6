//! One GPU: its memory, streams, kernels, graphs and convolutions.
//!
//! # Layout
//!
//! - this file: [`Device`], opened, asked and waited for.
//! - `error`: what can go wrong.
//! - `libraries`: CUDA's libraries, asked for before they are first used.
//! - `driver`, `stream`: the driver's calls, and what they own.
//! - `context`: what everything of one GPU shares: its streams, its first fault.
//! - `memory`: memory of the device.
//! - `transfer`: bytes between host and device.
//! - `sources`, `nvrtc`, `cache`, `program`: kernels, from text to machine code.
//! - `launch`: launches of kernels, found by name.
//! - `cudnn`, `algorithm`, `legacy`: cuDNN's legacy calls, and which algorithms they use.
//! - `descriptor`, `operation`, `plan`: cuDNN's graph API, and which engine it uses.
//! - `convolution`: convolutions by either.
//! - `graph`: work that is captured once and done again by one call.
//!
//! # Order and faults
//!
//! The host gives work to the compute stream and goes on. Calls that return nothing cannot fail at
//! once: the first error becomes the device's fault, which is logged once, told by [`Device::fault`] and
//! by each call that returns a `Result`; after it nothing is done any more.

mod algorithm;
mod cache;
mod context;
mod convolution;
mod cudnn;
mod descriptor;
mod driver;
mod error;
mod graph;
mod launch;
mod legacy;
mod libraries;
mod memory;
mod nvrtc;
mod operation;
mod plan;
mod program;
mod sources;
mod stream;
mod transfer;

pub(super) use algorithm::MOST_WORKSPACE;
pub use convolution::{Convolution, ConvolutionShape, Operands};
pub use error::CudaError;
pub use graph::Graph;
pub use launch::Arguments;
pub use memory::{Memory, Pointer};
pub use operation::Pass;
pub use program::{Compiled, compile};
pub use transfer::{Later, Mark, Plain};

use cache::Cache;
use context::{Context, lock};
use cudarc::driver::sys::CUdevice_attribute;
use cudnn::Handle;
use driver::Primary;
use launch::Kernels;
use std::sync::{Arc, Mutex};
use transfer::Uploads;

/// The oldest architecture with bf16.
const OLDEST_ARCHITECTURE: u32 = 80;

/// The oldest cuDNN: 9.0.
const OLDEST_CUDNN: usize = 90_000;

/// One GPU. Dropped, it waits for its work and gives everything back.
#[derive(Debug)]
pub struct Device {
    ordinal: u32,
    name: String,
    architecture: u32,
    multiprocessors: u32,
    kernels: Kernels,
    uploads: Mutex<Uploads>,
    cudnn: Mutex<Handle>,
    // Last: what lives in it is dropped first.
    context: Arc<Context>,
}

impl Device {
    /// Opens the GPU of this number: finds the libraries, compiles the kernels or takes them from the
    /// cache (`$SYNFIRE_CACHE`, `$XDG_CACHE_HOME/synfire` or `~/.cache/synfire`), and loads them.
    ///
    /// # Errors
    ///
    /// Where a library is missing or too old, there is no such GPU, or a kernel does not compile.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        libraries::open_driver()?;
        let (version, count) = driver::start()?;
        if version < 13_000 {
            return Err(CudaError::OldDriver {
                found: format!("{}.{}", version / 1000, version % 1000 / 10),
                wanted: "13.0",
            });
        }
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        libraries::open_nvrtc()?;
        libraries::open_cudnn()?;
        check_cudnn(cudnn::version())?;
        let primary = Primary::retain(ordinal)?;
        let name = primary.name()?;
        let architecture = 10
            * primary
                .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + primary
                .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if architecture < OLDEST_ARCHITECTURE {
            return Err(CudaError::OldDevice {
                ordinal,
                name,
                architecture,
            });
        }
        let multiprocessors =
            primary.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let context = Arc::new(Context::new(primary)?);
        let modules = program::images(architecture, &Cache::from_environment())?
            .iter()
            .map(|image| context.primary.load(image))
            .collect::<Result<_, _>>()?;
        let cudnn = Mutex::new(Handle::new(&context.compute)?);
        let uploads = Mutex::new(Uploads::new(&context)?);
        tracing::info!(gpu = ordinal, name, architecture, "opened");
        Ok(Self {
            ordinal,
            name,
            architecture,
            multiprocessors,
            kernels: Kernels::new(modules),
            uploads,
            cudnn,
            context,
        })
    }

    /// Its name, as in "NVIDIA H200".
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Its number.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// Its compute capability, times ten: 90 for an H200.
    pub fn architecture(&self) -> u32 {
        self.architecture
    }

    /// How many multiprocessors it has.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The compute stream as the driver knows it (`CUstream`), for NCCL.
    pub fn stream(&self) -> u64 {
        self.context.compute.raw() as u64
    }

    /// Waits until all work is done. What failed on the device until then is its fault from here on.
    pub fn wait(&self) {
        self.context.run(|context| {
            context.not_capturing("wait")?;
            context.copy.synchronize()?;
            context.compute.synchronize()
        });
    }

    /// From now on calls that return nothing do nothing, as after a fault, while those that return a `Result`
    /// work: for who goes on only to see what would be asked for.
    pub fn halt(&self) {
        self.context.halt();
    }

    /// The first error of a call that returns nothing, or of the device itself. It stays.
    pub fn fault(&self) -> Option<CudaError> {
        self.context.fault()
    }
}

/// An error where cuDNN is too old.
fn check_cudnn(version: usize) -> Result<(), CudaError> {
    if version >= OLDEST_CUDNN {
        return Ok(());
    }
    let (major, minor) = (version / 1000, version % 1000 / 100);
    Err(CudaError::OldCudnn {
        found: format!("{major}.{minor}"),
    })
}

impl Drop for Device {
    fn drop(&mut self) {
        self.abandon_capture();
        let _ = self.context.primary.bind();
        let _ = self.context.compute.synchronize();
        lock(&self.uploads).close(&self.context);
    }
}
