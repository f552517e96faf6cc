//! `litejoin restore` and `litejoin replication`: the replica from the command line.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use litejoin_crds::plan::Plan;
use serde::Serialize;
use serde_json::Value;
use tracing::{info, warn};

use super::boot::{self, Begin};
use super::config::{FINE_GRAIN_KEPT, File};
use super::incarnation::{Claim, Found, Incarnation};
use super::litestream::{Litestream, State};
use super::{ReplicationError, Site, Tools, files};
use crate::clock;
use crate::control::client::Peer;
use crate::credentials::Secrets;
use crate::error::chain;
use crate::storage::layout::LockedDir;
use crate::storage::sqlite::{self, SqliteError};

/// Where restored files go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim<'a> {
    /// In place of the data.
    DataDir,
    /// To a folder of their own.
    Folder(&'a Path),
    /// Beside the data, to be compared with it and thrown away.
    Nowhere,
}

/// What `litejoin replication status` tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    base: String,
    claim: Option<Claim>,
    incarnations: Vec<ToldIncarnation>,
    /// What the worker says that runs on the data directory; `None` where none does.
    worker: Option<Value>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ToldIncarnation {
    name: Incarnation,
    is_ready: bool,
    parent: Option<Incarnation>,
    born_at: i64,
    /// Whether a restore would take it.
    is_next: bool,
}

/// Looks at the replica and asks the worker.
pub(crate) async fn status(plan: &Plan, secrets: &Secrets) -> Result<Told, ReplicationError> {
    let site = Site::of(plan, secrets)?.ok_or(ReplicationError::Disabled)?;
    let remote = site.look().await?;
    let next = remote.best().map(|best| best.incarnation.clone());
    let told = |found: &Found| ToldIncarnation {
        name: found.incarnation.clone(),
        is_ready: found.is_ready,
        parent: found.birth.parent.clone(),
        born_at: found.birth.born_at,
        is_next: Some(&found.incarnation) == next.as_ref(),
    };
    let worker = Peer::of(&plan.storage.data_dir).status().ok();
    Ok(Told {
        base: site.base.to_string(),
        incarnations: remote.found.iter().map(told).collect(),
        claim: remote.claim,
        worker: worker.map(|status| status["replication"].clone()),
    })
}

