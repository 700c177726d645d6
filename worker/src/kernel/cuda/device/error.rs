//! What can go wrong with a GPU.

use crate::libraries::Library;
use std::path::PathBuf;

/// Why a call to a GPU, or to what it needs, failed.
///
/// It can be copied, because the first fault of a device is kept and told again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library is not there, or cannot be loaded.
    #[error("{told}")]
    MissingLibrary {
        /// Which it is.
        library: Library,
        /// Where it was looked for, and what to install or set.
        told: String,
    },
    /// A library lacks a function: it is too old, or not what its name says.
    #[error("{library} at {path} has no function {symbol}: {remedy}",
        path = path.display(), remedy = library.remedy())]
    MissingSymbol {
        /// Which it is.
        library: Library,
        /// Its file.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
    },
    /// The driver does not know CUDA 13.0.
    #[error(
        "the NVIDIA driver is made for CUDA {found}, and CUDA {wanted} is wanted: update the driver \
         (580 or newer)"
    )]
    OldDriver {
        /// The newest CUDA that it knows, as in "12.8".
        found: String,
        /// The oldest that will do.
        wanted: &'static str,
    },
    /// cuDNN is too old.
    #[error("cuDNN {found} is too old: 9.0 or newer is wanted; pip install nvidia-cudnn-cu13")]
    OldCudnn {
        /// Its version.
        found: String,
    },
    /// There is no GPU of this number.
    #[error("there is no GPU {ordinal}: {count} found; is it in CUDA_VISIBLE_DEVICES?")]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many there are, numbered from 0.
        count: u32,
    },
    /// The GPU lacks bf16.
    #[error("GPU {ordinal} ({name}, sm_{architecture}) is too old: sm_80 or newer is wanted")]
    OldDevice {
        /// Its number.
        ordinal: u32,
        /// Its name.
        name: String,
        /// Its compute capability, times ten.
        architecture: u32,
    },
    /// The GPU has not enough memory.
    #[error(
        "the GPU is out of memory: {} MiB wanted, {} of {} are free (`nvidia-smi` shows who else has some)",
        wanted.div_ceil(1 << 20), free >> 20, total >> 20
    )]
    OutOfMemory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that the GPU has.
        total: u64,
    },
    /// A kernel does not compile.
    #[error("{file} does not compile for {target}:\n{log}")]
    Compile {
        /// The file of the kernel.
        file: String,
        /// As in "`sm_90`".
        target: String,
        /// What NVRTC says.
        log: String,
    },
    /// NVRTC failed otherwise.
    #[error("NVRTC: {call} failed: {status}")]
    Nvrtc {
        /// The function.
        call: &'static str,
        /// Its status.
        status: String,
    },
    /// A call to the driver failed.
    #[error("CUDA: {call} failed: {name} ({text})")]
    Driver {
        /// The function.
        call: &'static str,
        /// The name of the error, as in "`CUDA_ERROR_INVALID_VALUE`".
        name: String,
        /// The driver's words for it.
        text: String,
    },
    /// A kernel or a copy failed while the host went on; it was noticed by this call.
    #[error(
        "the GPU has a fault, noticed by {call}: {name} ({text}); the process must start again"
    )]
    Fault {
        /// The function that noticed.
        call: &'static str,
        /// The name of the error.
        name: String,
        /// The driver's words for it.
        text: String,
    },
    /// A call to cuDNN failed.
    #[error("cuDNN: {call} failed with {status} for {shape}: {text}")]
    Cudnn {
        /// The function.
        call: &'static str,
        /// The name of the status.
        status: String,
        /// cuDNN's words for it.
        text: String,
        /// The convolution, or "a handle".
        shape: String,
    },
    /// cuDNN has no deterministic algorithm for a direction of a convolution.
    #[error(
        "cuDNN has no deterministic algorithm for the {direction} of {shape}: try run.convolutions, or \
         --convolutions, \"graph\""
    )]
    NoAlgorithm {
        /// "forward", "data gradient" or "weight gradient".
        direction: &'static str,
        /// The convolution.
        shape: String,
    },
    /// cuDNN's graph API has no good plan for a convolution.
    #[error(
        "cuDNN's graph API has no plan for the {direction} of {shape} ({offers}): leave run.convolutions, or \
         --convolutions, \"legacy\""
    )]
    NoPlan {
        /// "forward", "data gradient" or "weight gradient".
        direction: &'static str,
        /// The convolution.
        shape: String,
        /// How many engines there are, and what is wrong with them.
        offers: String,
    },
    /// A convolution that is none.
    #[error("{shape} is no convolution: its output would be {height} x {width}")]
    BadConvolution {
        /// The convolution.
        shape: String,
        /// What its input gives.
        height: usize,
        /// What its input gives.
        width: usize,
    },
    /// A kernel is called that no file has.
    #[error("no kernel is called {kernel}")]
    UnknownKernel {
        /// Its name.
        kernel: &'static str,
    },
    /// The arguments of a kernel differ between Rust and C++.
    #[error("kernel {kernel} takes {device} bytes of arguments and is given {host}")]
    ArgumentBytes {
        /// Its name.
        kernel: &'static str,
        /// Bytes of the Rust struct.
        host: usize,
        /// Bytes of the C++ struct.
        device: usize,
    },
    /// A call that waits, allocates or moves bytes of the host was made while a graph is captured, or where
    /// one does its work.
    #[error("{call} cannot be part of a CUDA graph: make it before, or in between")]
    WhileCapturing {
        /// The function.
        call: &'static str,
    },
    /// The end of a capture that has not begun.
    #[error("no CUDA graph is being captured")]
    NoCapture,
    /// More bytes than there can be.
    #[error("{call} of {bytes} bytes: more than can be")]
    TooLarge {
        /// The function.
        call: &'static str,
        /// Bytes asked for.
        bytes: u64,
    },
}

