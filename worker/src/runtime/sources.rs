//! Sources, each a part that starts and stops by itself.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use litejoin_crds::error::chain;
use litejoin_crds::plan::{self, Plan, SourceKind};
use tracing::info;

use super::StartError;
use super::listeners::Listeners;
use super::unit::{Ready, Units, Work};
use crate::credentials::Secrets;
use crate::dead_letters::DeadLetters;
use crate::outbound::Outbound;
use crate::serve::Front;
use crate::source::api::{Poller, PollerRun, Surroundings};
use crate::source::file::{self, FileReader};
use crate::source::http::{self, HttpState};
#[cfg(feature = "kafka")]
use crate::source::kafka::KafkaReader;
use crate::source::state::States;
use crate::status::Status;
use crate::storage::ingest::Ingest;
use crate::storage::replication_barrier::ReplicationBarrier;

/// A source as the config has it; one that differs is stopped and started anew.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SourceSpec {
    kind: SourceKind,
    /// The file of a file source.
    path: Option<PathBuf>,
}

impl SourceSpec {
    /// Whether it comes to an end by itself.
    fn ends(&self) -> bool {
        matches!(&self.kind, SourceKind::File(spec) if !spec.follow)
    }
}

/// The sources of a plan, with the files of file sources by the name of the source.
pub(super) fn specs(plan: &Plan, paths: &BTreeMap<String, PathBuf>) -> BTreeMap<String, SourceSpec> {
    let spec =
        |kind: &SourceKind, name: &String| SourceSpec { kind: kind.clone(), path: paths.get(name).cloned() };
    plan.sources.iter().map(|source| (source.name.clone(), spec(&source.kind, &source.name))).collect()
}

/// Checks what can be checked before a source runs.
pub(super) fn check(name: &str, source: &SourceSpec) -> Result<(), StartError> {
    if let SourceSpec { kind: SourceKind::File(spec), path: Some(path) } = source {
        file::check(path, spec).map_err(|problem| StartError::Source { name: name.to_owned(), problem })?;
    }
    Ok(())
}

/// Checks that every source comes to an end.
pub(super) fn check_ends(specs: &BTreeMap<String, SourceSpec>) -> Result<(), StartError> {
    match specs.iter().find(|(_, spec)| !spec.ends()) {
        Some((name, _)) => Err(StartError::UnboundedSource { name: name.clone() }),
        None => Ok(()),
    }
}

/// The sources that run, and what they are made of.
pub(super) struct Sources {
    pub(super) units: Units<SourceSpec>,
    pub(super) ingest: Ingest,
    pub(super) letters: Arc<DeadLetters>,
    pub(super) status: Arc<Status>,
    pub(super) batch_messages_max: usize,
    pub(super) secrets: Arc<Secrets>,
    pub(super) shard_paths: Vec<PathBuf>,
    pub(super) states: Arc<States>,
    /// The barrier at which a source waits for the replica.
    pub(super) replication_barrier: ReplicationBarrier,
}

