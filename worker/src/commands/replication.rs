//! `litejoin restore` and `litejoin replication`: the replica from the command line.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use litejoin_crds::duration::timestamp_text;
use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use serde::Serialize;
use serde_json::Value;
use tracing::{info, warn};

use super::arguments::{OutputFormat, ReplicaOf, ReplicationAction, Restore};
use super::client::Peer;
use super::{EXIT_INVALID, complain, environment, say};
use crate::credentials::Secrets;
use crate::replication::boot::{self, Begin};
use crate::replication::config::ReplicatedFile;
use crate::replication::fetch::{self, Restored, UnsoundResults};
use crate::replication::incarnation::{Claim, FoundIncarnation, Incarnation};
use crate::replication::litestream::Litestream;
use crate::replication::{PointInTime, ReplicationError, Site, Tools, files_of, takeover};
use crate::storage::hash::HASH_VERSION;
use crate::storage::layout::{FORMAT_VERSION, LockedDir};
use crate::storage::sqlite::{self, SqliteError};
use crate::{clock, pipeline};

/// Restores the data, or checks that it could be restored.
pub(crate) fn run_restore(arguments: &Restore) -> ExitCode {
    with_replica(&arguments.replica, async |plan, secrets, tools| {
        let aim = match (&arguments.to, arguments.verify) {
            (Some(folder), _) => Aim::Folder(folder),
            (None, true) => Aim::Nowhere,
            (None, false) => Aim::DataDir,
        };
        restore(&plan, &secrets, &tools, aim, arguments.timestamp.as_ref(), &mut say).await
    })
}

/// Shows the state of a replica, or prepares a data directory for a Litestream beside the worker.
pub(crate) fn run(action: ReplicationAction) -> ExitCode {
    match action {
        ReplicationAction::Status { replica, output } => with_replica(&replica, async |plan, secrets, _| {
            let report = status(&plan, &secrets).await?;
            say(&match output {
                OutputFormat::Text => report.text(clock::epoch_seconds()),
                OutputFormat::Json => {
                    serde_json::to_string_pretty(&report).expect("plain fields are always JSON") + "\n"
                }
            });
            Ok(())
        }),
        ReplicationAction::Prepare { replica, expect_replica } => {
            with_replica(&replica, async |plan, secrets, tools| {
                let tools = Tools { expects_replica: expect_replica, ..tools };
                prepare(&plan, &secrets, &tools).await
            })
        }
    }
}

