//! Wiring: which task feeds which, and the order in which they stop. A planned stop goes the way of the data:
//! sources, writers, evaluator, sinks; then the files are closed.

mod listeners;
mod sinks;
mod sources;
mod store;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use litejoin_crds::plan::Plan;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use self::listeners::Listeners;
use self::sinks::Sinks;
use self::sources::Sources;
use self::store::Store;
use crate::blocking::blocking;
use crate::epoch::Evaluator;
use crate::join::CheckedJoin;
use crate::listen::ListenError;
use crate::results::Results;
use crate::results::event::{Envelope, JoinId};
use crate::status::Status;
use crate::storage::gate::EpochGate;
use crate::storage::ingest::Ingest;
use crate::storage::layout::LayoutError;
use crate::storage::retention::Cleaner;
use crate::storage::shard::Shard;
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::Topics;
use crate::storage::writer::{Command, Writer};
use crate::{admin, clock};

/// How long a planned stop waits for the evaluator and the sinks. What is not done by then is done at the next
/// start: it is all on disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a pipeline did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    File(SqliteError),
    #[error("{path}: is no database; restore it, or move the data directory away to start empty")]
    NoDatabase { path: String },
    #[error("source {name}: {problem}")]
    Source { name: String, problem: String },
    #[error("--once needs sources that come to an end, and {name} does not; leave --once out")]
    Endless { name: String },
}

impl From<SqliteError> for StartError {
    fn from(error: SqliteError) -> Self {
        let path = error.path().to_owned();
        if error.is_disk_full() {
            // The same remedy, whichever file was the first to find no room.
            LayoutError::DiskFull { path }.into()
        } else if error.is_no_database() {
            Self::NoDatabase { path }
        } else {
            Self::File(error)
        }
    }
}

/// What to run.
pub(crate) struct Pipeline {
    pub(crate) plan: Plan,
    /// Each after those that it reads.
    pub(crate) joins: Vec<CheckedJoin>,
    /// Files of file sources by the name of the source.
    pub(crate) source_paths: BTreeMap<String, PathBuf>,
    /// Whether to stop when every source has come to its end.
    pub(crate) once: bool,
}