impl Told {
    /// For people.
    pub(crate) fn text(&self, now: i64) -> String {
        let mut text = format!("{}\n", self.base);
        let ago = |seconds: i64| format!("{} s ago", (now - seconds).max(0));
        if self.incarnations.is_empty() {
            text.push_str("  nothing is there\n");
        }
        for incarnation in &self.incarnations {
            let ToldIncarnation { name, is_ready, parent, born_at, is_next } = incarnation;
            let ready = if *is_ready { "READY" } else { "not READY" };
            let parent = parent.as_ref().map(|parent| format!(", from {parent}")).unwrap_or_default();
            let claimed = self.claim.as_ref().is_some_and(|claim| claim.incarnation == *name);
            let claimed = if claimed { ", claimed" } else { "" };
            let next = if *is_next { ", a restore takes it" } else { "" };
            let _ = writeln!(text, "  {name}: {ready}{claimed}{next}, born {}{parent}", ago(*born_at));
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

/// Makes a data directory ready for a Litestream that somebody else starts.
pub(crate) async fn prepare(plan: &Plan, secrets: &Secrets, tools: &Tools) -> Result<(), ReplicationError> {
    let site = Site::of(plan, secrets)?.ok_or(ReplicationError::Disabled)?;
    let locked = LockedDir::lock(&plan.storage.data_dir)?;
    let replica = boot::prepare(&locked, plan, site, tools, Begin::Run).await?;
    info!(config = %replica.config.display(), "ready for `litestream replicate -no-expand-env -config`");
    Ok(())
}

/// Restores the newest state, or that of a time.
pub(crate) async fn restore(
    plan: &Plan,
    secrets: &Secrets,
    tools: &Tools,
    aim: Aim<'_>,
    timestamp: Option<&(String, i64)>,
    say: &mut dyn FnMut(&str),
) -> Result<(), ReplicationError> {
    let site = Site::of(plan, secrets)?.ok_or(ReplicationError::Disabled)?;
    if let Some((_, seconds)) = timestamp
        && clock::epoch_seconds() - seconds > i64::try_from(FINE_GRAIN_KEPT.as_secs()).unwrap_or(i64::MAX)
    {
        warn!(
            "a time this long ago comes back as of the half minute before it, which may differ from file to file"
        );
    }
    match aim {
        Aim::DataDir => {
            let locked = LockedDir::lock(&plan.storage.data_dir)?;
            let begin = match timestamp {
                Some((timestamp, seconds)) => Begin::At { timestamp, seconds: *seconds },
                None => Begin::Run,
            };
            let tools = Tools { expects_replica: true, ..tools.clone() };
            let replica = boot::prepare(&locked, plan, site, &tools, begin).await?;
            say(match replica.is_restored {
                true => "restored; `litejoin run` goes on from here\n",
                false => "nothing is missing; --timestamp goes back to an earlier time\n",
            });
        }
        Aim::Folder(folder) => {
            make_folder(folder)?;
            let names = fetch(plan, &site, tools, timestamp, folder).await?;
            say(&format!("restored {} files to {}\n", names.len(), folder.display()));
        }
        Aim::Nowhere => {
            let folder = plan.storage.data_dir.join("verify");
            let _ = std::fs::remove_dir_all(&folder);
            make_folder(&folder)?;
            let outcome = async {
                let restored = fetch(plan, &site, tools, timestamp, &folder).await?;
                compare(&restored, &folder, say)
            }
            .await;
            let _ = std::fs::remove_dir_all(&folder);
            outcome?;
        }
    }
    Ok(())
}

/// Fetches into a folder, from the first incarnation that has it.
async fn fetch(
    plan: &Plan,
    site: &Site,
    tools: &Tools,
    timestamp: Option<&(String, i64)>,
    folder: &Path,
) -> Result<Vec<File>, ReplicationError> {
    let litestream = Litestream::find(tools.litestream.as_deref(), &site.environment).await?;
    let remote = site.look().await?;
    let (candidates, state) = match timestamp {
        Some((text, seconds)) => (remote.lived_at(*seconds), State::At(text.clone())),
        None => (remote.best().into_iter().collect(), State::Newest),
    };
    let data_dir = absolute(&plan.storage.data_dir)?;
    let wanted = files(plan, &data_dir);
    let mut failure = ReplicationError::TooEarly { place: site.base.to_string() };
    for from in candidates {
        let files: Vec<File> =
            wanted.iter().filter(|file| from.birth.files.contains(&file.name)).cloned().collect();
        match boot::fetch(site, &litestream, from, &files, &state, folder).await {
            Ok(()) => return Ok(files),
            Err(problem) => {
                warn!(incarnation = %from.incarnation, error = chain(&problem), "could not restore");
                failure = problem;
            }
        }
    }
    Err(failure)
}

/// Checks restored files, and says how many rows they and the living ones have.
fn compare(files: &[File], folder: &Path, say: &mut dyn FnMut(&str)) -> Result<(), ReplicationError> {
    for file in files {
        let restored = contents(&folder.join(&file.name))?;
        let living = if file.path.exists() { Some(contents(&file.path)?) } else { None };
        say(&match living {
            None => format!("{}: sound, {} rows\n", file.name, restored),
            Some(living) => {
                format!("{}: sound, {restored} rows, and {living} in the data directory\n", file.name)
            }
        });
    }
    Ok(())
}

/// How many rows a file has, once it was found to be sound.
fn contents(path: &Path) -> Result<i64, SqliteError> {
    let connection = sqlite::open_reader(path)?;
    let count = || -> rusqlite::Result<i64> {
        let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(rusqlite::Error::ToSqlConversionFailure(verdict.into()));
        }
        let mut tables = connection.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
                 AND name NOT LIKE '\\_litestream%' ESCAPE '\\'",
        )?;
        let names =
            tables.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
        let mut rows = 0;
        for name in names {
            let count = format!("SELECT count(*) FROM {}", sqlite::quoted(&name));
            rows += connection.query_row(&count, [], |row| row.get::<_, i64>(0))?;
        }
        Ok(rows)
    };
    count().map_err(|source| SqliteError::new(path, "check the file", source))
}

fn make_folder(folder: &Path) -> Result<(), ReplicationError> {
    let io = |source| ReplicationError::Io {
        path: folder.display().to_string(),
        doing: "make the folder",
        source,
    };
    std::fs::create_dir_all(folder).map_err(io)
}

fn absolute(path: &Path) -> Result<PathBuf, ReplicationError> {
    std::path::absolute(path).map_err(|source| ReplicationError::Io {
        path: path.display().to_string(),
        doing: "find the folder",
        source,
    })
}
