//! `synfire evaluate`.

use super::say;
use super::table::percent;
use crate::checkpoint::RunFolder;
use crate::data::{Augment, Loader};
use crate::shape::Shape;
use crate::weights::{self, Readout};
use crate::{node, train};
use anyhow::bail;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use synfire_shared::Run;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  synfire evaluate --checkpoint runs/1                                  the newest of a run folder
  synfire evaluate --checkpoint runs/1/checkpoints/000000001872.json    a certain one
  synfire evaluate mine.toml --checkpoint weights.safetensors           a weights file")]
pub(super) struct Arguments {
    /// The run as a TOML file; a run folder has its own, which is used where none is given
    config: Option<PathBuf>,
    /// A run folder, the manifest of a checkpoint in one, or a .safetensors or .pth file of weights
    #[arg(long, value_name = "PATH")]
    checkpoint: String,
    /// Folder of the data set, instead of the configuration's data.path
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Change a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let location = &arguments.checkpoint;
    let folder = if weights::is_file(location) {
        None
    } else {
        Some(RunFolder::of_checkpoint(location)?.0)
    };
    let run = configuration(arguments, folder.as_ref())?;
    let dataset = Arc::new(train::dataset(&run.data)?);
    if dataset.test.is_empty() {
        bail!("{} has no test set", dataset.name);
    }
    let shape = dataset.shape();
    let input = Shape::new(shape.height, shape.width, shape.channels);
    let mut node = node::build(&run, input, dataset.classes)?;
    let mut warn = |warning| eprintln!("warning: {warning}");
    let (name, _) = train::init::load(location, &mut node, Readout::Take, &mut warn)?;
    let images = dataset.test.len();
    let loader = Loader::new(dataset, Augment::None, run.seed, run.data.batch);
    let test = train::evaluate(&mut node, &loader, run.time_steps)?;
    say!("{name}: {images} test images");
    say!("test accuracy  {}", percent(test.accuracy()));
    say!("test loss      {:.4}", test.mean_loss());
    say!("by the logits up to time step");
    for (t, accuracy) in test.accuracies().into_iter().enumerate() {
        say!("  t={t:<4} {}", percent(accuracy));
    }
    Ok(ExitCode::SUCCESS)
}

fn configuration(arguments: &Arguments, folder: Option<&RunFolder>) -> anyhow::Result<Run> {
    let mut set = arguments.set.clone();
    set.extend(
        arguments
            .data
            .iter()
            .map(|data| format!("data.path={data}")),
    );
    match (&arguments.config, folder) {
        (None, Some(folder)) => {
            let name = format!("{}/config.toml", folder.shown());
            Ok(Run::from_toml(&folder.config()?, &name, &set)?)
        }
        (config, _) => super::train::read(config.as_ref(), &set),
    }
}
