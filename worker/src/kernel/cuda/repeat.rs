//! Time steps as CUDA graphs: recorded once per phase of the rings, and replayed from there on.
//!
//! A time step is some two hundred launches of which many are shorter than it takes to launch them. A
//! graph is launched as one. What it consists of are addresses and sizes, so nothing that differs from
//! one time to the next may be an argument: inputs, labels and dropout masks are written before, learning
//! rates and the number of the time step lie in device memory, and counters are the device's. What is left
//! of t are the slots of rings and how full the window is: with STOL's window of k, time steps from
//! k - 1 on are alike where they are k apart. So a batch of any length has a graph for each of its first k - 1
//! (at least one) and k more, in training and in evaluation: memory, of which a graph takes some in the driver,
//! does not grow with T.
//!
//! # In parts
//!
//! Where other ranks take part, averages stand in the middle of a time step ([`Kernels::in_between`]), and a
//! time step is a row of graphs: up to the first average, from there to the second, and so on. To repeat
//! it the body is called again with the device muted. It walks through its calls, which cost the host
//! little when nothing is launched; wherever an average stands, the graph up to there is launched and then
//! the average is started. Order and conditions of averages are written once, in the body.
//!
//! Averages are not captured themselves: a graph says nothing until it has ended, and whoever watches over
//! averages has to see which of them waits for whom.
//!
//! A time step runs as it is written first, which makes cuDNN's plans and scratch memory; it is recorded when it
//! comes again: the body is called once to capture all parts, without the averages, and then the parts are
//! done as in a repetition, so that nothing has been done where something cannot be captured. Where scratch
//! memory grows later, what was recorded is recorded anew.

use super::CudaKernels;
use super::device::{CudaError, Graph};
use crate::kernel::{Kernels, Repeat, Step};
use std::collections::HashMap;

/// The body of a time step.
type Body<'a> = &'a mut dyn FnMut(&mut dyn Kernels);

/// What is known of a time step.
#[derive(Debug)]
enum Known {
    /// It has run once.
    Ran,
    /// It could not be recorded: it runs as it is written.
    Refused,
    /// Its parts: between them stands what is done anew each time.
    Recorded(Vec<Graph>),
}

/// What calls do.
#[derive(Debug, Default)]
enum Stage {
    /// What they say.
    #[default]
    Written,
    /// They are captured: the parts so far, or why it is in vain.
    Recording(Result<Vec<Graph>, CudaError>),
    /// Nothing: parts do it, of which `next` is to be launched next.
    Replaying { parts: Vec<Graph>, next: usize },
    /// What they say, between two parts.
    Between,
}

/// The graphs by what they do.
#[derive(Debug, Default)]
pub(super) struct Graphs {
    known: HashMap<Repeat, Known>,
    stage: Stage,
    /// Whether nothing is recorded: to measure what that gives, or to find a fault where it arises.
    are_off: bool,
}

impl Graphs {
    pub(super) fn new(are_off: bool) -> Self {
        Self {
            are_off,
            ..Self::default()
        }
    }

    /// Whether calls do what they say.
    pub(super) fn are_calls_made(&self) -> bool {
        matches!(self.stage, Stage::Written | Stage::Between)
    }

    /// Whether memory that was in use must not go yet.
    pub(super) fn hold_addresses(&self) -> bool {
        let is_recorded = |known: &Known| matches!(known, Known::Recorded(_));
        !matches!(self.stage, Stage::Written) || self.known.values().any(is_recorded)
    }
}

impl CudaKernels {
    /// Time steps that have been recorded.
    pub fn num_recorded(&self) -> usize {
        let known = self.graphs.known.values();
        known
            .filter(|known| matches!(known, Known::Recorded(_)))
            .count()
    }

    /// Graphs that have been recorded, one for each part of a time step.
    pub fn num_graphs(&self) -> usize {
        let known = self.graphs.known.values();
        known
            .filter_map(|known| match known {
                Known::Recorded(parts) => Some(parts.iter().filter(|part| !part.is_empty())),
                Known::Ran | Known::Refused => None,
            })
            .flatten()
            .count()
    }

