//! The NetworkPolicy: clients may reach sources and sinks, the operator and the peers that the user names may reach the
//! admin address. Every network lets kubelet in, from the pod's own node.

use litejoin_crds::Plan;
use litejoin_crds::network_policy::NetworkPolicySpec;
use serde_json::{Value, json};

use super::services;
use crate::controller::names;

/// The NetworkPolicy's spec, for an operator of this namespace.
pub(crate) fn spec(plan: &Plan, policy: &NetworkPolicySpec, operator_namespace: &str) -> Value {
    let port = |number: u16| json!({ "port": number, "protocol": "TCP" });
    let mut admins = vec![json!({
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": operator_namespace } },
        "podSelector": { "matchLabels": { "app.kubernetes.io/name": names::OPERATOR } },
    })];
    admins.extend(policy.admin_from.iter().map(|peer| json!(peer)));
    let mut ingress = vec![json!({ "from": admins, "ports": [port(services::admin_port(plan))] })];
    let ports: Vec<Value> = services::ports(plan).iter().map(|listener| port(listener.number)).collect();
    if !ports.is_empty() {
        let clients = match policy.from.is_empty() {
            true => json!([{ "podSelector": {} }]),
            false => json!(policy.from),
        };
        ingress.push(json!({ "from": clients, "ports": ports }));
    }
    json!({
        "podSelector": { "matchLabels": names::selector(&plan.name) },
        "policyTypes": ["Ingress"],
        "ingress": ingress,
    })
}
