//! The metrics of a coordinator.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

use super::{counter, gauge, gauges, register};

/// The metrics of one coordinator, in a registry of their own.
#[derive(Debug)]
pub struct CoordinatorMetrics {
    registry: Registry,
    /// The number of the newest generation.
    pub generation: Gauge,
    /// Generations that this process has formed.
    pub generations: IntCounter,
    /// Ranks of the generation that trains.
    pub ranks: Gauge,
    /// Processes that wait for a generation.
    pub waiting: Gauge,
    /// Heartbeats that were taken.
    pub heartbeats: IntCounter,
    /// Ranks that died, fell silent or failed.
    pub lost: IntCounter,
    /// Batches of the newest checkpoint.
    pub checkpoint_batches: Gauge,
    /// Reads and writes of the run folder that failed.
    pub store_failures: IntCounter,
    /// Images per second of all ranks together.
    pub images_per_second: Gauge,
    silence: GaugeVec,
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
        let silence = "Time since a rank of the generation was last heard.";
        let requests = "Requests, by route.";
        let refusals = "Requests that were refused, by reason.";
        Self {
            generation: gauge(
                put,
                "synfire_coordinator_generation",
                "Number of the newest generation.",
            ),
            generations: counter(
                put,
                "synfire_coordinator_generations_total",
                "Generations that this process has formed.",
            ),
            ranks: gauge(
                put,
                "synfire_coordinator_ranks",
                "Ranks of the generation that trains.",
            ),
            waiting: gauge(
                put,
                "synfire_coordinator_waiting_processes",
                "Processes that wait for a generation.",
            ),
            heartbeats: counter(
                put,
                "synfire_coordinator_heartbeats_total",
                "Heartbeats that were taken.",
            ),
            lost: counter(
                put,
                "synfire_coordinator_lost_ranks_total",
                "Ranks that died, fell silent or failed.",
            ),
            checkpoint_batches: gauge(
                put,
                "synfire_coordinator_checkpoint_batches",
                "Batches done at the newest checkpoint.",
            ),
            store_failures: counter(
                put,
                "synfire_coordinator_store_failures_total",
                "Reads and writes of the run folder that failed.",
            ),
            images_per_second: gauge(
                put,
                "synfire_coordinator_images_per_second",
                "Training images per second of all ranks together, as they last told.",
            ),
            silence: gauges(
                put,
                "synfire_coordinator_rank_silence_seconds",
                silence,
                "rank",
            ),
            refusals: counters(
                put,
                "synfire_coordinator_refusals_total",
                refusals,
                "reason",
            ),
            requests: counters(put, "synfire_coordinator_requests_total", requests, "route"),
            registry,
        }
    }

    /// Counts a request that is refused; `reason` is one of few words.
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// Counts a request; `route` is one of the routes that are served, or one word for all others.
    pub fn requested(&self, route: &str) {
        self.requests.with_label_values(&[route]).inc();
    }

    /// Sets for how long each rank was not heard; others are forgotten.
    pub fn set_silence(&self, ranks: impl IntoIterator<Item = (u32, f64)>) {
        self.silence.reset();
        for (rank, seconds) in ranks {
            let rank = rank.to_string();
            self.silence.with_label_values(&[&rank]).set(seconds);
        }
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

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    register(
        registry,
        IntCounterVec::new(Opts::new(name, help), &[label]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_are_gone_are_told_no_more() {
        let metrics = CoordinatorMetrics::new();
        metrics.set_silence([(0, 0.5), (1, 3.0)]);
        metrics.set_silence([(1, 4.0)]);
        metrics.refused("token");
        let text = metrics.text();
        assert!(text.contains("synfire_coordinator_rank_silence_seconds{rank=\"1\"} 4\n"));
        assert!(!text.contains("rank=\"0\""), "{text}");
        assert!(text.contains("synfire_coordinator_refusals_total{reason=\"token\"} 1\n"));
        assert!(
            text.contains("\nsynfire_coordinator_generation 0\n"),
            "{text}"
        );
    }
}
