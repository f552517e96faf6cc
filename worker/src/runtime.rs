//! Wiring: which part feeds which, and the order in which they stop. A planned stop goes the way of the data:
//! sources, writers, evaluator, sinks; then the files are closed. A reload takes the parts from one config to another
//! while data flows.

mod config_diff;
mod evaluation;
mod listeners;
mod maintenance;
mod online;
mod reload;
mod replica;
mod sinks;
mod sources;
mod start;
mod store;
mod unit;
mod writers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use litejoin_crds::plan::{Plan, SinkKind};
use tokio::sync::mpsc;
use tracing::{info, warn};

use self::evaluation::Evaluation;
use self::listeners::Listeners;
use self::maintenance::Maintenance;
use self::online::{Mover, StagedMove};
use self::replica::Replication;
use self::sinks::Sinks;
use self::sources::Sources;
use self::store::OpenFiles;
use self::unit::Unit;
use crate::blocking::blocking;
use crate::clock;
use crate::credentials::Secrets;
use crate::pipeline::{Pipeline, Reload};
use crate::replication::boot::Begin;
use crate::replication::{Replica, ReplicationError, Site, Tools, boot, takeover};
use crate::reshard::{self, FollowedCopy, ReshardError};
use crate::results::event::JoinId;
use crate::serve::listen::ListenError;
use crate::status::Status;
use crate::status::reshard::MoveStep;
use crate::storage::ingest::Ingest;
use crate::storage::layout::{LayoutError, LockedDir, UnusableData};
use crate::storage::log::LogHold;
use crate::storage::sqlite::SqliteError;

/// How long a planned stop waits for the evaluator and the sinks. Work that is not done by then is done at the next
/// start: it is all on disk.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// How much of [`DRAIN_TIMEOUT`] sources may take. Messages that they have not handed over by then are refused; none of
/// them was acknowledged.
const SOURCES_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a pause waits for evaluations; what they have not stored by then is evaluated anew after it.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often feeds are looked at before a stop that nothing follows.
const FEEDS_LOOK: Duration = Duration::from_millis(20);

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
    #[error(transparent)]
    Reshard(ReshardError),
    #[error("{path}: is no database; put the right file back")]
    NoDatabase { path: String },
    #[error(transparent)]
    Unusable(#[from] UnusableData),
    #[error(
        "{path}: is empty, and the data lay on the volume claim {claim}; put its volume back, or write \
         spec.storage.acceptLoss: {claim} to begin empty"
    )]
    DataLost { path: String, claim: String },
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
    #[error(
        "{count} messages were refused ({sources}) and are in the dead-letter queue, the rest is through; see them with \
         `litejoin dlq list --data-dir {}`", .data_dir.display()
    )]
    Refused { count: u64, sources: String, data_dir: PathBuf },
    #[error("--once needs sources that come to an end, and {name} does not; leave --once out")]
    UnboundedSource { name: String },
    #[error(
        "source {name}: standard input can't be read on after the pause of a move; write storage.reshard.strategy: Job, \
         and restart to apply"
    )]
    StdinInTheWay { name: String },
    #[error(
        "not all of the pipeline came to rest for the switch to other shards, and nothing was switched; start it again"
    )]
    NotAtRest,
}

