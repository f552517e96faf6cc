//! Litestream and its keeper: started once the files are there, and stopped after everything that writes them.

use std::sync::Arc;

use litejoin_crds::replication::ReplicationMode;
use tokio::sync::mpsc;

use super::unit::Unit;
use crate::replication::Replica;
use crate::replication::keeper::Keeper;
use crate::status::replication::ReplicationStatus;
use crate::storage::ingest::Ingest;
use crate::storage::replicated::Passes;

/// What replicates.
pub(super) struct Replication {
    /// `None` where somebody else runs it.
    litestream: Option<Unit>,
    keeper: Unit,
}

impl Replication {
    pub(super) fn start(
        replica: Replica,
        status: Arc<ReplicationStatus>,
        passes: Passes,
        ingest: Ingest,
        overtaken: mpsc::Sender<()>,
    ) -> Self {
        let litestream = (replica.site.replication.mode == ReplicationMode::Embedded).then(|| {
            let litestream = replica.litestream.clone();
            let (config, lock) = (replica.config.clone(), replica.lock.clone());
            let files_count = u32::try_from(replica.files.len()).unwrap_or(u32::MAX);
            Unit::start(Box::new(move |stopping| {
                Box::pin(litestream.supervise(config, lock, files_count, stopping))
            }))
        });
        let keeper = Keeper::new(replica, status, passes, ingest, overtaken);
        let keeper = Unit::start(Box::new(|stopping| Box::pin(keeper.run(stopping))));
        Self { litestream, keeper }
    }

    /// Has the last shipped, then ends Litestream; both take a bounded time.
    pub(super) async fn stop(mut self) {
        self.keeper.ask_to_stop();
        self.keeper.ended().await;
        if let Some(mut litestream) = self.litestream {
            litestream.ask_to_stop();
            litestream.ended().await;
        }
    }
}
