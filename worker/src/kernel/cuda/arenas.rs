//! Weights, gradients and optimiser states on the device.
//!
//! Files and the rest of the program have filters as OIHW; cuDNN's channels-last convolutions read and
//! write them as KRSC (output channel, row, column, input channel). The arenas hold a filter in the
//! device's order from the first convolution that uses it, so that gradients and updates need no
//! change of order: only what goes to or comes from the host is put in order.

use super::arguments::{Convert, Reorder};
use super::device::{CudaError, Device, Memory, Pointer};
use super::values::{Type, Values, narrow};
use super::{CudaKernels, Purpose};
use crate::kernel::{Arena, ArenaSizes, Conv, DeviceArenas, Span};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

/// A filter that lies in the device's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Filter {
    len: usize,
    outputs: u32,
    inputs: u32,
    taps: u32,
}

/// The six arenas.
#[derive(Debug)]
pub(super) struct Arenas {
    sizes: ArenaSizes,
    /// In the order of [`Arena`].
    memories: [Memory; 6],
    /// The weights as convolutions read them, where that is not f32.
    operands: Option<Memory>,
    /// By their place in the arena.
    filters: BTreeMap<usize, Filter>,
    /// Gradients on their way between GPUs, where they travel as bf16.
    wire: OnceLock<Option<Memory>>,
}

/// A piece of a range: inside one filter, or outside of all.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    range: Range<usize>,
    filter: Option<(usize, Filter)>,
}

impl Arenas {
    pub(super) fn new(
        device: &Device,
        sizes: ArenaSizes,
        operands: Type,
    ) -> Result<Self, CudaError> {
        let state = |needed| {
            if sizes.states >= needed {
                sizes.parameters
            } else {
                0
            }
        };
        let numbers = |len: usize| device.allocate((4 * len as u64).max(256));
        let memories = [
            numbers(sizes.parameters)?,
            numbers(sizes.parameters)?,
            numbers(state(1))?,
            numbers(state(2))?,
            numbers(sizes.statistics)?,
            numbers(sizes.moments)?,
        ];
        let operands = (operands == Type::Bf16)
            .then(|| device.allocate((2 * sizes.parameters as u64).max(256)));
        Ok(Self {
            sizes,
            memories,
            operands: operands.transpose()?,
            filters: BTreeMap::new(),
            wire: OnceLock::new(),
        })
    }

    /// Bytes of arenas of these sizes, but for what travels between GPUs.
    pub(super) fn bytes_of(sizes: ArenaSizes, operands: Type) -> u64 {
        let as_operands = match operands {
            Type::F32 => 0,
            Type::Bf16 => operands.bytes() * sizes.parameters as u64,
        };
        sizes.bytes() + as_operands
    }

    /// Bytes that it has.
    pub(super) fn bytes(&self) -> u64 {
        let wire = self.wire.get().and_then(Option::as_ref);
        let all = self.memories.iter().chain(&self.operands).chain(wire);
        all.map(Memory::bytes).sum()
    }

    /// Numbers in an arena.
    fn len(&self, arena: Arena) -> usize {
        match arena {
            Arena::Weights | Arena::Gradients => self.sizes.parameters,
            Arena::State if self.sizes.states >= 1 => self.sizes.parameters,
            Arena::SecondState if self.sizes.states >= 2 => self.sizes.parameters,
            Arena::State | Arena::SecondState => 0,
            Arena::Statistics => self.sizes.statistics,
            Arena::Moments => self.sizes.moments,
        }
    }

    /// The address of a number.
    pub(super) fn pointer(&self, arena: Arena, offset: usize) -> Pointer {
        self.memories[arena as usize]
            .pointer()
            .offset(4 * offset as u64)
    }

    /// The weights from this place on as convolutions read them.
    pub(super) fn operand(&self, offset: usize) -> Pointer {
        match &self.operands {
            Some(memory) => memory.pointer().offset(2 * offset as u64),
            None => self.pointer(Arena::Weights, offset),
        }
    }