impl From<ReshardError> for StartError {
    fn from(error: ReshardError) -> Self {
        match error {
            // The same remedy, whoever was the first to look.
            ReshardError::Layout(problem) => Self::Layout(problem),
            other => Self::Reshard(other),
        }
    }
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

impl StartError {
    /// Adds the way to start without the data of a directory, where it is the data that is in the way.
    fn or_without_data(self, data_dir: &Path) -> Self {
        let is_about_data = match &self {
            Self::Layout(problem) => problem.is_about_data(),
            Self::NoDatabase { path } => Path::new(path).parent() == Some(data_dir),
            _ => false,
        };
        let way_on = is_about_data.then(|| UnusableData::new(&self, data_dir)).flatten();
        way_on.map_or(self, Self::Unusable)
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
    /// Holds log entries that a reader beside the joins needs.
    log_hold: LogHold,
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
/// A pipeline that comes from `reloads` takes its place meanwhile.
pub(crate) async fn run(
    pipeline: Pipeline,
    secrets: Arc<Secrets>,
    tools: Tools,
    mut stop: mpsc::Receiver<()>,
    mut reloads: mpsc::Receiver<Reload>,
) -> Result<(), StartError> {
    let once = pipeline.once;
    let (stdout_closed, mut is_stdout_closed) = mpsc::channel(1);
    let (overtaken, mut is_overtaken) = mpsc::channel(1);
    let starter = Starter { secrets, tools, stdout_closed, overtaken };
    // First, so that a port in use changes nothing on disk or in a store.
    let listeners = Listeners::open(&pipeline.plan, &Listeners::default()).await?;
    let locked = LockedDir::lock(&pipeline.plan.storage.data_dir)?;
    let started = starter.start(pipeline, listeners, locked, &mut stop).await?;
    let Some(mut running) = started else { return Ok(()) };
    let mut mover = Mover::default();
    mover.follow(&running, &starter.secrets).await;
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            Some(()) = stop.recv() => {
                info!("stopping: sources first, then what is on its way; a second signal ends at once");
                break;
            }
            Some(()) = is_stdout_closed.recv() => {
                info!("nobody reads standard output any more; stopping");
                break;
            }
            () = running.sources.units.ended(), if once => {
                info!("every source has come to its end; stopping");
                if tokio::time::timeout(DRAIN_TIMEOUT, running.feeds_settled()).await.is_err() {
                    warn!("not all results are in the joins and windows that read them; they follow at the next start");
                }
                break;
            }
            Some(()) = is_overtaken.recv() => {
                outcome = Err(StartError::Overtaken);
                break;
            }
            Some(reload) = reloads.recv() => {
                let reloaded = {
                    let mut reloading = pin!(running.reload(reload));
                    tokio::select! {
                        () = &mut reloading => true,
                        Some(()) = stop.recv() => {
                            info!("stopping as soon as the reload is through; a second signal ends at once");
                            let _ = tokio::time::timeout(DRAIN_TIMEOUT, reloading).await;
                            false
                        }
                    }
                };
                if !reloaded {
                    break;
                }
                mover.follow(&running, &starter.secrets).await;
            }
            staged = mover.staged() => match staged {
                Ok(staged) => {
                    let gone_over = starter.go_over(running, staged, &mut mover, &mut stop).await?;
                    let Some(gone_over) = gone_over else { return Ok(()) };
                    running = gone_over;
                }
                Err(failure) => {
                    let (told, problem) = *failure;
                    mover.failed(&running.pipeline.plan, &told, &problem);
                    online::remove_copy(&running).await;
                }
            }
        }
    }
    mover.call_off().await;
    let (status, data_dir) = (Arc::clone(&running.status), running.pipeline.plan.storage.data_dir.clone());
    running.stop(StopPurpose::End).await;
    outcome.and_then(|()| if once { nothing_refused(&status, data_dir) } else { Ok(()) })
}

/// Fails if sources have refused messages: whoever runs a pipeline to its end asks whether all is through.
fn nothing_refused(status: &Status, data_dir: PathBuf) -> Result<(), StartError> {
    let refusals = status.refusals();
    let count = refusals.iter().map(|(_, count)| count).sum();
    if count == 0 {
        return Ok(());
    }
    let sources: Vec<String> = refusals
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name}: {count}"))
        .collect();
    Err(StartError::Refused { count, sources: sources.join(", "), data_dir })
}

/// What a stop is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopPurpose {
    /// The process ends.
    End,
    /// The pipeline starts again at once with other files.
    Pause,
}

