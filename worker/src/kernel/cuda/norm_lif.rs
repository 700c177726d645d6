//! Norm, sums with shortcuts, neurons: forward, and backward over a window.

use super::arguments::{
    CountSilent, EndCount, NormFrom, NormGradients, NormLifBackward, NormLifBackwardSums,
    NormLifForward, NormStatistics, NormSums, Shared, norm_use,
};
use super::device::Pointer;
use super::values::{
    FORWARD_WIDTH, MAX_STEPS, MERGE_CHANNELS, QUAD, Ring, TILE_THREADS, Tile, Type, Values, narrow,
};
use super::{CudaKernels, Purpose};
use crate::kernel::{
    Arena, Buffer, Errors, ErrorsOut, Lif, Neuron, Norm, NormLif, NormLifErrors, Norms, Phase,
    Window,
};

/// A layer whose errors below wait for the sums of other ranks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    window: Window,
    errors: NormLifErrors,
}

/// Sizes of a layer.
#[derive(Clone, Copy)]
struct Size {
    elements: usize,
    rows: usize,
    channels: usize,
}

fn size(layer: &NormLif) -> Size {
    Size {
        elements: layer.samples * layer.shape.elements(),
        rows: layer.samples * layer.shape.pixels(),
        channels: layer.shape.channels,
    }
}

/// Where a layer's backward reads and writes.
struct Rings {
    z: Ring,
    u: Ring,
    out: Ring,
    y: Ring,
    dz: Ring,
    before: Ring,
    after: Ring,
    moments: Ring,
    sums: Ring,
}

/// So many steps of these errors, newest first, lie in a window that begins `skipped` steps earlier.
fn arrived(errors: Option<Errors>, skipped: usize, steps: usize) -> usize {
    let len = errors.map_or(0, |errors| errors.steps.len);
    len.saturating_sub(skipped).min(steps)
}

impl CudaKernels {
    /// The place of a time step's mean and 1/std.
    fn moments(&self, norm: &Norm, channels: usize, t: usize) -> Pointer {
        self.rooms.slot(norm.moments, 2 * channels, t).at
    }

    fn running(&self, norm: &Norm) -> [Pointer; 2] {
        [norm.running_mean, norm.running_var]
            .map(|span| self.arenas().pointer(Arena::Statistics, span.offset))
    }

    /// Where mean and variance of all ranks travel.
    fn shared(&self, norm: &Norm) -> Shared {
        let at = |offset| self.arenas().pointer(Arena::Moments, offset);
        Shared {
            d: at(norm.running_mean.offset),
            q: at(norm.running_var.offset),
        }
    }

    /// Mean and variance of z at one time step, put to these uses.
    fn statistics(&mut self, layer: &NormLif, norm: &Norm, t: usize, uses: u32) {
        let Size {
            elements,
            rows,
            channels,
        } = size(layer);
        let z = self.rooms.slot(layer.z, elements, t);
        let tile = Tile::of(rows, channels);
        let partials = self.scratch(Purpose::Partials, 4 * tile.partials(2));
        self.launch_grid(tile.grid(), TILE_THREADS, &NormSums { z, partials, tile });
        let [running_mean, running_var] = self.running(norm);
        let statistics = NormStatistics {
            z,
            partials,
            moments: self.moments(norm, channels, t),
            running_mean,
            running_var,
            shared: if uses & norm_use::SHARE == 0 {
                Shared::NONE
            } else {
                self.shared(norm)
            },
            count: rows as u64,
            blocks: tile.blocks,
            channels: tile.channels,
            uses,
            eps: norm.eps,
            momentum: norm.momentum,
            unused: 0,
        };
        let blocks = tile.channels.div_ceil(MERGE_CHANNELS);
        self.launch_grid([blocks, 1, 1], TILE_THREADS, &statistics);
    }

    /// Mean and 1/std from running statistics or from those of all ranks; or the running ones follow.
    fn statistics_from(
        &self,
        norm: &Norm,
        (moments, shared): (Pointer, Shared),
        uses: u32,
        n: u64,
    ) {
        let [running_mean, running_var] = self.running(norm);
        let from = NormFrom {
            moments,
            running_mean,
            running_var,
            shared,
            count: n,
            channels: narrow(norm.running_mean.len),
            uses,
            eps: norm.eps,
            momentum: norm.momentum,
        };
        self.launch(u64::from(from.channels), &from);
    }

