//! The seam between the engine and the hardware.
pub mod cpu;
