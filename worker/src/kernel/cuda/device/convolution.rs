//! Convolutions and their gradients, by cuDNN.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::algorithm::{self, Direction, Operand};
use super::context::lock;
use super::cudnn::{FilterDescriptor, TensorDescriptor, check};
use super::memory::size;
use super::{CudaError, Device, Pointer};
use cudarc::cudnn::sys;
use std::ffi::c_void;
use std::fmt;

/// What is multiplied. Sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operands {
    /// f32, as it is.
    F32,
    /// f32, rounded to TF32 (10 bits of fraction) where the GPU is faster so.
    Tf32,
    /// bf16, results included: y, dx and dw.
    Bf16,
}

/// What a convolution is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvolutionShape {
    /// Samples in the batch.
    pub samples: usize,
    /// Height, width and channels of an input sample.
    pub input: [usize; 3],
    /// Height, width and channels of an output sample.
    pub output: [usize; 3],
    /// Side of the filter.
    pub kernel: usize,
    /// Distance between output pixels.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
    /// What is multiplied.
    pub operands: Operands,
}

impl fmt::Display for ConvolutionShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([h, w, c], [oh, ow, k]) = (self.input, self.output);
        let (side, samples) = (self.kernel, self.samples);
        let operands = match self.operands {
            Operands::F32 => "f32",
            Operands::Tf32 => "tf32",
            Operands::Bf16 => "bf16",
        };
        write!(
            f,
            "a {side}x{side} convolution of {samples} x {h}x{w}x{c} to {oh}x{ow}x{k}, \
             stride {}, padding {}, {operands}",
            self.stride, self.padding
        )
    }
}

impl ConvolutionShape {
    /// What a side of the input gives.
    fn output_side(&self, side: usize) -> usize {
        let padded = side.saturating_add(2 * self.padding);
        match padded.checked_sub(self.kernel) {
            Some(rest) if self.stride > 0 => rest / self.stride + 1,
            Some(_) | None => 0,
        }
    }
}

/// A convolution of one shape with its three algorithms.
///
/// # Shapes
///
/// x and dx `[N, H, W, C]`, w and dw `[K, R, S, C]`, y and dy `[N, H', W', K]`; all begin at a multiple of 16
/// bytes. Algorithms are deterministic: the same operands give the same bits on the same GPU.
#[derive(Debug)]
pub struct Convolution {
    shape: ConvolutionShape,
    operand: Operand,
    forward: Direction<sys::cudnnConvolutionFwdAlgo_t>,
    data: Direction<sys::cudnnConvolutionBwdDataAlgo_t>,
    weight: Direction<sys::cudnnConvolutionBwdFilterAlgo_t>,
}

