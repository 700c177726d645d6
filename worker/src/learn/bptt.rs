//! Backpropagation through time: the gradient of the sum of all time steps' losses, one update.

use super::{Algorithm, Batch, Fault, Learner, Observer};
use crate::engine::Network;
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
    ) -> Result<(), Fault> {
        kernels.write_labels(batch.labels);
        for t in 0..batch.num_time_steps {
            learner.feed(kernels, batch, t);
            learner.network.forward(kernels, t, Phase::Train);
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
        learner
            .network
            .backward(kernels, all, all, &mut |kernels, profile, span| {
                Network::update(kernels, profile, span, step);
            });
        observer.after_update(&learner.network, kernels);
        Ok(())
    }
}
