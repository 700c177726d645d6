//! cuDNN's handle and descriptors.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::CudaError;
use super::stream::Stream;
use cudarc::cudnn::sys;
use std::ffi::{CStr, c_char, c_int};
use std::fmt::Display;
use std::ptr;

/// cuDNN's version, as in 92100 for 9.21.
pub(super) fn version() -> usize {
    // SAFETY: takes nothing.
    unsafe { sys::cudnnGetVersion() }
}

/// A status as an error, with the newest words of cuDNN in this thread.
pub(super) fn check(
    call: &'static str,
    shape: &dyn Display,
    status: sys::cudnnStatus_t,
) -> Result<(), CudaError> {
    if status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut text = [0 as c_char; 512];
    // SAFETY: writes at most 511 bytes and a 0; the last byte stays 0 in any case.
    let text = unsafe {
        sys::cudnnGetLastErrorString(text.as_mut_ptr(), text.len() - 1);
        CStr::from_ptr(text.as_ptr())
    };
    Err(CudaError::Cudnn {
        call,
        status: format!("{status:?}"),
        text: text.to_string_lossy().into_owned(),
        shape: shape.to_string(),
    })
}

/// Whether a workspace is as long as a call wants it. Where it is not, cuDNN names neither number, or says
/// nothing at all.
///
/// # Errors
///
/// [`CudaError::Cudnn`], with both.
pub(super) fn check_workspace(
    call: &'static str,
    shape: &dyn Display,
    bytes: u64,
    wanted: u64,
) -> Result<(), CudaError> {
    if bytes >= wanted {
        return Ok(());
    }
    Err(CudaError::Cudnn {
        call,
        status: "a workspace that is too small".into(),
        text: format!("{bytes} bytes, and {wanted} are wanted"),
        shape: shape.to_string(),
    })
}

/// What all convolutions of a device go through.
#[derive(Debug)]
pub(super) struct Handle(sys::cudnnHandle_t);

// SAFETY: a handle may be used by any thread, by one at a time: a lock guards it.
unsafe impl Send for Handle {}

impl Handle {
    /// A handle of the current context, whose work goes to the stream.
    pub(super) fn new(stream: &Stream) -> Result<Self, CudaError> {
        let mut handle = ptr::null_mut();
        // SAFETY: a context is current; writes one handle.
        let status = unsafe { sys::cudnnCreate(&raw mut handle) };
        check("cudnnCreate", &"a handle", status)?;
        let handle = Self(handle);
        // SAFETY: both live; the device drops the handle before the stream.
        let status = unsafe { sys::cudnnSetStream(handle.0, stream.raw().cast()) };
        check("cudnnSetStream", &"a handle", status)?;
        Ok(handle)
    }

    pub(super) fn raw(&self) -> sys::cudnnHandle_t {
        self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: not used after this.
        let _ = unsafe { sys::cudnnDestroy(self.0) };
    }
}

/// A kind of descriptor: made empty, dropped.
macro_rules! descriptor {
    ($(#[$text:meta])* $name:ident, $raw:ty, $create:ident, $destroy:ident) => {
        $(#[$text])*
        #[derive(Debug)]
        pub(super) struct $name($raw);

        // SAFETY: plain memory of the host that cuDNN reads; it has one owner.
        unsafe impl Send for $name {}

        impl $name {
            fn empty() -> Result<Self, CudaError> {
                let mut made = ptr::null_mut();
                // SAFETY: writes one handle.
                let status = unsafe { sys::$create(&raw mut made) };
                check(stringify!($create), &"a descriptor", status)?;
                Ok(Self(made))
            }

            pub(super) fn raw(&self) -> $raw {
                self.0
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: not used after this.
                let _ = unsafe { sys::$destroy(self.0) };
            }
        }
    };
}

descriptor!(
    /// The shape of a tensor.
    TensorDescriptor,
    sys::cudnnTensorDescriptor_t,
    cudnnCreateTensorDescriptor,
    cudnnDestroyTensorDescriptor
);
descriptor!(
    /// The shape of a filter.
    FilterDescriptor,
    sys::cudnnFilterDescriptor_t,
    cudnnCreateFilterDescriptor,
    cudnnDestroyFilterDescriptor
);
descriptor!(
    /// Padding, stride and how products are made.
    ConvolutionDescriptor,
    sys::cudnnConvolutionDescriptor_t,
    cudnnCreateConvolutionDescriptor,
    cudnnDestroyConvolutionDescriptor
);

impl TensorDescriptor {
    /// `[n, h, w, c]`.
    pub(super) fn new(
        shape: &dyn Display,
        number: sys::cudnnDataType_t,
        [n, h, w, c]: [usize; 4],
    ) -> Result<Self, CudaError> {
        let made = Self::empty()?;
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        // SAFETY: the descriptor lives.
        let status = unsafe {
            sys::cudnnSetTensor4dDescriptor(made.0, format, number, int(n), int(c), int(h), int(w))
        };
        check("cudnnSetTensor4dDescriptor", shape, status)?;
        Ok(made)
    }
}

impl FilterDescriptor {
    /// `[k, r, s, c]`, square.
    pub(super) fn new(
        shape: &dyn Display,
        number: sys::cudnnDataType_t,
        (outputs, side, inputs): (usize, usize, usize),
    ) -> Result<Self, CudaError> {
        let made = Self::empty()?;
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let (k, r, c) = (int(outputs), int(side), int(inputs));
        // SAFETY: the descriptor lives.
        let status = unsafe { sys::cudnnSetFilter4dDescriptor(made.0, number, format, k, c, r, r) };
        check("cudnnSetFilter4dDescriptor", shape, status)?;
        Ok(made)
    }
}

impl ConvolutionDescriptor {
    /// Sums in f32.
    pub(super) fn new(
        shape: &dyn Display,
        padding: usize,
        stride: usize,
        math: sys::cudnnMathType_t,
    ) -> Result<Self, CudaError> {
        let made = Self::empty()?;
        let (padding, stride) = (int(padding), int(stride));
        // SAFETY: the descriptor lives.
        let status = unsafe {
            sys::cudnnSetConvolution2dDescriptor(
                made.0,
                padding,
                padding,
                stride,
                stride,
                1,
                1,
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )
        };
        check("cudnnSetConvolution2dDescriptor", shape, status)?;
        made.set_math(shape, math)?;
        Ok(made)
    }

    pub(super) fn set_math(
        &self,
        shape: &dyn Display,
        math: sys::cudnnMathType_t,
    ) -> Result<(), CudaError> {
        // SAFETY: the descriptor lives.
        let status = unsafe { sys::cudnnSetConvolutionMathType(self.0, math) };
        check("cudnnSetConvolutionMathType", shape, status)
    }
}

/// A side as cuDNN takes it; one that is too large becomes one that it refuses.
fn int(side: usize) -> c_int {
    c_int::try_from(side).unwrap_or(-1)
}
