//! Small objects on an sftp server, by the program `sftp` of OpenSSH in batch mode: a user who keeps replicas there has
//! it, with keys, agents, known hosts and jump hosts as `~/.ssh/config` says, and no second implementation of SSH
//! comes in. A call is a connection; there are few.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::config::{SFTP_HOST_KEY, SFTP_KEY_PATH};
use super::listing::Listing;

/// A server, and how we say who we are.
pub(super) struct Sftp {
    host: String,
    port: u16,
    user: Option<String>,
    key_path: Option<String>,
    /// The server's public key, as `known_hosts` has it behind the name.
    host_key: Option<String>,
}

/// Waits between tries to connect.
const CONNECT_WAITS: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];

/// For one batch; the server may be gone without a word.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);

/// Objects that are removed in one batch.
const REMOVALS: usize = 200;

/// How `sftp` ends when there is no connection, or it breaks off.
const EXIT_CONNECTION: i32 = 255;

impl Sftp {
    pub(super) fn new(
        host: &str,
        port: u16,
        user: Option<&str>,
        environment: &BTreeMap<String, String>,
    ) -> Self {
        Self {
            host: host.to_owned(),
            port,
            user: user.map(str::to_owned),
            key_path: environment.get(SFTP_KEY_PATH).cloned(),
            host_key: environment.get(SFTP_HOST_KEY).cloned(),
        }
    }

    pub(super) async fn get(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let object = scratch(&[])?;
        match self.run(&format!("@get {} {}\n", quoted(path), quoted_path(object.path()))).await {
            Ok(_) => std::fs::read(object.path()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the object in one step, as far as the server knows `posix-rename`.
    pub(super) async fn put(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let object = scratch(content)?;
        let next = format!("{path}.{}.next", std::process::id());
        let folders: String = path
            .match_indices('/')
            .skip(1)
            // A dash lets the batch go on where the folder is there.
            .map(|(end, _)| format!("-@mkdir {}\n", quoted(&path[..end])))
            .collect();
        let (object, next) = (quoted_path(object.path()), quoted(&next));
        self.run(&format!("{folders}@put {object} {next}\n@rename {next} {}\n", quoted(path))).await?;
        Ok(())
    }

    pub(super) async fn list(&self, path: &str) -> io::Result<Listing> {
        let listed = match self.run(&format!("@ls -la {}\n", quoted(path))).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
            listed => listed?,
        };
        Ok(read_listing(&listed))
    }

    /// Removes a folder with all that is in it, and the object `last` of it after all others.
    pub(super) async fn remove(&self, path: &str, last: &str) -> io::Result<()> {
        let (mut folders, mut commands) = (vec![path.to_owned()], Vec::new());
        while let Some(folder) = folders.pop() {
            let mut listing = self.list(&folder).await?;
            // Run from the last to the first, so what is in a folder goes before it.
            commands.push(format!("-@rmdir {}\n", quoted(&folder)));
            listing.files.sort_by_key(|file| file != last);
            commands.extend(
                listing.files.iter().map(|file| format!("-@rm {}\n", quoted(&format!("{folder}/{file}")))),
            );
            folders.extend(listing.folders.iter().map(|below| format!("{folder}/{below}")));
        }
        commands.reverse();
        for commands in commands.chunks(REMOVALS) {
            self.run(&commands.concat()).await?;
        }
        Ok(())
    }

    /// Removes an object, if it is there.
    pub(super) async fn remove_file(&self, path: &str) -> io::Result<()> {
        self.run(&format!("-@rm {}\n", quoted(path))).await?;
        Ok(())
    }

    /// Runs a batch, and again if the connection failed: what a batch does is the same when it is done twice.
    async fn run(&self, batch: &str) -> io::Result<String> {
        for wait in CONNECT_WAITS {
            match self.run_once(batch).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    tokio::time::sleep(wait).await;
                }
                outcome => return outcome,
            }
        }
        self.run_once(batch).await
    }

    async fn run_once(&self, batch: &str) -> io::Result<String> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the server does not come to an end of it");
        tokio::time::timeout(RUN_TIMEOUT, self.run_unbounded(batch)).await.map_err(late)?
    }

    async fn run_unbounded(&self, batch: &str) -> io::Result<String> {
        let mut command = Command::new("sftp");
        command.args(["-b", "-", "-P", &self.port.to_string()]);
        command.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]);
        command.args(["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]);
        if let Some(path) = &self.key_path {
            command.args(["-i", path, "-o", "IdentitiesOnly=yes"]);
        }
        let known_hosts = match &self.host_key {
            Some(key) => {
                let line =
                    format!("[{host}]:{port} {key}\n{host} {key}\n", host = self.host, port = self.port);
                Some(scratch(line.as_bytes())?)
            }
            None => None,
        };
        if let Some(known_hosts) = &known_hosts {
            let option = format!("UserKnownHostsFile={}", known_hosts.path().display());
            command.args(["-o", &option, "-o", "StrictHostKeyChecking=yes"]);
        }
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        command.arg("--").arg(format!("{user}{}", self.host));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(
                "the program sftp is not on the PATH; install OpenSSH's client, which speaks with the server",
            ),
            _ => error,
        })?;
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let batch = batch.to_owned();
        let fed = async move {
            // A server that refuses us ends the program before it has read all; its own words say why.
            let _ = stdin.write_all(batch.as_bytes()).await;
        };
        let ((), done) = tokio::join!(fed, child.wait_with_output());
        let done = done?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr).trim().replace('\n', "; ");
        let is_missing = ["not found", "No such file"].iter().any(|words| said.contains(words));
        let kind = match done.status.code() {
            _ if is_missing => io::ErrorKind::NotFound,
            Some(EXIT_CONNECTION) => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::Other,
        };
        Err(io::Error::new(kind, format!("sftp said: {said}")))
    }
}

/// Returns a file of our own with this content, which is removed when dropped.
fn scratch(content: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::with_prefix("litejoin-")?;
    file.write_all(content)?;
    Ok(file)
}

/// Lines such as `drwxr-xr-x 2 me me 4096 May 1 12:00 name`.
fn read_listing(text: &str) -> Listing {
    let mut listing = Listing::default();
    for line in text.lines() {
        let Some(name) = line.split_whitespace().last() else { continue };
        // Some servers give the whole path.
        let name = name.rsplit('/').next().unwrap_or(name).to_owned();
        match line.as_bytes().first() {
            Some(b'd') if name != "." && name != ".." => listing.folders.push(name),
            Some(b'-') => listing.files.push(name),
            _ => {}
        }
    }
    listing
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// Quotes a path for a batch, in which `*` would be a pattern.
fn quoted(path: &str) -> String {
    let mut quoted = String::with_capacity(path.len() + 2);
    quoted.push('"');
    for character in path.chars() {
        if matches!(character, '\\' | '"' | '*' | '?' | '[' | ']') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read() {
        let text = "drwxr-xr-x    2 me  me   4096 May  1 12:00 .\n\
                    drwxr-xr-x    ? 0   0    4096 May  1  2026 /srv/x/incarnation-1-a\n\
                    -rw-r--r--    1 me  me     12 May  1 12:00 claim.json\n\
                    lrwxrwxrwx    1 me  me     12 May  1 12:00 link\n";
        let expected =
            Listing { files: vec!["claim.json".to_owned()], folders: vec!["incarnation-1-a".to_owned()] };
        assert_eq!(read_listing(text), expected);
    }

    #[test]
    fn paths_are_no_patterns() {
        assert_eq!(quoted(r#"/a b/"*[x]"#), r#""/a b/\"\*\[x\]""#);
    }
}
