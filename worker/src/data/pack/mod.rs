//! Data sets into shards: WebDataset tar files and their index.
//!
//! # Layout
//!
//! In the order data meets them.
//!
//! - [`error`]: what can go wrong, and what to do about it.
//! - `files`: named files of a folder or an archive, into memory; MD5 of official archives.
//! - [`cifar`], `cifar_names`: CIFAR-10 and CIFAR-100; `pickle`: their Python layout, read without
//!   executing it.
//! - [`idx`]: Fashion-MNIST from idx files.
//! - [`tree`]: folders named for their classes.
//! - [`imagenet`]: its nested archives, read in place; `devkit`: its validation labels; `matlab`: the
//!   table of classes there.
//! - [`set`]: a data set found in its source.
//! - `picture`: what a picture's bytes say that it is; pixels to PNG.
//! - `shard`: which samples go into which shard, and a shard's bytes.
//! - [`mod@write`]: all shards in parallel, and again after a killed run; the index last.

pub mod cifar;
mod cifar_names;
mod devkit;
pub mod error;
mod files;
pub mod idx;
pub mod imagenet;
mod matlab;
mod pickle;
mod picture;
pub mod set;
mod shard;
pub mod tree;
pub mod write;

pub use cifar::Cifar;
pub use error::PackError;
pub use set::Set;
pub use write::{Options, Progress, Report, pack};
