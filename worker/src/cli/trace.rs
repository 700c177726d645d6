//! `synfire trace`.

use super::say;
use super::table::thousands;
use super::train;
use crate::data::{Place, Source};
use crate::node;
use crate::shape::Shape;
use crate::trace::file;
use crate::trace::record::{Recorded, record};
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;
use synfire_shared::ids::Epoch;
use synfire_shared::run;

/// How far from the threshold every potential must stay for a trace to hold on other machines.
const SAFE_MARGIN: f64 = 1e-5;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Writes OUT/NET.common.safetensors (graph, starting weights, pictures) and \
OUT/NET.ALGORITHM.safetensors (loss, logits, rates, every gradient, parameter and running statistic \
at every time step). `synfire verify` replays them on another machine, driver or back end.

A trace repeats every weight at every update: keep the net and the batch small. Spike counts are \
compared exactly, so a trace whose threshold_margin is below about 1e-5 may fail elsewhere by \
rounding alone; then record another seed.

Example:
  synfire trace --net quick --set data.batch=4 --out traces
  synfire verify traces/quick.stol_k2_saved.safetensors --engine burn"
)]
pub(super) struct Arguments {
    /// The run as a TOML file; without it, the built-in one
    config: Option<PathBuf>,
    /// Change a key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The folder for the two files; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The name of the net in the files' names
    #[arg(long, default_value = "net", value_parser = net_name)]
    net: String,
    /// Batches
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    batches: u32,
}

/// A name that may stand before the first dot of a file's name.
fn net_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !text.is_empty() && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("use letters, digits, _ and -".into())
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let run = train::read(arguments.config.as_ref(), &arguments.set)?;
    // Recorded runs show the samples as they are.
    let mut data = run.data.clone();
    data.augment = run::Augment::None;
    let source = Source::open(&data, run.seed)?;
    let info = source.info();
    let input = Shape::new(info.shape.height, info.shape.width, info.shape.channels);
    let wanted = arguments.batches as usize;
    anyhow::ensure!(
        source.train_batches() >= wanted,
        "the training set has {} batches of {}, --batches asks for {wanted}",
        source.train_batches(),
        run.data.batch
    );
    let first = Place {
        epoch: Epoch(0),
        batch_index: 0,
    };
    let mut prefetch = source.train(first, Epoch(1));
    let mut batches = Vec::new();
    while batches.len() < wanted {
        let batch = prefetch.next_batch()?;
        let batch = batch.context("an epoch has as many batches as it says")?;
        batches.push(Recorded {
            x_nhwc: batch.x_nhwc.clone(),
            labels: batch.labels.clone(),
        });
    }
    let mut node = node::build(&run, input, info.classes)?;
    let (common, own) = record(
        &run,
        &node.graph,
        &mut node.learner,
        &mut *node.algorithm,
        &mut *node.kernels,
        &batches,
    )?;
    let algorithm = match run.algorithm {
        run::Algorithm::Stol { window } => format!("stol_k{window}_saved"),
        run::Algorithm::Bptt => "bptt".into(),
    };
    let folder = &arguments.out;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (part, contents) in [("common", &common), (algorithm.as_str(), &own)] {
        let path = folder.join(format!("{}.{part}.safetensors", arguments.net));
        file::write(&path, contents)?;
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        say!("{} ({} bytes)", path.display(), thousands(bytes));
    }
    let margin = own.metadata.get("threshold_margin");
    let margin: f64 = margin.and_then(|m| m.parse().ok()).unwrap_or(0.0);
    say!("closest membrane potential to the threshold: {margin:.1e}");
    if margin < SAFE_MARGIN {
        say!(
            "warning: that is less than {SAFE_MARGIN:e}: elsewhere rounding alone may make another \
             spike; record with another run.seed"
        );
    }
    Ok(ExitCode::SUCCESS)
}
