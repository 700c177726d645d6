//! Spatio-temporal online learning: Algorithm 1 of Xue, Liu, Wang, Qu.

use super::{Algorithm, Batch, LearnError, Learner, Observer};
use crate::kernel::{Kernels, Phase, Window};

/// STOL with a window of `window` time steps; the paper's is 2, Figure 3 has the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stol {
    /// The newest time steps that the error reaches, at least 1.
    pub window: usize,
}

impl Algorithm for Stol {
    fn name(&self) -> String {
        format!("stol (k = {})", self.window)
    }

    fn window(&self, num_time_steps: usize) -> usize {
        self.window.min(num_time_steps)
    }

    fn learn(
        &mut self,
        learner: &mut Learner,
        kernels: &mut dyn Kernels,
        batch: &Batch<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), LearnError> {
        kernels.write_labels(batch.labels);
        for t in 0..batch.num_time_steps {
            learner.feed(kernels, batch, t);
            let window = Window {
                newest: t,
                len: self.window.min(t + 1),
            };
            // Line 15: the older steps of the window get no error from the loss.
            let seeded = window.newest_only();
            let ends_batch = t + 1 == batch.num_time_steps;
            learner.time_step(
                kernels,
                (t, ends_batch),
                observer,
                &mut |learner, kernels, observer, step| {
                    learner.forward(kernels, t); // lines 1-9
                    learner
                        .network
                        .loss(kernels, &learner.loss, t, Phase::Train); // line 11, Eq. (11)
                    learner.check(kernels)?;
                    observer.after_forward(&learner.network, kernels, t);
                    // Lines 12-21.
                    learner.backward_and_update(kernels, (window, seeded), (step, ends_batch))?;
                    observer.after_update(&learner.network, kernels);
                    Ok(())
                },
            )?;
        }
        Ok(())
    }
}
