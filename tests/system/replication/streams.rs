//! Sources that read again what a lost disk has taken: from the offsets in each restored shard, whatever moment the
//! shard is of; and the offsets and results that leave the worker meanwhile.

use std::collections::BTreeSet;
use std::path::Path;

use litejoin_tests::kafka::{self, KafkaCluster};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::server::Server;
use litejoin_tests::sse::Subscription;
use litejoin_tests::stores::Store;
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use serde_json::{Value, json};

use super::{
    JOIN, LAST, Replicated, file_names, keys, kill_both, names, put_all, ready, replicated, replication,
};
use crate::kafka::{caught_up, ends, unique};

const TOTALS: &str = "SELECT payload->>'customer' AS customer, count(*) AS orders, sum(payload->>'n') AS total \
                      FROM orders GROUP BY payload->>'customer'";

/// A pipeline that reads a Kafka topic into `orders`, and commits offsets once they are in the replica.
fn pipeline(store: &Store, cluster: &KafkaCluster, kafka_topic: &str) -> Replicated {
    let pipeline = Replicated::to(store, &json!({}));
    pipeline.change(|manifest| {
        let spec = &mut manifest["spec"];
        spec["joins"][0]["query"] = TOTALS.into();
        let kafka = json!({"brokers": cluster.brokers(), "topics": [kafka_topic], "groupId": kafka_topic});
        let source = json!({"name": "events", "topic": "orders", "ack": "replicated", "kafka": kafka});
        spec["sources"].as_array_mut().expect("a list").push(source);
    });
    pipeline
}

fn order(customer: usize, n: usize) -> Option<String> {
    Some(json!({"customer": format!("c{customer}"), "n": n}).to_string())
}

/// Waits until the pipeline has stored all of a Kafka topic.
async fn read_all(worker: &Worker, cluster: &KafkaCluster, kafka_topic: &str) {
    let records = cluster.read(kafka_topic).await;
    let places: Vec<_> = records.iter().map(|record| (record.partition, record.offset)).collect();
    caught_up(worker, &ends(kafka_topic, &places)).await;
}

