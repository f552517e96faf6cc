//! The records that a Kafka source reads, the messages that it makes of them, and where it goes on.

use litejoin_tests::ingest::message;
use litejoin_tests::kafka::{self, KafkaCluster};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

use super::{ALL_ORDERS, LIVE, caught_up, ends, last_values, manifest, orders_from, unique};

/// A new Kafka topic of this many partitions, and a site that reads it into `orders` by a source with these further
/// fields.
pub(super) async fn orders_site(partitions: i32, more: &str) -> (&'static KafkaCluster, String, WorkerSite) {
    let cluster = kafka::shared().await;
    let topic = unique("orders");
    cluster.create_topic(&topic, partitions).await;
    let site = WorkerSite::with(&manifest(&orders_from(cluster, &topic, more), ALL_ORDERS, LIVE));
    (cluster, topic, site)
}

/// The source in `/status`.
pub(super) async fn source(worker: &Worker) -> Value {
    worker.status().await["sources"]["events"].clone()
}

/// Waits until a query over `orders` yields this value.
pub(super) async fn wait_for(site: &WorkerSite, query: &str, expected: Value) {
    until(&format!("{expected} from {query}"), async || {
        let found = Oracle::read(&site.data_dir(), ["orders"]).value(query);
        (found == expected).then_some(())
    })
    .await;
}

