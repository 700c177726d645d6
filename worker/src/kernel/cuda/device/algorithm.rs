//! Which of cuDNN's algorithms a convolution uses: the first that its heuristics name, that is
//! deterministic, and that does with a bounded workspace.
#![allow(unsafe_code, reason = "cuDNN is C")]

use super::CudaError;
use super::convolution::{ConvolutionShape, Operands};
use super::cudnn::{ConvolutionDescriptor, FilterDescriptor, Handle, TensorDescriptor, check};
use cudarc::cudnn::sys;
use std::ffi::c_int;

/// As many algorithms as cuDNN can name.
const MOST: u8 = 16;

/// Bytes of workspace that an algorithm may want where another one does with less. It is the same for all
/// GPUs, whatever they have left: the choice decides bits, and a run that is resumed has to choose as it did.
pub(in super::super) const MOST_WORKSPACE: usize = 1 << 30;

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

/// Who says no has nothing to offer.
macro_rules! offers {
    ($told:expr, $found:expr, $count:expr) => {{
        let count = unless_refused($told)?.map_or(0, |()| $count);
        $found
            .iter()
            .take(usize::try_from(count).unwrap_or(0))
            .map(|found| Offer {
                algorithm: found.algo,
                works: found.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS,
                deterministic: found.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC,
                math: found.mathType,
            })
            .collect::<Vec<_>>()
    }};
}

fn math(operands: Operands) -> sys::cudnnMathType_t {
    match operands {
        Operands::F32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
        Operands::Tf32 | Operands::Bf16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
    }
}

/// The first good offer whose workspace is at most [`MOST_WORKSPACE`] or, where there is none, the one with
/// the smallest; and its bytes. `workspace` gives them, or nothing where the offer does not work after all.
fn pick<A>(
    offers: &[Offer<A>],
    workspace: impl Fn(&Offer<A>) -> Result<Option<usize>, CudaError>,
) -> Result<Option<(&Offer<A>, usize)>, CudaError> {
    let mut picked: Option<(&Offer<A>, usize)> = None;
    for offer in offers.iter().filter(|o| o.works && o.deterministic) {
        let Some(bytes) = workspace(offer)? else {
            continue;
        };
        if picked.is_none_or(|(_, least)| bytes < least) {
            picked = Some((offer, bytes));
        }
        // Those before it want more, so it is the one.
        if bytes <= MOST_WORKSPACE {
            break;
        }
    }
    Ok(picked)
}

/// What cuDNN gave, or nothing where it said no. Any other error must not lead to another choice: the next
/// start would choose as if it had not been.
pub(super) fn unless_refused<T>(given: Result<T, CudaError>) -> Result<Option<T>, CudaError> {
    match given {
        Ok(given) => Ok(Some(given)),
        Err(error) if error.is_refusal() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes one direction of the offer that is picked: `workspace` says how many bytes an algorithm needs, or
/// that it does not work.
fn choose<A: Copy>(
    shape: &ConvolutionShape,
    direction: &'static str,
    descriptor: ConvolutionDescriptor,
    offers: &[Offer<A>],
    workspace: impl Fn(&ConvolutionDescriptor, A) -> Result<usize, CudaError>,
) -> Result<Direction<A>, CudaError> {
    let set_math = |offer: &Offer<A>| match shape.operands {
        // Tensor cores round f32 operands to TF32: there the descriptor forbids them, and an algorithm
        // that cannot do without has no workspace.
        Operands::F32 => Ok(()),
        Operands::Tf32 | Operands::Bf16 => descriptor.set_math(shape, offer.math),
    };
    let picked = pick(offers, |offer| {
        let asked = set_math(offer).and_then(|()| workspace(&descriptor, offer.algorithm));
        unless_refused(asked)
    })?;
    let (offer, workspace) = picked.ok_or_else(|| CudaError::NoAlgorithm {
        direction,
        shape: shape.to_string(),
    })?;
    // Others may have been asked after it.
    set_math(offer)?;
    Ok(Direction {
        algorithm: offer.algorithm,
        descriptor,
        workspace,
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
    let told = check("cudnnGetConvolutionForwardAlgorithm_v7", shape, status);
    let offers = offers!(told, found, count);
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
    let told = check("cudnnGetConvolutionBackwardDataAlgorithm_v7", shape, status);
    let offers = offers!(told, found, count);
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
    let told = check(
        "cudnnGetConvolutionBackwardFilterAlgorithm_v7",
        shape,
        status,
    );
    let offers = offers!(told, found, count);
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Which of these offers is picked, by their MiB of workspace: `None` for one that does not work after
    /// all. All but the first are deterministic, all but the second are said to work.
    fn picked(workspaces: &[Option<usize>]) -> Option<usize> {
        let offers: Vec<_> = (0..workspaces.len())
            .map(|algorithm| Offer {
                algorithm,
                works: algorithm != 1,
                deterministic: algorithm != 0,
                math: sys::cudnnMathType_t::CUDNN_FMA_MATH,
            })
            .collect();
        let workspace = |offer: &Offer<usize>| Ok(workspaces[offer.algorithm].map(|mib| mib * MIB));
        let picked = pick(&offers, workspace).expect("nothing fails");
        let (offer, bytes) = picked?;
        assert_eq!(Some(bytes), workspace(offer).expect("nothing fails"));
        Some(offer.algorithm)
    }

    #[test]
    fn the_first_offer_with_a_workspace_within_the_limit_is_taken() {
        let zero = Some(0);
        assert_eq!(picked(&[zero, zero, Some(1024), Some(1), zero]), Some(2));
        assert_eq!(picked(&[zero, zero, Some(1025), Some(1024), zero]), Some(3));
        assert_eq!(picked(&[zero, zero, None, Some(1025), Some(7)]), Some(4));
    }

    #[test]
    fn where_no_workspace_is_within_the_limit_the_smallest_is_taken() {
        let zero = Some(0);
        let huge = [
            zero,
            zero,
            Some(5000),
            Some(3000),
            None,
            Some(4000),
            Some(3000),
        ];
        assert_eq!(picked(&huge), Some(3));
        assert_eq!(picked(&[zero, zero, Some(5000)]), Some(2));
        assert_eq!(picked(&[zero, zero, None]), None);
    }
}
