//! What everything of one GPU shares: its context, its two streams, its first fault.

use super::CudaError;
use super::driver::{Pinned, Primary};
use super::stream::Stream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pinned buffers that are kept for the next copy to the host.
const POOL_BUFFERS: usize = 16;

#[derive(Debug)]
pub(super) struct Context {
    /// Kernels, convolutions, copies on the device and to the host.
    pub(super) compute: Stream,
    /// Copies from the host.
    pub(super) copy: Stream,
    pool: Mutex<Vec<Pinned>>,
    fault: Mutex<Option<CudaError>>,
    has_fault: AtomicBool,
    /// Whether nothing is done any more, without a fault.
    halted: AtomicBool,
    /// What cannot be captured: the work is not done then, but the device goes on.
    refusal: Mutex<Option<CudaError>>,
    pub(super) capturing: AtomicBool,
    /// How much work has been captured since the capture began.
    pub(super) captured: AtomicU64,
    /// Whether work for the compute stream is left out, because a graph does it.
    pub(super) muted: AtomicBool,
    /// Whether nothing is done, because a capture has failed.
    pub(super) in_vain: AtomicBool,
    allocated: AtomicU64,
    peak: AtomicU64,
    // Last: what lives in it is dropped first.
    pub(super) primary: Primary,
}

impl Context {
    pub(super) fn new(primary: Primary) -> Result<Self, CudaError> {
        primary.bind()?;
        Ok(Self {
            compute: Stream::new()?,
            copy: Stream::new()?,
            pool: Mutex::default(),
            fault: Mutex::default(),
            has_fault: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            refusal: Mutex::default(),
            capturing: AtomicBool::new(false),
            captured: AtomicU64::new(0),
            muted: AtomicBool::new(false),
            in_vain: AtomicBool::new(false),
            allocated: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            primary,
        })
    }

    /// The first fault.
    pub(super) fn fault(&self) -> Option<CudaError> {
        if self.has_fault.load(Ordering::Acquire) {
            lock(&self.fault).clone()
        } else {
            None
        }
    }

    /// From now on `run` does nothing.
    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::Release);
    }

    /// Why the capture that has just ended is worth nothing, if so.
    pub(super) fn take_refusal(&self) -> Option<CudaError> {
        lock(&self.refusal).take()
    }

    /// Keeps a fault if it is the first, and logs it. While a graph is captured an error is one of the
    /// capture alone, unless the device has failed.
    pub(super) fn keep(&self, error: CudaError) {
        let is_of_capture = !matches!(error, CudaError::Fault { .. });
        if is_of_capture && self.capturing.load(Ordering::Acquire) {
            lock(&self.refusal).get_or_insert(error);
            return;
        }
        let mut fault = lock(&self.fault);
        if fault.is_none() {
            tracing::error!(%error, "the GPU cannot go on");
            *fault = Some(error);
            self.has_fault.store(true, Ordering::Release);
        }
    }

    /// Does something that returns nothing: an error of it becomes the fault, and after a fault, or once
    /// halted, nothing is done any more. Returns whether it was done.
    pub(super) fn run(&self, action: impl FnOnce(&Self) -> Result<(), CudaError>) -> bool {
        let is_capturing = self.capturing.load(Ordering::Acquire);
        let is_refused = is_capturing && lock(&self.refusal).is_some();
        let is_over = self.has_fault.load(Ordering::Acquire) || self.halted.load(Ordering::Acquire);
        if is_refused || is_over || self.in_vain.load(Ordering::Acquire) {
            return false;
        }
        match self.primary.bind().and_then(|()| action(self)) {
            Ok(()) => true,
            Err(error) => {
                self.keep(error);
                false
            }
        }
    }

    /// As [`Context::run`], of work for the compute stream: what a graph can consist of.
    pub(super) fn work(&self, action: impl FnOnce(&Self) -> Result<(), CudaError>) {
        if self.muted.load(Ordering::Acquire) {
            return;
        }
        self.captured.fetch_add(1, Ordering::Relaxed);
        self.run(action);
    }

    /// Does something that can fail by itself: not after a fault, and a fault found by it is kept.
    pub(super) fn attempt<T>(
        &self,
        action: impl FnOnce(&Self) -> Result<T, CudaError>,
    ) -> Result<T, CudaError> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        let result = self.primary.bind().and_then(|()| action(self));
        if let Err(error @ CudaError::Fault { .. }) = &result {
            self.keep(error.clone());
        }
        result
    }

    /// An error while a graph is captured, or work is left out.
    pub(super) fn not_capturing(&self, call: &'static str) -> Result<(), CudaError> {
        let flags = [&self.capturing, &self.muted, &self.in_vain];
        if flags.iter().any(|flag| flag.load(Ordering::Acquire)) {
            return Err(CudaError::WhileCapturing { call });
        }
        Ok(())
    }

    pub(super) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// Device memory, not initialised, and counted.
    pub(super) fn allocate(&self, bytes: u64) -> Result<u64, CudaError> {
        let address = self.primary.allocate(bytes)?;
        let now = self.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
        Ok(address)
    }

    /// Gives back what `allocate` has given. Waits for work that uses it.
    pub(super) fn free(&self, address: u64, bytes: u64) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
        let freed = self
            .not_capturing("a drop of memory")
            .and_then(|()| self.primary.free(address));
        if let Err(error) = freed {
            self.keep(error);
        }
    }

    /// A pinned buffer of at least so many bytes, from the pool or new.
    pub(super) fn borrow_pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let mut pool = lock(&self.pool);
        let fitting = pool
            .iter()
            .enumerate()
            .filter(|(_, pinned)| pinned.bytes() >= bytes)
            .min_by_key(|(_, pinned)| pinned.bytes())
            .map(|(index, _)| index);
        if let Some(index) = fitting {
            return Ok(pool.swap_remove(index));
        }
        drop(pool);
        self.primary.pin(bytes.max(256).next_power_of_two())
    }

    /// Gives a pinned buffer back. No copy into it may be under way.
    pub(super) fn return_pinned(&self, pinned: Pinned) {
        let mut pool = lock(&self.pool);
        pool.push(pinned);
        if pool.len() > POOL_BUFFERS {
            // The smallest is the cheapest to make again.
            let smallest = (0..pool.len()).min_by_key(|&index| pool[index].bytes());
            let pinned = smallest.map(|index| pool.swap_remove(index));
            drop(pool);
            // Freed memory is no fault, if the driver fails here: it is lost until the end.
            let _ = pinned.map(|pinned| self.primary.unpin(pinned));
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let _ = self.primary.bind();
        let _ = self.compute.synchronize();
        let _ = self.copy.synchronize();
        for pinned in lock(&self.pool).drain(..) {
            let _ = self.primary.unpin(pinned);
        }
    }
}

/// Locks, whatever a thread that panicked has left: what is guarded here is whole at all times.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
