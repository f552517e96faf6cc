//! Wiring: which part feeds which, and the order in which they stop. A planned stop goes the way of the data:
//! sources, writers, evaluator, sinks; then the files are closed. A reload takes the parts from one config to another
//! while data flows.

mod config_diff;
mod evaluation;
mod listeners;
mod maintenance;
mod reload;
mod replica;
mod sinks;
mod sources;
mod store;
mod unit;
mod writers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use litejoin_crds::plan::{self, Plan};
use litejoin_crds::replication::ReplicationMode;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use self::evaluation::Evaluation;
use self::listeners::Listeners;
use self::maintenance::Maintenance;
use self::replica::Replication;
use self::sinks::Sinks;
use self::sources::Sources;
use self::store::OpenFiles;
use self::unit::{Unit, Units};
use crate::audit::{Auditor, Files};
use crate::blocking::blocking;
use crate::control::Control;
use crate::credentials::Secrets;
use crate::evaluator::{Evaluator, Repairs};
use crate::join::classes;
use crate::pipeline::{Pipeline, Reload};
use crate::replication::boot::Begin;
use crate::replication::{Replica, ReplicationError, Site, Tools, boot};
use crate::results::event::JoinId;
use crate::results::recovery_barrier::RecoveryBarrier;
use crate::results::release::Release;
use crate::results::{Applied, Results};
use crate::serve::Front;
use crate::serve::listen::ListenError;
use crate::source::api::state::States;
use crate::status::Status;
use crate::storage::gate::EpochGate;
use crate::storage::ingest::Ingest;
use crate::storage::layout::{LayoutError, LockedDir};
use crate::storage::offsets::stream_offsets;
use crate::storage::replication_barrier::ReplicationBarrier;
use crate::storage::shard::Shard;
use crate::storage::sqlite::SqliteError;
use crate::{admin, clock};

/// How long a planned stop waits for the evaluator and the sinks. What is not done by then is done at the next
/// start: it is all on disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How much of that sources may take. What they have not handed over by then is refused, and nothing of it was acknowledged.
const SOURCES_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a pipeline did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    File(SqliteError),
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    #[error("{path}: is no database; restore it, or move the data directory away to start empty")]
    NoDatabase { path: String },
    #[error("source {name}: {problem}")]
    Source { name: String, problem: String },
    #[error("spec.admin: {problem}")]
    Admin { problem: String },
    #[error("sink {name}: {problem}")]
    Sink { name: String, problem: String },
    #[error(
        "another worker has taken this pipeline over; see which of both is to run (`litejoin replication status`)"
    )]
    Overtaken,
    #[error("--once needs sources that come to an end, and {name} does not; leave --once out")]
    UnboundedSource { name: String },
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

/// A pipeline that runs.
struct Running {
    pipeline: Pipeline,
    store: OpenFiles,
    status: Arc<Status>,
    listeners: Listeners,
    ingest: Ingest,
    writers: Vec<JoinHandle<()>>,
    evaluation: Evaluation,
    /// The numbers of the joins by their names.
    ids: HashMap<String, JoinId>,
    sources: Sources,
    sinks: Sinks,
    maintenance: Maintenance,
    admin: Unit,
    /// `None` where nothing is replicated.
    replication: Option<Replication>,
    /// `None` where there could be no socket.
    control: Option<Unit>,
}

/// Runs the pipeline until `stop` is heard (or, with `once`, until its sources have ended), then stops in order.
/// What comes from `reloads` takes its place meanwhile.
pub(crate) async fn run(
    pipeline: Pipeline,
    secrets: Arc<Secrets>,
    tools: Tools,
    mut stop: mpsc::Receiver<()>,
    mut reloads: mpsc::Receiver<Reload>,
) -> Result<(), StartError> {
    let once = pipeline.once;
    let (closed, mut stdout_closed) = mpsc::channel(1);
    let (overtaken, mut is_overtaken) = mpsc::channel(1);
    // First, so that a port in use changes nothing on disk or in a store.
    let listeners = Listeners::open(&pipeline.plan, &Listeners::default()).await?;
    let (locked, replica) = tokio::select! {
        prepared = prepare(&pipeline.plan, &secrets, &tools) => prepared?,
        // A restore may take its time.
        Some(()) = stop.recv() => return Ok(()),
    };
    let mut running =
        Running::start(pipeline, secrets, listeners, locked, replica, closed, overtaken).await?;
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            Some(()) = stop.recv() => {
                info!("stopping: sources first, then what is on its way; a second signal ends at once");
                break;
            }
            Some(()) = stdout_closed.recv() => {
                info!("nobody reads standard output any more; stopping");
                break;
            }
            () = running.sources.units.ended(), if once => {
                info!("every source has come to its end; stopping");
                break;
            }
            Some(()) = is_overtaken.recv() => {
                outcome = Err(StartError::Overtaken);
                break;
            }
            Some(reload) = reloads.recv() => {
                let mut reloading = pin!(running.reload(reload));
                tokio::select! {
                    () = &mut reloading => {}
                    Some(()) = stop.recv() => {
                        info!("stopping as soon as the reload is through; a second signal ends at once");
                        let _ = tokio::time::timeout(DRAIN_TIMEOUT, reloading).await;
                        break;
                    }
                }
            }
        }
    }
    running.stop().await;
    outcome
}

