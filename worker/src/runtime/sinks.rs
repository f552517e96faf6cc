//! Sinks, each a part that starts and stops by itself: a dispatcher for one that is written to, a server for one that
//! is read from.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use litejoin_crds::error::chain;
use litejoin_crds::plan::{self, Guarantee, SinkKind};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::listeners::Listeners;
use super::unit::{Ready, Units, Work};
use super::{Pipeline, StartError};
use crate::blocking::blocking;
use crate::credentials::Secrets;
use crate::dead_letters::DeadLetters;
use crate::delivery::circuit::Circuit;
use crate::delivery::dispatch::Dispatcher;
use crate::results::event::{Envelope, JoinId};
use crate::results::recovery_barrier::RecoveryBarrier;
use crate::results::release::Release;
use crate::results::{Applied, Reader, Results};
use crate::serve::Front;
use crate::sink::Sink;
use crate::sink::http::HttpSink;
#[cfg(feature = "kafka")]
use crate::sink::kafka::{KafkaSink, RecordKeys};
use crate::sink::routes::Routes;
use crate::sink::sqlite::SqliteSink;
use crate::sink::sse::{self, Snapshots, SseState};
use crate::sink::stdout::Stdout;
use crate::sink::topic::TopicSink;
use crate::status::Status;
use crate::storage::ingest::Ingest;
use crate::storage::sqlite::SqliteError;

/// A sink as the config has it; one that differs is stopped and started anew. Which joins it takes changes while it
/// runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SinkSpec {
    kind: SinkKind,
    /// For one that is written to.
    delivery: Option<plan::Delivery>,
}

impl SinkSpec {
    /// Whether results are written to the sink, so that it has a cursor.
    fn is_pushed(&self) -> bool {
        self.delivery.is_some()
    }
}

/// Whether results are written to the sink, so that it has a cursor.
pub(super) fn is_pushed(kind: &SinkKind) -> bool {
    !matches!(kind, SinkKind::Sse(_))
}

/// The sinks of a plan.
pub(super) fn specs(plan: &plan::Plan) -> BTreeMap<String, SinkSpec> {
    let delivery = |kind: &SinkKind| match kind {
        // Other joins and windows follow from the topic.
        SinkKind::Topic => plan::Delivery { guarantee: Guarantee::AtLeastOnce, ..plan.delivery.clone() },
        _ => plan.delivery.clone(),
    };
    let spec =
        |kind: &SinkKind| SinkSpec { kind: kind.clone(), delivery: is_pushed(kind).then(|| delivery(kind)) };
    plan.sinks.iter().map(|sink| (sink.name.clone(), spec(&sink.kind))).collect()
}

/// The sinks that run, and what they are made of.
pub(super) struct Sinks {
    pub(super) units: Units<SinkSpec>,
    /// The routes of each sink, by its name.
    pub(super) routes: BTreeMap<String, watch::Sender<Arc<Routes>>>,
    pub(super) results: Arc<Results>,
    pub(super) reader: Arc<Reader>,
    pub(super) letters: Arc<DeadLetters>,
    pub(super) status: Arc<Status>,
    pub(super) applied: watch::Receiver<Applied>,
    /// Whether results may be shown.
    pub(super) recovery_barrier: RecoveryBarrier,
    /// When results may leave.
    pub(super) release: Release,
    pub(super) secrets: Arc<Secrets>,
    pub(super) ingest: Ingest,
    pub(super) shard_paths: Vec<PathBuf>,
    /// Whose data this is.
    pub(super) identity: String,
    pub(super) data_dir: PathBuf,
    /// Where snapshots are kept until their clients have read them.
    pub(super) scratch_folder: PathBuf,
    /// Rung when standard output has no reader any more.
    pub(super) stdout_closed: mpsc::Sender<()>,
}

