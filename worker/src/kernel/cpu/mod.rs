//! The CPU back end.
pub mod conv;
pub mod simd;
