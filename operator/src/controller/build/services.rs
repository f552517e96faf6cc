//! The Services: a headless one that the StatefulSet wants, and one for clients with a port for each http source and
//! sse sink.

use std::collections::BTreeSet;

use litejoin_crds::Plan;
use litejoin_crds::address::Address;
use litejoin_crds::plan::{SinkKind, SourceKind};
use serde_json::{Value, json};

use crate::controller::names;

/// A listener that clients of the cluster reach.
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: u16,
}

/// The ports of a plan's sources and sinks that are reached from outside of the pod.
pub(crate) fn ports(plan: &Plan) -> Vec<Port> {
    let sources = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Http(http) => Some(("source", &source.name, &http.addr)),
        _ => None,
    });
    let sinks = plan.sinks.iter().filter_map(|sink| match &sink.kind {
        SinkKind::Sse(sse) => Some(("sink", &sink.name, &sse.addr)),
        _ => None,
    });
    let mut taken = BTreeSet::new();
    let mut ports = Vec::new();
    for (kind, name, addr) in sources.chain(sinks) {
        let Ok(address) = Address::parse(addr) else { continue };
        if address.port == 0 || address.is_loopback() {
            continue;
        }
        let plain = label(name);
        let name =
            if taken.contains(&plain) { label(&format!("{name}-{kind}-{}", address.port)) } else { plain };
        taken.insert(name.clone());
        ports.push(Port { name, number: address.port });
    }
    ports
}

/// The port of health, metrics and status.
pub(crate) fn admin_port(plan: &Plan) -> u16 {
    Address::parse(&plan.admin.addr).map(|address| address.port).unwrap_or_default()
}

/// The headless Service, which only gives pods their names.
pub(crate) fn headless(plan: &Plan) -> Value {
    json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": names::selector(&plan.name),
        "ports": [{ "name": "admin", "port": admin_port(plan), "targetPort": admin_port(plan), "protocol": "TCP" }],
    })
}

/// The Service for clients; `None` if the pipeline listens nowhere.
pub(crate) fn client(plan: &Plan) -> Option<Value> {
    let ports: Vec<Value> = ports(plan)
        .iter()
        .map(|port| {
            json!({
                "name": port.name,
                "port": port.number,
                "targetPort": port.number,
                "protocol": "TCP",
                "appProtocol": "http",
            })
        })
        .collect();
    (!ports.is_empty())
        .then(|| json!({ "type": "ClusterIP", "selector": names::selector(&plan.name), "ports": ports }))
}

/// The name as a DNS label, which the name of a port has to be.
fn label(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let cut: String = plain.trim_matches('-').chars().take(63).collect();
    cut.trim_end_matches('-').to_owned()
}
