//! Litestream and its monitor: started once the files are there, and stopped after everything that writes them.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::unit::Unit;
use crate::replication::Replica;
use crate::replication::monitor::ReplicaMonitor;
use crate::status::replication::ReplicationStatus;
use crate::storage::ingest::Ingest;
use crate::storage::replication_barrier::ReplicationBarrier;

/// The parts that replicate.
pub(super) struct Replication {
    /// `None` where Litestream is not run by us.
    litestream: Option<Unit>,
    monitor: Unit,
}

impl Replication {
    pub(super) fn start(
        replica: Replica,
        status: Arc<ReplicationStatus>,
        replication_barrier: ReplicationBarrier,
        ingest: Ingest,
        overtaken: mpsc::Sender<()>,
    ) -> Self {
        let litestream = replica.runs_litestream.then(|| {
            let litestream = replica.litestream.clone();
            let (config, lock) = (replica.config.clone(), replica.lock.clone());
            let files_count = u32::try_from(replica.files.len()).unwrap_or(u32::MAX);
            Unit::start(Box::new(move |stopping| {
                Box::pin(litestream.supervise(config, lock, files_count, stopping))
            }))
        });
        let monitor = ReplicaMonitor::new(replica, status, replication_barrier, ingest, overtaken);
        let monitor = Unit::start(Box::new(|stopping| Box::pin(monitor.run(stopping))));
        Self { litestream, monitor }
    }

    /// Has the last shipped, then ends Litestream; both take a bounded time.
    pub(super) async fn stop(mut self) {
        self.monitor.ask_to_stop();
        self.monitor.ended().await;
        if let Some(mut litestream) = self.litestream {
            litestream.ask_to_stop();
            litestream.ended().await;
        }
    }
}