/// Runs a command about a replica.
fn with_replica(
    arguments: &ReplicaOf,
    work: impl AsyncFnOnce(Plan, Secrets, Tools) -> Result<(), ReplicationError>,
) -> ExitCode {
    let plan = match arguments.plan() {
        Ok(plan) => plan,
        Err(complaints) => {
            complain(&complaints);
            return ExitCode::from(EXIT_INVALID);
        }
    };
    let secrets = Secrets::new(environment(), arguments.secrets_dir.clone());
    let tools = Tools { litestream: arguments.litestream.program.clone(), expects_replica: false };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    match runtime.block_on(work(plan, secrets, tools)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {}\n", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

impl ReplicaOf {
    /// Returns the plan of the manifests, or their errors.
    pub(crate) fn plan(&self) -> Result<Plan, String> {
        // The data must be restorable even if a part is wrong that a worker can run without.
        let mut plan = pipeline::load_valid(&self.files, self.data_dir.as_deref())?.0.plan;
        if let Some(data_dir) = &self.data_dir {
            plan.storage.data_dir.clone_from(data_dir);
        }
        Ok(plan)
    }
}

/// The target of a restore.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim<'a> {
    /// Replace the data.
    DataDir,
    /// Restore to a folder.
    Folder(&'a Path),
    /// Restore beside the data, compare, and remove the restored files.
    Nowhere,
}

/// The report of `litejoin replication status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReplicaReport {
    base: String,
    claim: Option<Claim>,
    incarnations: Vec<IncarnationReport>,
    /// The status of the worker on the data directory; `None` if none runs.
    worker: Option<Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IncarnationReport {
    name: Incarnation,
    is_ready: bool,
    parent: Option<Incarnation>,
    born_at: i64,
    /// Whether the next restore would use this incarnation.
    is_next: bool,
    /// Times to which all files can be restored together, in milliseconds since the epoch.
    #[serde(rename = "cuts")]
    restore_points: Vec<i64>,
}

/// Reads the replica, and the status of the worker.
pub(crate) async fn status(plan: &Plan, secrets: &Secrets) -> Result<ReplicaReport, ReplicationError> {
    let site = Site::of(plan, secrets)?.ok_or(ReplicationError::Disabled)?;
    let remote = site.look().await?;
    let next = remote.best().map(|best| best.incarnation.clone());
    let mut incarnations = Vec::new();
    for found in &remote.found {
        let FoundIncarnation { incarnation, birth, .. } = found;
        incarnations.push(IncarnationReport {
            name: incarnation.clone(),
            is_ready: found.is_ready(),
            parent: birth.parent.clone(),
            born_at: birth.born_at,
            is_next: Some(incarnation) == next.as_ref(),
            restore_points: site
                .restore_points(incarnation)
                .await?
                .points
                .iter()
                .map(|point| point.at)
                .collect(),
        });
    }
    let worker = Peer::of(&plan.storage.data_dir).status().ok();
    Ok(ReplicaReport {
        base: site.base.to_string(),
        incarnations,
        claim: remote.claim,
        worker: worker.map(|status| status["replication"].clone()),
    })
}

impl ReplicaReport {
    /// Returns the report as text for people.
    pub(crate) fn text(&self, now: i64) -> String {
        let mut text = format!("{}\n", self.base);
        let ago = |seconds: i64| format!("{} s ago", (now - seconds).max(0));
        if self.incarnations.is_empty() {
            text.push_str("  nothing is there\n");
        }
        for incarnation in &self.incarnations {
            let IncarnationReport { name, is_ready, parent, born_at, is_next, restore_points } = incarnation;
            let ready = if *is_ready { "READY" } else { "not READY" };
            let parent = parent.as_ref().map(|parent| format!(", from {parent}")).unwrap_or_default();
            let claimed = self.claim.as_ref().is_some_and(|claim| claim.incarnation == *name);
            let claimed = if claimed { ", claimed" } else { "" };
            let next = if *is_next { ", a restore takes it" } else { "" };
            let _ = writeln!(text, "  {name}: {ready}{claimed}{next}, born {}{parent}", ago(*born_at));
            if let (Some(first), Some(last)) = (restore_points.first(), restore_points.last()) {
                let (count, first, last) =
                    (restore_points.len(), timestamp_text(*first), timestamp_text(*last));
                let _ = writeln!(text, "    {count} exact cuts to go back to, from {first} to {last}");
            }
        }
        match &self.worker {
            None => text.push_str("no worker runs on the data directory\n"),
            Some(worker) => {
                let of = |name: &str| worker[name].as_str().unwrap_or("none").to_owned();
                let _ = writeln!(
                    text,
                    "the worker writes {}, {} s behind; last error: {}",
                    of("incarnation"),
                    worker["lagSeconds"],
                    of("lastError")
                );
            }
        }
        text
    }
}

/// Prepares a data directory for a Litestream that LiteJoin does not start.
pub(crate) async fn prepare(plan: &Plan, secrets: &Secrets, tools: &Tools) -> Result<(), ReplicationError> {
    let site = Site::of(plan, secrets)?.ok_or(ReplicationError::Disabled)?;
    let locked = LockedDir::lock(&plan.storage.data_dir)?;
    takeover::give_back(locked.path())?;
    let replica = boot::prepare(&locked, plan, site, tools, Begin::Run).await?;
    info!(config = %replica.config.display(), "ready for `litestream replicate -no-expand-env -config`");
    Ok(())
}

/// Restores the newest state, or the state at `point`.
pub(crate) async fn restore(
    plan: &Plan,
    secrets: &Secrets,
    tools: &Tools,
    aim: Aim<'_>,
    point: Option<&PointInTime>,
    say: &mut dyn FnMut(&str),
) -> Result<(), ReplicationError> {
    let site = Site::of(plan, secrets)?.ok_or(ReplicationError::Disabled)?;
    match aim {
        Aim::DataDir => {
            let locked = LockedDir::lock(&plan.storage.data_dir)?;
            takeover::give_back(locked.path())?;
            let begin = point.map_or(Begin::Restore, Begin::At);
            let replica = boot::prepare(&locked, plan, site, tools, begin).await?;
            say(&match replica.restored {
                Some(restored) => {
                    format!("restored, {}; `litejoin run` goes on from here\n", grain(restored))
                }
                None => "nothing is missing; --timestamp goes back to an earlier time\n".to_owned(),
            });
        }
        Aim::Folder(folder) => {
            make_folder(folder)?;
            let (files, restored) =
                fetch(plan, &site, tools, point, UnsoundResults::LeaveOut, folder).await?;
            let count = files.iter().filter(|file| folder.join(&file.name).exists()).count();
            say(&format!("restored {count} files to {}, {}\n", folder.display(), grain(restored)));
        }
        Aim::Nowhere => {
            let folder = plan.storage.data_dir.join("verify");
            let _ = std::fs::remove_dir_all(&folder);
            make_folder(&folder)?;
            let outcome = async {
                let (files, _) = fetch(plan, &site, tools, point, UnsoundResults::Refuse, &folder).await?;
                compare(&files, &folder, say)
            }
            .await;
            let _ = std::fs::remove_dir_all(&folder);
            outcome?;
        }
    }
    Ok(())
}

/// Fetches files into a folder, from the first candidate incarnation that can be restored.
async fn fetch(
    plan: &Plan,
    site: &Site,
    tools: &Tools,
    point: Option<&PointInTime>,
    unsound: UnsoundResults,
    folder: &Path,
) -> Result<(Vec<ReplicatedFile>, Restored), ReplicationError> {
    let litestream = Litestream::find(tools.litestream.as_deref(), &site.environment).await?;
    let remote = site.look().await?;
    let candidates = match point {
        Some(point) => remote.lived_at(point.seconds()),
        None => remote.best().into_iter().collect(),
    };
    let data_dir = absolute(&plan.storage.data_dir)?;
    let mut failure = ReplicationError::TooEarly { place: site.base.to_string() };
    for from in candidates {
        let mut files = files_of(plan, &data_dir, from.birth.shard_count);
        files.retain(|file| from.birth.files.contains(&file.name));
        if let Err(refusal) = from.check_format(&site.base.to_string(), FORMAT_VERSION, HASH_VERSION) {
            failure = refusal.into();
            continue;
        }
        match fetch::fetch(site, &litestream, from, &files, point, unsound, folder).await {
            Ok(restored) => return Ok((files, restored)),
            Err(problem) => {
                warn!(incarnation = %from.incarnation, error = chain(&problem), "could not restore");
                failure = problem;
                // The next incarnation has files of the same names.
                fetch::make_empty(folder)?;
            }
        }
    }
    Err(failure)
}

/// Describes the time of the restored state.
fn grain(restored: Restored) -> String {
    match restored {
        Restored::Newest => "the newest of each file".to_owned(),
        Restored::Together { at } => format!("all files as of one instant, {}", timestamp_text(at)),
        Restored::Apart => {
            "each file as of its own last moment before that time, which may lie half a minute back"
                .to_owned()
        }
    }
}

/// Checks restored files, and reports in how many rows they differ from the files in the data directory.
fn compare(
    files: &[ReplicatedFile],
    folder: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<(), ReplicationError> {
    for file in files {
        let path = folder.join(&file.name);
        let found = look_into(&path, file.path.exists().then_some(&file.path))
            .map_err(|source| SqliteError::new(&path, "check the file", source))?;
        let Contents { rows, living } = found;
        let beside = match living {
            None => String::new(),
            Some(Differences { restored: 0, living: 0 }) => ", all as in the data directory".to_owned(),
            Some(Differences { restored, living }) => {
                format!(", {restored} of them not in the data directory, which has {living} others")
            }
        };
        say(&format!("{}: sound, {rows} rows{beside}\n", file.name));
    }
    Ok(())
}

/// The contents of a restored file.
struct Contents {
    rows: i64,
    /// The rows that differ from the file in the data directory, if it exists.
    living: Option<Differences>,
}

/// Rows that one file has and the other has not.
#[derive(Default)]
struct Differences {
    restored: i64,
    living: i64,
}

/// Checks a restored file for corruption, and compares its rows with those of the file in the data directory.
fn look_into(path: &Path, living: Option<&PathBuf>) -> rusqlite::Result<Contents> {
    let failed = |error: SqliteError| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    let connection = sqlite::open_reader(path).map_err(failed)?;
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(rusqlite::Error::ToSqlConversionFailure(verdict.into()));
    }
    if let Some(living) = living {
        connection.execute("ATTACH ?1 AS living", [living.display().to_string()])?;
    }
    let tables = |schema: &str| -> rusqlite::Result<BTreeSet<String>> {
        let names = format!(
            "SELECT name FROM {schema}.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
                 AND name NOT LIKE '\\_litestream%' ESCAPE '\\'"
        );
        connection.prepare(&names)?.query_map([], |row| row.get(0))?.collect()
    };
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let here = tables("main")?;
    let there = if living.is_some() { tables("living")? } else { BTreeSet::new() };
    let (mut rows, mut differences) = (0, Differences::default());
    for table in here.union(&there) {
        let name = sqlite::quoted(table);
        let all = |schema: &str| format!("SELECT * FROM {schema}.{name}");
        let (main, other) = match (here.contains(table), there.contains(table)) {
            (true, true) => (
                format!("{} EXCEPT {}", all("main"), all("living")),
                format!("{} EXCEPT {}", all("living"), all("main")),
            ),
            (true, false) => (all("main"), "SELECT 1 WHERE 0".to_owned()),
            (false, _) => ("SELECT 1 WHERE 0".to_owned(), all("living")),
        };
        differences.restored += count(&format!("SELECT count(*) FROM ({main})"))?;
        differences.living += count(&format!("SELECT count(*) FROM ({other})"))?;
        if here.contains(table) {
            rows += count(&format!("SELECT count(*) FROM main.{name}"))?;
        }
    }
    Ok(Contents { rows, living: living.map(|_| differences) })
}

/// Creates a folder, or accepts an empty one.
fn make_folder(folder: &Path) -> Result<(), ReplicationError> {
    let path = || folder.display().to_string();
    let io = |source| ReplicationError::Io { path: path(), doing: "make the folder", source };
    std::fs::create_dir_all(folder).map_err(io)?;
    match std::fs::read_dir(folder).map_err(io)?.next() {
        None => Ok(()),
        Some(_) => Err(ReplicationError::NotEmpty { path: path() }),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, ReplicationError> {
    std::path::absolute(path).map_err(|source| ReplicationError::Io {
        path: path.display().to_string(),
        doing: "find the folder",
        source,
    })
}
