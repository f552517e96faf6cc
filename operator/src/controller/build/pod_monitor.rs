//! The PodMonitor, by which Prometheus finds the pod's metrics. Token and certificate come from the Secrets that the
//! Pipeline names.

use std::time::Duration;

use litejoin_crds::Plan;
use litejoin_crds::credentials::SecretKeyRef;
use litejoin_crds::pod_monitor::PodMonitorSpec;
use serde_json::{Value, json};

use crate::controller::names;

/// The PodMonitor's spec.
pub(crate) fn spec(plan: &Plan, monitor: &PodMonitorSpec) -> Value {
    let serving = &plan.admin.serving;
    let mut endpoint = json!({ "port": "admin", "path": "/metrics", "scheme": "http" });
    if let Some(interval) = monitor.interval.as_ref().and_then(|interval| interval.parse().ok()) {
        endpoint["interval"] = json!(prometheus_duration(interval));
    }
    let key = |reference: &SecretKeyRef| json!({ "name": reference.name, "key": reference.key });
    if let Some(token) = serving.bearer.as_ref().and_then(|bearer| bearer.secret_key_ref.as_ref()) {
        endpoint["authorization"] = json!({ "type": "Bearer", "credentials": key(token) });
    }
    if let Some(tls) = &serving.tls {
        endpoint["scheme"] = json!("https");
        // Prometheus trusts the certificate itself, as the operator does, whatever authority has signed it.
        endpoint["tlsConfig"] = json!({
            "ca": { "secret": tls.cert.secret_key_ref.as_ref().map(key) },
            "serverName": monitor.server_name,
        });
    }
    json!({ "selector": { "matchLabels": names::selector(&plan.name) }, "podMetricsEndpoints": [endpoint] })
}

/// A duration as Prometheus reads it: whole numbers with one unit.
fn prometheus_duration(duration: Duration) -> String {
    match (duration.subsec_millis(), duration.as_secs()) {
        (0, seconds) => format!("{seconds}s"),
        _ => format!("{}ms", duration.as_millis()),
    }
}
