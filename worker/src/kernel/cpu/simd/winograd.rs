//! Winograd's F(4 x 4, 3 x 3) (Lavin, Gray: Fast Algorithms for Convolutional Neural Networks,
//! 2015): a quarter of the multiplications, for stride 1.
use super::{Isa, LANES, Target};
use crate::kernel::cpu::conv::scratch::Slots;
use rayon::prelude::*;
pub(crate) use tile::MOST_CHANNELS;
use tile::{Inputs, Product, run_inputs, run_product};

mod points;
mod tile;

/// Outputs of a tile's side, and the inputs it sees.
pub(crate) const TILE: usize = 4;
const SIDE: usize = TILE + 2;
const POINTS: usize = SIDE * SIDE;
/// Tiles whose transformed inputs lie together.
const OCTET: usize = 8;
/// Tiles of one task, and channels that are summed at a time.
const TASK_TILES: usize = 64;
const BLOCK: usize = 64;
/// Output channels of one weight group.
const GROUP: usize = super::dense::GROUP;
/// A line between planes keeps equal positions of different planes in different cache sets.
const PLANE: usize = BLOCK * GROUP + LANES;
/// Chunks of tiles from which on they alone keep all threads busy.
const MANY: usize = 8;

/// What to convolve: `y[n, oh, ow, outputs]` from `x[n, h, w, channels]`, where output (0, 0)
/// sees the input from (-before, -before) on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Winograd {
    pub(crate) samples: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
    pub(crate) outputs: usize,
    pub(crate) before: usize,
    pub(crate) accumulate: bool,
}

impl Winograd {
    fn tiles_per_row(&self) -> usize {
        self.out_width.div_ceil(TILE)
    }

    fn tiles_per_sample(&self) -> usize {
        self.out_height.div_ceil(TILE) * self.tiles_per_row()
    }

    /// From one plane of an octet to the next.
    fn octet_plane(&self) -> usize {
        OCTET * self.channels + LANES
    }

    fn octet_values(&self) -> usize {
        POINTS * self.octet_plane()
    }

    /// Values of the transformed inputs of one task's tiles.
    fn input_values(&self) -> usize {
        TASK_TILES / OCTET * self.octet_values()
    }

    fn chunks(&self) -> usize {
        (self.samples * self.tiles_per_sample()).div_ceil(TASK_TILES)
    }

    /// Whether tasks are so many that each can take tiles through all outputs.
    pub(crate) fn is_long(&self) -> bool {
        self.chunks() >= MANY
    }

    /// Chunks that pass together when their transforms may take so many bytes.
    fn part(&self, bytes: usize) -> usize {
        (bytes / size_of::<f32>() / self.input_values()).clamp(1, self.chunks().max(1))
    }

    /// Values of scratch, shared and per thread; `bytes` is the aim for the shared one.
    pub(crate) fn scratch(&self, bytes: usize) -> [usize; 2] {
        let (inputs, planes) = (self.input_values(), 2 * POINTS * PLANE);
        if self.is_long() {
            [0, inputs + planes]
        } else {
            [self.part(bytes) * inputs, planes]
        }
    }

    /// Sample, first row and first column of a tile.
    fn place(&self, tile: usize) -> [usize; 3] {
        let (sample, tile) = (
            tile / self.tiles_per_sample(),
            tile % self.tiles_per_sample(),
        );
        let (row, column) = (tile / self.tiles_per_row(), tile % self.tiles_per_row());
        [sample, row * TILE, column * TILE]
    }
}

