//! Takes the files over from a Litestream that runs beside the worker. It can't be told of other files, so where the files
//! change while the worker runs, it is told to leave them, and the worker runs one of its own. That holds until
//! `litejoin replication prepare` has run again, which on Kubernetes each new pod begins with.
//!
//! ```text
//! it answers ─► litestream.yml names no file ─► litestream-taken-over.yml is there ─► it leaves each file ─► ours begins
//!                └ if it starts anew, it idles   └ a worker that starts anew goes on here
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::replication::ReplicationMode;
use serde_json::{Value, json};
use tracing::info;

use super::ReplicationError;
use super::directory::CONFIG;
use super::socket::{LitestreamSocket, SocketError};
use crate::fault;
use crate::storage::layout::replace;

/// The configuration of the worker's own Litestream. It is there for as long as that one has the files.
pub(super) const OWN_CONFIG: &str = "litestream-taken-over.yml";

/// The time for Litestream to ship the last of one file and leave it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time for an answer that takes no work.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the worker has taken the files over.
fn is_taken_over(data_dir: &Path) -> bool {
    data_dir.join(OWN_CONFIG).exists()
}

/// Whether a Litestream beside the worker has the files.
pub(crate) fn is_beside(mode: ReplicationMode, data_dir: &Path) -> bool {
    mode == ReplicationMode::Sidecar && !is_taken_over(data_dir)
}

/// Ends what a start before this one had begun; returns whether the worker has taken the files over.
pub(super) async fn settle(data_dir: &Path, mode: ReplicationMode) -> Result<bool, ReplicationError> {
    if mode == ReplicationMode::Embedded {
        give_back(data_dir)?;
    }
    let is_taken_over = is_taken_over(data_dir);
    if is_taken_over {
        leave(data_dir).await?;
    }
    Ok(is_taken_over)
}

/// Leaves the files to another Litestream, which is started after this.
pub(crate) fn give_back(data_dir: &Path) -> Result<(), ReplicationError> {
    match std::fs::remove_file(data_dir.join(OWN_CONFIG)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io(data_dir, OWN_CONFIG, "remove the file")(error))
        }
        _ => Ok(()),
    }
}

/// Sees that the Litestream beside the worker answers, which is needed to take the files over.
pub(crate) async fn look(data_dir: &Path) -> Result<(), ReplicationError> {
    let config = Config::read(data_dir)?;
    config.socket()?.files(ANSWER_TIMEOUT).await?;
    Ok(())
}

/// Takes the files over, or begins to: from the first write on, [`is_taken_over`] holds or nothing has changed.
pub(crate) async fn take_over(data_dir: &Path) -> Result<(), ReplicationError> {
    look(data_dir).await?;
    Config::read(data_dir)?.without_files(data_dir)?;
    fault::point("litestream-emptied");
    replace(data_dir, OWN_CONFIG, b"{}").map_err(io(data_dir, OWN_CONFIG, "write the file"))?;
    fault::point("litestream-taken-over");
    leave(data_dir).await
}

/// Has the Litestream beside the worker leave the files that it still has. One that does not answer has none: it was started
/// after its configuration had none, or runs no more.
async fn leave(data_dir: &Path) -> Result<(), ReplicationError> {
    let config = Config::read(data_dir)?;
    // Whoever was cut off may have written it anew.
    config.without_files(data_dir)?;
    let socket = config.socket()?;
    let files = match socket.files(ANSWER_TIMEOUT).await {
        Err(SocketError::Silent { source, .. }) if source.is_connect() => return Ok(()),
        files => files?,
    };
    for file in files {
        info!(file = %file.display(), "the Litestream beside this worker leaves the file; the worker runs its own from here on");
        socket.leave(&file, LEAVE_TIMEOUT).await?;
    }
    Ok(())
}

/// The configuration of the Litestream beside the worker.
struct Config {
    value: Value,
    path: PathBuf,
}

impl Config {
    fn read(data_dir: &Path) -> Result<Self, ReplicationError> {
        let path = data_dir.join(CONFIG);
        let bytes = std::fs::read(&path).map_err(io(data_dir, CONFIG, "read the file"))?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Self { value, path }),
            Err(error) => Err(unreadable(&path, error.to_string())),
        }
    }

    fn socket(&self) -> Result<LitestreamSocket, ReplicationError> {
        match self.value["socket"]["path"].as_str() {
            Some(socket) => Ok(LitestreamSocket::new(Path::new(socket))),
            None => Err(unreadable(&self.path, "it names no socket".to_owned())),
        }
    }

    fn without_files(&self, data_dir: &Path) -> Result<(), ReplicationError> {
        let mut value = self.value.clone();
        value["dbs"] = json!([]);
        let text = serde_json::to_vec_pretty(&value).expect("plain values are always JSON");
        replace(data_dir, CONFIG, &text).map_err(io(data_dir, CONFIG, "write the file"))
    }
}

fn unreadable(path: &Path, detail: String) -> ReplicationError {
    let place = path.parent().unwrap_or(path).display().to_string();
    ReplicationError::Unreadable { place, name: CONFIG.to_owned(), detail }
}

fn io(
    data_dir: &Path,
    file: &str,
    doing: &'static str,
) -> impl FnOnce(std::io::Error) -> ReplicationError + use<> {
    let path = data_dir.join(file).display().to_string();
    move |source| ReplicationError::Io { path, doing, source }
}
