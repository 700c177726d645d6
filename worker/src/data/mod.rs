//!
//! # Layout
//!
//! In the order data meets them.
//!
//! - [`error`]: what can be wrong with data, and what to do about it.
//! - [`dataset`]: a data set in memory: pixels, labels, names, normalisation.
//! - [`fashion`]: the set built into the program, a subset of Fashion-MNIST.
//! - [`cifar`]: the binary files of CIFAR-10.

pub mod cifar;
pub mod dataset;
pub mod error;
pub mod fashion;

pub use dataset::{Dataset, Normalise, Shape, Split};
pub use error::DataError;
