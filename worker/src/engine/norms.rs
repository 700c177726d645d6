//! Batch norms whose statistics are those of several ranks.
//!
//! The engine knows no ranks: it hands out numbers, and others put in their place the mean over
//! ranks, each weighted by its share of the samples. With one rank that is the number itself.

use super::Network;
use super::plan::Stage;
use super::profile::Work;
use crate::kernel::{Arena, ErrorsOut, Kernels, Norm, NormLif, Norms, Window};

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
        pool: &mut dyn FnMut(&mut [f32]),
    ) {
        pool_sums(layer, steps, kernels, &mut self.travelling, pool);
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

/// Averages the moments of a synchronised norm over ranks.
pub(super) fn pool_moments(
    layer: &NormLif,
    kernels: &mut dyn Kernels,
    travelling: &mut Vec<f32>,
    pool: &mut dyn FnMut(&mut [f32]),
) {
    let norm = layer.norm.expect("a synchronised norm is there");
    // One behind the other, so that one exchange takes both.
    let (mean, var) = (norm.running_mean, norm.running_var);
    travelling.resize(mean.len + var.len, 0.0);
    let (d, q) = travelling.split_at_mut(mean.len);
    kernels.read_arena(Arena::Moments, mean.offset, d);
    kernels.read_arena(Arena::Moments, var.offset, q);
    pool(travelling);
    let (d, q) = travelling.split_at(mean.len);
    kernels.write_arena(Arena::Moments, mean.offset, d);
    kernels.write_arena(Arena::Moments, var.offset, q);
}

/// Averages the sums of a synchronised norm's backward over ranks: those of all time steps at once.
fn pool_sums(
    layer: &NormLif,
    steps: Window,
    kernels: &mut dyn Kernels,
    travelling: &mut Vec<f32>,
    pool: &mut dyn FnMut(&mut [f32]),
) {
    let norm = layer.norm.expect("a synchronised norm is there");
    let sums = norm.sums.expect("a synchronised norm has sums");
    let len = 2 * layer.shape.channels;
    travelling.resize(steps.len * len, 0.0);
    for (t, values) in steps.newest_first().zip(travelling.chunks_exact_mut(len)) {
        kernels.read(sums, t, values);
    }
    pool(travelling);
    for (t, values) in steps.newest_first().zip(travelling.chunks_exact(len)) {
        kernels.write(sums, t, values);
    }
}
