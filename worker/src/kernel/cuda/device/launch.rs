//! Launches of kernels, found by name.
#![allow(unsafe_code, reason = "a kernel trusts its arguments")]

use super::context::lock;
use super::driver::{Function, Module};
use super::{CudaError, Device};
use std::collections::HashMap;
use std::sync::Mutex;

/// The one argument of a kernel: a plain `repr(C)` struct that is passed by value.
///
/// # Safety
///
/// The struct has the fields of the C++ struct of the kernel, in the same order; a pointer there is a
/// [`Pointer`](super::Pointer) here. It has no references and no padding that matters.
pub unsafe trait Arguments: Copy {
    /// The name of the kernel.
    const KERNEL: &'static str;
}

/// The kernels of the program.
#[derive(Debug)]
pub(super) struct Kernels {
    modules: Vec<Module>,
    known: Mutex<HashMap<&'static str, Function>>,
}

impl Kernels {
    pub(super) fn new(modules: Vec<Module>) -> Self {
        Self {
            modules,
            known: Mutex::default(),
        }
    }

    /// The kernel of the arguments, whose size is checked once.
    fn find<A: Arguments>(&self) -> Result<Function, CudaError> {
        let mut known = lock(&self.known);
        if let Some(function) = known.get(A::KERNEL) {
            return Ok(*function);
        }
        for module in &self.modules {
            let Some(function) = module.function(A::KERNEL)? else {
                continue;
            };
            let device = function.argument_bytes().unwrap_or(0);
            if device != size_of::<A>() {
                return Err(CudaError::ArgumentBytes {
                    kernel: A::KERNEL,
                    host: size_of::<A>(),
                    device,
                });
            }
            known.insert(A::KERNEL, function);
            return Ok(function);
        }
        Err(CudaError::UnknownKernel { kernel: A::KERNEL })
    }
}

impl Device {
    /// Launches a kernel on the compute stream: a grid of blocks of so many threads. A grid without
    /// blocks launches nothing.
    ///
    /// The memory that the arguments point to must live until the kernel ends; [`Memory`](super::Memory)
    /// sees to that when it is dropped.
    pub fn launch<A: Arguments>(&self, grid: [u32; 3], threads: u32, arguments: &A) {
        if grid.contains(&0) {
            return;
        }
        self.context.work(|context| {
            let function = self.kernels.find::<A>()?;
            let arguments = std::ptr::from_ref(arguments).cast();
            // SAFETY: `A` is as the kernel takes it, by the promise of `Arguments` and the size checked;
            // memory outlives the launch because its drop waits.
            unsafe { context.compute.launch(function, grid, threads, arguments) }
        });
    }
}
