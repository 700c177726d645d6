//! NVIDIA GPUs: convolutions by cuDNN, everything else by kernels of our own, whole time steps recorded
//! and replayed as CUDA graphs.
//!
//! # Layout
//!
//! - [`device`]: one GPU: memory, streams, the compiled kernels, graphs, cuDNN.
//! - `kernels/`: the kernels in CUDA C++.
//! - `arguments`: what each of them takes.
//! - `memory`: where values lie, and which are bf16.
//! - `arenas`: weights, gradients, states, and their order on the device.
//! - `conv`: convolutions.
//! - `norm_lif`: norms and neurons, forward and backward.
//! - `layers`: pools, dropout, joined shortcuts.
//! - `learn`: loss, updates, what is counted.
//! - `pictures`: bytes of pictures to input.
//! - `repeat`: time steps as graphs.
//! - `shortage`: what memory was not there for.
//! - this file: [`CudaKernels`].
//!
//! # Waiting
//!
//! Calls put work on the device's stream and return. The host waits where it reads, and once per batch
//! for the batch before the last, so that it never runs further ahead than that.

mod arenas;
mod arguments;
mod conv;
pub mod device;
mod layers;
mod learn;
mod memory;
mod norm_lif;
mod pictures;
mod repeat;
mod shortage;

use self::arenas::Arenas;
use self::arguments::{Convert, FindNonFinite, Type, Values};
use self::conv::Convolutions;
use self::device::{Arguments, CudaError, Device, Memory, Pointer};
use self::learn::Counters;
use self::memory::Rooms;
use self::norm_lif::Waiting;
use self::repeat::Graphs;
use self::shortage::Missing;
use super::{
    Arena, ArenaSizes, Buffer, BufferSpec, Conv, DeviceArenas, DeviceMemory, Dropout, Errors,
    ErrorsOut, Failure, Kernels, Loss, Norm, NormLif, NormLifErrors, Phase, Pictures, Pool, Repeat,
    Report, Residual, Shortage, Span, Step, Window, Without,
};
use crate::shape::Shape;

/// In what convolutions compute. Everything else is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 operands, f32 products.
    #[default]
    F32,
    /// f32 operands, whose products may be rounded to 10 bits on tensor cores.
    Tf32,
    /// bf16 operands, f32 sums.
    Bf16,
}

/// Which of cuDNN's interfaces computes convolutions. They may take other kernels, which sum in another order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// A call per direction, with an algorithm that the heuristics name.
    #[default]
    Legacy,
    /// The graph API: an execution plan per direction, of the engines that the heuristics name.
    Graph,
}

/// Which GPU, and how it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The number of the GPU among those that the process sees, from 0.
    pub ordinal: u32,
    /// In what convolutions compute.
    pub precision: Precision,
    /// By which interface of cuDNN they are computed.
    pub interface: Interface,
    /// What is left out, to measure it.
    pub without: Without,
}

/// The back end for NVIDIA GPUs.
#[derive(Debug)]
pub struct CudaKernels {
    precision: Precision,
    // First: what was recorded goes before the plans and the memory that it uses.
    graphs: Graphs,
    rooms: Rooms,
    arenas: Option<Arenas>,
    convolutions: Convolutions,
    without: Without,
    counters: Counters,
    waiting: Option<Waiting>,
    /// What lies in the scratch of that name.
    tables: pictures::Tables,
    /// Memory for what lives no longer than a call.
    scratch: Scratch,
    /// What an allocation failed with: everything after it is in vain.
    failure: Option<CudaError>,
    /// What is asked for since, if that was memory that is not there.
    missing: Option<Missing>,
    // Last: cuDNN's plans are dropped before its handle.
    device: Device,
}

/// Memory for what lives no longer than a call, by purpose.
#[derive(Debug, Default)]
struct Scratch {
    rooms: [Option<Memory>; PURPOSES],
    /// Rooms that were too small. Graphs may hold their addresses.
    outgrown: Vec<Memory>,
}

/// How many purposes there are.
const PURPOSES: usize = 10;

/// What scratch is for: two purposes of one call never share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// f32 numbers from or for the host; a filter in another order.
    Host,
    /// Partial sums.
    Partials,
    /// What a convolution reads, in its type.
    Operand,
    /// What a convolution writes, in its type.
    Product,
    /// Sums, moments, errors on their way to an older step.
    Carry,
    /// cuDNN's.
    Workspace,
    /// Logits summed over a batch, and a number per sample.
    Loss,
    /// Bytes of pictures, and what is done to each.
    Pictures,
    /// The value of each byte: kept from one batch to the next.
    Tables,
    /// The gradient of a filter, in the type of a convolution.
    Filter,
}

