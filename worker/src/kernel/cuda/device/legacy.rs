//! With which algorithms the legacy calls compute a convolution.

use super::CudaError;
use super::algorithm::{self, Direction, Operand};
use super::convolution::ConvolutionShape;
use super::cudnn::Handle;
use super::operation::Pass;
use cudarc::cudnn::sys;
use std::fmt;

/// The algorithms of the legacy calls; or that a direction has none, which matters to who wants it alone: the
/// first layer of a network hands no error down.
#[derive(Debug)]
pub(super) struct Algorithms {
    pub(super) operand: Operand,
    pub(super) forward: Found<sys::cudnnConvolutionFwdAlgo_t>,
    pub(super) data: Found<sys::cudnnConvolutionBwdDataAlgo_t>,
    pub(super) weight: Found<sys::cudnnConvolutionBwdFilterAlgo_t>,
}

/// The algorithm of a direction, or [`CudaError::NoAlgorithm`].
pub(super) type Found<A> = Result<Direction<A>, CudaError>;

/// What was found, or that there is none. Any other error is one at once.
fn or_none<A>(found: Found<A>) -> Result<Found<A>, CudaError> {
    match found {
        Err(error) if !matches!(error, CudaError::NoAlgorithm { .. }) => Err(error),
        found => Ok(found),
    }
}

/// What was found.
pub(super) fn direction<A>(found: &Found<A>) -> Result<&Direction<A>, CudaError> {
    found.as_ref().map_err(CudaError::clone)
}

impl Algorithms {
    /// Asks for each.
    pub(super) fn new(
        handle: &Handle,
        shape: &ConvolutionShape,
        operand: Operand,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            forward: or_none(algorithm::forward(handle, shape, &operand))?,
            data: or_none(algorithm::data_gradient(handle, shape, &operand))?,
            weight: or_none(algorithm::weight_gradient(handle, shape, &operand))?,
            operand,
        })
    }

    /// Bytes of workspace that a pass needs.
    pub(super) fn workspace(&self, pass: Pass) -> Result<u64, CudaError> {
        let bytes = match pass {
            Pass::Forward => direction(&self.forward)?.workspace,
            Pass::Data { .. } => direction(&self.data)?.workspace,
            Pass::Weight { .. } => direction(&self.weight)?.workspace,
        };
        Ok(bytes as u64)
    }

    /// Bytes of workspace that each pass can do with.
    pub(super) fn most_workspace(&self) -> u64 {
        let passes = [
            Pass::Forward,
            Pass::Data { accumulate: false },
            Pass::Weight { accumulate: false },
        ];
        let all = passes.map(|pass| self.workspace(pass).unwrap_or(0));
        all.into_iter().max().unwrap_or(0)
    }

    /// The algorithms, in words.
    pub(super) fn words(&self) -> String {
        fn of<A: fmt::Debug>(found: &Found<A>) -> String {
            match found {
                Ok(found) => format!("{:?} ({} bytes)", found.algorithm, found.workspace),
                Err(_) => "none".to_owned(),
            }
        }
        format!(
            "{}, {}, {}",
            of(&self.forward),
            of(&self.data),
            of(&self.weight)
        )
    }
}
