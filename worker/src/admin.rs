//! The pages that the worker shows on `spec.admin.addr`; nothing here changes anything.
//! `GET /healthz`, `/readyz`, `/metrics` (Prometheus), `/status` (JSON).
//!
//! `/status` has an `ETag` of what the operator acts upon. A request with `If-None-Match` and `Prefer: wait=SECONDS` (RFC
//! 7240) is answered when that has changed, or with 304 when the time is over: so news travels at once, and costs one
//! request a minute while there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
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

/// The longest that a request waits for news.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How often a request that waits looks for news.
const NEWS_LOOK: Duration = Duration::from_millis(250);

async fn show(State(status): State<Arc<Status>>, headers: HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let until = Instant::now() + preferred_wait(&headers);
    loop {
        let now = clock::epoch_seconds();
        let tag = status.tag(now);
        if known != Some(tag.as_str()) {
            return ([(header::ETAG, tag)], axum::Json(status.json(now))).into_response();
        }
        if Instant::now() >= until {
            return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
        }
        tokio::time::sleep(NEWS_LOOK).await;
    }
}

/// How long the client wants to wait for news.
fn preferred_wait(headers: &HeaderMap) -> Duration {
    let preferences = headers.get_all(HeaderName::from_static("prefer")).iter();
    let preferences = preferences.filter_map(|text| text.to_str().ok()).flat_map(|text| text.split(','));
    let seconds = preferences.filter_map(|preference| preference.trim().strip_prefix("wait=")?.parse().ok());
    seconds.map(Duration::from_secs).next().unwrap_or_default().min(WAIT_MAX)
}
