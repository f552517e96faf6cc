//! Where results go. A sink that is written to implements [`Sink`] and leaves retries, order and dead letters
//! to [`crate::delivery`]; the SSE sink is read from instead, each client at its own pace. `runtime/sinks.rs` makes each
//! sink from its spec.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use self::routes::Routes;
use crate::results::event::{JoinId, Op};
use crate::status::sink::SinkStatus;

pub(crate) mod http;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
pub(crate) mod routes;
pub(crate) mod sqlite;
pub(crate) mod sse;
pub(crate) mod stdout;
pub(crate) mod topic;

/// A result on its way: what it is called and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    /// The result key as JSON.
    pub(crate) key: String,
    pub(crate) join_name: String,
    pub(crate) epoch: u64,
    pub(crate) op: Op,
    /// The whole result as one line of JSON.
    pub(crate) json: String,
}

/// The outcome of one result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Delivered,
    /// The result may go through later.
    Failed(String),
    /// The sink says itself that nothing goes through before that time, and the result may afterwards.
    Later(String, Duration),
    /// The result never goes through as it is.
    Refused(String),
}

/// Results that a sink is handed in one call unless it wants more.
pub(crate) const RESULTS_PER_CALL: usize = 500;

/// Outcomes of a batch, one for each result, in its order. There may be fewer of them than results, but not none: those
/// that are not answered for are handed over again.
pub(crate) type Outcomes<'a> = Pin<Box<dyn Future<Output = Vec<Outcome>> + Send + 'a>>;

/// The joins whose results are lost at a sink, or why that can't be told.
pub(crate) type LostJoins<'a> = Pin<Box<dyn Future<Output = Result<Vec<JoinId>, String>> + Send + 'a>>;

/// Whether a sink is ready, or why it is not.
pub(crate) type Preparation<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// A sink that results are written to.
pub(crate) trait Sink: Send + Sync {
    /// Called once before anything is delivered, for a sink that wants to know early whether it can.
    fn start(&mut self, _status: &Arc<SinkStatus>) {}

    /// Returns those of these joins whose results are not where the sink has put them, such as in a file that was removed.
    /// They are handed over as they stand. Asked before each [`Self::prepare`].
    fn lost<'a>(&'a mut self, _routes: &'a Routes) -> LostJoins<'a> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Makes ready for results of these joins: before the first of them, and when the joins or their columns change.
    fn prepare<'a>(&'a mut self, _routes: &'a Routes) -> Preparation<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Delivers results in their order and returns the outcome of each. A call may be given up at any await;
    /// results without an outcome are delivered again.
    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a>;

    /// Results that one call takes at most.
    fn results_per_call(&self) -> usize {
        RESULTS_PER_CALL
    }

    /// How long one call may take before it counts as failed.
    fn call_timeout(&self) -> Duration {
        Duration::from_secs(60)
    }
}
