//! On what a run computes.

use std::fmt;

use serde::{Serialize, Serializer};

/// GPUs of a machine that can be named.
const MAX_GPUS: u32 = 1024;

/// On what a run computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// On processors.
    Cpu,
    /// On one NVIDIA GPU: that of this number, or each rank on a GPU of its own, by its place among the
    /// ranks of its machine.
    Cuda(Option<u32>),
}

impl Device {
    /// What a text may be.
    pub const ALLOWED: &'static str = "\"cpu\", \"cuda\" or \"cuda:N\"";

    /// The device that a text names: `cpu`, `cuda` or `cuda:N`, N a number below 1024.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "cuda" => Some(Self::Cuda(None)),
            // A sign or a zero in front would be another text for the same device.
            Some(("cuda", number)) => number
                .parse()
                .ok()
                .filter(|&ordinal: &u32| ordinal < MAX_GPUS && ordinal.to_string() == number)
                .map(|ordinal| Self::Cuda(Some(ordinal))),
            _ => None,
        }
    }

    /// Whether it is a GPU.
    pub const fn is_cuda(self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda(_) => true,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(None) => formatter.write_str("cuda"),
            Self::Cuda(Some(ordinal)) => write!(formatter, "cuda:{ordinal}"),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_back_from_what_it_is_written_as() {
        for device in [
            Device::Cpu,
            Device::Cuda(None),
            Device::Cuda(Some(0)),
            Device::Cuda(Some(1023)),
        ] {
            assert_eq!(Device::parse(&device.to_string()), Some(device));
        }
        for text in [
            "",
            "gpu",
            "Cuda",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:01",
            "cuda:1024",
            "cuda:0:1",
            "cuda: 0",
            "cpu:0",
            "cuda:99999999999",
        ] {
            assert_eq!(Device::parse(text), None, "{text:?}");
        }
    }
}
