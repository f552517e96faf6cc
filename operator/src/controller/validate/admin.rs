//! Settings of the admin address that work on a laptop and not in a cluster.

use litejoin_crds::address::Address;
use litejoin_crds::{Complaint, Plan, Reason};

/// Complains about settings that keep out kubelet, which asks for health, or the operator, which asks for the config in
/// force.
pub(super) fn complaints(plan: &Plan) -> Vec<Complaint> {
    let serving = &plan.admin.serving;
    let reached =
        Address::parse(&plan.admin.addr).is_ok_and(|address| address.port != 0 && !address.is_loopback());
    let env = serving.bearer.as_ref().is_some_and(|bearer| bearer.env.is_some());
    let path = serving.tls.as_ref().is_some_and(|tls| tls.cert.path.is_some());
    let clients = serving.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let wrong = [
        (
            !reached,
            "addr",
            Reason::InvalidAddress,
            "in a cluster, health is asked for from outside of the pod; write a port alone, such as \":9090\"",
        ),
        (
            env,
            "auth.bearer.env",
            Reason::Conflict,
            "in a cluster, the operator needs the token too; write secretKeyRef",
        ),
        (
            path,
            "tls.cert.path",
            Reason::Conflict,
            "in a cluster, the operator knows the worker by its certificate; write secretKeyRef",
        ),
        (
            clients,
            "tls.clientCa",
            Reason::Conflict,
            "in a cluster, kubelet asks for health and has no certificate to show; remove it and write auth",
        ),
    ];
    let wrong = wrong.into_iter().filter(|(wrong, ..)| *wrong);
    wrong
        .map(|(_, field, reason, message)| {
            Complaint::error(0, format!("spec.admin.{field}"), reason, message)
        })
        .collect()
}
