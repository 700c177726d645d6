//! Pools, flattening, dropout and joined shortcuts.

use super::CudaKernels;
use super::arguments::{
    AdaptiveBackward, AdaptiveForward, AverageBackward, AverageForward, DropoutMask, Flatten,
    MaxBackward, MaxForward, Multiply, PoolBackward, PoolForward, PoolShape, ResidualBackward,
    ResidualForward,
};
use super::device::Pointer;
use super::values::{QUAD, TILE_THREADS, Tile, Type, narrow};
use crate::kernel::{Buffer, Dropout, Errors, ErrorsOut, Phase, Pool, PoolKind, Residual};
use crate::shape::{Join, Shape};

fn pool_shape(pool: &Pool) -> PoolShape {
    let (kernel, stride, padding) = match pool.kind {
        PoolKind::Max {
            kernel,
            stride,
            padding,
            ..
        } => (kernel, stride, padding),
        PoolKind::Average { kernel } => (kernel, kernel, 0),
        PoolKind::Adaptive => (1, 1, 0),
    };
    PoolShape {
        samples: narrow(pool.samples),
        height: narrow(pool.input.height),
        width: narrow(pool.input.width),
        channels: narrow(pool.input.channels),
        out_height: narrow(pool.output.height),
        out_width: narrow(pool.output.width),
        kernel: narrow(kernel),
        stride: narrow(stride),
        padding: narrow(padding),
        unused: 0,
    }
}

fn join_number(join: Join) -> u32 {
    match join {
        Join::Add => 0,
        Join::And => 1,
        Join::Iand => 2,
    }
}

impl CudaKernels {
    /// Where a pool notes the maxima of a time step.
    fn argmax(&self, pool: &Pool, t: usize) -> Pointer {
        match pool.kind {
            PoolKind::Max { argmax, .. } => {
                let elements = pool.samples * pool.output.elements();
                self.rooms.slot(argmax, elements, t).at
            }
            PoolKind::Average { .. } | PoolKind::Adaptive => Pointer(0),
        }
    }

    /// y = pool(x).
    pub(super) fn pool(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer) {
        let inputs = pool.samples * pool.input.elements();
        let outputs = pool.samples * pool.output.elements();
        let tile = Tile::of(pool.samples * pool.output.pixels(), pool.output.channels);
        let forward = PoolForward {
            x: self.rooms.slot(x, inputs, t),
            y: self.rooms.slot(y, outputs, t),
            argmax: self.argmax(pool, t),
            shape: pool_shape(pool),
            tile,
        };
        let things = outputs as u64;
        match pool.kind {
            PoolKind::Max { .. } => {
                self.launch_grid(tile.grid_in_turns(QUAD), TILE_THREADS, &MaxForward(forward));
            }
            PoolKind::Average { .. } => self.launch(things, &AverageForward(forward)),
            PoolKind::Adaptive => self.launch(things, &AdaptiveForward(forward)),
        }
        self.refresh_operand(y, outputs, t);
    }

    /// dx from dy.
    pub(super) fn unpool(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut) {
        let inputs = pool.samples * pool.input.elements();
        let outputs = pool.samples * pool.output.elements();
        let from = self.rooms.ring_in(dy, outputs);
        let to = self.rooms.ring_out(dx, inputs, Type::F32);
        let tile = Tile::of(pool.samples * pool.input.pixels(), pool.input.channels);
        for t in dy.steps.newest_first() {
            let backward = PoolBackward {
                dy: from.slot(t),
                dx: to.slot(t),
                argmax: self.argmax(pool, t),
                shape: pool_shape(pool),
                tile,
                accumulate: u32::from(dx.accumulate),
                unused: 0,
            };
            let things = inputs as u64;
            match pool.kind {
                PoolKind::Max { .. } => {
                    self.launch_grid(
                        tile.grid_in_turns(QUAD),
                        TILE_THREADS,
                        &MaxBackward(backward),
                    );
                }
                PoolKind::Average { .. } => self.launch(things, &AverageBackward(backward)),
                PoolKind::Adaptive => self.launch(things, &AdaptiveBackward(backward)),
            }
        }
    }

    /// `[N, H, W, C]` to vectors in the order of C, H, W.
    pub(super) fn flatten(&mut self, samples: usize, input: Shape, t: usize, x: Buffer, y: Buffer) {
        let elements = samples * input.elements();
        let flatten = Flatten {
            from: self.rooms.slot(x, elements, t),
            to: self.rooms.slot(y, elements, t),
            samples: samples as u64,
            pixels: narrow(input.pixels()),
            channels: narrow(input.channels),
            backward: 0,
            accumulate: 0,
        };
        self.launch(elements as u64, &flatten);
        self.refresh_operand(y, elements, t);
    }

