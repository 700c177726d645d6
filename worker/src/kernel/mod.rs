//! The seam between the engine and the hardware: the operations of one time step.
//!
//! A back end owns its memory; the engine names pieces of it by handles ([`Buffer`]) and never sees
//! where they live, so the same calls drive host slices, burn tensors and device memory. The trait
//! is object safe: the back end is chosen at run time.
//!
//! # Layout
//!
//! - this file: the trait [`Kernels`].
//! - `memory`: buffers and arenas. `steps`: time steps, windows, errors. `report`: what is told.
//! - [`layers`]: the descriptions of operations that it takes.
//! - [`pictures`]: input as bytes, and what is done to it.
//! - [`mod@reference`]: every operation in plain burn tensors. It is the definition.
//! - [`cpu`]: slices, threads and vectors; spikes as bits.
//! - `cuda`: NVIDIA GPUs, with the feature `cuda`.
//! - `without`: what `cuda` can do without, to measure it.
//!
//! # Time
//!
//! A buffer is a ring of slots; what belongs to time step t lies in slot t mod (number of slots). A
//! [`Window`] names the newest time steps; operations without time take all of them as one batch.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod layers;
mod memory;
pub mod pictures;
pub mod reference;
mod report;
mod steps;
mod without;

use crate::shape::Shape;
pub use layers::{
    Conv, Dropout, Lif, Loss, Neuron, Norm, NormLif, NormLifErrors, Norms, Pool, PoolKind, Reset,
    Residual, Step,
};
pub use memory::{
    Arena, ArenaSizes, Buffer, BufferSpec, DeviceArenas, DeviceMemory, Shortage, Span,
};
pub use pictures::{Change, Pictures};
pub use report::{Failure, Report};
pub use steps::{Errors, ErrorsOut, Phase, Repeat, Window};
pub use without::Without;

/// The operations of one time step. Several implementations, one test suite; `reference` is the
/// definition.
///
/// # Shapes
/// Values are `[N, H, W, C]`, vectors `[N, 1, 1, C]`; convolution weights OIHW.
///
/// # Panics
/// Every call panics on a buffer or range that this back end does not have, or on shapes that do
/// not fit: the engine's plan is at fault then, not the user.
pub trait Kernels: Send {
    /// The name of the back end, for tables: `cpu (avx512, 2 threads)`.
    fn name(&self) -> String;

    /// Bytes that a buffer takes, without allocating it.
    fn bytes(&self, spec: &BufferSpec) -> u64;

    /// Allocates a buffer, all zero. A plain buffer may serve, one after the other, any values whose
    /// slots are not larger than its own: errors do.
    fn allocate(&mut self, spec: &BufferSpec) -> Buffer;

    /// Allocates the arenas, all zero. Called once.
    fn allocate_arenas(&mut self, sizes: ArenaSizes);

    /// Runs `body` where the back end's calls are cheapest (for the CPU: inside its threads).
    fn run(&mut self, body: &mut (dyn FnMut(&mut dyn Kernels) + Send));

    /// Runs `body`, time step `t` of a batch, which makes the same calls on the same slots whenever `what` is
    /// the same, but for the number t and those of `step`: the update that it makes, if it makes one. A back
    /// end may do again what `body` did before: it calls it then once more, or not at all, or so that its calls
    /// do nothing but those of [`Kernels::in_between`]; what `body` shall do besides must not matter. What is
    /// written to the device is written before, or in between.
    fn repeat(
        &mut self,
        what: Repeat,
        t: usize,
        step: Option<Step>,
        body: &mut dyn FnMut(&mut dyn Kernels),
    );

    /// Runs `call` between what was called before and what is called after, each time that a
    /// [`Kernels::repeat`] in which it stands is done: for what is not the back end's own work, such as
    /// averages over ranks, and for what the host reads and writes. Calls for it must be made in every
    /// repetition and in the same order, until something fails.
    fn in_between(&mut self, call: &mut dyn FnMut(&mut dyn Kernels));

    /// Copies one slot from the host: `[N, H, W, C]`, in every form that is stored.
    fn write(&mut self, buffer: Buffer, t: usize, values: &[f32]);

    /// Whether input is best given as bytes, because this back end makes values of them where it keeps
    /// them.
    fn takes_pictures(&self) -> bool {
        false
    }

    /// As [`Kernels::write`], of the values that pictures become: [`Pictures::values`], whose bits every
    /// back end gives.
    fn write_pictures(&mut self, buffer: Buffer, t: usize, pictures: &Pictures<'_>) {
        self.write(buffer, t, &pictures.values());
    }

    /// Copies one slot to the host, from the form that is stored. Waits.
    fn read(&mut self, buffer: Buffer, t: usize, values: &mut [f32]);

    /// Copies into an arena from the host.
    fn write_arena(&mut self, arena: Arena, offset: usize, values: &[f32]);

    /// Copies out of an arena to the host. Waits.
    fn read_arena(&mut self, arena: Arena, offset: usize, values: &mut [f32]);

