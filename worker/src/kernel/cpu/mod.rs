//! The CPU back end: slices, threads and vectors; spikes as bits.
//!
//! # Layout
//!
//! - this file: [`CpuKernels`], which hands every call of the seam to one of these:
//! - [`conv`]: convolutions, over active inputs only where the input is spikes.
//! - `norm_lif`: batch norm, sum, neurons, sum in one pass over memory.
//! - `plain`: pools, flatten, dropout, joins.
//! - `learn`: loss and update.
//! - `alive`: which neurons have spiked in the batch.
//! - `ring`: a buffer.
//! - `error`: why it cannot start; how many threads it may have.
//! - [`simd`]: vector code and loops over rows.
//!
//! Work is cut into pieces that do not depend on the number of threads, and sums are combined in a
//! fixed order: the same seed gives the same bits with any number of threads. After the first batch
//! nothing is allocated, but for scratch that grows once where a layer's spikes first become so dense
//! (85 %) that they are convolved as real numbers.

mod alive;
pub mod conv;
mod error;
mod learn;
mod norm_lif;
mod plain;
mod ring;
pub mod simd;

use super::{
    Arena, ArenaSizes, Buffer, BufferSpec, Conv, Dropout, Errors, ErrorsOut, Kernels, Loss, Norm,
    NormLif, NormLifErrors, Phase, Pool, Repeat, Report, Residual, Span, Step, Window,
};
use crate::shape::Shape;
use alive::Alive;
use conv::{ConvKernel, ConvScratch, ConvShape, Operand, bias_gradient};
pub use error::{CpuError, check_threads};
use rayon::{ThreadPool, ThreadPoolBuilder};
use ring::Ring;
use simd::Isa;
use std::sync::Arc;

/// The CPU back end.
pub struct CpuKernels {
    pool: Arc<ThreadPool>,
    isa: Isa,
    rings: Vec<Ring>,
    weights: Vec<f32>,
    gradients: Vec<f32>,
    state: Vec<f32>,
    second_state: Vec<f32>,
    statistics: Vec<f32>,
    moments: Vec<f32>,
    convs: Vec<Option<PackedConv>>,
    scratch: Scratch,
    labels: Vec<u32>,
    /// Logits summed over the time steps of the batch.
    summed: Vec<f32>,
    report: Report,
    alive: Vec<Alive>,
    fault: Option<usize>,
}

/// A convolution's packed weights.
struct PackedConv {
    kernel: ConvKernel,
    weight: Span,
    /// Whether the weights have changed since they were packed.
    stale: bool,
}

/// Buffers that grow at first use and are used again by every call.
#[derive(Default)]
struct Scratch {
    conv: ConvScratch,
    sums: Vec<f32>,
    counts: Vec<u64>,
    /// Spikes that nothing reads as bits.
    words: Vec<u64>,
    mean: Vec<f32>,
    scale: Vec<f32>,
    gain: Vec<f32>,
    tiled: [Vec<f32>; 2],
    stage: Vec<f32>,
    delta: Vec<f32>,
}

impl std::fmt::Debug for CpuKernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuKernels")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

