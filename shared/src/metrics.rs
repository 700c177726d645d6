//! Every metric of synfire: name, help, labels. No other file names one.
//!
//! Units are base units and end the name; counters end in `_total`.
//!
//! # Layout
//!
//! - this file: the metrics of a run; `coordinator`: those of a coordinator.

mod coordinator;

use prometheus::core::Collector;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, Opts};
use prometheus::{Registry, TextEncoder};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ids::Rank;

pub use coordinator::CoordinatorMetrics;

/// The type of the text that [`Metrics::text`] gives, as HTTP names it.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

const FAILURES: &str = "Checkpoints that could not be written.";

/// No rank has this number.
const NO_RANK: u32 = u32::MAX;

/// Which set of samples an accuracy is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The training set.
    Train,
    /// The test set.
    Test,
}

impl Split {
    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// What the bytes of `Metrics::memory` hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The process, as far as it is resident.
    Resident,
    /// The values that the window of time steps keeps for the backward.
    Windows,
    /// All that the back end holds of the network: buffers, weights, gradients, optimiser state.
    Device,
}

impl Memory {
    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident",
            Self::Windows => "windows",
            Self::Device => "device",
        }
    }
}

/// The metrics of one run, in a registry of their own.
///
/// Setting a value takes no lock that a reader of the text holds for long: values are atomics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The rank whose label values have; [`NO_RANK`] of a process that is alone.
    rank: AtomicU32,
    /// Training images, each counted in every epoch.
    pub images: IntCounter,
    /// Updates of the weights.
    pub updates: IntCounter,
    /// Samples that could not be used, each time that one was met.
    pub bad_samples: IntCounter,
    /// Seconds of each training batch, without the wait for its data.
    pub batch_seconds: Histogram,
    /// Seconds in which each training batch's data were waited for.
    pub data_wait_seconds: Histogram,
    /// Seconds in which each training batch waited for averages over ranks: communication that no
    /// computation hid.
    pub exchange_wait_seconds: Histogram,
    /// The same, per update, of the newest batch.
    pub exchange_wait_per_update: Gauge,
    /// The training loss of the epoch so far.
    pub loss: Gauge,
    /// The learning rate.
    pub learning_rate: Gauge,
    /// Checkpoints that were written.
    pub checkpoints: IntCounter,
    /// Checkpoints that could not be written.
    pub checkpoint_failures: IntCounter,
    /// Seconds that writing each checkpoint took, or trying to.
    pub checkpoint_write_seconds: Histogram,
    /// Seconds for which training stood still for each checkpoint.
    pub checkpoint_stall_seconds: Histogram,
    /// Bytes of the newest checkpoint.
    pub checkpoint_bytes: Gauge,
    accuracy: GaugeVec,
    firing_rate: GaugeVec,
    dead_neurons: GaugeVec,
    memory: GaugeVec,
}

