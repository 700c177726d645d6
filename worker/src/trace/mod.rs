//! Recorded reference runs: reading them, checking them, comparing with them.
//!
//! A trace is a pair of safetensors files: `<net>.common` says what was trained (the graph, the
//! starting weights, the inputs), `<net>.<algorithm>` what one algorithm made of it, time step by
//! time step. A third file, `ops`, holds single layers. All come from outside and are not trusted:
//! whatever their bytes are, reading ends in a checked value or in one [`TraceError`].
//!
//! # Layout
//!
//! - [`mod@file`]: bytes to named tensors and back.
//! - `metadata`: the strings beside the tensors, as checked values.
//! - `network`: the graph that a file describes.
//! - [`samples`]: what is shown to it: inputs, labels, masks.
//! - [`common`]: what all algorithms of one net share.
//! - [`algorithm`]: what one algorithm made of it.
//! - [`compare`]: how far apart two runs may be, and the table that says how far they are.
//! - [`replay`]: a recorded net, run again on any back end.
//! - [`ops`]: single layers, replayed on any back end.
//! - `error`: why a file is refused.

pub mod algorithm;
pub mod common;
pub mod compare;
mod error;
pub mod file;
mod metadata;
mod network;
pub mod ops;
pub mod record;
pub mod replay;
pub mod samples;

pub use error::TraceError;