impl CudaError {
    /// Whether another start may find the device well: what was asked of it is no reason.
    pub fn may_pass(&self) -> bool {
        let is_of_calls = matches!(self, Self::Driver { .. } | Self::Cudnn { .. });
        matches!(self, Self::Fault { .. }) || (is_of_calls && !self.is_about_memory())
    }

    /// Whether there was too little memory, ours or what the driver and cuDNN take for themselves.
    pub fn is_about_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
            || matches!(self, Self::Driver { name, .. } if name == "CUDA_ERROR_OUT_OF_MEMORY")
            || matches!(self, Self::Cudnn { status, .. } if status.contains("ALLOC"))
    }

    /// Whether cuDNN may say no to what was asked, and another way be tried: not where the device or the
    /// library are at fault, which would be another answer another time.
    pub(super) fn is_refusal(&self) -> bool {
        let faults = [
            "SUBLIBRARY",
            "RUNTIME_PREREQUISITE",
            "NOT_INITIALIZED",
            "EXECUTION_FAILED",
        ];
        let is_no = |status: &str| !faults.iter().any(|fault| status.contains(fault));
        matches!(self, Self::Cudnn { status, .. } if is_no(status)) && !self.is_about_memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_refusal_and_does_not_pass() {
        let cudnn = |status: &str| CudaError::Cudnn {
            call: "cudnnBackendFinalize",
            status: status.into(),
            text: String::new(),
            shape: String::new(),
        };
        let driver = |name: &str| CudaError::Driver {
            call: "cuLaunchKernel",
            name: name.into(),
            text: String::new(),
        };
        let out = CudaError::OutOfMemory {
            wanted: 1,
            free: 0,
            total: 0,
        };
        let told = |error: CudaError| {
            let told = [
                error.is_about_memory(),
                error.may_pass(),
                error.is_refusal(),
            ];
            told.map(u8::from)
        };
        assert_eq!(told(out), [1, 0, 0]);
        assert_eq!(told(driver("CUDA_ERROR_OUT_OF_MEMORY")), [1, 0, 0]);
        assert_eq!(told(driver("CUDA_ERROR_SYSTEM_NOT_READY")), [0, 1, 0]);
        let names = "INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED";
        assert_eq!(told(cudnn(&format!("CUDNN_STATUS_{names}"))), [1, 0, 0]);
        assert_eq!(told(cudnn("CUDNN_STATUS_ALLOC_FAILED")), [1, 0, 0]);
        assert_eq!(told(cudnn("CUDNN_STATUS_NOT_SUPPORTED")), [0, 1, 1]);
        let names = "NOT_SUPPORTED_SUBLIBRARY_UNAVAILABLE";
        assert_eq!(told(cudnn(&format!("CUDNN_STATUS_{names}"))), [0, 1, 0]);
        let names = "EXECUTION_FAILED_CUDA_DRIVER";
        assert_eq!(told(cudnn(&format!("CUDNN_STATUS_{names}"))), [0, 1, 0]);
        let no_plan = CudaError::NoPlan {
            direction: "forward",
            shape: String::new(),
            offers: String::new(),
        };
        assert_eq!(told(no_plan), [0, 0, 0]);
    }
}
