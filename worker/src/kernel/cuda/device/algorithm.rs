//! Which of cuDNN's algorithms a convolution uses: the first that its heuristics name and that is
//! deterministic.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::CudaError;
use super::convolution::{ConvolutionShape, Operands};
use super::cudnn::{ConvolutionDescriptor, FilterDescriptor, Handle, TensorDescriptor, check};
use cudarc::cudnn::sys;
use std::ffi::c_int;

/// As many algorithms as cuDNN can name.
const MOST: u8 = 16;

/// The shapes of a convolution's operands.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) x: TensorDescriptor,
    pub(super) w: FilterDescriptor,
    pub(super) y: TensorDescriptor,
}

/// One direction of a convolution, ready to be called.
#[derive(Debug)]
pub(super) struct Direction<A> {
    pub(super) descriptor: ConvolutionDescriptor,
    pub(super) algorithm: A,
    pub(super) workspace: usize,
}

/// What cuDNN says of one algorithm.
struct Offer<A> {
    algorithm: A,
    works: bool,
    deterministic: bool,
    math: sys::cudnnMathType_t,
}

macro_rules! offers {
    ($found:expr, $count:expr) => {
        $found
            .iter()
            .take(usize::try_from($count).unwrap_or(0))
            .map(|found| Offer {
                algorithm: found.algo,
                works: found.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
                deterministic: found.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC,
                math: found.mathType,
            })
            .collect::<Vec<_>>()
    };
}

fn math(operands: Operands) -> sys::cudnnMathType_t {
    match operands {
        Operands::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
        Operands::Tf32 | Operands::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
    }
}

/// Takes the first offer that is good: `workspace` says how many bytes it needs, or that it does not work.
fn choose<A: Copy>(
    shape: &ConvolutionShape,
    direction: &'static str,
    descriptor: ConvolutionDescriptor,
    offers: &[Offer<A>],
    workspace: impl Fn(&ConvolutionDescriptor, A) -> Result<usize, CudaError>,
) -> Result<Direction<A>, CudaError> {
    let exact = shape.operands == Operands::F32;
    for offer in offers {
        if !offer.works || !offer.deterministic {
            continue;
        }
        // Tensor cores round f32 operands to TF32: there the descriptor forbids them, and an algorithm
        // that cannot do without has no workspace.
        if !exact {
            descriptor.set_math(shape, offer.math)?;
        }
        if let Ok(workspace) = workspace(&descriptor, offer.algorithm) {
            return Ok(Direction {
                descriptor,
                algorithm: offer.algorithm,
                workspace,
            });
        }
    }
    Err(CudaError::NoAlgorithm {
        direction,
        shape: shape.to_string(),
    })
}

pub(super) fn forward(
    handle: &Handle,
    shape: &ConvolutionShape,
    operand: &Operand,
) -> Result<Direction<sys::cudnnConvolutionFwdAlgo_t>, CudaError> {
    let made =
        ConvolutionDescriptor::new(shape, shape.padding, shape.stride, math(shape.operands))?;
    let (x, w, y) = (operand.x.raw(), operand.w.raw(), operand.y.raw());
    let mut count = 0;
    // SAFETY: 0 is a value of all its fields.
    let mut found: [sys::cudnnConvolutionFwdAlgoPerf_t; MOST as usize] =
        unsafe { std::mem::zeroed() };
    // SAFETY: all descriptors live; it writes at most `MOST` answers and how many these are.
    let status = unsafe {
        sys::cudnnGetConvolutionForwardAlgorithm_v7(
            handle.raw(),
            x,
            w,
            made.raw(),
            y,
            c_int::from(MOST),
            &raw mut count,
            found.as_mut_ptr(),
        )
    };
    check("cudnnGetConvolutionForwardAlgorithm_v7", shape, status)?;
    let offers = offers!(found, count);
    choose(shape, "forward", made, &offers, |descriptor, algorithm| {
        let mut bytes = 0;
        // SAFETY: all descriptors live; writes one number.
        let status = unsafe {
            sys::cudnnGetConvolutionForwardWorkspaceSize(
                handle.raw(),
                x,
                w,
                descriptor.raw(),
                y,
                algorithm,
                &raw mut bytes,
            )
        };
        check("cudnnGetConvolutionForwardWorkspaceSize", shape, status)?;
        Ok(bytes)
    })
}

