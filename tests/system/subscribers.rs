//! The events and answers that an SSE sink gives to subscribers and readers of snapshots.

mod clients;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use litejoin_tests::client::client;
use litejoin_tests::ingest::message;
use litejoin_tests::results::{EventId, Results};
use litejoin_tests::server::Server;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 4}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - name: ingest
      http: {addr: "127.0.0.1:0", topics: [orders, customers]}
  joins:
    - name: enriched
      query: |
        SELECT o.key AS order_id, c.payload->>'name' AS customer
        FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'
      resultKey: order
      sinks: [live, more]
    - name: by_customer
      query: SELECT payload->>'customer' AS customer, count(*) AS orders FROM orders GROUP BY payload->>'customer'
      sinks: [live]
  sinks:
    - name: live
      sse: {addr: "127.0.0.1:0", heartbeatInterval: 100ms}
    - name: more
      sse: {addr: "127.0.0.1:0", corsOrigins: ["http://dashboard.example"]}
"#;

async fn subscribe(worker: &Worker, query: &str, last_event_id: Option<&str>) -> Subscription {
    Subscription::open(worker.address("sink live"), query, last_event_id).await
}

fn order(key: &str, customer: &str) -> Value {
    message("orders", key, json!({"customer": customer}))
}

/// An event's data without what differs from run to run.
fn shown(event: &Value) -> String {
    let mut event = event.clone();
    let fields = event.as_object_mut().expect("an event is an object");
    for field in ["id", "epoch", "timestamp"] {
        assert!(fields.remove(field).is_some(), "{field} is there");
    }
    event.to_string()
}

#[tokio::test]
async fn a_result_is_created_updated_and_deleted() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=enriched&replay=true", None).await;
    assert_eq!(client.replayed().await, []);
    let ingest = worker.ingest();
    let mut said = String::new();
    for message in [
        order("o1", "c1"),
        message("customers", "c1", json!({"name": "Ada"})),
        message("customers", "c1", json!({"name": "Ada", "born": 1815})),
        message("orders", "o1", Value::Null),
        order("o1", "c2"),
    ] {
        let answered_epoch = ingest.send(&[message.clone()]).await;
        if message["payload"]["born"].is_number() {
            continue; // No result shows this change.
        }
        let event = client.expect_next().await;
        assert_eq!(event.result().epoch, answered_epoch, "the answer has the epoch of the result");
        said += &format!("{}\n", shown(&event.json()));
    }
    expect![[r#"
        {"key":"o1","op":"created","order":"o1","query":"enriched","rows":[{"customer":null,"order_id":"o1"}]}
        {"key":"o1","op":"updated","order":"o1","query":"enriched","rows":[{"customer":"Ada","order_id":"o1"}]}
        {"key":"o1","op":"deleted","order":"o1","query":"enriched","rows":[]}
        {"key":"o1","op":"created","order":"o1","query":"enriched","rows":[{"customer":null,"order_id":"o1"}]}
    "#]].assert_eq(&said);
}

#[tokio::test]
async fn a_null_key_is_a_key_of_its_own() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=by_customer&replay=true", None).await;
    client.replayed().await;
    let ingest = worker.ingest();
    ingest.put("orders", "o1", json!({})).await;
    let created = client.expect_next().await.result();
    assert_eq!((&created.key, created.op.as_str()), (&Value::Null, "created"));
    let epoch = ingest.put("orders", "o1", json!({"customer": "null"})).await;
    let changed = [client.expect_next().await.result(), client.expect_next().await.result()];
    let ops: BTreeMap<String, &str> =
        changed.iter().map(|event| (event.key.to_string(), event.op.as_str())).collect();
    assert_eq!(ops, BTreeMap::from([("null".to_owned(), "deleted"), ("\"null\"".to_owned(), "created")]));
    let deleted = changed.iter().find(|event| event.op == "deleted").expect("just seen");
    assert_eq!(deleted.whole["rows"], json!([]));
    let (_, results) = worker.snapshot("live", "by_customer", epoch).await;
    assert_eq!(results.rows.len(), 1);
}

