//! A back end whose gradients and moments lie on a GPU while all else is computed by the definition: it
//! copies what it has computed there, and back before it updates. So the whole way of an exchange between
//! GPUs can be held against that through the host, to the bit.

use synfire::collective::bf16;
use synfire::kernel::cuda::device::{Device, Memory, Pointer};
use synfire::kernel::reference::ReferenceKernels;
use synfire::kernel::{
    Arena, ArenaSizes, Buffer, BufferSpec, Conv, DeviceArenas, Dropout, Errors, ErrorsOut, Kernels,
    Loss, Norm, NormLif, NormLifErrors, Norms, Phase, Pool, Report, Residual, Span, Step, Window,
};
use synfire::shape::Shape;

pub(super) struct Gpu {
    inner: ReferenceKernels,
    memory: Option<Memories>,
    device: Device,
}

struct Memories {
    gradients: Memory,
    moments: Memory,
    wire: Memory,
}

fn place(memory: &Memory, offset: usize, width: usize) -> Pointer {
    memory.pointer().offset((offset * width) as u64)
}

impl Gpu {
    pub(super) fn new(device: Device) -> Self {
        let inner = ReferenceKernels::new();
        let memory = None;
        Self {
            inner,
            memory,
            device,
        }
    }

    fn memory(&self) -> &Memories {
        self.memory.as_ref().expect("arenas are allocated first")
    }

    fn place_of(&self, arena: Arena) -> &Memory {
        if arena == Arena::Moments {
            &self.memory().moments
        } else {
            &self.memory().gradients
        }
    }

    fn lift(&mut self, arena: Arena, span: Span) {
        let mut values = vec![0.0; span.len];
        self.inner.read_arena(arena, span.offset, &mut values);
        let memory = self.place_of(arena);
        self.device
            .write_values(place(memory, span.offset, 4), &values);
    }

    fn fetch(&mut self, arena: Arena, span: Span) {
        let mut values = vec![0.0; span.len];
        let memory = self.place_of(arena);
        self.device
            .read_values(place(memory, span.offset, 4), &mut values);
        self.inner.write_arena(arena, span.offset, &values);
    }
}

impl Kernels for Gpu {
    fn device_arenas(&self) -> Option<DeviceArenas> {
        Some(DeviceArenas {
            ordinal: self.device.ordinal(),
            stream: self.device.stream(),
            gradients: self.memory().gradients.pointer().0,
            moments: self.memory().moments.pointer().0,
            wire: self.memory().wire.pointer().0,
        })
    }

    fn round_to_wire(&mut self, span: Span, factor: f32) {
        let mut values = vec![0.0_f32; span.len];
        self.device
            .read_values(place(&self.memory().gradients, span.offset, 4), &mut values);
        let rounded: Vec<u16> = values.iter().map(|v| bf16::to_bf16(v * factor)).collect();
        self.device
            .write_values(place(&self.memory().wire, span.offset, 2), &rounded);
    }

    fn widen_from_wire(&mut self, span: Span) {
        let mut rounded = vec![0_u16; span.len];
        self.device
            .read_values(place(&self.memory().wire, span.offset, 2), &mut rounded);
        let values: Vec<f32> = rounded.into_iter().map(bf16::from_bf16).collect();
        self.device
            .write_values(place(&self.memory().gradients, span.offset, 4), &values);
    }

    fn allocate_arenas(&mut self, sizes: ArenaSizes) {
        self.inner.allocate_arenas(sizes);
        let memory = |bytes: usize| self.device.allocate(bytes.max(256) as u64).expect("memory");
        self.memory = Some(Memories {
            gradients: memory(4 * sizes.parameters),
            moments: memory(4 * sizes.moments),
            wire: memory(2 * sizes.parameters),
        });
    }

    fn conv_weight_gradient(&mut self, conv: &Conv, x: Buffer, dy: Errors) {
        self.inner.conv_weight_gradient(conv, x, dy);
        self.lift(Arena::Gradients, conv.weight);
        if let Some(bias) = conv.bias {
            self.lift(Arena::Gradients, bias);
        }
    }

    fn norm_lif_forward(&mut self, layer: &NormLif, t: usize, phase: Phase) {
        self.inner.norm_lif_forward(layer, t, phase);
        if let (Some(norm), Phase::Train) = (layer.norm, phase)
            && norm.across == Norms::Pooled
        {
            self.lift(Arena::Moments, norm.running_mean);
            self.lift(Arena::Moments, norm.running_var);
        }
    }

