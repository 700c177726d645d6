//! The arguments that say what computes, and on what.

use crate::backend::BackEnd;
use crate::kernel::{Kernels, Without};
use anyhow::ensure;
use clap::ValueEnum;
use synfire_shared::run::{Convolutions, Device, Engine, Precision};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineArgument {
    #[value(alias = "cpu")]
    Fast,
    Burn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PrecisionArgument {
    F32,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConvolutionsArgument {
    Legacy,
    Graph,
}

/// What computes, and on what.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArguments {
    /// What computes: the fast engine of the device, or the plain tensors that define it
    #[arg(long, value_enum, default_value = "fast")]
    engine: EngineArgument,
    /// On what: processors, or an NVIDIA GPU
    #[arg(long, value_name = "cpu|cuda[:N]", default_value_t = Device::Cpu, value_parser = device)]
    device: Device,
    /// What is multiplied in convolutions; bf16 on a GPU alone
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArgument,
    /// Let a GPU round the operands of f32 convolutions to TF32
    #[arg(long)]
    tf32: bool,
    /// By which interface of cuDNN a GPU computes convolutions: its legacy calls or its graph API
    #[arg(long, value_enum, default_value = "legacy")]
    convolutions: ConvolutionsArgument,
    /// Threads of the fast engine on processors; 0 is one per core
    #[arg(long, default_value_t = 0, value_parser = super::threads)]
    threads: u16,
}

/// A device by its name.
pub(super) fn device(text: &str) -> Result<Device, String> {
    Device::parse(text).ok_or_else(|| format!("it must be {}", Device::ALLOWED))
}

impl EngineArguments {
    /// Starts what they name.
    pub(super) fn open(&self) -> anyhow::Result<Box<dyn Kernels>> {
        self.open_without(Without::default())
    }

    /// The same, leaving something out.
    pub(super) fn open_without(&self, without: Without) -> anyhow::Result<Box<dyn Kernels>> {
        let is_special = self.tf32
            || self.precision == PrecisionArgument::Bf16
            || self.convolutions == ConvolutionsArgument::Graph;
        let is_plain = !self.device.is_cuda() || self.engine == EngineArgument::Burn;
        ensure!(
            without == Without::default() || !is_plain,
            "--without goes with --device cuda and --engine fast"
        );
        ensure!(
            !(is_special && is_plain),
            "--precision bf16, --tf32 and --convolutions graph go with --device cuda and --engine fast"
        );
        let back_end = BackEnd {
            engine: match self.engine {
                EngineArgument::Fast => Engine::Fast,
                EngineArgument::Burn => Engine::Burn,
            },
            device: self.device,
            precision: self.precision(),
            tf32: self.tf32,
            convolutions: self.convolutions(),
            threads: usize::from(self.threads),
            without,
        };
        Ok(back_end.open()?)
    }

    /// Whether the fast engine for processors is named.
    pub(super) fn is_fast_cpu(&self) -> bool {
        !self.device.is_cuda() && self.engine == EngineArgument::Fast
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn precision(&self) -> Precision {
        match self.precision {
            PrecisionArgument::F32 => Precision::F32,
            PrecisionArgument::Bf16 => Precision::Bf16,
        }
    }

    pub(super) fn convolutions(&self) -> Convolutions {
        match self.convolutions {
            ConvolutionsArgument::Legacy => Convolutions::Legacy,
            ConvolutionsArgument::Graph => Convolutions::Graph,
        }
    }

    /// Threads on processors, counted where there is one per core.
    pub(super) fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => usize::from(n),
        }
    }
}
