//! Sources and sinks that come, change and go with a reload, and the addresses that they listen on.

use std::net::TcpListener;

use expect_test::expect;
use litejoin_tests::ingest::message;
use litejoin_tests::results::Event;
use litejoin_tests::sse::Subscription;
use litejoin_tests::worker::WorkerSite;
use serde_json::{Value, json};

use super::{INGEST, LIVE, all, assert_applied, manifest, next, orders, shown, store};

#[tokio::test]
async fn a_sink_that_takes_another_join_is_handed_what_is_there() {
    // The second join has no sink at first, so its results change without an event.
    let untaken = "    - {name: untaken, query: \"SELECT key, payload->>'n' AS n FROM orders WHERE payload->>'n' > 0\"}";
    let taken = untaken.replace("name: untaken,", "name: untaken, sinks: [live, console],");
    let only = all().replace("[live]", "[live, console]");
    let console = format!("{LIVE}\n    - {{name: console, stdout: {{}}}}");
    let site = WorkerSite::with(&manifest(INGEST, &format!("{only}\n{untaken}"), &console));
    let worker = site.start().await;
    store(&worker, &orders(0..3)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 3);
    let epoch = worker.ingest().send(&[message("orders", "o1", json!({"n": 7}))]).await;
    worker.wait_for_stdout(4).await;

    site.write("pipeline.yaml", manifest(INGEST, &format!("{only}\n{taken}"), &console));
    assert_applied(&worker.reload().await);
    let lines = worker.wait_for_stdout(6).await;
    let events: Vec<Event> = lines[4..].iter().map(|line| Event::read(line)).collect();
    expect![[r#"
        untaken updated "o1" [{"key":"o1","n":7}]
        untaken created "o2" [{"key":"o2","n":2}]
    "#]]
    .assert_eq(&shown(&events));
    assert!(events.iter().all(|event| event.epoch <= epoch), "they are what was there");
    let came = next(&mut client, 3).await;
    expect![[r#"
        all_orders updated "o1" [{"key":"o1","n":7}]
        untaken updated "o1" [{"key":"o1","n":7}]
        untaken created "o2" [{"key":"o2","n":2}]
    "#]]
    .assert_eq(&shown(&came));

    // Later changes come once.
    worker.ingest().put("orders", "o2", json!({"n": 8})).await;
    assert_eq!(worker.wait_for_stdout(8).await.len(), 8);
    let came = next(&mut client, 2).await;
    assert_eq!(came.iter().map(|event| event.query.as_str()).collect::<Vec<_>>(), ["all_orders", "untaken"]);
    client.expect_comment().await;
    worker.stop().await;
}

#[tokio::test]
async fn sinks_come_and_go_and_a_new_one_gets_the_whole() {
    let both = all().replace("[live]", "[live, console]");
    let console = "    - {name: console, stdout: {}}";
    let second = LIVE.replace("name: live", "name: second");
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.start().await;
    store(&worker, &orders(0..3)).await;
    let mut client = Subscription::open(worker.address("sink live"), "replay=true", None).await;
    assert_eq!(client.replayed().await.len(), 3);

    site.write(
        "pipeline.yaml",
        manifest(
            INGEST,
            &both.replace("console]", "console, second]"),
            &format!("{LIVE}\n{console}\n{second}"),
        ),
    );
    assert_applied(&worker.reload().await);
    assert_eq!(worker.wait_for_stdout(3).await.len(), 3);
    assert_eq!(worker.snapshot("second", "all_orders", 0).await.1.rows.len(), 3);
    let mut of_second = Subscription::open(worker.address("sink second"), "", None).await;

    site.write("pipeline.yaml", manifest(INGEST, &both, &format!("{LIVE}\n{console}")));
    assert_applied(&worker.reload().await);
    assert_eq!(of_second.next().await, None, "its sink is gone");
    assert!(
        Subscription::try_open(worker.address("sink second"), "", None).await.is_err(),
        "its port is closed"
    );
    worker.ingest().send(&orders(3..4)).await;
    assert_eq!(worker.wait_for_stdout(4).await.len(), 4);
    assert_eq!(client.expect_next().await.result().key, "o3", "and nothing before it");

    // A sink that was away is a new one.
    site.write("pipeline.yaml", manifest(INGEST, &all(), LIVE));
    assert_applied(&worker.reload().await);
    site.write("pipeline.yaml", manifest(INGEST, &both, &format!("{LIVE}\n{console}")));
    assert_applied(&worker.reload().await);
    let lines = worker.wait_for_stdout(8).await;
    let keys: Vec<Value> = lines[4..].iter().map(|line| Event::read(line).key).collect();
    assert_eq!(keys, ["o0", "o1", "o2", "o3"]);
    client.expect_comment().await;
    worker.stop().await;
}

/// A free address.
fn free_address() -> String {
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    taken.local_addr().expect("a listener has an address").to_string()
}

#[tokio::test]
async fn an_address_goes_from_one_part_to_another() {
    let (one, two) = (free_address(), free_address());
    let source = |addr: &str, topics: &str| {
        format!("    - {{name: ingest, http: {{addr: \"{addr}\", topics: [{topics}]}}}}")
    };
    let sink = |addr: &str| format!("    - {{name: live, sse: {{addr: \"{addr}\"}}}}");
    let site = WorkerSite::with(&manifest(&source(&one, "orders"), &all(), &sink(&two)));
    let worker = site.start().await;
    worker.ingest().send(&orders(0..1)).await;
    // Same address, other topics: the socket stays open.
    site.write("pipeline.yaml", manifest(&source(&one, "orders, notes"), &all(), &sink(&two)));
    assert_applied(&worker.reload().await);
    worker.ingest().put("notes", "x", json!({"n": 1})).await;
    // Source and sink change places.
    site.write("pipeline.yaml", manifest(&source(&two, "orders"), &all(), &sink(&one)));
    assert_applied(&worker.reload().await);
    assert_eq!(worker.address("source ingest").to_string(), two);
    let epoch = worker.ingest().send(&orders(1..2)).await;
    assert_eq!(worker.address("sink live").to_string(), one);
    assert_eq!(worker.snapshot("live", "all_orders", epoch).await.1.rows.len(), 2);

    // The same port on every interface can't be opened beside the port on one.
    let port = one.rsplit_once(':').expect("an address has a port").1;
    let wide = manifest(&source(&two, "orders"), &all(), &sink(&format!(":{port}")));
    site.write("pipeline.yaml", wide);
    let config = worker.reload().await;
    let error = config["lastReload"]["error"].as_str().expect("it is refused");
    expect!["sink live: :<port>: sink live of the running config still has the port, as 127.0.0.1:<port>; write that, take another port, or restart to apply"].assert_eq(&error.replace(port, "<port>"));
    worker.stop().await;
}

#[tokio::test]
async fn sources_come_and_go_and_a_file_goes_on_where_it_was() {
    let rows = |numbers: std::ops::Range<u64>| -> String {
        numbers.map(|n| format!("{{\"id\": \"o{n}\", \"n\": {n}}}\n")).collect()
    };
    let file = "    - {name: rows, file: {path: rows.ndjson, format: ndjson, topic: orders, keyColumns: [id], follow: true}}";
    let other = INGEST.replace("name: ingest", "name: other").replace("[orders, customers]", "[customers]");
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "", None).await;
    site.write("rows.ndjson", rows(0..3));
    site.write("pipeline.yaml", manifest(&format!("{INGEST}\n{file}\n{other}"), &all(), LIVE));
    assert_applied(&worker.reload().await);
    next(&mut client, 3).await;
    let address = worker.address("source other");
    litejoin_tests::ingest::Ingest::new(address).put("customers", "c", json!({})).await;

    site.write("pipeline.yaml", manifest(INGEST, &all(), LIVE));
    assert_applied(&worker.reload().await);
    assert!(
        litejoin_tests::ingest::Ingest::new(address).try_send(&orders(0..1)).await.is_err(),
        "its port is closed"
    );
    let sources = worker.status().await["sources"].clone();
    assert_eq!(sources.as_object().expect("sources by name").keys().collect::<Vec<_>>(), ["ingest"]);
    site.write("rows.ndjson", rows(0..5));
    worker.ingest().put("orders", "o0", json!({"n": "newer"})).await;
    next(&mut client, 1).await;

    site.write("pipeline.yaml", manifest(&format!("{INGEST}\n{file}"), &all(), LIVE));
    assert_applied(&worker.reload().await);
    let came = next(&mut client, 2).await;
    assert_eq!(came.iter().map(|event| &event.key).collect::<Vec<_>>(), ["o3", "o4"]);
    // Rows that were read before are not read again.
    client.expect_comment().await;
    worker.stop().await;
}
