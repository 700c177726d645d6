//! Backpropagation through time: the gradient of the sum of all time steps' losses, one update.

use super::{Algorithm, Batch, LearnError, Learner, Observer};
use crate::kernel::{Kernels, Phase, Window};

/// BPTT. Memory grows in proportion to T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bptt;

impl Algorithm for Bptt {
    fn name(&self) -> String {
        "bptt".into()
    }

    fn window(&self, num_time_steps: usize) -> usize {
        num_time_steps
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
            learner.forward(kernels, t);
            if let Some(exchange) = &mut learner.exchange {
                exchange.moments_now(kernels, &learner.network)?;
            }
            learner
                .network
                .loss(kernels, &learner.loss, t, Phase::Train);
            learner.check(kernels)?;
            observer.after_forward(&learner.network, kernels, t);
        }
        let all = Window {
            newest: batch.num_time_steps - 1,
            len: batch.num_time_steps,
        };
        let step = learner.optimiser.next();
        learner.backward_and_update(kernels, (all, all), (step, true))?;
        observer.after_update(&learner.network, kernels);
        Ok(())
    }
}
