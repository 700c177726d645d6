//! Weight gradient over lists of active positions: for each input channel, the errors around
//! its spikes are added into sums that stay in registers.
use super::{Isa, LANES, Simd, per_isa};
use crate::kernel::cpu::conv::{ConvShape, bands::Bands};
use rayon::prelude::*;

/// Most sums of one walk, over all instruction sets.
const SUMS: usize = 9;
/// Channels of one word of bits.
const WORD: usize = 64;

/// Positions of spikes, per band, word, residue class and channel.
///
/// Every position in a list lies in its band's error block: only [`Lists::build`] writes them.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    positions: Vec<u16>,
    counts: Vec<u16>,
    /// Room of one list.
    capacity: usize,
    /// Bound of all positions.
    limit: usize,
    classes: usize,
    words: usize,
    /// Bands of the last build: all that `add_band` may read.
    bands: usize,
}

impl Lists {
    /// Lists the spikes of some bands; `bits` is the whole batch.
    pub(crate) fn build(
        &mut self,
        isa: Isa,
        bands: &Bands,
        which: std::ops::Range<usize>,
        bits: &[u64],
    ) {
        assert!(isa.is_available(), "{isa} kernels on a machine without it");
        let shape = &bands.shape;
        self.capacity = bands.capacity();
        self.limit = bands.limit();
        self.classes = shape.stride * shape.stride;
        self.words = shape.words();
        self.bands = which.len();
        let words = self.words;
        let lists = which.len() * self.words * self.classes * WORD;
        if self.counts.len() < lists {
            self.counts.resize(lists, 0);
        }
        if self.positions.len() < lists * self.capacity {
            self.positions.resize(lists * self.capacity, 0);
        }
        let (per_task, capacity, limit) = (self.classes * WORD, self.capacity, self.limit);
        let positions = self.positions[..lists * capacity].par_chunks_mut(per_task * capacity);
        let counts = self.counts[..lists].par_chunks_mut(per_task);
        positions
            .zip(counts)
            .enumerate()
            .for_each(|(task, (positions, counts))| {
                let (band, word) = (which.start + task / words, task % words);
                for class in 0..per_task / WORD {
                    let lists = class * WORD * capacity;
                    let mut pixels = Pixels {
                        isa,
                        positions: &mut positions[lists..lists + WORD * capacity],
                        counts: &mut counts[class * WORD..(class + 1) * WORD],
                        capacity,
                        channels: WORD.min(shape.inputs - word * WORD),
                        taken: 0,
                        pending: 0,
                        at: [0; WORD],
                        words: [0; WORD],
                    };
                    pixels.counts.fill(0);
                    bands.for_each_pixel(band, class, |pixel, position| {
                        assert!(position < limit, "a spike outside its band");
                        let position = u32::try_from(position).expect("bands are shorter");
                        pixels.push(bits[pixel * words + word], position);
                    });
                    pixels.flush();
                }
            });
    }

    /// Adds one band to the gradient `[input][vectors][16]`: `band` counts from the first one
    /// built, `errors` is its block, `sums` names for each class the sums of a channel.
    ///
    /// # Panics
    ///
    /// If a sum reaches outside its buffer.
    pub(crate) fn add_band(
        &self,
        isa: Isa,
        shape: &ConvShape,
        band: usize,
        errors: &[f32],
        (vectors, sums): (usize, &[&[Sum]]),
        gradient: &mut [f32],
    ) {
        assert!(isa.is_available(), "{isa} kernels on a machine without it");
        assert_eq!(gradient.len(), shape.inputs * vectors * LANES, "gradient");
        assert!(
            sums.len() == self.classes && shape.words() == self.words,
            "another shape"
        );
        assert!(band < self.bands, "a band that was not built");
        for word in 0..self.words {
            for (class, sums) in sums.iter().enumerate() {
                let list = ((band * self.words + word) * self.classes + class) * WORD;
                let channels = WORD.min(shape.inputs - word * WORD);
                let gradient = &mut gradient[word * WORD * vectors * LANES..];
                let mut task = Task {
                    lists: &self.positions[list * self.capacity..],
                    capacity: self.capacity,
                    counts: &self.counts[list..list + channels],
                    errors: errors.as_ptr(),
                    sums,
                    vectors,
                    gradient: gradient.as_mut_ptr(),
                };
                for sum in *sums {
                    let end = sum.error as usize + self.limit * LANES;
                    assert!(
                        (sum.vector as usize) < vectors && end <= errors.len(),
                        "sums"
                    );
                }
                assert!(task.lists.len() >= WORD * self.capacity, "lists were built");
                // SAFETY: positions are below `limit`, counts at most `capacity`, sums were just
                // checked; all is borrowed for the call.
                unsafe { run_task(isa, &mut task) };
            }
        }
    }
}

/// Pixels on their way into the lists of one band, word and class.
struct Pixels<'a> {
    isa: Isa,
    positions: &'a mut [u16],
    counts: &'a mut [u16],
    capacity: usize,
    channels: usize,
    /// Pixels that were flushed, and those that wait.
    taken: usize,
    pending: usize,
    at: [u32; WORD],
    words: [u64; WORD],
}