/// What is left of a pipeline that was stopped.
struct StoppedPipeline {
    pipeline: Pipeline,
    listeners: Listeners,
    /// Whether nothing of it works any more.
    is_at_rest: bool,
}

/// What every start of the process needs.
struct Starter {
    secrets: Arc<Secrets>,
    tools: Tools,
    stdout_closed: mpsc::Sender<()>,
    overtaken: mpsc::Sender<()>,
}

impl Starter {
    /// Starts a pipeline with the data of a directory; `None` if it is to stop before that.
    async fn start(
        &self,
        mut pipeline: Pipeline,
        listeners: Listeners,
        locked: LockedDir,
        stop: &mut mpsc::Receiver<()>,
    ) -> Result<Option<Running>, StartError> {
        let (locked, replica) = tokio::select! {
            prepared = prepare(locked, &pipeline.plan, &self.secrets, &self.tools) => {
                prepared.map_err(|problem| problem.or_without_data(&pipeline.plan.storage.data_dir))?
            }
            // A restore may take its time.
            Some(()) = stop.recv() => return Ok(None),
        };
        let data_dir = locked.path().to_owned();
        let storage = &mut pipeline.plan.storage;
        storage.shard_count = storage.shard_count_for(locked.layout()?.map(|layout| layout.shard_count));
        let (closed, overtaken) = (self.stdout_closed.clone(), self.overtaken.clone());
        let secrets = Arc::clone(&self.secrets);
        let running = Running::start(pipeline, secrets, listeners, locked, replica, closed, overtaken).await;
        running.map(Some).map_err(|problem| problem.or_without_data(&data_dir))
    }

    /// Stops a pipeline for as long as it takes to put a copy of its data in the place of the data, and starts it again. A
    /// client that connects meanwhile waits.
    async fn go_over(
        &self,
        running: Running,
        staged: StagedMove,
        mover: &mut Mover,
        stop: &mut mpsc::Receiver<()>,
    ) -> Result<Option<Running>, StartError> {
        let StagedMove { copy, call_off, told } = staged;
        let began = Instant::now();
        info!(from = told.from, to = told.to, "pausing for the rest of the data");
        let locked = running.store.data_dir.share()?;
        let stopped = running.stop(StopPurpose::Pause).await;
        if !stopped.is_at_rest {
            return Err(StartError::NotAtRest);
        }
        let stopped_after = began.elapsed();
        let plan = stopped.pipeline.plan.clone();
        let switched = switch(&plan, &locked, copy).await;
        drop(call_off);
        let switched_after = began.elapsed();
        let Some(running) = self.start(stopped.pipeline, stopped.listeners, locked, stop).await? else {
            return Ok(None);
        };
        match switched {
            // What was decided is done by the start, also where the switch itself was cut off.
            Err(problem) if running.pipeline.plan.storage.shard_count != told.to => {
                mover.failed(&plan, &told, &problem);
            }
            _ => {
                let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                let pause = began.elapsed();
                info!(
                    from = told.from,
                    to = told.to,
                    milliseconds = milliseconds(pause),
                    stopped = milliseconds(stopped_after),
                    switched = milliseconds(switched_after),
                    "the data is in other shards now; the layout of before is kept for a while"
                );
                told.progress.begin(MoveStep::Done, 0);
                told.progress.say(Some(format!("the pipeline paused for {:.1} s", pause.as_secs_f64())));
            }
        }
        online::tell(&running.status, Some(told));
        Ok(Some(running))
    }
}

/// Puts a copy in the place of the data, which nothing writes now.
async fn switch(plan: &Plan, locked: &LockedDir, copy: FollowedCopy) -> Result<(), StartError> {
    let replication = plan.replication.as_ref();
    if replication.is_some_and(|replication| takeover::is_beside(replication.mode, locked.path())) {
        takeover::take_over(locked.path()).await?;
    }
    Ok(blocking(move || copy.switch()).await?)
}

