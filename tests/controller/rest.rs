//! Rest that somebody has asked for is an end, and nothing to wait for: each kind is then what kstatus calls Current, so
//! `kubectl wait`, Flux and Argo CD come to an end.

use kube::api::{DynamicObject, Patch, PatchParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::wait::until;
use serde_json::{Value, json};

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

/// A child of each kind.
const CHILDREN: &str = r"
---
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {name: theirs}
spec:
  pipelineRef: {name: orders}
  topic: orders
  api: {url: http://127.0.0.1:1, keyPath: id, interval: 1h}
---
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: all}
spec: {pipelineRef: {name: orders}, query: SELECT key AS id FROM orders, sinks: [live]}
---
apiVersion: litejoin.io/v1alpha1
kind: Window
metadata: {name: hourly}
spec:
  pipelineRef: {name: orders}
  type: tumbling
  size: 1h
  topic: orders
  query: SELECT count(*) AS n FROM orders
  sinks: [live]
";

/// One document of each kind.
const ALL: [(Kind, &str); 5] = [
    (Kind::Pipeline, "orders"),
    (Kind::Source, "theirs"),
    (Kind::Join, "all"),
    (Kind::Window, "hourly"),
    (Kind::Sink, "console"),
];

#[tokio::test]
async fn what_is_suspended_or_paused_is_current() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&(orders(&Ports::free()) + CHILDREN)).await;
    let spec = async |kind: Kind, name: &str, spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let patched = site.ours(kind).patch(name, &PatchParams::default(), &patch).await;
        patched.unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    spec(Kind::Pipeline, "orders", json!({ "suspend": true })).await;
    for (kind, name) in ALL {
        current(&site, kind, name, "Suspended").await;
    }
    spec(Kind::Pipeline, "orders", json!({ "suspend": false })).await;
    let worker = site.run_pod("orders").await;
    // The server of this source is away, which is nobody else's business.
    for (kind, name) in ALL.into_iter().filter(|(kind, _)| *kind != Kind::Source) {
        current(&site, kind, name, "Ready").await;
    }
    spec(Kind::Pipeline, "orders", json!({ "reconciliationPaused": true })).await;
    current(&site, Kind::Pipeline, "orders", "Paused").await;
    for (kind, name) in [(Kind::Join, "all"), (Kind::Window, "hourly")] {
        spec(kind, name, json!({ "query": "SELECT count(*) AS id FROM orders" })).await;
        current(&site, kind, name, "Paused").await;
    }
    until("the Pipeline to say what is held back", async || {
        let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
        let said = condition_of(&pipeline, "Ready")?["message"].as_str()?.to_owned();
        said.contains("holds back what was changed").then_some(())
    })
    .await;
    spec(Kind::Pipeline, "orders", json!({ "reconciliationPaused": false })).await;
    until("the config to change", async || {
        site.mount("orders").await;
        let window = site.ours(Kind::Window).get("hourly").await.ok()?;
        (condition_of(&window, "Ready")?["reason"] == "Ready" && is_current(&window)).then_some(())
    })
    .await;
    worker.stop().await;
    operator.stop().await;
}

/// Waits until a document is Current for this reason.
async fn current(site: &ControllerSite, kind: Kind, name: &str, reason: &str) {
    site.wait_for(kind, name, "Ready", "True", reason).await;
    until(&format!("{} {name} to be current", kind.as_str()), async || {
        let object = site.ours(kind).get(name).await.ok()?;
        (is_current(&object) && condition_of(&object, "Ready")?["reason"] == reason).then_some(())
    })
    .await;
}

/// Whether kstatus calls an object Current, by its rules for objects of unknown kinds.
fn is_current(object: &DynamicObject) -> bool {
    let status = &object.data["status"];
    let has = |kind: &str, value: &str| {
        condition_of(object, kind).is_some_and(|condition| condition["status"] == value)
    };
    object.metadata.deletion_timestamp.is_none()
        && status["observedGeneration"].as_i64() == object.metadata.generation
        && !has("Reconciling", "True")
        && !has("Stalled", "True")
        && has("Ready", "True")
}
