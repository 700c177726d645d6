//! The events of training, as values of the metrics.

use crate::memory;
use crate::train::{Event, Progress};
use std::sync::Arc;
use synfire_shared::Run;
use synfire_shared::metrics::{Memory, Metrics, Split};

/// Sets the metrics of a run from its events.
#[derive(Debug)]
pub struct Measure {
    metrics: Arc<Metrics>,
    images_of_a_batch: u64,
    layers: Vec<String>,
    /// Whether there are several ranks.
    is_grouped: bool,
}

impl Measure {
    /// For the events of `run`.
    pub fn new(run: &Run, metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            images_of_a_batch: run.data.batch as u64,
            layers: Vec::new(),
            is_grouped: false,
        }
    }

    /// Takes over what an event says.
    pub fn see(&mut self, event: &Event) {
        match event {
            Event::Began {
                layers,
                window_bytes,
                device_bytes,
                ..
            } => {
                self.layers.clone_from(layers);
                self.metrics.set_memory(Memory::Windows, *window_bytes);
                self.metrics.set_memory(Memory::Device, *device_bytes);
                self.resident();
            }
            // The sum over ranks is that of the run.
            Event::Grouped { samples, rank, .. } => {
                self.is_grouped = true;
                self.metrics.set_rank(*rank);
                self.images_of_a_batch = *samples as u64;
            }
            Event::Progress(progress) => self.progress(progress),
            Event::Epoch(record) => {
                if let Some(test) = record.tested() {
                    self.metrics.set_accuracy(Split::Test, test.accuracy());
                }
            }
            Event::BadSamples(bad) => self.metrics.bad_samples.inc_by(bad.len() as u64),
            &Event::CheckpointCopied { stall_seconds } => {
                self.metrics.checkpoint_stall_seconds.observe(stall_seconds);
            }
            &Event::CheckpointEnded { seconds, bytes, .. } => {
                let metrics = &self.metrics;
                metrics.checkpoint_write_seconds.observe(seconds);
                match bytes {
                    None => metrics.checkpoint_failures.inc(),
                    Some(bytes) => {
                        metrics.checkpoints.inc();
                        metrics.checkpoint_bytes.set(bytes as f64);
                    }
                }
            }
            // Counters count what this process did; a warning is a line of its log.
            Event::Initialised { .. }
            | Event::Resumed { .. }
            | Event::Recording { .. }
            | Event::Warning(_) => {}
        }
    }

    fn progress(&self, progress: &Progress) {
        let metrics = &*self.metrics;
        for timing in &progress.timings {
            metrics.batch_seconds.observe(timing.batch_seconds);
            metrics.data_wait_seconds.observe(timing.data_wait_seconds);
            metrics.images.inc_by(self.images_of_a_batch);
            if self.is_grouped {
                let seconds = timing.exchange_wait_seconds;
                metrics.exchange_wait_seconds.observe(seconds);
                let per_update = seconds / timing.updates.max(1) as f64;
                metrics.exchange_wait_per_update.set(per_update);
            }
            metrics.updates.inc_by(timing.updates);
        }
        metrics.loss.set(progress.tally.mean_loss());
        metrics.learning_rate.set(progress.lr);
        metrics.set_accuracy(Split::Train, progress.tally.accuracy());
        for (layer, rate) in self.layers.iter().zip(progress.tally.firing_rates()) {
            metrics.set_firing_rate(layer, rate);
        }
        for (layer, share) in self.layers.iter().zip(progress.tally.dead_shares()) {
            metrics.set_dead_neurons(layer, share);
        }
        self.resident();
    }

    fn resident(&self) {
        if let Some(bytes) = memory::resident_bytes() {
            self.metrics.set_memory(Memory::Resident, bytes);
        }
    }
}
