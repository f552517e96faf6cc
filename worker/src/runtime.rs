//! Wiring: which task feeds which, and the order in which they stop. A planned stop goes the way of the data:
//! sources, writers, evaluator, sinks; then the files are closed.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use litejoin_crds::plan::{self, Guarantee, Plan, SinkKind, SourceKind};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::delivery::dead_letters::DeadLetters;
use crate::delivery::dispatch::{Dispatcher, blocking};
use crate::epoch::Evaluator;
use crate::join::CheckedJoin;
use crate::listen::{ListenError, listen};
use crate::results::event::{Envelope, JoinId};
use crate::results::outbox::Keep;
use crate::results::{Reader, Results};
use crate::sink::sse::{self, SseState};
use crate::sink::stdout::Stdout;
use crate::source::file::{self, FileReader};
use crate::source::http::{self, HttpState};
use crate::status::Status;
use crate::storage::gate::EpochGate;
use crate::storage::ingest::Ingest;
use crate::storage::layout::{DataDir, LayoutError, State};
use crate::storage::retention::Cleaner;
use crate::storage::shard::Shard;
use crate::storage::sqlite::{self, SqliteError};
use crate::storage::topics::Topics;
use crate::storage::writer::{Command, Writer, chain};
use crate::{admin, clock};

/// How long a planned stop waits for the evaluator and the sinks. What is not done by then is done at the next
/// start: it is all on disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the outbox is looked at.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// Why a pipeline did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error("source {name}: {problem}")]
    Source { name: String, problem: String },
    #[error("--once needs sources that come to an end, and {name} does not; leave --once out")]
    Endless { name: String },
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

/// Sockets that were opened before anything else.
struct Listeners {
    sources: HashMap<String, (TcpListener, SocketAddr)>,
    sinks: HashMap<String, (TcpListener, SocketAddr)>,
    admin: (TcpListener, SocketAddr),
}

/// The files and what goes with them, before any task runs.
struct Store {
    data_dir: DataDir,
    topics: Arc<Topics>,
    shards: Vec<Shard>,
    results: Arc<Results>,
    reader: Arc<Reader>,
    letters: Arc<DeadLetters>,
    first_epoch: u64,
}