impl CudaKernels {
    /// On one GPU.
    ///
    /// # Errors
    /// If a library, the GPU or memory is missing; the error says what to do.
    pub fn open(options: &Options) -> Result<Self, CudaError> {
        let device = Device::open(options.ordinal)?;
        let operands = match options.precision {
            Precision::F32 | Precision::Tf32 => Type::F32,
            Precision::Bf16 => Type::Bf16,
        };
        Ok(Self {
            counters: Counters::new(&device)?,
            rooms: Rooms::new(operands),
            arenas: None,
            convolutions: Convolutions::new(*options),
            waiting: None,
            graphs: Graphs::new(options.without.graphs),
            without: options.without,
            tables: pictures::Tables::new(),
            scratch: Scratch::default(),
            failure: None,
            missing: None,
            precision: options.precision,
            device,
        })
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn arenas(&self) -> &Arenas {
        self.arenas.as_ref().expect("arenas come first")
    }

    /// Scratch of at least so many bytes. What it held before is lost.
    fn scratch(&mut self, purpose: Purpose, bytes: u64) -> Pointer {
        let room = &mut self.scratch.rooms[purpose as usize];
        if let Some(memory) = room
            && memory.bytes() >= bytes
        {
            return memory.pointer();
        }
        if self.failure.is_none() {
            // It goes first, so that not both are held, unless graphs may hold its address.
            if !self.graphs.hold_addresses() {
                *room = None;
            }
            match self.device.allocate(bytes.max(256)) {
                Ok(memory) => {
                    let pointer = memory.pointer();
                    self.scratch.outgrown.extend(room.replace(memory));
                    return pointer;
                }
                Err(error) => self.fail(error),
            }
        }
        self.lacks_scratch(purpose, bytes);
        Pointer(0)
    }

    /// Whether everything is in vain.
    fn has_failed(&self) -> bool {
        self.failure.is_some() || self.device.fault().is_some()
    }

    /// A kernel over so many things, one thread for each up to a grid that fills any GPU.
    fn launch<A: Arguments>(&self, things: u64, arguments: &A) {
        const THREADS: u32 = 256;
        const MOST_BLOCKS: u64 = 8192;
        if things == 0 {
            return;
        }
        let blocks = things.div_ceil(u64::from(THREADS)).min(MOST_BLOCKS);
        let blocks = u32::try_from(blocks).expect("bounded above");
        self.launch_grid([blocks, 1, 1], THREADS, arguments);
    }

    fn launch_grid<A: Arguments>(&self, grid: [u32; 3], threads: u32, arguments: &A) {
        if self.failure.is_none() {
            self.device.launch(grid, threads, arguments);
        }
    }

    /// Copies numbers, changing their type.
    fn convert(&self, from: Values, to: Values, elements: usize, accumulate: bool) {
        let convert = Convert {
            from,
            to,
            elements: elements as u64,
            scale: 1.0,
            accumulate: u32::from(accumulate),
        };
        self.launch((elements as u64).div_ceil(4), &convert);
    }

    /// Brings the form that convolutions read up to date, where it is another one.
    fn refresh_operand(&self, buffer: Buffer, elements: usize, t: usize) {
        if self.rooms.has_two_forms(buffer) {
            let from = self.rooms.slot(buffer, elements, t);
            let to = self.rooms.operand_ring(buffer, elements).slot(t);
            self.convert(from, to, elements, false);
        }
    }

    /// Whether so many numbers are finite. Waits.
    fn all_finite(&mut self, values: Values, elements: usize) -> bool {
        let found = self.scratch(Purpose::Carry, 4);
        self.device.zero(found, 4);
        let find = FindNonFinite {
            v: values,
            found,
            elements: elements as u64,
        };
        self.launch(elements as u64, &find);
        let mut answer = [0; 4];
        self.device.read(found, &mut answer);
        answer == [0; 4]
    }

    /// f32 numbers of the host as bytes, and back.
    fn read_numbers(&self, from: Pointer, values: &mut [f32]) {
        let mut bytes = vec![0; size_of_val(values)];
        self.device.read(from, &mut bytes);
        for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }

    fn write_numbers(&self, to: Pointer, values: &[f32]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.device.write(to, &bytes);
    }
}

impl Kernels for CudaKernels {
    fn name(&self) -> String {
        let precision = match self.precision {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        };
        let interface = match self.convolutions.interface {
            Interface::Legacy => "",
            Interface::Graph => ", graph API",
        };
        let (ordinal, name) = (self.device.ordinal(), self.device.name());
        format!("cuda:{ordinal} ({name}, {precision}{interface})")
    }

