//! Talking to a running worker from the same machine: a socket in its data directory that only its user may open.
//! `GET /status` shows what the admin endpoint shows.

pub(crate) mod client;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tracing::warn;

use crate::admin;
use crate::status::Status;

/// The name of the socket in a data directory.
pub(crate) const SOCKET: &str = "control.sock";

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
                warn!(%path, %error, "no socket for `litejoin audit` and `explain`; use a data directory with a shorter path");
                None
            }
        }
    }

    /// Answers until it is told to stop.
    pub(crate) async fn serve(self, status: Arc<Status>, mut stopping: watch::Receiver<bool>) {
        let router: Router = admin::router(status);
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        if let Err(error) = axum::serve(self.listener, router).with_graceful_shutdown(stopped).await {
            warn!(%error, "the control socket has failed");
        }
        let _ = std::fs::remove_file(self.path);
    }
}

/// Nobody finds the socket before it is closed to others; one that a crash has left makes room.
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
