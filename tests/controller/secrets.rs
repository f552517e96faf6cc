//! A document that names a missing Secret is reconciled as soon as the Secret appears, and again when it is deleted.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, DeleteParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::server::Server;
use litejoin_tests::wait::until;
use serde_json::json;

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

const DOCUMENTS: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec: {}
---
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {name: theirs}
spec:
  pipelineRef: {name: orders}
  topic: theirs
  api: {url: http://a, keyPath: id, interval: 1m, auth: {bearer: {secretKeyRef: {name: door, key: token}}}}
";

#[tokio::test]
async fn a_missing_secret_is_noticed_when_it_comes() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(DOCUMENTS).await;
    let reported = async |message: &str| {
        site.wait_for(Kind::Source, "theirs", "ResolvedRefs", "False", "RefNotFound").await;
        let what = format!("{message:?} to be told");
        until(&what, async || {
            let source = site.ours(Kind::Source).get("theirs").await.ok()?;
            (condition_of(&source, "ResolvedRefs")?["message"] == message).then_some(())
        })
        .await;
    };
    // Only the Secret's own event wakes the operator here: its resync interval is five minutes.
    reported("spec: there is no Secret \"door\" in this namespace; create it").await;
    site.secret("door", &[("password", "hunter2")]).await;
    reported("spec: the Secret \"door\" has no key \"token\"; add it").await;
    site.secret("door", &[("token", "hunter2")]).await;
    site.wait_for(Kind::Source, "theirs", "ResolvedRefs", "True", "ResolvedRefs").await;
    let secrets: Api<Secret> = site.api();
    secrets.delete("door", &DeleteParams::default()).await.expect("it is there");
    reported("spec: there is no Secret \"door\" in this namespace; create it").await;
    operator.stop().await;
}

#[tokio::test]
async fn a_sink_whose_secret_goes_and_comes_back_runs_on() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let server = Server::start().await;
    let sink = hook(&server.url("/hook"), "door");
    site.secret("door", &[("token", "hunter2")]).await;
    site.apply(&(orders(&Ports::free()) + &sink)).await;
    site.wait_for(Kind::Pipeline, "orders", "ConfigValid", "True", "Valid").await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Sink, "hook", "Ready", "True", "Ready").await;
    let sets: Api<StatefulSet> = site.api();
    let before = sets.get("orders").await.expect("it is there").metadata.generation;
    let hash = worker.status().await["config"]["hash"].clone();

    let secrets: Api<Secret> = site.api();
    secrets.delete("door", &DeleteParams::default()).await.expect("it is there");
    site.wait_for(Kind::Sink, "hook", "ResolvedRefs", "False", "RefNotFound").await;
    site.wait_for(Kind::Sink, "hook", "Programmed", "True", "Programmed").await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "RefNotFound").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.secret("door", &[("token", "correct horse")]).await;
    site.wait_for(Kind::Sink, "hook", "Ready", "True", "Ready").await;
    site.wait_without(Kind::Pipeline, "orders", "Degraded").await;
    assert_eq!(sets.get("orders").await.expect("it is there").metadata.generation, before);
    site.mount("orders").await;
    assert_eq!(worker.status().await["config"]["hash"], hash);
    worker.stop().await;
    operator.stop().await;
}

/// A sink that shows a token.
fn hook(url: &str, secret: &str) -> String {
    format!(
        r#"
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {{name: hook}}
spec:
  pipelineRef: {{name: orders}}
  joins: [enriched]
  http: {{url: "{url}", auth: {{bearer: {{secretKeyRef: {{name: {secret}, key: token}}}}}}}}
"#
    )
}

#[tokio::test]
async fn a_secret_that_comes_turns_and_goes_makes_no_other_pod() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let ports = Ports::free();
    let server = Server::start().await;
    site.apply(&orders(&ports)).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let (sets, pods): (Api<StatefulSet>, Api<Pod>) = (site.api(), site.api());
    let template = async || sets.get("orders").await.expect("it is there").spec.expect("it has one").template;
    let (before, pod) = (template().await, pods.get("orders-0").await.expect("it is there").metadata.uid);
    let shown = async |token: &str| {
        let mut number = 0;
        until(&format!("{token} to be shown"), async || {
            site.mount("orders").await;
            number += 1;
            let key = format!("{token} {number}");
            worker.ingest().send(&[message("orders", &key, json!({ "customer_id": "c1" }))]).await;
            let received = server.received();
            let authorization = received.last()?.headers.get("authorization")?;
            (*authorization == format!("Bearer {token}")).then_some(())
        })
        .await;
    };

    site.secret("door", &[("token", "hunter2")]).await;
    site.apply(&hook(&server.url("/hook"), "door")).await;
    until("the sink to be programmed", async || {
        site.mount("orders").await;
        let sink = site.ours(Kind::Sink).get("hook").await.ok()?;
        (condition_of(&sink, "Ready")?["status"] == "True").then_some(())
    })
    .await;
    shown("hunter2").await;
    site.secret("door", &[("token", "correct horse")]).await;
    shown("correct horse").await;
    site.secret("gate", &[("token", "battery")]).await;
    site.apply(&hook(&server.url("/hook"), "gate")).await;
    shown("battery").await;
    site.ours(Kind::Sink).delete("hook", &DeleteParams::default()).await.expect("it is there");
    let secrets: Api<Secret> = site.api();
    until("the gathered keys to go", async || {
        secrets.get_opt("orders-litejoin").await.ok()?.is_none().then_some(())
    })
    .await;
    assert_eq!(template().await, before);
    assert_eq!(pods.get("orders-0").await.expect("it is there").metadata.uid, pod);
    worker.stop().await;
    operator.stop().await;
}
