//! The addresses of a pipeline while its data is moved: clients are told to come back, and the admin address says how far
//! it is.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use litejoin_crds::plan::{Listening, Plan};
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
    for Listening { what, addr, serving } in plan.listening() {
        let router = if what == "admin" { admin.clone() } else { client.clone() };
        let (listener, _) = listen(&what, addr).await?;
        let front = Front::new(serving, secrets).map_err(|problem| CommandError::Serve { what, problem })?;
        tokio::spawn(front.serve(listener, router, stopping.clone()));
    }
    Ok(stop)
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
