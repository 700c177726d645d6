//! Decides who trains as which rank, from which checkpoint; never sees a tensor.
//!
//! # Layout
