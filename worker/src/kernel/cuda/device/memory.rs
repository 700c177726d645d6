//! Memory of the device.

use super::context::Context;
use super::{CudaError, Device};
use std::sync::Arc;

/// An address in the memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Pointer(pub u64);

impl Pointer {
    /// So many bytes further.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// Memory of a device that is given back when dropped, after the work that may use it.
///
/// A drop waits for all work of the device, and must not happen while a graph is captured.
#[derive(Debug)]
pub struct Memory {
    context: Arc<Context>,
    address: Pointer,
    bytes: u64,
}

impl Memory {
    /// Its first byte.
    pub fn pointer(&self) -> Pointer {
        self.address
    }

    /// How long it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.context.free(self.address.0, self.bytes);
        }
    }
}

impl Device {
    /// Memory that is 0, aligned to 256 bytes. None is taken for 0 bytes.
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`] with the numbers, after which the device goes on; the fault, if there is
    /// one; [`CudaError::WhileCapturing`].
    pub fn allocate(&self, bytes: u64) -> Result<Memory, CudaError> {
        let address = self.context.attempt(|context| {
            context.not_capturing("allocate")?;
            if bytes == 0 {
                return Ok(0);
            }
            context.allocate(bytes)
        })?;
        let memory = Memory {
            context: Arc::clone(&self.context),
            address: Pointer(address),
            bytes,
        };
        self.zero(memory.pointer(), bytes);
        Ok(memory)
    }

    /// Bytes of memory of the GPU: free, and in all.
    ///
    /// # Errors
    ///
    /// The fault, if there is one.
    pub fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        self.context
            .attempt(|context| context.primary.memory_info())
    }

    /// Bytes that [`Device::allocate`] has given and that are not given back.
    pub fn allocated(&self) -> u64 {
        self.context.allocated()
    }

    /// The most that [`Device::allocated`] has been.
    pub fn peak(&self) -> u64 {
        self.context.peak()
    }

    /// Makes bytes 0, on the compute stream.
    pub fn zero(&self, to: Pointer, bytes: u64) {
        if bytes > 0 {
            self.context
                .work(|context| context.compute.zero(to.0, size("zero", bytes)?));
        }
    }

    /// Writes a word, on the compute stream.
    pub fn set_word(&self, to: Pointer, word: u32) {
        self.context
            .work(|context| context.compute.set_word(to.0, word));
    }

    /// Copies within the device, on the compute stream.
    pub fn copy(&self, from: Pointer, to: Pointer, bytes: u64) {
        if bytes > 0 {
            self.context
                .work(|context| context.compute.copy(from.0, to.0, size("copy", bytes)?));
        }
    }
}

/// Bytes as the host counts them.
pub(super) fn size(call: &'static str, bytes: u64) -> Result<usize, CudaError> {
    usize::try_from(bytes).map_err(|_| CudaError::TooLarge { call, bytes })
}
