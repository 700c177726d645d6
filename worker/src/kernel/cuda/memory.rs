//! Where values lie on the device: rings of slots, each of f32 or bf16.
//!
//! # Which numbers are bf16
//!
//! With `precision = "bf16"` what convolutions read and write is bf16, because their operands are:
//! spikes and counts are exact in it and are stored once, for convolutions and for everybody else
//! (two bytes written by the neurons and read by the convolutions; spikes as bytes would be written
//! in one, but read, and written again as operands, first: five bytes for each four of these). What a
//! convolution writes is stored as it wrote it. A real value that both convolutions and others read
//! has both forms. Membrane potentials, moments and everything else is f32.
//!
//! Errors share buffers, and each value's errors may be of either type: what a convolution is to read
//! or has written is bf16. So the type belongs to what the buffer holds at the moment, and its slots
//! lie as close as the value allows.

use super::device::{CudaError, Device, Memory, Pointer};
use super::values::{Ring, Type, Values, narrow};
use crate::kernel::{Buffer, BufferSpec, Errors, ErrorsOut};
use crate::shape::Content;

/// The memory of one form of a value.
#[derive(Debug)]
struct Form {
    memory: Memory,
    slots: usize,
    kind: Type,
}

/// What a buffer has.
#[derive(Debug)]
struct Rings {
    /// Numbers of a slot as it was allocated.
    elements: usize,
    /// What everything reads, and convolutions too where there is no other.
    main: Form,
    /// What convolutions alone read.
    operand: Option<Form>,
    /// Whether whatever is written first decides the type.
    is_floating: bool,
}

/// The rings of a network.
#[derive(Debug)]
pub(super) struct Rooms {
    /// What convolutions read.
    operands: Type,
    rings: Vec<Rings>,
}

/// The forms that a value is stored in: slots and type of the main one, slots of the other.
fn forms(spec: &BufferSpec, operands: Type) -> ((usize, Type), Option<usize>) {
    let (operand, plain) = (spec.operand_slots, spec.plain_slots);
    let slots = operand.max(plain);
    match (operands, spec.content) {
        (Type::F32, _) => ((slots, Type::F32), None),
        (Type::Bf16, Content::Spikes | Content::Counts) => ((slots, Type::Bf16), None),
        (Type::Bf16, Content::Real) if spec.of_conv => ((slots, Type::Bf16), None),
        (Type::Bf16, Content::Real) => match (operand, plain) {
            (_, 0) => ((operand, Type::Bf16), None),
            (0, _) => ((plain, Type::F32), None),
            _ => ((plain, Type::F32), Some(operand)),
        },
    }
}

impl Rooms {
    pub(super) fn new(operands: Type) -> Self {
        Self {
            operands,
            rings: Vec::new(),
        }
    }

    pub(super) fn operands(&self) -> Type {
        self.operands
    }

    /// Bytes that a buffer takes.
    pub(super) fn bytes(&self, spec: &BufferSpec) -> u64 {
        let ((slots, kind), operand) = forms(spec, self.operands);
        let numbers = |slots: usize| (slots * spec.elements()) as u64;
        let operand = operand.map_or(0, |slots| numbers(slots) * self.operands.bytes());
        numbers(slots) * kind.bytes() + operand
    }

    pub(super) fn allocate(
        &mut self,
        device: &Device,
        spec: &BufferSpec,
    ) -> Result<Buffer, CudaError> {
        let ((slots, kind), operand) = forms(spec, self.operands);
        let form = |slots: usize, kind: Type| -> Result<Form, CudaError> {
            let bytes = (slots * spec.elements()) as u64 * kind.bytes();
            let memory = device.allocate(bytes)?;
            Ok(Form {
                memory,
                slots,
                kind,
            })
        };
        let main = form(slots, kind)?;
        let operand = operand
            .map(|slots| form(slots, self.operands))
            .transpose()?;
        let is_floating = self.operands == Type::Bf16 && kind == Type::F32 && operand.is_none();
        let index = narrow(self.rings.len());
        self.rings.push(Rings {
            elements: spec.elements(),
            main,
            operand,
            is_floating,
        });
        Ok(Buffer(index))
    }

    fn rings(&self, buffer: Buffer) -> &Rings {
        &self.rings[buffer.0 as usize]
    }

    /// Numbers of a slot as it was allocated.
    pub(super) fn elements(&self, buffer: Buffer) -> usize {
        self.rings(buffer).elements
    }

    /// Slots of what everything reads.
    pub(super) fn slots(&self, buffer: Buffer) -> usize {
        self.rings(buffer).main.slots
    }

    /// The ring of a value of so many numbers, as everything reads it.
    ///
    /// # Panics
    /// If the value is larger than the buffer.
    pub(super) fn ring(&self, buffer: Buffer, elements: usize) -> Ring {
        let rings = self.rings(buffer);
        assert!(elements <= rings.elements, "size of {buffer:?}");
        ring(&rings.main, elements)
    }

    /// The ring that convolutions read, if it is of their type.
    pub(super) fn operand_ring(&self, buffer: Buffer, elements: usize) -> Ring {
        let rings = self.rings(buffer);
        assert!(elements <= rings.elements, "size of {buffer:?}");
        ring(rings.operand.as_ref().unwrap_or(&rings.main), elements)
    }

    /// Whether convolutions read another form than everything else.
    pub(super) fn has_two_forms(&self, buffer: Buffer) -> bool {
        self.rings(buffer).operand.is_some()
    }

    /// The slot of time step t of a value of so many numbers.
    pub(super) fn slot(&self, buffer: Buffer, elements: usize, t: usize) -> Values {
        self.ring(buffer, elements).slot(t)
    }

    /// The ring of f32 numbers of something that is never anything else.
    pub(super) fn numbers(&self, buffer: Buffer) -> Pointer {
        let form = &self.rings(buffer).main;
        assert_eq!(form.kind, Type::F32, "type of {buffer:?}");
        form.memory.pointer()
    }

    /// The ring of errors that are to be written, which are of this type from now on if they are the
    /// first of their value.
    pub(super) fn ring_out(&mut self, to: ErrorsOut, elements: usize, kind: Type) -> Ring {
        let rings = &mut self.rings[to.buffer.0 as usize];
        if !to.accumulate && rings.is_floating {
            rings.main.kind = kind;
        }
        self.ring(to.buffer, elements)
    }

    /// The ring of errors that have arrived.
    pub(super) fn ring_in(&self, errors: Errors, elements: usize) -> Ring {
        self.ring(errors.buffer, elements)
    }

    /// A buffer is to hold f32 numbers from the host.
    pub(super) fn becomes_f32(&mut self, buffer: Buffer) {
        let rings = &mut self.rings[buffer.0 as usize];
        if rings.is_floating {
            rings.main.kind = Type::F32;
        }
    }
}

fn ring(form: &Form, elements: usize) -> Ring {
    Ring {
        at: form.memory.pointer(),
        stride: elements as u64,
        kind: form.kind,
        slots: narrow(form.slots),
    }
}
