//! The driver's calls that are not of a stream: contexts, memory, modules.
#![allow(unsafe_code, reason = "the driver is C")]

use super::CudaError;
use cudarc::driver::sys;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

/// What the driver calls a result that is not success.
fn error(call: &'static str, result: sys::CUresult) -> CudaError {
    let mut name: *const c_char = ptr::null();
    let mut text: *const c_char = ptr::null();
    // SAFETY: the driver writes a pointer to a string that lives as long as the library, or null.
    unsafe {
        let _ = sys::cuGetErrorName(result, &raw mut name);
        let _ = sys::cuGetErrorString(result, &raw mut text);
    }
    let name = string(name).unwrap_or_else(|| format!("{result:?}"));
    let text = string(text).unwrap_or_default();
    if is_fault(result) {
        CudaError::Fault { call, name, text }
    } else {
        CudaError::Driver { call, name, text }
    }
}

/// Whether a result tells of something that failed on the device before, after which its context is
/// of no use.
fn is_fault(result: sys::CUresult) -> bool {
    matches!(
        result,
        sys::CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | sys::CUresult::CUDA_ERROR_ASSERT
            | sys::CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | sys::CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | sys::CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | sys::CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | sys::CUresult::CUDA_ERROR_INVALID_PC
            | sys::CUresult::CUDA_ERROR_LAUNCH_FAILED
    )
}

fn string(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: it ends with 0, and lives as long as the library or until the caller returns.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// A result as an error.
pub(super) fn check(call: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        Ok(())
    } else {
        Err(error(call, result))
    }
}

/// Starts the driver. Returns its version, as in 13000, and how many GPUs there are.
///
/// `open_driver` of `libraries` must have succeeded.
pub(super) fn start() -> Result<(u32, u32), CudaError> {
    let mut version = 0;
    // SAFETY: the library has these functions; they write one number each.
    unsafe {
        check(
            "cuDriverGetVersion",
            sys::cuDriverGetVersion(&raw mut version),
        )?;
    }
    let version = u32::try_from(version).unwrap_or(0);
    if version < 13_000 {
        return Ok((version, 0));
    }
    // SAFETY: as above.
    let result = unsafe { sys::cuInit(0) };
    if result == sys::CUresult::CUDA_ERROR_NO_DEVICE {
        return Ok((version, 0));
    }
    check("cuInit", result)?;
    let mut count = 0;
    // SAFETY: as above.
    unsafe { check("cuDeviceGetCount", sys::cuDeviceGetCount(&raw mut count))? };
    Ok((version, u32::try_from(count).unwrap_or(0)))
}

/// A GPU with its primary context, which cuDNN and NCCL share.
#[derive(Debug)]
pub(super) struct Primary {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be current in any thread, and in several at once; the driver locks.
unsafe impl Send for Primary {}
// SAFETY: as above.
unsafe impl Sync for Primary {}

impl Primary {
    /// Takes a share of the primary context and makes it current in this thread.
    pub(super) fn retain(ordinal: u32) -> Result<Self, CudaError> {
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let (mut device, mut context) = (0, ptr::null_mut());
        // SAFETY: the driver has been started; both write one handle.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&raw mut device, ordinal))?;
            let retained = sys::cuDevicePrimaryCtxRetain(&raw mut context, device);
            check("cuDevicePrimaryCtxRetain", retained)?;
        }
        let primary = Self { device, context };
        primary.bind()?;
        Ok(primary)
    }