/// Mirrored weights, or the means to get them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights<'a> {
    /// `[group][kh][kw][channel][32]`: groups of outputs, mirrored.
    Backward(&'a [f32]),
    /// `[group][word][kh][kw][64][32]`: groups of channels, words of outputs, not mirrored. Worth
    /// it where weights are used once or twice: a second packed form would cost more to write.
    Forward(&'a [f32]),
}

/// Convolves; `bytes` as for the scratch.
///
/// # Panics
///
/// If channels or outputs are not whole vectors, or a buffer is too short.
pub(crate) fn convolve(
    isa: Isa,
    job: &Winograd,
    x: &[f32],
    weights: Weights<'_>,
    y: &mut [f32],
    (shared, slots, bytes): (&mut [f32], &Slots, usize),
) {
    assert!(isa.is_available(), "{isa} kernels on a machine without it");
    assert!(job.channels.is_multiple_of(LANES) && job.outputs.is_multiple_of(LANES));
    assert!(job.channels <= MOST_CHANNELS, "too many channels");
    assert_eq!(
        x.len(),
        job.samples * job.height * job.width * job.channels,
        "source"
    );
    assert_eq!(
        y.len(),
        job.samples * job.out_height * job.out_width * job.outputs,
        "target"
    );
    let (Weights::Backward(packed) | Weights::Forward(packed)) = weights;
    let needed = 9 * job.channels * job.outputs;
    assert!(packed.len() >= needed, "too few weights");
    let (groups, inputs) = (job.outputs.div_ceil(GROUP), job.input_values());
    let slot_values = job.scratch(bytes)[1];
    let all = All {
        isa,
        job,
        x,
        weights,
        y: Target(y.as_mut_ptr()),
    };
    if job.is_long() {
        (0..job.chunks()).into_par_iter().for_each(|chunk| {
            slots.with(slot_values, |slot| {
                let (inputs, planes) = slot.split_at_mut(inputs);
                for (octet, inputs) in inputs.chunks_exact_mut(job.octet_values()).enumerate() {
                    all.transform(chunk * TASK_TILES + octet * OCTET, inputs);
                }
                for group in 0..groups {
                    // SAFETY: tasks differ in chunks, groups come one after the other.
                    unsafe { all.multiply(chunk, group, inputs, planes) };
                }
            });
        });
        return;
    }
    let part = job.part(bytes);
    for first in (0..job.chunks()).step_by(part) {
        let chunks = part.min(job.chunks() - first);
        let octets = shared[..chunks * inputs].par_chunks_exact_mut(job.octet_values());
        octets.enumerate().for_each(|(octet, inputs)| {
            all.transform(first * TASK_TILES + octet * OCTET, inputs);
        });
        let shared = &*shared;
        (0..groups * chunks).into_par_iter().for_each(|task| {
            let (group, chunk) = (task / chunks, task % chunks);
            let inputs = &shared[chunk * inputs..][..inputs];
            slots.with(slot_values, |planes| {
                // SAFETY: tasks differ in chunks or groups.
                unsafe { all.multiply(first + chunk, group, inputs, planes) };
            });
        });
    }
}

/// What all tasks share.
struct All<'a> {
    isa: Isa,
    job: &'a Winograd,
    x: &'a [f32],
    weights: Weights<'a>,
    y: Target,
}

impl All<'_> {
    /// Transforms the inputs of up to eight tiles.
    fn transform(&self, first: usize, planes: &mut [f32]) {
        let tiles = self.job.samples * self.job.tiles_per_sample();
        assert_eq!(planes.len(), self.job.octet_values(), "planes of an octet");
        let mut inputs = Inputs {
            job: self.job,
            x: self.x.as_ptr(),
            planes: planes.as_mut_ptr(),
            first,
            count: OCTET.min(tiles.saturating_sub(first)),
        };
        // SAFETY: tiles below the end lie in x; the planes are this octet's and borrowed.
        unsafe { run_inputs(self.isa, &mut inputs) };
    }

    /// Forms the outputs of a chunk and group.
    ///
    /// # Safety
    ///
    /// No other thread forms these outputs meanwhile.
    unsafe fn multiply(&self, chunk: usize, group: usize, inputs: &[f32], planes: &mut [f32]) {
        let job = self.job;
        let (channel, first) = (group * GROUP, chunk * TASK_TILES);
        assert_eq!(inputs.len(), job.input_values(), "transformed inputs");
        assert_eq!(
            planes.len(),
            2 * POINTS * PLANE,
            "planes of weights and sums"
        );
        let (weight_planes, sums) = planes.split_at_mut(POINTS * PLANE);
        let mut product = Product {
            job,
            inputs: inputs.as_ptr(),
            weights: self.weights,
            output: channel,
            vectors: ((job.outputs - channel) / LANES).min(2),
            weight_planes: weight_planes.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
            first,
            count: TASK_TILES.min(job.samples * job.tiles_per_sample() - first),
            y: self.y.at(channel),
        };
        // SAFETY: `convolve` checked x, weights and y, this function the rest; all is borrowed
        // until the call ends, and the caller vouches for disjoint outputs.
        unsafe { run_product(self.isa, &mut product) };
    }
}
