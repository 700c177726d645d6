//! What a pass of a convolution is in cuDNN's graph API: an operation on tensors.

use super::CudaError;
use super::convolution::{ConvolutionShape, Operands};
use super::descriptor::{Descriptor, Draft, number};
use cudarc::cudnn::sys;
use cudarc::cudnn::sys::cudnnBackendAttributeName_t as Name;
use cudarc::cudnn::sys::cudnnBackendDescriptorType_t as Kind;

/// Where every operand begins: at a multiple of so many bytes.
const ALIGNMENT: i64 = 16;

/// The names of x, w and y, or of their gradients, in a plan.
pub(super) const NAMES: [i64; 3] = [1, 2, 3];

/// What a convolution is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// y.
    Forward,
    /// dx.
    Data {
        /// Whether it is added to what is there.
        accumulate: bool,
    },
    /// dw.
    Weight {
        /// Whether it is added to what is there.
        accumulate: bool,
    },
}

impl Pass {
    /// What it computes, for people.
    pub(super) fn direction(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Data { .. } => "data gradient",
            Self::Weight { .. } => "weight gradient",
        }
    }

    /// The factor of what is there.
    fn beta(self) -> f32 {
        match self {
            Self::Forward => 0.0,
            Self::Data { accumulate } | Self::Weight { accumulate } => {
                f32::from(u8::from(accumulate))
            }
        }
    }

    /// Its operation, and the attributes of that: convolution, x, w, y, alpha and beta.
    fn operation(self) -> (Kind, [Name; 6]) {
        match self {
            Self::Forward => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
                ],
            ),
            Self::Data { .. } => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                ],
            ),
            Self::Weight { .. } => (
                Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                [
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                    Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
                ],
            ),
        }
    }
}

/// The operation, and before it what it is made of.
pub(super) fn operation(
    shape: &ConvolutionShape,
    pass: Pass,
) -> Result<Vec<Descriptor>, CudaError> {
    let ([h, w, c], [oh, ow, k]) = (shape.input, shape.output);
    let (samples, side) = (shape.samples, shape.kernel);
    let [x_name, w_name, y_name] = NAMES;
    let convolution = convolution(shape)?;
    let x = tensor(shape, x_name, [samples, h, w, c])?;
    let filter = tensor(shape, w_name, [k, side, side, c])?;
    let y = tensor(shape, y_name, [samples, oh, ow, k])?;
    let (kind, [of, of_x, of_w, of_y, alpha, beta]) = pass.operation();
    let operation = Draft::new(shape, kind)?
        .set(of, &[convolution.part()])?
        .set(of_x, &[x.part()])?
        .set(of_w, &[filter.part()])?
        .set(of_y, &[y.part()])?
        .set(alpha, &[1.0_f32])?
        .set(beta, &[pass.beta()])?
        .finish()?;
    Ok(vec![convolution, x, filter, y, operation])
}

/// `[n, h, w, c]` in memory; a filter is `[k, r, s, c]`.
fn tensor(
    shape: &ConvolutionShape,
    name: i64,
    [n, h, w, c]: [usize; 4],
) -> Result<Descriptor, CudaError> {
    let kind = match shape.operands {
        Operands::F32 | Operands::Tf32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
        Operands::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
    };
    // cuDNN names dimensions in the order n, c, h, w, however they lie.
    let sides = [n, c, h, w].map(number);
    let [_, c, h, w] = sides;
    let row = w.saturating_mul(c);
    let strides = [row.saturating_mul(h), 1, row, c];
    Draft::new(shape, Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[name])?
        .set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[kind])?
        .set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT])?
        .set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &sides)?
        .set(Name::CUDNN_ATTR_TENSOR_STRIDES, &strides)?
        .finish()
}

/// Padding and stride; sums in f32.
fn convolution(shape: &ConvolutionShape) -> Result<Descriptor, CudaError> {
    let padding = [number(shape.padding); 2];
    let stride = [number(shape.stride); 2];
    Draft::new(shape, Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?
        .set(
            Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE,
            &[sys::cudnnDataType_t::CUDNN_DATA_FLOAT],
        )?
        .set(
            Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE,
            &[sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION],
        )?
        .set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2_i64])?
        .set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1_i64, 1])?
        .set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &stride)?
        .set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &padding)?
        .set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &padding)?
        .finish()
}
