//! The number of shards changes on a node: without consent it is refused, with it the data is moved, and whoever dies on the
//! way, nothing is lost.

use std::process::Command;

use litejoin_tests::wait::{until, until_within};
use serde_json::{Value, json};

use crate::install::{Cluster, NAMESPACE};

/// A pipeline of its own, whose data is moved while everything around it dies.
const HARDY: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: hardy}
spec:
  storage: {shardCount: 2, retainOnDelete: false}
  sources:
    - {name: ingest, http: {addr: ":8080", topics: [orders]}}
  joins:
    - {name: all, query: "SELECT key, payload->>'n' AS n FROM orders", sinks: [live]}
  sinks:
    - {name: live, sse: {addr: ":9100"}}
"#;

/// The example's data goes from 8 shards to 16, as the transcript shows.
pub(crate) async fn the_number_of_shards_changes(cluster: &Cluster) {
    cluster.say(
        "Where keys lie depends on the number of shards, so it can't simply be edited. The refusal names the block that \
         consents:",
    );
    let bare = r#"{"spec": {"storage": {"shardCount": 16}}}"#;
    cluster.show_refused(&["patch", "pipeline", "orders", "--type=merge", "-p", bare]);
    cluster.say(
        "With it the data is moved while the pipeline rests: copied, compared, and put in place in one step.",
    );
    let consent =
        r#"{"spec": {"storage": {"shardCount": 16, "reshard": {"fromShardCount": 8, "toShardCount": 16}}}}"#;
    cluster.show(&["patch", "pipeline", "orders", "--type=merge", "-p", consent]);
    done(cluster, "orders", 16).await;
    cluster.wait_ready("pipeline/orders").await;
    cluster.show(&[
        "get",
        "pipeline",
        "orders",
        "-o",
        "jsonpath={.status.reshard.phase}, {.status.layout.shardCount} shards",
    ]);
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;
}

/// Waits until a re-shard is done.
pub(crate) async fn done(cluster: &Cluster, pipeline: &str, shards: u64) {
    until_within(DONE, &format!("{pipeline} to have {shards} shards"), async || {
        let status = status(cluster, pipeline);
        let phase = status["reshard"]["phase"].as_str()?.to_owned();
        assert_ne!(phase, "Failed", "{status}");
        (phase == "Done" && status["layout"]["shardCount"] == shards).then_some(())
    })
    .await;
}

/// How long a re-shard may take beside all that dies.
const DONE: std::time::Duration = std::time::Duration::from_secs(240);

fn status(cluster: &Cluster, pipeline: &str) -> Value {
    let found: Value = serde_json::from_str(&cluster.kubectl(&["get", "pipeline", pipeline, "-o", "json"]))
        .unwrap_or_default();
    found["status"].clone()
}

/// Who dies, and in which phase.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Mover,
    Operator,
    Worker,
    Kubelet,
}

/// The data goes from number to number, and in each phase somebody is killed.
pub(crate) async fn whoever_dies_nothing_is_lost(cluster: &Cluster) {
    cluster.apply(HARDY);
    cluster.wait_ready("pipeline/hardy").await;
    let mut keys = 0;
    let (mut from, plan) = (
        2,
        [
            (5, "Job", Victim::Mover, "Copying"),
            (3, "Job", Victim::Operator, "Pausing"),
            (4, "Job", Victim::Operator, "Copying"),
            (2, "Job", Victim::Kubelet, "Copying"),
            (6, "Job", Victim::Operator, "Switching"),
            (1, "Job", Victim::Worker, "Switching"),
            (4, "Online", Victim::Operator, "Copying"),
            (7, "Online", Victim::Worker, "Copying"),
            (3, "Online", Victim::Kubelet, "Copying"),
            (5, "Online", Victim::Worker, "Switching"),
        ],
    );
    for (to, strategy, victim, phase) in plan {
        keys += 1;
        put(cluster, keys).await;
        let reshard = json!({ "fromShardCount": from, "toShardCount": to, "strategy": strategy });
        let storage = json!({ "shardCount": to, "reshard": reshard });
        let consent = json!({ "spec": { "storage": storage } }).to_string();
        cluster.kubectl(&["patch", "pipeline", "hardy", "--type=merge", "-p", &consent]);
        until(&format!("{phase} or what follows it"), async || {
            let now = status(cluster, "hardy")["reshard"].clone();
            let is_this = now["toShardCount"] == to && now["fromShardCount"] == from;
            (is_this && reached(now["phase"].as_str()?, phase)).then_some(())
        })
        .await;
        kill(cluster, victim);
        done(cluster, "hardy", to).await;
        cluster.wait_ready("pipeline/hardy").await;
        until(&format!("all {keys} keys after {victim:?} died in {phase}"), async || {
            let rows = snapshot(cluster);
            (1..=keys).all(|key| rows.contains(&format!("\"key\":\"k{key}\""))).then_some(())
        })
        .await;
        from = to;
    }
    cluster.kubectl(&["delete", "pipeline", "hardy"]);
}

/// Whether a phase is this one or a later one.
fn reached(now: &str, phase: &str) -> bool {
    const PHASES: [&str; 6] = ["Pending", "Pausing", "Copying", "Verifying", "Switching", "Done"];
    let place = |name: &str| PHASES.iter().position(|phase| *phase == name);
    place(now) >= place(phase)
}

fn kill(cluster: &Cluster, victim: Victim) {
    let by_command = |line: &str| {
        // Who is done already can't be killed any more.
        let _ = Command::new("pkill").args(["-KILL", "-f", line]).status();
    };
    match victim {
        Victim::Mover => by_command("litejoin reshard"),
        Victim::Operator => {
            by_command("litejoin-operator");
        }
        Victim::Worker => by_command("litejoin run"),
        Victim::Kubelet => cluster.node.restart_kubelet(),
    }
}

async fn put(cluster: &Cluster, key: usize) {
    let (url, message) = (
        format!("http://hardy.{NAMESPACE}.svc.cluster.local:8080/ingest"),
        format!(
            "--post-data={}",
            json!({ "topic": "orders", "key": format!("k{key}"), "payload": { "n": key } })
        ),
    );
    let post = ["wget", "-qO-", "--header=Content-Type: application/json", &message, &url];
    until("a message to be taken", async || cluster.in_shell(&post).contains("\"accepted\":1").then_some(()))
        .await;
}

fn snapshot(cluster: &Cluster) -> String {
    let url = format!("http://hardy.{NAMESPACE}.svc.cluster.local:9100/snapshot?join=all");
    cluster.in_shell(&["wget", "-q", "-O-", &url])
}
