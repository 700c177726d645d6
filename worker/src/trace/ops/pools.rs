//! Pools, and where a max pool found its maxima.

use super::Make;
use super::case::{Case, Picture, Rig, only, to};
use crate::graph::Op;
use crate::kernel::{Buffer, Pool, PoolKind};
use crate::shape::{Content, Shape};
use crate::trace::TraceError;
use crate::trace::compare::{Comparison, Quantity, Tolerance};
use crate::trace::samples::nhwc;

/// The window of the max pool that is checked: the one of the `ImageNet` stems.
const KERNEL: usize = 3;
const STRIDE: usize = 2;
const PADDING: usize = 1;

/// The maxima of binary pictures are mostly ties: their positions are checked too.
pub(super) fn max(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
) -> Result<(), TraceError> {
    let op = Op::MaxPool {
        kernel: KERNEL,
        stride: STRIDE,
        padding: PADDING,
    };
    let run = Run::read(case, op)?;
    let (output, input) = (run.y.shape, run.x.shape);
    let shape = [run.y.samples, output.channels, output.height, output.width];
    let expected: Vec<f32> = case
        .whole("argmax", &shape)?
        .iter()
        .map(|&i| i as f32)
        .collect();
    let expected = nhwc(&expected, output);
    for content in run.x.contents() {
        let mut rig = Rig::new(make(), 0, 0);
        let argmax = rig.room(&run.y);
        let kind = PoolKind::Max {
            kernel: KERNEL,
            stride: STRIDE,
            padding: PADDING,
            argmax,
        };
        run.check(case, &mut rig, comparison, kind, content);
        let got = in_plane(&rig.read(argmax, &run.y), output, input.width);
        let label = case.label("argmax", content);
        let both = (&got[..], &expected[..]);
        comparison.check_within(Quantity::Value, &label, 0, both, Tolerance::EXACT);
    }
    Ok(())
}

/// An average pool.
pub(super) fn average(
    case: &mut Case<'_, '_>,
    make: &mut Make<'_>,
    comparison: &mut Comparison,
    op: Op,
    kind: PoolKind,
) -> Result<(), TraceError> {
    let run = Run::read(case, op)?;
    for content in run.x.contents() {
        let mut rig = Rig::new(make(), 0, 0);
        run.check(case, &mut rig, comparison, kind, content);
    }
    Ok(())
}

struct Run {
    x: Picture,
    y: Picture,
    gy: Picture,
    gx: Picture,
}

impl Run {
    fn read(case: &mut Case<'_, '_>, op: Op) -> Result<Self, TraceError> {
        let x = case.picture("x")?;
        let output = case.output(x.shape, op)?;
        Ok(Self {
            y: case.picture_of("y", x.samples, output)?,
            gy: case.picture_of("gy", x.samples, output)?,
            gx: case.picture_of("gx", x.samples, x.shape)?,
            x,
        })
    }

    fn check(
        &self,
        case: &Case<'_, '_>,
        rig: &mut Rig,
        comparison: &mut Comparison,
        kind: PoolKind,
        content: Content,
    ) {
        let pool = Pool {
            samples: self.x.samples,
            input: self.x.shape,
            output: self.y.shape,
            kind,
        };
        let mut x_spec = self.x.spec();
        x_spec.content = content;
        let x = rig.store(&self.x, &x_spec);
        let mut y_spec = self.y.spec();
        y_spec.content = match kind {
            PoolKind::Max { .. } => content,
            PoolKind::Average { .. } | PoolKind::Adaptive => Content::Real,
        };
        let y: Buffer = rig.kernels.allocate(&y_spec);
        rig.kernels.pool_forward(&pool, 0, x, y);
        let label = case.label("y", content);
        let got = rig.read(y, &self.y);
        comparison.check(Quantity::Value, &label, 0, &got, &self.y.values);

        let gy = rig.store(&self.gy, &self.gy.spec());
        let gx = rig.room(&self.gx);
        rig.kernels.pool_backward(&pool, only(gy), to(gx));
        let label = case.label("gx", content);
        let got = rig.read(gx, &self.gx);
        comparison.check(Quantity::Gradient, &label, 0, &got, &self.gx.values);
    }
}

/// Positions in windows as positions in the input's plane, which traces have.
fn in_plane(positions: &[f32], output: Shape, input_width: usize) -> Vec<f32> {
    let place = |(i, position): (usize, &f32)| {
        let pixel = i / output.channels % output.pixels();
        let (row, column) = (pixel / output.width, pixel % output.width);
        let corner = |at: usize| at as f32 * STRIDE as f32 - PADDING as f32;
        let window_row = (position / KERNEL as f32).floor();
        let window_column = position - window_row * KERNEL as f32;
        (corner(row) + window_row) * input_width as f32 + corner(column) + window_column
    };
    positions.iter().enumerate().map(place).collect()
}
