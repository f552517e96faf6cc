//! The pages that the worker shows on `spec.admin.addr`; nothing here changes anything.
//! `GET /healthz`, `/readyz`, `/metrics` (Prometheus), `/status` (JSON).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use crate::clock;
use crate::status::{Status, prometheus};

/// The endpoints.
pub(crate) fn router(status: Arc<Status>) -> Router {
    Router::new()
        .route("/healthz", get(async || axum::Json(json!({"status": "ok"}))))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(show))
        .with_state(status)
}

async fn readyz(State(status): State<Arc<Status>>) -> Response {
    match status.unready() {
        None => axum::Json(json!({"status": "ready"})).into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"status": why}))).into_response(),
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> Response {
    match prometheus::encode(&status) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn show(State(status): State<Arc<Status>>) -> Response {
    axum::Json(status.json(clock::epoch_seconds())).into_response()
}
