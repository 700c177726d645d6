//! Gradient of the weights over lists of spikes.
use super::bands::Bands;
use super::weight_gradient::{TASKS, add_pieces};
use super::{ConvKernel, ConvScratch, ConvShape, PART_BYTES};
use crate::kernel::cpu::simd::lists::Sum;
use crate::kernel::cpu::simd::transpose::{Columns, from_lanes};
use crate::kernel::cpu::simd::{Isa, LANES};
use rayon::prelude::*;

/// Taps of the largest kernel, and residue classes, that the tables of sums hold.
const MOST_TAPS: usize = 64;
const MOST_CLASSES: usize = 16;

/// The bands of a batch, if this form can do the shape.
pub(super) fn bands(shape: &ConvShape, samples: usize) -> Option<Bands> {
    let classes = shape.stride * shape.stride;
    if shape.kernel * shape.kernel > MOST_TAPS || classes > MOST_CLASSES {
        return None;
    }
    Bands::new(shape, samples)
}

/// `dw` from the spikes and the error: sums `[piece][group][input][vector][tap][16]`, a group
/// being the output vectors of one error block.
pub(super) fn run(
    kernel: &ConvKernel,
    bands: &Bands,
    bits: &[u64],
    dy: &[f32],
    dw: &mut [f32],
    scratch: &mut ConvScratch,
) {
    let shape = &kernel.shape;
    let taps = shape.kernel * shape.kernel;
    let vectors = bands.vectors * taps;
    let groups = shape.outputs.div_ceil(bands.vectors * LANES);
    let list_bytes = shape.words() * shape.stride * shape.stride * 64 * bands.capacity() * 2;
    let most = (PART_BYTES / list_bytes).max(1);
    let part = bands.count().div_ceil(bands.count().div_ceil(most).max(1)).max(1);
    let pieces = TASKS.div_ceil(groups).min(part);
    let task_values = shape.inputs * vectors * LANES;
    let sums = scratch.sums.grown(pieces * groups * task_values);
    let blocks = scratch.errors.grown(pieces * groups * bands.block_values());
    sums.par_chunks_mut(task_values).for_each(|sums| sums.fill(0.0));
    let table = Table::new(bands);
    for first in (0..bands.count()).step_by(part) {
        let end = (first + part).min(bands.count());
        scratch.lists.build(bands, first..end, bits);
        let lists = &scratch.lists;
        let piece_bands = (end - first).div_ceil(pieces);
        let tasks = sums.par_chunks_mut(task_values);
        let blocks = blocks.par_chunks_mut(bands.block_values());
        tasks.zip(blocks).enumerate().for_each(|(task, (sums, block))| {
            let (piece, group) = (task / groups, task % groups);
            let start = (first + piece * piece_bands).min(end);
            for band in start..(start + piece_bands).min(end) {
                bands.fill(band, group * bands.vectors * LANES, dy, block);
                table.with(shape, |table| {
                    let table = (vectors, table);
                    lists.add_band(kernel.isa, shape, band - first, block, table, sums);
                });
            }
        });
    }
    add_pieces(sums, groups * task_values);
    unpack(kernel.isa, bands, &sums[..groups * task_values], dw);
}

/// The sums of a channel, by residue class.
struct Table {
    sums: [Sum; 4 * MOST_TAPS],
    /// Where each class ends.
    ends: [usize; MOST_CLASSES],
}

impl Table {
    fn new(bands: &Bands) -> Self {
        let shape = &bands.shape;
        let mut table =
            Self { sums: [Sum::default(); 4 * MOST_TAPS], ends: [0; MOST_CLASSES] };
        let mut len = 0;
        for class in 0..shape.stride * shape.stride {
            let residues = [class / shape.stride, class % shape.stride];
            for vector in 0..bands.vectors {
                for down in 0..shape.taps(residues[0]) {
                    for right in 0..shape.taps(residues[1]) {
                        let kh = residues[0] + down * shape.stride;
                        let kw = residues[1] + right * shape.stride;
                        let tap = (vector * shape.kernel + kh) * shape.kernel + kw;
                        let error = bands.error(vector, [down, right]);
                        table.sums[len] = Sum {
                            error: u32::try_from(error).expect("a block fits L1 or a row"),
                            vector: u32::try_from(tap).expect("few taps"),
                        };
                        len += 1;
                    }
                }
            }
            table.ends[class] = len;
        }
        table
    }

    /// Calls with one slice per class.
    fn with(&self, shape: &ConvShape, call: impl FnOnce(&[&[Sum]])) {
        let mut classes: [&[Sum]; MOST_CLASSES] = [&[]; MOST_CLASSES];
        let mut start = 0;
        for (class, end) in classes.iter_mut().zip(self.ends) {
            *class = &self.sums[start..end.max(start)];
            start = start.max(end);
        }
        call(&classes[..shape.stride * shape.stride]);
    }
}

/// `[group][input][vector][tap][16]` to OIHW.
fn unpack(isa: Isa, bands: &Bands, sums: &[f32], dw: &mut [f32]) {
    let shape = &bands.shape;
    let taps = shape.kernel * shape.kernel;
    let terms = taps * shape.inputs;
    dw.par_chunks_mut(LANES * terms).enumerate().for_each(|(output, dw)| {
        let (group, vector) = (output / bands.vectors, output % bands.vectors);
        let from = (group * shape.inputs * bands.vectors + vector) * taps * LANES;
        let columns = Columns {
            count: terms,
            period: taps,
            outer: bands.vectors * taps * LANES,
            inner: LANES,
        };
        let rows = dw.len() / terms;
        from_lanes(isa, &sums[from..], columns, (dw, terms), rows);
    });
}
