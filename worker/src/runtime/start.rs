//! The start: all files are opened, then parts start from the shards outwards, so that nothing is sent to a part that is
//! not there yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};

use litejoin_crds::plan::{self, Plan};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::evaluation::{self, Evaluation};
use super::listeners::Listeners;
use super::maintenance::Maintenance;
use super::replica::Replication;
use super::sinks::{self, Sinks};
use super::sources::{self, Sources};
use super::store::{self, OpenFiles};
use super::unit::{Unit, Units};
use super::{Running, StartError, writers};
use crate::audit::{Auditor, Files};
use crate::blocking::blocking;
use crate::clock::SteadyClock;
use crate::control::Control;
use crate::credentials::Secrets;
use crate::evaluator::{Evaluator, Repairs};
use crate::join::classes;
use crate::pipeline::{Pipeline, in_force};
use crate::replication::Replica;
use crate::results::event::JoinId;
use crate::results::recovery_barrier::RecoveryBarrier;
use crate::results::release::Release;
use crate::results::store::Progress;
use crate::results::{Applied, Results};
use crate::serve::Front;
use crate::source::state::States;
use crate::status::Status;
use crate::storage::data_size::DataSize;
use crate::storage::gate::EpochGate;
use crate::storage::ingest::Ingest;
use crate::storage::layout::LockedDir;
use crate::storage::log::LogHold;
use crate::storage::offsets::stream_offsets;
use crate::storage::replication_barrier::ReplicationBarrier;
use crate::storage::shard::Shard;
use crate::{admin, clock};

/// The files of a pipeline, open, and how far each of its parts is in them.
struct OpenPipeline {
    store: OpenFiles,
    shards: Vec<Shard>,
    shard_paths: Vec<PathBuf>,
    status: Arc<Status>,
    states: Arc<States>,
    progress: Vec<Progress>,
    /// The numbers of the joins by their names.
    ids: HashMap<String, JoinId>,
    applied: (watch::Sender<Applied>, watch::Receiver<Applied>),
    /// By stream, the place that every shard has reached.
    offsets: HashMap<String, u64>,
}

impl OpenPipeline {
    async fn open(pipeline: &Pipeline, locked: LockedDir, is_replicated: bool) -> Result<Self, StartError> {
        let plan = &pipeline.plan;
        let mut store = {
            let (plan, joins) = (plan.clone(), pipeline.joins.clone());
            blocking(move || OpenFiles::open(locked, &plan, &joins)).await?
        };
        let status = Arc::new(Status::new(plan, classes(&pipeline.joins), clock::epoch_seconds()));
        let states = Arc::new(States::new(store.data_dir.path(), store::journal(plan)));
        if is_replicated {
            // A replica is whole when each of its files is there.
            states.make()?;
        }
        status.config.leaves_out(pipeline.left_out.clone());
        *status.lineage.lock().unwrap_or_else(PoisonError::into_inner) = store.results.lineage().to_owned();
        status.outbox_bytes.set(store.results.outbox_bytes()?);
        let shard_paths = store.shard_paths();
        let mut progress = evaluation::register(&store.results, &pipeline.joins, plan.storage.shard_count)?;
        evaluation::reset_stale_progress(&store.results, &pipeline.joins, &mut progress, &shard_paths)?;
        let ids = evaluation::ids(&pipeline.joins, &progress);
        let end = store.reader.end()?;
        let epoch = evaluation::epoch(&progress).unwrap_or(end.epoch);
        let applied = watch::channel(Applied::begin(end, epoch, store.first_epoch));
        status.epoch_applied.set(applied.1.borrow().epoch);
        let offsets = stream_offsets(&shard_paths)?;
        let shards = std::mem::take(&mut store.shards);
        for (topic, size) in
            shards.iter().map(Shard::sizes).collect::<Result<Vec<_>, _>>()?.into_iter().flatten()
        {
            status.topic(&store.topics.name(topic)).grow(size);
        }
        let files = shard_paths.iter().cloned().chain([store.results.path().to_owned()]);
        status.storage.measured(DataSize::open(files)?.bytes()?);
        Ok(Self { store, shards, shard_paths, status, states, progress, ids, applied, offsets })
    }
}