    pub(super) fn repeat_recorded(
        &mut self,
        what: Repeat,
        t: usize,
        step: Option<Step>,
        body: Body<'_>,
    ) {
        self.counters.watch.is_late = true;
        self.tell_time(t);
        if let Some(step) = step {
            self.tell(step);
        }
        if !what.may_record || self.graphs.are_off || self.is_over() {
            return body(self);
        }
        // A graph has the addresses of the scratch that it was recorded with: what was outgrown goes, and
        // they are recorded anew.
        if !self.scratch.outgrown.is_empty() {
            let recorded = self.graphs.known.values_mut();
            recorded.for_each(|known| *known = Known::Ran);
            // Waits for the replays that are under way.
            self.scratch.outgrown.clear();
        }
        let known = match self.graphs.known.remove(&what) {
            Some(Known::Recorded(parts)) => Known::Recorded(self.replay(parts, body)),
            Some(Known::Refused) => {
                body(self);
                Known::Refused
            }
            Some(Known::Ran) => self.record(body),
            None => {
                body(self);
                Known::Ran
            }
        };
        self.graphs.known.insert(what, known);
    }

    /// Whether the body would end before its end: what was recorded of it would be half a time step.
    fn is_over(&self) -> bool {
        self.failure.is_some() || self.counters.watch.has_found()
    }

    fn record(&mut self, body: Body<'_>) -> Known {
        match self.capture(body) {
            Ok(parts) => Known::Recorded(self.replay(parts, body)),
            // It asked for what there is once it has run once more.
            Err(CudaError::WhileCapturing {
                call: "allocate" | "a new convolution",
            }) => {
                body(self);
                Known::Ran
            }
            Err(error) => {
                tracing::warn!("time steps are not replayed as graphs: {error}");
                // Nothing of it was done, writes neither.
                self.tables.clear();
                body(self);
                Known::Refused
            }
        }
    }

    /// Captures the parts of a time step. Nothing of it is done.
    fn capture(&mut self, body: Body<'_>) -> Result<Vec<Graph>, CudaError> {
        self.graphs.stage = Stage::Recording(Ok(Vec::new()));
        self.device.begin_capture();
        body(self);
        self.end_part();
        self.device.give_up(false);
        let Stage::Recording(parts) = std::mem::take(&mut self.graphs.stage) else {
            unreachable!("nothing else has begun since");
        };
        // Memory or a plan that it asked for: from there on nothing was launched.
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => parts,
        }
    }

    /// Ends the part that is being captured. Whether another one may begin.
    fn end_part(&mut self) -> bool {
        let Stage::Recording(recording) = &mut self.graphs.stage else {
            return false;
        };
        let Ok(parts) = recording else {
            return false;
        };
        match self.device.end_capture() {
            Ok(part) => {
                parts.push(part);
                true
            }
            Err(error) => {
                *recording = Err(error);
                // The rest of the body does nothing.
                self.device.give_up(true);
                false
            }
        }
    }

    /// Does what was recorded.
    fn replay(&mut self, parts: Vec<Graph>, body: Body<'_>) -> Vec<Graph> {
        if let [whole] = &parts[..] {
            self.device.replay(whole);
            return parts;
        }
        self.graphs.stage = Stage::Replaying { parts, next: 0 };
        self.device.mute(true);
        body(self);
        self.device.mute(false);
        let Stage::Replaying { parts, next } = std::mem::take(&mut self.graphs.stage) else {
            unreachable!("nothing else has begun since");
        };
        // Unless it has ended early, for a reason that the body tells.
        if next + 1 == parts.len() {
            self.device.replay(&parts[next]);
        }
        parts
    }

    pub(super) fn between_parts(&mut self, call: &mut dyn FnMut(&mut dyn Kernels)) {
        match std::mem::take(&mut self.graphs.stage) {
            stage @ (Stage::Written | Stage::Between) => {
                self.graphs.stage = stage;
                call(self);
            }
            stage @ Stage::Recording(_) => {
                self.graphs.stage = stage;
                if self.end_part() {
                    self.device.begin_capture();
                }
            }
            Stage::Replaying { parts, next } => {
                assert!(next + 1 < parts.len(), "as often as when it was recorded");
                self.graphs.stage = Stage::Between;
                self.device.mute(false);
                self.device.replay(&parts[next]);
                call(self);
                self.device.mute(true);
                let next = next + 1;
                self.graphs.stage = Stage::Replaying { parts, next };
            }
        }
    }
}