    /// The moments of this share, for the mean over ranks.
    pub(super) fn share_moments(&mut self, layer: &NormLif, t: usize) {
        let norm = layer.norm.expect("only a norm has moments");
        if self.arenas.is_some() {
            self.statistics(layer, &norm, t, norm_use::SHARE);
        }
    }

    /// Running statistics follow those of all ranks.
    pub(super) fn follow_moments(&mut self, norm: &Norm, count: u64) {
        if self.arenas.is_some() {
            let places = (Pointer(0), self.shared(norm));
            self.statistics_from(norm, places, norm_use::FOLLOW, count);
        }
    }

    /// Where a layer is to take mean and 1/std from.
    fn prepare_norm(&mut self, layer: &NormLif, norm: &Norm, t: usize, phase: Phase) -> Pointer {
        let channels = layer.shape.channels;
        if phase == Phase::Evaluate {
            let moments = self.scratch(Purpose::Carry, 8 * channels as u64);
            let places = (moments, Shared::NONE);
            self.statistics_from(norm, places, norm_use::NORMALISE, 0);
            return moments;
        }
        match norm.across {
            Norms::Own => {
                let uses = norm_use::NORMALISE | norm_use::FOLLOW;
                self.statistics(layer, norm, t, uses);
            }
            Norms::Pooled => {
                let uses = norm_use::NORMALISE | norm_use::SHARE;
                self.statistics(layer, norm, t, uses);
            }
            Norms::Synchronised => {
                let places = (self.moments(norm, channels, t), self.shared(norm));
                self.statistics_from(norm, places, norm_use::NORMALISE, 0);
            }
        }
        self.moments(norm, channels, t)
    }

    /// One time step (Algorithm 1, lines 4 to 7).
    pub(super) fn norm_and_fire(&mut self, layer: &NormLif, t: usize, phase: Phase) {
        if self.failure.is_some() {
            return;
        }
        self.tell_time(t);
        let Size {
            elements,
            rows,
            channels,
        } = size(layer);
        let tile = Tile::of(rows, channels);
        let none = Pointer(0);
        let [moments, gamma, beta] = match &layer.norm {
            None => [none; 3],
            Some(norm) => [
                self.prepare_norm(layer, norm, t, phase),
                self.arenas().pointer(Arena::Weights, norm.gamma.offset),
                self.arenas().pointer(Arena::Weights, norm.beta.offset),
            ],
        };
        let [u, u_before] = match &layer.lif {
            None => [none; 2],
            Some(lif) => {
                let at = |t| self.rooms.slot(lif.u, elements, t).at;
                [at(t), if t == 0 { none } else { at(t - 1) }]
            }
        };
        let [alive, counts] = match &layer.lif {
            None => [none; 2],
            Some(lif) => self.counters_of(layer, lif, t),
        };
        let slot = |buffer: Option<Buffer>| match buffer {
            Some(buffer) => self.rooms.slot(buffer, elements, t),
            None => Values::NONE,
        };
        let forward = NormLifForward {
            z: slot(Some(layer.z)),
            before: slot(layer.before),
            y: slot(layer.y),
            after: slot(layer.after),
            out: slot(layer.out),
            moments,
            gamma,
            beta,
            u,
            u_before,
            alive,
            counts,
            watch: self.counters.watch_words(),
            tile,
            pixels: narrow(layer.shape.pixels()),
            neuron: layer
                .lif
                .map_or_else(Neuron::default, |lif| lif.neuron)
                .into(),
        };
        self.launch_grid(tile.grid_in_turns(FORWARD_WIDTH), TILE_THREADS, &forward);
        for buffer in layer.y.into_iter().chain(layer.out) {
            self.refresh_operand(buffer, elements, t);
        }
    }

    /// Where a layer is counted; at the first time step of a batch it begins anew.
    fn counters_of(&mut self, layer: &NormLif, lif: &Lif, t: usize) -> [Pointer; 2] {
        let neurons = layer.shape.elements();
        let room = self.counters.alive(&self.device, lif.index, neurons);
        let places = match room {
            Ok(places) => places,
            Err(error) => {
                self.fail(error);
                self.lacks(neurons as u64);
                return [Pointer(0); 2];
            }
        };
        if t == 0 {
            self.count_silent(places, neurons);
        }
        places
    }

