//! Servers that a pipeline talks to are absent at its start, come, go away, refuse it and come back: its pod is ready all
//! the while, what needs none of them goes on, and each part says what it lacks.

use std::net::SocketAddr;
use std::time::Duration;

use kube::ResourceExt;
use litejoin_tests::kafka::{KafkaCluster, Listener, PASSWORD, USER};
use litejoin_tests::kubernetes::node::NODE_ADDRESS;
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::{until, until_within};
use serde_json::{Value, json};

use crate::install::{Cluster, NAMESPACE};

/// What Kafka's clients say of a wrong password.
const CREDENTIALS: &str = "refuses our credentials";

/// How long a client may take to find a server that is back: its pauses between attempts grow.
const RECOVERY: Duration = Duration::from_secs(180);

/// The Kafka topics that are read and written.
const READ: &str = "read";
const WRITTEN: &str = "written";

/// The parts that talk to a server, and the reason for which each is not Ready without it.
const PARTS: [(&str, &str); 4] = [
    ("source/events", "Unreachable"),
    ("source/polled", "Unreachable"),
    ("sink/hook", "DeliveryFails"),
    ("sink/records", "DeliveryFails"),
];

fn manifest(brokers: &str, server: SocketAddr) -> String {
    let sasl = "sasl: {mechanism: SCRAM-SHA-256, username: {secretKeyRef: {name: kafka, key: username}}, \
                password: {secretKeyRef: {name: kafka, key: password}}}";
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: parts}}
spec:
  storage: {{shardCount: 1, retainOnDelete: false}}
  delivery: {{dlq: {{retryInterval: 1s, maxBackoff: 2s}}}}
  sources:
    - {{name: ingest, http: {{addr: ":8080", topics: [orders]}}}}
  joins:
    - {{name: all, query: "SELECT key FROM orders", sinks: [live]}}
    - {{name: others, query: "SELECT key FROM {READ} UNION ALL SELECT key FROM items", sinks: [live]}}
  sinks:
    - {{name: live, sse: {{addr: ":9100"}}}}
---
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {{name: events}}
spec: {{pipelineRef: {{name: parts}}, kafka: {{brokers: "{brokers}", topics: [{READ}], {sasl}}}}}
---
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {{name: polled}}
spec:
  pipelineRef: {{name: parts}}
  topic: items
  api: {{url: "http://{server}/items", keyPath: id, interval: 1s, maxBackoff: 2s}}
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {{name: hook}}
spec: {{pipelineRef: {{name: parts}}, joins: [all], http: {{url: "http://{server}/hook"}}}}
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {{name: records}}
spec: {{pipelineRef: {{name: parts}}, joins: [all], kafka: {{brokers: "{brokers}", topic: {WRITTEN}, {sasl}}}}}
"#
    )
}

/// Goes through the table of ARCHITECTURE's "Servers that are away" on a node.
pub(crate) async fn come_and_go(cluster: &Cluster) {
    let mut kafka = KafkaCluster::start_at(NODE_ADDRESS, 1).await;
    kafka.create_topic(READ, 1).await;
    kafka.create_topic(WRITTEN, 1).await;
    kafka.kill(0);
    let any = SocketAddr::new(NODE_ADDRESS.parse().expect("an address"), 0);
    let address = Server::start_at(any).await.close().await;

    let user = format!("--from-literal=username={USER}");
    cluster.kubectl(&["create", "secret", "generic", "kafka", &user, "--from-literal=password=wrong"]);
    cluster.apply(&manifest(&kafka.addresses(Listener::Sasl), address));
    cluster.wait_ready("pipeline/parts").await;
    let pod = cluster.pod("parts-0").await;
    lack_their_servers(cluster, "absent at the start").await;

    let server = serving(address).await;
    kafka.restart(0).await;
    are_refused(cluster, [("source/events", CREDENTIALS), ("sink/records", CREDENTIALS)]).await;
    let turned = json!({ "stringData": { "password": PASSWORD } }).to_string();
    cluster.kubectl(&["patch", "secret", "kafka", "--type=merge", "-p", &turned]);
    have_their_servers(cluster, "it has come").await;
    kafka.producer().send(READ, "by-kafka", Some("{}")).await;
    until("what both servers have", async || {
        let rows = snapshot(cluster, "others");
        (rows.contains("by-kafka") && rows.contains("item-1")).then_some(())
    })
    .await;
    assert!(server.received().iter().any(|request| request.path() == "/hook"), "results have come");
    until("results in Kafka", async || (!kafka.read(WRITTEN).await.is_empty()).then_some(())).await;

    server.close().await;
    kafka.kill(0);
    lack_their_servers(cluster, "gone away").await;

    let refusing = Server::start_at(address).await;
    refusing.behave(|_| Reply::status(401));
    are_refused(cluster, [("source/polled", "401"), ("sink/hook", "401")]).await;
    refusing.close().await;

    let _server = serving(address).await;
    kafka.restart(0).await;
    have_their_servers(cluster, "it is back").await;
    let after = cluster.pod("parts-0").await;
    assert_eq!(pod.uid(), after.uid(), "it is the same pod");
    let containers = after.status.and_then(|status| status.container_statuses).unwrap_or_default();
    assert!(containers.iter().all(|container| container.restart_count == 0), "and it was not started anew");
    cluster.kubectl(&[
        "delete",
        "pipeline/parts",
        "source/events",
        "source/polled",
        "sink/hook",
        "sink/records",
        "secret/kafka",
    ]);
}

