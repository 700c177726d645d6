//! `synfire verify`.

use super::engine::EngineArguments;
use super::say;
use crate::kernel::Kernels;
use crate::kernel::cpu::CpuKernels;
use crate::kernel::cpu::simd::Isa;
use crate::kernel::reference::ReferenceKernels;
use crate::node::{self, NodeError};
use crate::trace::algorithm::AlgorithmTrace;
use crate::trace::common::CommonTrace;
use crate::trace::compare::Comparison;
use crate::trace::replay::{ReplayError, replay, settings};
use crate::trace::{file, ops};
use anyhow::Context;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IsaArgument {
    Avx512,
    Avx2,
    Portable,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Tolerances: gradients 1e-4 max|g| + 1e-6; loss, logits, parameters, running \
statistics and single layers 1e-5 max|x| + 1e-6; spike counts exactly. A ratio of 1 in the table \
is the tolerance; time steps count over all batches.

Exit status: 0 all within tolerance; 1 something beyond it, or a file cannot be read; 2 an \
algorithm or option that is not built in this version."
)]
pub(super) struct Arguments {
    /// Traces NET.ALGORITHM.safetensors; NET.common.safetensors lies beside each
    #[arg(value_name = "TRACE", required_unless_present = "ops")]
    traces: Vec<PathBuf>,
    /// Check single layers from this file
    #[arg(long, value_name = "FILE")]
    ops: Option<PathBuf>,
    /// Print every tensor at every time step, not only the worst of each kind
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    engine: EngineArguments,
    /// The instruction set of the fast engine on processors; the best of this machine if left out
    #[arg(long, value_enum)]
    isa: Option<IsaArgument>,
}

/// How one file came out.
enum Outcome {
    Passed,
    Failed,
    NotBuilt,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (mut failed, mut not_built) = (0, 0);
    let mut count = |outcome: Outcome| match outcome {
        Outcome::Passed => {}
        Outcome::Failed => failed += 1,
        Outcome::NotBuilt => not_built += 1,
    };
    if let Some(path) = &arguments.ops {
        let read = file::read(path)?;
        let mut made = Ok(());
        let mut make = || match kernels(arguments) {
            Ok(kernels) => kernels,
            Err(error) => {
                made = Err(error);
                Box::new(ReferenceKernels::new())
            }
        };
        let comparison = ops::check(&read, &mut make)?;
        made?;
        count(show(arguments, path, &comparison));
    }
    let mut all = usize::from(arguments.ops.is_some());
    for path in &arguments.traces {
        if is_common(path) {
            say!("{} is read with the traces of its net\n", path.display());
            continue;
        }
        all += 1;
        count(verify(arguments, path).unwrap_or_else(|error| {
            eprintln!("error: {error:#}\n");
            Outcome::Failed
        }));
    }
    say!(
        "{} of {all} within tolerance, {failed} beyond, {not_built} not built",
        all - failed - not_built
    );
    Ok(match (failed, not_built) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    })
}

fn kernels(arguments: &Arguments) -> anyhow::Result<Box<dyn Kernels>> {
    let engine = &arguments.engine;
    let isa = match arguments.isa {
        Some(isa) if engine.is_fast_cpu() => isa,
        _ => return engine.open(),
    };
    let isa = match isa {
        IsaArgument::Avx512 => Isa::Avx512,
        IsaArgument::Avx2 => Isa::Avx2,
        IsaArgument::Portable => Isa::Portable,
    };
    Ok(Box::new(CpuKernels::new(engine.threads(), Some(isa))?))
}

fn verify(arguments: &Arguments, path: &Path) -> anyhow::Result<Outcome> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    let net = name.split('.').next().filter(|net| !net.is_empty());
    let net = net.with_context(|| format!("{} has no name", path.display()))?;
    let beside = path.with_file_name(format!("{net}.common.safetensors"));
    let common = CommonTrace::read(&beside);
    let common = common.with_context(|| {
        format!(
            "{} is read together with {}",
            path.display(),
            beside.display()
        )
    })?;
    let trace = AlgorithmTrace::read(path, &common)?;
    let mut kernels = kernels(arguments)?;
    let settings = settings(&common, &trace);
    node::check_memory(&common.graph, &settings, settings.samples, 1, &*kernels)
        .with_context(|| format!("cannot replay {}", path.display()))?;
    let replayed = replay(&common, &trace, &mut *kernels);
    // What a device that has failed gives is no number of the network.
    if let Some(what) = node::failure(&mut *kernels, settings.samples, settings.samples) {
        let error = NodeError::Device(what);
        return Err(error).with_context(|| format!("cannot replay {}", path.display()));
    }
    match replayed {
        Ok(comparison) => {
            say!("on {}", kernels.name());
            Ok(show(arguments, path, &comparison))
        }
        Err(error @ ReplayError::NotBuilt { .. }) => {
            eprintln!("{error}");
            Ok(Outcome::NotBuilt)
        }
        Err(error @ ReplayError::Fault { .. }) => Err(error.into()),
    }
}

/// Whether a file is what the traces of a net share.
fn is_common(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    name.split('.').nth(1) == Some("common")
}

fn show(arguments: &Arguments, path: &Path, comparison: &Comparison) -> Outcome {
    say!("{}", path.display());
    if arguments.all {
        for (quantity, deviation) in comparison.deviations() {
            say!("{quantity:<10} {:>7} {deviation}", "");
        }
        say!("");
    }
    say!("{comparison}");
    if comparison.passed() {
        say!("within tolerance\n");
        Outcome::Passed
    } else {
        say!("BEYOND TOLERANCE\n");
        Outcome::Failed
    }
}
