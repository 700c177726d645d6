//! The metrics of a coordinator.

use std::collections::BTreeMap;

use prometheus::core::Collector as _;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

use super::{counter, gauge, gauges, register};

/// The metrics of one coordinator, in a registry of their own.
#[derive(Debug)]
pub struct CoordinatorMetrics {
    registry: Registry,
    /// The number of the generation that trains; 0 of none.
    pub generation: Gauge,
    /// Ranks of the generation that trains.
    pub ranks: Gauge,
    /// Processes that wait for a generation.
    pub waiting: Gauge,
    /// Images per second of all ranks together.
    pub images_per_second: Gauge,
    /// Batches of the newest checkpoint that was reported.
    pub checkpoint_batches: Gauge,
    /// Processes that asked to join.
    pub joins: IntCounter,
    /// Generations that began.
    pub generations: IntCounter,
    /// Heartbeats of ranks.
    pub heartbeats: IntCounter,
    /// Messages of processes that are no ranks now.
    pub stale: IntCounter,
    /// Checkpoints that were reported.
    pub checkpoints: IntCounter,
    /// Allocations in which another coordinator was met.
    pub conflicts: IntCounter,
    /// Reads and writes of the run folder that failed.
    pub store_failures: IntCounter,
    silence: GaugeVec,
    lost: IntCounterVec,
    refusals: IntCounterVec,
    requests: IntCounterVec,
}

impl CoordinatorMetrics {
    /// The metrics of a coordinator that has just begun.
    #[expect(
        clippy::new_without_default,
        reason = "a registry of its own is no default of anything"
    )]
    pub fn new() -> Self {
        let registry = Registry::new();
        let put = &registry;
        let count = |name: &str, help: &str| counter(put, &named(name), help);
        let counts = |name: &str, help: &str, label: &str| {
            let options = Opts::new(named(name), help);
            register(put, IntCounterVec::new(options, &[label]))
        };
        let value = |name: &str, help: &str| gauge(put, &named(name), help);
        let speed = "Training images per second of all ranks together, as they last told.";
        let batches = "Batches done at the newest checkpoint that was reported.";
        let silence = "Time since a rank of the generation that trains was last heard of.";
        let lost = "Generations that ended before the run did, by reason.";
        let stale = "Messages of processes that are no ranks now.";
        let conflicts = "Allocations of generations in which another coordinator was met.";
        let failures = "Reads and writes of the run folder that failed.";
        let requests = "Requests that were let in, by route.";
        Self {
            generation: value("generation", "Number of the generation that trains."),
            ranks: value("ranks", "Ranks of the generation that trains."),
            waiting: value("waiting_processes", "Processes that wait for a generation."),
            images_per_second: value("images_per_second", speed),
            checkpoint_batches: value("checkpoint_batches", batches),
            joins: count("joins_total", "Processes that asked to join."),
            generations: count("generations_total", "Generations that began."),
            heartbeats: count("heartbeats_total", "Heartbeats of ranks."),
            stale: count("stale_messages_total", stale),
            checkpoints: count("checkpoints_total", "Checkpoints that were reported."),
            conflicts: count("conflicts_total", conflicts),
            store_failures: count("store_failures_total", failures),
            silence: gauges(put, &named("rank_silence_seconds"), silence, "rank"),
            lost: counts("lost_generations_total", lost, "reason"),
            refusals: counts("refusals_total", "What was refused, by reason.", "reason"),
            requests: counts("requests_total", requests, "route"),
            registry,
        }
    }

    /// Counts what is refused; `reason` is one of few words.
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// Counts a generation that was lost; `reason` is one of few words.
    pub fn lost(&self, reason: &str) {
        self.lost.with_label_values(&[reason]).inc();
    }

    /// Counts a request; `route` is one of those that are served.
    pub fn requested(&self, route: &str) {
        self.requests.with_label_values(&[route]).inc();
    }

    /// Sets for how long each rank was not heard of; others are forgotten.
    pub fn set_silence(&self, ranks: impl IntoIterator<Item = (u32, f64)>) {
        self.silence.reset();
        for (rank, seconds) in ranks {
            let rank = rank.to_string();
            self.silence.with_label_values(&[&rank]).set(seconds);
        }
    }

    /// How often something was refused, by reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let families = self.refusals.collect();
        let metrics = families
            .iter()
            .flat_map(prometheus::proto::MetricFamily::get_metric);
        let count = |metric: &prometheus::proto::Metric| {
            let reason = metric.get_label().first()?.value().to_owned();
            // Counts are whole numbers far below 2^53.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count is a whole number that is not negative"
            )]
            Some((reason, metric.get_counter().get_value() as u64))
        };
        metrics.filter_map(count).collect()
    }

    /// All values in Prometheus's text format.
    ///
    /// # Panics
    /// If the text cannot be formed, for which a metric would have to have no name.
    pub fn text(&self) -> String {
        let text = TextEncoder::new().encode_to_string(&self.registry.gather());
        text.expect("every metric has a name and writing to a string does not fail")
    }
}

fn named(name: &str) -> String {
    format!("synfire_coordinator_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_are_gone_are_told_no_more() {
        let metrics = CoordinatorMetrics::new();
        metrics.set_silence([(0, 0.5), (1, 3.0)]);
        metrics.set_silence([(1, 4.0)]);
        let text = metrics.text();
        assert!(text.contains("synfire_coordinator_rank_silence_seconds{rank=\"1\"} 4\n"));
        assert!(!text.contains("rank=\"0\""), "{text}");
        assert!(
            text.contains("\nsynfire_coordinator_generation 0\n"),
            "{text}"
        );
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let metrics = CoordinatorMetrics::new();
        metrics.refused("token");
        metrics.refused("token");
        metrics.refused("plan");
        let text = metrics.text();
        assert!(text.contains("synfire_coordinator_refusals_total{reason=\"token\"} 2\n"));
        let wanted = BTreeMap::from([("plan".to_owned(), 1), ("token".to_owned(), 2)]);
        assert_eq!(metrics.refusals(), wanted);
    }
}
