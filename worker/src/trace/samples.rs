//! What is shown to a network: inputs, labels and dropout masks of every batch and time step.

use std::collections::BTreeMap;

use super::TraceError;
use super::metadata::Source;
use crate::graph::{Graph, Op};
use crate::shape::Shape;

/// The largest number of batches times time steps.
pub const MAX_TIME_STEPS: usize = 100_000;
/// The largest number of samples in a batch.
pub const MAX_SAMPLES: usize = 1_000_000;

#[derive(Clone, Debug)]
pub(super) struct Mask {
    pub(super) elements: usize,
    pub(super) values: Vec<f32>,
}

/// What the shape of `input` says.
pub(super) struct Sizes {
    pub(super) batches: usize,
    pub(super) time_steps: usize,
    pub(super) samples: usize,
    pub(super) input: Shape,
}

impl Sizes {
    pub(super) fn of(source: Source<'_>) -> Result<Self, TraceError> {
        const WANT: &str = "[batches, T, N, C, H, W] or [batches, T, N, features], none of them 0";
        let shape = &source.tensor("input")?.shape;
        let input = match shape[..] {
            [_, _, _, c] => Shape::vector(c),
            [_, _, _, c, h, w] => Shape::new(h, w, c),
            _ => return Err(source.wrong_shape("input", WANT)),
        };
        if shape.contains(&0) {
            return Err(source.wrong_shape("input", WANT));
        }
        let (batches, time_steps, samples) = (shape[0], shape[1], shape[2]);
        let rows = batches.saturating_mul(time_steps);
        for (what, got, limit) in [
            ("batches times time steps", rows, MAX_TIME_STEPS),
            ("samples in a batch", samples, MAX_SAMPLES),
        ] {
            if got > limit {
                return Err(TraceError::TooLarge {
                    file: source.name(),
                    what,
                    got: got as u64,
                    limit: limit as u64,
                });
            }
        }
        for (key, got) in [("batches", batches), ("T", time_steps)] {
            let named = source.json::<u64>(key)?;
            if named.is_some_and(|n| n != got as u64) {
                return Err(source.wrong_key(key, format!("the input has {got}")));
            }
        }
        Ok(Self {
            batches,
            time_steps,
            samples,
            input,
        })
    }
}

/// A copy of `[.., C, H, W]` as `[.., H, W, C]`.
pub fn nhwc(values: &[f32], shape: Shape) -> Vec<f32> {
    transposed(values, shape.channels, shape.pixels())
}

/// A copy of `[.., H, W, C]` as `[.., C, H, W]`.
pub fn nchw(values: &[f32], shape: Shape) -> Vec<f32> {
    transposed(values, shape.pixels(), shape.channels)
}

/// `[.., rows, columns]` to `[.., columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for matrix in values.chunks_exact(rows * columns) {
        for column in 0..columns {
            out.extend(matrix.iter().skip(column).step_by(columns));
        }
    }
    out
}

pub(super) fn labels(
    source: Source<'_>,
    sizes: &Sizes,
    classes: usize,
) -> Result<Vec<u32>, TraceError> {
    let labels = source.whole_of("labels", &[sizes.batches, sizes.samples])?;
    let checked = labels.iter().enumerate().map(|(i, &label)| {
        let fits = u32::try_from(label).ok();
        let fits = fits.filter(|&l| (l as usize) < classes);
        fits.ok_or_else(|| TraceError::Label {
            file: source.name(),
            batch: i / sizes.samples,
            sample: i % sizes.samples,
            label,
            classes,
        })
    });
    checked.collect()
}

pub(super) fn masks(
    source: Source<'_>,
    graph: &Graph,
    sizes: &Sizes,
) -> Result<BTreeMap<String, Mask>, TraceError> {
    let mut all = BTreeMap::new();
    let dropouts = graph.nodes().iter();
    for node in dropouts.filter(|n| matches!(n.op, Op::Dropout { .. })) {
        let tensor = format!("mask/{}", node.name);
        let shape = graph.value(node.output).shape;
        let mut want = vec![sizes.batches, sizes.time_steps, sizes.samples];
        if shape.is_vector() {
            want.push(shape.channels);
        } else {
            want.extend([shape.channels, shape.height, shape.width]);
        }
        let values = nhwc(source.floats_of(&tensor, &want)?, shape);
        let elements = sizes.samples * shape.elements();
        all.insert(node.name.clone(), Mask { elements, values });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_become_channels_last_and_come_back() {
        let shape = Shape::new(2, 3, 2);
        let x: Vec<f32> = (0..24_u8).map(f32::from).collect();
        let y = nhwc(&x, shape);
        assert_eq!(&y[..6], &[0.0, 6.0, 1.0, 7.0, 2.0, 8.0]);
        assert_eq!(&y[12..14], &[12.0, 18.0]);
        assert_eq!(nchw(&y, shape), x);
    }
}
