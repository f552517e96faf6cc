//! What a Kafka source reads, and where it goes on.

use litejoin_tests::kafka;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::worker::Site;
use serde_json::{Value, json};

use super::{ALL_ORDERS, LIVE, caught_up, ends, last_values, manifest, orders_from, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_kafka_through_a_join_to_kafka() {
    let cluster = kafka::shared().await;
    let (orders, customers, enriched) = (unique("orders"), unique("customers"), unique("enriched"));
    for topic in [&orders, &customers, &enriched] {
        cluster.create_topic(topic, 3).await;
    }
    let brokers = cluster.brokers();
    let site = Site::with(&manifest(
        &format!(
            r#"    - name: events
      kafka:
        brokers: "{brokers}"
        topics: ["{orders}", "{customers}"]
        topicNames: {{"{orders}": orders, "{customers}": customers}}"#
        ),
        r#"    - name: enriched
      query: |
        SELECT o.key AS id, c.payload->>'name' AS customer, o.payload->>'amount' AS amount
        FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'
      sinks: [out]"#,
        &format!(r#"    - {{name: out, kafka: {{brokers: "{brokers}", topic: "{enriched}"}}}}"#),
    ));
    let producer = cluster.producer();
    producer.send(&customers, "c1", Some(r#"{"name":"Ada"}"#)).await;
    let worker = site.start().await;
    let out = cluster.follow(&enriched);
    producer.send(&orders, "o1", Some(r#"{"customer":"c1","amount":5}"#)).await;
    litejoin_tests::wait::until("the joined result", async || {
        let last = last_values(&out.records());
        let rows = last.get("o1")?.as_ref()?["rows"].clone();
        (rows == json!([{"id": "o1", "customer": "Ada", "amount": 5}])).then_some(())
    })
    .await;
    producer.send(&orders, "o1", None).await;
    litejoin_tests::wait::until("the tombstone", async || {
        (*last_values(&out.records()).get("o1")? == None::<Value>).then_some(())
    })
    .await;
    let last = out.records().pop().expect("records have come");
    assert_eq!(last.headers["op"], "deleted");
    assert_eq!(last.headers["query"], "enriched");
    assert!(last.headers["id"].contains(&format!(".{}.", last.headers["epoch"])), "{:?}", last.headers);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_the_data_stops() {
    let cluster = kafka::shared().await;
    let topic = unique("orders");
    cluster.create_topic(&topic, 2).await;
    let site = Site::with(&manifest(&orders_from(cluster, &topic, ""), ALL_ORDERS, LIVE));
    let producer = cluster.producer();
    let mut sent = Vec::new();
    for n in 0..20 {
        sent.push(producer.send(&topic, &format!("k{}", n % 7), Some(&json!({"n": n}).to_string())).await);
    }
    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &sent)).await;
    worker.stop().await;
    let mut more = Vec::new();
    for n in 20..30 {
        more.push(producer.send(&topic, &format!("k{}", n % 7), Some(&json!({"n": n}).to_string())).await);
    }
    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &more)).await;
    let status = worker.status().await;
    assert_eq!(status["sources"]["events"]["accepted"], 10, "only what is new is read");
    assert_eq!(status["topics"]["orders"]["replayed"], 0);
    let oracle = Oracle::read(&site.data_dir(), ["orders"]);
    assert_eq!(oracle.value("SELECT count(*) FROM orders"), 7);
    assert_eq!(oracle.value("SELECT max(payload->>'n') FROM orders"), 29);
    worker.stop().await;
}
