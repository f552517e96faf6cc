//! `litejoin reshard`: the data of a stopped pipeline goes to another number of shards.

mod serve;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use litejoin_crds::duration::timestamp_text;
use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::Reshard;
use super::{EXIT_INVALID, complain, environment, say};
use crate::blocking::blocking;
use crate::credentials::Secrets;
use crate::replication::{ReplicationError, note_shard_count};
use crate::reshard::{Move, Outlook, ReshardError, mebibytes, undo};
use crate::serve::listen::ListenError;
use crate::status::reshard::{MoveProgress, MoveStep};
use crate::storage::layout::{LayoutError, LockedDir};
use crate::{clock, pipeline};

/// How long the layout of before is kept where nothing says otherwise.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// How often the progress bar is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// The exit codes of a process that a signal has ended.
const EXIT_INTERRUPTED: i32 = 130;
const EXIT_TERMINATED: i32 = 143;

/// Why the command has failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Reshard(#[from] ReshardError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("{what}: {problem}")]
    Serve { what: String, problem: String },
}

/// Moves the data, or says what that takes.
pub(crate) fn run(arguments: &Reshard) -> ExitCode {
    let plan = match arguments.files.is_empty() {
        true => None,
        // The data must be movable even if a part is wrong that a worker can run without.
        false => match pipeline::load_valid(&arguments.files, None) {
            Ok((pipeline, _)) => Some(pipeline.plan),
            Err(complaints) => {
                complain(&complaints);
                return ExitCode::from(EXIT_INVALID);
            }
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    let outcome = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate()).expect("signals can be handled"),
            signal(SignalKind::interrupt()).expect("signals can be handled"),
        );
        tokio::select! {
            outcome = reshard(arguments, plan.as_ref()) => outcome,
            // A move that is cut off leaves the data as it was, or is ended by the next start.
            _ = terminate.recv() => std::process::exit(EXIT_TERMINATED),
            _ = interrupt.recv() => std::process::exit(EXIT_INTERRUPTED),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {}\n", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

async fn reshard(arguments: &Reshard, plan: Option<&Plan>) -> Result<(), CommandError> {
    let data_dir = arguments.data.folder(plan).to_owned();
    if !data_dir.exists() {
        return Err(LayoutError::NoData { path: data_dir.display().to_string() }.into());
    }
    let locked = LockedDir::lock(&data_dir)?;
    let consent = plan.and_then(|plan| plan.storage.reshard.as_ref());
    let keep = arguments.keep_old_layout.or(consent.map(|consent| consent.keep_old_layout)).unwrap_or(KEEP);
    let progress = Arc::new(MoveProgress::default());
    if let Some(layout) = locked.layout()? {
        note_shard_count(&data_dir, layout.shard_count)?;
        if let Some(plan) = plan.filter(|plan| plan.identity != layout.identity) {
            let (found, wanted) = (layout.identity, plan.identity.clone());
            return Err(LayoutError::Identity { path: data_dir.display().to_string(), found, wanted }.into());
        }
    }
    if arguments.undo {
        let shown = Arc::clone(&progress);
        let count = with_bar(&shown, blocking(move || undo(&locked, keep, &progress))).await?;
        say(&format!(
            "{}: back to {count} shards\nnext: set storage.shardCount to {count} and start the pipeline\n",
            data_dir.display()
        ));
        return Ok(());
    }
    let to = arguments.to.or(plan.map(|plan| plan.storage.shard_count)).unwrap_or_default();
    let mut outlook = None;
    if !arguments.verify_only {
        let shared = locked.share()?;
        let planned = blocking(move || Move::new(&shared, to)?.plan()).await?;
        say(&planned.text(&data_dir.display().to_string()));
        outlook = Some(planned);
    }
    if arguments.plan {
        return Ok(());
    }
    let from = locked.layout()?.map_or(0, |layout| layout.shard_count);
    let served = match plan.filter(|_| arguments.serve) {
        Some(plan) => {
            let secrets = Arc::new(Secrets::new(environment(), arguments.secrets_dir.clone()));
            Some(serve::serve(plan, &secrets, from, to, &progress).await?)
        }
        None => None,
    };
    let began = Instant::now();
    let end = match (arguments.verify_only, arguments.no_switch) {
        (true, _) => MoveEnd::Verified,
        (_, true) => MoveEnd::Staged { from, to },
        _ => MoveEnd::Switched { from, to, keep },
    };
    let shown = Arc::clone(&progress);
    let work = blocking(move || -> Result<u64, ReshardError> {
        let data = Move::new(&locked, to)?;
        let copy = match end {
            MoveEnd::Verified => data.verify(&progress)?,
            _ => data.stage(outlook, &progress)?,
        };
        let rows = copy.rows();
        if let MoveEnd::Switched { keep, .. } = end {
            data.switch(copy, keep)?;
        }
        Ok(rows)
    });
    let rows = with_bar(&shown, work).await?;
    drop(served);
    say(&end.text(rows, began.elapsed()));
    Ok(())
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
enum MoveEnd {
    Verified,
    Staged { from: usize, to: usize },
    Switched { from: usize, to: usize, keep: Duration },
}

impl MoveEnd {
    /// Says what was done, and what to do next.
    fn text(self, rows: u64, took: Duration) -> String {
        let seconds = took.as_secs_f64();
        match self {
            Self::Verified => {
                format!("verified {rows} rows in {seconds:.1} s\nthe copy is what the data is\n")
            }
            Self::Staged { from, to } => format!(
                "copied and verified {rows} rows in {seconds:.1} s\nnothing is switched yet\nnext: start the pipeline with \
                 storage.shardCount: {to} and storage.reshard: {{fromShardCount: {from}, toShardCount: {to}}}\n"
            ),
            Self::Switched { from, to, keep } => {
                let until = clock::epoch_seconds().saturating_add_unsigned(keep.as_secs());
                format!(
                    "copied and verified {rows} rows in {seconds:.1} s\nthe data has {to} shards now; the {from} of before \
                     are kept until {} (--undo goes back)\nnext: set storage.shardCount to {to} and start the pipeline\n",
                    timestamp_text(until * 1_000)
                )
            }
        }
    }
}

/// Shows how far the work is, where standard error is a terminal.
async fn with_bar<T>(progress: &MoveProgress, work: impl Future<Output = T>) -> T {
    let style = ProgressStyle::with_template("{msg:10} {wide_bar} {human_pos}/{human_len} rows, {eta} left");
    let bar = ProgressBar::new(0).with_style(style.expect("the template is right"));
    let mut work = std::pin::pin!(work);
    let outcome = loop {
        tokio::select! {
            outcome = &mut work => break outcome,
            () = tokio::time::sleep(DRAW_INTERVAL) => {
                let (step, rows, total) = progress.now();
                bar.set_message(match step {
                    MoveStep::Copying => "copying",
                    MoveStep::Verifying => "verifying",
                    _ => "verified",
                });
                bar.set_length(total);
                bar.set_position(rows);
            }
        }
    };
    bar.finish_and_clear();
    outcome
}

impl Outlook {
    fn text(&self, data_dir: &str) -> String {
        let Self { from, to, rows, used, needed, free, seconds } = self;
        format!(
            "{data_dir}: {rows} rows ({}) go from {from} shards to {to}\nit takes up to {} beside them ({} are free) and \
             about {seconds} s, in which the pipeline is stopped\n",
            mebibytes(*used),
            mebibytes(*needed),
            mebibytes(*free)
        )
    }
}
