//! The state of the run, for programs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use synfire_shared::metrics;

use super::Shared;
use super::routes::{answer, json};
use crate::view::View;

/// `GET /v1/status`.
pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Response {
    #[derive(Serialize)]
    struct Status<'a> {
        version: &'a str,
        folder: Option<&'a str>,
        #[serde(flatten)]
        view: &'a View,
        refusals: BTreeMap<String, u64>,
    }
    let view = Arc::clone(&shared.view.borrow());
    let status = Status {
        version: &shared.policy.version,
        folder: shared.policy.folder.as_deref(),
        view: &view,
        refusals: shared.metrics.refusals(),
    };
    json(200, &status)
}

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let view = Arc::clone(&shared.view.borrow());
    let metrics = &shared.metrics;
    metrics.generation.set(view.generation.unwrap_or(0) as f64);
    metrics.ranks.set(view.members.len() as f64);
    metrics.waiting.set(view.waiting.len() as f64);
    metrics.images_per_second.set(images_per_second(&view));
    if let Some(checkpoint) = &view.checkpoint {
        metrics
            .checkpoint_batches
            .set(checkpoint.batches_done as f64);
    }
    let staying = view.members.iter().filter(|rank| !rank.has_left);
    metrics.set_silence(staying.map(|rank| (rank.member.rank, rank.silent_seconds)));
    answer(200, metrics::CONTENT_TYPE, metrics.text())
}

/// Of all ranks together.
pub(super) fn images_per_second(view: &View) -> f64 {
    // Each tells that of all ranks together.
    let all = view.members.iter().filter_map(|rank| rank.status);
    let speeds = all.map(|status| status.images_per_second);
    speeds.filter(|speed| speed.is_finite()).fold(0.0, f64::max)
}

/// A group of Prometheus's service discovery over HTTP.
#[derive(Serialize)]
struct Group {
    targets: [SocketAddr; 1],
    labels: BTreeMap<&'static str, String>,
}

/// `GET /v1/targets`: the ranks' metrics.
pub(super) async fn targets(State(shared): State<Arc<Shared>>) -> Response {
    let view = Arc::clone(&shared.view.borrow());
    let generation = view.generation.unwrap_or(0);
    let group = |rank: &crate::view::RankView| {
        let member = &rank.member;
        let labels = [
            ("rank", member.rank.to_string()),
            ("generation", generation.to_string()),
            ("host", member.host.clone()),
        ];
        Some(Group {
            targets: [member.metrics?],
            labels: BTreeMap::from(labels),
        })
    };
    let staying = view.members.iter().filter(|rank| !rank.has_left);
    json(200, &staying.filter_map(group).collect::<Vec<_>>())
}