/// Runs the pipeline until `stop` is heard (or, with `once`, until its sources have ended), then stops in order.
pub(crate) async fn run(pipeline: Pipeline, mut stop: mpsc::Receiver<()>) -> Result<(), StartError> {
    let Pipeline { plan, joins, source_paths, once } = pipeline;
    sources::check(&plan, &source_paths, once)?;
    let listeners = Listeners::open(&plan).await?;
    let mut store = {
        let (plan, joins) = (plan.clone(), joins.clone());
        blocking(move || Store::open(&plan, &joins)).await?
    };
    let status = Arc::new(Status::new(&plan, clock::epoch_seconds()));
    *status.lineage.lock().unwrap_or_else(PoisonError::into_inner) = store.results.lineage().to_owned();
    status.outbox_bytes.set(store.results.outbox_bytes()?);

    let definitions: Vec<(&str, String)> =
        joins.iter().map(|join| (join.name.as_str(), join.definition(&joins))).collect();
    let progress = store.results.register(&definitions, plan.storage.shard_count)?;
    let ids: HashMap<String, JoinId> =
        joins.iter().zip(&progress).map(|(join, progress)| (join.name.clone(), progress.id)).collect();
    let envelopes =
        joins.iter().map(|join| (ids[&join.name], envelope(join, store.results.lineage()))).collect();
    let (applied_sender, applied) = watch::channel(store.reader.end()?);
    status.epoch_applied.set(applied.borrow().epoch);

    let (source_stop, source_stopping) = watch::channel(false);
    let (sink_stop, sink_stopping) = watch::channel(false);
    let (closed, mut stdout_closed) = mpsc::channel(1);

    // From the shards outwards, so that nothing is sent to what is not there yet.
    let shard_paths = store.shard_paths();
    let offsets = store.stream_offsets();
    let shards = std::mem::take(&mut store.shards);
    let gate = Arc::new(EpochGate::new(store.first_epoch, shards.iter().map(Shard::last_seq).collect()));
    let trim_to: Vec<Arc<AtomicI64>> = shards.iter().map(|_| Arc::default()).collect();
    let (ingest, writers) = start_writers(&plan, shards, &store.topics, &gate, &status, &trim_to);
    let evaluator = Evaluator {
        gate: Arc::clone(&gate),
        topics: Arc::clone(&store.topics),
        results: Arc::clone(&store.results),
        reader: Arc::clone(&store.reader),
        status: Arc::clone(&status),
        joins,
        progress,
        shard_paths: shard_paths.clone(),
        scratch_folder: store.scratch_folder(),
        trim_to,
        reserved: Results::last_reserved(store.first_epoch),
        applied: applied_sender,
    };
    let evaluator = thread("evaluator", move || {
        evaluator.run();
    });

    let mut sink_tasks = JoinSet::new();
    let sinks = Sinks {
        plan: &plan,
        store: &store,
        status: &status,
        ids,
        envelopes: Arc::new(envelopes),
        applied,
        stopping: sink_stopping.clone(),
        stdout_closed: closed,
    };
    sinks.start(listeners.sinks, &mut sink_tasks)?;
    let (listener, local) = listeners.admin;
    info!(address = %local, "showing /healthz, /readyz, /metrics, /status");
    serve(&mut sink_tasks, listener, admin::router(Arc::clone(&status)), sink_stopping);

    let mut upkeep = JoinSet::new();
    let (results, letters) = (Arc::clone(&store.results), Arc::clone(&store.letters));
    let outbox = upkeep::tidy_outbox(
        plan.clone(),
        results,
        ingest.clone(),
        Arc::clone(&status),
        source_stopping.clone(),
    );
    upkeep.spawn(outbox);
    upkeep.spawn(upkeep::clean_letters(plan.delivery.dlq.clone(), letters, source_stopping.clone()));
    let cleaner = Cleaner::new(plan.retention.clone(), shard_paths, ingest.clone());
    upkeep.spawn(upkeep::clean_topics(cleaner, plan.retention.clean_interval, source_stopping.clone()));

    let (mut source_servers, mut files) = (JoinSet::new(), JoinSet::new());
    let sources = Sources {
        plan: &plan,
        paths: &source_paths,
        ingest: &ingest,
        letters: &store.letters,
        status: &status,
        offsets,
        stopping: source_stopping,
    };
    sources.start(listeners.sources, &mut source_servers, &mut files);
    status.ready.store(true, Ordering::Relaxed);
    info!(pipeline = plan.name, data = %store.data_dir.path().display(), "the pipeline runs; stop it with ctrl-C");

    tokio::select! {
        Some(()) = stop.recv() => info!("stopping: sources first, then what is on its way; a second signal ends at once"),
        Some(()) = stdout_closed.recv() => info!("nobody reads standard output any more; stopping"),
        () = all_ended(&mut files), if once => info!("every source has come to its end; stopping"),
    }
    status.ready.store(false, Ordering::Relaxed);
    source_stop.send_replace(true);
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        all_ended(&mut source_servers).await;
        all_ended(&mut files).await;
        all_ended(&mut upkeep).await;
        ingest.close();
        blocking(move || writers.into_iter().for_each(join)).await;
        gate.stop();
        blocking(move || join(evaluator)).await;
        sink_stop.send_replace(true);
        all_ended(&mut sink_tasks).await;
    })
    .await;
    match drained {
        Ok(()) => {
            // Scratch data is worth nothing to the next start.
            let _ = std::fs::remove_dir_all(store.scratch_folder());
            info!("stopped");
        }
        Err(_) => warn!("stopped before all results were handed over; they follow at the next start"),
    }
    Ok(())
}

fn envelope(join: &CheckedJoin, lineage: &str) -> Envelope {
    Envelope {
        lineage: lineage.to_owned(),
        join_name: join.name.clone(),
        result_key: join.result_key.clone(),
    }
}

async fn all_ended(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn start_writers(
    plan: &Plan,
    shards: Vec<Shard>,
    topics: &Arc<Topics>,
    gate: &Arc<EpochGate>,
    status: &Arc<Status>,
    trim_to: &[Arc<AtomicI64>],
) -> (Ingest, Vec<JoinHandle<()>>) {
    let mut senders = Vec::with_capacity(shards.len());
    let mut threads = Vec::with_capacity(shards.len());
    for (shard_index, (shard, trim_to)) in shards.into_iter().zip(trim_to).enumerate() {
        let (sender, commands) = std::sync::mpsc::channel::<Command>();
        let writer = Writer {
            shard_index,
            shard,
            topics: Arc::clone(topics),
            gate: Arc::clone(gate),
            status: Arc::clone(status),
            batch_messages_max: plan.storage.batch_messages_max,
            flush_interval: plan.storage.flush_interval,
            trim_to: Arc::clone(trim_to),
            was_full: false,
        };
        senders.push(sender);
        threads.push(thread(&format!("shard-{shard_index}"), move || writer.run(&commands)));
    }
    (Ingest::new(Arc::clone(topics), senders), threads)
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started")
}

fn join(thread: JoinHandle<()>) {
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn serve(
    tasks: &mut JoinSet<()>,
    listener: TcpListener,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    tasks.spawn(async move {
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
            warn!(error = %error, "a listener has failed");
        }
    });
}
