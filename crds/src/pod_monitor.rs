//! `spec.podMonitor`: how Prometheus finds the pod's metrics.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::DurationText;

/// How Prometheus finds the pod's metrics.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodMonitorSpec {
    /// Whether there is a PodMonitor; it needs the Prometheus operator's definitions in the cluster.
    pub enabled: bool,
    /// Labels of the PodMonitor, by which a Prometheus selects what it reads.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// How often metrics are read, 1s to 24h; as often as Prometheus' own default where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// Name that the certificate of `admin.tls` carries, which Prometheus asks for; needed with `admin.tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}
