//! Requests to a running worker: over the socket in its data directory, or (read-only) to its admin address. Each
//! connection carries one request in HTTP/1.0, and the answer, read line by line, ends with the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::Uri;
use serde_json::Value;

use crate::control::SOCKET;

/// How long a worker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The address of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The socket in a data directory.
    Socket(PathBuf),
    /// `host:port`, and the prefix of each path.
    Admin { address: String, prefix: String },
}

/// Why a worker gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{peer}: no worker answers")]
    Nobody { peer: String, source: io::Error },
    #[error("{peer}: the worker broke off while it answered")]
    BrokenOff { peer: String, source: io::Error },
    #[error("{peer}: answered {status}: {message}")]
    Refused { peer: String, status: u16, message: String },
    #[error("--admin {url}: is no address of a worker; write it as http://127.0.0.1:9090")]
    Url { url: String },
}

/// The answer of a worker, line by line.
pub(crate) struct Answer {
    peer: String,
    reader: BufReader<Box<dyn Connection>>,
}

/// A connection of either kind.
trait Connection: Read + Write {}

impl<T: Read + Write> Connection for T {}

impl Peer {
    /// Returns the socket of a data directory.
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self::Socket(data_dir.join(SOCKET))
    }

    /// Returns the admin endpoint at this URL.
    pub(crate) fn admin(url: &str) -> Result<Self, AskError> {
        let wrong = || AskError::Url { url: url.to_owned() };
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = with_scheme.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        let prefix = uri.path().trim_end_matches('/').trim_end_matches("/status").to_owned();
        Ok(Self::Admin { address, prefix })
    }

    fn shown(&self) -> String {
        match self {
            Self::Socket(path) => path.display().to_string(),
            Self::Admin { address, prefix } => format!("http://{address}{prefix}"),
        }
    }

    /// Returns the worker's `/status`.
    pub(crate) fn status(&self) -> Result<Value, AskError> {
        let text = self.ask("GET", "/status", "")?.text()?;
        serde_json::from_str(&text)
            .map_err(|error| AskError::BrokenOff { peer: self.shown(), source: io::Error::other(error) })
    }

    /// Sends a request with a body of JSON. Returns the answer, or an error if its status is not 200.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Result<Answer, AskError> {
        let peer = self.shown();
        let mut answer = self.send(method, path, body)?;
        let status = answer.head()?;
        if status == 200 {
            return Ok(answer);
        }
        let text = answer.text()?;
        let error: Option<Value> = serde_json::from_str(&text).ok();
        let message = error.and_then(|error| error["error"].as_str().map(str::to_owned));
        Err(AskError::Refused { peer, status, message: message.unwrap_or_else(|| text.trim().to_owned()) })
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Result<Answer, AskError> {
        let peer = self.shown();
        let (host, prefix) = match self {
            Self::Socket(_) => ("worker", ""),
            Self::Admin { address, prefix } => (address.as_str(), prefix.as_str()),
        };
        let request = format!(
            "{method} {prefix}{path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = self.connect().map_err(|source| AskError::Nobody { peer: peer.clone(), source })?;
        stream
            .write_all(request.as_bytes())
            .map_err(|source| AskError::BrokenOff { peer: peer.clone(), source })?;
        Ok(Answer { peer, reader: BufReader::new(stream) })
    }

    fn connect(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Socket(path) => Ok(Box::new(UnixStream::connect(path)?)),
            Self::Admin { address, .. } => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl Answer {
    /// Reads the status line and skips the headers.
    fn head(&mut self) -> Result<u16, AskError> {
        let first = self.line()?.unwrap_or_default();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        while self.line()?.is_some_and(|line| !line.is_empty()) {}
        status.ok_or_else(|| self.broken(io::Error::other("it does not speak HTTP")))
    }

    /// Returns the next line without its end.
    pub(crate) fn line(&mut self) -> Result<Option<String>, AskError> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line.trim_end().to_owned())),
            Err(source) => Err(self.broken(source)),
        }
    }

    fn text(&mut self) -> Result<String, AskError> {
        let mut text = String::new();
        self.reader.read_to_string(&mut text).map_err(|source| self.broken(source))?;
        Ok(text)
    }

    /// Returns the error for an answer that ended too early.
    pub(crate) fn broken(&self, source: io::Error) -> AskError {
        AskError::BrokenOff { peer: self.peer.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_url_may_be_short() {
        let admin = |address: &str, prefix: &str| Peer::Admin {
            address: address.to_owned(),
            prefix: prefix.to_owned(),
        };
        let cases = [
            ("http://127.0.0.1:9090", admin("127.0.0.1:9090", "")),
            ("localhost:9090", admin("localhost:9090", "")),
            ("http://worker/a/status", admin("worker:80", "/a")),
        ];
        for (url, expected) in cases {
            assert_eq!(Peer::admin(url).unwrap(), expected, "{url}");
        }
        for url in ["https://worker", "http://", ""] {
            assert!(matches!(Peer::admin(url), Err(AskError::Url { .. })), "{url}");
        }
    }
}