/// Locks the data directory, and sees that the right data is in it.
async fn prepare(
    plan: &Plan,
    secrets: &Secrets,
    tools: &Tools,
) -> Result<(LockedDir, Option<Replica>), StartError> {
    let locked = LockedDir::lock(&plan.storage.data_dir)?;
    let replica = match Site::of(plan, secrets)? {
        Some(site) => {
            let begin = match site.replication.mode {
                ReplicationMode::Embedded => Begin::Run,
                ReplicationMode::Sidecar => Begin::Prepared,
            };
            Some(boot::prepare(&locked, plan, site, tools, begin).await?)
        }
        None => None,
    };
    Ok((locked, replica))
}

impl Running {
    /// Opens all there is to open, then starts from the shards outwards, so that nothing is sent to what is not there
    /// yet.
    async fn start(
        pipeline: Pipeline,
        secrets: Arc<Secrets>,
        listeners: Listeners,
        locked: LockedDir,
        replica: Option<Replica>,
        stdout_closed: mpsc::Sender<()>,
        overtaken: mpsc::Sender<()>,
    ) -> Result<Self, StartError> {
        let plan = &pipeline.plan;
        let (source_specs, sink_specs) = (sources::specs(plan, &pipeline.source_paths), sinks::specs(plan));
        source_specs.iter().try_for_each(|(name, spec)| sources::check(name, spec))?;
        if pipeline.once {
            sources::check_ends(&source_specs)?;
        }
        let mut store = {
            let (plan, joins) = (plan.clone(), pipeline.joins.clone());
            blocking(move || OpenFiles::open(locked, &plan, &joins)).await?
        };
        let status = Arc::new(Status::new(plan, classes(&pipeline.joins), clock::epoch_seconds()));
        let states = Arc::new(States::new(store.data_dir.path(), store::journal(plan)));
        if replica.is_some() {
            // A replica is whole when each of its files is there.
            states.make()?;
        }
        let replication_barrier = ReplicationBarrier::default();
        status.config.leaves_out(pipeline.left_out.clone());
        *status.lineage.lock().unwrap_or_else(PoisonError::into_inner) = store.results.lineage().to_owned();
        status.outbox_bytes.set(store.results.outbox_bytes()?);
        let mut progress = evaluation::register(&store.results, &pipeline.joins, plan.storage.shard_count)?;
        evaluation::reset_stale_progress(
            &store.results,
            &pipeline.joins,
            &mut progress,
            &store.shard_paths(),
        )?;
        let ids = evaluation::ids(&pipeline.joins, &progress);
        let end = store.reader.end()?;
        let epoch = evaluation::epoch(&progress).unwrap_or(end.epoch);
        let (applied_sender, applied) = watch::channel(Applied::begin(end, epoch, store.first_epoch));
        status.epoch_applied.set(applied.borrow().epoch);

        let shard_paths = store.shard_paths();
        let offsets = stream_offsets(&shard_paths)?;
        let shards = std::mem::take(&mut store.shards);
        let gate = Arc::new(EpochGate::new(store.first_epoch, shards.iter().map(Shard::last_seq).collect()));
        let trim_to: Vec<Arc<AtomicI64>> = shards.iter().map(|_| Arc::default()).collect();
        let (ingest, writers) = writers::start(plan, shards, &store.topics, &gate, &status, &trim_to);
        let replication = replica.map(|replica| {
            let status = Arc::clone(&status.replication);
            Replication::start(replica, status, replication_barrier.clone(), ingest.clone(), overtaken)
        });
        let recovery_barrier = RecoveryBarrier::begin(&store.results, &applied)?;
        let repairs = Arc::new(Repairs::default());
        let evaluation = Evaluation::start(Evaluator {
            gate: Arc::clone(&gate),
            topics: Arc::clone(&store.topics),
            results: Arc::clone(&store.results),
            reader: Arc::clone(&store.reader),
            status: Arc::clone(&status),
            joins: pipeline.joins.clone(),
            progress,
            shard_paths: shard_paths.clone(),
            ingest: ingest.clone(),
            scratch_folder: store.scratch_folder(),
            trim_to,
            reserved: Results::last_reserved(store.first_epoch),
            applied: applied_sender,
            stopped: BTreeSet::new(),
            repairs: Arc::clone(&repairs),
        });

        let mut sinks = Sinks {
            units: Units::default(),
            routes: BTreeMap::new(),
            results: Arc::clone(&store.results),
            reader: Arc::clone(&store.reader),
            letters: Arc::clone(&store.letters),
            status: Arc::clone(&status),
            applied,
            recovery_barrier,
            release: match plan.replication.as_ref().is_some_and(|replication| replication.results_wait) {
                true => Release::after(replication_barrier.clone()),
                false => Release::default(),
            },
            secrets: Arc::clone(&secrets),
            identity: plan.identity.clone(),
            data_dir: store.data_dir.path().to_owned(),
            stdout_closed,
        };
        let ready = sinks.prepare(sink_specs.keys().map(String::as_str), &sink_specs, &listeners)?;
        sinks.route(&pipeline, &ids, store.results.lineage());
        sinks.forget_others(&sink_specs).await;
        sinks.units.start(ready);
        let admin = start_admin(&listeners, &status, &plan.admin.serving, &secrets)?;
        let auditor = Arc::new(Auditor::new(
            Files::new(shard_paths.clone(), store.results.path().to_owned(), store.scratch_folder()),
            gate,
            Arc::clone(&status),
            repairs,
            &pipeline.joins,
            plan.audit.clone(),
        ));
        let control = start_control(&store, &status, &auditor);

        let mut maintenance = Maintenance {
            units: Vec::new(),
            results: Arc::clone(&store.results),
            letters: Arc::clone(&store.letters),
            shard_paths: shard_paths.clone(),
            ingest: ingest.clone(),
            status: Arc::clone(&status),
            auditor,
        };
        maintenance.start(plan);

        let mut sources = Sources {
            units: Units::default(),
            ingest: ingest.clone(),
            letters: Arc::clone(&store.letters),
            status: Arc::clone(&status),
            batch_messages_max: plan.storage.batch_messages_max,
            secrets,
            shard_paths,
            states,
            replication_barrier,
        };
        let names = source_specs.keys().map(String::as_str);
        let ready = sources.prepare(names, &source_specs, &listeners, &offsets)?;
        sources.units.start(ready);
        status.ready.store(true, Ordering::Relaxed);
        let data = store.data_dir.path().display();
        info!(pipeline = plan.name, %data, "the pipeline runs; stop it with ctrl-C");
        Ok(Self {
            pipeline,
            store,
            status,
            listeners,
            ingest,
            writers,
            evaluation,
            ids,
            sources,
            sinks,
            maintenance,
            admin,
            replication,
            control,
        })
    }