impl Pixels<'_> {
    fn push(&mut self, word: u64, position: u32) {
        self.at[self.pending] = position;
        self.words[self.pending] = word;
        self.pending += 1;
        if self.pending == WORD {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.words[self.pending..].fill(0);
        self.taken += self.pending;
        self.pending = 0;
        // A list has at most one entry per pixel; vectors are stored whole.
        assert!(self.taken + LANES <= self.capacity, "a list is too short");
        assert_eq!(
            self.positions.len(),
            WORD * self.capacity,
            "a list per channel"
        );
        assert_eq!(self.counts.len(), WORD, "a count per channel");
        assert!(self.channels <= WORD, "one word of channels");
        // SAFETY: lists have room, as was just checked; all is borrowed for the call.
        unsafe { run_pixels(self.isa, self) };
    }
}

per_isa!(run_pixels(Pixels<'_>) = pixels_body <> <> <>);

/// Appends up to 64 pixels to all lists.
#[inline(always)]
unsafe fn pixels_body<S: Simd>(pixels: &mut Pixels<'_>) {
    transpose_bits(&mut pixels.words);
    for channel in 0..pixels.channels {
        let word = pixels.words[channel];
        // SAFETY: there are 64 lists and counts, each with room for all pixels so far and one
        // vector more.
        unsafe {
            let count = pixels.counts.get_unchecked_mut(channel);
            let end = channel * pixels.capacity + usize::from(*count);
            S::append(pixels.positions.as_mut_ptr().add(end), &pixels.at, word);
            *count += u16::try_from(word.count_ones()).expect("at most 64");
        }
    }
}

/// Bit c of word p becomes bit p of word c, by swapping ever smaller blocks.
#[inline(always)]
fn transpose_bits(words: &mut [u64; WORD]) {
    let mut side = WORD / 2;
    let mut mask = u64::from(u32::MAX);
    while side > 0 {
        let mut block = 0;
        while block < WORD {
            for row in block..block + side {
                let swap = (words[row] >> side ^ words[row + side]) & mask;
                words[row] ^= swap << side;
                words[row + side] ^= swap;
            }
            block += 2 * side;
        }
        side /= 2;
        mask ^= mask << side;
    }
}

/// One sum of a channel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    /// Where its error lies from a spike's position, in values.
    pub(crate) error: u32,
    /// The sum's vector within the channel's gradient.
    pub(crate) vector: u32,
}

/// The channels of one word and class.
struct Task<'a> {
    lists: &'a [u16],
    capacity: usize,
    counts: &'a [u16],
    errors: *const f32,
    sums: &'a [Sum],
    vectors: usize,
    gradient: *mut f32,
}

per_isa!(run_task(Task<'_>) = task_body <9> <6> <3>);

#[inline(always)]
unsafe fn task_body<S: Simd, const MOST: usize>(task: &mut Task<'_>) {
    for (channel, count) in task.counts.iter().enumerate() {
        if *count == 0 {
            continue;
        }
        let mut sums = task.sums;
        while !sums.is_empty() {
            let (now, later) = sums.split_at(MOST.min(sums.len()));
            sums = later;
            // SAFETY: the lists and the gradient have this channel; `now` has so many sums.
            unsafe {
                let walk = Walk {
                    list: task.lists.as_ptr().add(channel * task.capacity),
                    count: usize::from(*count),
                    errors: task.errors,
                    gradient: task.gradient.add(channel * task.vectors * LANES),
                    sums: now,
                };
                match now.len() {
                    1 => walk.run::<S, 1>(),
                    2 => walk.run::<S, 2>(),
                    3 => walk.run::<S, 3>(),
                    4 => walk.run::<S, 4>(),
                    5 => walk.run::<S, 5>(),
                    6 => walk.run::<S, 6>(),
                    7 => walk.run::<S, 7>(),
                    8 => walk.run::<S, 8>(),
                    _ => walk.run::<S, SUMS>(),
                }
            }
        }
    }
}

/// One list against some sums.
struct Walk<'a> {
    list: *const u16,
    count: usize,
    errors: *const f32,
    gradient: *mut f32,
    sums: &'a [Sum],
}

impl Walk<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, const T: usize>(&self) {
        // SAFETY: `sums` has T entries; everything else was checked by `add_band`.
        unsafe {
            let mut errors = [self.errors; T];
            for t in 0..T {
                errors[t] = self.errors.add(self.sums.get_unchecked(t).error as usize);
            }
            let mut sums = [S::splat(0.0); T];
            for i in 0..self.count {
                let offset = usize::from(*self.list.add(i)) * LANES;
                for t in 0..T {
                    sums[t] = S::add(sums[t], S::load(errors[t].add(offset)));
                }
            }
            for t in 0..T {
                let vector = self.sums.get_unchecked(t).vector as usize;
                let to = self.gradient.add(vector * LANES);
                S::store(to, S::add(S::load(to), sums[t]));
            }
        }
    }
}