/// Sees that the right data is in a directory.
async fn prepare(
    locked: LockedDir,
    plan: &Plan,
    secrets: &Secrets,
    tools: &Tools,
) -> Result<(LockedDir, Option<Replica>), StartError> {
    let replica = match Site::of(plan, secrets)? {
        Some(site) => {
            let is_beside = takeover::is_beside(site.replication.mode, locked.path());
            let begin = if is_beside { Begin::Prepared } else { Begin::Run };
            Some(boot::prepare(&locked, plan, site, tools, begin).await?)
        }
        None => {
            locked.set_aside(plan.storage.accept_loss.as_deref(), clock::epoch_seconds())?;
            let (locked, plan) = (locked.share()?, plan.clone());
            blocking(move || reshard::at_start(&locked, &plan)).await?;
            None
        }
    };
    if let Some(claim) = plan.data_on_claim.clone().filter(|_| replica.is_none())
        && !locked.has_data()?
    {
        return Err(StartError::DataLost { path: locked.path().display().to_string(), claim });
    }
    Ok((locked, replica))
}

impl Running {
    /// Waits until joins and windows have all that follows from the results of others.
    async fn feeds_settled(&self) {
        let plan = &self.pipeline.plan;
        if !plan.sinks.iter().any(|sink| sink.kind == SinkKind::Topic) {
            return;
        }
        loop {
            // A feed that is current before the evaluation is, and also afterwards, has written nothing in between.
            let is_current = async || self.sinks.feeds_are_current(plan).await.unwrap_or_default();
            let applied = *self.sinks.applied.borrow();
            if is_current().await && self.evaluation.is_current(applied) && is_current().await {
                return;
            }
            tokio::time::sleep(FEEDS_LOOK).await;
        }
    }

    /// Stops in the order in which data flows.
    async fn stop(mut self, purpose: StopPurpose) -> StoppedPipeline {
        self.status.ready.store(false, Ordering::Relaxed);
        let evaluation_timeout = match purpose {
            StopPurpose::End => DRAIN_TIMEOUT,
            StopPurpose::Pause => PAUSE_TIMEOUT,
        };
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            self.sources.units.ask_to_stop();
            if purpose == StopPurpose::Pause {
                // What sinks have not handed over by then waits in the outbox for the start that follows at once.
                self.sinks.units.ask_to_stop();
            }
            if tokio::time::timeout(SOURCES_TIMEOUT, self.sources.units.ended()).await.is_err() {
                warn!("not all sources come to an end; going on without them");
            }
            self.maintenance.stop().await;
            self.ingest.close();
            let writers = self.writers;
            blocking(move || writers.into_iter().for_each(join)).await;
            self.evaluation.finish(evaluation_timeout).await;
            self.admin.ask_to_stop();
            self.control.iter().for_each(Unit::ask_to_stop);
            match purpose {
                StopPurpose::End => {
                    self.sinks.units.ask_to_stop();
                    self.sinks.units.ended().await;
                }
                StopPurpose::Pause => self.sinks.units.stop_all().await,
            }
            self.admin.ended().await;
            if let Some(mut control) = self.control {
                control.ended().await;
            }
        })
        .await;
        let scratch = self.store.scratch_folder();
        // Readers first: unlike writers they close a file with a checkpoint if they are the last to close it, and
        // Litestream, which has it open until then, would copy all of it anew at the next start.
        drop((self.sinks, self.maintenance, self.store.reader));
        // After all that is written, so that the last of it is in the replica.
        if let Some(replication) = self.replication {
            replication.stop().await;
        }
        match drained {
            Ok(()) => {
                // Scratch data is worth nothing to the next start.
                let _ = std::fs::remove_dir_all(scratch);
                if purpose == StopPurpose::End {
                    info!("stopped");
                }
            }
            Err(_) => warn!("stopped before all results were handed over; they follow at the next start"),
        }
        StoppedPipeline { pipeline: self.pipeline, listeners: self.listeners, is_at_rest: drained.is_ok() }
    }
}

fn thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started")
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