/// Sends numbered orders, with 7 keys, and returns their partitions and offsets.
async fn send_orders(cluster: &KafkaCluster, topic: &str, numbers: std::ops::Range<u32>) -> Vec<(i32, i64)> {
    let producer = cluster.producer();
    let mut sent = Vec::new();
    for n in numbers {
        sent.push(producer.send(topic, &format!("k{}", n % 7), Some(&json!({"n": n}).to_string())).await);
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_kafka_through_a_join_to_kafka() {
    let cluster = kafka::shared().await;
    let (orders, customers, enriched) = (unique("orders"), unique("customers"), unique("enriched"));
    for topic in [&orders, &customers, &enriched] {
        cluster.create_topic(topic, 3).await;
    }
    let brokers = cluster.brokers();
    let site = WorkerSite::with(&manifest(
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
    until("the joined result", async || {
        let last = last_values(&out.records());
        let rows = last.get("o1")?.as_ref()?["rows"].clone();
        (rows == json!([{"id": "o1", "customer": "Ada", "amount": 5}])).then_some(())
    })
    .await;
    producer.send(&orders, "o1", None).await;
    until("the tombstone", async || (*last_values(&out.records()).get("o1")? == None::<Value>).then_some(()))
        .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_goes_on_where_the_data_stops() {
    let (cluster, topic, site) = orders_site(2, "").await;
    let sent = send_orders(cluster, &topic, 0..20).await;
    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &sent)).await;
    worker.stop().await;
    let more = send_orders(cluster, &topic, 20..30).await;
    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &more)).await;
    assert_eq!(source(&worker).await["accepted"], 10, "only what is new is read");
    assert_eq!(worker.status().await["topics"]["orders"]["replayed"], 0);
    wait_for(&site, "SELECT count(*) || ' ' || max(payload->>'n') FROM orders", json!("7 29")).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_find_topics_that_are_there_and_that_come() {
    let cluster = kafka::shared().await;
    let prefix = unique("shop").replace('-', "_");
    let (first, second, third) =
        (format!("{prefix}.eu"), format!("{prefix}_us"), format!("{prefix}.no-table"));
    cluster.create_topic(&first, 1).await;
    let brokers = cluster.brokers();
    let site = WorkerSite::with(&manifest(
        &format!(
            r#"    - {{name: events, kafka: {{brokers: "{brokers}", topics: ["^{prefix}[._]"], topicNames: {{"{first}": orders}}}}}}"#
        ),
        ALL_ORDERS,
        LIVE,
    ));
    let producer = cluster.producer();
    producer.send(&first, "a", Some("1")).await;
    let worker = site.start().await;
    wait_for(&site, "SELECT group_concat(key) FROM orders", json!("a")).await;
    cluster.create_topic(&second, 1).await;
    cluster.create_topic(&third, 1).await;
    producer.send(&second, "b", Some("2")).await;
    until("the topic that came later", async || {
        let status = worker.status().await;
        (status["topics"][&second]["created"] == 1).then_some(())
    })
    .await;
    until("a word about the topic that can't be a table", async || {
        let error = source(&worker).await["lastError"].as_str()?.to_owned();
        error
            .contains(&format!("the Kafka topic {third:?} is not read: topic {third:?} is no plain name"))
            .then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_by_a_path_headers_are_kept_tombstones_delete_and_bad_records_become_dead_letters() {
    let (cluster, topic, site) = orders_site(1, ", keyPath: order.id").await;
    let producer = cluster.producer();
    let send = async |key: Option<&str>, value: Option<&str>, headers: &[(&str, Option<&[u8]>)]| {
        let key = key.map(str::as_bytes);
        producer.send_with(&topic, Some(0), key, value.map(str::as_bytes), headers).await
    };
    send(Some("x"), Some(r#"{"order":{"id":"o1"}}"#), &[("trace", Some(b"t1"))]).await;
    send(None, Some(r#"{"order":{"id":2}}"#), &[]).await;
    let no_json = send(Some("x"), Some("{oops"), &[]).await;
    let no_key = send(Some("x"), Some("{}"), &[]).await;
    let worker = site.start().await;
    let end = send(Some("gone"), None, &[]).await;
    caught_up(&worker, &ends(&topic, &[end])).await;
    let query = "SELECT json_group_array(key ORDER BY key) FROM orders";
    wait_for(&site, query, json!(r#"["2","o1"]"#)).await;
    let change = "SELECT _change FROM orders WHERE key = 'o1'";
    assert_eq!(stored(&site, change), [r#"{"op":"created","headers":{"trace":"t1"}}"#]);

    send(Some("x"), Some(r#"{"order":{"id":"o1"},"v":2}"#), &[("trace", Some(b"t2"))]).await;
    let end = send(Some("2"), None, &[]).await;
    caught_up(&worker, &ends(&topic, &[end])).await;
    wait_for(&site, query, json!(r#"["o1"]"#)).await;
    assert_eq!(stored(&site, change), [r#"{"op":"updated","fields":["v"],"headers":{"trace":"t2"}}"#]);
    assert_eq!(source(&worker).await["refused"], 2);
    worker.stop().await;
    let dead_letters = rejected(&site);
    let position = |(partition, offset): (i32, i64)| format!("{topic}[{partition}] offset {offset}");
    assert_eq!(
        dead_letters,
        [
            format!(
                "events {}: value is no JSON: key must be a string at line 1 column 2: {{oops",
                position(no_json)
            ),
            format!(
                "events {}: keyPath \"order.id\" finds nothing in the payload, or null; where the record's own key holds \
                 it, write recordKeyPath instead: {{}}",
                position(no_key)
            ),
        ]
    );
}

/// The texts that a query finds in the shards.
#[expect(clippy::disallowed_methods, reason = "the files are read as a user would read them")]
fn stored(site: &WorkerSite, query: &str) -> Vec<String> {
    let shards = (0..4).map(|index| site.data_dir().join(format!("shard_{index}.db")));
    let found = shards.flat_map(|path| {
        let shard = rusqlite::Connection::open(path).expect("a shard is a database");
        let Ok(mut statement) = shard.prepare(query) else { return Vec::new() };
        let rows = statement.query_map([], |row| row.get(0)).expect("a shard can be read");
        rows.collect::<Result<Vec<String>, _>>().expect("a shard can be read")
    });
    found.collect()
}

/// Messages in the dead-letter queue.
#[expect(clippy::disallowed_methods, reason = "the file is read as a user would read it")]
pub(super) fn rejected(site: &WorkerSite) -> Vec<String> {
    let dlq = rusqlite::Connection::open(site.data_dir().join("dlq.db")).expect("the queue is a database");
    let mut statement = dlq
        .prepare("SELECT source || ' ' || position || ': ' || reason || ': ' || cast(body AS TEXT) FROM rejected ORDER BY id")
        .expect("the queue has rejected messages");
    let rows = statement.query_map([], |row| row.get(0)).expect("the queue can be read");
    rows.collect::<Result<_, _>>().expect("the queue can be read")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_start_is_as_asked_and_partitions_that_come_are_read_whole() {
    let cluster = kafka::shared().await;
    let topic = unique("orders");
    cluster.create_topic(&topic, 1).await;
    let producer = cluster.producer();
    producer.send(&topic, "old", Some("0")).await;
    let site =
        WorkerSite::with(&manifest(&orders_from(cluster, &topic, ", startOffset: latest"), ALL_ORDERS, LIVE));
    let worker = site.start().await;
    until("the source to begin", async || {
        source(&worker).await["kafka"]["partitions"][format!("{topic}/0")]["next"].as_u64()
    })
    .await;
    producer.send(&topic, "new", Some("1")).await;
    wait_for(&site, "SELECT group_concat(key) FROM orders", json!("new")).await;

    cluster.grow_topic(&topic, 3).await;
    // A client that has seen the topic before does not know the new partitions yet.
    let producer = cluster.producer();
    for partition in [1, 2] {
        let key = format!("in{partition}");
        producer.send_with(&topic, Some(partition), Some(key.as_bytes()), Some(b"2"), &[]).await;
    }
    let query = "SELECT group_concat(key ORDER BY key) FROM orders";
    wait_for(&site, query, json!("in1,in2,new")).await;
    worker.stop().await;
    // A partition that was not there when the worker stopped is read whole as well.
    cluster.grow_topic(&topic, 4).await;
    let producer = cluster.producer();
    producer.send_with(&topic, Some(3), Some(b"in3"), Some(b"3"), &[]).await;
    let worker = site.start().await;
    wait_for(&site, query, json!("in1,in2,in3,new")).await;
    worker.stop().await;

    let site = WorkerSite::with(&manifest(&orders_from(cluster, &topic, ""), ALL_ORDERS, LIVE));
    let worker = site.start().await;
    wait_for(&site, query, json!("in1,in2,in3,new,old")).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_expired_are_reported_and_skipped() {
    let (cluster, topic, site) = orders_site(1, "").await;
    let sent = send_orders(cluster, &topic, 0..5).await;
    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &sent)).await;
    worker.stop().await;
    send_orders(cluster, &topic, 5..12).await;
    cluster.delete_records(&topic, 0, 9).await;
    let worker = site.start().await;
    wait_for(&site, "SELECT max(payload->>'n') FROM orders", json!(11)).await;
    let expected = format!(
        "{topic}[0]: records 5 to 8 were removed from Kafka before they were read; going on with 9, the oldest there \
         is; give the topic a longer retention"
    );
    until("the loss to be shown", async || {
        let kafka = source(&worker).await["kafka"].clone();
        (kafka["lastLoss"] == *expected && kafka["lost"] == 4).then_some(())
    })
    .await;
    let metrics = get(&worker.url("admin", "/metrics")).await.1;
    assert!(metrics.contains("litejoin_source_lost_records_total{source=\"events\"} 4"), "{metrics}");
    let lag = format!(
        "litejoin_source_lag_records{{source=\"events\",kafka_topic=\"{topic}\",kafka_partition=\"0\"}} 0"
    );
    until("no lag", async || get(&worker.url("admin", "/metrics")).await.1.contains(&lag).then_some(()))
        .await;
    assert!(worker.stop().await.stderr.contains(&expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_made_anew_is_read_anew() {
    let (cluster, topic, site) = orders_site(1, "").await;
    let sent = send_orders(cluster, &topic, 0..5).await;
    let worker = site.start().await;
    caught_up(&worker, &ends(&topic, &sent)).await;
    // Records expire while the worker runs, and while it does not.
    for (round, worker) in [Some(worker), None].into_iter().enumerate() {
        cluster.delete_topic(&topic).await;
        cluster.create_topic(&topic, 1).await;
        let producer = cluster.producer();
        let key = format!("again{round}");
        producer.send(&topic, &key, Some("1")).await;
        let worker = match worker {
            Some(worker) => worker,
            None => site.start().await,
        };
        wait_for(&site, &format!("SELECT count(*) FROM orders WHERE key = '{key}'"), json!(1)).await;
        let loss = source(&worker).await["kafka"]["lastLoss"].as_str().unwrap_or_default().to_owned();
        assert!(loss.contains("reading it again from its oldest record"), "{loss}");
        // More than one record must be left behind for the next round to be seen.
        let sent = send_orders(cluster, &topic, 0..3).await;
        caught_up(&worker, &ends(&topic, &sent)).await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_committed_and_a_foreign_member_costs_nothing() {
    let cluster = kafka::shared().await;
    let topic = unique("orders");
    cluster.create_topic(&topic, 2).await;
    let group = unique("group");
    let site = WorkerSite::with(&manifest(
        &orders_from(cluster, &topic, &format!(", groupId: \"{group}\"")),
        ALL_ORDERS,
        LIVE,
    ));
    let sent = send_orders(cluster, &topic, 0..20).await;
    let worker = site.start().await;
    let sent_to = ends(&topic, &sent);
    caught_up(&worker, &sent_to).await;
    for partition in 0..2 {
        let end = i64::try_from(sent_to[&format!("{topic}/{partition}")]).expect("a small number");
        until("the offset to be committed", async || {
            (cluster.committed(&group, &topic, partition).await == Some(end)).then_some(())
        })
        .await;
    }

    let member = cluster.join_group(&group, &topic);
    member.wait_until_it_has_partitions().await;
    let sent = send_orders(cluster, &topic, 20..40).await;
    caught_up(&worker, &ends(&topic, &sent)).await;
    let expected = format!(
        "another consumer is a member of the group {group:?}; nothing is missing here, but the broker can't be told \
         how far we are; give this source a kafka.groupId of its own"
    );
    until("the warning", async || (source(&worker).await["kafka"]["warning"] == *expected).then_some(()))
        .await;
    wait_for(&site, "SELECT max(payload->>'n') FROM orders", json!(39)).await;
    drop(member);
    send_orders(cluster, &topic, 40..44).await;
    until("the warning to go", async || source(&worker).await["kafka"]["warning"].is_null().then_some(()))
        .await;
    worker.stop().await;

    // Without a groupId the pipeline has a group of its own; the stop commits the last offset.
    let site = WorkerSite::with(&manifest(&orders_from(cluster, &topic, ""), ALL_ORDERS, LIVE));
    let worker = site.start().await;
    wait_for(&site, "SELECT count(*) FROM orders", json!(7)).await;
    worker.stop().await;
    let committed = [0, 1].map(|partition| cluster.committed("litejoin-default-p", &topic, partition));
    let committed = futures::future::join_all(committed).await;
    assert_eq!(committed.iter().flatten().sum::<i64>(), 44, "{committed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_write_over_http_is_not_overwritten_by_a_record_that_is_read_again() {
    let cluster = kafka::shared().await;
    let topic = unique("orders");
    cluster.create_topic(&topic, 1).await;
    let sources = format!(
        "{}\n    - {{name: ingest, http: {{addr: \"127.0.0.1:0\", topics: [orders]}}}}",
        orders_from(cluster, &topic, "")
    );
    let site = WorkerSite::with(&manifest(&sources, ALL_ORDERS, LIVE));
    let producer = cluster.producer();
    let mut replayed = 0;
    for round in 0..8 {
        let worker = site.start().await;
        let end = producer.send(&topic, "mark", Some(&json!({"start": round}).to_string())).await;
        caught_up(&worker, &ends(&topic, &[end])).await;
        // All shards know the offset of the mark now. Some know more than others of the following records when the worker
        // dies, at least until the next second, when all get the offset.
        let keys: Vec<String> = (0..4).map(|n| format!("k{}", round * 4 + n)).collect();
        let value = json!({"kafka": round}).to_string();
        let sent = keys.iter().map(|key| producer.send(&topic, key, Some(&value)));
        futures::future::join_all(sent).await;
        until("the records to be stored", async || {
            let created = worker.status().await["topics"]["orders"]["created"].as_u64()?;
            (created >= 4).then_some(())
        })
        .await;
        let messages: Vec<Value> =
            keys.iter().map(|key| message("orders", key, json!({"http": round}))).collect();
        worker.ingest().send(&messages).await;
        worker.kill().await;
        let worker = site.start().await;
        let end = producer.send(&topic, "mark", Some(&json!({"end": round}).to_string())).await;
        caught_up(&worker, &ends(&topic, &[end])).await;
        let query = format!("SELECT count(*) FROM orders WHERE payload->>'http' = {round}");
        wait_for(&site, &query, json!(4)).await;
        replayed += worker.status().await["topics"]["orders"]["replayed"].as_u64().expect("a counter");
        worker.stop().await;
    }
    assert!(replayed > 0, "no record was read a second time, so nothing was tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_brings_sources_and_sinks_and_changes_them() {
    let cluster = kafka::shared().await;
    let (first, second, out) = (unique("orders"), unique("orders"), unique("out"));
    for topic in [&first, &second, &out] {
        cluster.create_topic(topic, 1).await;
    }
    let http = r#"    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [orders]}}"#;
    let site = WorkerSite::with(&manifest(http, ALL_ORDERS, LIVE));
    let worker = site.start().await;
    let producer = cluster.producer();
    let brokers = cluster.brokers();
    let sink = format!(
        "{LIVE}\n    - {{name: copies, joins: [all_orders], kafka: {{brokers: \"{brokers}\", topic: \"{out}\"}}}}"
    );
    // A field is added, changed and removed.
    for (topic, keys) in [(&first, "a"), (&second, "a,b")] {
        let sources = format!("{http}\n{}", orders_from(cluster, topic, ""));
        site.write("pipeline.yaml", manifest(&sources, ALL_ORDERS, &sink));
        assert_eq!(worker.reload().await["lastReload"]["outcome"], "applied");
        let key = if topic == &first { "a" } else { "b" };
        producer.send(topic, key, Some("1")).await;
        wait_for(&site, "SELECT group_concat(key ORDER BY key) FROM orders", json!(keys)).await;
    }
    cluster.follow(&out).wait_for(2).await;
    site.write("pipeline.yaml", manifest(http, ALL_ORDERS, LIVE));
    assert_eq!(worker.reload().await["lastReload"]["outcome"], "applied");
    producer.send(&second, "c", Some("1")).await;
    let epoch = worker.ingest().put("orders", "d", json!(1)).await;
    worker.snapshot("out", "all_orders", epoch).await;
    wait_for(&site, "SELECT group_concat(key ORDER BY key) FROM orders", json!("a,b,d")).await;
    worker.stop().await;
}