    /// Stops in the order in which data flows.
    async fn stop(mut self) {
        self.status.ready.store(false, Ordering::Relaxed);
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            self.sources.units.ask_to_stop();
            if tokio::time::timeout(SOURCES_TIMEOUT, self.sources.units.ended()).await.is_err() {
                warn!("not all sources come to an end; going on without them");
            }
            self.maintenance.stop().await;
            self.ingest.close();
            let writers = self.writers;
            blocking(move || writers.into_iter().for_each(join)).await;
            self.evaluation.finish().await;
            self.sinks.units.ask_to_stop();
            self.admin.ask_to_stop();
            self.control.iter().for_each(Unit::ask_to_stop);
            self.sinks.units.ended().await;
            self.admin.ended().await;
            if let Some(mut control) = self.control {
                control.ended().await;
            }
        })
        .await;
        // After all that is written, so that the last of it is in the replica.
        if let Some(replication) = self.replication {
            replication.stop().await;
        }
        match drained {
            Ok(()) => {
                // Scratch data is worth nothing to the next start.
                let _ = std::fs::remove_dir_all(self.store.scratch_folder());
                info!("stopped");
            }
            Err(_) => warn!("stopped before all results were handed over; they follow at the next start"),
        }
    }
}

fn start_admin(
    listeners: &Listeners,
    status: &Arc<Status>,
    serving: &plan::Serving,
    secrets: &Arc<Secrets>,
) -> Result<Unit, StartError> {
    let front = Front::new(serving, secrets).map_err(|problem| StartError::Admin { problem })?;
    let (listener, local) = listeners.listener("admin")?;
    info!(address = %local, "showing /healthz, /readyz, /metrics, /status");
    let router = admin::router(Arc::clone(status));
    Ok(Unit::start(Box::new(|stopping| Box::pin(front.serve(listener, router, stopping)))))
}

fn start_control(store: &OpenFiles, status: &Arc<Status>, auditor: &Arc<Auditor>) -> Option<Unit> {
    let control = Control::open(store.data_dir.path())?;
    let (status, auditor, letters) = (Arc::clone(status), Arc::clone(auditor), Arc::clone(&store.letters));
    Some(Unit::start(Box::new(|stopping| Box::pin(control.serve(status, auditor, letters, stopping)))))
}

fn thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started")
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
