//! The addresses of a pipeline while its data is moved: clients are told to come back, and the admin address says how far
//! it is.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use litejoin_crds::plan::{Plan, Serving, SinkKind, SourceKind};
use serde_json::json;
use tokio::sync::watch;

use super::CommandError;
use crate::credentials::Secrets;
use crate::serve::Front;
use crate::serve::listen::listen;
use crate::status::reshard::MoveProgress;

/// After how long clients are asked to come back.
const RETRY_AFTER_SECONDS: &str = "5";

/// What the admin address tells of.
struct Told {
    pipeline: String,
    from: usize,
    to: usize,
    progress: Arc<MoveProgress>,
}

/// Serves all addresses of the plan until what is returned is dropped.
pub(super) async fn serve(
    plan: &Plan,
    secrets: &Arc<Secrets>,
    from: usize,
    to: usize,
    progress: &Arc<MoveProgress>,
) -> Result<watch::Sender<bool>, CommandError> {
    let (stop, stopping) = watch::channel(false);
    let told = Arc::new(Told { pipeline: plan.name.clone(), from, to, progress: Arc::clone(progress) });
    let admin = Router::new()
        .route("/healthz", get(async || axum::Json(json!({ "status": "ok" }))))
        .route("/status", get(status))
        .with_state(Arc::clone(&told))
        .fallback(move || async move { come_back(to) });
    let client = Router::new().fallback(move || async move { come_back(to) });
    for (what, addr, serving) in addresses(plan) {
        let router = if what == "admin" { admin.clone() } else { client.clone() };
        let (listener, _) = listen(&what, addr).await?;
        let front = Front::new(serving, secrets).map_err(|problem| CommandError::Serve { what, problem })?;
        tokio::spawn(front.serve(listener, router, stopping.clone()));
    }
    Ok(stop)
}

/// The parts that listen, on which address and how.
fn addresses(plan: &Plan) -> impl Iterator<Item = (String, &str, &Serving)> {
    let sources = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Http(spec) => {
            Some((format!("source {}", source.name), spec.addr.as_str(), &*spec.serving))
        }
        _ => None,
    });
    let sinks = plan.sinks.iter().filter_map(|sink| match &sink.kind {
        SinkKind::Sse(spec) => Some((format!("sink {}", sink.name), spec.addr.as_str(), &*spec.serving)),
        _ => None,
    });
    sources.chain(sinks).chain([("admin".to_owned(), plan.admin.addr.as_str(), &plan.admin.serving)])
}

fn come_back(to: usize) -> Response {
    let error = format!("the data is being moved to {to} shards; come back soon");
    let body = axum::Json(json!({ "error": error }));
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, RETRY_AFTER_SECONDS)], body).into_response()
}

async fn status(State(told): State<Arc<Told>>) -> Response {
    let Told { pipeline, from, to, progress } = &*told;
    let report = progress.report(*from, *to);
    axum::Json(json!({ "pipeline": pipeline, "reshard": report })).into_response()
}