/// Runs the pipeline until `stop` is heard (or, with `once`, until its sources have ended), then stops in order.
pub(crate) async fn run(pipeline: Pipeline, mut stop: mpsc::Receiver<()>) -> Result<(), StartError> {
    let Pipeline { plan, joins, source_paths, once } = pipeline;
    for source in &plan.sources {
        if let (SourceKind::File(spec), Some(path)) = (&source.kind, source_paths.get(&source.name)) {
            file::check(path, spec)
                .map_err(|problem| StartError::Source { name: source.name.clone(), problem })?;
        }
        let ends = matches!(&source.kind, SourceKind::File(spec) if !spec.follow);
        if once && !ends {
            return Err(StartError::Endless { name: source.name.clone() });
        }
    }
    let listeners = Listeners::open(&plan).await?;
    let store = {
        let (plan, joins) = (plan.clone(), joins.clone());
        blocking(move || Store::open(&plan, &joins)).await?
    };
    let status = Arc::new(Status::new(&plan, clock::epoch_seconds()));
    *status.lineage.lock().unwrap_or_else(PoisonError::into_inner) = store.data_dir.layout().lineage.clone();

    let (source_stop, source_stopping) = watch::channel(false);
    let (sink_stop, sink_stopping) = watch::channel(false);
    let (closed, mut stdout_closed) = mpsc::channel(1);

    // From the end to the beginning, so that nothing is sent to what is not there yet.
    let definitions: Vec<(&str, String)> =
        joins.iter().map(|join| (join.name.as_str(), join.definition(&joins))).collect();
    let progress = store.results.register(&definitions, plan.storage.shard_count)?;
    let ids: HashMap<String, JoinId> =
        joins.iter().zip(&progress).map(|(join, progress)| (join.name.clone(), progress.id)).collect();
    let envelopes: Arc<HashMap<JoinId, Envelope>> = Arc::new(
        joins
            .iter()
            .map(|join| {
                let envelope = Envelope {
                    lineage: store.results.lineage().to_owned(),
                    join_name: join.name.clone(),
                    result_key: join.result_key.clone(),
                };
                (ids[&join.name], envelope)
            })
            .collect(),
    );
    let committed: Vec<i64> = store.shards.iter().map(Shard::last_seq).collect();
    let gate = Arc::new(EpochGate::new(store.first_epoch, committed));
    let (applied_sender, applied) = watch::channel(store.reader.end()?);
    status.epoch_applied.set(applied.borrow().epoch);
    status.outbox_bytes.set(store.results.outbox_bytes()?);

    let mut offsets: HashMap<String, Vec<u64>> = HashMap::new();
    for shard in &store.shards {
        for (stream, next) in shard.offsets() {
            offsets.entry(stream.to_string()).or_default().push(*next);
        }
    }

    let shard_paths: Vec<PathBuf> =
        (0..plan.storage.shard_count).map(|index| store.data_dir.shard_path(index)).collect();
    let trim_to: Vec<Arc<AtomicI64>> = shard_paths.iter().map(|_| Arc::new(AtomicI64::new(0))).collect();
    let (ingest, writers) = start_writers(&plan, store.shards, &store.topics, &gate, &status, &trim_to);
    let evaluator = Evaluator {
        gate: Arc::clone(&gate),
        topics: Arc::clone(&store.topics),
        results: Arc::clone(&store.results),
        reader: Arc::clone(&store.reader),
        status: Arc::clone(&status),
        joins,
        progress,
        shard_paths: shard_paths.clone(),
        scratch_path: store.data_dir.path().join("scratch.db"),
        trim_to,
        reserved: Results::last_reserved(store.first_epoch),
        applied: applied_sender,
    };
    let evaluator = thread("evaluator", move || evaluator.run());

    let mut sinks = JoinSet::new();
    let mut servers = JoinSet::new();
    let Listeners { sources: mut source_listeners, sinks: mut sink_listeners, admin: admin_listener } =
        listeners;
    for sink in &plan.sinks {
        let counters = status.sink(&sink.name);
        let join_ids: Vec<JoinId> = sink.joins.iter().map(|name| ids[name]).collect();
        match &sink.kind {
            SinkKind::Sse(spec) => {
                let (listener, local) =
                    sink_listeners.remove(&sink.name).expect("every sse sink was given a listener");
                *counters.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(local.to_string());
                info!(sink = sink.name, address = %local, "serving results: /subscribe, /snapshot");
                let state = Arc::new(SseState {
                    joins: sink.joins.iter().map(|name| (name.clone(), ids[name])).collect(),
                    envelopes: Arc::clone(&envelopes),
                    lineage: store.results.lineage().to_owned(),
                    reader: Arc::clone(&store.reader),
                    snapshot_reader: Arc::new(Reader::open(
                        store.results.path(),
                        SseState::SNAPSHOT_CONNECTIONS,
                    )?),
                    snapshots: SseState::snapshot_permits(),
                    applied: applied.clone(),
                    stopping: sink_stopping.clone(),
                    status: counters,
                    spec: spec.clone(),
                });
                serve(&mut servers, listener, sse::router(state), sink_stopping.clone());
            }
            SinkKind::Stdout => {
                let dispatcher = Dispatcher {
                    name: sink.name.clone(),
                    sink: Box::new(Stdout::new(closed.clone())),
                    joins: join_ids,
                    envelopes: Arc::clone(&envelopes),
                    delivery: plan.delivery.clone(),
                    results: Arc::clone(&store.results),
                    reader: Arc::clone(&store.reader),
                    letters: Arc::clone(&store.letters),
                    status: counters,
                    applied: applied.clone(),
                    stopping: sink_stopping.clone(),
                    has_letters: true,
                    counted: None,
                };
                sinks.spawn(dispatcher.run());
            }
            SinkKind::Unsupported(kind) => unreachable!("the manifest was refused for its {kind} sink"),
        }
    }
    let pushed: Vec<&str> =
        plan.sinks.iter().filter(|sink| is_pushed(&sink.kind)).map(|sink| sink.name.as_str()).collect();
    store.results.forget_other_sinks(&pushed)?;

    let mut upkeep = JoinSet::new();
    upkeep.spawn(tidy_outbox(
        plan.clone(),
        Arc::clone(&store.results),
        ingest.clone(),
        Arc::clone(&status),
        source_stopping.clone(),
    ));
    upkeep.spawn(clean_letters(
        plan.delivery.dlq.clone(),
        Arc::clone(&store.letters),
        source_stopping.clone(),
    ));
    let cleaner = Cleaner::new(plan.retention.clone(), shard_paths, ingest.clone(), Arc::clone(&gate));
    upkeep.spawn(clean_topics(cleaner, plan.retention.clean_interval, source_stopping.clone()));

    let mut sources = JoinSet::new();
    let mut files = JoinSet::new();
    for source in &plan.sources {
        let counters = status.source(&source.name);
        match &source.kind {
            SourceKind::Http(spec) => {
                let (listener, local) =
                    source_listeners.remove(&source.name).expect("every http source was given a listener");
                *counters.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(local.to_string());
                info!(source = source.name, address = %local, "taking messages: POST /ingest");
                let state = Arc::new(HttpState {
                    spec: spec.clone(),
                    ingest: ingest.clone(),
                    status: counters,
                    stopping: source_stopping.clone(),
                });
                serve(&mut sources, listener, http::router(state), source_stopping.clone());
            }
            SourceKind::File(spec) => {
                let path =
                    source_paths.get(&source.name).cloned().unwrap_or_else(|| PathBuf::from(&spec.path));
                *counters.at.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(path.display().to_string());
                let prefix = format!("{}:", source.name);
                let stored = offsets
                    .iter()
                    .filter(|(stream, _)| stream.starts_with(&prefix))
                    .map(|(stream, next)| {
                        // A shard that does not know the stream has to see it from the start.
                        let complete = next.len() == plan.storage.shard_count;
                        (stream.clone(), if complete { next.iter().min().copied().unwrap_or(0) } else { 0 })
                    })
                    .collect();
                let reader = FileReader {
                    name: source.name.clone(),
                    spec: spec.clone(),
                    path,
                    ingest: ingest.clone(),
                    letters: Arc::clone(&store.letters),
                    status: counters,
                    stopping: source_stopping.clone(),
                    batch_messages_max: plan.storage.batch_messages_max,
                    stored,
                };
                files.spawn(reader.run());
            }
            SourceKind::Unsupported(kind) => unreachable!("the manifest was refused for its {kind} source"),
        }
    }
    let (listener, local) = admin_listener;
    info!(address = %local, "showing /healthz, /readyz, /metrics, /status");
    serve(&mut servers, listener, admin::router(Arc::clone(&status)), sink_stopping.clone());
    status.ready.store(true, Ordering::Relaxed);
    info!(pipeline = plan.name, data = %store.data_dir.path().display(), "the pipeline runs; stop it with ctrl-C");

    let all_files = async {
        while files.join_next().await.is_some() {}
        if !once {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = stop.recv() => info!("stopping: sources first, then what is on its way; a second signal ends at once"),
        _ = stdout_closed.recv() => info!("nobody reads standard output any more; stopping"),
        () = all_files => info!("every source has come to its end; stopping"),
    }
    status.ready.store(false, Ordering::Relaxed);
    source_stop.send_replace(true);
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        while sources.join_next().await.is_some() {}
        while files.join_next().await.is_some() {}
        while upkeep.join_next().await.is_some() {}
        ingest.close();
        blocking(move || writers.into_iter().for_each(join)).await;
        gate.stop();
        blocking(move || join(evaluator)).await;
        sink_stop.send_replace(true);
        while sinks.join_next().await.is_some() {}
        while servers.join_next().await.is_some() {}
    })
    .await;
    match drained {
        Ok(()) => {
            // Scratch data is worth nothing to the next start.
            let _ = sqlite::remove(&store.data_dir.path().join("scratch.db"));
            info!("stopped");
        }
        Err(_) => warn!("stopped before all results were handed over; they follow at the next start"),
    }
    Ok(())
}

