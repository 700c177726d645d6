//! For each operation, the cases that every back end and every oracle must agree on.
//!
//! # Layout
//!
//! - [`conv`]: convolutions and linear layers.
//! - [`norm_lif`]: batch norm, neurons and their sums, over a window.
//! - [`pool`]: the three pools, flatten.
//! - [`pointwise`]: dropout and residual joins.
//! - [`loss`]: the loss and what is counted beside it.
//! - [`update`]: SGD and `AdamW`.

pub mod conv;
pub mod loss;
pub mod norm_lif;
pub mod pointwise;
pub mod pool;
pub mod update;
