//! Starting sources.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use litejoin_crds::plan::{Plan, SourceKind};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::{StartError, serve};
use crate::delivery::dead_letters::DeadLetters;
use crate::source::file::{self, FileReader};
use crate::source::http::{self, HttpState};
use crate::status::Status;
use crate::storage::ingest::Ingest;

/// What sources are made of.
pub(super) struct Sources<'a> {
    pub(super) plan: &'a Plan,
    /// Files of file sources by the name of the source.
    pub(super) paths: &'a BTreeMap<String, PathBuf>,
    pub(super) ingest: &'a Ingest,
    pub(super) letters: &'a Arc<DeadLetters>,
    pub(super) status: &'a Status,
    /// For each stream that the shards know, the offset to go on from.
    pub(super) offsets: HashMap<String, u64>,
    pub(super) stopping: watch::Receiver<bool>,
}

/// Checks what can be checked before anything runs; with `once`, also that every source comes to an end.
pub(super) fn check(plan: &Plan, paths: &BTreeMap<String, PathBuf>, once: bool) -> Result<(), StartError> {
    for source in &plan.sources {
        let name = || source.name.clone();
        if let (SourceKind::File(spec), Some(path)) = (&source.kind, paths.get(&source.name)) {
            file::check(path, spec).map_err(|problem| StartError::Source { name: name(), problem })?;
        }
        let ends = matches!(&source.kind, SourceKind::File(spec) if !spec.follow);
        if once && !ends {
            return Err(StartError::Endless { name: name() });
        }
    }
    Ok(())
}

impl Sources<'_> {
    /// Starts all sources: `servers` run until the stop, `files` to the end of their file.
    pub(super) fn start(
        self,
        mut listeners: HashMap<String, (TcpListener, SocketAddr)>,
        servers: &mut JoinSet<()>,
        files: &mut JoinSet<()>,
    ) {
        for source in &self.plan.sources {
            let counters = self.status.source(&source.name);
            match &source.kind {
                SourceKind::Http(spec) => {
                    let (listener, local) =
                        listeners.remove(&source.name).expect("every http source was given a listener");
                    *counters.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(local.to_string());
                    info!(source = source.name, address = %local, "taking messages: POST /ingest");
                    let state = Arc::new(HttpState {
                        spec: spec.clone(),
                        ingest: self.ingest.clone(),
                        status: counters,
                        stopping: self.stopping.clone(),
                    });
                    serve(servers, listener, http::router(state), self.stopping.clone());
                }
                SourceKind::File(spec) => {
                    let path =
                        self.paths.get(&source.name).cloned().unwrap_or_else(|| PathBuf::from(&spec.path));
                    *counters.at.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(path.display().to_string());
                    let prefix = format!("{}:", source.name);
                    let stored = self.offsets.iter().filter(|(stream, _)| stream.starts_with(&prefix));
                    let reader = FileReader {
                        name: source.name.clone(),
                        spec: spec.clone(),
                        path,
                        ingest: self.ingest.clone(),
                        letters: Arc::clone(self.letters),
                        status: counters,
                        stopping: self.stopping.clone(),
                        batch_messages_max: self.plan.storage.batch_messages_max,
                        stored: stored.map(|(stream, next)| (stream.clone(), *next)).collect(),
                    };
                    files.spawn(reader.run());
                }
                SourceKind::Unsupported(kind) => {
                    unreachable!("the manifest was refused for its {kind} source")
                }
            }
        }
    }
}
