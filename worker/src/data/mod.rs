//! Bytes to samples to batches.
//!
//! # Layout
//!
//! In the order data meets them.
//!
//! - [`error`]: what can be wrong with data, and what to do about it.
//! - [`dataset`]: a data set in memory: pixels, labels, names, normalisation.
//! - [`fashion`]: the set built into the program, a subset of Fashion-MNIST.
//! - [`cifar`]: the binary files of CIFAR-10.
//! - [`pack`]: data sets into shards, which is another program's input, not this one's batches.
//! - [`picture`]: JPEG and PNG to pixels.
//! - [`autoaugment`]: AutoAugment with ImageNet's policy.
//! - [`imagenet`]: ImageNet's random crop and flip, and its centre crop.
//! - [`augment`]: random shift, flip and cutout, keyed by (seed, epoch, sample).
//! - [`raw`]: pictures as bytes, for whoever augments and normalises them elsewhere.
//! - [`batches`]: batches of a set in memory: the order of samples, and samples to normalised batches.
//! - [`prefetch`]: a thread that has the next batch ready.
//! - [`packed`]: batches of a set in shards.
//! - [`source`]: where a run's batches come from: one of these two.

pub mod augment;
pub mod autoaugment;
pub mod batches;
pub mod cifar;
pub mod dataset;
pub mod error;
pub mod fashion;
pub mod imagenet;
pub mod pack;
pub mod packed;
pub mod picture;
pub mod prefetch;
pub mod raw;
pub mod source;

pub use augment::Augment;
pub use batches::{Loader, Order};
pub use dataset::{Dataset, Normalise, Shape, Split};
pub use error::DataError;
pub use prefetch::{BadSample, Batch, Next, Place, Prefetch};
pub use raw::Raw;
pub use source::{Info, Source};
