//! The operator's own HTTP server: `/healthz`, `/readyz`, `/metrics`. An operator that waits for the Lease is ready,
//! too.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::metrics::Metrics;

/// A running server; it ends with the process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
}

/// Starts serving.
pub(crate) async fn start(address: &str, metrics: Arc<Metrics>) -> std::io::Result<Server> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ok\n"))
        .route("/metrics", get(async move || show(&metrics)));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(Server { address })
}

fn show(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