pub(super) fn data_gradient(
    handle: &Handle,
    shape: &ConvolutionShape,
    operand: &Operand,
) -> Result<Direction<sys::cudnnConvolutionBwdDataAlgo_t>, CudaError> {
    let made =
        ConvolutionDescriptor::new(shape, shape.padding, shape.stride, math(shape.operands))?;
    let (x, w, y) = (operand.x.raw(), operand.w.raw(), operand.y.raw());
    let mut count = 0;
    // SAFETY: 0 is a value of all its fields.
    let mut found: [sys::cudnnConvolutionBwdDataAlgoPerf_t; MOST as usize] =
        unsafe { std::mem::zeroed() };
    // SAFETY: all descriptors live; it writes at most `MOST` answers and how many these are.
    let status = unsafe {
        sys::cudnnGetConvolutionBackwardDataAlgorithm_v7(
            handle.raw(),
            w,
            y,
            made.raw(),
            x,
            c_int::from(MOST),
            &raw mut count,
            found.as_mut_ptr(),
        )
    };
    check("cudnnGetConvolutionBackwardDataAlgorithm_v7", shape, status)?;
    let offers = offers!(found, count);
    choose(
        shape,
        "data gradient",
        made,
        &offers,
        |descriptor, algorithm| {
            let mut bytes = 0;
            // SAFETY: all descriptors live; writes one number.
            let status = unsafe {
                sys::cudnnGetConvolutionBackwardDataWorkspaceSize(
                    handle.raw(),
                    w,
                    y,
                    descriptor.raw(),
                    x,
                    algorithm,
                    &raw mut bytes,
                )
            };
            check(
                "cudnnGetConvolutionBackwardDataWorkspaceSize",
                shape,
                status,
            )?;
            Ok(bytes)
        },
    )
}

pub(super) fn weight_gradient(
    handle: &Handle,
    shape: &ConvolutionShape,
    operand: &Operand,
) -> Result<Direction<sys::cudnnConvolutionBwdFilterAlgo_t>, CudaError> {
    let made =
        ConvolutionDescriptor::new(shape, shape.padding, shape.stride, math(shape.operands))?;
    let (x, w, y) = (operand.x.raw(), operand.w.raw(), operand.y.raw());
    let mut count = 0;
    // SAFETY: 0 is a value of all its fields.
    let mut found: [sys::cudnnConvolutionBwdFilterAlgoPerf_t; MOST as usize] =
        unsafe { std::mem::zeroed() };
    // SAFETY: all descriptors live; it writes at most `MOST` answers and how many these are.
    let status = unsafe {
        sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7(
            handle.raw(),
            x,
            y,
            made.raw(),
            w,
            c_int::from(MOST),
            &raw mut count,
            found.as_mut_ptr(),
        )
    };
    check(
        "cudnnGetConvolutionBackwardFilterAlgorithm_v7",
        shape,
        status,
    )?;
    let offers = offers!(found, count);
    choose(
        shape,
        "weight gradient",
        made,
        &offers,
        |descriptor, algorithm| {
            let mut bytes = 0;
            // SAFETY: all descriptors live; writes one number.
            let status = unsafe {
                sys::cudnnGetConvolutionBackwardFilterWorkspaceSize(
                    handle.raw(),
                    x,
                    y,
                    descriptor.raw(),
                    w,
                    algorithm,
                    &raw mut bytes,
                )
            };
            check(
                "cudnnGetConvolutionBackwardFilterWorkspaceSize",
                shape,
                status,
            )?;
            Ok(bytes)
        },
    )
}