#[tokio::test]
async fn a_replay_is_the_present_state_and_is_marked() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let ingest = worker.ingest();
    ingest.send(&[order("o1", "c1"), order("o2", "c1"), order("o3", "c2")]).await;
    let epoch = ingest.put("orders", "o3", Value::Null).await;
    let mut expected = Results::default();
    for join in ["enriched", "by_customer"] {
        expected.extend(worker.snapshot("live", join, epoch).await.1);
    }
    // Every client gets the replay, whatever others got.
    for _ in 0..2 {
        let mut client = subscribe(&worker, "join=*&replay=true", None).await;
        let replayed = client.replayed().await;
        assert!(
            replayed.iter().all(|event| event.is_replay && event.whole["_replay"] == true),
            "{replayed:?}"
        );
        Results::folded(&replayed).assert_same(&expected, "the replay");
        assert!(client.last_event_id.is_some(), "the replay ends with an id");
    }
    // Without a replay, a client gets later results and no earlier ones.
    let mut client = subscribe(&worker, "", None).await;
    ingest.put("customers", "c1", json!({"name": "Ada"})).await;
    let event = client.expect_next().await;
    assert!(!event.result().is_replay && event.json().get("_replay").is_none());
    assert_eq!(event.result().rows[0]["customer"], "Ada");
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let ingest = worker.ingest();
    let mut client = subscribe(&worker, "join=enriched&replay=true", None).await;
    client.replayed().await;
    let mut events = Vec::new();
    for n in 0..10 {
        ingest.send(&[order("o1", &format!("c{n}")), order(&format!("p{n}"), "c1")]).await;
        ingest.put("customers", &format!("c{n}"), json!({"name": n.to_string()})).await;
    }
    events.push(client.expect_next().await.result());
    // Connects again and again from the last id, for one event each; Last-Event-ID beats replay.
    let end = ingest.put("orders", "end", json!({})).await;
    let expected = worker.snapshot("live", "enriched", end).await.1;
    while events.last().expect("one came").key != "end" {
        let id = events.last().expect("one came").id.clone();
        let mut client = subscribe(&worker, "join=enriched&replay=true", Some(&id)).await;
        let event = client.expect_next().await.result();
        assert!(!event.is_replay);
        let ids = [&id, &event.id].map(|id| EventId::parse(id).position());
        assert!(ids[0] < ids[1], "{ids:?}");
        events.push(event);
    }
    Results::folded(&events).assert_same(&expected, "all events");
}

