//! The program Litestream: finding it, restoring files by it, and keeping it running as a child. A Litestream that
//! outlives its worker would meet with the next one's on the same prefix, so each holds a lock for as long as it
//! lives: its standard input is the locked file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use litejoin_crds::duration::timestamp_text;
use litejoin_crds::error::chain;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::config::LAST_SYNC_TIMEOUT;

/// The version that this one was tested with; older ones of 0.5 have lost data.
pub(crate) const VERSION: &str = "0.5.17";

/// The oldest that is accepted, and the first that may do things otherwise.
const VERSION_LEAST: (u32, u32, u32) = (0, 5, 17);
const VERSION_BEYOND: (u32, u32, u32) = (0, 6, 0);

/// Waits before Litestream is started again, from the first failure in a row on.
const RESTART_WAITS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// A run of this length was no failure in a row.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// The time that its end takes beside the last shipment of each file.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How long a restore may stand still.
const RESTORE_STALL: Duration = Duration::from_secs(60);

/// How often a restore is looked at.
const RESTORE_LOOK: Duration = Duration::from_millis(500);

/// The words of Litestream where it has put a file together, and SQLite finds it broken.
const UNSOUND: &str = "integrity check failed";

/// The words of Litestream where its replica has no such state of a file, or not any more.
const UNAVAILABLE: &str = "no matching backup files available";

/// How often we see whether a Litestream that is left over has ended.
const ORPHAN_LOOK: Duration = Duration::from_millis(50);

/// Why Litestream can't do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LitestreamError {
    #[error(
        "{program}: could not be run; replication needs Litestream {VERSION}: install it and put it on the PATH, or name \
         it by --litestream (LITEJOIN_LITESTREAM)"
    )]
    Absent { program: String, source: io::Error },
    #[error(
        "{program}: is version {found}, and replication needs Litestream {VERSION} or a later 0.5; older ones lose data. \
         Install that one, or name it by --litestream (LITEJOIN_LITESTREAM)"
    )]
    Version { program: String, found: String },
    #[error("{path}: could not {doing}")]
    Io { path: String, doing: &'static str, source: io::Error },
    #[error(
        "{file}: could not be restored: Litestream said: {said}; see whether the replica is whole (`litejoin restore \
         --verify`), or go back to an earlier time (`litejoin restore --timestamp`)"
    )]
    Restore { file: String, said: String },
    #[error(
        "{file}: came back unsound: Litestream said: {said}; go back to an earlier time (`litejoin restore --timestamp`)"
    )]
    Unsound { file: String, said: String },
    #[error("{file}: nothing more was restored for {} s; see whether the store is up", RESTORE_STALL.as_secs())]
    Stalled { file: String },
    #[error("the Litestream of a worker that died (process {pid}) does not end; end it, then start again")]
    Orphan { pid: String },
}

impl LitestreamError {
    /// Whether another state of the file may be there all the same: the wanted one is not, or is unsound.
    pub(crate) fn is_of_one_state(&self) -> bool {
        match self {
            LitestreamError::Unsound { .. } => true,
            LitestreamError::Restore { said, .. } => said.contains(UNAVAILABLE),
            _ => false,
        }
    }
}

/// A Litestream that can be run, with the environment that it gets.
#[derive(Debug, Clone)]
pub(crate) struct Litestream {
    program: PathBuf,
    environment: BTreeMap<String, String>,
}

/// Which state of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WantedState {
    Newest,
    /// The newest that is not later than this, in milliseconds since the epoch.
    At(i64),
    /// The one after this transaction.
    After(u64),
}

impl WantedState {
    /// How Litestream is told of it.
    fn arguments(self) -> Vec<String> {
        match self {
            WantedState::Newest => Vec::new(),
            // Litestream reads fewer forms of a time than we do, and all that we write.
            WantedState::At(milliseconds) => vec!["-timestamp".to_owned(), timestamp_text(milliseconds)],
            WantedState::After(txid) => vec!["-txid".to_owned(), format!("{txid:016x}")],
        }
    }
}

impl Litestream {
    /// The one that is meant, if it is there and of a version that keeps data.
    pub(crate) async fn find(
        program: Option<&Path>,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, LitestreamError> {
        let mut environment = environment.clone();
        // Its S3 client fails on this one; Go's own name for it works.
        if let Some(bundle) = environment.remove("AWS_CA_BUNDLE") {
            environment.entry("SSL_CERT_FILE".to_owned()).or_insert(bundle);
        }
        let litestream = Self { program: program.unwrap_or(Path::new("litestream")).to_owned(), environment };
        let shown = litestream.program.display().to_string();
        let said = litestream
            .command(["version"])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|source| LitestreamError::Absent { program: shown.clone(), source })?;
        let found = String::from_utf8_lossy(&said.stdout).trim().to_owned();
        match version(&found) {
            Some(version) if (VERSION_LEAST..VERSION_BEYOND).contains(&version) => Ok(litestream),
            _ => Err(LitestreamError::Version { program: shown, found }),
        }
    }

    fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().envs(&self.environment).args(arguments).kill_on_drop(true);
        command
    }

    /// Restores the file that `config` knows as `path` to `target`, and checks it.
    pub(crate) async fn restore(
        &self,
        config: &Path,
        path: &Path,
        target: &Path,
        state: WantedState,
    ) -> Result<(), LitestreamError> {
        let file = path.display().to_string();
        let mut command = self.command(["restore", "-config"]);
        command.arg(config).args(["-no-expand-env", "-integrity-check", "quick", "-o"]).arg(target);
        command.args(state.arguments());
        command.arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| LitestreamError::Absent {
            program: self.program.display().to_string(),
            source,
        })?;
        let mut ends = std::pin::pin!(child.wait_with_output());
        let folder = target.parent().unwrap_or(Path::new("/"));
        let (mut size, mut grown) = (0, tokio::time::Instant::now());
        loop {
            tokio::select! {
                done = &mut ends => {
                    let done = done.map_err(|source| LitestreamError::Io { path: file.clone(), doing: "wait for the restore", source })?;
                    if done.status.success() && target.exists() {
                        return Ok(());
                    }
                    let said = last_words(&done.stderr);
                    return Err(match String::from_utf8_lossy(&done.stderr).contains(UNSOUND) {
                        true => LitestreamError::Unsound { file, said },
                        false => LitestreamError::Restore { file, said },
                    });
                }
                () = tokio::time::sleep(RESTORE_LOOK) => {
                    let now = folder_bytes(folder);
                    if now != size {
                        (size, grown) = (now, tokio::time::Instant::now());
                    } else if grown.elapsed() > RESTORE_STALL {
                        return Err(LitestreamError::Stalled { file });
                    }
                }
            }
        }
    }

    /// Keeps Litestream running with this configuration until it is told to stop; then lets it ship the last, for as
    /// long as `files_count` files may take.
    pub(crate) async fn supervise(
        self,
        config: PathBuf,
        lock_path: PathBuf,
        files_count: u32,
        mut stopping: watch::Receiver<bool>,
    ) {
        let mut failures = 0;
        loop {
            let started = tokio::time::Instant::now();
            let mut child = match self.start(&config, &lock_path) {
                Ok(child) => child,
                Err(problem) => {
                    error!(error = chain(&problem), "Litestream could not be started; nothing is replicated");
                    if !wait(RESTART_WAITS[failures.min(RESTART_WAITS.len() - 1)], &mut stopping).await {
                        return;
                    }
                    failures += 1;
                    continue;
                }
            };
            let logs = child.stderr.take().map(|stderr| tokio::spawn(pass_on(stderr)));
            let status = tokio::select! {
                status = child.wait() => Some(status),
                _ = stopping.wait_for(|stopping| *stopping) => None,
            };
            let Some(status) = status else {
                end(&mut child, stop_time(files_count)).await;
                if let Some(logs) = logs {
                    let _ = tokio::time::timeout(STOP_MARGIN, logs).await;
                }
                return;
            };
            let status = status.map_or_else(|problem| problem.to_string(), |status| status.to_string());
            failures = if started.elapsed() > GOOD_RUN { 0 } else { failures };
            let wait_for = RESTART_WAITS[failures.min(RESTART_WAITS.len() - 1)];
            failures += 1;
            warn!(%status, wait = ?wait_for, "Litestream has ended; starting it again");
            if !wait(wait_for, &mut stopping).await {
                return;
            }
        }
    }

    fn start(&self, config: &Path, lock_path: &Path) -> Result<Child, LitestreamError> {
        let lock = open_lock(lock_path)?;
        let io = |doing| {
            move |source| LitestreamError::Io { path: lock_path.display().to_string(), doing, source }
        };
        lock.try_lock().map_err(|problem| match problem {
            TryLockError::Error(source) => io("lock the file")(source),
            TryLockError::WouldBlock => LitestreamError::Orphan { pid: holder(lock_path) },
        })?;
        let mut note = lock.try_clone().map_err(io("open the lock"))?;
        let mut command = self.command(["replicate", "-no-expand-env", "-config"]);
        // Its own process group: ctrl-C is for the worker, which ends it after itself.
        command.arg(config).stdin(lock).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|source| LitestreamError::Absent {
            program: self.program.display().to_string(),
            source,
        })?;
        let pid = child.id().unwrap_or_default().to_string();
        note.set_len(0)
            .and_then(|()| note.rewind())
            .and_then(|()| note.write_all(pid.as_bytes()))
            .map_err(io("note who holds it"))?;
        info!(pid, "Litestream runs");
        Ok(child)
    }
}

