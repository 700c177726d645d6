//! Where each parameter lies: weights, gradients and optimiser state are flat buffers of one layout.

use crate::graph::{Graph, Parameter};
use crate::kernel::Span;

/// Numbers to which a parameter's start is aligned: 64 bytes of f32.
const ALIGNMENT: usize = 16;

/// The layout of the arenas: parameters in the order in which backward finishes them.
///
/// So a bucket of the all-reduce is a range, and a checkpoint is a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    slots: Vec<(Parameter, Span)>,
    len: usize,
    statistics: Vec<(String, Span)>,
    statistics_len: usize,
}

impl Layout {
    /// Lays out a graph's parameters for a backward that walks its nodes in this order.
    pub(super) fn new(graph: &Graph, nodes_in_backward_order: &[usize]) -> Self {
        let parameters = graph.parameters();
        let mut slots = Vec::with_capacity(parameters.len());
        let mut len = 0;
        for &node in nodes_in_backward_order {
            for parameter in parameters.iter().filter(|p| p.node == node) {
                let span = Span {
                    offset: len,
                    len: parameter.elements(),
                };
                len += span.len.next_multiple_of(ALIGNMENT);
                slots.push((parameter.clone(), span));
            }
        }
        let mut statistics = Vec::new();
        let mut statistics_len = 0;
        for (name, channels) in graph.batch_norms() {
            for part in ["running_mean", "running_var"] {
                let span = Span {
                    offset: statistics_len,
                    len: channels,
                };
                statistics_len += channels.next_multiple_of(ALIGNMENT);
                statistics.push((format!("{name}.{part}"), span));
            }
        }
        Self {
            slots,
            len,
            statistics,
            statistics_len,
        }
    }

    /// Parameters with their places, in the order of the arena.
    pub fn parameters(&self) -> &[(Parameter, Span)] {
        &self.slots
    }

    /// Running statistics with their places.
    pub fn statistics(&self) -> &[(String, Span)] {
        &self.statistics
    }

    /// Numbers in an arena, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to train.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers in the arena of running statistics, padding included.
    pub fn statistics_len(&self) -> usize {
        self.statistics_len
    }

    /// Where a parameter lies.
    pub fn parameter(&self, name: &str) -> Option<Span> {
        let mut slots = self.slots.iter();
        slots.find(|(p, _)| p.name == name).map(|&(_, span)| span)
    }

    /// Where a running statistic lies.
    pub fn statistic(&self, name: &str) -> Option<Span> {
        let mut statistics = self.statistics.iter();
        statistics.find(|(n, _)| n == name).map(|&(_, span)| span)
    }
}
