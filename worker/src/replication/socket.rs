//! Litestream's control socket: how far each file is in the replica. It hangs while Litestream has not reached the store
//! yet, so every request has a time of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

/// The time that Litestream may take beyond the time that it was given.
const GRACE: Duration = Duration::from_secs(2);

/// Why it did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("Litestream does not answer at {socket}")]
    Silent { socket: String, source: reqwest::Error },
    #[error("Litestream could not ship {file}: {message}")]
    Refused { file: String, message: String },
}

/// A way to ask Litestream.
#[derive(Clone)]
pub(crate) struct LitestreamSocket {
    path: PathBuf,
    client: reqwest::Client,
}

/// How far a file is, in transactions as Litestream counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Synced {
    /// The last one that Litestream has read.
    pub(crate) txid: u64,
    /// The last one in the replica.
    #[serde(rename = "replicated_txid")]
    pub(crate) replicated: u64,
}

#[derive(Deserialize)]
struct Listed {
    databases: Vec<ListedFile>,
}

#[derive(Deserialize)]
struct ListedFile {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

impl LitestreamSocket {
    /// A socket that need not be there yet.
    pub(crate) fn new(path: &Path) -> Self {
        let client = reqwest::Client::builder()
            .unix_socket(path)
            .build()
            .expect("a client without TLS of its own can be made");
        Self { path: path.to_owned(), client }
    }

    /// Has a file's commits shipped, those up to this call, and waits until they are in the replica.
    pub(crate) async fn sync(&self, file: &Path, timeout: Duration) -> Result<Synced, SocketError> {
        // Litestream keeps to the time that it is given, and tells what was the matter.
        self.ask(file, true, timeout, timeout + GRACE).await
    }

    /// Has Litestream read a file's commits, those up to this call, and returns the last transaction. They are shipped
    /// later.
    pub(crate) async fn read(&self, file: &Path, timeout: Duration) -> Result<u64, SocketError> {
        Ok(self.ask(file, false, timeout, timeout).await?.txid)
    }

    async fn ask(
        &self,
        file: &Path,
        wait: bool,
        timeout: Duration,
        answer_within: Duration,
    ) -> Result<Synced, SocketError> {
        let asked = json!({"path": file, "wait": wait, "timeout": timeout.as_secs().max(1)});
        let answer = self.answer("sync", file, &asked, answer_within).await?;
        answer.json().await.map_err(|source| self.silent(source))
    }

    async fn answer(
        &self,
        command: &str,
        file: &Path,
        asked: &Value,
        answer_within: Duration,
    ) -> Result<reqwest::Response, SocketError> {
        let answer = self
            .client
            .post(format!("http://litestream/{command}"))
            .timeout(answer_within)
            .json(asked)
            .send()
            .await
            .map_err(|source| self.silent(source))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let message = match answer.json::<Refused>().await {
            Ok(refused) => refused.error,
            Err(_) => status.to_string(),
        };
        Err(SocketError::Refused { file: file.display().to_string(), message })
    }

    /// The files that Litestream has.
    pub(crate) async fn files(&self, answer_within: Duration) -> Result<Vec<PathBuf>, SocketError> {
        let answer = self.client.get("http://litestream/list").timeout(answer_within).send().await;
        let answer = answer.and_then(reqwest::Response::error_for_status);
        let listed = answer.map_err(|source| self.silent(source))?.json::<Listed>().await;
        let listed = listed.map_err(|source| self.silent(source))?;
        Ok(listed.databases.into_iter().map(|database| database.path).collect())
    }

    /// Has Litestream ship the last of a file, and have it no more. One that it does not have is no error.
    pub(crate) async fn leave(&self, file: &Path, timeout: Duration) -> Result<(), SocketError> {
        let asked = json!({"path": file, "timeout": timeout.as_secs().max(1)});
        self.answer("unregister", file, &asked, timeout + GRACE).await.map(|_| ())
    }

    fn silent(&self, source: reqwest::Error) -> SocketError {
        SocketError::Silent { socket: self.path.display().to_string(), source: source.without_url() }
    }
}
