//! The vocabulary of synfire's programs: runs, time, chance.
//!
//! # Layout
//!
//! - [`ids`]: epochs, time steps, ranks and updates, kept apart by their types.
//! - [`random`]: random draws keyed by what they are for, so that no draw depends on another.
//! - [`shard_plan`]: the order of samples in an epoch, and which rank reads which of them.
//! - `keys`: every key of a configuration file: type, range, default, meaning.
//! - `run_file`: a run as written in TOML and on the command line; `faults`: what is wrong with it.
//! - `check`: values against the keys and each other; `values`: what is left, with defaults.
//! - [`run`]: a run as checked, the only form that other crates see; its parts are in `model`,
//!   `learn` and `schedule`, its enums' names come from `named`.
//! - [`dataset`]: `index.json`, which says what a set packed into shards holds and where.
//! - [`storage`]: folders and object stores behind one interface.
//! - `write`: a checked run as a file again.
//! - [`metrics`]: every metric's name, help and labels.
//! - [`token`]: the token by which a coordinator knows who may join.
//! - [`checkpoint`]: what a checkpoint is: its manifest, its names, when it exists, which are kept.
//! - [`protocol`]: what workers and the coordinator tell each other.
//! - [`generation`]: the ranks that train together; which checkpoints count.

mod check;
pub mod checkpoint;
pub mod dataset;
mod device;
mod faults;
pub mod generation;
pub mod ids;
mod keys;
mod learn;
pub mod metrics;
mod model;
mod named;
pub mod protocol;
pub mod random;
pub mod run;
mod run_file;
mod schedule;
pub mod shard_plan;
pub mod storage;
pub mod token;
mod values;
mod write;

pub use faults::{Fault, Place, RunErrors};
pub use run::{QUICKSTART, Run};
