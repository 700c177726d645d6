//! NVIDIA GPUs: convolutions by cuDNN, everything else by kernels of our own, whole time steps recorded
//! and replayed as CUDA graphs.
//!
//! # Layout
//!
//! - [`device`]: one GPU: memory, streams, the compiled kernels, graphs, cuDNN.
//! - `kernels/`: the kernels in CUDA C++.
//! - `arguments`: what each of them takes; `values`: how numbers lie, what that is made of.
//! - `memory`: where values lie, and which are bf16.
//! - `arenas`: weights, gradients, states, and their order on the device.
//! - `conv`: convolutions.
//! - `norm_lif`: norms and neurons, forward and backward.
//! - `layers`: pools, dropout, joined shortcuts.
//! - `learn`: loss, updates, what is counted.
//! - `pictures`: bytes of pictures to input.
//! - `repeat`: time steps as graphs.
//! - `shortage`: what memory was not there for.
//! - `calls`: the calls of the engine, [`Kernels`](super::Kernels).
//! - this file: [`CudaKernels`].
//!
//! # Waiting
//!
//! Calls put work on the device's stream and return. The host waits where it reads, and once per batch
//! for the batch before the last, so that it never runs further ahead than that.

mod arenas;
mod arguments;
mod calls;
mod conv;
pub mod device;
mod layers;
mod learn;
mod memory;
mod norm_lif;
mod pictures;
mod repeat;
mod shortage;
mod values;

use self::arenas::Arenas;
use self::arguments::{Convert, FindNonFinite};
use self::conv::Convolutions;
use self::device::{Arguments, CudaError, Device, Memory, Pointer};
use self::learn::Counters;
use self::memory::Rooms;
use self::norm_lif::Waiting;
use self::repeat::Graphs;
use self::shortage::Missing;
use self::values::{Type, Values};
use super::{Buffer, Without};

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
