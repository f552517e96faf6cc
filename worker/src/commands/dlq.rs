//! `litejoin dlq`: the dead-letter queue of the worker that runs on a data directory, or of the file if none runs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use litejoin_crds::error::chain;
use litejoin_crds::plan::Synchronous;

use super::arguments::{DlqAction, DlqFilter, DlqQueue, OutputFormat};
use super::client::{AskError, Peer};
use super::{EXIT_INVALID, complain, say};
use crate::control::END;
use crate::control::dlq::{Count, Reading};
use crate::dead_letters::DeadLetters;
use crate::dead_letters::by_hand::{After, Entry, Filter};
use crate::storage::layout::{self, LayoutError};
use crate::storage::sqlite::SqliteError;
use crate::{clock, pipeline};

/// Why a command on the queue failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DlqError {
    #[error(
        "{path}: there is no dead-letter queue, and no worker runs on {data_dir}; give the data directory of the \
         pipeline with --data-dir, or its manifests with -f"
    )]
    Nothing { path: String, data_dir: String },
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the worker answered what is no dead letter; ask it with its own version of litejoin")]
    Answer(#[from] serde_json::Error),
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("{id}: there is none of that id in the dead-letter queue; litejoin dlq list shows what there is")]
    Unknown { id: String },
    #[error("could not write what was found")]
    OutputFormat(#[from] io::Error),
}

/// An error text of `litejoin dlq`, and its exit code.
struct DlqRefusal(String, u8);

impl From<DlqError> for DlqRefusal {
    fn from(error: DlqError) -> Self {
        Self(format!("error: {}\n", chain(&error)), 1)
    }
}

/// Runs one of the commands on the queue.
pub(crate) fn run(action: DlqAction) -> ExitCode {
    match try_run(action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(DlqRefusal(complaint, code)) => {
            complain(&complaint);
            ExitCode::from(code)
        }
    }
}

fn try_run(action: DlqAction) -> Result<(), DlqRefusal> {
    let now = clock::epoch_seconds();
    let find = |queue: &DlqQueue| queue.queue().map_err(|complaints| DlqRefusal(complaints, EXIT_INVALID));
    let all_of_it = |filter: DlqFilter, all: bool| {
        let filter = filter.filter(now);
        match filter.is_empty() && !all {
            true => Err(DlqRefusal("error: say which ones, or --all\n".to_owned(), EXIT_INVALID)),
            false => Ok(filter),
        }
    };
    let mut stdout = std::io::stdout().lock();
    let mut print = |entry: &Entry| {
        writeln!(stdout, "{}", serde_json::to_string(entry).expect("an entry is always JSON")).map(|()| true)
    };
    match action {
        DlqAction::List { queue, filter, limit, output } => {
            let (queue, mut table, mut left) = (find(&queue)?, EntryTable::default(), limit);
            queue.read(&filter.filter(now), false, &mut |entry| {
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
                match output {
                    OutputFormat::Json => print(entry),
                    OutputFormat::Text => {
                        say(&table.row(entry, now));
                        Ok(true)
                    }
                }
            })?;
            if output == OutputFormat::Text {
                say(&table.end());
            }
        }
        DlqAction::Show { queue, ids } => {
            let queue = find(&queue)?;
            for id in ids {
                let (filter, mut found) = (Filter { ids: vec![id.clone()], ..Filter::default() }, false);
                queue.read(&filter, true, &mut |entry| {
                    found = true;
                    say(&(serde_json::to_string_pretty(entry).expect("an entry is always JSON") + "\n"));
                    Ok(true)
                })?;
                if !found {
                    return Err(DlqError::Unknown { id }.into());
                }
            }
        }
        DlqAction::Retry { queue, filter, all } => {
            let count = find(&queue)?.retry(&all_of_it(filter, all)?)?;
            say(&format!("{count} to be tried again\n"));
        }
        DlqAction::Purge { queue, filter, all } => {
            let count = find(&queue)?.purge(&all_of_it(filter, all)?)?;
            say(&format!("{count} thrown away\n"));
        }
        DlqAction::Export { queue, filter } => find(&queue)?.read(&filter.filter(now), true, &mut print)?,
    }
    Ok(())
}

impl DlqFilter {
    /// Returns the filter as of `now`, in seconds since the epoch.
    pub(crate) fn filter(self, now: i64) -> Filter {
        let seconds = |age: Duration| i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        Filter {
            ids: self.ids,
            sink: self.sink,
            join: self.join,
            key: self.key,
            source: self.source,
            reason: self.reason,
            before: self.older_than.map(|age| now.saturating_sub(seconds(age))),
            given_up: self.given_up,
        }
    }
}

impl DlqQueue {
    /// Returns the queue, or the errors in the manifests.
    pub(crate) fn queue(&self) -> Result<Queue, String> {
        let plan = match self.files.is_empty() {
            true => None,
            // Dead letters can be reached even if a part is wrong that a worker can run without.
            false => Some(pipeline::load_valid(&self.files, None)?.0.plan),
        };
        let path = plan.as_ref().and_then(|plan| plan.delivery.dlq.path.as_deref());
        Ok(Queue::of(self.data.folder(plan.as_ref()), path))
    }
}

