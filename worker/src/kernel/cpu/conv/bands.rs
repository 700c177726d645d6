//! Bands: parts of a batch whose errors fit the L1 cache, with the borders that taps reach.
//!
//! An input row i with (i + padding) = q stride + r hears from the outputs q - j through the
//! taps r + j stride. A band is a range of rows q of one sample, or some whole samples; its
//! error block holds outputs from the last tap before its first row to its last row.
use super::ConvShape;
use crate::kernel::cpu::simd::LANES;

/// Values of one error block: seven eighths of a 32 KB L1 cache.
const BLOCK_VALUES: usize = 7 << 10;

/// How a batch is cut into bands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bands {
    pub(crate) shape: ConvShape,
    samples: usize,
    /// Output vectors of 16 that one block holds.
    pub(super) vectors: usize,
    /// The first row (and column) q, and how many rows and columns there are.
    first: usize,
    size: [usize; 2],
    /// Taps beyond the first, in a row or column.
    border: usize,
    /// Rows q of one band, and its samples (one unless all rows fit).
    rows: usize,
    band_samples: usize,
}

impl Bands {
    /// `None` if positions of a block would not fit 16 bits.
    pub(super) fn new(shape: &ConvShape, samples: usize) -> Option<Self> {
        let first = shape.padding / shape.stride;
        let last = |side: usize| (side - 1 + shape.padding) / shape.stride;
        let size = [
            last(shape.height) + 1 - first,
            last(shape.width) + 1 - first,
        ];
        let border = shape.taps(0) - 1;
        let most_taps = shape.taps(0) * shape.taps(0);
        let vectors = (9 / most_taps)
            .clamp(1, 4)
            .min(shape.outputs.div_ceil(LANES));
        let line = (size[1] + border) * vectors * LANES;
        let fit = (BLOCK_VALUES / line).max(border + 1) - border;
        let whole = (size[0] + border) * line;
        let bands = samples.div_ceil((BLOCK_VALUES / whole).max(1)).max(1);
        let most_samples = samples.div_ceil(bands).max(1);
        let (rows, band_samples) = if fit >= size[0] {
            (size[0], most_samples)
        } else {
            (size[0].div_ceil(size[0].div_ceil(fit)), 1)
        };
        let shape = *shape;
        let bands = Self {
            shape,
            samples,
            vectors,
            first,
            size,
            border,
            rows,
            band_samples,
        };
        u16::try_from(bands.limit()).is_ok().then_some(bands)
    }

    fn bands_per_sample(&self) -> usize {
        self.size[0].div_ceil(self.rows)
    }

    /// How many bands the batch has.
    pub(super) fn count(&self) -> usize {
        self.samples.div_ceil(self.band_samples) * self.bands_per_sample()
    }

    /// Positions of one row of a block.
    fn columns(&self) -> usize {
        self.size[1] + self.border
    }

    /// Positions of a block, per vector of outputs.
    fn block_positions(&self) -> usize {
        self.band_samples * (self.rows + self.border) * self.columns()
    }

    /// Values of a block: `[vector][sample][row][column][16]`.
    pub(super) fn block_values(&self) -> usize {
        self.vectors * self.block_positions() * LANES
    }

    /// Bound of the positions of spikes.
    pub(crate) fn limit(&self) -> usize {
        self.block_positions() - self.border * self.columns() - self.border
    }

    /// Spikes that one channel can have in a band and class.
    pub(crate) fn capacity(&self) -> usize {
        // An odd number of cache lines keeps the lists of neighbouring channels apart.
        // Writers of lists store whole vectors, so one more fits.
        let most = self.band_samples * self.rows * self.size[1] + LANES;
        let lines = most.div_ceil(32);
        (lines | 1) * 32
    }

    /// Where, from a spike's position, the error of output (q - down, q - right) lies.
    pub(super) fn error(&self, vector: usize, [down, right]: [usize; 2]) -> usize {
        let position = (self.border - down) * self.columns() + self.border - right;
        (vector * self.block_positions() + position) * LANES
    }

    /// The band's samples and rows q, counted from `first`.
    fn extent(&self, band: usize) -> [std::ops::Range<usize>; 2] {
        let (sample, row) = (
            band / self.bands_per_sample(),
            band % self.bands_per_sample(),
        );
        let (sample, row) = (sample * self.band_samples, row * self.rows);
        let end = (sample + self.band_samples).min(self.samples);
        [sample..end, row..(row + self.rows).min(self.size[0])]
    }

    /// Calls with each input pixel of a band and residue class (row residue times stride plus
    /// column residue), and its position in the block.
    pub(crate) fn for_each_pixel(
        &self,
        band: usize,
        class: usize,
        mut call: impl FnMut(usize, usize),
    ) {
        let ConvShape {
            height,
            width,
            stride,
            padding,
            ..
        } = self.shape;
        let [samples, rows] = self.extent(band);
        // The first coordinate with a residue, and its q.
        let start = |residue: usize| {
            let first = (residue + stride - padding % stride) % stride;
            (first, (first + padding) / stride - self.first)
        };
        let ((top, top_q), (left, left_q)) = (start(class / stride), start(class % stride));
        for (index, sample) in samples.enumerate() {
            for q in rows.start.max(top_q)..rows.end {
                let y = top + (q - top_q) * stride;
                if y >= height {
                    break;
                }
                let row = index * (self.rows + self.border) + q - rows.start;
                let pixel = (sample * height + y) * width;
                let position = row * self.columns() + left_q;
                for (column, x) in (left..width).step_by(stride).enumerate() {
                    call(pixel + x, position + column);
                }
            }
        }
    }

    /// Copies the errors of a band, 16 channels per vector from `output` on, into its block.
    pub(super) fn fill(&self, band: usize, output: usize, dy: &[f32], block: &mut [f32]) {
        let (out_height, out_width) = (self.shape.out_height(), self.shape.out_width());
        let outputs = self.shape.outputs;
        let [samples, rows] = self.extent(band);
        let lines = self.rows + self.border;
        for (line, to) in block.chunks_exact_mut(self.columns() * LANES).enumerate() {
            let (vector, line) = (line / (self.band_samples * lines), line);
            let (index, row) = (line / lines % self.band_samples, line % lines);
            let sample = samples.start + index;
            let oy = (rows.start + row + self.first).wrapping_sub(self.border);
            let channel = output + vector * LANES;
            if sample >= samples.end || oy >= out_height || channel >= outputs {
                to.fill(0.0);
                continue;
            }
            let lanes = LANES.min(outputs - channel);
            let dy = &dy[(sample * out_height + oy) * out_width * outputs..];
            let (to, _) = to.as_chunks_mut::<LANES>();
            for (column, to) in to.iter_mut().enumerate() {
                let ox = (column + self.first).wrapping_sub(self.border);
                if ox >= out_width {
                    to.fill(0.0);
                    continue;
                }
                let from = &dy[ox * outputs + channel..];
                if lanes == LANES {
                    to.copy_from_slice(&from[..LANES]);
                } else {
                    to.fill(0.0);
                    to[..lanes].copy_from_slice(&from[..lanes]);
                }
            }
        }
    }
}
