//! Talking to a running worker from the same machine: a socket in its data directory that only its user may open.
//! The pages of the admin endpoint are here too, and `POST /audit {"joins": […]}` compares stored results: a line
//! of JSON for each join as it is done, and one behind the last. The answers of `/dlq` are in [`dlq`].

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

/// The last line of an answer that came to its end.
pub(crate) const END: &str = r#"{"end":true}"#;

/// The socket on which a worker listens.
pub(crate) struct Control {
    path: PathBuf,
    listener: UnixListener,
}

impl Control {
    /// Listens in a data directory that this process has locked. `None`, with a warning, where that can't be done (the
    /// path of a socket may have 107 bytes): nothing depends on it.
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

    /// Answers until it is told to stop.
    pub(crate) async fn serve(
        self,
        status: Arc<Status>,
        auditor: Arc<Auditor>,
        letters: Arc<DeadLetters>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let asked = stopping.clone();
        let audits =
            Router::new().route("/audit", post(audit)).with_state(Audits { auditor, stopping: asked });
        let router = admin::router(status).merge(audits).merge(dlq::router(letters));
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        if let Err(error) = axum::serve(self.listener, router).with_graceful_shutdown(stopped).await {
            warn!(%error, "the control socket has failed");
        }
        let _ = std::fs::remove_file(self.path);
    }
}

/// The parts that answer audits.
#[derive(Clone)]
struct Audits {
    auditor: Arc<Auditor>,
    stopping: watch::Receiver<bool>,
}

#[derive(Debug, Deserialize)]
struct AuditRequest {
    /// All if none is named.
    #[serde(default)]
    joins: Vec<String>,
}

/// Audits the joins one by one; a client that goes away ends that, and so does the stop of the worker.
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
                // A reload has taken the join away.
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

/// The socket is closed to others before it can be found; one that a crash has left makes room.
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
