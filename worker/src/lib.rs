//! The synfire engine: spiking networks trained online, at every time step, with STOL
//! (Xue, Liu, Wang, Qu, *Reasonable Gradients for Online Training Algorithms in Spiking Neural
//! Networks*).
//!
//! # Layout
//!
//! In the order data meets them; arrows between modules are checked by `tests/layering.rs`.
//!
//! - [`libraries`]: where the libraries of CUDA are.
//! - `pickle`: Python's pickles, read without executing them.
//! - [`data`]: bytes to samples to batches.
//! - [`graph`]: what a network is: nodes, values, topological order; the models by name.
//! - [`kernel`]: the seam: one function per operation, and its back ends.
//! - [`backend`]: which back end computes: an engine on a device.
//! - [`engine`]: one time step, forward and backward over a window.
//! - [`learn`]: when to update, and how far back the error reaches.
//! - [`trace`]: recorded reference runs: reading, replaying, recording.
//! - [`weights`]: weights in files, our own and PyTorch's.
//! - [`checkpoint`]: a run folder and its checkpoints.
//! - [`collective`]: groups of ranks that average their numbers.
//! - [`train`]: the training loop.
//! - [`control`]: what a worker has to do with the coordinator.
//! - [`observe`]: what a run tells while it goes, for Prometheus.
//! - [`report`]: what a run has told, as a page of HTML.
//! - [`cli`]: the verbs of the command line.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod collective;
pub mod control;
pub mod data;
pub mod engine;
pub mod graph;
pub mod kernel;
pub mod learn;
pub mod libraries;
pub mod memory;
pub mod node;
pub mod observe;
mod pickle;
pub mod report;
pub mod shape;
pub mod trace;
pub mod train;
pub mod weights;
