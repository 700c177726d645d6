//! Descriptors of cuDNN's graph API: made empty, given attributes, finished, and then asked.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::CudaError;
use super::convolution::ConvolutionShape;
use super::cudnn::check;
use cudarc::cudnn::sys;
use cudarc::cudnn::sys::cudnnBackendAttributeName_t as Name;
use cudarc::cudnn::sys::cudnnBackendAttributeType_t as Type;
use cudarc::cudnn::sys::cudnnBackendDescriptorType_t as Kind;
use std::ffi::c_void;
use std::ptr;

/// What an attribute is set to.
///
/// # Safety
///
/// Values of this type lie in memory as cuDNN has those of `TYPE`.
pub(super) unsafe trait Value: Copy {
    const TYPE: Type;
}

/// What an attribute is asked for.
///
/// # Safety
///
/// Any bits that cuDNN writes for `TYPE` are a value of this type.
pub(super) unsafe trait Answer: Value + Default {}

macro_rules! value {
    ($value:ty, $kind:ident) => {
        // SAFETY: a number or an address, as wide as in cuDNN's header, of which cudarc's types are made.
        unsafe impl Value for $value {
            const TYPE: Type = Type::$kind;
        }
    };
}

value!(i64, CUDNN_TYPE_INT64);
value!(f32, CUDNN_TYPE_FLOAT);
value!(sys::cudnnHandle_t, CUDNN_TYPE_HANDLE);
value!(sys::cudnnDataType_t, CUDNN_TYPE_DATA_TYPE);
value!(sys::cudnnConvolutionMode_t, CUDNN_TYPE_CONVOLUTION_MODE);
value!(sys::cudnnBackendHeurMode_t, CUDNN_TYPE_HEUR_MODE);
value!(Address, CUDNN_TYPE_VOID_PTR);
value!(Part, CUDNN_TYPE_BACKEND_DESCRIPTOR);
value!(Note, CUDNN_TYPE_NUMERICAL_NOTE);

// SAFETY: any bits are a number.
unsafe impl Answer for i64 {}
// SAFETY: any bits are a number.
unsafe impl Answer for Note {}

/// An address of the device.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Address(pub(super) *mut c_void);

/// A descriptor that another one is made of.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Part(sys::cudnnBackendDescriptor_t);

/// What an engine does to numbers: a `cudnnBackendNumericalNote_t`, of which a version of cuDNN may have more
/// than cudarc.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note(pub(super) u32);

/// A descriptor that is not finished.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    descriptor: Descriptor,
    /// The convolution that it is for.
    shape: &'a ConvolutionShape,
}

impl<'a> Draft<'a> {
    pub(super) fn new(shape: &'a ConvolutionShape, kind: Kind) -> Result<Self, CudaError> {
        let descriptor = Descriptor::empty(shape, kind)?;
        Ok(Self { descriptor, shape })
    }

    /// Sets an attribute to these values.
    pub(super) fn set<T: Value>(self, name: Name, values: &[T]) -> Result<Self, CudaError> {
        // SAFETY: the descriptor lives; so many values of this type are read.
        let status = unsafe {
            sys::cudnnBackendSetAttribute(
                self.descriptor.0,
                name,
                T::TYPE,
                number(values.len()),
                values.as_ptr().cast(),
            )
        };
        check("cudnnBackendSetAttribute", self.shape, status)?;
        Ok(self)
    }

    pub(super) fn finish(self) -> Result<Descriptor, CudaError> {
        // SAFETY: the descriptor lives.
        let status = unsafe { sys::cudnnBackendFinalize(self.descriptor.0) };
        check("cudnnBackendFinalize", self.shape, status)?;
        Ok(self.descriptor)
    }
}

/// A descriptor. What it is made of has to live as long.
#[derive(Debug)]
pub(super) struct Descriptor(sys::cudnnBackendDescriptor_t);

// SAFETY: it has one owner, and is used by one thread at a time.
unsafe impl Send for Descriptor {}

impl Descriptor {
    fn empty(shape: &ConvolutionShape, kind: Kind) -> Result<Self, CudaError> {
        let mut made = ptr::null_mut();
        // SAFETY: writes one descriptor.
        let status = unsafe { sys::cudnnBackendCreateDescriptor(kind, &raw mut made) };
        check("cudnnBackendCreateDescriptor", shape, status)?;
        Ok(Self(made))
    }

    /// As an attribute of another one.
    pub(super) fn part(&self) -> Part {
        Part(self.0)
    }

    pub(super) fn raw(&self) -> sys::cudnnBackendDescriptor_t {
        self.0
    }

    /// The values of an attribute, `N` at most.
    pub(super) fn values<T: Answer, const N: usize>(
        &self,
        shape: &ConvolutionShape,
        name: Name,
    ) -> Result<Vec<T>, CudaError> {
        let mut values = [T::default(); N];
        let count = self.ask(shape, name, &mut values)?;
        Ok(values[..count].to_vec())
    }

    /// How many descriptors an attribute has.
    pub(super) fn num_parts(
        &self,
        shape: &ConvolutionShape,
        name: Name,
    ) -> Result<usize, CudaError> {
        let mut count = 0;
        // SAFETY: the descriptor lives; where nothing is asked for, only the count is written.
        let status = unsafe {
            sys::cudnnBackendGetAttribute(
                self.0,
                name,
                Part::TYPE,
                0,
                &raw mut count,
                ptr::null_mut(),
            )
        };
        check("cudnnBackendGetAttribute", shape, status)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The first so many descriptors of an attribute, of this kind.
    pub(super) fn parts(
        &self,
        shape: &ConvolutionShape,
        (name, kind): (Name, Kind),
        count: usize,
    ) -> Result<Vec<Self>, CudaError> {
        let empty = (0..count).map(|_| Self::empty(shape, kind));
        let mut parts = empty.collect::<Result<Vec<_>, _>>()?;
        // cuDNN fills those that it is given.
        let mut filled: Vec<Part> = parts.iter().map(Self::part).collect();
        let count = self.ask(shape, name, &mut filled)?;
        parts.truncate(count);
        Ok(parts)
    }

    /// Asks for the values of an attribute; how many of those given it wrote.
    fn ask<T: Value>(
        &self,
        shape: &ConvolutionShape,
        name: Name,
        values: &mut [T],
    ) -> Result<usize, CudaError> {
        let mut count = 0;
        // SAFETY: the descriptor lives; at most so many values are written.
        let status = unsafe {
            sys::cudnnBackendGetAttribute(
                self.0,
                name,
                T::TYPE,
                number(values.len()),
                &raw mut count,
                values.as_mut_ptr().cast(),
            )
        };
        check("cudnnBackendGetAttribute", shape, status)?;
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: not used after this.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

/// A count or a side as cuDNN takes it; one that is too large becomes one that it refuses.
pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(-1)
}
