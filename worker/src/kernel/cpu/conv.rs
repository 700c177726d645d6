//! Convolutions on the CPU.
