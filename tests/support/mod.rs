//! What the tests share.
//!
//! # Layout
//!
//! - [`random`]: numbers that are the same in every run.
//! - [`outcome`]: named results and how close they must be.
//! - [`rig`]: a back end with its buffers filled, and what was read from it.
//! - [`autodiff`]: the oracle's tensors.
//! - [`allocator`]: an allocator that counts.
//! - [`pictures`]: pictures as bytes with every change that there is.
//! - [`training`]: networks in training on any back end, and what is seen of them.
//! - [`oracle`]: a whole network in the oracle's tensors, and its gradients through a window.
//! - [`ranks`]: what every group of ranks must do.
//! - [`cases`]: for each operation, the cases that every back end and every oracle must agree on.

pub mod allocator;
pub mod autodiff;
pub mod cases;
pub mod oracle;
pub mod outcome;
pub mod pictures;
pub mod random;
pub mod ranks;
pub mod rig;
pub mod training;