#[tokio::test]
async fn an_id_of_another_lineage_is_answered_with_reset_and_the_whole() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let epoch = worker.ingest().send(&[order("o1", "c1"), order("o2", "c1")]).await;
    let expected = worker.snapshot("live", "enriched", epoch).await.1;
    let mut said = String::new();
    for id in ["0123456789abc.7.1", "nonsense"] {
        let mut client = subscribe(&worker, "join=enriched", Some(id)).await;
        let reset = client.expect_next().await;
        said += &format!("{} {} {:?}\n", reset.event, reset.data, reset.id);
        Results::folded(&client.replayed().await).assert_same(&expected, "what follows the reset");
    }
    expect![[r#"
        reset {"reason":"the id is of another lineage: the data was restored or laid out anew"} None
        reset {"reason":"the id is not one of ours"} None
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn an_id_from_before_the_replay_window_is_answered_with_reset_and_the_whole() {
    let site =
        WorkerSite::with(&MANIFEST.replace("  sources:", "  delivery: {replayWindow: 1s}\n  sources:"));
    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=enriched", None).await;
    worker.ingest().send(&[order("o1", "c1")]).await;
    let id = client.expect_next().await.result().id;
    let epoch = worker.ingest().send(&[order("o2", "c1")]).await;
    let expected = worker.snapshot("live", "enriched", epoch).await.1;
    let (reset, mut client) = until("the id to be too old", async || {
        let mut client = subscribe(&worker, "join=enriched", Some(&id)).await;
        let event = client.expect_next().await;
        (event.event == "reset").then_some((event, client))
    })
    .await;
    expect![[r#"{"reason":"the id is too old: the outbox no longer reaches back to it"}"#]]
        .assert_eq(&reset.data);
    Results::folded(&client.replayed().await).assert_same(&expected, "what follows the reset");
}

#[tokio::test]
async fn results_that_are_lost_are_made_anew_under_a_new_lineage() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=enriched&replay=true", None).await;
    client.replayed().await;
    let epoch = worker.ingest().send(&[order("o1", "c1"), order("o2", "c1")]).await;
    let expected = worker.snapshot("live", "enriched", epoch).await.1;
    worker.stop().await;
    let before = client.rest().await.len();
    let id = client.last_event_id.expect("there were events");
    assert!(before > 0);
    for file in ["results.db", "results.db-wal", "results.db-shm"] {
        let _ = std::fs::remove_file(site.data_dir().join(file));
    }

    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=enriched", Some(&id)).await;
    assert_eq!(client.expect_next().await.event, "reset");
    let mut events = client.replayed().await;
    let epoch = worker.ingest().put("orders", "o1", Value::Null).await;
    let after = worker.snapshot("live", "enriched", epoch).await.1;
    // Evaluation may come before the replay or after it.
    while Results::folded(&events) != after {
        events.push(client.expect_next().await.result());
    }
    assert_eq!(after.rows.len(), expected.rows.len() - 1);
    let lineages: Vec<String> = events.iter().map(|event| EventId::parse(&event.id).lineage).collect();
    assert!(lineages.iter().all(|lineage| *lineage != EventId::parse(&id).lineage), "{lineages:?} {id}");
}

async fn heartbeats(client: &mut Subscription, count: usize) {
    for _ in 0..count {
        client.expect_comment().await;
    }
}

#[tokio::test]
async fn an_idle_stream_has_a_heartbeat() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut client = subscribe(&worker, "join=enriched", None).await;
    let mut rare = Subscription::open(worker.address("sink more"), "join=enriched", None).await;
    tokio::select! {
        biased;
        () = heartbeats(&mut rare, 2) => panic!("the sink with the longer interval was first"),
        () = heartbeats(&mut client, 4) => {}
    }
    worker.ingest().send(&[order("o1", "c1")]).await;
    assert_eq!(client.expect_next().await.result().key, "o1");
}

#[tokio::test]
async fn each_client_gets_the_join_it_asked_for_and_each_sink_its_own() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut one = subscribe(&worker, "join=by_customer", None).await;
    let mut other = Subscription::open(worker.address("sink more"), "join=*", None).await;
    let ingest = worker.ingest();
    ingest.send(&[order("o1", "c1")]).await;
    ingest.put("customers", "c1", json!({"name": "Ada"})).await;
    ingest.send(&[order("o2", "c1")]).await;
    worker.stop().await;
    let joins = |events: Vec<litejoin_tests::sse::SseEvent>| -> BTreeSet<String> {
        events.iter().map(|event| event.result().query).collect()
    };
    assert_eq!(joins(one.rest().await), BTreeSet::from(["by_customer".to_owned()]));
    assert_eq!(joins(other.rest().await), BTreeSet::from(["enriched".to_owned()]));
}

#[tokio::test]
async fn requests_that_can_not_be_answered_say_why() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut said = String::new();
    for path in [
        "/subscribe?join=enrich",
        "/subscribe?join=enriched&replay=perhaps",
        "/snapshot?join=enrich",
        "/snapshot",
        "/snapshot?join=enriched&minEpoch=soon",
        "/subscribe?joins=enriched",
        "/subscribe?join=enriched&since=1",
        "/subscribe?join=enriched&join=by_customer",
        "/subscribe?numbers=texts",
        "/snapshot?join=enriched&min_epoch=1",
        "/snapshot?join=enriched&lastEventId=1",
        "/health",
    ] {
        let (status, text) = get(&worker.url("sink live", path)).await;
        said += &format!("{path}: {status} {text}\n");
    }
    let (status, text) = get(&worker.url("sink more", "/snapshot?join=by_customer")).await;
    said += &format!("of another sink: {status} {text}\n");
    expect![[r#"
        /subscribe?join=enrich: 404 {"error":"this sink takes no join \"enrich\"; it has enriched, by_customer"}
        /subscribe?join=enriched&replay=perhaps: 400 {"error":"replay: got \"perhaps\"; allowed: true, false"}
        /snapshot?join=enrich: 404 {"error":"this sink takes no join \"enrich\"; it has enriched, by_customer"}
        /snapshot: 400 {"error":"say which join: ?join= one of enriched, by_customer"}
        /snapshot?join=enriched&minEpoch=soon: 400 {"error":"minEpoch: got \"soon\"; allowed: the epoch of an answer to POST /ingest"}
        /subscribe?joins=enriched: 400 {"error":"there is no parameter \"joins\" here; did you mean \"join\"?"}
        /subscribe?join=enriched&since=1: 400 {"error":"there is no parameter \"since\" here; allowed: join, replay, lastEventId, numbers"}
        /subscribe?join=enriched&join=by_customer: 400 {"error":"join: is given twice; write it once"}
        /subscribe?numbers=texts: 400 {"error":"numbers: got \"texts\"; allowed: json, text"}
        /snapshot?join=enriched&min_epoch=1: 400 {"error":"there is no parameter \"min_epoch\" here; did you mean \"minEpoch\"?"}
        /snapshot?join=enriched&lastEventId=1: 400 {"error":"there is no parameter \"lastEventId\" here; allowed: join, key, minEpoch, numbers"}
        /health: 200 {"status":"ok"}
        of another sink: 404 {"error":"this sink takes no join \"by_customer\"; it has enriched"}
    "#]].assert_eq(&said);
}

#[tokio::test]
async fn there_are_no_more_clients_than_are_allowed() {
    let site = WorkerSite::with(&MANIFEST.replace("corsOrigins:", "maxClients: 1, corsOrigins:"));
    let worker = site.start().await;
    let address = worker.address("sink more");
    let mut client = Subscription::open(address, "join=enriched", None).await;
    let (status, text) = get(&worker.url("sink more", "/subscribe?join=enriched")).await;
    expect![[r#"503 {"error":"1 clients are connected, and no more are allowed"}"#]]
        .assert_eq(&format!("{status} {text}"));
    // The connected client goes on getting events, and one that leaves makes room.
    worker.ingest().send(&[order("o1", "c1")]).await;
    assert_eq!(client.expect_next().await.result().key, "o1");
    drop(client);
    until("room for another client", async || {
        Subscription::try_open(address, "join=enriched", None).await.ok()
    })
    .await;
}

#[tokio::test]
async fn browsers_of_allowed_origins_may_read() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let mut said = String::new();
    for (sink, origin) in [
        ("live", "http://anywhere.example"),
        ("more", "http://dashboard.example"),
        ("more", "http://anywhere.example"),
    ] {
        for path in ["/subscribe?join=enriched", "/snapshot?join=enriched"] {
            let url = worker.url(&format!("sink {sink}"), path);
            let response = client().get(url).header("Origin", origin).send().await;
            let response = response.expect("an answer");
            let allowed = response.headers().get("access-control-allow-origin");
            said += &format!("{sink} {path} from {origin}: {allowed:?}\n");
        }
    }
    expect![[r#"
        live /subscribe?join=enriched from http://anywhere.example: Some("*")
        live /snapshot?join=enriched from http://anywhere.example: Some("*")
        more /subscribe?join=enriched from http://dashboard.example: Some("http://dashboard.example")
        more /snapshot?join=enriched from http://dashboard.example: Some("http://dashboard.example")
        more /subscribe?join=enriched from http://anywhere.example: None
        more /snapshot?join=enriched from http://anywhere.example: None
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn a_sender_reads_its_own_writes_by_the_epoch_of_the_answer() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let ingest = worker.ingest();
    for n in 0..50 {
        let key = format!("o{}", n % 5);
        let epoch = ingest.send(&[order(&key, &format!("c{n}"))]).await;
        let path = format!("/snapshot?join=by_customer&key=c{n}&minEpoch={epoch}");
        let (status, text) = get(&worker.url("sink live", &path)).await;
        assert_eq!(status, 200, "{text}");
        let snapshot: Value = serde_json::from_str(&text).expect("a snapshot is JSON");
        assert!(snapshot["epoch"].as_u64() >= Some(epoch), "{text}");
        assert_eq!(
            snapshot["results"][0]["rows"],
            json!([{"customer": format!("c{n}"), "orders": 1}]),
            "{text}"
        );
        assert_eq!(snapshot["results"].as_array().map(Vec::len), Some(1), "{text}");
    }
}

#[tokio::test]
async fn a_message_that_changes_nothing_can_be_read_back_at_once() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    worker.ingest().send(&[order("o1", "c1")]).await;
    worker.stop().await;
    // Right after a start no epoch was cut yet, and an unchanged payload cuts none.
    let worker = site.start().await;
    let epoch = worker.ingest().send(&[order("o1", "c1")]).await;
    assert_eq!(worker.snapshot("live", "enriched", epoch).await.1.rows.len(), 1);
}

#[tokio::test]
async fn every_snapshot_is_of_one_epoch() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let ingest = worker.ingest();
    let keys: Vec<String> = (0..40).map(|n| format!("o{n}")).collect();
    let writer = async {
        for n in 0..30 {
            let messages: Vec<Value> = keys.iter().map(|key| order(key, &format!("c{n}"))).collect();
            ingest.send(&messages).await;
        }
    };
    let reader = async {
        loop {
            let (_, results) = worker.snapshot("live", "by_customer", 0).await;
            let orders: u64 = results
                .rows
                .values()
                .flatten()
                .map(|row| {
                    serde_json::from_str::<Value>(row).expect("a row is JSON")["orders"].as_u64().unwrap_or(0)
                })
                .sum();
            // Orders only move between customers, so their number is the same at every epoch after the first batch.
            assert!(orders <= 40, "{results:?}");
        }
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
}

/// A pipeline of large results, with these sinks besides `live`.
fn large_results(more: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [texts]}}}}
  joins:
    - {{name: all_texts, query: "SELECT key, payload->>'text' AS text FROM texts"}}
  sinks:
    - {{name: live, joins: [all_texts], sse: {{addr: "127.0.0.1:0"}}}}
{more}"#
    )
}

