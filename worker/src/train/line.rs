//! An epoch as a line of `metrics.jsonl`: written after each, read again when a run is resumed.

use super::{EpochRecord, Tally};
use crate::memory::{peak_resident_mib, resident_bytes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An epoch in numbers. Fields that are not known are ignored, so that later versions may add some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochLine {
    /// The epoch, from 0.
    pub epoch: u32,
    /// Its learning rate.
    pub lr: f64,
    /// Mean training loss over time steps and batches.
    pub loss: f64,
    /// Share of the training samples that is right after the last time step.
    pub train_accuracy: f64,
    /// The same by the logits summed up to each time step.
    pub train_accuracy_by_time_step: Vec<f64>,
    /// Mean loss on the test set, where the epoch ended with it.
    pub test_loss: Option<f64>,
    /// Share of the test set that is right.
    pub test_accuracy: Option<f64>,
    /// The same by time step.
    pub test_accuracy_by_time_step: Option<Vec<f64>>,
    /// Spikes per neuron and time step in training.
    pub firing_rate: f64,
    /// The same by layer of neurons.
    pub firing_rate_by_layer: BTreeMap<String, f64>,
    /// Share of the neurons that were dead in a training batch, mean over batches.
    #[serde(default)]
    pub dead: f64,
    /// The same by layer of neurons.
    #[serde(default)]
    pub dead_by_layer: BTreeMap<String, f64>,
    /// Training images per second.
    pub images_per_second: f64,
    /// Seconds of training.
    pub train_seconds: f64,
    /// Of these, seconds in which data were waited for.
    pub data_wait_seconds: f64,
    /// Of these, seconds in which averages over ranks were waited for.
    #[serde(default)]
    pub exchange_wait_seconds: f64,
    /// Updates of the weights in this epoch.
    #[serde(default)]
    pub updates: u64,
    /// The process's resident memory at its end.
    pub resident_mib: Option<f64>,
    /// The most that it was until then.
    pub peak_resident_mib: Option<f64>,
}

impl EpochLine {
    /// An epoch that has just ended. `names` are layers of neurons with the numbers of their
    /// counters.
    pub fn new<'a>(
        record: &EpochRecord,
        names: impl IntoIterator<Item = (&'a String, usize)>,
    ) -> Self {
        let (train, test) = (&record.train, record.tested());
        let names: Vec<_> = names.into_iter().collect();
        let by_layer = |values: &[f64]| -> BTreeMap<String, f64> {
            let values = names
                .iter()
                .filter_map(|(name, counter)| Some(((*name).clone(), *values.get(*counter)?)));
            values.collect()
        };
        Self {
            epoch: record.epoch,
            lr: record.lr,
            loss: train.mean_loss(),
            train_accuracy: train.accuracy(),
            train_accuracy_by_time_step: train.accuracies(),
            test_loss: test.map(Tally::mean_loss),
            test_accuracy: test.map(Tally::accuracy),
            test_accuracy_by_time_step: test.map(Tally::accuracies),
            firing_rate: train.firing_rate(),
            firing_rate_by_layer: by_layer(&train.firing_rates()),
            dead: train.dead_share(),
            dead_by_layer: by_layer(&train.dead_shares()),
            images_per_second: record.images_per_second,
            train_seconds: record.train_seconds,
            data_wait_seconds: record.data_wait_seconds,
            exchange_wait_seconds: record.exchange_wait_seconds,
            updates: record.updates,
            resident_mib: resident_bytes().map(|b| b as f64 / f64::from(1 << 20)),
            peak_resident_mib: peak_resident_mib(),
        }
    }

    /// The epochs of a run's `metrics.jsonl`; what is no such line is left out.
    pub fn of_file(bytes: &[u8]) -> Vec<Self> {
        let lines = bytes.split(|&byte| byte == b'\n');
        lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }

    /// The line, without its end.
    ///
    /// # Panics
    /// Never: numbers, texts and lists are JSON.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("numbers, texts and lists are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let tally = Tally {
            loss: vec![2.0, 1.0],
            correct: vec![3, 7],
            samples: vec![9, 9],
            batches: vec![1, 1],
            spikes: vec![5, 1],
            neurons: vec![10, 10],
            silent: vec![1, 2],
            observed: vec![4, 4],
        };
        let record = EpochRecord {
            epoch: 3,
            lr: 0.1,
            train: tally.clone(),
            test: Some(tally),
            train_seconds: 2.5,
            images_per_second: 3.6,
            data_wait_seconds: 0.25,
            exchange_wait_seconds: 0.125,
            updates: 8,
        };
        let names = ["a".to_owned(), "b".to_owned(), "twin".to_owned()];
        let line = EpochLine::new(&record, names.iter().zip([0, 1, 1]));
        let text = format!("{}\nno line\n{}", line.text(), line.text());
        assert_eq!(EpochLine::of_file(text.as_bytes()), [line.clone(), line]);
        assert!(text.contains("\"firing_rate_by_layer\":{\"a\":0.5,\"b\":0.1,\"twin\":0.1}"));
        assert!(text.contains("\"dead_by_layer\":{\"a\":0.25,\"b\":0.5,\"twin\":0.5}"));
        assert!(EpochLine::of_file(b"\xff{}\n[]").is_empty());
    }
}