    fn apply_moments(&mut self, norm: &Norm, count: u64) {
        self.fetch(Arena::Moments, norm.running_mean);
        self.fetch(Arena::Moments, norm.running_var);
        self.inner.apply_moments(norm, count);
    }

    fn norm_lif_backward(&mut self, layer: &NormLif, window: Window, errors: &NormLifErrors) {
        self.inner.norm_lif_backward(layer, window, errors);
        if let Some(norm) = layer.norm {
            self.lift(Arena::Gradients, norm.gamma);
            self.lift(Arena::Gradients, norm.beta);
        }
    }

    fn update(&mut self, span: Span, step: Step) {
        self.fetch(Arena::Gradients, span);
        self.inner.update(span, step);
    }

    fn run(&mut self, body: &mut (dyn FnMut(&mut dyn Kernels) + Send)) {
        body(self);
    }

    // All else is the definition's.

    fn name(&self) -> String {
        "the definition, its gradients on a GPU".into()
    }
    fn bytes(&self, spec: &BufferSpec) -> u64 {
        self.inner.bytes(spec)
    }
    fn allocate(&mut self, spec: &BufferSpec) -> Buffer {
        self.inner.allocate(spec)
    }
    fn write(&mut self, buffer: Buffer, t: usize, values: &[f32]) {
        self.inner.write(buffer, t, values);
    }
    fn read(&mut self, buffer: Buffer, t: usize, values: &mut [f32]) {
        self.inner.read(buffer, t, values);
    }
    fn write_arena(&mut self, arena: Arena, offset: usize, values: &[f32]) {
        self.inner.write_arena(arena, offset, values);
    }
    fn read_arena(&mut self, arena: Arena, offset: usize, values: &mut [f32]) {
        self.inner.read_arena(arena, offset, values);
    }
    fn conv_forward(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer) {
        self.inner.conv_forward(conv, t, x, y);
    }
    fn conv_data_gradient(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut) {
        self.inner.conv_data_gradient(conv, dy, dx);
    }
    fn norm_moments(&mut self, layer: &NormLif, t: usize) {
        self.inner.norm_moments(layer, t);
    }
    fn norm_backward(&mut self, layer: &NormLif, steps: Window, dz: ErrorsOut) {
        self.inner.norm_backward(layer, steps, dz);
    }
    fn pool_forward(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer) {
        self.inner.pool_forward(pool, t, x, y);
    }
    fn pool_backward(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut) {
        self.inner.pool_backward(pool, dy, dx);
    }
    fn flatten_forward(&mut self, samples: usize, input: Shape, t: usize, x: Buffer, y: Buffer) {
        self.inner.flatten_forward(samples, input, t, x, y);
    }
    fn flatten_backward(&mut self, samples: usize, input: Shape, dy: Errors, dx: ErrorsOut) {
        self.inner.flatten_backward(samples, input, dy, dx);
    }
    fn dropout_mask(&mut self, dropout: &Dropout, t: usize, key: u64) {
        self.inner.dropout_mask(dropout, t, key);
    }
    fn dropout_forward(&mut self, d: &Dropout, t: usize, phase: Phase, x: Buffer, y: Buffer) {
        self.inner.dropout_forward(d, t, phase, x, y);
    }
    fn dropout_backward(&mut self, dropout: &Dropout, dy: Errors, dx: ErrorsOut) {
        self.inner.dropout_backward(dropout, dy, dx);
    }
    fn residual_forward(&mut self, residual: &Residual, t: usize) {
        self.inner.residual_forward(residual, t);
    }
    fn residual_backward(
        &mut self,
        residual: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    ) {
        self.inner.residual_backward(residual, dy, da, db);
    }
    fn write_labels(&mut self, labels: &[u32]) {
        self.inner.write_labels(labels);
    }
    fn loss(&mut self, loss: &Loss, t: usize, logits: Buffer, dlogits: Option<Buffer>) {
        self.inner.loss(loss, t, logits, dlogits);
    }
    fn zero(&mut self, buffer: Buffer, samples: usize, shape: Shape, t: usize) {
        self.inner.zero(buffer, samples, shape, t);
    }
    fn poll_fault(&mut self) -> Option<usize> {
        self.inner.poll_fault()
    }
    fn is_finite(&mut self, buffer: Buffer, t: usize) -> bool {
        self.inner.is_finite(buffer, t)
    }
    fn arena_is_finite(&mut self, arena: Arena, span: Span) -> bool {
        self.inner.arena_is_finite(arena, span)
    }
    fn take_report(&mut self) -> Report {
        self.inner.take_report()
    }
}
