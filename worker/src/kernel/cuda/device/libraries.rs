//! CUDA's libraries, asked for before they are first used: cudarc panics where one is missing.
#![allow(
    unsafe_code,
    reason = "libraries are opened and asked for their functions"
)]

use super::CudaError;
use cudarc::{cudnn, driver, nvrtc};

const DRIVER: &str = "libcuda.so.1 (the NVIDIA driver)";
const NVRTC: &str = "libnvrtc.so.13 (CUDA's compiler)";
const CUDNN: &str = "libcudnn.so.9 (cuDNN)";

const DRIVER_REMEDY: &str =
    "install NVIDIA's driver, or in a container start it with access to the GPU";
const NVRTC_REMEDY: &str = "pip install 'nvidia-cuda-nvrtc==13.0.*', or set LD_LIBRARY_PATH";
const CUDNN_REMEDY: &str = "pip install nvidia-cudnn-cu13, or set LD_LIBRARY_PATH";

/// The driver's functions that this back end calls.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetParamInfo",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

const NVRTC_SYMBOLS: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

const CUDNN_SYMBOLS: &[&str] = &[
    "cudnnConvolutionBackwardData",
    "cudnnConvolutionBackwardFilter",
    "cudnnConvolutionForward",
    "cudnnCreate",
    "cudnnCreateConvolutionDescriptor",
    "cudnnCreateFilterDescriptor",
    "cudnnCreateTensorDescriptor",
    "cudnnDestroy",
    "cudnnDestroyConvolutionDescriptor",
    "cudnnDestroyFilterDescriptor",
    "cudnnDestroyTensorDescriptor",
    "cudnnGetConvolutionBackwardDataAlgorithm_v7",
    "cudnnGetConvolutionBackwardDataWorkspaceSize",
    "cudnnGetConvolutionBackwardFilterAlgorithm_v7",
    "cudnnGetConvolutionBackwardFilterWorkspaceSize",
    "cudnnGetConvolutionForwardAlgorithm_v7",
    "cudnnGetConvolutionForwardWorkspaceSize",
    "cudnnGetLastErrorString",
    "cudnnGetVersion",
    "cudnnSetConvolution2dDescriptor",
    "cudnnSetConvolutionMathType",
    "cudnnSetFilter4dDescriptor",
    "cudnnSetStream",
    "cudnnSetTensor4dDescriptor",
];

/// Opens the driver, for the life of the process.
///
/// # Errors
///
/// Where it is missing or lacks a function.
pub(super) fn open_driver() -> Result<(), CudaError> {
    // SAFETY: opening a library runs its initialisers; this is what the user asked for.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err(missing(DRIVER, DRIVER_REMEDY));
    }
    // SAFETY: the library is there, so that this does not panic; it is never closed.
    let library = unsafe { driver::sys::culib() };
    let has = |symbol: &str| {
        // SAFETY: the address is only looked up, never called.
        unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.is_ok()
    };
    all_there(DRIVER, DRIVER_REMEDY, DRIVER_SYMBOLS, has)
}

/// Opens NVRTC, for the life of the process.
///
/// # Errors
///
/// Where it is missing or lacks a function.
pub(super) fn open_nvrtc() -> Result<(), CudaError> {
    // SAFETY: opening a library runs its initialisers; this is what the user asked for.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(missing(NVRTC, NVRTC_REMEDY));
    }
    // SAFETY: the library is there, so that this does not panic; it is never closed.
    let library = unsafe { nvrtc::sys::culib() };
    let has = |symbol: &str| {
        // SAFETY: the address is only looked up, never called.
        unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.is_ok()
    };
    all_there(NVRTC, NVRTC_REMEDY, NVRTC_SYMBOLS, has)
}

/// Opens cuDNN, for the life of the process.
///
/// # Errors
///
/// Where it is missing or lacks a function.
pub(super) fn open_cudnn() -> Result<(), CudaError> {
    // SAFETY: opening a library runs its initialisers; this is what the user asked for.
    if !unsafe { cudnn::sys::is_culib_present() } {
        return Err(missing(CUDNN, CUDNN_REMEDY));
    }
    // SAFETY: the library is there, so that this does not panic; it is never closed.
    let library = unsafe { cudnn::sys::culib() };
    let has = |symbol: &str| {
        // SAFETY: the address is only looked up, never called.
        unsafe { library.get::<unsafe extern "C" fn()>(symbol) }.is_ok()
    };
    all_there(CUDNN, CUDNN_REMEDY, CUDNN_SYMBOLS, has)
}

fn missing(library: &'static str, remedy: &'static str) -> CudaError {
    let looked = match std::env::var("LD_LIBRARY_PATH") {
        Ok(folders) if !folders.is_empty() => {
            format!("looked for in LD_LIBRARY_PATH ({folders}) and where the system looks")
        }
        Ok(_) | Err(_) => {
            "looked for where the system looks; LD_LIBRARY_PATH is not set".to_owned()
        }
    };
    CudaError::MissingLibrary {
        library,
        looked,
        remedy,
    }
}

fn all_there(
    library: &'static str,
    remedy: &'static str,
    symbols: &[&'static str],
    has: impl Fn(&str) -> bool,
) -> Result<(), CudaError> {
    match symbols.iter().find(|symbol| !has(symbol)) {
        None => Ok(()),
        Some(symbol) => Err(CudaError::MissingSymbol {
            library,
            symbol,
            remedy,
        }),
    }
}
