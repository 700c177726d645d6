//! What a run tells while it goes, for Prometheus.
//!
//! # Layout
//!
//! - [`measure`]: the events of training, as values of the metrics.
//! - [`exporter`]: a thread that gives the metrics to who asks over HTTP.

pub mod exporter;
pub mod measure;

pub use exporter::{Exporter, ExporterError};
pub use measure::Measure;