    /// Counts the neurons of a layer that have been silent since they were last counted.
    pub(super) fn count_silent(&self, [alive, counts]: [Pointer; 2], neurons: usize) {
        let count = CountSilent {
            alive,
            counts,
            neurons: narrow(neurons),
            unused: 0,
        };
        // A few per thread: the largest layers of ImageNet have 10^6.
        let blocks = count.neurons.div_ceil(8 * TILE_THREADS).clamp(1, 512);
        self.launch_grid([blocks, 1, 1], TILE_THREADS, &count);
        self.launch_grid([1, 1, 1], 1, &EndCount(count));
    }

    /// The window, newest time step first (Algorithm 1, lines 12 to 18).
    pub(super) fn back_through_layer(
        &mut self,
        layer: &NormLif,
        window: Window,
        errors: &NormLifErrors,
    ) {
        let waits = layer.norm.is_some_and(|norm| norm.sums.is_some());
        let passes = self.passes(layer, window, errors);
        if let Some(norm) = &layer.norm {
            for (index, pass) in passes.iter().enumerate() {
                self.sum_errors(norm, pass, index > 0);
            }
        }
        if waits && errors.z.is_some() {
            self.waiting = Some(Waiting {
                window,
                errors: *errors,
            });
            return;
        }
        self.write_errors(&passes);
    }

    /// What is left of a synchronised norm, now that its sums are those of all ranks.
    pub(super) fn back_through_norm(&mut self, layer: &NormLif, steps: Window, dz: ErrorsOut) {
        let waiting = self.waiting.take().expect("norm_lif_backward comes before");
        let Waiting { window, errors } = waiting;
        if self.has_failed() {
            return;
        }
        let passes = self.passes(layer, window, &errors);
        let len: usize = passes.iter().map(|pass| pass.steps as usize).sum();
        assert_eq!((len, errors.z), (steps.len, Some(dz)), "the same layer");
        self.write_errors(&passes);
    }

    fn write_errors(&self, passes: &[NormLifBackward]) {
        for pass in passes {
            self.launch_grid(pass.tile.grid_in_turns(QUAD), TILE_THREADS, pass);
        }
    }

    /// The sums of one pass, and the gradients of gamma and beta.
    fn sum_errors(&self, norm: &Norm, pass: &NormLifBackward, accumulate: bool) {
        let tile = pass.tile;
        self.launch_grid(tile.grid(), TILE_THREADS, &NormLifBackwardSums(*pass));
        let gradient = |offset| self.arenas().pointer(Arena::Gradients, offset);
        let gradients = NormGradients {
            partials: pass.partials,
            sums: pass.sums,
            dgamma: gradient(norm.gamma.offset),
            dbeta: gradient(norm.beta.offset),
            blocks: tile.blocks,
            channels: tile.channels,
            steps: pass.steps,
            accumulate: u32::from(accumulate),
        };
        let blocks = tile.channels.div_ceil(MERGE_CHANNELS);
        self.launch_grid([blocks, 1, 1], TILE_THREADS, &gradients);
    }

    /// The window of a layer cut into passes of so many steps as a kernel takes.
    fn passes(
        &mut self,
        layer: &NormLif,
        window: Window,
        errors: &NormLifErrors,
    ) -> Vec<NormLifBackward> {
        let Size {
            elements, channels, ..
        } = size(layer);
        let neurons = layer.lif.is_some() && errors.out.is_some();
        let steps = match (neurons, errors.y) {
            (true, _) => window.len,
            (false, Some(y)) => y.steps.len,
            (false, None) => 0,
        };
        if steps == 0 || self.is_in_vain() {
            return Vec::new();
        }
        let first = self.pass(layer, errors, steps, neurons);
        let own_sums = Ring {
            at: first.sums[0],
            stride: 2 * channels as u64,
            kind: Type::F32,
            slots: narrow(steps),
        };
        let rings = self.rings(layer, errors, neurons, own_sums);
        let carried = 4 * elements as u64;
        let mut passes = Vec::new();
        for (index, skipped) in (0..steps).step_by(MAX_STEPS).enumerate() {
            let len = MAX_STEPS.min(steps - skipped);
            let carry = |index: usize| first.carry_out.offset(carried * index as u64);
            let hands_on = neurons && skipped + len < steps;
            let newest = window.newest - skipped;
            let of_out = arrived(errors.out, skipped, len);
            passes.push(NormLifBackward {
                z: rings.z.steps(newest, len),
                u: rings.u.steps(newest, len),
                out: rings.out.steps(newest, of_out),
                y: rings.y.steps(newest, arrived(errors.y, skipped, len)),
                dz: rings.dz.steps(newest, len),
                before: rings.before.steps(newest, len),
                after: rings.after.steps(newest, of_out),
                moments: rings.moments.steps(newest, len).map(|values| values.at),
                sums: rings.sums.steps(newest, len).map(|values| values.at),
                carry_in: match index {
                    0 => Pointer(0),
                    _ if neurons => carry(index - 1),
                    _ => Pointer(0),
                },
                carry_out: if hands_on { carry(index) } else { Pointer(0) },
                steps: narrow(len),
                ..first
            });
        }
        passes
    }

