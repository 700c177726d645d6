//! `synfire doctor`: what this machine has for training, what it lacks, and what to do about it.
//!
//! # Layout
//!
//! - this file: the arguments, what is found together, and the verdict.
//! - `machine`: processor and memory.
//! - `cuda`: the libraries of CUDA, and GPUs.
//! - `mpi`: the launcher, and what this program is linked to.
//! - `text`: all of it for people.

mod cuda;
mod machine;
mod mpi;
mod text;

use super::{engine, say};
use serde::Serialize;
use std::process::ExitCode;
use synfire_shared::run::Device;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Libraries of CUDA are looked for in the folders of SYNFIRE_LIBRARIES, in those of \
LD_LIBRARY_PATH, in Python's packages (nvidia/*/lib), in CUDA's toolkit (CUDA_HOME, /usr/local/cuda), in \
the system's folders and in the list of the system's loader.

Exit status: 0 if training works, with --device cuda: on a GPU; 1 if not."
)]
pub(super) struct Arguments {
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
    /// On what training has to work for exit status 0
    #[arg(long, value_name = "cpu|cuda[:N]", default_value_t = Device::Cpu, value_parser = engine::device)]
    device: Device,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    synfire: &'static str,
    features: Features,
    processor: machine::Processor,
    memory: machine::Memory,
    libraries: Vec<cuda::LibraryReport>,
    /// Absent where the driver was not asked.
    gpus: Option<Vec<crate::libraries::Gpu>>,
    tools: Vec<cuda::ToolReport>,
    mpi: mpi::Mpi,
    /// Names of devices, as `run.device` has them.
    trains_on: Vec<String>,
    missing: Vec<Missing>,
}

/// With what the program was built.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a feature, and they are independent"
)]
struct Features {
    cuda: bool,
    nccl: bool,
    #[serde(rename = "burn-cuda")]
    burn_cuda: bool,
    mpi: bool,
}

impl Features {
    const BUILT: Self = Self {
        cuda: cfg!(feature = "cuda"),
        nccl: cfg!(feature = "nccl"),
        burn_cuda: cfg!(feature = "burn-cuda"),
        mpi: cfg!(feature = "mpi"),
    };

    fn all(self) -> [(&'static str, bool); 4] {
        [
            ("cuda", self.cuda),
            ("nccl", self.nccl),
            ("burn-cuda", self.burn_cuda),
            ("mpi", self.mpi),
        ]
    }
}

/// Something that is not there, and the one thing to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Missing {
    what: &'static str,
    why: String,
    remedy: String,
    /// Whether training on a GPU needs it.
    cuda_needs_it: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let report = Report::new();
    let works = report.trains(arguments.device);
    if arguments.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        say!("{}", text::text(&report).trim_end());
        if let Some(why) = report.refusal(arguments.device).filter(|_| !works) {
            say!("\n{} would not train: {why}", arguments.device);
        }
    }
    Ok(if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Report {
    fn new() -> Self {
        let features = Features::BUILT;
        let cuda = cuda::Cuda::look(features);
        let mpi = mpi::Mpi::look(features.mpi);
        let mut trains_on = vec!["cpu".to_owned()];
        trains_on.extend(cuda.trains_on());
        let mut missing = cuda.missing(features);
        missing.extend(mpi.missing());
        Self {
            synfire: env!("CARGO_PKG_VERSION"),
            features,
            processor: machine::Processor::look(),
            memory: machine::Memory::look(),
            libraries: cuda.libraries,
            gpus: cuda.gpus,
            tools: cuda.tools,
            mpi,
            trains_on,
            missing,
        }
    }

    fn trains(&self, device: Device) -> bool {
        let is = |wanted: &str| self.trains_on.iter().any(|name| name == wanted);
        match device {
            Device::Cuda(None) => self.trains_on.iter().any(|name| name.starts_with("cuda:")),
            Device::Cpu | Device::Cuda(Some(_)) => is(&device.to_string()),
        }
    }

    /// Why a device does not train.
    fn refusal(&self, device: Device) -> Option<String> {
        let mut needed = self.missing.iter().filter(|missing| missing.cuda_needs_it);
        if let Some(Missing { why, remedy, .. }) = needed.next() {
            return Some(format!("{why}: {remedy}"));
        }
        let others = self.trains_on.join(", ");
        device
            .is_cuda()
            .then(|| format!("there is no such GPU that does; those that do are {others}"))
    }
}
