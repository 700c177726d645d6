//! Convolutions and linear layers by cuDNN, over one time step or a whole window at once.

use super::arguments::{AddBias, ColumnSums, ColumnTotals};
use super::device::{Convolution, ConvolutionShape, CudaError, Operands, Pass, Pointer};
use super::values::{MERGE_CHANNELS, Ring, TILE_THREADS, Tile, Type, Values, narrow};
use super::{CudaKernels, Interface, Options, Precision, Purpose};
use crate::kernel::{Arena, Buffer, Conv, Errors, ErrorsOut, Window};
use std::collections::HashMap;

/// cuDNN's plans, by convolution and number of samples.
#[derive(Debug)]
pub(super) struct Convolutions {
    operands: Operands,
    pub(super) interface: Interface,
    /// Whether time steps are taken one by one.
    by_steps: bool,
    known: HashMap<(usize, usize), (Conv, usize)>,
    plans: Vec<Convolution>,
}

impl Convolutions {
    pub(super) fn new(options: Options) -> Self {
        let operands = match options.precision {
            Precision::F32 => Operands::F32,
            Precision::Tf32 => Operands::Tf32,
            Precision::Bf16 => Operands::Bf16,
        };
        Self {
            operands,
            interface: options.interface,
            by_steps: options.without.windows,
            known: HashMap::new(),
            plans: Vec::new(),
        }
    }
}

/// Time steps that are taken at once: where the operands begin, and how many samples there are.
struct Joined {
    /// The time step in whose slots they begin.
    first: usize,
    steps: usize,
}

/// A window as it lies in rings: all slots at once where the window fills them and they may be, else step by
/// step. In a ring that is filled the slots lie one after the other, in the same order in every ring of as
/// many slots.
fn joined(window: Window, rings: &[&Ring], by_steps: bool) -> Vec<Joined> {
    // cuDNN counts the numbers of a tensor in 31 bits.
    let fits = |ring: &&Ring| ring.stride * (window.len as u64) < 1 << 31;
    let fills = rings
        .iter()
        .all(|ring| ring.slots as usize == window.len && fits(ring));
    if fills && window.len > 1 && !by_steps {
        return vec![Joined {
            // The slot of time step 0 is the first.
            first: 0,
            steps: window.len,
        }];
    }
    let steps = window.newest_first();
    steps.map(|first| Joined { first, steps: 1 }).collect()
}

/// Whether cuDNN can read and write numbers where they lie: they are of this type and begin at a
/// multiple of 16 bytes, as the slots of all but odd shapes do.
fn is_aligned(values: Values, kind: Type) -> bool {
    values.kind == kind && values.at.0.is_multiple_of(16)
}

impl CudaKernels {
    /// Convolutions that cuDNN was asked for: each with each number of samples.
    pub fn num_convolutions(&self) -> usize {
        self.convolutions.plans.len()
    }

