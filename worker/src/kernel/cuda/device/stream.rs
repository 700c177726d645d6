//! Streams, events and graphs of the driver.
#![allow(unsafe_code, reason = "the driver is C")]

use super::CudaError;
use super::driver::{Function, Pinned, check};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;

/// A stream that waits for no other by itself.
#[derive(Debug)]
pub(super) struct Stream(sys::CUstream);

// SAFETY: a stream belongs to its context, which any thread may use; the driver locks.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the current context.
    pub(super) fn new() -> Result<Self, CudaError> {
        let mut stream = ptr::null_mut();
        let kind = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; writes one handle.
        let result = unsafe { sys::cuStreamCreate(&raw mut stream, kind) };
        check("cuStreamCreate", result)?;
        Ok(Self(stream))
    }

    /// As the driver knows it.
    pub(super) fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Waits until all its work is done.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.0)
        })
    }

    /// What is given to it from now on waits for the event.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both live; the driver keeps what it needs of the event.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.0, event.0, 0)
        })
    }

    /// Copies `bytes` from pinned memory, which must stay as it is until then.
    pub(super) fn upload(
        &self,
        to: u64,
        from: &Pinned,
        offset: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let from = from.at(offset, bytes);
        // SAFETY: `at` has checked the host's range, the driver checks the device's; the ring does not
        // use the range again before the event that is recorded next.
        check("cuMemcpyHtoDAsync_v2", unsafe {
            sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.0)
        })
    }

    /// Copies `bytes` to the beginning of pinned memory, which must not be touched until then.
    pub(super) fn download(&self, from: u64, to: &Pinned, bytes: usize) -> Result<(), CudaError> {
        let to = to.at(0, bytes);
        // SAFETY: as above; the memory belongs to a `Later`, which waits before it is read or given on.
        check("cuMemcpyDtoHAsync_v2", unsafe {
            sys::cuMemcpyDtoHAsync_v2(to, from, bytes, self.0)
        })
    }

    /// Copies from device to device.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the driver checks both ranges.
        check("cuMemcpyDtoDAsync_v2", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0)
        })
    }

    /// Makes bytes 0.
    pub(super) fn zero(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the driver checks the range.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(to, 0, bytes, self.0)
        })
    }

    /// Writes a word.
    pub(super) fn set_word(&self, to: u64, word: u32) -> Result<(), CudaError> {
        // SAFETY: the word belongs to memory whose drop waits for all work of the device, and is written in this
        // stream's order; the driver checks the range.
        check("cuMemsetD32Async", unsafe {
            sys::cuMemsetD32Async(to, word, 1, self.0)
        })
    }

    /// Launches a kernel.
    ///
    /// # Safety
    ///
    /// `arguments` points to what the kernel takes, and the addresses in it to memory of the device
    /// that lives until the kernel ends.
    pub(super) unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        threads: u32,
        arguments: *const c_void,
    ) -> Result<(), CudaError> {
        let mut parameters = [arguments.cast_mut()];
        let [x, y, z] = grid;
        // SAFETY: the driver copies the arguments before it returns; the rest is the caller's promise.
        check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                function.0,
                x,
                y,
                z,
                threads,
                1,
                1,
                0,
                self.0,
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }

    /// What is given to the stream from now on is not done but kept.
    pub(super) fn begin_capture(&self) -> Result<(), CudaError> {
        // Other threads (a loader, NCCL's watchdog) may go on with their calls.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        check("cuStreamBeginCapture_v2", unsafe {
            sys::cuStreamBeginCapture_v2(self.0, mode)
        })
    }

    /// Ends the capture, whether it succeeded or not. `is_empty` says that nothing was captured.
    pub(super) fn end_capture(&self, is_empty: bool) -> Result<RawGraph, CudaError> {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream lives; writes one handle, null where the capture has failed.
        let result = unsafe { sys::cuStreamEndCapture(self.0, &raw mut graph) };
        check("cuStreamEndCapture", result)?;
        let mut made = RawGraph {
            graph,
            executable: ptr::null_mut(),
        };
        if is_empty {
            return Ok(made);
        }
        // SAFETY: the graph has just been made; writes one handle.
        let result =
            unsafe { sys::cuGraphInstantiateWithFlags(&raw mut made.executable, made.graph, 0) };
        check("cuGraphInstantiateWithFlags", result)?;
        Ok(made)
    }

    /// Does what a graph has kept.
    pub(super) fn replay(&self, graph: &RawGraph) -> Result<(), CudaError> {
        if graph.is_empty() {
            return Ok(());
        }
        // SAFETY: both live; the driver keeps what it needs of the graph.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(graph.executable, self.0)
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: work that it still has ends first; nobody else has the handle after this.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub(super) struct Event(sys::CUevent);

// SAFETY: an event belongs to its context, which any thread may use; the driver locks.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event of the current context. Who waits for it sleeps.
    pub(super) fn new(timing: bool) -> Result<Self, CudaError> {
        let mut flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        if !timing {
            flags |= sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        }
        let mut event = ptr::null_mut();
        // SAFETY: a context is current; writes one handle.
        let result = unsafe { sys::cuEventCreate(&raw mut event, flags) };
        check("cuEventCreate", result)?;
        Ok(Self(event))
    }

    /// Marks what the stream has been given so far.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both live.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(self.0, stream.0)
        })
    }

    /// Whether the stream has come here.
    pub(super) fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: the event lives.
        let result = unsafe { sys::cuEventQuery(self.0) };
        if result == sys::CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        check("cuEventQuery", result)?;
        Ok(true)
    }

    /// Waits until the stream has come here.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.0)
        })
    }

    /// Milliseconds from here to another, both of which have been passed.
    pub(super) fn milliseconds_to(&self, end: &Self) -> Result<f32, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: both live; writes one number.
        let result = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, self.0, end.0) };
        check("cuEventElapsedTime_v2", result)?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the driver keeps what streams still need of it.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// Captured work, ready to be done again.
#[derive(Debug)]
pub(super) struct RawGraph {
    graph: sys::CUgraph,
    /// Null if there is no work.
    executable: sys::CUgraphExec,
}

impl RawGraph {
    pub(super) fn is_empty(&self) -> bool {
        self.executable.is_null()
    }
}

// SAFETY: a graph may be launched by any thread, by one at a time: its owner's.
unsafe impl Send for RawGraph {}

impl Drop for RawGraph {
    fn drop(&mut self) {
        // SAFETY: a launch under way ends first; null, where it was never instantiated, is skipped.
        unsafe {
            if !self.executable.is_null() {
                let _ = sys::cuGraphExecDestroy(self.executable);
            }
            let _ = sys::cuGraphDestroy(self.graph);
        }
    }
}
