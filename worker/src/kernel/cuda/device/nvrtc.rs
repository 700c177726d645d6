//! NVRTC: CUDA C++ to machine code, without a GPU.
#![allow(unsafe_code, reason = "NVRTC is C")]

use super::CudaError;
use cudarc::nvrtc::sys;
use std::ffi::{CString, c_char, c_int};
use std::ptr;

/// NVRTC's version, as in (13, 0).
pub(super) fn version() -> Result<(u32, u32), CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    check("nvrtcVersion", unsafe {
        sys::nvrtcVersion(&raw mut major, &raw mut minor)
    })?;
    Ok((major.unsigned_abs(), minor.unsigned_abs()))
}

/// The architectures that it compiles for, as in 90.
pub(super) fn architectures() -> Result<Vec<u32>, CudaError> {
    let mut count = 0;
    // SAFETY: writes one number.
    check("nvrtcGetNumSupportedArchs", unsafe {
        sys::nvrtcGetNumSupportedArchs(&raw mut count)
    })?;
    let mut found = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: writes as many numbers as it has said.
    check("nvrtcGetSupportedArchs", unsafe {
        sys::nvrtcGetSupportedArchs(found.as_mut_ptr())
    })?;
    Ok(found.into_iter().map(c_int::unsigned_abs).collect())
}

/// What a compilation gives: the image, and what NVRTC says.
pub(super) struct Output {
    pub(super) image: Vec<u8>,
    pub(super) log: String,
}

/// Compiles one file; `Err` of the outer result is NVRTC's own failure, of the inner one the log of a
/// program that is wrong.
pub(super) fn compile(
    (name, source): (&str, &str),
    headers: &[(&str, &str)],
    options: &[String],
    to_ptx: bool,
) -> Result<Result<Output, String>, CudaError> {
    let program = Program::new(name, source, headers)?;
    let options: Vec<CString> = options.iter().map(|option| string(option)).collect();
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let count = c_int::try_from(pointers.len()).unwrap_or(0);
    // SAFETY: the program and the options live.
    let result = unsafe { sys::nvrtcCompileProgram(program.raw, count, pointers.as_ptr()) };
    let log = program.log()?;
    if result == sys::nvrtcResult::NVRTC_ERROR_COMPILATION
        || result == sys::nvrtcResult::NVRTC_ERROR_INVALID_OPTION
    {
        return Ok(Err(log));
    }
    check("nvrtcCompileProgram", result)?;
    let image = program.image(to_ptx)?;
    Ok(Ok(Output { image, log }))
}

/// A program with its strings: NVRTC keeps pointers to some of them.
struct Program {
    raw: sys::nvrtcProgram,
    _strings: Vec<CString>,
}

impl Program {
    fn new(name: &str, source: &str, headers: &[(&str, &str)]) -> Result<Self, CudaError> {
        let mut strings = vec![string(name), string(source)];
        strings.extend(headers.iter().map(|(name, _)| string(name)));
        strings.extend(headers.iter().map(|(_, text)| string(text)));
        let pointers: Vec<*const c_char> = strings.iter().map(|text| text.as_ptr()).collect();
        let (names, texts) = pointers[2..].split_at(headers.len());
        let count = c_int::try_from(headers.len()).unwrap_or(0);
        let mut program = ptr::null_mut();
        // SAFETY: all strings live as long as the program.
        check("nvrtcCreateProgram", unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                pointers[1],
                pointers[0],
                count,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        Ok(Self {
            raw: program,
            _strings: strings,
        })
    }

    fn log(&self) -> Result<String, CudaError> {
        let mut bytes = 0;
        // SAFETY: the program lives; writes one number.
        check("nvrtcGetProgramLogSize", unsafe {
            sys::nvrtcGetProgramLogSize(self.raw, &raw mut bytes)
        })?;
        let mut log = vec![0_u8; bytes];
        // SAFETY: the buffer has the length that was said.
        check("nvrtcGetProgramLog", unsafe {
            sys::nvrtcGetProgramLog(self.raw, log.as_mut_ptr().cast())
        })?;
        log.retain(|&byte| byte != 0);
        Ok(String::from_utf8_lossy(&log).trim().to_owned())
    }

    fn image(&self, to_ptx: bool) -> Result<Vec<u8>, CudaError> {
        let mut bytes = 0;
        // SAFETY: the program lives and is compiled; writes one number.
        check("nvrtcGetCUBINSize", unsafe {
            if to_ptx {
                sys::nvrtcGetPTXSize(self.raw, &raw mut bytes)
            } else {
                sys::nvrtcGetCUBINSize(self.raw, &raw mut bytes)
            }
        })?;
        let mut image = vec![0_u8; bytes];
        // SAFETY: the buffer has the length that was said.
        check("nvrtcGetCUBIN", unsafe {
            if to_ptx {
                sys::nvrtcGetPTX(self.raw, image.as_mut_ptr().cast())
            } else {
                sys::nvrtcGetCUBIN(self.raw, image.as_mut_ptr().cast())
            }
        })?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and not used after this.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.raw) };
    }
}

/// A string of C; sources and options have no 0 in them.
fn string(text: &str) -> CString {
    CString::new(text.replace('\0', "")).unwrap_or_default()
}

fn check(call: &'static str, result: sys::nvrtcResult) -> Result<(), CudaError> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Nvrtc {
        call,
        status: format!("{result:?}"),
    })
}
