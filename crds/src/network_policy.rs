//! `spec.networkPolicy`: who may reach the pod.

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pod::any_objects;

/// Who may reach the pod.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicySpec {
    /// Whether there is a NetworkPolicy: then only the peers named here, the operator and kubelet reach the pod.
    pub enabled: bool,
    /// Who may reach sources and sinks, as peers of a NetworkPolicy; the pods of the namespace where absent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "any_objects")]
    pub from: Vec<NetworkPolicyPeer>,
    /// Who may reach health, metrics and status beside the operator, as peers of a NetworkPolicy, such as Prometheus.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "any_objects")]
    pub admin_from: Vec<NetworkPolicyPeer>,
}