fn is_pushed(kind: &SinkKind) -> bool {
    !matches!(kind, SinkKind::Sse(_))
}

impl Listeners {
    async fn open(plan: &Plan) -> Result<Self, ListenError> {
        let mut sources = HashMap::new();
        for source in &plan.sources {
            if let SourceKind::Http(spec) = &source.kind {
                let opened = listen(&format!("source {}", source.name), &spec.addr).await?;
                sources.insert(source.name.clone(), opened);
            }
        }
        let mut sinks = HashMap::new();
        for sink in &plan.sinks {
            if let SinkKind::Sse(spec) = &sink.kind {
                sinks.insert(sink.name.clone(), listen(&format!("sink {}", sink.name), &spec.addr).await?);
            }
        }
        let admin = listen("admin", &plan.admin.addr).await?;
        Ok(Self { sources, sinks, admin })
    }
}

impl Store {
    fn open(plan: &Plan, joins: &[CheckedJoin]) -> Result<Self, StartError> {
        let storage = &plan.storage;
        let mut data_dir = DataDir::open(&storage.data_dir, storage.shard_count, &plan.identity)?;
        let declared = plan.sources.iter().flat_map(|source| match &source.kind {
            SourceKind::Http(spec) => spec.topics.iter().map(String::as_str).collect::<Vec<_>>(),
            SourceKind::File(spec) => spec.topic.as_deref().into_iter().collect(),
            SourceKind::Unsupported(_) => Vec::new(),
        });
        let read = joins.iter().flat_map(|join| join.topics.iter().map(String::as_str));
        let names = plan.joins.iter().map(|join| join.name.as_str());
        let topics = Arc::new(Topics::new(declared.chain(read), names));
        let shards = (0..storage.shard_count)
            .map(|index| Shard::open(&data_dir.shard_path(index), storage.synchronous, &topics))
            .collect::<Result<Vec<_>, _>>()?;
        let results = Self::open_results(&mut data_dir, storage)?;
        let dlq_path = plan.delivery.dlq.path.clone().unwrap_or_else(|| data_dir.path().join("dlq.db"));
        let letters = Arc::new(DeadLetters::open(&dlq_path, storage.synchronous)?);
        data_dir.mark_ready()?;
        let first_epoch = results.reserve_epochs()?;
        let reader = Arc::new(Reader::open(results.path(), storage.reader_pool_size)?);
        Ok(Self { data_dir, topics, shards, results: Arc::new(results), reader, letters, first_epoch })
    }

