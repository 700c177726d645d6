//! Time steps as CUDA graphs: recorded once, replayed in every batch after.
//!
//! A time step is some two hundred launches of which many are shorter than it takes to launch them. A
//! graph is launched as one. What it consists of are addresses and sizes, so nothing that differs from
//! batch to batch may be an argument: inputs, labels and dropout masks are written before, learning
//! rates lie in device memory, and counters are the device's. Every time step t of a batch has a graph
//! of its own: slots of rings, the window and the place of its counts depend on t.
//!
//! The first batch runs as it is written, which makes cuDNN's plans and all scratch memory; the second
//! is recorded.

use super::CudaKernels;
use super::device::Graph;
use crate::kernel::{Kernels, Repeat, Step};
use std::collections::HashMap;

/// What is known of a time step.
#[derive(Debug)]
enum Known {
    /// It has run once.
    Ran,
    /// It could not be recorded: it runs as it is written.
    Refused,
    Recorded(Graph),
}

/// The graphs by what they do.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    known: HashMap<Repeat, Known>,
    /// How much scratch had been outgrown when they were recorded.
    outgrown: usize,
    /// Whether nothing is recorded.
    pub(super) are_off: bool,
}

impl CudaKernels {
    /// Whether time steps are recorded and replayed, which is the case unless it is turned off: to
    /// measure its parts, or to find a fault where it arises.
    pub fn set_graphs(&mut self, on: bool) {
        self.graphs.are_off = !on;
        self.graphs.known.clear();
    }

    /// Graphs that have been recorded.
    pub fn num_graphs(&self) -> usize {
        let known = self.graphs.known.values();
        known
            .filter(|known| matches!(known, Known::Recorded(_)))
            .count()
    }

    pub(super) fn repeat_recorded(
        &mut self,
        what: Repeat,
        step: Option<Step>,
        body: &mut dyn FnMut(&mut dyn Kernels),
    ) {
        self.counters.watch.is_late = true;
        if let Some(step) = step {
            self.tell(step);
        }
        if !what.may_record || self.graphs.are_off || self.failure.is_some() {
            return body(self);
        }
        // A graph has the addresses of the scratch that it was recorded with. Old scratch is kept, so
        // it would still be right; but it is recorded anew, so that the old one may go some day.
        if self.graphs.outgrown != self.scratch.outgrown.len() {
            self.graphs.known.clear();
            self.graphs.outgrown = self.scratch.outgrown.len();
        }
        match self.graphs.known.get(&what) {
            Some(Known::Recorded(graph)) => self.device.replay(graph),
            Some(Known::Refused) => body(self),
            Some(Known::Ran) => self.record(what, body),
            None => {
                body(self);
                self.graphs.known.insert(what, Known::Ran);
            }
        }
    }

    fn record(&mut self, what: Repeat, body: &mut dyn FnMut(&mut dyn Kernels)) {
        self.device.begin_capture();
        body(self);
        // Memory that it asked for is there when it runs as it is written.
        self.failure = None;
        let known = match self.device.end_capture() {
            Ok(graph) => {
                self.device.replay(&graph);
                Known::Recorded(graph)
            }
            Err(error) => {
                tracing::warn!("time steps are not replayed as graphs: {error}");
                // Nothing of it was done, writes neither.
                self.tables.clear();
                body(self);
                Known::Refused
            }
        };
        self.graphs.known.insert(what, known);
    }
}