impl CpuKernels {
    /// A back end with its own threads (0: one per core), using the best instruction set of the
    /// machine or the given one.
    ///
    /// # Errors
    /// If the machine lacks the instruction set, or the threads are too many or cannot be started.
    pub fn new(threads: usize, isa: Option<Isa>) -> Result<Self, CpuError> {
        let isa = isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            return Err(CpuError::Isa(isa));
        }
        check_threads(threads)?;
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("synfire-cpu-{i}"))
            .build()
            .map_err(|source| CpuError::Threads { threads, source })?;
        Ok(Self {
            pool: Arc::new(pool),
            isa,
            rings: Vec::new(),
            weights: Vec::new(),
            gradients: Vec::new(),
            state: Vec::new(),
            second_state: Vec::new(),
            statistics: Vec::new(),
            moments: Vec::new(),
            convs: Vec::new(),
            scratch: Scratch::default(),
            labels: Vec::new(),
            summed: Vec::new(),
            report: Report::default(),
            alive: Vec::new(),
            fault: None,
        })
    }

    /// Bytes that a buffer takes on the CPU.
    pub fn bytes_of(spec: &BufferSpec) -> u64 {
        ring::bytes(spec)
    }

    fn take(&mut self, buffer: Buffer) -> Ring {
        std::mem::take(&mut self.rings[buffer.0 as usize])
    }

    fn put(&mut self, buffer: Buffer, ring: Option<Ring>) {
        if let Some(ring) = ring {
            self.rings[buffer.0 as usize] = ring;
        }
    }

    fn put_all<const M: usize>(&mut self, rings: [(Option<ErrorsOut>, Option<Ring>); M]) {
        for (errors, ring) in rings {
            if let Some(errors) = errors {
                self.put(errors.buffer, ring);
            }
        }
    }

    /// Runs a call on the back end's own threads; free where it is there already.
    fn on_pool<R: Send>(&mut self, call: impl FnOnce(&mut Self) -> R + Send) -> R {
        let pool = Arc::clone(&self.pool);
        pool.install(|| call(self))
    }

    /// Takes a convolution out, its weights packed as they are now.
    fn packed(&mut self, conv: &Conv) -> PackedConv {
        if self.convs.len() <= conv.index {
            self.convs.resize_with(conv.index + 1, || None);
        }
        let shape = ConvShape {
            height: conv.input.height,
            width: conv.input.width,
            inputs: conv.input.channels,
            outputs: conv.output.channels,
            kernel: conv.kernel,
            stride: conv.stride,
            padding: conv.padding,
        };
        let known = self.convs[conv.index].take();
        let known = known.filter(|c| *c.kernel.shape() == shape && c.weight == conv.weight);
        let mut packed = known.unwrap_or_else(|| PackedConv {
            kernel: ConvKernel::new(shape, self.isa),
            weight: conv.weight,
            stale: true,
        });
        if packed.stale {
            packed
                .kernel
                .set_weights(&self.weights[conv.weight.range()]);
            packed.stale = false;
        }
        packed
    }

    fn arena_mut(&mut self, arena: Arena) -> &mut Vec<f32> {
        match arena {
            Arena::Weights => &mut self.weights,
            Arena::Gradients => &mut self.gradients,
            Arena::State => &mut self.state,
            Arena::SecondState => &mut self.second_state,
            Arena::Statistics => &mut self.statistics,
            Arena::Moments => &mut self.moments,
        }
    }

    /// Packed weights inside this range are out of date.
    fn changed(&mut self, span: Span) {
        let end = span.offset + span.len;
        for conv in self.convs.iter_mut().flatten() {
            let w = conv.weight;
            conv.stale |= w.offset < end && span.offset < w.offset + w.len;
        }
    }

    fn conv_forward_now(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer) {
        let mut packed = self.packed(conv);
        let mut result = self.take(y);
        let source = &self.rings[x.0 as usize];
        let operand = if source.has_bits() {
            Operand::Spikes(source.bits(t))
        } else {
            Operand::Real(source.plain(t, conv.samples * conv.input.elements()))
        };
        let bias = conv.bias.map(|b| &self.weights[b.range()]);
        let target = result.plain_mut(t, conv.samples * conv.output.elements());
        let scratch = &mut self.scratch.conv;
        packed
            .kernel
            .forward(conv.samples, operand, bias, target, scratch);
        self.put(y, Some(result));
        self.convs[conv.index] = Some(packed);
    }

    fn conv_data_gradient_now(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut) {
        let mut packed = self.packed(conv);
        let mut result = self.take(dx.buffer);
        let (len_x, len_y) = (
            conv.samples * conv.input.elements(),
            conv.samples * conv.output.elements(),
        );
        packed.kernel.data_gradient(
            conv.samples * dy.steps.len,
            self.rings[dy.buffer.0 as usize].window(dy.steps, len_y),
            result.window_mut(dy.steps, len_x),
            dx.accumulate,
            &mut self.scratch.conv,
        );
        self.put(dx.buffer, Some(result));
        self.convs[conv.index] = Some(packed);
    }

    fn conv_weight_gradient_now(&mut self, conv: &Conv, x: Buffer, dy: Errors) {
        let mut packed = self.packed(conv);
        let samples = conv.samples * dy.steps.len;
        let source = &self.rings[x.0 as usize];
        let operand = if source.has_bits() {
            Operand::Spikes(source.bits_window(dy.steps))
        } else {
            Operand::Real(source.window(dy.steps, conv.samples * conv.input.elements()))
        };
        let len_y = conv.samples * conv.output.elements();
        let dy = self.rings[dy.buffer.0 as usize].window(dy.steps, len_y);
        let dw = &mut self.gradients[conv.weight.range()];
        let scratch = &mut self.scratch.conv;
        packed
            .kernel
            .weight_gradient(samples, operand, dy, dw, scratch);
        if let Some(bias) = conv.bias {
            let positions = samples * conv.output.pixels();
            bias_gradient(positions, dy, &mut self.gradients[bias.range()]);
        }
        self.convs[conv.index] = Some(packed);
    }
}