/// Ends the Litestream of a worker that was killed, if one is left: it ships what it has not yet, and then lets go.
pub(crate) async fn end_orphan(lock_path: &Path, files_count: u32) -> Result<(), LitestreamError> {
    let lock = open_lock(lock_path)?;
    let deadline = tokio::time::Instant::now() + stop_time(files_count);
    let mut is_warned = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(source)) => {
                let path = lock_path.display().to_string();
                return Err(LitestreamError::Io { path, doing: "lock the file", source });
            }
            Err(TryLockError::WouldBlock) => {}
        }
        let pid = holder(lock_path);
        let is_late = tokio::time::Instant::now() > deadline;
        match pid.parse() {
            Ok(process) if !is_warned => {
                warn!(pid, "the Litestream of a worker that died is still there; ending it first");
                let _ = kill(Pid::from_raw(process), Signal::SIGTERM);
                is_warned = true;
            }
            Ok(process) if is_late => {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
            _ => {}
        }
        if tokio::time::Instant::now() > deadline + STOP_MARGIN {
            return Err(LitestreamError::Orphan { pid });
        }
        tokio::time::sleep(ORPHAN_LOOK).await;
    }
}

/// How long Litestream may take to end: a store that is away costs it the time-out of each file.
pub(crate) fn stop_time(files_count: u32) -> Duration {
    LAST_SYNC_TIMEOUT * files_count + STOP_MARGIN
}

fn open_lock(path: &Path) -> Result<File, LitestreamError> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(|source| {
        LitestreamError::Io { path: path.display().to_string(), doing: "open the lock", source }
    })
}

fn holder(lock_path: &Path) -> String {
    let mut text = String::new();
    let _ = File::open(lock_path).and_then(|mut file| file.read_to_string(&mut text));
    text.trim().to_owned()
}

/// Lets the child ship the last; one that takes too long is ended, and what is missing is still on this disk.
async fn end(child: &mut Child, timeout: Duration) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    match tokio::time::timeout(timeout, child.wait()).await {
        Ok(_) => debug!("Litestream has ended"),
        Err(_) => {
            warn!("Litestream does not end; the last commits may not be in the replica yet");
            let _ = child.kill().await;
        }
    }
}

/// Waits; `false` if the worker stops first.
async fn wait(time: Duration, stopping: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => true,
        _ = stopping.wait_for(|stopping| *stopping) => false,
    }
}

/// Puts Litestream's log into ours.
async fn pass_on(stderr: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let (level, message, details) = log_line(&line);
        match level.as_str() {
            "ERROR" => error!(details, "litestream: {message}"),
            "WARN" => warn!(details, "litestream: {message}"),
            _ => debug!(details, "litestream: {message}"),
        }
    }
}

/// Level, message, and the rest of a line of its log.
fn log_line(line: &str) -> (String, String, String) {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else {
        return ("ERROR".to_owned(), line.to_owned(), String::new());
    };
    fields.remove("time");
    let mut take = |name: &str| match fields.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (level, message) = (take("level"), take("msg"));
    let details: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    (level, message, details.join(" "))
}

/// The last words of a program, on one line.
fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let words = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
    match log_line(words) {
        (level, message, details) if !level.is_empty() && !message.is_empty() => {
            format!("{message} {details}").trim().to_owned()
        }
        _ => words.to_owned(),
    }
}

/// Bytes of the files in a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Major, minor and patch of `v0.5.17` or `0.5.17-something`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let plain = text.trim_start_matches('v').split(['-', '+', ' ']).next()?;
    let mut parts = plain.split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::replication::PointInTime;

    #[test]
    fn versions_are_read() {
        for (text, expected) in [
            ("v0.5.17", Some((0, 5, 17))),
            ("0.5.18-rc1", Some((0, 5, 18))),
            ("(development build)", None),
            ("", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_time_is_told_in_the_one_form_that_litestream_reads() {
        for text in [
            "2026-05-01T12:00:00Z",
            "2026-05-01 12:00:00Z",
            "2026-05-01t12:00:00z",
            "2026-05-01T14:00:00+02",
            "2026-05-01T14:00+02:00",
        ] {
            let point: PointInTime = text.parse().unwrap();
            let arguments = WantedState::At(point.milliseconds).arguments();
            assert_eq!(arguments, ["-timestamp", "2026-05-01T12:00:00Z"], "{text}");
        }
    }

    #[test]
    fn what_fails_for_one_state_alone() {
        let file = || "shard_0.db".to_owned();
        let said = |said: &str| LitestreamError::Restore { file: file(), said: said.to_owned() };
        for (problem, expected) in [
            (said("no matching backup files available"), true),
            (LitestreamError::Unsound { file: file(), said: String::new() }, true),
            (
                said(
                    "cannot calc restore plan: operation error S3: ListObjectsV2, exceeded maximum number of attempts",
                ),
                false,
            ),
            (LitestreamError::Stalled { file: file() }, false),
        ] {
            assert_eq!(problem.is_of_one_state(), expected, "{problem}");
        }
    }

    #[test]
    fn a_log_line_is_taken_apart() {
        let line = r#"{"time":"t","level":"WARN","msg":"slow","db":"/d/x.db","n":1}"#;
        let expected = ("WARN".to_owned(), "slow".to_owned(), r#"db="/d/x.db" n=1"#.to_owned());
        assert_eq!(log_line(line), expected);
        assert_eq!(
            last_words(b"first\nno matching backup files available\n\n"),
            "no matching backup files available"
        );
    }
}
