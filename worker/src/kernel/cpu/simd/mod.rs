//! Vector code: the only place of the CPU back end with `unsafe`.
