//! A node is lost with its pod and its disk. With `onNodeLoss: Replace` the operator recreates both, and the replicated
//! data is restored; otherwise the status says what to do, and the operator changes nothing.

use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::results::Results;
use litejoin_tests::stores::litestream;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Launch, Worker};
use serde_json::json;

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

/// Returns a pipeline with its replica in a folder.
fn replicated(site: &ControllerSite, ports: &Ports) -> String {
    let Ports { admin, ingest, live } = ports;
    let replica = site.folder.path().join("replica");
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: orders}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: ":{admin}"}}
  replication: {{enabled: true, mode: embedded, replicaUrl: "file://{}", syncInterval: 200ms}}
  sources:
    - name: ingest
      http: {{addr: ":{ingest}", topics: [orders]}}
  joins:
    - {{name: all, query: "SELECT key AS id, payload->>'n' AS n FROM orders", keyColumn: id, sinks: [live]}}
  sinks:
    - name: live
      sse: {{addr: ":{live}"}}
"#,
        replica.display()
    )
}

#[tokio::test]
async fn what_was_on_a_lost_node_is_replaced_where_that_is_wanted() {
    let site = ControllerSite::new().await;
    let operator = site.operator_with(&["--lease-seconds", "3", "--node-loss-seconds", "1"]);
    let ports = Ports::free();
    site.apply(&replicated(&site, &ports)).await;
    let worker = site.run_pod_as("orders", launch(&site)).await;
    let rows: Vec<_> = (0..50).map(|n| message("orders", &format!("o{n}"), json!({ "n": n }))).collect();
    let epoch = worker.ingest().send(&rows).await;
    let (_, before) = worker.snapshot("live", "all", epoch).await;
    assert_eq!(Results::default().changes(&before).len(), rows.len());
    site.wait_for(Kind::Pipeline, "orders", "ReplicationHealthy", "True", "Replicating").await;
    replicated_up_to_now(&worker).await;
    let config: Api<ConfigMap> = site.api();
    until("the word that there is a replica", async || {
        let data = config.get("orders").await.ok()?.data?;
        (data.get("expect-replica")? == "true").then_some(())
    })
    .await;

    worker.kill().await;
    let pods: Api<Pod> = site.api();
    let claims: Api<PersistentVolumeClaim> = site.api();
    let lost_pod = pods.get("orders-0").await.expect("the pod is there");
    let lost_claim = claims.get("data-orders-0").await.expect("the claim is there");
    let node = site.lose_node("orders-0").await;

    // The status names the command; the user decides.
    site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "False", "NodeLost").await;
    let pipeline = site.ours(Kind::Pipeline).get("orders").await.expect("it is there");
    let said = condition_of(&pipeline, "WorkerReady").expect("it is said")["message"].to_string();
    for part in [
        format!(
            "the node {node} of the pod orders-0 is lost: it has not been ready since 2026-01-01T00:00:00Z"
        ),
        format!("kubectl delete pod orders-0 -n {} --force --grace-period=0", site.namespace),
        format!("kubectl delete pvc data-orders-0 -n {} --wait=false", site.namespace),
    ] {
        assert!(said.contains(&part), "{said}");
    }
    assert_eq!(condition_of(&pipeline, "Stalled").expect("it waits for somebody")["reason"], "NodeLost");
    assert_eq!(condition_of(&pipeline, "ReplicationHealthy").expect("it is said")["status"], "Unknown");
    assert_eq!(pods.get("orders-0").await.expect("it is still there").uid(), lost_pod.uid());
    assert_eq!(claims.get("data-orders-0").await.expect("it is still there").uid(), lost_claim.uid());

    // A volume is not given up for a replica that has never been complete.
    let replace = async |replica: &str| {
        let url = format!("file://{}", site.folder.path().join(replica).display());
        let spec = json!({ "storage": { "onNodeLoss": "Replace" }, "replication": { "replicaUrl": url } });
        let patch = Patch::Merge(json!({ "spec": spec }));
        let patched = site.ours(Kind::Pipeline).patch("orders", &PatchParams::default(), &patch).await;
        patched.expect("a Pipeline can be changed");
    };
    replace("moved").await;
    until("the word that it has moved", async || {
        let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
        let said = condition_of(&pipeline, "WorkerReady")?["message"].to_string();
        said.contains("the replica has moved and is not whole yet at its new place").then_some(())
    })
    .await;
    assert_eq!(claims.get("data-orders-0").await.expect("it is still there").uid(), lost_claim.uid());

    // With a complete replica the operator replaces pod and volume.
    replace("replica").await;
    another(&pods, "orders-0", &lost_pod).await;
    another(&claims, "data-orders-0", &lost_claim).await;
    empty_volume(&site, &config).await;
    let worker = site.run_pod_as("orders", launch(&site)).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let (_, after) = worker.snapshot("live", "all", 0).await;
    after.assert_same(&before, "restored");
    site.wait_for(Kind::Pipeline, "orders", "ReplicationHealthy", "True", "Replicating").await;
    worker.stop().await;
    operator.stop().await;
    let nodes: Api<Node> = Api::all(site.client.clone());
    nodes.delete(&node, &DeleteParams::default()).await.expect("it can be deleted");
}

/// Empties the volume, once the config is there that the next pod mounts.
async fn empty_volume(site: &ControllerSite, config: &Api<ConfigMap>) {
    // A kubelet brings a changed config to a pod later; the one that is played here mounts it once.
    until("the config with the place of the replica", async || {
        let data = config.get("orders").await.ok()?.data?;
        (!data["pipeline.yaml"].contains("/moved")).then_some(())
    })
    .await;

    // Litestream outlives its worker by a moment, and may write a last file into the old one.
    until("the old volume to be gone", async || std::fs::remove_dir_all(site.folder.data_dir()).ok()).await;
}

/// Returns the launch of a worker with the Litestream of the tests.
fn launch(site: &ControllerSite) -> Launch {
    let program = litestream().display().to_string();
    site.folder.run(["--watch", "--leave-out-invalid"]).with_variable("LITEJOIN_LITESTREAM", &program)
}

/// Waits until the replica has all messages committed before the call.
async fn replicated_up_to_now(worker: &Worker) {
    let complete = async || worker.status().await["replication"]["completeUntil"].as_i64();
    // The second sync round from now on begins after the call.
    for _ in 0..2 {
        let before = complete().await;
        until("a pass", async || (complete().await > before).then_some(())).await;
    }
}

/// Waits until another object of this name exists.
async fn another<K>(api: &Api<K>, name: &str, lost: &K)
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    until(&format!("another {name}"), async || {
        let found = api.get_opt(name).await.ok()??;
        (found.uid() != lost.uid() && found.meta().deletion_timestamp.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_told() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    // Kubernetes takes back the pod's readiness, and the containers stay as the node told of them last.
    let container = json!({
        "name": "worker", "ready": true, "restartCount": 0, "image": "litejoin", "imageID": "",
        "state": { "running": {} },
    });
    let status = json!({ "status": {
        "conditions": [{ "type": "Ready", "status": "False" }], "containerStatuses": [container],
    }});
    let pods: Api<Pod> = site.api();
    let patched = pods.patch_status("orders-0", &PatchParams::default(), &Patch::Merge(&status)).await;
    patched.expect("a pod has a status");
    site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "False", "NodeNotReady").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "NodeNotReady").await;
    site.set_pod("orders-0", "True").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    worker.stop().await;
    operator.stop().await;
}
