//! The control socket of a worker: a socket in its data directory that only its user may open. It serves the pages of
//! the admin endpoint and `POST /audit {"joins": […]}`, which compares stored results: a line of JSON for each
//! finding, and [`END`] as the last line. [`dlq`] answers `/dlq`.

pub(crate) mod dlq;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::warn;

use crate::admin;
use crate::audit::Auditor;
use crate::dead_letters::DeadLetters;
use crate::join;
use crate::status::Status;

/// The name of the socket in a data directory.
pub(crate) const SOCKET: &str = "control.sock";

/// The last line of a complete answer.
pub(crate) const END: &str = r#"{"end":true}"#;

/// The socket on which a worker listens.
pub(crate) struct Control {
    path: PathBuf,
    listener: UnixListener,
}

impl Control {
    /// Listens in a data directory that this process has locked. Returns `None`, with a warning, if that fails (the
    /// path of a socket may have at most 107 bytes): no other part needs the socket.
    pub(crate) fn open(data_dir: &Path) -> Option<Self> {
        let path = data_dir.join(SOCKET);
        match listen(&path) {
            Ok(listener) => Some(Self { path, listener }),
            Err(error) => {
                let path = path.display();
                warn!(%path, %error, "no socket for `litejoin audit`, `dlq` and `explain`; use a data directory with a shorter path");
                None
            }
        }
    }

    /// Answers requests until `stopping`.
    pub(crate) async fn serve(
        self,
        status: Arc<Status>,
        auditor: Arc<Auditor>,
        dead_letters: Arc<DeadLetters>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let asked = stopping.clone();
        let audits =
            Router::new().route("/audit", post(audit)).with_state(Audits { auditor, stopping: asked });
        let router = admin::router(status).merge(audits).merge(dlq::router(dead_letters));
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        if let Err(error) = axum::serve(self.listener, router).with_graceful_shutdown(stopped).await {
            warn!(%error, "the control socket has failed");
        }
        let _ = std::fs::remove_file(self.path);
    }
}

/// The state of `/audit`.
#[derive(Clone)]
struct Audits {
    auditor: Arc<Auditor>,
    stopping: watch::Receiver<bool>,
}

#[derive(Debug, Deserialize)]
struct AuditRequest {
    /// All joins if empty.
    #[serde(default)]
    joins: Vec<String>,
}

/// Audits the joins one by one, until the client disconnects or the worker stops.
async fn audit(State(audits): State<Audits>, Json(wanted): Json<AuditRequest>) -> Response {
    let joins = audits.auditor.joins();
    let names: Vec<String> = match join::named(&joins, &wanted.joins) {
        Ok(joins) => joins.into_iter().map(|join| join.name.clone()).collect(),
        Err(error) => return (StatusCode::NOT_FOUND, Json(json!({"error": error}))).into_response(),
    };
    let lines = stream::unfold(Some((audits, names.into_iter())), |state| async {
        let (mut audits, mut names) = state?;
        loop {
            let Some(name) = names.next() else { return Some((Ok(format!("{END}\n")), None)) };
            let finding = tokio::select! {
                finding = audits.auditor.audit(&name) => Some(finding),
                _ = audits.stopping.wait_for(|stopping| *stopping) => None,
            };
            match finding {
                Some(Some(finding)) => {
                    let line = serde_json::to_string(&finding).expect("plain fields are always JSON") + "\n";
                    return Some((Ok(line), Some((audits, names))));
                }
                // A reload has removed the join.
                Some(None) => {}
                None => {
                    let stops = io::Error::new(io::ErrorKind::ConnectionAborted, "the worker stops");
                    return Some((Err(stops), None));
                }
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// Creates the socket with its final permissions before it gets its name, and replaces one that a crash has left.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let next = path.with_extension("next");
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&next)?;
    std::fs::set_permissions(&next, Permissions::from_mode(0o600))?;
    std::fs::rename(&next, path)?;
    Ok(listener)
}
