//! The GPUs of this machine, as the driver lists them.
#![allow(unsafe_code, reason = "functions of the driver are called")]

use super::Gpu;
use super::open::{GetInt, OpenError, Opened};
use std::ffi::{CStr, c_char, c_int, c_uint};

/// The GPUs that the driver shows to this process; there may be none.
///
/// # Errors
/// [`OpenError::Symbol`] and [`OpenError::Call`], the latter with the driver's words.
pub fn gpus(driver: &Opened) -> Result<Vec<Gpu>, OpenError> {
    let table = Table::of(driver)?;
    // SAFETY: it takes a zero.
    table.check("cuInit", unsafe { (table.init)(0) })?;
    let mut count = 0;
    // SAFETY: `count` is alive, and the driver is initialised.
    let status = unsafe { (table.count)(&raw mut count) };
    table.check("cuDeviceGetCount", status)?;
    (0..count.min(MAX_GPUS))
        .map(|ordinal| table.gpu(ordinal))
        .collect()
}

/// More than any machine has.
const MAX_GPUS: c_int = 1024;
/// Bytes of a GPU's name that are read.
const NAME_BYTES: usize = 256;
// cuda.h: CUdevice_attribute.
const MULTIPROCESSORS: c_int = 16;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// The functions of the driver by which GPUs are listed, with the types of cuda.h.
struct Table<'a> {
    driver: &'a Opened,
    init: unsafe extern "C" fn(c_uint) -> c_int,
    count: GetInt,
    get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    memory: unsafe extern "C" fn(*mut usize, c_int) -> c_int,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int,
    error: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
}

impl<'a> Table<'a> {
    fn of(driver: &'a Opened) -> Result<Self, OpenError> {
        // SAFETY: the types are those of cuda.h, CUresult being an int and CUdevice one.
        unsafe {
            Ok(Self {
                driver,
                init: driver.symbol("cuInit")?,
                count: driver.symbol("cuDeviceGetCount")?,
                get: driver.symbol("cuDeviceGet")?,
                name: driver.symbol("cuDeviceGetName")?,
                memory: driver.symbol("cuDeviceTotalMem_v2")?,
                attribute: driver.symbol("cuDeviceGetAttribute")?,
                error: driver.symbol("cuGetErrorString")?,
            })
        }
    }

    fn told(&self, status: c_int) -> String {
        let mut text = std::ptr::null();
        // SAFETY: `text` is alive; the driver writes the address of a constant, or none.
        let known = unsafe { (self.error)(status, &raw mut text) };
        if known != 0 || text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: a constant of the driver that ends with a zero.
        let text = unsafe { CStr::from_ptr(text) };
        format!("{} (status {status})", text.to_string_lossy())
    }

    fn check(&self, name: &'static str, status: c_int) -> Result<(), OpenError> {
        match status {
            0 => Ok(()),
            status => Err(self.driver.failed(name, self.told(status))),
        }
    }

    fn gpu(&self, ordinal: c_int) -> Result<Gpu, OpenError> {
        let mut device = 0;
        // SAFETY: `device` is alive, and the driver initialised, here and below.
        let status = unsafe { (self.get)(&raw mut device, ordinal) };
        self.check("cuDeviceGet", status)?;
        let mut name = [0_u8; NAME_BYTES];
        let length = c_int::try_from(NAME_BYTES - 1).unwrap_or(0);
        // SAFETY: the name has room for as many bytes as are told, and one more that stays zero.
        let status = unsafe { (self.name)(name.as_mut_ptr().cast(), length, device) };
        self.check("cuDeviceGetName", status)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        let mut memory = 0;
        // SAFETY: `memory` is alive.
        let status = unsafe { (self.memory)(&raw mut memory, device) };
        self.check("cuDeviceTotalMem_v2", status)?;
        let capability = [CAPABILITY_MAJOR, CAPABILITY_MINOR];
        let [major, minor] = capability.map(|which| self.attribute(which, device));
        Ok(Gpu {
            ordinal: u32::try_from(ordinal).unwrap_or(0),
            name: name.to_string_lossy().into_owned(),
            memory_bytes: memory as u64,
            capability: [major?, minor?],
            multiprocessors: self.attribute(MULTIPROCESSORS, device)?,
        })
    }

    fn attribute(&self, which: c_int, device: c_int) -> Result<u32, OpenError> {
        let mut value = 0;
        // SAFETY: `value` is alive.
        let status = unsafe { (self.attribute)(&raw mut value, which, device) };
        self.check("cuDeviceGetAttribute", status)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}