impl Metrics {
    /// The metrics of a run that has not begun. What has a label appears when it is first set.
    #[expect(
        clippy::new_without_default,
        reason = "a registry of its own is no default of anything"
    )]
    pub fn new() -> Self {
        let registry = Registry::new();
        let put = &registry;
        let (exchange_wait_seconds, exchange_wait_per_update) = exchange(put);
        let loss = "Mean training loss over time steps and batches of the epoch so far.";
        let accuracy = "Share of samples that are right after the last time step: of the epoch so \
                        far for the split train, of the newest evaluation for the split test.";
        let firing_rate = "Spikes per neuron and time step in training, of the epoch so far.";
        let dead_neurons = "Share of neurons without a spike in any sample of a training batch at any \
                            time step: mean over the batches of the epoch so far.";
        let batch = "Time of a training batch once its data are there.";
        let wait = "Time in which a training batch's data were waited for.";
        let write = "Time in which a checkpoint was written, or was tried to be.";
        let stall = "Time for which training stood still to copy a checkpoint.";
        Self {
            images: counter(
                put,
                "synfire_images_total",
                "Training images, counted in every epoch.",
            ),
            updates: counter(put, "synfire_updates_total", "Updates of the weights."),
            bad_samples: counter(
                put,
                "synfire_bad_samples_total",
                "Samples that could not be used and were replaced or left out, each time.",
            ),
            // 1 ms to 65 s, and 10 us to 5 s.
            batch_seconds: histogram(put, "synfire_batch_seconds", batch, (1e-3, 2.0, 17)),
            data_wait_seconds: histogram(put, "synfire_data_wait_seconds", wait, (1e-5, 3.0, 13)),
            exchange_wait_seconds,
            exchange_wait_per_update,
            checkpoints: counter(
                put,
                "synfire_checkpoints_total",
                "Checkpoints that were written.",
            ),
            checkpoint_failures: counter(put, "synfire_checkpoint_failures_total", FAILURES),
            // 10 ms to 11 min, and 0.1 ms to 18 s.
            checkpoint_write_seconds: histogram(
                put,
                "synfire_checkpoint_write_seconds",
                write,
                (1e-2, 2.0, 17),
            ),
            checkpoint_stall_seconds: histogram(
                put,
                "synfire_checkpoint_stall_seconds",
                stall,
                (1e-4, 3.0, 12),
            ),
            checkpoint_bytes: gauge(
                put,
                "synfire_checkpoint_bytes",
                "Size of the newest checkpoint.",
            ),
            loss: gauge(put, "synfire_loss", loss),
            learning_rate: gauge(
                put,
                "synfire_learning_rate",
                "Learning rate of the newest batch.",
            ),
            accuracy: gauges(put, "synfire_accuracy_ratio", accuracy, "split"),
            firing_rate: gauges(put, "synfire_firing_rate_ratio", firing_rate, "layer"),
            dead_neurons: gauges(put, "synfire_dead_neurons_ratio", dead_neurons, "layer"),
            memory: gauges(
                put,
                "synfire_memory_bytes",
                "Memory, by what holds it.",
                "kind",
            ),
            rank: AtomicU32::new(NO_RANK),
            registry,
        }
    }

    /// Puts the label `rank` on every value from now on.
    pub fn set_rank(&self, rank: Rank) {
        self.rank.store(rank.0, Ordering::Relaxed);
    }

    /// Sets the share of samples that are right.
    pub fn set_accuracy(&self, split: Split, ratio: f64) {
        self.accuracy.with_label_values(&[split.name()]).set(ratio);
    }

    /// Sets a layer's spikes per neuron and time step.
    pub fn set_firing_rate(&self, layer: &str, ratio: f64) {
        self.firing_rate.with_label_values(&[layer]).set(ratio);
    }

    /// Sets a layer's share of dead neurons.
    pub fn set_dead_neurons(&self, layer: &str, ratio: f64) {
        self.dead_neurons.with_label_values(&[layer]).set(ratio);
    }

    /// Sets how much memory something holds.
    pub fn set_memory(&self, kind: Memory, bytes: u64) {
        let gauge = self.memory.with_label_values(&[kind.name()]);
        gauge.set(bytes as f64);
    }

    /// All values in Prometheus's text format.
    ///
    /// # Panics
    /// If the text cannot be formed, for which a metric would have to have no name.
    pub fn text(&self) -> String {
        let mut families = self.registry.gather();
        let rank = self.rank.load(Ordering::Relaxed);
        if rank != NO_RANK {
            for metric in families.iter_mut().flat_map(MetricFamily::mut_metric) {
                let mut label = LabelPair::default();
                label.set_name("rank".into());
                label.set_value(rank.to_string());
                let mut labels = metric.take_label();
                labels.push(label);
                metric.set_label(labels);
            }
        }
        let text = TextEncoder::new().encode_to_string(&families);
        text.expect("every metric has a name and writing to a string does not fail")
    }
}

/// How long training waited for averages over ranks, by batch and by update.
fn exchange(registry: &Registry) -> (Histogram, Gauge) {
    let batch = "Time in which a training batch waited for averages over ranks: communication that \
                 no computation hid.";
    let update =
        "Time in which an update of the newest batch waited for averages over ranks, mean.";
    let (by_batch, by_update) = (
        "synfire_exchange_wait_seconds",
        "synfire_exchange_wait_per_update_seconds",
    );
    (
        histogram(registry, by_batch, batch, (1e-5, 3.0, 13)),
        gauge(registry, by_update, update),
    )
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("names and labels are constants of the right form");
    let registered = registry.register(Box::new(metric.clone()));
    registered.expect("no name is used twice");
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::with_opts(Opts::new(name, help)))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, Gauge::with_opts(Opts::new(name, help)))
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> GaugeVec {
    register(registry, GaugeVec::new(Opts::new(name, help), &[label]))
}

/// Buckets from `start`, each `factor` times the one before.
fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    (start, factor, count): (f64, f64, usize),
) -> Histogram {
    let buckets = prometheus::exponential_buckets(start, factor, count);
    let buckets = buckets.expect("start and factor are constants of the right size");
    let options = HistogramOpts::new(name, help).buckets(buckets);
    register(registry, Histogram::with_opts(options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_has_not_begun_tells_zeros() {
        let text = Metrics::new().text();
        assert!(text.contains("# TYPE synfire_images_total counter\nsynfire_images_total 0\n"));
        assert!(text.contains("\nsynfire_batch_seconds_count 0\n"), "{text}");
    }

    #[test]
    fn every_value_of_a_rank_has_its_label() {
        let metrics = Metrics::new();
        metrics.set_rank(Rank(3));
        metrics.set_accuracy(Split::Test, 0.5);
        let text = metrics.text();
        assert!(text.contains("synfire_images_total{rank=\"3\"} 0\n"));
        let values = text.lines().filter(|line| !line.starts_with('#'));
        assert!(values.into_iter().all(|line| line.contains("rank=\"3\"")));
    }

    #[test]
    fn labels_are_escaped_and_values_replaced() {
        let metrics = Metrics::new();
        metrics.set_firing_rate("a\"b\n", 0.25);
        metrics.set_accuracy(Split::Test, 0.5);
        metrics.set_accuracy(Split::Test, 0.75);
        metrics.set_memory(Memory::Windows, 4096);
        let text = metrics.text();
        assert!(text.contains("synfire_firing_rate_ratio{layer=\"a\\\"b\\n\"} 0.25\n"));
        assert!(text.contains("synfire_accuracy_ratio{split=\"test\"} 0.75\n"));
        assert!(text.contains("synfire_memory_bytes{kind=\"windows\"} 4096\n"));
    }
}