/// Waits until each of these parts tells of its refusal, while messages are taken.
async fn are_refused(cluster: &Cluster, parts: [(&str, &str); 2]) {
    messages_are_taken(cluster, &format!("refused {}", parts[0].1)).await;
    for (part, refusal) in parts {
        until_within(RECOVERY, &format!("{part} to tell of {refusal:?}"), async || {
            let ready = ready(cluster, part)?;
            (ready["status"] == "False" && ready["message"].to_string().contains(refusal)).then_some(())
        })
        .await;
    }
}

/// A server with an item to poll, which takes results.
async fn serving(address: SocketAddr) -> Server {
    let server = Server::start_at(address).await;
    server.behave(|request| match request.path() {
        "/items" => Reply::json(&json!([{ "id": "item-1" }])),
        _ => Reply::status(200),
    });
    server
}

/// Waits until each part says what it lacks, while messages are taken and results come.
async fn lack_their_servers(cluster: &Cluster, when: &str) {
    messages_are_taken(cluster, when).await;
    for (part, reason) in PARTS {
        let told = until(&format!("{part} to be told ({when})"), async || {
            ready(cluster, part).filter(|ready| ready["status"] == "False" && ready["reason"] == reason)
        })
        .await;
        assert!(told["message"].to_string().contains(NODE_ADDRESS), "{when}: {part}: {told}");
    }
    until(&format!("the Pipeline to be Degraded ({when})"), async || {
        (condition(cluster, "pipeline/parts", "Degraded")?["status"] == "True").then_some(())
    })
    .await;
    assert_eq!(ready(cluster, "pipeline/parts").expect("it is told")["status"], "True", "{when}");
}

/// Posts a message, and waits for the result.
async fn messages_are_taken(cluster: &Cluster, when: &str) {
    let key = when.replace(' ', "-");
    let (url, message) = (
        format!("http://parts.{NAMESPACE}.svc.cluster.local:8080/ingest"),
        format!("--post-data={}", json!({ "topic": "orders", "key": key, "payload": {} })),
    );
    let post = ["wget", "-qO-", "--header=Content-Type: application/json", &message, &url];
    until(&format!("a message to be taken ({when})"), async || {
        cluster.in_shell(&post).contains("\"accepted\":1").then_some(())
    })
    .await;
    until(&format!("a result ({when})"), async || snapshot(cluster, "all").contains(&key).then_some(()))
        .await;
}

/// Waits until each part is Ready. A sink that has given up its results says so until the next is delivered.
async fn have_their_servers(cluster: &Cluster, when: &str) {
    messages_are_taken(cluster, when).await;
    for (part, _) in PARTS {
        let mut last = Value::Null;
        until_within(RECOVERY, &format!("{part} to be Ready ({when})"), async || {
            let ready = ready(cluster, part)?;
            if ready != last {
                eprintln!("{when}: {part}: {ready}");
                last.clone_from(&ready);
            }
            (ready["status"] == "True").then_some(())
        })
        .await;
    }
    until(&format!("the Pipeline to be whole ({when})"), async || {
        condition(cluster, "pipeline/parts", "Degraded").is_none().then_some(())
    })
    .await;
}

fn snapshot(cluster: &Cluster, join: &str) -> String {
    let url = format!("http://parts.{NAMESPACE}.svc.cluster.local:9100/snapshot?join={join}");
    cluster.in_shell(&["wget", "-q", "-O-", &url])
}

fn ready(cluster: &Cluster, what: &str) -> Option<Value> {
    condition(cluster, what, "Ready")
}

fn condition(cluster: &Cluster, what: &str, kind: &str) -> Option<Value> {
    let found: Value = serde_json::from_str(&cluster.kubectl(&["get", what, "-o", "json"])).ok()?;
    found["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
}