    /// The way back.
    pub(super) fn unflatten(&mut self, samples: usize, input: Shape, dy: Errors, dx: ErrorsOut) {
        let elements = samples * input.elements();
        let from = self.rooms.ring_in(dy, elements);
        let to = self.rooms.ring_out(dx, elements, Type::F32);
        for t in dy.steps.newest_first() {
            let flatten = Flatten {
                from: from.slot(t),
                to: to.slot(t),
                samples: samples as u64,
                pixels: narrow(input.pixels()),
                channels: narrow(input.channels),
                backward: 1,
                accumulate: u32::from(dx.accumulate),
            };
            self.launch(elements as u64, &flatten);
        }
    }

    /// Draws the mask of a time step.
    pub(super) fn draw_mask(&mut self, dropout: &Dropout, t: usize, key: u64) {
        let elements = dropout.samples * dropout.shape.elements();
        let draw = DropoutMask {
            mask: self.rooms.slot(dropout.mask, elements, t).at,
            key,
            first: dropout.first_element(),
            elements: elements as u64,
            p: dropout.p,
            scale: dropout.scale,
        };
        self.launch(draw.elements, &draw);
    }

    /// y = x mask in training, y = x in evaluation.
    pub(super) fn drop_out(&mut self, d: &Dropout, t: usize, phase: Phase, x: Buffer, y: Buffer) {
        let elements = d.samples * d.shape.elements();
        let multiply = Multiply {
            x: self.rooms.slot(x, elements, t),
            y: self.rooms.slot(y, elements, t),
            mask: match phase {
                Phase::Train => self.rooms.slot(d.mask, elements, t).at,
                Phase::Evaluate => Pointer(0),
            },
            elements: elements as u64,
            accumulate: 0,
            unused: 0,
        };
        self.launch(multiply.elements.div_ceil(4), &multiply);
        self.refresh_operand(y, elements, t);
    }

    /// dx = dy mask, each step with its own.
    pub(super) fn drop_errors(&mut self, dropout: &Dropout, dy: Errors, dx: ErrorsOut) {
        let elements = dropout.samples * dropout.shape.elements();
        let from = self.rooms.ring_in(dy, elements);
        let to = self.rooms.ring_out(dx, elements, Type::F32);
        for t in dy.steps.newest_first() {
            let multiply = Multiply {
                x: from.slot(t),
                y: to.slot(t),
                mask: self.rooms.slot(dropout.mask, elements, t).at,
                elements: elements as u64,
                accumulate: u32::from(dx.accumulate),
                unused: 0,
            };
            self.launch(multiply.elements.div_ceil(4), &multiply);
        }
    }

    /// y = join(a, b).
    pub(super) fn join(&mut self, residual: &Residual, t: usize) {
        let elements = residual.samples * residual.shape.elements();
        let forward = ResidualForward {
            a: self.rooms.slot(residual.a, elements, t),
            b: self.rooms.slot(residual.b, elements, t),
            y: self.rooms.slot(residual.y, elements, t),
            elements: elements as u64,
            join: join_number(residual.join),
            unused: 0,
        };
        self.launch(forward.elements.div_ceil(4), &forward);
        self.refresh_operand(residual.y, elements, t);
    }

    /// da and db, with the a and b of each step.
    pub(super) fn part(
        &mut self,
        residual: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    ) {
        let sides = [(da, residual.b, false), (db, residual.a, true)];
        for (to, other, of_b) in sides {
            if let Some(to) = to {
                self.part_of(residual, dy, to, (other, of_b));
            }
        }
    }

    fn part_of(
        &mut self,
        residual: &Residual,
        dy: Errors,
        to: ErrorsOut,
        (other, of_b): (Buffer, bool),
    ) {
        let elements = residual.samples * residual.shape.elements();
        let from = self.rooms.ring_in(dy, elements);
        let dx = self.rooms.ring_out(to, elements, Type::F32);
        for t in dy.steps.newest_first() {
            let backward = ResidualBackward {
                other: self.rooms.slot(other, elements, t),
                dy: from.slot(t),
                dx: dx.slot(t),
                elements: elements as u64,
                join: join_number(residual.join),
                of_b: u32::from(of_b),
                accumulate: u32::from(to.accumulate),
                unused: 0,
            };
            self.launch(backward.elements.div_ceil(4), &backward);
        }
    }
}
