//! A pipeline from its first document to its last: the objects that are built, the status, that the operator makes no
//! needless write, and that nothing stays behind.

use std::pin::pin;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::wait::until;
use litejoin_tests::worker::get;
use serde_json::json;

use crate::site::{ControllerSite, Ports, condition_of, names};

/// Returns orders with their customers, as one Pipeline and a Sink beside it.
pub(crate) fn orders(ports: &Ports) -> String {
    let Ports { admin, ingest, live } = ports;
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: orders}}
spec:
  storage: {{shardCount: 2, retainOnDelete: false}}
  admin: {{addr: ":{admin}"}}
  sources:
    - name: ingest
      http: {{addr: ":{ingest}", topics: [orders, customers]}}
  joins:
    - name: enriched
      query: |
        SELECT o.key AS order_id, c.payload->>'name' AS customer
        FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer_id'
      keyColumn: order_id
      sinks: [live]
  sinks:
    - name: live
      sse: {{addr: ":{live}"}}
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {{name: console}}
spec:
  pipelineRef: {{name: orders}}
  joins: [enriched]
  stdout: {{}}
"#
    )
}

#[tokio::test]
async fn a_pipeline_comes_changes_and_goes() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let ports = Ports::free();
    site.apply(&orders(&ports)).await;
    site.wait_for(Kind::Pipeline, "orders", "ConfigValid", "True", "Valid").await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Sink, "console", "Ready", "True", "Ready").await;

    let all = ListParams::default().labels("litejoin.io/pipeline=orders");
    let services: Api<Service> = site.api();
    let services = services.list(&all).await.expect("services can be listed").items;
    assert_eq!(names(&services), ["orders", "orders-headless"]);

    // A change elsewhere causes no needless write.
    site.proxy.reset(None);
    let reconciled = reconciles(&operator).await;
    let touch = json!({ "metadata": { "annotations": { "note": "nothing to us" } } });
    let pipelines = site.ours(Kind::Pipeline);
    let touched = pipelines.patch("orders", &PatchParams::default(), &Patch::Merge(&touch)).await;
    touched.expect("a Pipeline can be annotated");
    until("a look at it", async || (reconciles(&operator).await > reconciled).then_some(())).await;
    assert_eq!(site.proxy.writes(), Vec::<String>::new(), "a settled pipeline costs no write");

    // The worker takes up a new join without another pod.
    let pods: Api<Pod> = site.api();
    let before = pods.get("orders-0").await.expect("the pod is there");
    site.apply(
        r"
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: names}
spec:
  pipelineRef: {name: orders}
  query: SELECT key AS id, payload->>'name' AS name FROM customers
  sinks: [console]
",
    )
    .await;
    until("the pod to be told", async || {
        let pod = pods.get("orders-0").await.ok()?;
        pod.annotations().contains_key("litejoin.io/config").then_some(())
    })
    .await;
    site.mount("orders").await;
    site.wait_for(Kind::Join, "names", "Programmed", "True", "Programmed").await;
    site.wait_for(Kind::Join, "names", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let after = pods.get("orders-0").await.expect("the pod is there");
    assert_eq!(before.uid(), after.uid(), "a join needs no other pod");

    // A restarted operator finds all objects as desired.
    operator.stop().await;
    site.proxy.reset(None);
    let operator = site.operator();
    until("the new operator's look", async || (reconciles(&operator).await > 0).then_some(())).await;
    assert_eq!(site.proxy.writes(), Vec::<String>::new(), "a restart of the operator writes nothing");

    // Owned objects go with their owner; the child stays and reports the missing Pipeline.
    pipelines.delete("orders", &DeleteParams::default()).await.expect("it can be deleted");
    until("everything to go", async || {
        let left = [
            count::<StatefulSet>(&site, &all).await?,
            count::<ConfigMap>(&site, &all).await?,
            count::<Service>(&site, &all).await?,
            count::<ServiceAccount>(&site, &all).await?,
        ];
        (left == [0; 4]).then_some(())
    })
    .await;
    // The Pipeline has `retainOnDelete: false`.
    let claims: Api<PersistentVolumeClaim> = site.api();
    until("the claim to go", async || claims.get_opt("data-orders-0").await.ok()?.is_none().then_some(()))
        .await;
    site.wait_for(Kind::Sink, "console", "ResolvedRefs", "False", "PipelineNotFound").await;
    operator.stop().await;
    worker.stop().await;
}

async fn count<K>(site: &ControllerSite, which: &ListParams) -> Option<usize>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    Some(site.api::<K>().list(which).await.ok()?.items.len())
}

/// Returns how many reconciles an operator has finished, by its metrics.
pub(crate) async fn reconciles(operator: &litejoin_tests::worker::Worker) -> u64 {
    let address = until("the operator to serve", async || {
        let log = operator.log();
        litejoin_tests::worker::addresses(&log.lines().map(str::to_owned).collect::<Vec<_>>())
            .get("admin")
            .copied()
    })
    .await;
    let (_, text) = get(&format!("http://{address}/metrics")).await;
    let line = text.lines().find_map(|line| line.strip_prefix("litejoin_operator_reconciles_total "));
    line.and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn another_image_is_not_told_to_be_ready_before_its_pod_is() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;

    let pipelines = site.ours(Kind::Pipeline);
    let name = ListParams::default().fields("metadata.name=orders");
    let since = pipelines.list(&name).await.expect("it can be listed").metadata.resource_version;
    let (one, since) = (WatchParams::default().fields("metadata.name=orders"), since.unwrap_or_default());
    let mut changes = pin!(pipelines.watch(&one, &since).await.expect("it can be watched"));
    let image = Patch::Merge(json!({ "spec": { "image": "litejoin:that-no-one-has" } }));
    let changed = pipelines.patch("orders", &PatchParams::default(), &image).await;
    let generation = changed.expect("a Pipeline can be changed").metadata.generation;
    // Check every status until the pod is replaced.
    loop {
        let Some(Ok(WatchEvent::Modified(pipeline))) = changes.next().await else {
            panic!("the watch has ended")
        };
        if pipeline.data["status"]["observedGeneration"].as_i64() != generation {
            continue;
        }
        let ready = condition_of(&pipeline, "Ready").expect("it is told");
        assert_eq!(ready["status"], "False", "{ready}");
        if !["Applying", "RollingOut"].contains(&ready["reason"].as_str().expect("a reason")) {
            break;
        }
    }
    worker.stop().await;
    operator.stop().await;
}