impl Kernels for CpuKernels {
    fn name(&self) -> String {
        let threads = self.pool.current_num_threads();
        format!("cpu ({}, {threads} threads)", self.isa)
    }

    fn bytes(&self, spec: &BufferSpec) -> u64 {
        ring::bytes(spec)
    }

    fn allocate(&mut self, spec: &BufferSpec) -> Buffer {
        self.rings.push(Ring::new(spec));
        Buffer(u32::try_from(self.rings.len() - 1).expect("fewer than 2^32 buffers"))
    }

    fn allocate_arenas(&mut self, sizes: ArenaSizes) {
        let state = |wanted: bool| if wanted { sizes.parameters } else { 0 };
        self.weights = vec![0.0; sizes.parameters];
        self.gradients = vec![0.0; state(sizes.states > 0)];
        self.state = vec![0.0; state(sizes.states > 0)];
        self.second_state = vec![0.0; state(sizes.states > 1)];
        self.statistics = vec![0.0; sizes.statistics];
        self.moments = vec![0.0; sizes.moments];
    }

    fn run(&mut self, body: &mut (dyn FnMut(&mut dyn Kernels) + Send)) {
        self.on_pool(|kernels| body(kernels));
    }

    fn repeat(
        &mut self,
        _: Repeat,
        _: usize,
        _: Option<Step>,
        body: &mut dyn FnMut(&mut dyn Kernels),
    ) {
        body(self);
    }

    fn in_between(&mut self, call: &mut dyn FnMut(&mut dyn Kernels)) {
        call(self);
    }

    fn write(&mut self, buffer: Buffer, t: usize, values: &[f32]) {
        let ring = &mut self.rings[buffer.0 as usize];
        if ring.has_plain() {
            ring.plain_mut(t, values.len()).copy_from_slice(values);
        }
        ring.pack(t, values);
    }

    fn read(&mut self, buffer: Buffer, t: usize, values: &mut [f32]) {
        self.rings[buffer.0 as usize].read(t, values);
    }

    fn write_arena(&mut self, arena: Arena, offset: usize, values: &[f32]) {
        self.arena_mut(arena)[offset..offset + values.len()].copy_from_slice(values);
        if arena == Arena::Weights {
            let len = values.len();
            self.changed(Span { offset, len });
        }
    }

    fn read_arena(&mut self, arena: Arena, offset: usize, values: &mut [f32]) {
        values.copy_from_slice(&self.arena_mut(arena)[offset..offset + values.len()]);
    }

    fn conv_forward(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer) {
        self.on_pool(|k| k.conv_forward_now(conv, t, x, y));
    }

    fn conv_data_gradient(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut) {
        self.on_pool(|k| k.conv_data_gradient_now(conv, dy, dx));
    }

    fn conv_weight_gradient(&mut self, conv: &Conv, x: Buffer, dy: Errors) {
        self.on_pool(|k| k.conv_weight_gradient_now(conv, x, dy));
    }

    fn norm_moments(&mut self, layer: &NormLif, t: usize) {
        self.on_pool(|k| k.norm_moments_now(layer, t));
    }