    /// y = conv(x) + bias at time step t.
    fn conv_forward(&mut self, conv: &Conv, t: usize, x: Buffer, y: Buffer);

    /// dx = conv^T(dy) with the weights of now, for the steps of `dy`.
    fn conv_data_gradient(&mut self, conv: &Conv, dy: Errors, dx: ErrorsOut);

    /// Writes dW, from the inputs saved when the steps ran, and db, summed over the steps of `dy`
    /// (Algorithm 1, line 18).
    fn conv_weight_gradient(&mut self, conv: &Conv, x: Buffer, dy: Errors);

    /// The moments of this share at time step t, from z to [`Arena::Moments`]: what comes before
    /// [`Kernels::norm_lif_forward`] in training where norms are synchronised.
    ///
    /// # Panics
    /// If the layer has no norm.
    fn norm_moments(&mut self, layer: &NormLif, t: usize);

    /// Norm, neurons and sums at time step t; at t = 0 the state before is u = s = 0.
    ///
    /// In training, by [`Norm::across`]: with one rank, running statistics move; pooled, the moments
    /// of this share go to [`Arena::Moments`] instead; synchronised, those that lie there, of all
    /// ranks, are what it normalises with.
    fn norm_lif_forward(&mut self, layer: &NormLif, t: usize, phase: Phase);

    /// Moves the running statistics of a norm by the moments of all ranks in [`Arena::Moments`];
    /// `count` is the number of values per channel that they are of, samples times pixels. Once per
    /// time step.
    fn apply_moments(&mut self, norm: &Norm, count: u64);

    /// Their backward over the window (Algorithm 1, line 17) and, from each step's saved moments,
    /// through batch norm; writes the gradients of gamma and beta, of this rank's share.
    ///
    /// Errors go to all steps of the window if there are neurons and something arrived at `out`;
    /// else to the steps of `errors.y`.
    ///
    /// Where norms are synchronised it stops before the error of z: it leaves its sums of each step
    /// in [`Norm::sums`], and g inside the back end for [`Kernels::norm_backward`], which must be
    /// the next call but for reading and writing those sums.
    fn norm_lif_backward(&mut self, layer: &NormLif, window: Window, errors: &NormLifErrors);

    /// The rest of a synchronised norm's backward, for the steps for which it has errors: the error
    /// of z, from what [`Norm::sums`] holds now.
    ///
    /// What it has to hold: the mean of the ranks' sums, weighted by their shares of the samples.
    /// Say rank r has `n_r` of B samples, of P pixels each. Its loss is the mean over its own, so
    /// that the loss over all is the mean of the ranks' with weights `n_r/B`, and with G for the
    /// error of that loss, `g = (B/n_r) G`. One rank with all samples would compute
    /// `gamma inv (G - mean(G) - xhat mean(G xhat))`, means over B P values; rank r needs `B/n_r`
    /// times this. Of `S_r`, the sum of g on rank r, `mean(G) = (1/(B P)) sum_r (n_r/B) S_r`, hence
    /// `(B/n_r) mean(G) = (1/(n_r P)) sum_r (n_r/B) S_r`: the weighted mean of the sums, divided by
    /// the number of this rank's own values, as without other ranks. The same holds for g xhat. The
    /// gradients of gamma and beta stay sums over the share: like all gradients they become those
    /// of one rank when they are averaged with these weights.
    ///
    /// # Panics
    /// If the layer has no synchronised norm.
    fn norm_backward(&mut self, layer: &NormLif, steps: Window, dz: ErrorsOut);

    /// y = pool(x) at time step t.
    fn pool_forward(&mut self, pool: &Pool, t: usize, x: Buffer, y: Buffer);

    /// dx from dy.
    fn pool_backward(&mut self, pool: &Pool, dy: Errors, dx: ErrorsOut);

    /// `[N, H, W, C]` to `[N, 1, 1, C H W]` in the order of C, H, W.
    fn flatten_forward(&mut self, samples: usize, input: Shape, t: usize, x: Buffer, y: Buffer);

    /// The way back.
    fn flatten_backward(&mut self, samples: usize, input: Shape, dy: Errors, dx: ErrorsOut);

    /// Draws the mask of time step t: element i is kept if [`dropout_keeps`]`(key, first + i, p)`,
    /// `first` being [`Dropout::first_element`].
    fn dropout_mask(&mut self, dropout: &Dropout, t: usize, key: u64);

    /// y = x mask in training, y = x in evaluation.
    fn dropout_forward(&mut self, d: &Dropout, t: usize, phase: Phase, x: Buffer, y: Buffer);

    /// dx = dy mask, each step with its own mask.
    fn dropout_backward(&mut self, dropout: &Dropout, dy: Errors, dx: ErrorsOut);

    /// y = join(a, b) at time step t.
    fn residual_forward(&mut self, residual: &Residual, t: usize);

    /// da and db, with the a and b of each step; either may be unwanted.
    fn residual_backward(
        &mut self,
        residual: &Residual,
        dy: Errors,
        da: Option<ErrorsOut>,
        db: Option<ErrorsOut>,
    );

