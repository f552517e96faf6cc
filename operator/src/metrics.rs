//! The operator's metrics for Prometheus.

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Why something failed, in one word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: String,
}

/// The operator's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    /// 1 while this operator holds the Lease.
    pub(crate) leader: Gauge,
    /// Reconciles that were finished.
    pub(crate) reconciles: Counter,
    /// Reconciles that failed, by reason.
    pub(crate) errors: Family<Reason, Counter>,
    /// Pipelines that are being reconciled.
    pub(crate) active: Gauge,
    /// How long reconciles take.
    pub(crate) seconds: Histogram,
    /// Writes to the API server, those of statuses included.
    pub(crate) writes: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("litejoin_operator");
        let (leader, reconciles, errors) = (Gauge::default(), Counter::default(), Family::default());
        let (active, writes) = (Gauge::default(), Counter::default());
        let seconds = Histogram::new(exponential_buckets(0.005, 2.0, 12));
        registry.register("leader", "Whether this operator holds the Lease", leader.clone());
        registry.register("reconciles", "Reconciles that came to their end", reconciles.clone());
        registry.register("reconcile_errors", "Reconciles that did not, by reason", errors.clone());
        registry.register("reconciles_active", "Pipelines that are being worked on", active.clone());
        registry.register("reconcile_seconds", "How long reconciles take", seconds.clone());
        registry.register("writes", "Writes to the API server that were needed", writes.clone());
        Self { registry, leader, reconciles, errors, active, seconds, writes }
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
