//! What the engine calls: [`Kernels`] of [`CudaKernels`]. Where a call is more than some lines, another file has them.

use super::CudaKernels;
use super::arenas::Arenas;
use super::values::{Type, Values};
use super::{Interface, Precision, Purpose};
use crate::kernel::{
    Arena, ArenaSizes, Buffer, BufferSpec, Conv, DeviceArenas, DeviceMemory, Dropout, Errors,
    ErrorsOut, Failure, Kernels, Loss, Norm, NormLif, NormLifErrors, Phase, Pictures, Pool, Repeat,
    Report, Residual, Shortage, Span, Step, Window,
};
use crate::shape::Shape;

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
            graphs: self.num_graphs(),
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
