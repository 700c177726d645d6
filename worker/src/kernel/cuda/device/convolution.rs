//! Convolutions and their gradients, by cuDNN.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::algorithm::Operand;
use super::context::lock;
use super::cudnn::{FilterDescriptor, TensorDescriptor, check, check_workspace};
use super::legacy::{Algorithms, direction};
use super::memory::size;
use super::operation::Pass;
use super::plan::Plans;
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

    /// An error where the sides do not fit.
    fn check(&self) -> Result<(), CudaError> {
        let ([h, w, _], [oh, ow, _]) = (self.input, self.output);
        let (height, width) = (self.output_side(h), self.output_side(w));
        if (height, width) == (oh, ow) && height > 0 && width > 0 {
            return Ok(());
        }
        Err(CudaError::BadConvolution {
            shape: self.to_string(),
            height,
            width,
        })
    }
}

/// A convolution of one shape, and how each of its directions is computed.
///
/// # Shapes
///
/// x and dx `[N, H, W, C]`, w and dw `[K, R, S, C]`, y and dy `[N, H', W', K]`; all begin at a multiple of 16
/// bytes. It is deterministic: the same operands give the same bits on the same GPU.
#[derive(Debug)]
pub struct Convolution {
    shape: ConvolutionShape,
    way: Way,
}

/// By which of cuDNN's interfaces.
#[derive(Debug)]
enum Way {
    Legacy(Box<Algorithms>),
    Graph(Plans),
}

impl Convolution {
    /// By the legacy calls: asks cuDNN's heuristics for the algorithms; nothing is timed.
    ///
    /// # Errors
    ///
    /// [`CudaError::BadConvolution`], where the sides do not fit; what cuDNN refuses; the fault, if there is
    /// one. That a direction has no algorithm is told by [`Convolution::prepare`].
    pub fn new(device: &Device, shape: &ConvolutionShape) -> Result<Self, CudaError> {
        shape.check()?;
        let ([h, w, c], [oh, ow, k]) = (shape.input, shape.output);
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
                way: Way::Legacy(Box::new(Algorithms::new(&handle, shape, operand)?)),
                shape: shape.clone(),
            })
        })
    }

    /// By the graph API. What each pass needs is made by [`Convolution::prepare`].
    ///
    /// # Errors
    ///
    /// [`CudaError::BadConvolution`], where the sides do not fit.
    pub fn by_graphs(device: &Device, shape: &ConvolutionShape) -> Result<Self, CudaError> {
        shape.check()?;
        Ok(Self {
            way: Way::Graph(Plans::new(&device.context)),
            shape: shape.clone(),
        })
    }

    /// Makes what a pass needs, where it is not there yet: this comes before the pass. Gives the bytes of workspace
    /// that the pass can do with.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoPlan`] and [`CudaError::NoAlgorithm`]; what cuDNN refuses; the fault, if there is one;
    /// [`CudaError::WhileCapturing`].
    pub fn prepare(&mut self, device: &Device, pass: Pass) -> Result<u64, CudaError> {
        if let Way::Graph(plans) = &mut self.way
            && !plans.has(pass)
        {
            if let Some(error) = plans.refusal(pass) {
                return Err(error.clone());
            }
            device.context.attempt(|context| {
                context.not_capturing("a new convolution")?;
                plans.make(&lock(&device.cudnn), &self.shape, pass)
            })?;
        }
        match &self.way {
            Way::Legacy(legacy) => legacy.workspace(pass),
            Way::Graph(plans) => Ok(plans.workspace(pass)),
        }
    }

    /// Bytes of workspace that each pass that is prepared can do with.
    pub fn workspace(&self) -> u64 {
        match &self.way {
            Way::Legacy(legacy) => legacy.most_workspace(),
            Way::Graph(plans) => plans.most_workspace(),
        }
    }

    /// The algorithms or engines, in words.
    pub fn algorithms(&self) -> String {
        match &self.way {
            Way::Legacy(legacy) => format!("{}: {}", self.shape, legacy.words()),
            Way::Graph(plans) => format!("{}: {}", self.shape, plans.words()),
        }
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
            let legacy = match &self.way {
                Way::Legacy(legacy) => legacy,
                Way::Graph(plans) => {
                    let pass = Pass::Forward;
                    return plans.execute(&handle, &self.shape, pass, [x, w, y], workspace);
                }
            };
            let (call, chosen) = ("cudnnConvolutionForward", direction(&legacy.forward)?);
            check_workspace(call, &self.shape, workspace.1, chosen.workspace as u64)?;
            // SAFETY: the descriptors live; the memory is as long as they say by the caller's arithmetic,
            // and lives because its drop waits for the stream.
            let status = unsafe {
                sys::cudnnConvolutionForward(
                    handle.raw(),
                    factor(&one),
                    legacy.operand.x.raw(),
                    address(x),
                    legacy.operand.w.raw(),
                    address(w),
                    chosen.descriptor.raw(),
                    chosen.algorithm,
                    address(workspace.0),
                    size("forward", workspace.1)?,
                    factor(&zero),
                    legacy.operand.y.raw(),
                    address(y),
                )
            };
            check(call, &self.shape, status)
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
            let legacy = match &self.way {
                Way::Legacy(legacy) => legacy,
                Way::Graph(plans) => {
                    let pass = Pass::Data { accumulate };
                    return plans.execute(&handle, &self.shape, pass, [dx, w, dy], workspace);
                }
            };
            let (call, chosen) = ("cudnnConvolutionBackwardData", direction(&legacy.data)?);
            check_workspace(call, &self.shape, workspace.1, chosen.workspace as u64)?;
            // SAFETY: as in `forward`.
            let status = unsafe {
                sys::cudnnConvolutionBackwardData(
                    handle.raw(),
                    factor(&one),
                    legacy.operand.w.raw(),
                    address(w),
                    legacy.operand.y.raw(),
                    address(dy),
                    chosen.descriptor.raw(),
                    chosen.algorithm,
                    address(workspace.0),
                    size("data_gradient", workspace.1)?,
                    factor(&kept),
                    legacy.operand.x.raw(),
                    address(dx),
                )
            };
            check(call, &self.shape, status)
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
            let legacy = match &self.way {
                Way::Legacy(legacy) => legacy,
                Way::Graph(plans) => {
                    let pass = Pass::Weight { accumulate };
                    return plans.execute(&handle, &self.shape, pass, [x, dw, dy], workspace);
                }
            };
            let (call, chosen) = ("cudnnConvolutionBackwardFilter", direction(&legacy.weight)?);
            check_workspace(call, &self.shape, workspace.1, chosen.workspace as u64)?;
            // SAFETY: as in `forward`.
            let status = unsafe {
                sys::cudnnConvolutionBackwardFilter(
                    handle.raw(),
                    factor(&one),
                    legacy.operand.x.raw(),
                    address(x),
                    legacy.operand.y.raw(),
                    address(dy),
                    chosen.descriptor.raw(),
                    chosen.algorithm,
                    address(workspace.0),
                    size("weight_gradient", workspace.1)?,
                    factor(&kept),
                    legacy.operand.w.raw(),
                    address(dw),
                )
            };
            check(call, &self.shape, status)
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
