//! A barrier in front of sinks for results that may be ahead of the topics: a disk or its last commits were lost, and
//! results that follow from them were stored elsewhere. No result is shown until every join was evaluated, so that no
//! sink gets one that is about to be taken back.

use std::sync::Arc;

use litejoin_crds::error::chain;
use tokio::sync::{OnceCell, watch};
use tracing::{info, warn};

use crate::blocking::blocking;
use crate::results::{Applied, Results};
use crate::storage::sqlite::SqliteError;

/// Wait after a failure of the file.
const FILE_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Whether results may be shown yet.
#[derive(Clone)]
pub(crate) struct RecoveryBarrier(Option<Arc<Recovery>>);

/// The stored results are doubtful.
struct Recovery {
    results: Arc<Results>,
    applied: watch::Receiver<Applied>,
    done: OnceCell<()>,
}

impl RecoveryBarrier {
    /// As of the start of the evaluator.
    pub(crate) fn begin(
        results: &Arc<Results>,
        applied: &watch::Receiver<Applied>,
    ) -> Result<Self, SqliteError> {
        if !results.is_doubtful()? {
            return Ok(Self(None));
        }
        info!("results may be ahead of what is in the topics; sinks wait until every join was evaluated");
        let (results, applied) = (Arc::clone(results), applied.clone());
        Ok(Self(Some(Arc::new(Recovery { results, applied, done: OnceCell::new() }))))
    }

    /// Returns when results may be shown; `false` if the worker stops before. A join that fails does not hold the barrier up: its
    /// results stay as they were, and its status says so.
    pub(crate) async fn wait(&self, stopping: &mut watch::Receiver<bool>) -> bool {
        let Some(recovery) = &self.0 else { return true };
        let mut applied = recovery.applied.clone();
        tokio::select! {
            // A planned stop evaluates all there is before it gets to the sinks.
            biased;
            Ok(_) = applied.wait_for(Applied::is_of_this_run) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return false,
        }
        while let Err(error) = recovery.done.get_or_try_init(|| recovery.finish()).await {
            warn!(error = chain(&error), "could not settle the results; sinks wait, trying again");
            tokio::select! {
                () = tokio::time::sleep(FILE_RETRY) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return false,
            }
        }
        true
    }
}

impl Recovery {
    async fn finish(&self) -> Result<(), SqliteError> {
        let results = Arc::clone(&self.results);
        blocking(move || results.end_recovery()).await?;
        info!("every join was evaluated; sinks go on");
        Ok(())
    }
}