    fn bytes(&self, spec: &BufferSpec) -> u64 {
        self.rooms.bytes(spec)
    }

    fn allocate(&mut self, spec: &BufferSpec) -> Buffer {
        if self.failure.is_none() {
            match self.rooms.allocate(&self.device, spec) {
                Ok(buffer) => return buffer,
                Err(error) => self.fail(error),
            }
        }
        self.lacks(self.rooms.bytes(spec));
        // Nothing is launched any more, so nobody looks where it lies.
        Buffer(0)
    }

    fn allocate_arenas(&mut self, sizes: ArenaSizes) {
        assert!(self.arenas.is_none(), "arenas are allocated once");
        let operands = self.rooms.operands();
        if self.failure.is_none() {
            match Arenas::new(&self.device, sizes, operands) {
                Ok(arenas) => return self.arenas = Some(arenas),
                Err(error) => self.fail(error),
            }
        }
        self.lacks_arenas(Arenas::bytes_of(sizes, operands));
    }

    fn run(&mut self, body: &mut (dyn FnMut(&mut dyn Kernels) + Send)) {
        body(self);
    }

    fn repeat(
        &mut self,
        what: Repeat,
        t: usize,
        step: Option<Step>,
        body: &mut dyn FnMut(&mut dyn Kernels),
    ) {
        self.repeat_recorded(what, t, step, body);
    }

    fn in_between(&mut self, call: &mut dyn FnMut(&mut dyn Kernels)) {
        self.between_parts(call);
    }

    fn write(&mut self, buffer: Buffer, t: usize, values: &[f32]) {
        let elements = values.len();
        self.rooms.becomes_f32(buffer);
        let to = self.rooms.slot(buffer, elements, t);
        if to.kind == Type::F32 {
            self.write_numbers(to.at, values);
        } else {
            let from = self.scratch(Purpose::Host, 4 * elements as u64);
            self.write_numbers(from, values);
            self.convert(Values::new(from, Type::F32), to, elements, false);
        }
        self.refresh_operand(buffer, elements, t);
    }

    fn takes_pictures(&self) -> bool {
        true
    }

    fn write_pictures(&mut self, buffer: Buffer, t: usize, pictures: &Pictures<'_>) {
        self.make_pictures(buffer, t, pictures);
    }

    fn read(&mut self, buffer: Buffer, t: usize, values: &mut [f32]) {
        let elements = values.len();
        let from = self.rooms.slot(buffer, elements, t);
        if from.kind == Type::F32 {
            return self.read_numbers(from.at, values);
        }
        let to = self.scratch(Purpose::Host, 4 * elements as u64);
        self.convert(from, Values::new(to, Type::F32), elements, false);
        self.read_numbers(to, values);
    }

    fn write_arena(&mut self, arena: Arena, offset: usize, values: &[f32]) {
        self.write_range(arena, offset, values);
    }

    fn read_arena(&mut self, arena: Arena, offset: usize, values: &mut [f32]) {
        self.read_range(arena, offset, values);
    }

    fn conv_forward(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer) {
        self.convolve(conv, t, x, y);
    }

    fn conv_data_gradient(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut) {
        self.send_down(conv, dy, dx);
    }

    fn conv_weight_gradient(&mut self, conv: &Conv, x: Buffer, dy: Errors) {
        self.gradient_of_filter(conv, x, dy);
        self.gradient_of_bias(conv, dy);
    }

    fn norm_moments(&mut self, layer: &NormLif, t: usize) {
        self.share_moments(layer, t);
    }

    fn norm_lif_forward(&mut self, layer: &NormLif, t: usize, phase: Phase) {
        self.norm_and_fire(layer, t, phase);
    }

    fn apply_moments(&mut self, norm: &Norm, count: u64) {
        self.follow_moments(norm, count);
    }

    fn norm_lif_backward(&mut self, layer: &NormLif, window: Window, errors: &NormLifErrors) {
        self.back_through_layer(layer, window, errors);
    }

    fn norm_backward(&mut self, layer: &NormLif, steps: Window, dz: ErrorsOut) {
        self.back_through_norm(layer, steps, dz);
    }

    fn pool_forward(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer) {
        self.pool(pool, t, x, y);
    }