    /// Copies the labels of a batch; `u32::MAX` marks a sample that counts for nothing.
    fn write_labels(&mut self, labels: &[u32]);

    /// The loss of time step t from its logits, and its gradient where wanted; counts what is right.
    ///
    /// The mean is over labelled samples.
    fn loss(&mut self, loss: &Loss, t: usize, logits: Buffer, dlogits: Option<Buffer>);

    /// Updates a range of the weights from the same range of the gradients.
    fn update(&mut self, span: Span, step: Step);

    /// Weights that are best updated at once, at least: where a call costs as much as what it does,
    /// small ranges wait for the next ones. With 1 each range is updated while it is in a cache.
    fn update_grain(&self) -> usize {
        1
    }

    /// Copies a range of [`Arena::Gradients`] to the host, for [`Kernels::update_from`]: in the back end's own
    /// order, which may differ from that of [`Kernels::read_arena`] and is the same on all ranks of its kind.
    /// Waits.
    fn read_gradients(&mut self, offset: usize, values: &mut [f32]) {
        self.read_arena(Arena::Gradients, offset, values);
    }

    /// Updates a range of the weights from gradients that are given, such as the means over ranks, in the
    /// order of [`Kernels::read_gradients`]. What the same range of [`Arena::Gradients`] holds then is not
    /// said.
    ///
    /// # Panics
    /// If there are not as many gradients as the range has numbers.
    fn update_from(&mut self, span: Span, gradients: &[f32], step: Step) {
        assert_eq!(gradients.len(), span.len, "a gradient for every weight");
        self.write_arena(Arena::Gradients, span.offset, gradients);
        self.update(span, step);
    }

    /// Where what ranks average lies, if that is the memory of a GPU: the numbers are then averaged in
    /// place, in the order of the stream, and [`Kernels::update`] takes the means from there. Nothing if
    /// it is the host's memory.
    fn device_arenas(&self) -> Option<DeviceArenas> {
        None
    }

    /// The address of a slot of f32 numbers, as [`DeviceArenas`] has those of arenas; nothing where there are
    /// none.
    fn device_slot(&self, buffer: Buffer, t: usize) -> Option<u64> {
        let _ = (buffer, t);
        None
    }

    /// Rounds a range of the gradients times a factor to bf16 (to the nearest, ties to even), at the same
    /// place of [`DeviceArenas::wire`].
    ///
    /// # Panics
    /// If this back end has no such place.
    fn round_to_wire(&mut self, span: Span, factor: f32) {
        let _ = (span, factor);
        unreachable!("{} has no numbers on their way between GPUs", self.name());
    }

    /// The way back: the range of the gradients holds these numbers as f32.
    ///
    /// # Panics
    /// If this back end has no such place.
    fn widen_from_wire(&mut self, span: Span) {
        let _ = span;
        unreachable!("{} has no numbers on their way between GPUs", self.name());
    }

    /// Zeroes the errors of one time step: for a value of whose readers some handed down an error
    /// for the newest step alone and others for the whole window.
    fn zero(&mut self, buffer: Buffer, samples: usize, shape: Shape, t: usize);

    /// The first time step since the last report of which the loss or a membrane potential was not
    /// finite: neurons turn NaN into silence, so the loss alone would not show it. A device that
    /// would have to wait may answer late, with a report at the latest; where it does, weights have not
    /// been updated since.
    fn poll_fault(&mut self) -> Option<usize>;

    /// Whether everything in one slot is finite. Waits.
    fn is_finite(&mut self, buffer: Buffer, t: usize) -> bool;

    /// Whether a range of an arena is finite. Waits.
    fn arena_is_finite(&mut self, arena: Arena, span: Span) -> bool;

    /// The sums since the last report; they start again from zero. Waits.
    fn take_report(&mut self) -> Report;

    /// Bytes that buffers may still take, where it is not the machine's memory that they take.
    fn available_bytes(&self) -> Option<u64> {
        None
    }

    /// Memory of a device of its own that this back end has taken; nothing where it is the machine's.
    fn device_memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// Waits until all that was called is done; a back end whose calls return when they are done has
    /// nothing to wait for.
    fn wait(&mut self) {}

    /// Why the back end can compute no more, if so: a device that is lost, memory that is not there.
    /// Whatever was called since did nothing.
    fn failure(&mut self) -> Option<Failure> {
        None
    }

    /// What memory was not there for, if [`Kernels::failure`] is that: of a whole batch, once all its calls
    /// were made.
    fn shortage(&self) -> Option<Shortage> {
        None
    }
}

/// Whether dropout keeps element `index` of a slot: every back end draws the same masks.
///
/// A counter-based draw: the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) over key and
/// index, its upper 24 bits as a number in [0, 1).
pub fn dropout_keeps(key: u64, index: u64, p: f32) -> bool {
    let mut z = key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let uniform = (z >> 40) as u32 as f32 / 16_777_216.0;
    uniform >= p
}
