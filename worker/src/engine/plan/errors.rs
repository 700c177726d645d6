//! Buffers for errors on their way down: values that never live together share one.

use super::{PlannedBuffer, Role, Settings, Stage};
use crate::graph::{Graph, ValueId};
use crate::kernel::{Buffer, BufferSpec};

/// Gives each value whose error is needed a buffer; values that never live together share one.
pub(super) fn plan_errors(
    graph: &Graph,
    settings: &Settings,
    stages: &[Stage],
    output: ValueId,
    buffers: &mut Vec<PlannedBuffer>,
) -> Vec<Option<Buffer>> {
    let num_values = graph.values().len();
    let mut needed = vec![false; num_values];
    for stage in stages {
        let trains = match stage {
            Stage::Conv { .. } => true,
            Stage::NormLif { layer, .. } => layer.norm.is_some(),
            Stage::Pool { .. }
            | Stage::Flatten { .. }
            | Stage::Dropout { .. }
            | Stage::Residual { .. } => false,
        };
        if trains || stage.inputs().any(|v| needed[v.0]) {
            stage.outputs().for_each(|v| needed[v.0] = true);
        }
    }
    let mut errors: Vec<Option<Buffer>> = vec![None; num_values];
    let mut free: Vec<Buffer> = Vec::new();
    let mut take = |value: ValueId, free: &mut Vec<Buffer>| {
        let wanted = BufferSpec::plain(settings.samples, graph.value(value).shape, settings.window);
        let size = |b: &Buffer| buffers[b.0 as usize].spec.elements();
        let fits = free
            .iter()
            .enumerate()
            .filter(|(_, b)| size(b) >= wanted.elements());
        if let Some((position, _)) = fits.min_by_key(|(_, b)| size(b)) {
            return free.swap_remove(position);
        }
        let handle = Buffer(u32::try_from(buffers.len()).expect("fewer than 2^32 buffers"));
        buffers.push(PlannedBuffer {
            spec: wanted,
            role: Role::Error,
            name: format!("errors of {}", graph.value(value).name),
        });
        handle
    };
    for stage in stages.iter().rev() {
        for value in stage.outputs().chain(stage.inputs()) {
            // The logits' error comes from the loss; other values' from their last reader.
            if needed[value.0] && errors[value.0].is_none() {
                errors[value.0] = Some(take(value, &mut free));
            }
        }
        for value in stage.outputs() {
            // What is done may serve a value further down; the logits' buffer belongs to the loss.
            if let Some(buffer) = errors[value.0].filter(|_| value != output) {
                free.push(buffer);
            }
        }
    }
    errors
}
