//! The CUDA back end: NVIDIA GPUs.
//!
//! # Layout
//!
//! - [`device`]: one GPU: its memory, streams, kernels, graphs and convolutions.

pub mod device;