/// The queue of a pipeline, which a running worker may hold open.
pub(crate) struct Queue {
    peer: Peer,
    data_dir: PathBuf,
    path: PathBuf,
}

impl Queue {
    /// Returns the queue of a data directory; `path` is its file, if the manifests name one.
    pub(crate) fn of(data_dir: &Path, path: Option<&Path>) -> Self {
        let path = layout::dead_letters_path(path, data_dir);
        Self { peer: Peer::of(data_dir), data_dir: data_dir.to_owned(), path }
    }

    /// Calls `each` for each entry that matches the filter, until `each` returns `false`.
    pub(crate) fn read(
        &self,
        filter: &Filter,
        whole: bool,
        each: &mut dyn FnMut(&Entry) -> io::Result<bool>,
    ) -> Result<(), DlqError> {
        let request = Reading { filter: filter.clone(), whole };
        let Some(mut answer) = self.ask("/dlq/read", &request)? else {
            let (letters, mut after) = (self.open()?, After::default());
            loop {
                let entries = letters.page(filter, &mut after, whole)?;
                if entries.is_empty() {
                    return Ok(());
                }
                for entry in &entries {
                    if !each(entry)? {
                        return Ok(());
                    }
                }
            }
        };
        loop {
            let line = answer.line()?.ok_or_else(|| answer.broken(io::ErrorKind::UnexpectedEof.into()))?;
            if line == END || !each(&serde_json::from_str(&line)?)? {
                return Ok(());
            }
        }
    }

    /// Makes results due at once; if no worker runs, the next start tries them.
    pub(crate) fn retry(&self, filter: &Filter) -> Result<u64, DlqError> {
        match self.count("/dlq/retry", filter)? {
            Some(count) => Ok(count),
            None => Ok(self.open()?.retry(filter, clock::epoch_seconds())?),
        }
    }

    /// Removes entries.
    pub(crate) fn purge(&self, filter: &Filter) -> Result<u64, DlqError> {
        match self.count("/dlq/purge", filter)? {
            Some(count) => Ok(count),
            None => Ok(self.open()?.purge(filter)?),
        }
    }

    fn count(&self, path: &str, filter: &Filter) -> Result<Option<u64>, DlqError> {
        let Some(mut answer) = self.ask(path, filter)? else { return Ok(None) };
        let line = answer.line()?.unwrap_or_default();
        Ok(Some(serde_json::from_str::<Count>(&line)?.count))
    }

    /// Sends a request to the worker; returns `None` if none runs.
    fn ask(
        &self,
        path: &str,
        request: &impl serde::Serialize,
    ) -> Result<Option<crate::commands::client::Answer>, DlqError> {
        let request = serde_json::to_string(request)?;
        match self.peer.ask("POST", path, &request) {
            Ok(answer) => Ok(Some(answer)),
            Err(AskError::Nobody { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self) -> Result<DeadLetters, DlqError> {
        layout::check_format(&self.data_dir)?;
        if !self.path.is_file() {
            let path = self.path.display().to_string();
            return Err(DlqError::Nothing { path, data_dir: self.data_dir.display().to_string() });
        }
        // Only a running worker enforces the limit on the size of the file.
        Ok(DeadLetters::open(&self.path, Synchronous::Full, u64::MAX)?)
    }
}

/// Formats entries as a table for people.
#[derive(Debug, Default)]
pub(crate) struct EntryTable {
    rows: u64,
}

/// Characters of a reason that fit into a table.
const REASON_MAX: usize = 80;

impl EntryTable {
    /// Returns the line for one more entry, below the head of the table.
    pub(crate) fn row(&mut self, entry: &Entry, now: i64) -> String {
        let line = |id: &str, what: &str, key: &str, attempts: &str, retry: &str, reason: &str| {
            format!("{id:<28} {what:<28} {key:<20} {attempts:>8} {retry:>8}  {reason}\n")
        };
        let head = match self.rows {
            0 => line("id", "sink/join, or source", "key, or place", "attempts", "retry", "reason"),
            _ => String::new(),
        };
        self.rows += 1;
        let short = |text: &str, max: usize| match text.char_indices().nth(max) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        let line = match entry {
            Entry::Result { id, sink, join, key, attempts, retry_at, reason, .. } => {
                let retry = match retry_at {
                    None => "never".to_owned(),
                    Some(at) if *at <= now => "due".to_owned(),
                    Some(at) => format!("{}s", at - now),
                };
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                let reason = short(reason, REASON_MAX);
                line(id, &format!("{sink}/{join}"), &key, &attempts.to_string(), &retry, &reason)
            }
            Entry::Evaluation { id, join, key, reason, .. } => {
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                line(id, join, &key, "-", "-", &short(reason, REASON_MAX))
            }
            Entry::Message { id, source, position, reason, .. } => {
                line(id, source, position, "-", "-", &short(reason, REASON_MAX))
            }
        };
        // Keys and reasons come from other systems, and a terminal would interpret control characters in them.
        let line: String =
            line.trim_end().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        format!("{head}{line}\n")
    }

    /// Returns the line below the table.
    pub(crate) fn end(&self) -> String {
        match self.rows {
            0 => "no dead letters\n".to_owned(),
            1 => "1 dead letter\n".to_owned(),
            rows => format!("{rows} dead letters\n"),
        }
    }
}