    /// Where a layer's backward reads and writes; `own_sums` is for what no other rank is asked about.
    fn rings(
        &mut self,
        layer: &NormLif,
        errors: &NormLifErrors,
        neurons: bool,
        own_sums: Ring,
    ) -> Rings {
        let Size { elements, .. } = size(layer);
        // What a convolution below is to read is in its type; what is summed up is f32.
        let out = |to: Option<ErrorsOut>, kind, rooms: &mut super::memory::Rooms| match to {
            Some(to) => rooms.ring_out(to, elements, kind),
            None => Ring::NONE,
        };
        let operands = self.rooms.operands();
        let dz = out(errors.z, operands, &mut self.rooms);
        let before = out(errors.before, Type::F32, &mut self.rooms);
        let after = out(errors.after, Type::F32, &mut self.rooms);
        let rooms = &self.rooms;
        let ring_of = |buffer: Option<Buffer>| match buffer {
            Some(buffer) => rooms.ring(buffer, elements),
            None => Ring::NONE,
        };
        let per_channel = |buffer: Buffer| Ring {
            at: rooms.numbers(buffer),
            slots: narrow(rooms.slots(buffer)),
            ..own_sums
        };
        let arriving = |errors: Option<Errors>| match errors {
            Some(errors) => rooms.ring_in(errors, elements),
            None => Ring::NONE,
        };
        Rings {
            z: ring_of(layer.norm.map(|_| layer.z)),
            u: ring_of(layer.lif.filter(|_| neurons).map(|lif| lif.u)),
            out: arriving(errors.out),
            y: arriving(errors.y),
            dz,
            before,
            after,
            moments: match &layer.norm {
                Some(norm) => per_channel(norm.moments),
                None => Ring::NONE,
            },
            sums: match layer.norm.and_then(|norm| norm.sums) {
                Some(sums) => per_channel(sums),
                None => own_sums,
            },
        }
    }

    /// What all passes of a layer's backward have in common; `sums` and `carry_out` are where
    /// those of all passes begin.
    fn pass(
        &mut self,
        layer: &NormLif,
        errors: &NormLifErrors,
        steps: usize,
        neurons: bool,
    ) -> NormLifBackward {
        let Size {
            elements,
            rows,
            channels,
        } = size(layer);
        let tile = Tile::of(rows, channels);
        let none = Pointer(0);
        let carries = if neurons {
            steps.div_ceil(MAX_STEPS) - 1
        } else {
            0
        };
        let own_sums = 8 * (channels * steps) as u64;
        // Sums first, then what is carried to older steps.
        let carry = own_sums.next_multiple_of(256);
        let scratch = self.scratch(Purpose::Carry, carry + 4 * (elements * carries) as u64);
        let partials = self.scratch(Purpose::Partials, 4 * tile.partials(2 * MAX_STEPS));
        let gamma = match &layer.norm {
            None => none,
            Some(norm) => self.arenas().pointer(Arena::Weights, norm.gamma.offset),
        };
        let accumulates = |to: Option<ErrorsOut>| u32::from(to.is_some_and(|to| to.accumulate));
        let neuron = layer.lif.map_or_else(Neuron::default, |lif| lif.neuron);
        NormLifBackward {
            z: [Values::NONE; MAX_STEPS],
            u: [Values::NONE; MAX_STEPS],
            out: [Values::NONE; MAX_STEPS],
            y: [Values::NONE; MAX_STEPS],
            dz: [Values::NONE; MAX_STEPS],
            before: [Values::NONE; MAX_STEPS],
            after: [Values::NONE; MAX_STEPS],
            moments: [none; MAX_STEPS],
            sums: [scratch; MAX_STEPS],
            gamma,
            partials,
            carry_in: none,
            carry_out: scratch.offset(carry),
            tile,
            count: rows as u64,
            steps: 0,
            neurons: u32::from(neurons),
            dz_accumulates: accumulates(errors.z),
            before_accumulates: accumulates(errors.before),
            after_accumulates: accumulates(errors.after),
            neuron: neuron.into(),
        }
    }
}
