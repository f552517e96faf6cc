//! Where replicas lie: `replicaUrl` taken apart, for Litestream (which calls some things otherwise) and for our own
//! small objects beside its files. Text only; whether anything is there is the store's to say.

use std::path::PathBuf;

/// A folder of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicaLocation {
    pub(crate) backend: Backend,
    /// Below the bucket, the container or the root; no `/` at either end, and empty for the whole.
    pub(crate) path: String,
}

/// The kind of a store, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    S3 {
        bucket: String,
    },
    Gcs {
        bucket: String,
    },
    Abs {
        /// `None`: the environment's.
        account: Option<String>,
        container: String,
    },
    Sftp {
        host: String,
        port: u16,
        user: Option<String>,
    },
    File,
}

/// Why a URL names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.replication.replicaUrl: {problem}; write it as {form}")]
pub(crate) struct LocationError {
    problem: String,
    form: &'static str,
}

/// Where sshd listens unless told otherwise.
const SSH_PORT: u16 = 22;

impl ReplicaLocation {
    /// Reads a URL of one of the schemes that the API allows.
    pub(crate) fn parse(url: &str) -> Result<Self, LocationError> {
        let form = form(url);
        let wrong = |problem: &str| LocationError { problem: format!("{}: {problem}", shown(url)), form };
        if let Some(path) = url.strip_prefix("file://") {
            if !path.starts_with('/') {
                return Err(wrong("a file:// URL needs an absolute path"));
            }
            return Ok(Self { backend: Backend::File, path: trimmed(path) });
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        if rest.contains(['?', '#']) {
            return Err(wrong("settings behind ? or # are not read; use the fields beside replicaUrl"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host.to_owned()),
            None => (None, authority.to_owned()),
        };
        if user.as_ref().is_some_and(|user| user.contains(':')) {
            return Err(wrong("a password would end up in logs; use a key"));
        }
        if host.is_empty() {
            return Err(wrong("it names no place"));
        }
        let path = trimmed(path);
        let backend = match scheme {
            "s3" => Backend::S3 { bucket: host },
            "gcs" => Backend::Gcs { bucket: host },
            "abs" => Backend::Abs { account: user, container: host },
            "sftp" => {
                let (host, port) = match host.rsplit_once(':') {
                    Some((host, port)) => {
                        (host.to_owned(), port.parse().map_err(|_| wrong("its port is no number"))?)
                    }
                    None => (host, SSH_PORT),
                };
                Backend::Sftp { host, port, user }
            }
            _ => return Err(wrong("it is of no scheme that is known")),
        };
        Ok(Self { backend, path })
    }

    /// A folder below this one.
    pub(crate) fn join(&self, path: &str) -> Self {
        let joined = match self.path.is_empty() {
            true => path.to_owned(),
            false => format!("{}/{path}", self.path),
        };
        Self { backend: self.backend.clone(), path: joined }
    }

    /// The folder of a `file` replica.
    pub(crate) fn folder(&self) -> PathBuf {
        PathBuf::from(format!("/{}", self.path))
    }
}

/// As its user would write it.
impl std::fmt::Display for ReplicaLocation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = &self.path;
        match &self.backend {
            Backend::S3 { bucket } => write!(formatter, "s3://{bucket}/{path}"),
            Backend::Gcs { bucket } => write!(formatter, "gcs://{bucket}/{path}"),
            Backend::Abs { account: Some(account), container } => {
                write!(formatter, "abs://{account}@{container}/{path}")
            }
            Backend::Abs { account: None, container } => write!(formatter, "abs://{container}/{path}"),
            Backend::Sftp { host, port, user } => {
                let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
                let port = if *port == SSH_PORT { String::new() } else { format!(":{port}") };
                write!(formatter, "sftp://{user}{host}{port}/{path}")
            }
            Backend::File => write!(formatter, "file:///{path}"),
        }
    }
}

/// Without slashes at the ends and without empty parts.
fn trimmed(path: &str) -> String {
    path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// The URL without what may be a password.
fn shown(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    }
}

fn form(url: &str) -> &'static str {
    match url.split("://").next() {
        Some("gcs") => "gcs://bucket/path",
        Some("abs") => "abs://account@container/path",
        Some("sftp") => "sftp://user@host:22/path",
        Some("file") => "file:///path",
        _ => "s3://bucket/path",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_again() {
        for (url, path, shown) in [
            ("s3://b/x/y/", "x/y", "s3://b/x/y"),
            ("s3://b", "", "s3://b/"),
            ("gcs://b//x", "x", "gcs://b/x"),
            ("abs://acct@c/x", "x", "abs://acct@c/x"),
            ("sftp://me@h:2222/srv/x", "srv/x", "sftp://me@h:2222/srv/x"),
            ("sftp://h/x", "x", "sftp://h/x"),
            ("file:///srv/a b", "srv/a b", "file:///srv/a b"),
        ] {
            let location = ReplicaLocation::parse(url).unwrap();
            assert_eq!((location.path.as_str(), location.to_string().as_str()), (path, shown), "{url}");
        }
        assert_eq!(ReplicaLocation::parse("s3://b").unwrap().join("n/p/0").to_string(), "s3://b/n/p/0");
    }

    #[test]
    fn what_names_no_place_is_refused_without_its_password() {
        for (url, message) in [
            (
                "file://relative",
                "file://relative: a file:// URL needs an absolute path; write it as file:///path",
            ),
            ("s3:///x", "s3:///x: it names no place; write it as s3://bucket/path"),
            (
                "s3://b/x?endpoint=http://h",
                "s3://b/x?endpoint=http://h: settings behind ? or # are not read; use the fields beside replicaUrl; \
                 write it as s3://bucket/path",
            ),
            (
                "sftp://me:secret@h/x",
                "sftp://…@h/x: a password would end up in logs; use a key; write it as sftp://user@host:22/path",
            ),
        ] {
            let error = ReplicaLocation::parse(url).unwrap_err().to_string();
            assert_eq!(error, format!("spec.replication.replicaUrl: {message}"));
        }
    }
}