async fn results(worker: &Worker) -> Results {
    let epoch = worker.ingest().put("orders", LAST, json!({"customer": "c0", "n": 0})).await;
    worker.snapshot("live", JOIN, epoch).await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_of_different_moments_end_exact() {
    let (store, mut cluster) = (Store::file().await, KafkaCluster::start(1).await);
    let kafka_topic = unique("orders");
    cluster.create_topic(&kafka_topic, 2).await;
    let pipeline = pipeline(&store, &cluster, &kafka_topic);
    let expected = Oracle::new(["orders"]);
    let last = json!({"customer": "c0", "n": 0}).to_string();
    expected.apply("orders", LAST, Some(&last));
    // Files, and the step after which the replica has nothing more of each.
    let rounds: [&[(&str, usize)]; 3] = [
        &[("shard_1.db", 0), ("shard_2.db", 1)],
        &[("results.db", 0), ("shard_0.db", 1)],
        &[("shard_0.db", 0), ("shard_1.db", 0), ("shard_2.db", 0)],
    ];
    for (round, rewound) in rounds.into_iter().enumerate() {
        let worker = pipeline.start().await;
        let incarnation = ready(&worker).await;
        let mut moments: Vec<Value> = Vec::new();
        for step in 0..3 {
            let n = round * 100 + step;
            // New orders, old ones that change and move to another customer, and some that go.
            let new = (0..40).map(|number| (format!("o{n}-{number}"), order(number % 7, n)));
            let changed = (0..20).map(|number| (format!("o{}-{number}", round * 100), order(n % 5, n)));
            let gone = (30..35).map(|number| (format!("o{}-{number}", round * 100), None));
            let records: Vec<_> = new.chain(changed).chain(gone.take(5 * step)).collect();
            for (key, value) in &records {
                expected.apply("orders", key, value.as_deref());
            }
            cluster.producer().send_all(&kafka_topic, records).await;
            read_all(&worker, &cluster, &kafka_topic).await;
            results(&worker).await;
            replicated(&worker).await;
            moments.push(replication(&worker).await["files"].clone());
        }
        kill_both(&pipeline, worker, true).await;
        pipeline.lose_disk();
        let folder = store.files().join("replicas/default/p/0").join(incarnation);
        for (file, step) in rewound {
            let txid = moments[*step][file]["replicatedTxid"].as_u64().expect("a number");
            rewind(&folder.join(file), txid);
        }

        // The restored data is consistent before any record is read again.
        cluster.kill(0);
        let worker = pipeline.start().await;
        let found = results(&worker).await;
        let restored = Oracle::read(&pipeline.site.data_dir(), ["orders"]);
        found.assert_same(&restored.results(JOIN, TOTALS, None), &format!("round {round}, restored"));
        let wanted = expected.results(JOIN, TOTALS, None);
        let is_complete = rewound.iter().all(|(file, _)| *file == "results.db");
        assert!(is_complete || found != wanted, "round {round}: something was lost");

        // The source goes on from the offsets of each shard.
        cluster.restart(0).await;
        read_all(&worker, &cluster, &kafka_topic).await;
        results(&worker).await.assert_same(&wanted, &format!("round {round}, read on"));
        let stored = Oracle::read(&pipeline.site.data_dir(), ["orders"]);
        stored.results(JOIN, TOTALS, None).assert_same(&wanted, &format!("round {round}, the rows"));
        replicated(&worker).await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_were_restored_ahead_of_their_shards_are_sent_to_no_one() {
    let (store, server) = (Store::file().await, Server::start().await);
    let pipeline = Replicated::to(&store, &json!({}));
    pipeline.change(|manifest| {
        let hook = json!({"name": "hook", "joins": [JOIN], "http": {"url": server.url("/")}});
        manifest["spec"]["sinks"].as_array_mut().expect("a list").push(hook);
    });
    let worker = pipeline.start().await;
    let incarnation = ready(&worker).await;
    put_all(&worker, &names("kept", 6)).await;
    keys(&worker).await;
    replicated(&worker).await;
    let before = replication(&worker).await["files"].clone();
    let taken = server.received().len();
    assert!(taken > 0, "the server takes results");
    let held = server.hold().await;
    for _ in 0..2 {
        put_all(&worker, &names("gone", 12)).await;
        keys(&worker).await;
    }
    replicated(&worker).await;
    kill_both(&pipeline, worker, true).await;
    pipeline.lose_disk();
    for shard in ["shard_0.db", "shard_1.db", "shard_2.db"] {
        let folder = store.files().join("replicas/default/p/0").join(&incarnation).join(shard);
        rewind(&folder, before[shard]["replicatedTxid"].as_u64().expect("a number"));
    }
    drop(held);
    until("the request to end", async || (server.under_way() == 0).then_some(())).await;
    server.take();

    let worker = pipeline.start().await;
    let mut subscription =
        Subscription::open(worker.address("sink live"), &format!("join={JOIN}&replay=true"), None).await;
    let replayed: BTreeSet<String> = subscription.replayed().await.iter().map(key_of).collect();
    assert_eq!(replayed, &names("kept", 6) | &BTreeSet::from([LAST.to_owned()]));
    worker.ingest().put("orders", "end", json!({"n": 1})).await;
    let sent = until("the end", async || {
        let received = server.received();
        let sent: Vec<Event> = received.iter().map(|request| Event::read(request.text())).collect();
        sent.iter().any(|event| event.key == "end").then_some(sent)
    })
    .await;
    let gone: Vec<_> =
        sent.iter().filter(|event| key_of(event).starts_with("gone") && !event.rows.is_empty()).collect();
    assert!(gone.is_empty(), "{gone:?}");
    worker.stop().await;
}

fn key_of(event: &Event) -> String {
    event.key.as_str().expect("keys of orders are texts").to_owned()
}

/// Removes a file's transactions beyond this one from the replica, as if they had never come.
fn rewind(replica: &Path, txid: u64) {
    let mut removed = 0;
    for level in file_names(&replica.join("ltx")) {
        let level = replica.join("ltx").join(level);
        for name in file_names(&level) {
            let last = name.trim_end_matches(".ltx").rsplit('-').next().expect("it has a first part");
            let last = u64::from_str_radix(last, 16).expect("names are ranges of transactions");
            if last > txid {
                std::fs::remove_file(level.join(name)).expect("the store is ours");
                removed += 1;
            }
        }
    }
    assert!(removed > 0, "{} has nothing beyond {txid}", replica.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_offset_is_committed_that_a_lost_disk_takes_back() {
    let (mut store, cluster) = (Store::s3().await, kafka::shared().await);
    let kafka_topic = unique("orders");
    cluster.create_topic(&kafka_topic, 1).await;
    let pipeline = pipeline(&store, cluster, &kafka_topic);
    let committed = async || cluster.committed(&kafka_topic, &kafka_topic, 0).await;
    let send = async |numbers: std::ops::Range<usize>| {
        let records = numbers.map(|number| (format!("o{number}"), order(number % 7, number)));
        cluster.producer().send_all(&kafka_topic, records).await;
    };
    send(0..100).await;
    let worker = pipeline.start().await;
    until("the offset to be committed", async || (committed().await == Some(100)).then_some(())).await;

    // While the store is away, all records are read and their results shown, and no offset is committed.
    store.kill();
    send(100..200).await;
    read_all(&worker, cluster, &kafka_topic).await;
    let warning = "the replica is behind, so the broker is not told how far we are; nothing is missing here";
    until("the warning", async || {
        let kafka = worker.status().await["sources"]["events"]["kafka"].clone();
        (kafka["warning"] == warning).then_some(())
    })
    .await;
    assert_eq!(committed().await, Some(100));
    kill_both(&pipeline, worker, true).await;
    pipeline.lose_disk();
    store.restart().await;
    let worker = pipeline.start().await;
    read_all(&worker, cluster, &kafka_topic).await;
    until("the offset to be committed", async || (committed().await == Some(200)).then_some(())).await;

    // A planned stop commits the last offset.
    send(200..250).await;
    read_all(&worker, cluster, &kafka_topic).await;
    worker.stop().await;
    assert_eq!(committed().await, Some(250));
}