    /// Makes it the context of the calling thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe {
            sys::cuCtxSetCurrent(self.context)
        })
    }

    /// An attribute of the device.
    pub(super) fn attribute(&self, which: sys::CUdevice_attribute) -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: writes one number.
        let result = unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, self.device) };
        check("cuDeviceGetAttribute", result)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// The name of the device.
    pub(super) fn name(&self) -> Result<String, CudaError> {
        let mut name = [0 as c_char; 256];
        // SAFETY: writes at most 255 bytes and a 0.
        let result = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 255, self.device) };
        check("cuDeviceGetName", result)?;
        Ok(string(name.as_ptr()).unwrap_or_default())
    }

    /// Bytes of memory: free, and in all.
    pub(super) fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0_usize, 0_usize);
        // SAFETY: the context is current; writes two numbers.
        let result = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check("cuMemGetInfo_v2", result)?;
        Ok((free as u64, total as u64))
    }

    /// Memory of the device, not initialised.
    pub(super) fn allocate(&self, bytes: u64) -> Result<u64, CudaError> {
        self.bind()?;
        let size = usize::try_from(bytes).map_err(|_| CudaError::TooLarge {
            call: "allocate",
            bytes,
        })?;
        let mut address = 0;
        // SAFETY: the context is current; writes one address.
        let result = unsafe { sys::cuMemAlloc_v2(&raw mut address, size) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.memory_info()?;
            return Err(CudaError::OutOfMemory {
                wanted: bytes,
                free,
                total,
            });
        }
        check("cuMemAlloc_v2", result)?;
        Ok(address)
    }

    /// Gives back what `allocate` has given; waits for work that uses it.
    pub(super) fn free(&self, address: u64) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: called once for each allocation, by the drop of its owner.
        check("cuMemFree_v2", unsafe { sys::cuMemFree_v2(address) })
    }

    /// Memory of the host that the device reads and writes by itself.
    pub(super) fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.bind()?;
        let mut address: *mut c_void = ptr::null_mut();
        // SAFETY: the context is current; writes one address.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut address, bytes, 0) };
        check("cuMemHostAlloc", result)?;
        // SAFETY: the memory is ours and `bytes` long; now all of it has a value.
        unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned {
            address: address.cast(),
            bytes,
        })
    }

    /// Gives back what `pin` has given.
    pub(super) fn unpin(&self, pinned: Pinned) -> Result<(), CudaError> {
        self.bind()?;
        let address = pinned.into_address();
        // SAFETY: `pinned` was the only owner and is gone.
        check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(address) })
    }

    /// Loads a compiled program.
    pub(super) fn load(&self, image: &[u8]) -> Result<Module, CudaError> {
        self.bind()?;
        // PTX is a string: it has to end with 0.
        let mut image = image.to_vec();
        image.push(0);
        let mut module = ptr::null_mut();
        // SAFETY: the image is what NVRTC wrote, or had the digest of it; it is copied by the driver.
        let result = unsafe { sys::cuModuleLoadData(&raw mut module, image.as_ptr().cast()) };
        check("cuModuleLoadData", result)?;
        Ok(Module(module))
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: the share taken by `retain`; all that lives in the context has been dropped before.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Pinned memory of the host. Whoever owns it gives it to [`Primary::unpin`].
#[derive(Debug)]
pub(super) struct Pinned {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: it is memory of the host with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// How long it is.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn into_address(self) -> *mut c_void {
        self.address.cast()
    }

    /// An address in it, for the driver, of `bytes` bytes that lie inside.
    pub(super) fn at(&self, offset: usize, bytes: usize) -> *mut c_void {
        assert!(
            offset <= self.bytes && bytes <= self.bytes - offset,
            "inside the pinned memory"
        );
        // SAFETY: `offset` is at most its length.
        unsafe { self.address.add(offset).cast() }
    }

    /// Copies into it. No copy of the device may be under way from there.
    pub(super) fn write(&mut self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len()).cast::<u8>();
        // SAFETY: `at` has checked the range; the slices are of different owners.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    /// Copies out of it. A copy of the device to there must have ended.
    pub(super) fn read(&self, to: &mut [u8]) {
        let from = self.at(0, to.len()).cast::<u8>();
        // SAFETY: `at` has checked the range; all of it has a value since `pin`.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
    }
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Module(sys::CUmodule);

// SAFETY: a module belongs to its context, which any thread may use.
unsafe impl Send for Module {}
// SAFETY: as above; the driver locks.
unsafe impl Sync for Module {}

/// A kernel of a [`Module`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a function lives as long as its module, which any thread may use.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// A kernel by name, if it has it.
    pub(super) fn function(&self, name: &str) -> Result<Option<Function>, CudaError> {
        let Ok(name) = CString::new(name) else {
            return Ok(None);
        };
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded as long as `self` lives; writes one handle.
        let result = unsafe { sys::cuModuleGetFunction(&raw mut function, self.0, name.as_ptr()) };
        if result == sys::CUresult::CUDA_ERROR_NOT_FOUND {
            return Ok(None);
        }
        check("cuModuleGetFunction", result)?;
        Ok(Some(Function(function)))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: no kernel of it is launched any more: the launcher owns it.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

impl Function {
    /// Bytes of its first argument; `None` where it has more than one, or none.
    pub(super) fn argument_bytes(self) -> Option<usize> {
        let (mut offset, mut bytes) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: writes two numbers if there is a first argument.
        let result =
            unsafe { sys::cuFuncGetParamInfo(self.0, 0, offset.as_mut_ptr(), bytes.as_mut_ptr()) };
        // SAFETY: both have been written where the call succeeds.
        let bytes = (result == sys::CUresult::CUDA_SUCCESS).then(|| unsafe { bytes.assume_init() });
        let mut more = 0;
        // SAFETY: as above; it fails where there is no second argument.
        let second =
            unsafe { sys::cuFuncGetParamInfo(self.0, 1, offset.as_mut_ptr(), &raw mut more) };
        bytes.filter(|_| second != sys::CUresult::CUDA_SUCCESS)
    }
}
