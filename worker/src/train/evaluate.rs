//! The test set, once through.

use super::Tally;
use super::pictures::{self, Changes};
use crate::data::batches::NO_LABEL;
use crate::data::{BadSample, DataError, Next, Source};
use crate::kernel::Failure;
use crate::learn::{Batch, Fault, Masks};
use crate::node::Node;

/// Why a network cannot be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// A test sample cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A loss or a membrane potential is not finite.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The device computes no more.
    #[error("the device failed: {0}")]
    Device(Failure),
}

/// What happens while the test set is gone through.
#[derive(Debug)]
pub enum Tested {
    /// A batch more.
    Batch,
    /// Samples that were left out.
    Bad(Vec<BadSample>),
}

/// The rank's part of the test set, every sample once, with running statistics; its loss is the mean
/// over samples, however batches and ranks cut the set. Nothing where it is to stop before the end.
///
/// # Errors
/// If a sample cannot be read, or a loss or a membrane potential is not finite.
pub fn evaluate(
    node: &mut Node,
    source: &Source,
    num_time_steps: usize,
    stops: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Tested),
) -> Result<Option<Tally>, EvaluateError> {
    let source = source.clone().raw(node.kernels.takes_pictures());
    let (mut tally, mut prefetch) = (Tally::default(), source.test());
    let mut changes = Changes::default();
    loop {
        let data = match prefetch.next_unless(stops)? {
            Next::Batch(data) if !stops() => data,
            Next::Batch(_) | Next::Stopped => return Ok(None),
            Next::End => break,
        };
        if !data.bad.is_empty() {
            tell(Tested::Bad(data.bad.clone()));
        }
        if data.labels.iter().all(|&label| label == NO_LABEL) {
            continue;
        }
        let pictures = changes.of(data, source.info().shape);
        let batch = Batch {
            index: data.place.batch_index as u64,
            input: pictures::input(pictures.as_ref(), data),
            labels: &data.labels,
            num_time_steps,
            masks: Masks::Keyed,
        };
        let learner = &mut node.learner;
        let mut result = Ok(());
        node.kernels.run(&mut |kernels| {
            learner.evaluate(kernels, &batch);
            result = learner.check(kernels);
        });
        let report = node.kernels.take_report();
        // What a device that has failed gives is no number of the network.
        if let Some(what) = node.failure() {
            return Err(EvaluateError::Device(what));
        }
        result?;
        tell(Tested::Batch);
        tally.add_by_samples(&report);
        // A device that computes ahead tells of a fault with the report.
        node.learner.check(&mut *node.kernels)?;
    }
    Ok(Some(tally))
}
