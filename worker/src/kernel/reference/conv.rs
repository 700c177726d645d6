//! Convolutions, and linear layers as 1 x 1 convolutions of 1 x 1 pictures.

use burn::tensor::Tensor;
use burn::tensor::module::{conv_transpose2d, conv2d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};

use super::memory::Value;
use super::pool::{Tiling, pad};
use crate::kernel::Conv;

/// y = conv(x) + b: cross-correlation.
pub(super) fn forward(conv: &Conv, x: Value, w_oihw: Tensor<4>, b: Option<Tensor<1>>) -> Value {
    let options = ConvOptions::new([conv.stride; 2], [conv.padding; 2], [1; 2], 1);
    nhwc(conv2d(nchw(x), w_oihw, b, options))
}

/// dx = conv^T(dy).
pub(super) fn data_gradient(conv: &Conv, dy: Value, w_oihw: Tensor<4>) -> Value {
    // The last rows and columns of x that no filter reached.
    let rest = |side: usize| (side + 2 * conv.padding - conv.kernel) % conv.stride;
    let rests = [rest(conv.input.height), rest(conv.input.width)];
    let (stride, padding) = ([conv.stride; 2], [conv.padding; 2]);
    let options = ConvTransposeOptions::new(stride, padding, rests, [1; 2], 1);
    nhwc(conv_transpose2d(nchw(dy), w_oihw, None, options))
}

/// dW of one time step, OIHW: for each weight, the product of dy with the inputs that it met.
pub(super) fn weight_gradient(conv: &Conv, x: Value, dy: Value) -> Tensor<4> {
    let [n, h, w, outputs] = dy.dims();
    let inputs = conv.input.channels;
    let dy_t = dy.reshape([n * h * w, outputs]).transpose();
    let tiling = Tiling {
        kernel: conv.kernel,
        stride: conv.stride,
        padding: conv.padding,
        output: conv.output,
    };
    let padded = pad(x, conv.padding, 0.0);
    let met = tiling.positions().map(|position| {
        let x = tiling.take(&padded, position);
        let x = x.reshape([n * h * w, inputs]);
        dy_t.clone().matmul(x)
    });
    let dw_by_position = Tensor::stack::<3>(met.collect(), 2);
    dw_by_position.reshape([outputs, inputs, conv.kernel, conv.kernel])
}

/// db of one time step.
pub(super) fn bias_gradient(dy: Value) -> Tensor<1> {
    dy.sum_dims_squeeze(&[0, 1, 2])
}

fn nchw(x_nhwc: Value) -> Tensor<4> {
    x_nhwc.permute([0, 3, 1, 2])
}

fn nhwc(x_nchw: Tensor<4>) -> Value {
    x_nchw.permute([0, 2, 3, 1])
}
