//! `synfire evaluate`.

use super::table::percent;
use super::{engine, say};
use crate::checkpoint::RunFolder;
use crate::data::{BadSample, Source};
use crate::shape::Shape;
use crate::train::Tested;
use crate::weights::{self, Readout};
use crate::{node, train};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use synfire_shared::Run;
use synfire_shared::dataset::INDEX_NAME;
use synfire_shared::run::Device;
use synfire_shared::storage::Store;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  synfire evaluate --checkpoint runs/1                                  the newest of a run folder
  synfire evaluate --checkpoint runs/1/checkpoints/000000001872.json    a certain one
  synfire evaluate --checkpoint s3://bucket/runs/1                      in an object store
  synfire evaluate --checkpoint runs/1 --data s3://bucket/cifar10       on another copy of the data
  synfire evaluate mine.toml --checkpoint weights.safetensors           a weights file")]
pub(super) struct Arguments {
    /// The run as a TOML file; a run folder has its own, which is used where none is given
    config: Option<PathBuf>,
    /// The path or URL of a run folder or of the manifest of a checkpoint in one, or a .safetensors
    /// or .pth file of weights
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// Where the data set is, instead of the configuration's data.path: the folder or URL of a packed
    /// set, or of what data.source names
    #[arg(long, value_name = "DIR|URL")]
    data: Option<String>,
    /// On what to compute, instead of the configuration's run.device
    #[arg(long, value_name = "cpu|cuda[:N]", value_parser = engine::device)]
    device: Option<Device>,
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
    let source = Source::open(&run.data, run.seed)?;
    let info = source.info().clone();
    if info.test_len == 0 {
        bail!("{} has no test set", info.name);
    }
    let input = Shape::new(info.shape.height, info.shape.width, info.shape.channels);
    let mut node = node::build(&run, input, info.classes)?;
    let mut warn = |warning| eprintln!("warning: {warning}");
    let (name, _) = train::init::load(location, &mut node, Readout::Take, &mut warn)?;
    let mut bad: Vec<BadSample> = Vec::new();
    let test = train::evaluate(
        &mut node,
        &source,
        run.time_steps,
        &|| false,
        &mut |event| {
            if let Tested::Bad(more) = event {
                bad.extend(more);
            }
        },
    )?;
    let test = test.context("nothing stops it")?;
    for bad in &bad {
        eprintln!("warning: {}: {}; left out", bad.name, bad.reason);
    }
    let images = info.test_len - bad.len();
    if images == 0 {
        bail!("no sample of the test set of {} can be used", info.name);
    }
    say!("{name}: {images} test images of {}", info.name);
    say!("test accuracy  {}", percent(test.accuracy()));
    say!("test loss      {:.4}", test.mean_loss());
    say!("by the logits up to time step");
    for (t, accuracy) in test.accuracies().into_iter().enumerate() {
        say!("  t={t:<4} {}", percent(accuracy));
    }
    Ok(ExitCode::SUCCESS)
}

fn configuration(arguments: &Arguments, folder: Option<&RunFolder>) -> anyhow::Result<Run> {
    let mut set = super::train::with_device(&arguments.set, arguments.device);
    if let Some(data) = &arguments.data {
        // A set with an index is a packed one, whatever the run was trained on. A file has none.
        let is_file = Path::new(data).is_file();
        if !is_file && Store::open(data)?.head(INDEX_NAME)?.is_some() {
            set.push("data.source=packed".into());
        }
        set.push(format!("data.path={data}"));
    }
    match (&arguments.config, folder) {
        (None, Some(folder)) => {
            let name = format!("{}/config.toml", folder.shown());
            Ok(Run::from_toml(&folder.config()?, &name, &set)?)
        }
        (config, _) => super::train::read(config.as_ref(), &set),
    }
}
