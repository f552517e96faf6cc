//! The operator reaches a worker whose admin address needs a token and uses TLS, with the Secrets of the Pipeline, and
//! accepts only the worker that these Secrets belong to.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::certificates::Authority;
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use serde_json::json;

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

/// Returns orders whose admin address needs a token and uses TLS, with further fields of `admin`.
fn guarded(ports: &Ports, admin: &str) -> String {
    let open = format!("admin: {{addr: \":{}\"", ports.admin);
    orders(ports).replacen(&open, &format!("{open}, {admin}"), 1)
}

const BY_SECRETS: &str = "auth: {bearer: {secretKeyRef: {name: door, key: token}}}, \
    tls: {cert: {secretKeyRef: {name: door, key: tls.crt}}, key: {secretKeyRef: {name: door, key: tls.key}}}";

#[tokio::test]
async fn a_worker_with_token_and_certificate_is_asked() {
    let site = ControllerSite::new().await;
    let operator = site.operator_with(&["--lease-seconds", "3", "--log", "trace"]);
    let authority = Authority::new();
    // The names in the certificate need not match the pod.
    let first = authority.sign(&["orders.example"]);
    // A line end that an editor has added is not part of the token.
    let values = [("token", "hunter2\n"), ("tls.crt", first.cert.as_str()), ("tls.key", first.key.as_str())];
    site.secret("door", &values).await;
    site.apply(&guarded(&Ports::free(), BY_SECRETS)).await;
    site.wait_for(Kind::Pipeline, "orders", "ConfigValid", "True", "Valid").await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Sink, "console", "Programmed", "True", "Programmed").await;

    // Until kubelet has updated the Secret in the pod, the worker uses the previous token and certificate.
    let second = authority.sign(&["orders.example"]);
    site.secret("door", &[("token", "correct horse"), values[1], values[2]]).await;
    let late = "a changed Secret comes to the pod within two minutes";
    reported(&site, &format!("the worker does not take the token that spec.admin.auth.bearer names; {late}"))
        .await;
    site.secret("door", &[("token", "correct horse"), ("tls.crt", &second.cert), ("tls.key", &second.key)])
        .await;
    reported(&site, &format!("the worker shows another certificate than spec.admin.tls.cert names; {late}"))
        .await;
    site.mount("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;

    let log = operator.stop().await.stderr;
    for secret in ["hunter2", "correct horse"] {
        assert!(!log.contains(secret), "no log tells a token");
    }
    worker.stop().await;
}

/// Waits until the Pipeline, which is reconciled again, reports this message.
async fn reported(site: &ControllerSite, message: &str) {
    let pipelines = site.ours(Kind::Pipeline);
    let touch = json!({ "metadata": { "annotations": { "looked-at-for": message } } });
    let touched = pipelines.patch("orders", &PatchParams::default(), &Patch::Merge(&touch)).await;
    touched.expect("a Pipeline can be annotated");
    until(message, async || {
        let ready = condition_of(&pipelines.get("orders").await.ok()?, "Ready")?;
        (ready["reason"] == "WorkerSilent" && ready["message"] == message).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_nobody_outside_of_the_pod_can_open_is_refused() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&guarded(
        &Ports::free(),
        "auth: {bearer: {env: \"${TOKEN}\"}}, tls: {cert: {path: a}, key: {path: b}, clientCa: {path: c}}",
    ))
    .await;
    site.wait_for(Kind::Pipeline, "orders", "ConfigValid", "False", "Conflict").await;
    let pipeline = site.ours(Kind::Pipeline).get("orders").await.expect("it is there");
    let message = condition_of(&pipeline, "ConfigValid").expect("it is told")["message"].clone();
    assert_eq!(
        message,
        "spec.admin.auth.bearer.env: in a cluster, the operator needs the token too; write secretKeyRef; \
         spec.admin.tls.cert.path: in a cluster, the operator knows the worker by its certificate; write secretKeyRef; \
         spec.admin.tls.clientCa: in a cluster, kubelet asks for health and has no certificate to show; remove it and \
         write auth"
    );
    operator.stop().await;
}

#[tokio::test]
async fn what_answers_in_a_pod_sends_the_operator_nowhere() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let (pretender, victim) = (Server::start().await, Server::start().await);
    let elsewhere = victim.url("/status");
    pretender.behave(move |_| Reply::status(307).with_header("location", &elsewhere));
    site.apply(&orders(&Ports { admin: pretender.address().port(), ..Ports::free() })).await;
    let pods: Api<Pod> = site.api();
    until("the pod", async || pods.get_opt("orders-0").await.ok()?).await;
    site.bind_claim("orders").await;
    site.set_pod("orders-0", "True").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "WorkerSilent").await;
    reported(
        &site,
        "what answers in the pod is no worker: it sends the operator elsewhere (307 Temporary Redirect), where that \
         does not go",
    )
    .await;
    assert!(!pretender.received().is_empty());
    assert!(victim.received().is_empty(), "{:?}", victim.received());
    operator.stop().await;
}