    /// The number of the plan for so many time steps at once.
    fn plan(&mut self, conv: &Conv, steps: usize) -> Option<usize> {
        self.settle(conv);
        if self.is_in_vain() {
            return None;
        }
        let samples = conv.samples * steps;
        let key = (conv.index, samples);
        if let Some((known, plan)) = self.convolutions.known.get(&key)
            && known == conv
        {
            return Some(*plan);
        }
        let side = |shape: crate::shape::Shape| [shape.height, shape.width, shape.channels];
        let shape = ConvolutionShape {
            samples,
            input: side(conv.input),
            output: side(conv.output),
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
            operands: self.convolutions.operands,
        };
        let made = match self.convolutions.interface {
            Interface::Legacy => Convolution::new(&self.device, &shape),
            Interface::Graph => Convolution::by_graphs(&self.device, &shape),
        };
        match made {
            Ok(plan) => {
                let index = self.convolutions.plans.len();
                self.convolutions.plans.push(plan);
                self.convolutions.known.insert(key, (*conv, index));
                Some(index)
            }
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// The memory that a pass of a plan works in; nothing, where the pass cannot be.
    fn workspace(&mut self, plan: usize, pass: Pass) -> Option<(Pointer, u64)> {
        match self.convolutions.plans[plan].prepare(&self.device, pass) {
            Ok(bytes) => Some((self.scratch(Purpose::Workspace, bytes), bytes)),
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// Whether a pass can add to what is there: an interface may have no plan for that.
    fn adds(&mut self, plan: usize, pass: Pass) -> bool {
        let prepared = self.convolutions.plans[plan].prepare(&self.device, pass);
        !matches!(prepared, Err(CudaError::NoPlan { .. }))
    }

    /// Numbers in the type that convolutions take: where they lie, or converted.
    fn operand(&mut self, values: Values, elements: usize) -> Pointer {
        let kind = self.rooms.operands();
        if is_aligned(values, kind) {
            return values.at;
        }
        let at = self.scratch(Purpose::Operand, elements as u64 * kind.bytes());
        self.convert(values, Values::new(at, kind), elements, false);
        at
    }

    /// y = conv(x) + bias.
    pub(super) fn convolve(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer) {
        let Some(plan) = self.plan(conv, 1) else {
            return;
        };
        let inputs = conv.samples * conv.input.elements();
        let outputs = conv.samples * conv.output.elements();
        let x = self.rooms.operand_ring(x, inputs).slot(t);
        let x = self.operand(x, inputs);
        let to = self.rooms.slot(y, outputs, t);
        let kind = self.rooms.operands();
        let product = if is_aligned(to, kind) {
            to
        } else {
            let at = self.scratch(Purpose::Product, outputs as u64 * kind.bytes());
            Values::new(at, kind)
        };
        let Some(workspace) = self.workspace(plan, Pass::Forward) else {
            return;
        };
        let w = self.arenas().operand(conv.weight.offset);
        self.convolutions.plans[plan].forward(&self.device, x, w, product.at, workspace);
        if product.at != to.at {
            self.convert(product, to, outputs, false);
        }
        if let Some(bias) = conv.bias {
            let add = AddBias {
                y: to,
                bias: self.arenas().pointer(Arena::Weights, bias.offset),
                elements: outputs as u64,
                channels: narrow(conv.output.channels),
                unused: 0,
            };
            self.launch(add.elements, &add);
        }
        self.refresh_operand(y, outputs, t);
    }

    /// dx = conv^T(dy) with the weights of now.
    pub(super) fn send_down(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut) {
        let inputs = conv.samples * conv.input.elements();
        let outputs = conv.samples * conv.output.elements();
        let kind = self.rooms.operands();
        let from = self.rooms.ring_in(dy, outputs);
        let to = self.rooms.ring_out(dx, inputs, kind);
        for part in joined(dy.steps, &[&from, &to], self.convolutions.by_steps) {
            let Some(plan) = self.plan(conv, part.steps) else {
                return;
            };
            let (inputs, outputs) = (inputs * part.steps, outputs * part.steps);
            let dy = self.operand(from.slot(part.first), outputs);
            let to = to.slot(part.first);
            let w = self.arenas().operand(conv.weight.offset);
            let is_direct = is_aligned(to, kind)
                && (!dx.accumulate || self.adds(plan, Pass::Data { accumulate: true }));
            let accumulate = is_direct && dx.accumulate;
            let Some(workspace) = self.workspace(plan, Pass::Data { accumulate }) else {
                return;
            };
            if is_direct {
                self.convolutions.plans[plan].data_gradient(
                    &self.device,
                    dy,
                    w,
                    to.at,
                    accumulate,
                    workspace,
                );
            } else {
                let at = self.scratch(Purpose::Product, inputs as u64 * kind.bytes());
                self.convolutions.plans[plan].data_gradient(
                    &self.device,
                    dy,
                    w,
                    at,
                    false,
                    workspace,
                );
                self.convert(Values::new(at, kind), to, inputs, dx.accumulate);
            }
        }
    }

    /// dW, summed over the steps (Algorithm 1, line 18).
    pub(super) fn gradient_of_filter(&mut self, conv: &Conv, x: Buffer, dy: Errors) {
        let inputs = conv.samples * conv.input.elements();
        let outputs = conv.samples * conv.output.elements();
        let kind = self.rooms.operands();
        let saved = self.rooms.operand_ring(x, inputs);
        let from = self.rooms.ring_in(dy, outputs);
        let parts = joined(dy.steps, &[&saved, &from], self.convolutions.by_steps);
        for (index, part) in parts.into_iter().enumerate() {
            let Some(plan) = self.plan(conv, part.steps) else {
                return;
            };
            let (inputs, outputs) = (inputs * part.steps, outputs * part.steps);
            let x = saved.slot(part.first);
            let x = if is_aligned(x, kind) {
                x.at
            } else {
                // Both may have to be converted.
                let at = self.scratch(Purpose::Product, inputs as u64 * kind.bytes());
                self.convert(x, Values::new(at, kind), inputs, false);
                at
            };
            let dy = self.operand(from.slot(part.first), outputs);
            let to = self.arenas().pointer(Arena::Gradients, conv.weight.offset);
            let accumulate = index > 0;
            let is_direct =
                kind == Type::F32 && (!accumulate || self.adds(plan, Pass::Weight { accumulate }));
            let pass = Pass::Weight {
                accumulate: is_direct && accumulate,
            };
            let Some(workspace) = self.workspace(plan, pass) else {
                return;
            };
            if is_direct {
                self.convolutions.plans[plan].weight_gradient(
                    &self.device,
                    x,
                    dy,
                    to,
                    accumulate,
                    workspace,
                );
            } else {
                let len = conv.weight.len;
                let at = self.scratch(Purpose::Filter, len as u64 * kind.bytes());
                self.convolutions.plans[plan].weight_gradient(
                    &self.device,
                    x,
                    dy,
                    at,
                    false,
                    workspace,
                );
                let to = Values::new(to, Type::F32);
                self.convert(Values::new(at, kind), to, len, accumulate);
            }
        }
    }

    /// db, summed over samples, pixels and steps.
    pub(super) fn gradient_of_bias(&mut self, conv: &Conv, dy: Errors) {
        let Some(bias) = conv.bias else { return };
        if self.arenas.is_none() {
            return;
        }
        let channels = conv.output.channels;
        let rows = conv.samples * conv.output.pixels();
        let from = self.rooms.ring_in(dy, rows * channels);
        let parts = joined(dy.steps, &[&from], self.convolutions.by_steps);
        for (index, part) in parts.into_iter().enumerate() {
            let tile = Tile::of(rows * part.steps, channels);
            let partials = self.scratch(Purpose::Partials, 4 * tile.partials(1));
            let sums = ColumnSums {
                v: from.slot(part.first),
                partials,
                tile,
            };
            self.launch_grid(tile.grid(), TILE_THREADS, &sums);
            let totals = ColumnTotals {
                partials,
                totals: self.arenas().pointer(Arena::Gradients, bias.offset),
                blocks: tile.blocks,
                channels: tile.channels,
                accumulate: u32::from(index > 0),
                unused: 0,
            };
            let blocks = tile.channels.div_ceil(MERGE_CHANNELS);
            self.launch_grid([blocks, 1, 1], TILE_THREADS, &totals);
        }
    }
}
