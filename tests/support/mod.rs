//! What the tests share.
//!
//! # Layout
//!
//! - [`random`]: numbers that are the same in every run.
//! - [`outcome`]: named results and how close they must be.
//! - [`rig`]: a back end with its buffers filled, and what was read from it.
//! - [`autodiff`]: the oracle's tensors.
//! - [`cases`]: for each operation, the cases that every back end and every oracle must agree on.

pub mod autodiff;
pub mod cases;
pub mod outcome;
pub mod random;
pub mod rig;
