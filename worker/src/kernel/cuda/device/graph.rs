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
    // None where the capture failed: the device then has a fault.
    raw: Option<RawGraph>,
    // The graph lives in it.
    _context: Arc<Context>,
}

impl Device {
    /// From now on what the compute stream is given is not done but kept. Other streams join if they wait
    /// for an event of it, and have to be waited for before the end.
    ///
    /// Until [`Device::end_capture`], by the same thread, nothing may be allocated, freed, written, read or
    /// waited for: that is an error or a fault. What cuDNN and the driver do when first used (loading code)
    /// cannot be captured either: do the same work once without a capture before.
    pub fn begin_capture(&self) {
        self.context.run(|context| {
            context.not_capturing("begin_capture")?;
            context.compute.begin_capture()?;
            context.capturing.store(true, Ordering::Release);
            Ok(())
        });
    }

    /// Ends the capture. Where something could not be captured, the device has a fault.
    pub fn end_capture(&self) -> Graph {
        let mut raw = None;
        // After a fault, too: the stream must not stay in a capture.
        if self.context.capturing.swap(false, Ordering::AcqRel) {
            let ended = self
                .context
                .primary
                .bind()
                .and_then(|()| self.context.compute.end_capture());
            match ended {
                Ok(graph) => raw = Some(graph),
                Err(error) => self.context.keep(error),
            }
        } else {
            self.context.keep(CudaError::NoCapture);
        }
        Graph {
            raw,
            _context: Arc::clone(&self.context),
        }
    }

    /// Ends the capture, if there is one, and forgets it.
    pub fn abandon_capture(&self) {
        if self.context.capturing.swap(false, Ordering::AcqRel) {
            let _ = self.context.primary.bind();
            // What it kept, and whether it was whole, is of no interest.
            let _ = self.context.compute.end_capture();
        }
    }

    /// Does the work of a graph on the compute stream, once more.
    pub fn replay(&self, graph: &Graph) {
        if let Some(raw) = &graph.raw {
            self.context.run(|context| {
                context.not_capturing("replay")?;
                context.compute.replay(raw)
            });
        }
    }
}