    /// Opens `results.db`. Where it is missing or belongs to another lineage, what was promised with it (epochs,
    /// ids, the outbox) is gone: a new lineage begins, and everything is evaluated anew.
    fn open_results(data_dir: &mut DataDir, storage: &plan::Storage) -> Result<Results, StartError> {
        let path = data_dir.path().join("results.db");
        if data_dir.layout().state == State::Ready && !path.exists() {
            warn!(path = %path.display(), "results.db is gone; evaluating everything anew under a new lineage");
            data_dir.renew_lineage()?;
        }
        let (results, same) = Results::open(&path, storage.synchronous, &data_dir.layout().lineage)?;
        if same {
            return Ok(results);
        }
        warn!(path = %path.display(), "results.db is of another lineage; evaluating everything anew under a new one");
        drop(results);
        data_dir.renew_lineage()?;
        sqlite::remove(&path)?;
        Ok(Results::open(&path, storage.synchronous, &data_dir.layout().lineage)?.0)
    }
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

/// Waits for `interval`; `false` if the worker stops first.
async fn tick(interval: Duration, stopping: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(interval) => true,
        _ = stopping.wait_for(|stopping| *stopping) => false,
    }
}

async fn tidy_outbox(
    plan: Plan,
    results: Arc<Results>,
    ingest: Ingest,
    status: Arc<Status>,
    mut stopping: watch::Receiver<bool>,
) {
    let has_pushed = plan.sinks.iter().any(|sink| is_pushed(&sink.kind));
    let must_get_all = has_pushed && plan.delivery.guarantee == Guarantee::AtLeastOnce;
    let window = i64::try_from(plan.delivery.replay_window.as_secs()).unwrap_or(i64::MAX);
    while tick(TIDY_INTERVAL, &mut stopping).await {
        status.inflight_bytes.set(ingest.inflight_bytes() as u64);
        let results = Arc::clone(&results);
        let bytes_max = plan.delivery.outbox_bytes_max;
        let since = clock::epoch_seconds() - window;
        let tidied = blocking(move || {
            let slowest = if must_get_all { Some(results.slowest_cursor()?) } else { None };
            results.tidy_outbox(Keep { since, slowest, bytes_max })
        })
        .await;
        match tidied {
            Ok(tidied) => {
                status.outbox_bytes.set(tidied.bytes);
                status.outbox_compacted.add(tidied.compacted);
                if tidied.compacted > 0 {
                    warn!(
                        results = tidied.compacted,
                        "a sink lags; it will get only the newest result of each key (delivery.outboxMaxBytes)"
                    );
                }
            }
            Err(error) => warn!(error = chain(&error), "could not tidy the outbox; trying again"),
        }
    }
}

async fn clean_letters(policy: plan::Dlq, letters: Arc<DeadLetters>, mut stopping: watch::Receiver<bool>) {
    while tick(policy.cleanup_interval, &mut stopping).await {
        let letters = Arc::clone(&letters);
        let before = clock::epoch_seconds() - i64::try_from(policy.ttl.as_secs()).unwrap_or(i64::MAX);
        let bytes_max = policy.bytes_max;
        match blocking(move || letters.clean(before, bytes_max)).await {
            Ok(0) => {}
            Ok(dropped) => warn!(dropped, "dropped dead letters that were too old or too many"),
            Err(error) => warn!(error = chain(&error), "could not clean the dead-letter queue; trying again"),
        }
    }
}

async fn clean_topics(mut cleaner: Cleaner, interval: Duration, mut stopping: watch::Receiver<bool>) {
    while tick(interval, &mut stopping).await {
        let stop = stopping.clone();
        cleaner = blocking(move || {
            cleaner.clean(clock::epoch_seconds(), || *stop.borrow());
            cleaner
        })
        .await;
    }
}
