//! Weight gradient over lists of active positions: for each input channel, the errors around
//! its spikes are added into sums that stay in registers.
use super::{Isa, LANES, Simd, per_isa};

/// Most sums of one walk, over all instruction sets.
const SUMS: usize = 9;

/// A band of errors that fits L1, and the lists of the spikes over it.
#[derive(Debug)]
pub(crate) struct Band<'a> {
    /// Errors, 16 values per position.
    pub(crate) errors: &'a [f32],
    /// Positions of spikes: list `c` starts at `c * capacity`.
    pub(crate) lists: &'a [u16],
    pub(crate) capacity: usize,
    /// Length of each list.
    pub(crate) counts: &'a [u16],
    /// For each sum of a channel: where its error lies from a spike's position (in values), and
    /// the index of the sum's vector.
    pub(crate) sums: &'a [(u32, u32)],
    /// Vectors per channel in the gradient.
    pub(crate) vectors: usize,
}

struct Task<'a> {
    band: &'a Band<'a>,
    gradient: *mut f32,
}

/// Adds a band to the gradient `[channel][vectors][16]`; one channel per list.
///
/// # Panics
///
/// If a list or a sum reaches outside its buffer.
pub(crate) fn add_band(isa: Isa, band: &Band<'_>, gradient: &mut [f32]) {
    assert!(isa.is_available(), "{isa} kernels on a machine without it");
    assert!(
        gradient.len() >= band.counts.len() * band.vectors * LANES,
        "gradient too short"
    );
    assert!(
        band.sums.iter().all(|s| (s.1 as usize) < band.vectors),
        "sums outside the gradient"
    );
    let reach = band.sums.iter().map(|s| s.0 as usize).max().unwrap_or(0);
    let limit = band.errors.len().saturating_sub(reach) / LANES;
    for (list, count) in band.lists.chunks_exact(band.capacity).zip(band.counts) {
        // The walk reads no other position, so this is what makes it safe.
        let last = list[..usize::from(*count)].iter().fold(0, |a, b| a.max(*b));
        assert!(
            *count == 0 || usize::from(last) < limit,
            "a spike outside its band"
        );
    }
    assert!(
        band.lists.len() >= band.counts.len() * band.capacity,
        "a list per channel"
    );
    // SAFETY: positions, sums and the gradient's size were just checked; all are borrowed for
    // the call.
    unsafe {
        run_task(
            isa,
            &mut Task {
                band,
                gradient: gradient.as_mut_ptr(),
            },
        )
    };
}

per_isa!(run_task(Task<'_>) = task_body <9> <6> <3>);

#[inline(always)]
unsafe fn task_body<S: Simd, const MOST: usize>(task: &mut Task<'_>) {
    let band = task.band;
    for channel in 0..band.counts.len() {
        let count = usize::from(band.counts[channel]);
        if count == 0 {
            continue;
        }
        // SAFETY: checked by `add_band`; at most MOST <= SUMS sums are walked at a time.
        unsafe {
            let list = band.lists.as_ptr().add(channel * band.capacity);
            let gradient = task.gradient.add(channel * band.vectors * LANES);
            let mut sums = band.sums;
            while !sums.is_empty() {
                let taken = MOST.min(sums.len());
                let (now, later) = sums.split_at(taken);
                sums = later;
                let walk = Walk {
                    list,
                    count,
                    errors: band.errors.as_ptr(),
                    gradient,
                    sums: now,
                };
                match taken {
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
    sums: &'a [(u32, u32)],
}

impl Walk<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd, const T: usize>(&self) {
        // SAFETY: checked by `add_band`; `sums` has T entries.
        unsafe {
            let mut errors = [self.errors; T];
            for (e, s) in errors.iter_mut().zip(self.sums) {
                *e = e.add(s.0 as usize);
            }
            let mut sums = [S::splat(0.0); T];
            for i in 0..self.count {
                let offset = usize::from(*self.list.add(i)) * LANES;
                for t in 0..T {
                    sums[t] = S::add(sums[t], S::load(errors[t].add(offset)));
                }
            }
            for t in 0..T {
                let to = self
                    .gradient
                    .add(self.sums.get_unchecked(t).1 as usize * LANES);
                S::store(to, S::add(S::load(to), sums[t]));
            }
        }
    }
}
