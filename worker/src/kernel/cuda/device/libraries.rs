//! CUDA's libraries, opened and asked for their functions before they are first used: cudarc opens a
//! library by its bare name, finds the one that is open already, and panics where something is missing.
#![allow(
    unsafe_code,
    reason = "libraries are opened and asked for their functions"
)]

use super::CudaError;
use crate::libraries::{Library, OpenError, Opened, open};
use cudarc::{cudnn, driver, nvrtc};
use std::path::Path;

/// The driver's functions that this back end calls, and averages between GPUs.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
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
    "cuMemsetD32Async",
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
    "cudnnBackendCreateDescriptor",
    "cudnnBackendDestroyDescriptor",
    "cudnnBackendExecute",
    "cudnnBackendFinalize",
    "cudnnBackendGetAttribute",
    "cudnnBackendSetAttribute",
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
    // SAFETY: opening a library runs its initialisers, as opening it by its path has.
    let open = || unsafe { driver::sys::is_culib_present().then(|| driver::sys::culib()) };
    check(Library::Driver, DRIVER_SYMBOLS, open)
}

/// Opens NVRTC, for the life of the process.
///
/// # Errors
///
/// Where it is missing or lacks a function.
pub(super) fn open_nvrtc() -> Result<(), CudaError> {
    // SAFETY: as above.
    let open = || unsafe { nvrtc::sys::is_culib_present().then(|| nvrtc::sys::culib()) };
    check(Library::Nvrtc, NVRTC_SYMBOLS, open)
}

/// Opens cuDNN, for the life of the process.
///
/// # Errors
///
/// Where it is missing or lacks a function.
pub(super) fn open_cudnn() -> Result<(), CudaError> {
    // SAFETY: as above.
    let open = || unsafe { cudnn::sys::is_culib_present().then(|| cudnn::sys::culib()) };
    check(Library::Cudnn, CUDNN_SYMBOLS, open)
}

/// Opens a library by its path, then as cudarc does, and asks that one for the functions.
fn check(
    library: Library,
    symbols: &[&'static str],
    of_cudarc: impl FnOnce() -> Option<&'static libloading::Library>,
) -> Result<(), CudaError> {
    let opened = open(library).map_err(|error| missing(library, &error))?;
    let path = &opened.found.path;
    let Some(used) = of_cudarc() else {
        return Err(CudaError::MissingLibrary {
            library,
            told: format!(
                "{library} at {} calls itself something else: {}",
                path.display(),
                library.remedy()
            ),
        });
    };
    for &symbol in symbols {
        let Some(address) = address(used, symbol) else {
            return Err(CudaError::MissingSymbol {
                library,
                path: path.clone(),
                symbol,
            });
        };
        if symbol == symbols[0] && address_in(opened, symbol) != Some(address) {
            another_file(library, path, address)?;
        }
    }
    Ok(())
}

/// A file without a version in its name comes first where the system's loader knows one. Of the driver
/// that is a toolkit's stub, which does nothing.
fn another_file(library: Library, path: &Path, address: usize) -> Result<(), CudaError> {
    let used = file_at(address).unwrap_or_else(|| "another file".into());
    let path = path.display();
    let told = format!("{used} is found before {path}: take its folder out of LD_LIBRARY_PATH");
    if library == Library::Driver {
        return Err(CudaError::MissingLibrary { library, told });
    }
    tracing::warn!(%library, "{told}");
    Ok(())
}

/// The file that lies at an address of this process.
fn file_at(address: usize) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let is_there = |line: &&str| {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let number = |text: &str| usize::from_str_radix(text, 16).ok();
        let range = range.and_then(|(begin, end)| Some(number(begin)?..number(end)?));
        range.is_some_and(|range| range.contains(&address))
    };
    let line = maps.lines().find(is_there)?;
    Some(line[line.find('/')?..].to_owned())
}

fn address(library: &libloading::Library, symbol: &str) -> Option<usize> {
    // SAFETY: the address is only looked at, never called.
    let found = unsafe { library.get::<unsafe extern "C" fn()>(symbol) };
    found.ok().map(|found| *found as usize)
}

fn address_in(opened: &Opened, symbol: &'static str) -> Option<usize> {
    // SAFETY: as above.
    let found = unsafe { opened.symbol::<unsafe extern "C" fn()>(symbol) };
    found.ok().map(|found| found as usize)
}

fn missing(library: Library, error: &OpenError) -> CudaError {
    CudaError::MissingLibrary {
        library,
        told: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{CUDNN_SYMBOLS, DRIVER_SYMBOLS, NVRTC_SYMBOLS};
    use std::collections::BTreeSet;

    /// Functions of C that a text calls by cudarc, and those that it names for a macro.
    fn called(text: &str) -> BTreeSet<String> {
        let word = |rest: &str| -> String {
            let letters = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_');
            letters.collect()
        };
        let by_path = text.split("sys::").skip(1).filter_map(|rest| {
            let name = word(rest);
            let called = rest[name.len()..].starts_with('(');
            let own = ["culib", "is_culib_present"].contains(&name.as_str());
            let of_c = !own && name.starts_with(|c: char| c.is_ascii_lowercase());
            (called && of_c).then_some(name)
        });
        let by_macro = text.lines().map(|line| word(line.trim()));
        let by_macro = by_macro
            .filter(|name| name.starts_with("cudnnCreate") || name.starts_with("cudnnDestroy"));
        by_path.chain(by_macro).collect()
    }

    #[test]
    fn every_function_that_is_called_is_asked_for_first() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/kernel/cuda/device");
        let averages = concat!(env!("CARGO_MANIFEST_DIR"), "/src/collective/nccl/driver.rs");
        let files = std::fs::read_dir(folder).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let texts = files
            .chain([averages.into()])
            .map(|file| std::fs::read_to_string(file).unwrap());
        let called: BTreeSet<String> = texts.flat_map(|text| called(&text)).collect();
        let lists = [DRIVER_SYMBOLS, NVRTC_SYMBOLS, CUDNN_SYMBOLS];
        let listed = lists.into_iter().flatten().map(|&name| name.to_owned());
        assert_eq!(called, listed.collect());
    }
}
