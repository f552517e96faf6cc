//! Authentication and encryption towards Kafka, and the errors where that fails.

use litejoin_crds::worker_status::DegradedPart;
use litejoin_tests::certificates::Authority;
use litejoin_tests::kafka::{self, KafkaCluster, Listener, PASSWORD, USER};
use litejoin_tests::server::Server;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Launch, Worker, WorkerSite, get};
use serde_json::json;

use super::{ALL_ORDERS, LIVE, manifest, unique};

/// A pipeline from one Kafka topic to another, over connections as `security` says.
fn pipeline(brokers: &str, from: &str, to: &str, security: &str) -> String {
    manifest(
        &format!(
            r#"    - {{name: events, topic: orders, kafka: {{brokers: "{brokers}", topics: ["{from}"]{security}}}}}"#
        ),
        ALL_ORDERS,
        &format!(r#"    - {{name: out, kafka: {{brokers: "{brokers}", topic: "{to}"{security}}}}}"#),
    )
}

fn sasl(mechanism: &str) -> String {
    format!(
        r#", sasl: {{mechanism: {mechanism}, username: {{env: "${{KAFKA_USER}}"}}, password: {{env: "${{KAFKA_PASSWORD}}"}}}}"#
    )
}

fn with_credentials(site: &WorkerSite, password: &str) -> Launch {
    site.run([]).with_variable("KAFKA_USER", USER).with_variable("KAFKA_PASSWORD", password)
}

/// Holds the worker to being ready, whatever other servers do.
async fn assert_ready(worker: &Worker, when: &str) {
    let (status, text) = get(&worker.url("admin", "/readyz")).await;
    assert_eq!(status, 200, "{when}: {text}");
}

/// Sees one record go all the way.
async fn assert_it_flows(cluster: &KafkaCluster, site: &WorkerSite, (from, to): (&str, &str), what: &str) {
    let worker = with_credentials(site, PASSWORD).start().await;
    let out = cluster.follow(to);
    cluster.producer().send(from, "a", Some("1")).await;
    until(&format!("a record over {what}"), async || (!out.records().is_empty()).then_some(())).await;
    assert_ready(&worker, what).await;
    let status = worker.status().await;
    assert_eq!(status["degraded"], json!([]), "{what}");
    let log = worker.stop().await.stderr;
    assert!(!log.contains(PASSWORD) && !status.to_string().contains(PASSWORD), "{what}: no secret is shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_and_certificates_open_the_way() {
    let cluster = kafka::shared().await;
    let ca = cluster.file("ca.pem");
    let (cert, key) = (cluster.file("client.pem"), cluster.file("client-key.pem"));
    let tls = format!(r#", tls: {{ca: {{path: "{ca}"}}}}"#);
    let mutual =
        format!(r#", tls: {{ca: {{path: "{ca}"}}, cert: {{path: "{cert}"}}, key: {{path: "{key}"}}}}"#);
    let unchecked = ", tls: {insecureSkipVerify: true}";
    for (listener, security) in [
        (Listener::Sasl, sasl("SCRAM-SHA-256")),
        (Listener::Sasl, sasl("SCRAM-SHA-512")),
        (Listener::SaslTls, sasl("PLAIN") + &tls),
        (Listener::SaslTls, sasl("SCRAM-SHA-512") + unchecked),
        (Listener::Tls, mutual),
    ] {
        let (from, to) = (unique("orders"), unique("out"));
        cluster.create_topic(&from, 1).await;
        cluster.create_topic(&to, 1).await;
        let site = WorkerSite::with(&pipeline(&cluster.addresses(listener), &from, &to, &security));
        assert_it_flows(cluster, &site, (&from, &to), &security).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_at_the_start_is_reported_and_tried_again() {
    let cluster = kafka::shared().await;
    let (from, to) = (unique("orders"), unique("out"));
    cluster.create_topic(&from, 1).await;
    cluster.create_topic(&to, 1).await;
    let tls = format!(r#", tls: {{ca: {{path: "{}"}}}}"#, cluster.file("ca.pem"));
    let closed = "127.0.0.1:1".to_owned();
    // This server refuses more quickly than any broker, so that the client logs most.
    let authority = Authority::new();
    let stranger = Server::start_tls(authority.server(&authority.sign(&["127.0.0.1"]), None)).await;
    for (brokers, security, password, expected) in [
        (cluster.addresses(Listener::Sasl), sasl("SCRAM-SHA-256"), "wrong", "refuses our credentials ("),
        (closed, String::new(), PASSWORD, "127.0.0.1:1 does not answer (127.0.0.1:1/bootstrap: Connect to"),
        (
            cluster.addresses(Listener::SaslTls),
            sasl("PLAIN") + ", tls: {}",
            PASSWORD,
            "no TLS connection to Kafka at",
        ),
        (
            stranger.address().to_string(),
            sasl("PLAIN") + ", tls: {}",
            PASSWORD,
            "no TLS connection to Kafka at",
        ),
        (cluster.addresses(Listener::Tls), tls, PASSWORD, "no TLS connection to Kafka at"),
        (
            cluster.addresses(Listener::Sasl),
            sasl("SCRAM-SHA-256").replace("KAFKA_PASSWORD", "NOT_SET"),
            PASSWORD,
            "kafka.sasl.password: the environment variable NOT_SET is not set",
        ),
    ] {
        let site = WorkerSite::with(&pipeline(&brokers, &from, &to, &security));
        let worker = with_credentials(&site, password).start().await;
        for part in ["/sources/events", "/sinks/out"] {
            let mut last = String::new();
            until(&format!("{part} to tell of {expected}"), async || {
                let status = worker.status().await;
                let text = status.pointer(&format!("{part}/lastError"))?.as_str()?.to_owned();
                if text != last {
                    eprintln!("{part}: {text}");
                    last.clone_from(&text);
                }
                text.contains(expected).then_some(())
            })
            .await;
        }
        assert_ready(&worker, expected).await;
        assert!(!worker.stop().await.stderr.contains(PASSWORD));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_degrades_its_source_alone() {
    let mut cluster = KafkaCluster::start(1).await;
    cluster.create_topic("orders", 1).await;
    cluster.kill(0);
    let (brokers, sasl) = (cluster.addresses(Listener::Sasl), sasl("SCRAM-SHA-256"));
    let sources = format!(
        "    - {{name: events, kafka: {{brokers: \"{brokers}\", topics: [orders]{sasl}}}}}\n    - {{name: ingest, http: {{addr: \"127.0.0.1:0\", topics: [orders]}}}}"
    );
    let site = WorkerSite::with(&manifest(&sources, ALL_ORDERS, LIVE));
    let worker = with_credentials(&site, PASSWORD).start().await;
    assert_ready(&worker, "the broker is absent").await;
    let degraded = async || {
        until("the source to be degraded", async || {
            let status = worker.status().await;
            let parts: Vec<DegradedPart> = serde_json::from_value(status["degraded"].clone()).ok()?;
            (!parts.is_empty()).then_some(parts)
        })
        .await
    };
    let parts = degraded().await;
    let [DegradedPart { kind, name, reason, message, .. }] = parts.as_slice() else { panic!("{parts:?}") };
    assert_eq!([kind, name, reason], ["Source", "events", "Unreachable"]);
    assert!(message.contains(&brokers) && message.contains("does not answer"), "{message}");
    let epoch = worker.ingest().put("orders", "by_http", json!(1)).await;
    worker.snapshot("out", "all_orders", epoch).await;
    cluster.restart(0).await;
    until("the source to recover", async || (worker.status().await["degraded"] == json!([])).then_some(()))
        .await;
    cluster.producer().send("orders", "by_kafka", Some("2")).await;
    until("the record", async || (worker.status().await["topics"]["orders"]["created"] == 2).then_some(()))
        .await;
    cluster.kill(0);
    let again = degraded().await;
    assert_eq!(again.len(), 1, "{again:?}");
    assert_ready(&worker, "the rest goes on").await;
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    assert!(metrics.contains("litejoin_source_degraded{source=\"events\"} 1"), "{metrics}");
    worker.stop().await;
}
