//! Streams and events of CUDA's driver, as far as averages between GPUs need them.
//!
//! A GPU has one primary context in a process, which everybody shares: the back end's memory and streams
//! are of the same.

#![allow(unsafe_code, reason = "functions of CUDA's driver")]

use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUevent, CUresult, CUstream};

use crate::libraries::{self, Library};

/// A GPU's primary context, kept alive.
pub(super) struct Context {
    device: CUdevice,
    primary: CUcontext,
    uuid: String,
}

// SAFETY: a context may be made current on any thread, and the driver's functions lock for themselves.
unsafe impl Send for Context {}
// SAFETY: as above; nothing here is changed after it is made.
unsafe impl Sync for Context {}

impl Context {
    /// That of the GPU of this number. The calling thread works with it from now on.
    pub(super) fn open(ordinal: u32) -> Result<Arc<Self>, String> {
        let driver = libraries::open(Library::Driver).map_err(|error| error.to_string())?;
        // SAFETY: it looks for the library by its name, and panics nowhere.
        if !unsafe { sys::is_culib_present() } {
            return Err(format!(
                "CUDA's driver at {} is not found by its name: put its folder into LD_LIBRARY_PATH",
                driver.found.path.display()
            ));
        }
        let (mut count, mut device, mut primary) = (0, 0, ptr::null_mut());
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: each writes one value, for which there is room.
        unsafe {
            told("cuInit", sys::cuInit(0))?;
            told("cuDeviceGetCount", sys::cuDeviceGetCount(&raw mut count))?;
            let number = i32::try_from(ordinal).ok().filter(|number| *number < count);
            let number = number.ok_or_else(|| {
                format!("there is no GPU {ordinal}: {count} found; is it in CUDA_VISIBLE_DEVICES?")
            })?;
            told("cuDeviceGet", sys::cuDeviceGet(&raw mut device, number))?;
            told(
                "cuDeviceGetUuid_v2",
                sys::cuDeviceGetUuid_v2(&raw mut uuid, device),
            )?;
            told(
                "cuDevicePrimaryCtxRetain",
                sys::cuDevicePrimaryCtxRetain(&raw mut primary, device),
            )?;
        }
        let uuid = written(uuid.bytes.map(|byte| byte.to_ne_bytes()[0]));
        let context = Arc::new(Self {
            device,
            primary,
            uuid,
        });
        context.enter()?;
        Ok(context)
    }

    /// The GPU's own name, as `nvidia-smi -L` has it; of a part of a GPU, that part's.
    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    /// The calling thread works with it from now on.
    pub(super) fn enter(&self) -> Result<(), String> {
        // SAFETY: this keeps the context alive.
        told("cuCtxSetCurrent", unsafe {
            sys::cuCtxSetCurrent(self.primary)
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and all streams and events of this module hold this.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A stream of our own.
pub(super) struct Stream {
    stream: CUstream,
    _context: Arc<Context>,
}

// SAFETY: the driver takes a stream from any thread.
unsafe impl Send for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, String> {
        context.enter()?;
        let mut stream = ptr::null_mut();
        let flag = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: it writes one stream, for which there is room.
        let result = unsafe { sys::cuStreamCreate(&raw mut stream, flag) };
        told("cuStreamCreate", result)?;
        Ok(Self {
            stream,
            _context: Arc::clone(context),
        })
    }

    /// As NCCL takes it.
    pub(super) fn raw(&self) -> *mut std::ffi::c_void {
        self.stream.cast()
    }

    /// What comes on this stream comes after what the event was recorded behind.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), String> {
        // SAFETY: both are alive.
        let result = unsafe { sys::cuStreamWaitEvent(self.stream, event.event, 0) };
        told("cuStreamWaitEvent", result)
    }

    pub(super) fn record(&self, event: &Event) -> Result<(), String> {
        // SAFETY: both are alive.
        let result = unsafe { sys::cuEventRecord(event.event, self.stream) };
        told("cuEventRecord", result)
    }

    /// The host waits for all that is on it.
    pub(super) fn wait(&self) -> Result<(), String> {
        // SAFETY: it is alive.
        told("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.stream)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody else has it any more; what is on it is completed first.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}

/// A stream of the back end's, by its number: a `CUstream` of the same GPU, as the back end says of itself.
#[derive(Clone, Copy)]
pub(super) struct Lent(CUstream);

impl Lent {
    pub(super) fn new(stream: u64) -> Self {
        Self(ptr::with_exposed_provenance_mut(
            usize::try_from(stream).unwrap_or(0),
        ))
    }

    pub(super) fn record(self, event: &Event) -> Result<(), String> {
        // SAFETY: the back end's stream lives as long as the back end, whose call this is; the event here.
        let result = unsafe { sys::cuEventRecord(event.event, self.0) };
        told("cuEventRecord", result)
    }

    pub(super) fn wait_for(self, event: &Event) -> Result<(), String> {
        // SAFETY: the back end's stream lives as long as the back end, whose call this is; the event here.
        let result = unsafe { sys::cuStreamWaitEvent(self.0, event.event, 0) };
        told("cuStreamWaitEvent", result)
    }
}

/// A moment of a stream, without its time.
pub(super) struct Event {
    event: CUevent,
    _context: Arc<Context>,
}

// SAFETY: the driver takes an event from any thread, and locks for itself.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, String> {
        let mut event = ptr::null_mut();
        let flag = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: it writes one event, for which there is room.
        told("cuEventCreate", unsafe {
            sys::cuEventCreate(&raw mut event, flag)
        })?;
        Ok(Self {
            event,
            _context: Arc::clone(context),
        })
    }

    /// Whether its stream has come past it.
    pub(super) fn is_done(&self) -> Result<bool, String> {
        // SAFETY: it is alive.
        let result = unsafe { sys::cuEventQuery(self.event) };
        if result == CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        told("cuEventQuery", result).map(|()| true)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is ours; the driver keeps what is recorded until it has passed.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}

fn told(what: &str, result: CUresult) -> Result<(), String> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(format!("{what}: {result:?} (see synfire doctor)"))
}

/// "GPU-00112233-4455-6677-8899-aabbccddeeff".
fn written(uuid: [u8; 16]) -> String {
    let digits = uuid.map(|byte| format!("{byte:02x}")).concat();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    format!("GPU-{}", parts.join("-"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_of_a_gpu_is_written_as_nvidia_writes_it() {
        let bytes = std::array::from_fn(|i| 0x11 * u8::try_from(i).unwrap());
        let expected = "GPU-00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(super::written(bytes), expected);
    }
}