    fn pool_backward(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut) {
        self.unpool(pool, dy, dx);
    }

    fn flatten_forward(&mut self, samples: usize, input: Shape, t: usize, x: Buffer, y: Buffer) {
        self.flatten(samples, input, t, x, y);
    }

    fn flatten_backward(&mut self, samples: usize, input: Shape, dy: Errors, dx: ErrorsOut) {
        self.unflatten(samples, input, dy, dx);
    }

    fn dropout_mask(&mut self, dropout: &Dropout, t: usize, key: u64) {
        self.draw_mask(dropout, t, key);
    }

    fn dropout_forward(&mut self, d: &Dropout, t: usize, phase: Phase, x: Buffer, y: Buffer) {
        self.drop_out(d, t, phase, x, y);
    }

    fn dropout_backward(&mut self, dropout: &Dropout, dy: Errors, dx: ErrorsOut) {
        self.drop_errors(dropout, dy, dx);
    }

    fn residual_forward(&mut self, residual: &Residual, t: usize) {
        self.join(residual, t);
    }

    fn residual_backward(
        &mut self,
        residual: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    ) {
        self.part(residual, dy, da, db);
    }

    fn write_labels(&mut self, labels: &[u32]) {
        self.begin_batch(labels);
    }

    fn loss(&mut self, loss: &Loss, t: usize, logits: Buffer, dlogits: Option<Buffer>) {
        self.loss_of_step(loss, t, logits, dlogits);
    }

    fn update(&mut self, span: Span, step: Step) {
        self.update_range(span, step);
    }

    /// 4 MiB of weights: some 5 µs by the roofline of an H200, of which a launch would be a part.
    fn update_grain(&self) -> usize {
        if self.without.updates { 1 } else { 1 << 20 }
    }

    // A range may cut a filter, whose order on the device is another: a piece of the one is no piece of
    // the other.
    fn read_gradients(&mut self, offset: usize, values: &mut [f32]) {
        let from = self.arenas().pointer(Arena::Gradients, offset);
        self.read_numbers(from, values);
    }

    fn update_from(&mut self, span: Span, gradients: &[f32], step: Step) {
        assert_eq!(gradients.len(), span.len, "a gradient for every weight");
        let to = self.arenas().pointer(Arena::Gradients, span.offset);
        self.write_numbers(to, gradients);
        self.update(span, step);
    }

    fn device_arenas(&self) -> Option<DeviceArenas> {
        self.addresses()
    }

    fn device_slot(&self, buffer: Buffer, t: usize) -> Option<u64> {
        let slot = self.rooms.slot(buffer, self.rooms.elements(buffer), t);
        (slot.kind == Type::F32).then_some(slot.at.0)
    }

    fn round_to_wire(&mut self, span: Span, factor: f32) {
        self.on_wire(span, factor, false);
    }

    fn widen_from_wire(&mut self, span: Span) {
        self.on_wire(span, 1.0, true);
    }

    fn zero(&mut self, buffer: Buffer, samples: usize, shape: Shape, t: usize) {
        let elements = samples * shape.elements();
        let slot = self.rooms.slot(buffer, elements, t);
        let bytes = elements as u64 * slot.kind.bytes();
        self.device.zero(slot.at, bytes);
    }

    fn poll_fault(&mut self) -> Option<usize> {
        self.look_for_fault()
    }

    fn is_finite(&mut self, buffer: Buffer, t: usize) -> bool {
        let elements = self.rooms.elements(buffer);
        let values = self.rooms.slot(buffer, elements, t);
        self.all_finite(values, elements)
    }

    fn arena_is_finite(&mut self, arena: Arena, span: Span) -> bool {
        let at = self.arenas().pointer(arena, span.offset);
        self.all_finite(Values::new(at, Type::F32), span.len)
    }

    fn take_report(&mut self) -> Report {
        self.report_so_far()
    }

    fn available_bytes(&self) -> Option<u64> {
        self.device.memory_info().ok().map(|(free, _)| free)
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        Some(DeviceMemory {
            held: self.device.allocated(),
            peak: self.device.peak(),
        })
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn failure(&mut self) -> Option<Failure> {
        let error = self.failure.take().or_else(|| self.device.fault())?;
        let failure = Failure {
            what: error.to_string(),
            may_pass: error.may_pass(),
        };
        self.failure = Some(error);
        Some(failure)
    }

    fn shortage(&self) -> Option<Shortage> {
        self.what_is_short()
    }
}