impl Running {
    /// Opens all there is to open, then starts from the shards outwards, so that nothing is sent to what is not there
    /// yet.
    pub(super) async fn start(
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
        let OpenPipeline { store, shards, shard_paths, status, states, progress, ids, applied, offsets } =
            OpenPipeline::open(&pipeline, locked, replica.is_some()).await?;
        let replication_barrier = ReplicationBarrier::default();
        let (applied_sender, applied) = applied;
        let gate = Arc::new(EpochGate::new(store.first_epoch, shards.iter().map(Shard::last_seq).collect()));
        let trim_to: Vec<Arc<AtomicI64>> = shards.iter().map(|_| Arc::default()).collect();
        let log_hold = LogHold::new(shards.len());
        let (ingest, writers) = writers::start(plan, shards, &store.topics, &gate, &status, &trim_to);
        let replication = replica.map(|replica| {
            let status = Arc::clone(&status.replication);
            Replication::start(replica, status, replication_barrier.clone(), ingest.clone(), overtaken)
        });
        let recovery_barrier = RecoveryBarrier::begin(&store.results, &applied)?;
        let core = Core { store, status, ingest, shard_paths, secrets, replication_barrier };
        let repairs = Arc::new(Repairs::default());
        let gate_of_evaluator = Arc::clone(&gate);
        let evaluator = core.evaluator(
            &pipeline,
            gate_of_evaluator,
            progress,
            (trim_to, log_hold.clone()),
            applied_sender,
            &repairs,
        );
        let evaluation = Evaluation::start(evaluator);

        let mut sinks = core.sinks(plan, applied, recovery_barrier, stdout_closed);
        let ready = sinks.prepare(sink_specs.keys().map(String::as_str), &sink_specs, &listeners)?;
        sinks.route(&pipeline, &ids, core.store.results.lineage());
        sinks.forget_others(&sink_specs).await;
        sinks.units.start(ready);
        let admin = core.admin(&listeners, &plan.admin.serving)?;
        let auditor = core.auditor(&pipeline, gate, repairs);
        let control = core.control(&auditor);
        let mut maintenance = core.maintenance(auditor);
        maintenance.start(plan, &pipeline.joins);

        let mut sources = core.sources(plan, states);
        let names = source_specs.keys().map(String::as_str);
        let ready = sources.prepare(names, &source_specs, &listeners, &offsets)?;
        sources.units.start(ready);
        let Core { store, status, ingest, .. } = core;
        status.ready.store(true, Ordering::Relaxed);
        in_force::write(store.data_dir.path(), &pipeline.documents);
        let data = store.data_dir.path().display();
        info!(pipeline = plan.name, %data, "the pipeline runs; stop it with ctrl-C");
        Ok(Self {
            pipeline,
            store,
            status,
            listeners,
            ingest,
            writers,
            log_hold,
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
}

/// The things that several parts are made of.
struct Core {
    store: OpenFiles,
    status: Arc<Status>,
    ingest: Ingest,
    shard_paths: Vec<PathBuf>,
    secrets: Arc<Secrets>,
    replication_barrier: ReplicationBarrier,
}

impl Core {
    fn evaluator(
        &self,
        pipeline: &Pipeline,
        gate: Arc<EpochGate>,
        progress: Vec<Progress>,
        (trim_to, log_hold): (Vec<Arc<AtomicI64>>, LogHold),
        applied: watch::Sender<Applied>,
        repairs: &Arc<Repairs>,
    ) -> Evaluator {
        let reached = progress.iter().filter_map(|progress| progress.clock).max();
        Evaluator {
            gate,
            topics: Arc::clone(&self.store.topics),
            results: Arc::clone(&self.store.results),
            reader: Arc::clone(&self.store.reader),
            status: Arc::clone(&self.status),
            joins: pipeline.joins.clone(),
            progress,
            clock: Arc::new(SteadyClock::new(reached)),
            shard_paths: self.shard_paths.clone(),
            ingest: self.ingest.clone(),
            scratch_folder: self.store.scratch_folder(),
            trim_to,
            log_hold,
            reserved: Results::last_reserved(self.store.first_epoch),
            applied,
            stopped: BTreeSet::new(),
            repairs: Arc::clone(repairs),
            letters: Arc::clone(&self.store.letters),
        }
    }

    fn sinks(
        &self,
        plan: &Plan,
        applied: watch::Receiver<Applied>,
        recovery_barrier: RecoveryBarrier,
        stdout_closed: mpsc::Sender<()>,
    ) -> Sinks {
        Sinks {
            units: Units::default(),
            routes: BTreeMap::new(),
            results: Arc::clone(&self.store.results),
            reader: Arc::clone(&self.store.reader),
            letters: Arc::clone(&self.store.letters),
            status: Arc::clone(&self.status),
            applied,
            recovery_barrier,
            release: match plan.replication.as_ref().is_some_and(|replication| replication.results_wait) {
                true => Release::after(self.replication_barrier.clone()),
                false => Release::default(),
            },
            secrets: Arc::clone(&self.secrets),
            ingest: self.ingest.clone(),
            shard_paths: self.shard_paths.clone(),
            identity: plan.identity.clone(),
            data_dir: self.store.data_dir.path().to_owned(),
            scratch_folder: self.store.scratch_folder(),
            stdout_closed,
        }
    }

    fn auditor(&self, pipeline: &Pipeline, gate: Arc<EpochGate>, repairs: Arc<Repairs>) -> Arc<Auditor> {
        let results_path = self.store.results.path().to_owned();
        let files = Files::new(self.shard_paths.clone(), results_path, self.store.scratch_folder());
        let (status, policy) = (Arc::clone(&self.status), pipeline.plan.audit.clone());
        Arc::new(Auditor::new(files, gate, status, repairs, &pipeline.joins, policy))
    }

    fn maintenance(&self, auditor: Arc<Auditor>) -> Maintenance {
        Maintenance {
            units: Vec::new(),
            results: Arc::clone(&self.store.results),
            reader: Arc::clone(&self.store.reader),
            letters: Arc::clone(&self.store.letters),
            shard_paths: self.shard_paths.clone(),
            ingest: self.ingest.clone(),
            status: Arc::clone(&self.status),
            auditor,
        }
    }

    fn sources(&self, plan: &Plan, states: Arc<States>) -> Sources {
        Sources {
            units: Units::default(),
            ingest: self.ingest.clone(),
            letters: Arc::clone(&self.store.letters),
            status: Arc::clone(&self.status),
            batch_messages_max: plan.storage.batch_messages_max,
            secrets: Arc::clone(&self.secrets),
            shard_paths: self.shard_paths.clone(),
            states,
            replication_barrier: self.replication_barrier.clone(),
        }
    }

    /// Starts to serve metrics and status.
    fn admin(&self, listeners: &Listeners, serving: &plan::Serving) -> Result<Unit, StartError> {
        let front = Front::new(serving, &self.secrets).map_err(|problem| StartError::Admin { problem })?;
        let (listener, local) = listeners.listener("admin")?;
        info!(address = %local, "showing /healthz, /readyz, /metrics, /status");
        let router = admin::router(Arc::clone(&self.status));
        Ok(Unit::start(Box::new(|stopping| Box::pin(front.serve(listener, router, stopping)))))
    }

    /// Starts to serve commands on the data directory; `None` where there can be no socket.
    fn control(&self, auditor: &Arc<Auditor>) -> Option<Unit> {
        let control = Control::open(self.store.data_dir.path())?;
        let (status, auditor) = (Arc::clone(&self.status), Arc::clone(auditor));
        let letters = Arc::clone(&self.store.letters);
        Some(Unit::start(Box::new(|stopping| Box::pin(control.serve(status, auditor, letters, stopping)))))
    }
}