impl Sources {
    /// Makes sources ready to start. `offsets` says for each stream that the shards know from where to go on; where
    /// they are further by the time of the start, they drop what they have seen.
    pub(super) fn prepare<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        specs: &BTreeMap<String, SourceSpec>,
        listeners: &Listeners,
        offsets: &HashMap<String, u64>,
    ) -> Result<Vec<Ready<SourceSpec>>, StartError> {
        names
            .map(|name| {
                let spec = specs[name].clone();
                let work = self.work(name, &spec, listeners, offsets)?;
                Ok(Ready { name: name.to_owned(), spec, work })
            })
            .collect()
    }

    fn work(
        &self,
        name: &str,
        source: &SourceSpec,
        listeners: &Listeners,
        offsets: &HashMap<String, u64>,
    ) -> Result<Work, StartError> {
        match &source.kind {
            SourceKind::Http(spec) => self.http(name.to_owned(), spec.clone(), listeners),
            SourceKind::File(spec) => {
                let path = source.path.clone().unwrap_or_else(|| PathBuf::from(&spec.path));
                Ok(self.file(name.to_owned(), spec.clone(), path, own_streams(name, offsets)))
            }
            #[cfg(not(feature = "kafka"))]
            SourceKind::Kafka(_) => unreachable!("the pipeline is refused without Kafka"),
            #[cfg(feature = "kafka")]
            SourceKind::Kafka(spec) => {
                Ok(self.kafka(name.to_owned(), (**spec).clone(), own_streams(name, offsets)))
            }
            SourceKind::Api(spec) => self.api(name.to_owned(), spec, offsets),
        }
    }

    fn http(&self, name: String, spec: plan::HttpSource, listeners: &Listeners) -> Result<Work, StartError> {
        let (status, ingest) = (Arc::clone(&self.status), self.ingest.clone());
        let front = Front::new(&spec.serving, &self.secrets)
            .map_err(|problem| StartError::Source { name: name.clone(), problem })?;
        let (listener, local) = listeners.listener(&format!("source {name}"))?;
        let replication_barrier = Some(self.replication_barrier.clone()).filter(|_| spec.waits_for_replica);
        Ok(Box::new(move |stopping| {
            let status = status.source(&name);
            status.error.clear();
            *status.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(local.to_string());
            info!(source = name, address = %local, "taking messages: POST /ingest");
            let stop = stopping.clone();
            let name = name.as_str().into();
            let state =
                Arc::new(HttpState { name, spec, ingest, status, replication_barrier, stopping: stop });
            Box::pin(front.serve(listener, http::router(state), stopping))
        }))
    }

    /// `stored` are the streams of the source that the shards know.
    fn file(
        &self,
        name: String,
        spec: plan::FileSource,
        path: PathBuf,
        stored: HashMap<String, u64>,
    ) -> Work {
        let (status, ingest) = (Arc::clone(&self.status), self.ingest.clone());
        let (letters, states) = (Arc::clone(&self.letters), Arc::clone(&self.states));
        let batch_messages_max = self.batch_messages_max;
        Box::new(move |stopping| {
            let status = status.source(&name);
            *status.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(path.display().to_string());
            status.finished.store(false, Ordering::Relaxed);
            status.error.clear();
            let reader = FileReader {
                name,
                spec,
                path,
                ingest,
                letters,
                states,
                status,
                stopping,
                batch_messages_max,
                stored,
            };
            Box::pin(reader.run())
        })
    }

    /// `stored` are the streams of the source that the shards know.
    #[cfg(feature = "kafka")]
    fn kafka(&self, name: String, spec: plan::KafkaSource, stored: HashMap<String, u64>) -> Work {
        let (status, ingest) = (Arc::clone(&self.status), self.ingest.clone());
        let (letters, secrets) = (Arc::clone(&self.letters), Arc::clone(&self.secrets));
        let batch_messages_max = self.batch_messages_max;
        let replication_barrier = Some(self.replication_barrier.clone()).filter(|_| spec.waits_for_replica);
        Box::new(move |stopping| {
            let status = status.source(&name);
            status.contact.made();
            let (topics, brokers) = (spec.kafka_topics.join(", "), spec.connection.brokers.join(","));
            *status.at.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(format!("{topics} of {brokers}"));
            status.error.clear();
            let reader = KafkaReader {
                name,
                spec,
                secrets,
                ingest,
                letters,
                status,
                replication_barrier,
                stopping,
                batch_messages_max,
                stored,
            };
            Box::pin(reader.run())
        })
    }

    fn api(
        &self,
        name: String,
        spec: &plan::ApiSource,
        offsets: &HashMap<String, u64>,
    ) -> Result<Work, StartError> {
        let status = Arc::clone(&self.status);
        let problem = |problem| StartError::Source { name: name.clone(), problem };
        let outbound = Outbound::new(&spec.connection, Arc::clone(&self.secrets));
        let outbound = outbound.map_err(|error| problem(chain(&error)))?;
        let surroundings = Surroundings {
            ingest: self.ingest.clone(),
            letters: Arc::clone(&self.letters),
            shard_paths: self.shard_paths.clone(),
            states: Arc::clone(&self.states),
            offsets,
        };
        let poller = Poller::new(&name, spec, outbound, surroundings);
        let poller = poller.map_err(|error| problem(error.to_string()))?;
        let url = spec.connection.url.split('?').next().unwrap_or_default().to_owned();
        Ok(Box::new(move |stopping| {
            let status = status.source(&name);
            status.error.clear();
            status.contact.made();
            *status.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(url);
            Box::pin(poller.run(PollerRun { status, stopping, arrival: None }))
        }))
    }
}

/// The streams of a source among all that the shards know.
fn own_streams(name: &str, offsets: &HashMap<String, u64>) -> HashMap<String, u64> {
    let prefix = format!("{name}:");
    let own = offsets.iter().filter(|(stream, _)| stream.starts_with(&prefix));
    own.map(|(stream, next)| (stream.clone(), *next)).collect()
}
