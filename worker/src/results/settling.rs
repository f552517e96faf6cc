//! Results that may be ahead of what is in the topics: a disk or its last commits were lost, and what follows from them was
//! stored elsewhere. Nobody is shown any until every join was evaluated, so that nobody gets what is about to be taken
//! back.

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
pub(crate) struct Settling(Option<Arc<Doubt>>);

/// What is stored is doubtful.
struct Doubt {
    results: Arc<Results>,
    applied: watch::Receiver<Applied>,
    settled: OnceCell<()>,
}

impl Settling {
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
        Ok(Self(Some(Arc::new(Doubt { results, applied, settled: OnceCell::new() }))))
    }

    /// Returns when results may be shown; `false` if the worker stops before. A join that fails holds up nobody: its
    /// results stay as they were, and its status says so.
    pub(crate) async fn wait(&self, stopping: &mut watch::Receiver<bool>) -> bool {
        let Some(doubt) = &self.0 else { return true };
        let mut applied = doubt.applied.clone();
        tokio::select! {
            // A planned stop evaluates all there is before it gets to the sinks.
            biased;
            Ok(_) = applied.wait_for(Applied::is_of_this_run) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return false,
        }
        while let Err(error) = doubt.settled.get_or_try_init(|| doubt.settle()).await {
            warn!(error = chain(&error), "could not settle the results; sinks wait, trying again");
            tokio::select! {
                () = tokio::time::sleep(FILE_RETRY) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return false,
            }
        }
        true
    }
}

impl Doubt {
    async fn settle(&self) -> Result<(), SqliteError> {
        let results = Arc::clone(&self.results);
        blocking(move || results.settle()).await?;
        info!("every join was evaluated; sinks go on");
        Ok(())
    }
}
