//! What was measured, for programs and for people.

use super::super::table::{Table, duration};
use super::{Arguments, Bench};
use crate::engine::plan::Role;
use crate::engine::profile::Work;
use crate::memory::peak_resident_mib;
use crate::train::Tally;
use serde_json::json;
use std::fmt::Write as _;

impl Bench {
    /// Median, minimum and maximum of images per second.
    fn rates(&self, arguments: &Arguments) -> (f64, f64, f64) {
        let rates = self.seconds.iter().map(|s| f64::from(arguments.batch) / s);
        let mut rates: Vec<f64> = rates.collect();
        rates.sort_by(f64::total_cmp);
        (median(&rates), rates[0], rates[rates.len() - 1])
    }

    pub(super) fn json(&self, arguments: &Arguments, tally: &Tally) -> serde_json::Value {
        let (middle, least, most) = self.rates(arguments);
        let batches = self.seconds.len() as f64;
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let works = Work::ALL.map(|work| {
            let total = self.work_seconds(work) / batches;
            (work.name().replace(' ', "_"), json!(total))
        });
        let loss = tally.mean_loss();
        let is_cuda = arguments.is_on_gpu();
        let [_, at_end] = self.memory;
        let peak = at_end.map(|taken| mib(taken.memory.peak));
        json!({
            "engine": "synfire",
            "back_end": self.kernels.name(),
            "algorithm": self.algorithm.name(),
            "model": arguments.model.to_string(),
            "batch": arguments.batch,
            "steps_T": arguments.time_steps,
            "dtype": arguments.engine.precision().name(),
            "convolutions": is_cuda.then(|| arguments.engine.convolutions().name()),
            "without": is_cuda.then(|| arguments.without().names()),
            "device": if is_cuda { "cuda" } else { "cpu" },
            "device_name": if is_cuda { self.kernels.name() } else { "cpu".into() },
            "threads": arguments.engine.threads(),
            "channels_last": true,
            "images_per_second": {"median": middle, "min": least, "max": most},
            "seconds_per_batch": median(&seconds),
            "iterations": arguments.iterations,
            "warmup": arguments.warmup(),
            "warmup_seconds": self.warmup_seconds,
            "peak_memory_mib": peak.or(peak_resident_mib()),
            "peak_memory_is": if peak.is_some() {
                "the most that was allocated on the device at once"
            } else {
                "process maximum resident size"
            },
            "peak_resident_mib": peak_resident_mib(),
            "device_memory": self.device_memory(),
            "input": if arguments.keep_input { "kept" } else { "copied with every batch" },
            "resident_before_mib": self.resident_before_mib,
            "window_mib": mib(self.learner.network.bytes(&*self.kernels, Role::Kept)),
            "firing_rate": tally.firing_rate(),
            "images": arguments.images.as_ref().map(|p| p.display().to_string()),
            "weights": arguments.weights.as_ref().map(|p| p.display().to_string()),
            "seconds_by_work": self.is_profiled().then(|| serde_json::Map::from_iter(works)),
            "profile": self.is_profiled().then(|| self.layers_json()),
            "profiled_seconds_per_batch": self.profiled_seconds_per_batch(),
            "synfire": env!("CARGO_PKG_VERSION"),
            "loss": loss,
            "loss_is_finite": loss.is_finite(),
        })
    }

    /// Bytes of the device's memory after the warm-up and at the end.
    fn device_memory(&self) -> Option<serde_json::Value> {
        let [Some(before), Some(after)] = self.memory else {
            return None;
        };
        let [before, after] = [before, after].map(|taken| {
            let (memory, free) = (taken.memory, taken.free);
            let [held, peak] = [memory.held, memory.peak];
            json!({"held_bytes": held, "peak_bytes": peak, "free_bytes": free, "graphs": memory.graphs})
        });
        Some(json!({"after_warmup": before, "at_end": after}))
    }

    fn is_profiled(&self) -> bool {
        self.learner.network.profile.is_on()
    }

    /// A batch whose parts are timed takes so long, where it is not the one that is timed as a whole.
    fn profiled_seconds_per_batch(&self) -> Option<f64> {
        let has_run = self.profiled_seconds > 0.0;
        has_run.then(|| self.profiled_seconds / self.seconds.len() as f64)
    }

