//! What comes and goes beside a running pod: Secrets, which make no other pod, and the volume claim, whose loss waits for
//! consent.

use kube::ResourceExt;
use litejoin_tests::wait::until;

use crate::install::{Cluster, NAMESPACE};

/// A source that wants a token.
const GUARDED: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {name: guarded}
spec:
  pipelineRef: {name: orders}
  http: {addr: ":8081", topics: [orders], auth: {bearer: {secretKeyRef: {name: gate, key: token}}}}
"#;

/// A pipeline without a replica.
const FRAIL: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: frail}
spec:
  storage: {shardCount: 1, retainOnDelete: false}
  sources:
    - {name: ingest, http: {addr: ":8080", topics: [orders]}}
  joins:
    - {name: all, query: SELECT key FROM orders, sinks: [live]}
  sinks:
    - {name: live, sse: {addr: ":9100"}}
"#;

/// A Secret comes with a source, turns, and goes with it, by the files that kubelet keeps: the pod stays.
pub(crate) async fn secrets_come_turn_and_go(cluster: &Cluster) {
    let before = cluster.pod("orders-0").await;
    cluster.apply(GUARDED);
    until("the missing Secret to be told", async || {
        let said = condition(cluster, "source/guarded", "ResolvedRefs");
        said.contains("there is no Secret \"gate\"").then_some(())
    })
    .await;
    cluster.kubectl(&["create", "secret", "generic", "gate", "--from-literal=token=hunter2"]);
    cluster.wait_ready("source/guarded").await;
    accepted(cluster, "hunter2").await;
    let turned = r#"{"stringData": {"token": "correct-horse"}}"#;
    cluster.kubectl(&["patch", "secret", "gate", "--type=merge", "-p", turned]);
    accepted(cluster, "correct-horse").await;
    assert!(!posted(cluster, "hunter2"), "the token of before opens nothing");
    cluster.kubectl(&["delete", "source/guarded", "secret/gate"]);
    until("the source to go", async || (!posted(cluster, "correct-horse")).then_some(())).await;
    let after = cluster.pod("orders-0").await;
    assert_eq!(before.uid(), after.uid(), "it is the same pod");
}

async fn accepted(cluster: &Cluster, token: &str) {
    until(&format!("{token} to open the source"), async || posted(cluster, token).then_some(())).await;
}

/// Whether a message with this token is accepted.
fn posted(cluster: &Cluster, token: &str) -> bool {
    let (token, url) = (
        format!("--header=Authorization: Bearer {token}"),
        format!("http://orders.{NAMESPACE}.svc.cluster.local:8081/ingest"),
    );
    let message = r#"--post-data={"topic": "orders", "key": "by-token", "payload": {"amount": 1}}"#;
    let json = "--header=Content-Type: application/json";
    let answer = cluster.in_shell(&["wget", "-qO-", &token, json, message, &url]);
    answer.contains("\"accepted\":1")
}

/// A claim is deleted with its data: that is told before and after, and nothing begins empty without consent.
pub(crate) async fn a_lost_claim_waits_for_consent(cluster: &Cluster) {
    cluster.apply(FRAIL);
    cluster.wait_ready("pipeline/frail").await;
    let noted = "jsonpath={.status.layout.volumeClaimUid}";
    let lost = until("the claim to be noted", async || {
        Some(cluster.kubectl(&["get", "pipeline", "frail", "-o", noted])).filter(|uid| !uid.is_empty())
    })
    .await;
    // The worker is told before its pod goes.
    until("the worker to be told", async || {
        let config = cluster.kubectl(&["get", "configmap", "frail", "-o", "jsonpath={.data}"]);
        config.contains(&lost).then_some(())
    })
    .await;
    cluster.kubectl(&["delete", "pvc", "data-frail-0", "--wait=false"]);
    until("the deletion to be told", async || {
        condition(cluster, "pipeline/frail", "StorageReady").contains("is being deleted").then_some(())
    })
    .await;
    cluster.kubectl(&["delete", "pod", "frail-0"]);
    let remedy = format!("write spec.storage.acceptLoss: {lost} to begin empty");
    until("the loss to be told", async || {
        condition(cluster, "pipeline/frail", "Stalled").contains(&remedy).then_some(())
    })
    .await;
    until("the worker to refuse an empty volume", async || {
        let state = "jsonpath={.status.containerStatuses[0].lastState.terminated.message}";
        cluster.kubectl(&["get", "pod", "frail-0", "-o", state]).contains(&remedy).then_some(())
    })
    .await;
    let accepted = format!(r#"{{"spec": {{"storage": {{"acceptLoss": "{lost}"}}}}}}"#);
    cluster.kubectl(&["patch", "pipeline", "frail", "--type=merge", "-p", &accepted]);
    cluster.wait_ready("pipeline/frail").await;
    cluster.kubectl(&["delete", "pipeline", "frail"]);
}

/// The message of a condition; empty if it is not there.
fn condition(cluster: &Cluster, what: &str, kind: &str) -> String {
    let message = format!("jsonpath={{.status.conditions[?(@.type=='{kind}')].message}}");
    cluster.kubectl(&["get", what, "-o", &message])
}
