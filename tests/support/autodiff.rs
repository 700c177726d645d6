//! The oracle's tensors: values whose gradients burn's autodiff finds.

use burn::tensor::{Device, Gradients, Tensor, TensorData};
use synfire::kernel::Window;

use crate::outcome::{Outcome, Tolerance};
use crate::random::Series;
use crate::rig::{at, earlier_error};

/// A tensor whose operations are recorded.
pub type Value = Tensor<4>;

/// A constant.
pub fn constant<const D: usize>(values: &[f32], dims: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    Tensor::from_data(TensorData::new(values.to_vec(), dims), &device)
}

/// Something whose gradient is wanted.
pub fn leaf<const D: usize>(values: &[f32], dims: [usize; D]) -> Tensor<D> {
    constant(values, dims).require_grad()
}

/// One leaf for each time step.
pub fn leaves(series: &Series, dims: [usize; 4]) -> Vec<Value> {
    series.iter().map(|values| leaf(values, dims)).collect()
}

/// The numbers of a tensor, row-major.
///
/// # Panics
/// If they are not floats.
pub fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as().expect("a tensor of floats")
}

/// Sum of the products: an error as a loss.
pub fn inner(y: Value, error: &[f32]) -> Tensor<1> {
    let error = constant(error, y.dims());
    (y * error).sum()
}

/// Sum of the products over the steps that errors arrive for.
///
/// # Panics
/// If there are no steps.
pub fn inner_series(ys: &[Value], errors: &Series, steps: Window) -> Tensor<1> {
    let each = steps
        .newest_first()
        .map(|t| inner(ys[t].clone(), &errors[t]));
    each.reduce(|a, b| a + b)
        .expect("errors arrive at some step")
}

/// The gradient of a leaf, 0 if the loss does not depend on it.
pub fn gradient<const D: usize>(leaf: &Tensor<D>, gradients: &Gradients) -> Vec<f32> {
    match leaf.grad(gradients) {
        Some(gradient) => numbers(gradient),
        None => vec![0.0; leaf.dims().iter().product()],
    }
}

/// Notes the gradients of leaves as the errors that a back end should hand down.
pub fn note_errors(
    outcome: &mut Outcome,
    name: &str,
    leaves: &[Value],
    gradients: &Gradients,
    steps: Window,
    accumulate: bool,
) {
    for t in steps.newest_first() {
        let mut error = gradient(&leaves[t], gradients);
        if accumulate {
            let before = earlier_error(t, error.len());
            error.iter_mut().zip(before).for_each(|(e, b)| *e += b);
        }
        outcome.note(at(name, t), Tolerance::Gradient, error);
    }
}