#[tokio::test]
async fn a_whole_replay_costs_no_more_memory_for_large_results() {
    const RESULTS: usize = 300;
    let site = WorkerSite::with(&large_results(""));
    let worker = site.start().await;
    let text = "x".repeat(256 << 10);
    let texts: Vec<Value> =
        (0..RESULTS).map(|n| message("texts", &format!("t{n:03}"), json!({"text": text}))).collect();
    let mut epoch = 0;
    for texts in texts.chunks(20) {
        epoch = worker.ingest().send(texts).await;
    }
    assert_eq!(worker.snapshot("live", "all_texts", epoch).await.1.rows.len(), RESULTS);
    worker.stop().await;

    // One client reads nothing for as long as another one reads all.
    let worker = site.start().await;
    let before = worker.peak_memory_bytes();
    let mut clients = [
        subscribe(&worker, "join=all_texts&replay=true", None).await,
        subscribe(&worker, "join=all_texts&replay=true", None).await,
    ];
    for client in clients.iter_mut().rev() {
        assert_eq!(client.replayed().await.len(), RESULTS);
    }
    let grown = worker.peak_memory_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more for two clients");

    let server = Server::start().await;
    let before = worker.peak_memory_bytes();
    let hook =
        format!("    - {{name: hook, joins: [all_texts], http: {{url: \"{}\"}}}}\n", server.url("/hook"));
    site.write("pipeline.yaml", large_results(&hook));
    worker.reload().await;
    let what = "all to be handed over";
    until(what, async || (worker.status().await["sinks"]["hook"]["delivered"] == RESULTS).then_some(()))
        .await;
    let grown = worker.peak_memory_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more for a sink that comes");
    worker.stop().await;
}