impl Sinks {
    /// Makes sinks ready to start. [`Self::route`] says before that which joins they take.
    pub(super) fn prepare<'n>(
        &mut self,
        names: impl Iterator<Item = &'n str>,
        specs: &BTreeMap<String, SinkSpec>,
        listeners: &Listeners,
    ) -> Result<Vec<Ready<SinkSpec>>, StartError> {
        names
            .map(|name| {
                let spec = specs[name].clone();
                let work = self.work(name, &spec, listeners)?;
                let work = self.behind_barrier(work);
                Ok(Ready { name: name.to_owned(), spec, work })
            })
            .collect()
    }

    /// Has work wait until results may be shown; what is listened to is told at once.
    fn behind_barrier(&self, work: Work) -> Work {
        let recovery_barrier = self.recovery_barrier.clone();
        Box::new(move |mut stopping| {
            let task = work(stopping.clone());
            Box::pin(async move {
                if recovery_barrier.wait(&mut stopping).await {
                    task.await;
                }
            })
        })
    }

    fn work(&mut self, name: &str, sink: &SinkSpec, listeners: &Listeners) -> Result<Work, StartError> {
        match (&sink.kind, &sink.delivery) {
            (SinkKind::Sse(spec), _) => {
                let front = Front::new(&spec.serving, &self.secrets)
                    .map_err(|problem| StartError::Sink { name: name.to_owned(), problem })?;
                let (name, status, applied) =
                    (name.to_owned(), Arc::clone(&self.status), self.applied.clone());
                let release = self.release.clone();
                let routes = self.routes.entry(name.clone()).or_default().subscribe();
                let reader = Arc::clone(&self.reader);
                let (listener, local) = listeners.listener(&format!("sink {name}"))?;
                let snapshot_reader = Arc::new(Reader::open(self.results.path(), Snapshots::CONNECTIONS)?);
                let snapshots = Snapshots::new(snapshot_reader, self.scratch_folder.clone());
                let (spec, lineage) = (spec.clone(), self.results.lineage().to_owned());
                Ok(Box::new(move |stopping| {
                    let status = status.sink(&name);
                    *status.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(local.to_string());
                    info!(sink = name, address = %local, "serving results: /subscribe, /snapshot");
                    let state = Arc::new(SseState {
                        routes,
                        lineage,
                        reader,
                        snapshots,
                        applied,
                        release,
                        stopping: stopping.clone(),
                        status,
                        spec,
                    });
                    Box::pin(front.serve(listener, sse::router(state), stopping))
                }))
            }
            (kind, Some(delivery)) => {
                let sink = self.written(name, kind);
                let problem = |problem| StartError::Sink { name: name.to_owned(), problem };
                let at = match kind {
                    SinkKind::Http(spec) => spec.connection.url.split('?').next().map(str::to_owned),
                    // The errors of the others name the place.
                    _ => None,
                };
                Ok(self.dispatch(name, sink.map_err(problem)?, at, delivery))
            }
            (kind, None) => unreachable!("results are written to a sink like {kind:?}"),
        }
    }

    /// The sinks that are written to, a line each; or what is wrong with one.
    fn written(&self, name: &str, kind: &SinkKind) -> Result<Box<dyn Sink>, String> {
        Ok(match kind {
            SinkKind::Stdout => Box::new(Stdout::new(self.stdout_closed.clone())),
            SinkKind::Http(spec) => Box::new(HttpSink::new(spec, &self.secrets)?),
            SinkKind::Sqlite(spec) => Box::new(SqliteSink::open(&spec.path, &self.data_dir)?),
            #[cfg(not(feature = "kafka"))]
            SinkKind::Kafka(_) => unreachable!("the pipeline is refused without Kafka"),
            #[cfg(feature = "kafka")]
            SinkKind::Kafka(spec) => {
                let (results, reader) = (Arc::clone(&self.results), Arc::clone(&self.reader));
                let keys = RecordKeys::new(name, spec.key_format, results, reader);
                let secrets = Arc::clone(&self.secrets);
                Box::new(KafkaSink::new(name, &self.identity, (**spec).clone(), keys, secrets))
            }
            SinkKind::Topic => {
                let (ingest, reader) = (self.ingest.clone(), Arc::clone(&self.reader));
                let feed = TopicSink::open(name, ingest, reader, &self.shard_paths);
                Box::new(feed.map_err(|error| chain(&error).to_string())?)
            }
            SinkKind::Sse(_) => unreachable!("nothing is written to {kind:?}"),
        })
    }

    /// The work of a sink that is written to.
    fn dispatch(
        &mut self,
        name: &str,
        mut sink: Box<dyn Sink>,
        at: Option<String>,
        delivery: &plan::Delivery,
    ) -> Work {
        let (name, delivery) = (name.to_owned(), delivery.clone());
        let (status, applied) = (Arc::clone(&self.status), self.applied.clone());
        let release = self.release.clone();
        let in_force = self.routes.entry(name.clone()).or_default().subscribe();
        let (results, reader) = (Arc::clone(&self.results), Arc::clone(&self.reader));
        let letters = Arc::clone(&self.letters);
        let letters_changed = letters.interventions();
        let circuit_failures = delivery.circuit_failures;
        Box::new(move |stopping| {
            let status = status.sink(&name);
            status.contact.made();
            *status.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
            sink.start(&status);
            let dispatcher = Dispatcher {
                name,
                sink,
                in_force,
                routes: Arc::default(),
                joins: Vec::new(),
                delivery,
                results,
                reader,
                letters,
                status,
                applied,
                release,
                stopping,
                has_letters: true,
                letters_circuit: Circuit::new(circuit_failures),
                counted: None,
                is_count_old: true,
                letters_changed,
            };
            Box::pin(dispatcher.run())
        })
    }

    /// Tells every sink which joins it takes from now on; those for which that is no news are left alone.
    pub(super) fn route(&mut self, pipeline: &Pipeline, ids: &HashMap<String, JoinId>, lineage: &str) {
        let envelopes: HashMap<&str, Envelope> = pipeline
            .joins
            .iter()
            .map(|join| {
                let (join_name, result_key) = (join.name.clone(), join.result_key.clone());
                let (lineage, shape) = (lineage.to_owned(), Arc::clone(&join.shape));
                (join.name.as_str(), Envelope { lineage, join_name, result_key, shape })
            })
            .collect();
        for sink in &pipeline.plan.sinks {
            let routes: Routes =
                sink.joins.iter().map(|name| (ids[name], envelopes[name.as_str()].clone())).collect();
            self.routes.entry(sink.name.clone()).or_default().send_if_modified(|present| {
                let news = **present != routes;
                if news {
                    *present = Arc::new(routes);
                }
                news
            });
        }
    }

    /// Returns whether all results so far are in the feeds.
    pub(super) async fn feeds_are_current(&self, plan: &plan::Plan) -> Result<bool, SqliteError> {
        let feeds = plan.sinks.iter().filter(|sink| sink.kind == SinkKind::Topic);
        let names: Vec<String> = feeds.map(|sink| sink.name.clone()).collect();
        let reader = Arc::clone(&self.reader);
        blocking(move || {
            let end = reader.end()?;
            for name in names {
                if reader.cursor(&name)?.is_none_or(|cursor| cursor < end) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// Forgets sinks that are not among `specs`; they must have ended.
    pub(super) async fn forget_others(&mut self, specs: &BTreeMap<String, SinkSpec>) {
        self.routes.retain(|name, _| specs.contains_key(name));
        let pushed = specs.iter().filter(|(_, spec)| spec.is_pushed());
        let names: Vec<String> = pushed.map(|(name, _)| name.clone()).collect();
        let results = Arc::clone(&self.results);
        let forgotten = blocking(move || {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            results.forget_other_sinks(&names)
        });
        if let Err(error) = forgotten.await {
            warn!(error = chain(&error), "could not forget the cursors of old sinks; the next start will");
        }
    }
}
