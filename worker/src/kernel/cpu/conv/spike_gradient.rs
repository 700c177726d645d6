//! Gradient of the weights over lists of spikes.
use super::bands::Bands;
use super::weight_gradient::add_pieces;
use super::{ConvKernel, ConvScratch, ConvShape, PART_BYTES};
use crate::kernel::cpu::simd::LANES;
use crate::kernel::cpu::simd::lists::{Lists, Sum};
use crate::kernel::cpu::simd::transpose::{Columns, from_lanes};
use rayon::prelude::*;
use std::ops::Range;

/// Tasks that a small layer is cut into at least, by cutting its bands.
const TASKS: usize = 8;
/// Sums that one task forms, to read errors once for as many outputs as L2 has room for.
const TASK_VALUES: usize = 80 << 10;
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

/// `dw` from the spikes and the error.
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
    let groups = shape.outputs.div_ceil(bands.vectors * LANES);
    let list_bytes = shape.words() * shape.stride * shape.stride * 64 * bands.capacity() * 2;
    let most = (PART_BYTES / list_bytes).max(1);
    let part = bands
        .count()
        .div_ceil(bands.count().div_ceil(most).max(1))
        .max(1);
    let group_values = shape.inputs * bands.vectors * taps * LANES;
    let taken = (TASK_VALUES / group_values).clamp(1, groups);
    let pieces = TASKS.div_ceil(groups.div_ceil(taken)).min(part);
    let block = bands.block_values();
    let slot = block + taken * group_values;
    let slots = scratch.slots.grown(slot);
    let lists = &mut scratch.lists;
    let sums = Sums {
        kernel,
        bands,
        dy,
        table: Table::new(bands),
        taken,
        group_values,
    };
    let set_weights = taken * bands.vectors * LANES * shape.inputs * taps;
    if pieces == 1 && part >= bands.count() {
        // One task forms all sums of some outputs: they never leave its cache.
        lists.build(kernel.isa, bands, 0..bands.count(), bits);
        dw.par_chunks_mut(set_weights)
            .enumerate()
            .for_each(|(set, dw)| {
                slots.with(slot, |slot| {
                    let (block, set_sums) = slot.split_at_mut(block);
                    set_sums.fill(0.0);
                    sums.add(lists, 0, 0..bands.count(), set, block, set_sums);
                    sums.unpack(set_sums, dw);
                });
            });
        return;
    }
    let totals = scratch.sums.grown(pieces * groups * group_values);
    totals
        .par_chunks_mut(group_values)
        .for_each(|totals| totals.fill(0.0));
    for first in (0..bands.count()).step_by(part) {
        let end = (first + part).min(bands.count());
        lists.build(kernel.isa, bands, first..end, bits);
        let (lists, piece_bands) = (&*lists, (end - first).div_ceil(pieces));
        totals
            .par_chunks_mut(groups * group_values)
            .enumerate()
            .for_each(|(piece, totals)| {
                let start = (first + piece * piece_bands).min(end);
                let piece = start..(start + piece_bands).min(end);
                totals
                    .par_chunks_mut(taken * group_values)
                    .enumerate()
                    .for_each(|(set, totals)| {
                        slots.with(block, |block| {
                            sums.add(lists, first, piece.clone(), set, block, totals);
                        });
                    });
            });
    }
    add_pieces(totals, groups * group_values);
    let totals = totals[..groups * group_values].par_chunks(taken * group_values);
    dw.par_chunks_mut(set_weights)
        .zip(totals)
        .for_each(|(dw, totals)| sums.unpack(totals, dw));
}

/// Sums `[group][input][vector][tap][16]`, a group being the output vectors of one error block;
/// sets of groups are formed together.
struct Sums<'a> {
    kernel: &'a ConvKernel,
    bands: &'a Bands,
    dy: &'a [f32],
    table: Table,
    /// Groups of a set.
    taken: usize,
    group_values: usize,
}

impl Sums<'_> {
    /// Adds some bands to the sums of a set; lists start at band `first`.
    fn add(
        &self,
        lists: &Lists,
        first: usize,
        which: Range<usize>,
        set: usize,
        block: &mut [f32],
        sums: &mut [f32],
    ) {
        let (shape, vectors) = (&self.kernel.shape, self.bands.vectors);
        let entries = vectors * shape.kernel * shape.kernel;
        for band in which {
            for (group, sums) in sums.chunks_exact_mut(self.group_values).enumerate() {
                let output = (set * self.taken + group) * vectors * LANES;
                if output >= shape.outputs {
                    break;
                }
                self.bands.fill(band, output, self.dy, block);
                self.table.with(shape, |table| {
                    let table = (entries, table);
                    lists.add_band(self.kernel.isa, shape, band - first, block, table, sums);
                });
            }
        }
    }

    /// A set to its rows of OIHW.
    fn unpack(&self, sums: &[f32], dw: &mut [f32]) {
        let shape = &self.kernel.shape;
        let (taps, vectors) = (shape.kernel * shape.kernel, self.bands.vectors);
        let terms = taps * shape.inputs;
        for (vector, dw) in dw.chunks_mut(LANES * terms).enumerate() {
            let (group, vector) = (vector / vectors, vector % vectors);
            let from = group * self.group_values + vector * taps * LANES;
            let columns = Columns {
                count: terms,
                inner: [1, taps],
                strides: [vectors * taps * LANES, 0, LANES],
                is_far: false,
            };
            let rows = dw.len() / terms;
            from_lanes(self.kernel.isa, &sums[from..], columns, (dw, terms), rows);
        }
    }
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
        let mut table = Self {
            sums: [Sum::default(); 4 * MOST_TAPS],
            ends: [0; MOST_CLASSES],
        };
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
