//! Work that is captured once and done again by one call.

use super::context::Context;
use super::stream::RawGraph;
use super::{CudaError, Device};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The work of the compute stream between [`Device::begin_capture`] and [`Device::end_capture`]: the same
/// kernels with the same arguments, on whatever the memory then holds.
#[derive(Debug)]
pub struct Graph {
    raw: RawGraph,
    // The graph lives in it.
    _context: Arc<Context>,
}

impl Graph {
    /// Whether it has no work.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }
}

impl Device {
    /// From now on what the compute stream is given is not done but kept. Other streams join if they wait
    /// for an event of it, and have to be waited for before the end.
    ///
    /// Until [`Device::end_capture`], by the same thread, nothing may be allocated, freed, written, read or
    /// waited for: the capture is refused then. What cuDNN and the driver do when first used (loading code)
    /// cannot be captured either: do the same work once without a capture before.
    pub fn begin_capture(&self) {
        self.context.run(|context| {
            context.not_capturing("begin_capture")?;
            context.compute.begin_capture()?;
            context.captured.store(0, Ordering::Relaxed);
            context.capturing.store(true, Ordering::Release);
            Ok(())
        });
    }

    /// Ends the capture. Nothing of it was done.
    ///
    /// # Errors
    ///
    /// Where something could not be captured, or there is no capture: the device goes on without it.
    pub fn end_capture(&self) -> Result<Graph, CudaError> {
        let ended = self.end();
        let refusal = self.context.take_refusal();
        match (ended, refusal) {
            (Some(Ok(raw)), None) => Ok(Graph {
                raw,
                _context: Arc::clone(&self.context),
            }),
            (_, Some(refusal)) => Err(refusal),
            (Some(Err(error)), None) => {
                if matches!(error, CudaError::Fault { .. }) {
                    self.context.keep(error.clone());
                }
                Err(error)
            }
            (None, None) => Err(CudaError::NoCapture),
        }
    }

    /// Ends the capture, if there is one, and forgets it.
    pub fn abandon_capture(&self) {
        let _ = self.end();
        let _ = self.context.take_refusal();
    }

    /// After a fault, too: the stream must not stay in a capture.
    fn end(&self) -> Option<Result<RawGraph, CudaError>> {
        let context = &self.context;
        let was_capturing = context.capturing.swap(false, Ordering::AcqRel);
        was_capturing.then(|| {
            let bound = context.primary.bind();
            let is_empty = context.captured.load(Ordering::Relaxed) == 0;
            bound.and_then(|()| context.compute.end_capture(is_empty))
        })
    }

    /// From now on work for the compute stream is left out, or no longer: for who walks through calls that a
    /// graph does. What a capture refuses is a fault then.
    pub fn mute(&self, on: bool) {
        self.context.muted.store(on, Ordering::Release);
    }

    /// From now on nothing at all is done, or no longer: for who has to come to the end of calls of which
    /// one could not be captured.
    pub fn give_up(&self, on: bool) {
        self.context.in_vain.store(on, Ordering::Release);
    }

    /// Does the work of a graph on the compute stream, once more. Of an empty one nothing.
    pub fn replay(&self, graph: &Graph) {
        self.context.run(|context| {
            context.not_capturing("replay")?;
            context.compute.replay(&graph.raw)
        });
    }
}
