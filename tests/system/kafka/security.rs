//! Authentication and encryption towards Kafka, and the errors where that fails.

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

/// The status and the body of `/readyz`.
async fn readyz(worker: &Worker) -> (u16, String) {
    get(&worker.url("admin", "/readyz")).await
}

/// Sees one record go all the way.
async fn assert_it_flows(cluster: &KafkaCluster, site: &WorkerSite, (from, to): (&str, &str), what: &str) {
    let worker = with_credentials(site, PASSWORD).start().await;
    let out = cluster.follow(to);
    cluster.producer().send(from, "a", Some("1")).await;
    until(&format!("a record over {what}"), async || (!out.records().is_empty()).then_some(())).await;
    until("readiness", async || (readyz(&worker).await.0 == 200).then_some(())).await;
    let status = worker.status().await;
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
        let mut last = String::new();
        let said = until(&format!("readyz to tell of {expected}"), async || {
            let (status, text) = readyz(&worker).await;
            assert_eq!(status, 503, "{expected}: {text}");
            if text != last {
                eprintln!("{text}");
                last.clone_from(&text);
            }
            (text.matches(expected).count() == 2).then_some(text)
        })
        .await;
        assert!(said.contains("waiting for source events: ") && said.contains("sink out: "), "{said}");
        let health = get(&worker.url("admin", "/healthz")).await.0;
        assert_eq!(health, 200, "a restart would not help");
        assert!(!worker.stop().await.stderr.contains(PASSWORD));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_later_is_found_and_one_that_goes_does_not_unready_the_rest() {
    let mut cluster = KafkaCluster::start(1).await;
    cluster.create_topic("orders", 1).await;
    cluster.kill(0);
    let brokers = cluster.brokers();
    let sources = format!(
        "    - {{name: events, kafka: {{brokers: \"{brokers}\", topics: [orders]}}}}\n    - {{name: ingest, http: {{addr: \"127.0.0.1:0\", topics: [orders]}}}}"
    );
    let site = WorkerSite::with(&manifest(&sources, ALL_ORDERS, LIVE));
    let worker = site.start().await;
    until("the wait to be shown", async || (readyz(&worker).await.0 == 503).then_some(())).await;
    let epoch = worker.ingest().put("orders", "by_http", json!(1)).await;
    worker.snapshot("out", "all_orders", epoch).await;
    cluster.restart(0).await;
    until("readiness", async || (readyz(&worker).await.0 == 200).then_some(())).await;
    cluster.producer().send("orders", "by_kafka", Some("2")).await;
    until("the record", async || (worker.status().await["topics"]["orders"]["created"] == 2).then_some(()))
        .await;
    cluster.kill(0);
    until("the trouble to be shown", async || {
        let error = worker.status().await["sources"]["events"]["lastError"].as_str()?.to_owned();
        error.contains("does not answer").then_some(())
    })
    .await;
    assert_eq!(readyz(&worker).await.0, 200, "the rest goes on");
    worker.stop().await;
}