impl Convolution {
    /// Asks cuDNN's heuristics for the algorithms; nothing is timed.
    ///
    /// # Errors
    ///
    /// [`CudaError::BadConvolution`], where the sides do not fit; [`CudaError::NoAlgorithm`]; what cuDNN
    /// refuses; the fault, if there is one.
    pub fn new(device: &Device, shape: &ConvolutionShape) -> Result<Self, CudaError> {
        let ([h, w, c], [oh, ow, k]) = (shape.input, shape.output);
        let (height, width) = (shape.output_side(h), shape.output_side(w));
        if (height, width) != (oh, ow) || height == 0 || width == 0 {
            return Err(CudaError::BadConvolution {
                shape: shape.to_string(),
                height,
                width,
            });
        }
        let number = match shape.operands {
            Operands::F32 | Operands::Tf32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            Operands::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        device.context.attempt(|context| {
            context.not_capturing("a new convolution")?;
            let operand = Operand {
                x: TensorDescriptor::new(shape, number, [shape.samples, h, w, c])?,
                w: FilterDescriptor::new(shape, number, (k, shape.kernel, c))?,
                y: TensorDescriptor::new(shape, number, [shape.samples, oh, ow, k])?,
            };
            let handle = lock(&device.cudnn);
            Ok(Self {
                forward: algorithm::forward(&handle, shape, &operand)?,
                data: algorithm::data_gradient(&handle, shape, &operand)?,
                weight: algorithm::weight_gradient(&handle, shape, &operand)?,
                operand,
                shape: shape.clone(),
            })
        })
    }

    /// Bytes of workspace that each direction can do with.
    pub fn workspace(&self) -> u64 {
        let (data, weight) = (self.data.workspace, self.weight.workspace);
        self.forward.workspace.max(data).max(weight) as u64
    }

    /// The algorithms, in words.
    pub fn algorithms(&self) -> String {
        format!(
            "{}: {:?} ({} bytes), {:?} ({} bytes), {:?} ({} bytes)",
            self.shape,
            self.forward.algorithm,
            self.forward.workspace,
            self.data.algorithm,
            self.data.workspace,
            self.weight.algorithm,
            self.weight.workspace,
        )
    }

    /// y = w * x.
    pub fn forward(
        &self,
        device: &Device,
        x: Pointer,
        w: Pointer,
        y: Pointer,
        workspace: (Pointer, u64),
    ) {
        let (one, zero) = (1.0_f32, 0.0_f32);
        device.context.work(|_| {
            let handle = lock(&device.cudnn);
            // SAFETY: the descriptors live; the memory is as long as they say by the caller's arithmetic,
            // and lives because its drop waits for the stream.
            let status = unsafe {
                sys::cudnnConvolutionForward(
                    handle.raw(),
                    factor(&one),
                    self.operand.x.raw(),
                    address(x),
                    self.operand.w.raw(),
                    address(w),
                    self.forward.descriptor.raw(),
                    self.forward.algorithm,
                    address(workspace.0),
                    size("forward", workspace.1)?,
                    factor(&zero),
                    self.operand.y.raw(),
                    address(y),
                )
            };
            check("cudnnConvolutionForward", &self.shape, status)
        });
    }

    /// dx = w^T * dy, or dx += that.
    pub fn data_gradient(
        &self,
        device: &Device,
        dy: Pointer,
        w: Pointer,
        dx: Pointer,
        accumulate: bool,
        workspace: (Pointer, u64),
    ) {
        let (one, kept) = (1.0_f32, f32::from(u8::from(accumulate)));
        device.context.work(|_| {
            let handle = lock(&device.cudnn);
            // SAFETY: as in `forward`.
            let status = unsafe {
                sys::cudnnConvolutionBackwardData(
                    handle.raw(),
                    factor(&one),
                    self.operand.w.raw(),
                    address(w),
                    self.operand.y.raw(),
                    address(dy),
                    self.data.descriptor.raw(),
                    self.data.algorithm,
                    address(workspace.0),
                    size("data_gradient", workspace.1)?,
                    factor(&kept),
                    self.operand.x.raw(),
                    address(dx),
                )
            };
            check("cudnnConvolutionBackwardData", &self.shape, status)
        });
    }

    /// dw = dy * x, summed over samples and pixels, or dw += that. With bf16 operands dw is bf16, too: sum
    /// several in f32 by a kernel.
    pub fn weight_gradient(
        &self,
        device: &Device,
        x: Pointer,
        dy: Pointer,
        dw: Pointer,
        accumulate: bool,
        workspace: (Pointer, u64),
    ) {
        let (one, kept) = (1.0_f32, f32::from(u8::from(accumulate)));
        device.context.work(|_| {
            let handle = lock(&device.cudnn);
            // SAFETY: as in `forward`.
            let status = unsafe {
                sys::cudnnConvolutionBackwardFilter(
                    handle.raw(),
                    factor(&one),
                    self.operand.x.raw(),
                    address(x),
                    self.operand.y.raw(),
                    address(dy),
                    self.weight.descriptor.raw(),
                    self.weight.algorithm,
                    address(workspace.0),
                    size("weight_gradient", workspace.1)?,
                    factor(&kept),
                    self.operand.w.raw(),
                    address(dw),
                )
            };
            check("cudnnConvolutionBackwardFilter", &self.shape, status)
        });
    }
}

/// An address as cuDNN takes it.
fn address(pointer: Pointer) -> *mut c_void {
    std::ptr::without_provenance_mut(usize::try_from(pointer.0).unwrap_or(0))
}

/// A factor as cuDNN takes it: f32, because sums are.
fn factor(value: &f32) -> *const c_void {
    std::ptr::from_ref(value).cast()
}
