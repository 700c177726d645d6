//! The weights that a run starts from.

use super::{Event, TrainError};
use crate::checkpoint::{CheckpointError, RunFolder};
use crate::node::Node;
use crate::weights::{self, Readout, Taken};
use synfire_shared::run::Init;

/// Takes the weights that the run starts from, if it names some; the node's own were drawn.
///
/// # Errors
/// If they cannot be read, or are not those of the network; nothing is changed then.
pub fn initialise(
    init: &Init,
    node: &mut Node,
    tell: &mut dyn FnMut(Event),
) -> Result<(), TrainError> {
    let Some(location) = &init.from else {
        return Ok(());
    };
    let readout = if init.skip_readout {
        Readout::Keep
    } else {
        Readout::Take
    };
    let (from, taken) = load(location, node, readout, &mut |w| tell(Event::Warning(w)))?;
    tell(Event::Initialised { from, taken });
    Ok(())
}

/// Takes the weights at a location: a file, a run folder with its newest good checkpoint, or a
/// checkpoint's manifest. Returns their full name, and what was taken.
///
/// # Errors
/// If they cannot be read, or are not those of the network; nothing is changed then.
pub fn load(
    location: &str,
    node: &mut Node,
    readout: Readout,
    warn: &mut dyn FnMut(String),
) -> Result<(String, Taken), TrainError> {
    let network = &node.learner.network;
    let kernels = &mut *node.kernels;
    if weights::is_file(location) {
        let read = weights::read(location)?;
        let taken = weights::apply(&read, network, kernels, readout)?;
        return Ok((read.name, taken));
    }
    let (folder, number) = RunFolder::of_checkpoint(location)?;
    let loaded = match number {
        Some(number) => folder.load(number, None)?,
        None => folder
            .newest_good(None, &mut |_, warning| warn(warning))?
            .ok_or_else(|| CheckpointError::Nothing {
                folder: location.to_owned(),
            })?,
    };
    let taken = weights::apply(loaded.weights(), network, kernels, readout)?;
    Ok((loaded.name, taken))
}