    fn norm_lif_forward(&mut self, layer: &NormLif, t: usize, phase: Phase) {
        self.on_pool(|k| k.norm_lif_forward_now(layer, t, phase));
    }

    fn apply_moments(&mut self, norm: &Norm, count: u64) {
        self.apply_moments_now(norm, count);
    }

    fn norm_lif_backward(&mut self, layer: &NormLif, window: Window, errors: &NormLifErrors) {
        self.on_pool(|k| k.norm_lif_backward_now(layer, window, errors));
    }

    fn norm_backward(&mut self, layer: &NormLif, steps: Window, dz: ErrorsOut) {
        self.on_pool(|k| k.norm_backward_now(layer, steps, dz));
    }

    fn pool_forward(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer) {
        self.on_pool(|k| k.pool_forward_now(pool, t, x, y));
    }

    fn pool_backward(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut) {
        self.on_pool(|k| k.pool_backward_now(pool, dy, dx));
    }

    fn flatten_forward(&mut self, samples: usize, input: Shape, t: usize, x: Buffer, y: Buffer) {
        self.on_pool(|k| k.flatten_forward_now(samples, input, t, x, y));
    }

    fn flatten_backward(&mut self, samples: usize, input: Shape, dy: Errors, dx: ErrorsOut) {
        self.on_pool(|k| k.flatten_backward_now(samples, input, dy, dx));
    }

    fn dropout_mask(&mut self, dropout: &Dropout, t: usize, key: u64) {
        self.on_pool(|k| k.dropout_mask_now(dropout, t, key));
    }

    fn dropout_forward(&mut self, d: &Dropout, t: usize, phase: Phase, x: Buffer, y: Buffer) {
        self.on_pool(|k| k.dropout_forward_now(d, t, phase, x, y));
    }

    fn dropout_backward(&mut self, dropout: &Dropout, dy: Errors, dx: ErrorsOut) {
        self.on_pool(|k| k.dropout_backward_now(dropout, dy, dx));
    }

    fn residual_forward(&mut self, residual: &Residual, t: usize) {
        self.on_pool(|k| k.residual_forward_now(residual, t));
    }

    fn residual_backward(
        &mut self,
        residual: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    ) {
        self.on_pool(|k| k.residual_backward_now(residual, dy, da, db));
    }

    fn write_labels(&mut self, labels: &[u32]) {
        self.labels.clear();
        self.labels.extend_from_slice(labels);
    }

    fn loss(&mut self, loss: &Loss, t: usize, logits: Buffer, dlogits: Option<Buffer>) {
        self.loss_now(loss, t, logits, dlogits);
    }

    fn update(&mut self, span: Span, step: Step) {
        self.on_pool(|k| k.update_now(span, None, step));
        self.changed(span);
    }

    fn update_from(&mut self, span: Span, gradients: &[f32], step: Step) {
        assert_eq!(gradients.len(), span.len, "a gradient for every weight");
        self.on_pool(|k| k.update_now(span, Some(gradients), step));
        self.changed(span);
    }

    fn zero(&mut self, buffer: Buffer, samples: usize, shape: Shape, t: usize) {
        self.zero_now(buffer, samples, shape, t);
    }

    fn poll_fault(&mut self) -> Option<usize> {
        self.fault
    }

    fn is_finite(&mut self, buffer: Buffer, t: usize) -> bool {
        self.rings[buffer.0 as usize].is_finite(t)
    }

    fn arena_is_finite(&mut self, arena: Arena, span: Span) -> bool {
        self.arena_mut(arena)[span.range()]
            .iter()
            .all(|v| v.is_finite())
    }

    fn take_report(&mut self) -> Report {
        self.fault = None;
        self.count_all_silent();
        let fresh = Report {
            silent: vec![0; self.report.silent.len()],
            observed: vec![0; self.report.observed.len()],
            spikes: vec![0; self.report.spikes.len()],
            neurons: vec![0; self.report.neurons.len()],
            loss: vec![0.0; self.report.loss.len()],
            correct: vec![0; self.report.correct.len()],
            samples: vec![0; self.report.samples.len()],
            batches: vec![0; self.report.batches.len()],
        };
        std::mem::replace(&mut self.report, fresh)
    }
}