    /// The same for an update, where they are not the weights themselves.
    pub(super) fn operand_to_write(&self, offset: usize) -> Pointer {
        match &self.operands {
            Some(_) => self.operand(offset),
            None => Pointer(0),
        }
    }

    fn check(&self, arena: Arena, range: &Range<usize>) {
        assert!(range.end <= self.len(arena), "{range:?} of {arena:?}");
    }

    /// Where gradients lie as bf16 on their way between GPUs; memory for them is taken at the first call.
    fn wire(&self, device: &Device) -> Option<Pointer> {
        let bytes = (2 * self.sizes.parameters as u64).max(256);
        let memory = self.wire.get_or_init(|| device.allocate(bytes).ok());
        memory.as_ref().map(Memory::pointer)
    }

    /// Whether an arena has filters.
    fn has_filters(arena: Arena) -> bool {
        match arena {
            Arena::Weights | Arena::Gradients | Arena::State | Arena::SecondState => true,
            Arena::Statistics | Arena::Moments => false,
        }
    }

    /// Cuts a range at the bounds of filters.
    fn pieces(&self, arena: Arena, range: Range<usize>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let filters = self.filters.iter().filter(|_| Self::has_filters(arena));
        for (&offset, &filter) in filters {
            let (begin, end) = (offset.max(at), (offset + filter.len).min(range.end));
            if begin >= end {
                continue;
            }
            if at < begin {
                pieces.push(Piece {
                    range: at..begin,
                    filter: None,
                });
            }
            pieces.push(Piece {
                range: begin..end,
                filter: Some((offset, filter)),
            });
            at = end;
        }
        if at < range.end {
            pieces.push(Piece {
                range: at..range.end,
                filter: None,
            });
        }
        pieces
    }
}

/// The reordering of a piece between its place in `host` order and the filter in the arena.
fn reorder(piece: &Piece, (offset, filter): (usize, Filter), to_device: bool) -> Reorder {
    Reorder {
        from: Pointer(0),
        to: Pointer(0),
        first: (piece.range.start - offset) as u64,
        elements: piece.range.len() as u64,
        outputs: filter.outputs,
        inputs: filter.inputs,
        taps: filter.taps,
        to_device: u32::from(to_device),
    }
}

impl CudaKernels {
    /// Where what ranks average lies.
    pub(super) fn addresses(&self) -> Option<DeviceArenas> {
        let arenas = self.arenas.as_ref()?;
        let moments = match arenas.sizes.moments {
            0 => Pointer(0),
            _ => arenas.pointer(Arena::Moments, 0),
        };
        Some(DeviceArenas {
            ordinal: self.device.ordinal(),
            stream: self.device.stream(),
            gradients: arenas.pointer(Arena::Gradients, 0).0,
            moments: moments.0,
            wire: arenas.wire(&self.device).map_or(0, |wire| wire.0),
        })
    }

    /// A range of the gradients times a factor as bf16, or the way back.
    pub(super) fn on_wire(&self, span: Span, factor: f32, comes_back: bool) {
        // Who was given no address does not come here.
        let Some(wire) = self.arenas().wire(&self.device) else {
            return;
        };
        let gradients = self.arenas().pointer(Arena::Gradients, span.offset);
        let gradients = Values::new(gradients, Type::F32);
        let wire = Values::new(wire.offset(2 * span.offset as u64), Type::Bf16);
        let (from, to) = if comes_back {
            (wire, gradients)
        } else {
            (gradients, wire)
        };
        let convert = Convert {
            from,
            to,
            elements: span.len as u64,
            scale: factor,
            accumulate: 0,
        };
        self.launch(convert.elements.div_ceil(4), &convert);
    }

