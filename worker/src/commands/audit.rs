//! `litejoin audit`: sends a request to the worker that runs on a data directory, or compares its files if none runs.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use serde_json::json;

use super::arguments::{Audit, OutputFormat};
use super::client::{AskError, Peer};
use super::{EXIT_INVALID, complain, say};
use crate::audit::{Files, Finding, compare, finding};
use crate::control::END;
use crate::join::{self, CheckedJoin};
use crate::pipeline;
use crate::storage::layout::{self, LayoutError};

/// Why no comparison took place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditRefusal {
    /// The names of joins are wrong.
    #[error("{0}")]
    Names(String),
    #[error(
        "{data_dir}: no worker runs on it that could be asked; start it (litejoin run -f … --data-dir {data_dir}), or \
         give the manifests with -f to compare the files as they are"
    )]
    NoWorker { data_dir: String },
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the worker answered what is no finding; ask it with its own version of litejoin")]
    Answer(#[from] serde_json::Error),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(
        "{path}: could not make a folder for a copy of the topics; set TMPDIR to one that this user may write to"
    )]
    Scratch { path: String, source: io::Error },
}

/// Prints the finding for each join; the exit code says whether any is wrong.
pub(crate) fn run(arguments: &Audit) -> ExitCode {
    let pipeline = match arguments.files.is_empty() {
        true => None,
        false => match pipeline::load(&arguments.files) {
            Ok((pipeline, _)) => Some(pipeline),
            Err(complaints) => {
                complain(&complaints);
                return ExitCode::from(EXIT_INVALID);
            }
        },
    };
    let data_dir = arguments.data.folder(pipeline.as_ref().map(|pipeline| &pipeline.plan));
    let written = pipeline.as_ref().map(|pipeline| (&pipeline.plan, pipeline.joins.as_slice()));
    let (mut table, mut wrong) = (FindingTable::default(), false);
    let outcome = compare_joins(data_dir, written, &arguments.joins, &mut |finding| {
        wrong |= finding.is_wrong();
        say(&match arguments.output {
            OutputFormat::Text => table.row(finding),
            OutputFormat::Json => {
                serde_json::to_string(finding).expect("plain fields are always JSON") + "\n"
            }
        });
    });
    if let Err(error) = outcome {
        complain(&format!("error: {}\n", chain(&error)));
        let invalid = matches!(error, AuditRefusal::Names(_));
        return if invalid { ExitCode::from(EXIT_INVALID) } else { ExitCode::FAILURE };
    }
    if arguments.output == OutputFormat::Text {
        say(table.end());
    }
    ExitCode::from(u8::from(wrong))
}

/// Compares the stored results of some joins (all if none is named), and calls `each` with the finding of each join.
/// `pipeline` comes from the manifests, if any were given.
fn compare_joins(
    data_dir: &Path,
    pipeline: Option<(&Plan, &[CheckedJoin])>,
    names: &[String],
    each: &mut dyn FnMut(&Finding),
) -> Result<(), AuditRefusal> {
    match by_worker(data_dir, names, each) {
        Err(AuditRefusal::Ask(AskError::Nobody { .. })) => {
            let data_dir_shown = || data_dir.display().to_string();
            let (plan, joins) =
                pipeline.ok_or_else(|| AuditRefusal::NoWorker { data_dir: data_dir_shown() })?;
            over_files(data_dir, plan, joins, names, each)
        }
        Err(AuditRefusal::Ask(AskError::Refused { status: 404, message, .. })) => {
            Err(AuditRefusal::Names(message))
        }
        outcome => outcome,
    }
}

fn by_worker(data_dir: &Path, names: &[String], each: &mut dyn FnMut(&Finding)) -> Result<(), AuditRefusal> {
    let request = json!({"joins": names}).to_string();
    let mut answer = Peer::of(data_dir).ask("POST", "/audit", &request)?;
    loop {
        let line = answer.line()?.ok_or_else(|| answer.broken(io::ErrorKind::UnexpectedEof.into()))?;
        if line == END {
            return Ok(());
        }
        each(&serde_json::from_str(&line)?);
    }
}

fn over_files(
    data_dir: &Path,
    plan: &Plan,
    joins: &[CheckedJoin],
    names: &[String],
    each: &mut dyn FnMut(&Finding),
) -> Result<(), AuditRefusal> {
    let chosen = join::named(joins, names).map_err(AuditRefusal::Names)?;
    let shard_count = plan.storage.shard_count_for(layout::shard_count(data_dir)?);
    let shards = layout::shard_paths(data_dir, shard_count, &plan.identity)?;
    let folder = tempfile::Builder::new().prefix("litejoin-audit-").tempdir().map_err(|source| {
        AuditRefusal::Scratch { path: std::env::temp_dir().display().to_string(), source }
    })?;
    let files = Files::new(shards, data_dir.join("results.db"), folder.path().to_owned());
    for join in chosen {
        let started = Instant::now();
        each(&finding(&join.name, compare(join, joins, &files, &Arc::default()), started));
    }
    Ok(())
}

/// Formats findings as a table that grows, for people.
#[derive(Debug, Default)]
pub(crate) struct FindingTable {
    rows: u64,
    wrong: u64,
    differences: u64,
    is_repairing: bool,
}

impl FindingTable {
    /// Returns the line for one more join, below the head of the table.
    pub(crate) fn row(&mut self, finding: &Finding) -> String {
        let head = if self.rows == 0 {
            format!("{:<24} {:>10} {:>11} {:>9}\n", "join", "results", "differences", "seconds")
        } else {
            String::new()
        };
        self.rows += 1;
        self.wrong += u64::from(finding.is_wrong());
        self.differences += finding.differences;
        self.is_repairing |= finding.repairing;
        let (results, differences) = match finding.skipped.is_some() || finding.error.is_some() {
            true => ("-".to_owned(), "-".to_owned()),
            false => (finding.results.to_string(), finding.differences.to_string()),
        };
        let note = match (&finding.error, &finding.skipped) {
            (Some(error), _) => format!("  failed: {error}"),
            (None, Some(skipped)) => format!("  skipped: {skipped}"),
            (None, None) if finding.keys.is_empty() => String::new(),
            (None, None) => {
                let more = if finding.differences > finding.keys.len() as u64 { ", …" } else { "" };
                format!("  {}{more}", finding.keys.join(", "))
            }
        };
        format!("{head}{:<24} {results:>10} {differences:>11} {:>9.2}{note}\n", finding.join, finding.seconds)
    }

    /// Returns the line below the table.
    pub(crate) fn end(&self) -> &'static str {
        match (self.wrong, self.differences, self.is_repairing) {
            (0, ..) => "no difference\n",
            (_, 0, _) => "some joins could not be compared\n",
            (_, _, true) => {
                "stored results differ from what their queries yield; the worker evaluates those joins anew and sends \
                 what changes\n"
            }
            (_, _, false) => {
                "stored results differ from what their queries yield; a running worker puts them right (spec.audit.repair)\n"
            }
        }
    }
}
