//! Starting sinks: a dispatcher for each that is written to, a server for each that is read from.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use litejoin_crds::plan::{Plan, SinkKind};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::store::Store;
use super::{StartError, serve};
use crate::delivery::dispatch::Dispatcher;
use crate::results::event::{Envelope, JoinId};
use crate::results::{Position, Reader};
use crate::sink::sse::{self, SseState};
use crate::sink::stdout::Stdout;
use crate::status::Status;

/// What sinks are made of.
pub(super) struct Sinks<'a> {
    pub(super) plan: &'a Plan,
    pub(super) store: &'a Store,
    pub(super) status: &'a Status,
    /// Joins by name.
    pub(super) ids: HashMap<String, JoinId>,
    pub(super) envelopes: Arc<HashMap<JoinId, Envelope>>,
    pub(super) applied: watch::Receiver<Position>,
    pub(super) stopping: watch::Receiver<bool>,
    /// Rung when nobody reads standard output any more.
    pub(super) stdout_closed: mpsc::Sender<()>,
}

/// Whether results are written to the sink, so that it has a cursor.
pub(super) fn is_pushed(kind: &SinkKind) -> bool {
    !matches!(kind, SinkKind::Sse(_))
}

impl Sinks<'_> {
    /// Starts all sinks as tasks of `tasks`, and forgets those that the store still knows and the plan doesn't.
    pub(super) fn start(
        self,
        mut listeners: HashMap<String, (TcpListener, std::net::SocketAddr)>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), StartError> {
        for sink in &self.plan.sinks {
            let counters = self.status.sink(&sink.name);
            match &sink.kind {
                SinkKind::Sse(spec) => {
                    let (listener, local) =
                        listeners.remove(&sink.name).expect("every sse sink was given a listener");
                    *counters.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(local.to_string());
                    info!(sink = sink.name, address = %local, "serving results: /subscribe, /snapshot");
                    let snapshot_reader =
                        Reader::open(self.store.results.path(), SseState::SNAPSHOT_CONNECTIONS)?;
                    let state = Arc::new(SseState {
                        joins: sink.joins.iter().map(|name| (name.clone(), self.ids[name])).collect(),
                        envelopes: Arc::clone(&self.envelopes),
                        lineage: self.store.results.lineage().to_owned(),
                        reader: Arc::clone(&self.store.reader),
                        snapshot_reader: Arc::new(snapshot_reader),
                        snapshots: SseState::snapshot_permits(),
                        applied: self.applied.clone(),
                        stopping: self.stopping.clone(),
                        status: counters,
                        spec: spec.clone(),
                    });
                    serve(tasks, listener, sse::router(state), self.stopping.clone());
                }
                SinkKind::Stdout => {
                    let dispatcher = Dispatcher {
                        name: sink.name.clone(),
                        sink: Box::new(Stdout::new(self.stdout_closed.clone())),
                        joins: sink.joins.iter().map(|name| self.ids[name]).collect(),
                        envelopes: Arc::clone(&self.envelopes),
                        delivery: self.plan.delivery.clone(),
                        results: Arc::clone(&self.store.results),
                        reader: Arc::clone(&self.store.reader),
                        letters: Arc::clone(&self.store.letters),
                        status: counters,
                        applied: self.applied.clone(),
                        stopping: self.stopping.clone(),
                        has_letters: true,
                        counted: None,
                    };
                    tasks.spawn(dispatcher.run());
                }
                SinkKind::Unsupported(kind) => unreachable!("the manifest was refused for its {kind} sink"),
            }
        }
        let pushed = self.plan.sinks.iter().filter(|sink| is_pushed(&sink.kind));
        let names: Vec<&str> = pushed.map(|sink| sink.name.as_str()).collect();
        self.store.results.forget_other_sinks(&names)?;
        Ok(())
    }
}