    /// Seconds of a batch by layer and phase.
    fn layers_json(&self) -> serde_json::Value {
        let batches = self.seconds.len() as f64;
        let rows = self.learner.network.profile.rows().iter().enumerate();
        let rows = rows.map(|(index, row)| {
            let seconds = Work::ALL.into_iter().zip(row).filter(|(_, d)| !d.is_zero());
            let seconds = seconds.map(|(work, d)| {
                let name = work.name().replace(' ', "_");
                (name, json!(d.as_secs_f64() / batches))
            });
            let seconds: serde_json::Map<_, _> = seconds.collect();
            json!({"layer": self.layer_name(index), "seconds": seconds})
        });
        rows.collect()
    }

    fn layer_name(&self, row: usize) -> &str {
        let names = &self.learner.network.plan().stage_names;
        names.get(row).map_or("loss, update", |name| name)
    }

    fn work_seconds(&self, work: Work) -> f64 {
        let rows = self.learner.network.profile.rows();
        rows.iter()
            .map(|row| row[work as usize].as_secs_f64())
            .sum()
    }

    pub(super) fn text(&self, arguments: &Arguments, tally: &Tally) -> String {
        let (middle, least, most) = self.rates(arguments);
        let batches = self.seconds.len() as f64;
        let all = match self.profiled_seconds {
            0.0 => self.seconds.iter().sum(),
            apart => apart,
        };
        let mut text = format!(
            "{}, batch {}, T {}, {} on {}{}: milliseconds per batch, mean of {} batches\n\n",
            arguments.model,
            arguments.batch,
            arguments.time_steps,
            self.algorithm.name(),
            self.kernels.name(),
            match arguments.without().names()[..] {
                [] => String::new(),
                ref names => format!(" without {}", names.join(", ")),
            },
            self.seconds.len(),
        );
        if self.is_profiled() {
            text.push_str(&self.layers(batches, all).text());
        }
        let _ = write!(
            text,
            "\nimages/s        {middle:.2} (median; {least:.2} to {most:.2})\n\
             firing rate     {:.4}\n\
             warm-up         {}\n",
            tally.firing_rate(),
            duration(self.warmup_seconds),
        );
        let network = &self.learner.network;
        let _ = writeln!(
            text,
            "window          {:.1} MiB",
            mib(network.bytes(&*self.kernels, Role::Kept))
        );
        if let [_, Some(taken)] = self.memory {
            let peak = mib(taken.memory.peak);
            let _ = writeln!(text, "on the device   {peak:.1} MiB at most");
        }
        if let Some(peak) = peak_resident_mib() {
            let _ = writeln!(
                text,
                "peak resident   {peak:.0} MiB, {:.0} of them before the network was built",
                self.resident_before_mib
            );
        }
        text
    }

    fn layers(&self, batches: f64, all: f64) -> Table {
        let mut head = vec!["layer", "output"];
        head.extend(Work::ALL.iter().map(|work| work.name()));
        head.extend(["sum", "share"]);
        let mut table = Table::new(&head);
        let plan = self.learner.network.plan();
        let rows = self.learner.network.profile.rows();
        let mut push = |name: &str, shape: String, row: &[f64]| {
            let total: f64 = row.iter().sum();
            let mut cells = vec![name.to_owned(), shape];
            let number = |ms: f64| {
                if ms == 0.0 {
                    String::new()
                } else {
                    format!("{ms:.2}")
                }
            };
            cells.extend(row.iter().map(|&s| number(1e3 * s / batches)));
            cells.push(number(1e3 * total / batches));
            cells.push(format!("{:.1} %", 100.0 * total / all));
            table.push(cells);
        };
        let seconds = |row: &[std::time::Duration; Work::ALL.len()]| row.map(|d| d.as_secs_f64());
        for (index, row) in rows.iter().enumerate() {
            let name = self.layer_name(index);
            let shape = plan.stage_nodes.get(index).and_then(|nodes| nodes.last());
            let shape = shape.map(|&n| self.graph.value(self.graph.nodes()[n].output).shape);
            push(
                name,
                shape.map_or(String::new(), |s| s.to_string()),
                &seconds(row),
            );
        }
        let sums = Work::ALL.map(|work| self.work_seconds(work));
        push("all", String::new(), &sums);
        table
    }
}

fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
