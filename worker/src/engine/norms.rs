//! Batch norms whose statistics are those of several ranks.
//!
//! The engine knows no ranks: it says which numbers are shared, and others put in their place the mean
//! over ranks, each weighted by its share of the samples. With one rank that is the number itself.

use super::Network;
use super::plan::Stage;
use super::profile::Work;
use crate::kernel::{Arena, Buffer, ErrorsOut, Kernels, Norm, NormLif, Norms, Span, Window};

/// Numbers of a synchronised norm, in whose place their means over ranks go, each weighted by its share
/// of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Two ranges of [`Arena::Moments`]: what the forward normalises with.
    Moments([Span; 2]),
    /// The sums of the backward, one slot per time step.
    Sums {
        /// [`Norm::sums`].
        buffer: Buffer,
        /// The time steps.
        steps: Window,
        /// Numbers of a slot.
        len: usize,
    },
}

/// Averages what is [`Shared`] over ranks.
pub type Pool<'a> = &'a mut dyn FnMut(&mut dyn Kernels, Shared);

impl Shared {
    /// How many numbers they are.
    #[expect(clippy::len_without_is_empty, reason = "a norm has channels")]
    pub fn len(&self) -> usize {
        match self {
            Self::Moments(spans) => spans.iter().map(|span| span.len).sum(),
            Self::Sums { steps, len, .. } => steps.len * len,
        }
    }

    /// Copies them to the host, one behind the other. Waits.
    ///
    /// # Panics
    /// If there are not [`Shared::len`] places.
    pub fn read(&self, kernels: &mut dyn Kernels, numbers: &mut [f32]) {
        assert_eq!(numbers.len(), self.len(), "numbers of a norm");
        match self {
            Self::Moments([first, second]) => {
                let (one, two) = numbers.split_at_mut(first.len);
                kernels.read_arena(Arena::Moments, first.offset, one);
                kernels.read_arena(Arena::Moments, second.offset, two);
            }
            Self::Sums { buffer, steps, len } => {
                for (t, slot) in steps.newest_first().zip(numbers.chunks_exact_mut(*len)) {
                    kernels.read(*buffer, t, slot);
                }
            }
        }
    }

    /// The way back.
    ///
    /// # Panics
    /// If there are not [`Shared::len`] numbers.
    pub fn write(&self, kernels: &mut dyn Kernels, numbers: &[f32]) {
        assert_eq!(numbers.len(), self.len(), "numbers of a norm");
        match self {
            Self::Moments([first, second]) => {
                let (one, two) = numbers.split_at(first.len);
                kernels.write_arena(Arena::Moments, first.offset, one);
                kernels.write_arena(Arena::Moments, second.offset, two);
            }
            Self::Sums { buffer, steps, len } => {
                for (t, slot) in steps.newest_first().zip(numbers.chunks_exact(*len)) {
                    kernels.write(*buffer, t, slot);
                }
            }
        }
    }
}

impl Network {
    /// Numbers of a time step's moments that have to be averaged over ranks before
    /// [`Network::apply_moments`]: 0 where there is one rank, and where norms are synchronised, as
    /// the forward has averaged them already.
    pub fn moments_len(&self) -> usize {
        match self.plan.settings.norms {
            Norms::Own | Norms::Synchronised => 0,
            Norms::Pooled => self.arenas.moments,
        }
    }

    /// Copies the moments of the newest time step to the host: they may stand behind gradients on
    /// their way to the other ranks. Waits.
    ///
    /// # Panics
    /// If there are not [`Network::moments_len`] places.
    pub fn read_moments(&self, kernels: &mut dyn Kernels, moments: &mut [f32]) {
        assert_eq!(moments.len(), self.moments_len(), "numbers of the moments");
        if !moments.is_empty() {
            kernels.read_arena(Arena::Moments, 0, moments);
        }
    }

    /// Puts the moments of all ranks in their place: means over ranks, each weighted by its share of
    /// the samples.
    ///
    /// # Panics
    /// If there are not [`Network::moments_len`] numbers.
    pub fn write_moments(&self, kernels: &mut dyn Kernels, moments: &[f32]) {
        assert_eq!(moments.len(), self.moments_len(), "numbers of the moments");
        if !moments.is_empty() {
            kernels.write_arena(Arena::Moments, 0, moments);
        }
    }

    /// Moves the running statistics of all norms by the moments of the newest time step, which are
    /// those of all ranks by now. Once after each training forward; with one rank the forward has
    /// moved them, and nothing happens.
    ///
    /// `world_samples` is the number of samples in the batch of all ranks.
    pub fn apply_moments(&self, kernels: &mut dyn Kernels, world_samples: usize) {
        for (layer, norm) in self.plan.stages.iter().filter_map(normed) {
            match norm.across {
                Norms::Own => {}
                Norms::Pooled | Norms::Synchronised => {
                    let count = world_samples as u64 * layer.shape.pixels() as u64;
                    kernels.apply_moments(norm, count);
                }
            }
        }
    }
}

impl Network {
    /// The rest of a synchronised norm's backward, once its sums are those of all ranks.
    pub(super) fn finish_norm(
        &mut self,
        kernels: &mut dyn Kernels,
        stage: usize,
        (layer, steps, dz): (&NormLif, Window, ErrorsOut),
        pool: Pool<'_>,
    ) {
        pool(kernels, sums(layer, steps));
        let work = Work::NormAndNeuronBackward;
        self.profile.timed(kernels, stage, work, |kernels| {
            kernels.norm_backward(layer, steps, dz);
        });
    }
}

fn normed(stage: &Stage) -> Option<(&NormLif, &Norm)> {
    match stage {
        Stage::NormLif { layer, .. } => layer.norm.as_ref().map(|norm| (layer, norm)),
        Stage::Conv { .. }
        | Stage::Pool { .. }
        | Stage::Flatten { .. }
        | Stage::Dropout { .. }
        | Stage::Residual { .. } => None,
    }
}

/// The layer of a stage whose norm is synchronised.
pub(super) fn synchronised(stage: &Stage) -> Option<&NormLif> {
    let (layer, norm) = normed(stage)?;
    (norm.across == Norms::Synchronised).then_some(layer)
}

/// What the forward of a synchronised norm shares.
pub(super) fn moments(layer: &NormLif) -> Shared {
    let norm = layer.norm.expect("a synchronised norm is there");
    Shared::Moments([norm.running_mean, norm.running_var])
}

/// What its backward shares: of all time steps at once.
fn sums(layer: &NormLif, steps: Window) -> Shared {
    let norm = layer.norm.expect("a synchronised norm is there");
    Shared::Sums {
        buffer: norm.sums.expect("a synchronised norm has sums"),
        steps,
        len: 2 * layer.shape.channels,
    }
}