    /// Copies into an arena from the host.
    pub(super) fn write_range(&mut self, arena: Arena, offset: usize, values: &[f32]) {
        if self.arenas.is_none() {
            return;
        }
        let range = offset..offset + values.len();
        self.arenas().check(arena, &range);
        let staged = self.scratch(Purpose::Host, 4 * values.len() as u64);
        self.write_numbers(staged, values);
        for piece in self.arenas().pieces(arena, range.clone()) {
            let from = staged.offset(4 * (piece.range.start - offset) as u64);
            match piece.filter {
                None => {
                    let to = self.arenas().pointer(arena, piece.range.start);
                    self.device.copy(from, to, 4 * piece.range.len() as u64);
                }
                Some(filter) => {
                    let to = self.arenas().pointer(arena, filter.0);
                    let order = reorder(&piece, filter, true);
                    self.launch(order.elements, &Reorder { from, to, ..order });
                }
            }
        }
        if arena == Arena::Weights {
            self.refresh_operands(range);
        }
    }

    /// Copies out of an arena to the host. Waits.
    pub(super) fn read_range(&mut self, arena: Arena, offset: usize, values: &mut [f32]) {
        if self.arenas.is_none() {
            return values.fill(f32::NAN);
        }
        let range = offset..offset + values.len();
        self.arenas().check(arena, &range);
        let pieces = self.arenas().pieces(arena, range);
        if pieces.iter().all(|piece| piece.filter.is_none()) {
            return self.read_numbers(self.arenas().pointer(arena, offset), values);
        }
        let staged = self.scratch(Purpose::Host, 4 * values.len() as u64);
        for piece in pieces {
            let to = staged.offset(4 * (piece.range.start - offset) as u64);
            match piece.filter {
                None => {
                    let from = self.arenas().pointer(arena, piece.range.start);
                    self.device.copy(from, to, 4 * piece.range.len() as u64);
                }
                Some(filter) => {
                    let from = self.arenas().pointer(arena, filter.0);
                    let order = reorder(&piece, filter, false);
                    self.launch(order.elements, &Reorder { from, to, ..order });
                }
            }
        }
        self.read_numbers(staged, values);
    }

    /// Brings the weights that convolutions read up to date, where these are others: of a range and of
    /// the filters that it touches.
    fn refresh_operands(&self, range: Range<usize>) {
        let arenas = self.arenas();
        if arenas.operands.is_none() {
            return;
        }
        for piece in arenas.pieces(Arena::Weights, range) {
            let whole = match piece.filter {
                Some((offset, filter)) => offset..offset + filter.len,
                None => piece.range,
            };
            let convert = Convert {
                from: Values::new(arenas.pointer(Arena::Weights, whole.start), Type::F32),
                to: Values::new(arenas.operand(whole.start), Type::Bf16),
                elements: whole.len() as u64,
                scale: 1.0,
                accumulate: 0,
            };
            // Ranges of the host may begin anywhere: a thread for each number.
            self.launch(convert.elements, &convert);
        }
    }

    /// Puts a convolution's filter in the device's order, once.
    pub(super) fn settle(&mut self, conv: &Conv) {
        let taps = conv.kernel * conv.kernel;
        let filter = Filter {
            len: conv.weight.len,
            outputs: narrow(conv.output.channels),
            inputs: narrow(conv.input.channels),
            taps: narrow(taps),
        };
        let offset = conv.weight.offset;
        let Some(arenas) = &self.arenas else { return };
        if arenas.filters.contains_key(&offset) || taps == 1 || conv.input.channels == 1 {
            return;
        }
        let bytes = 4 * filter.len as u64;
        let staged = self.scratch(Purpose::Host, bytes);
        let piece = Piece {
            range: offset..offset + filter.len,
            filter: Some((offset, filter)),
        };
        for arena in [
            Arena::Weights,
            Arena::Gradients,
            Arena::State,
            Arena::SecondState,
        ] {
            if self.arenas().len(arena) == 0 {
                continue;
            }
            let place = self.arenas().pointer(arena, offset);
            self.device.copy(place, staged, bytes);
            let order = Reorder {
                from: staged,
                to: place,
                ..reorder(&piece, (offset, filter), true)
            };
            self.launch(order.elements, &order);
        }
        if let Some(arenas) = &mut self.arenas {
            arenas.filters.insert(offset, filter);
        }
        self.refresh_operands(piece.range);
    }
}
