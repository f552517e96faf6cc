//! Snapshots that are larger than a connection holds, and clients that leave them unread.

use litejoin_tests::client::client;
use litejoin_tests::ingest::message;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 2}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - {name: ingest, http: {addr: "127.0.0.1:0", topics: [texts]}}
  joins:
    - {name: all_texts, query: "SELECT key, payload->>'text' AS text FROM texts"}
  sinks:
    - {name: live, joins: [all_texts], sse: {addr: "127.0.0.1:0", clientTimeout: 10m}}
"#;

/// Results, and bytes of each: more than sockets of both ends hold.
const RESULTS: usize = 128;
const RESULT_BYTES: usize = 256 << 10;

/// Writes all results anew, each with this letter, and returns once they are stored.
async fn write_all(worker: &Worker, letter: &str) {
    let text = letter.repeat(RESULT_BYTES);
    let texts: Vec<Value> =
        (0..RESULTS).map(|n| message("texts", &format!("t{n:03}"), json!({"text": text}))).collect();
    for texts in texts.chunks(16) {
        let epoch = worker.ingest().send(texts).await;
        let one = worker.url("sink live", &format!("/snapshot?key=t000&minEpoch={epoch}"));
        assert_eq!(get(&one).await.0, 200);
    }
}

/// Asks for a snapshot, and reads no more than the head of the answer.
async fn unread_snapshot(worker: &Worker) -> reqwest::Response {
    let response = client().get(worker.url("sink live", "/snapshot")).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    response
}

/// Reads a snapshot to its end; all its results have this letter.
async fn assert_whole(snapshot: reqwest::Response, letter: char) {
    let snapshot: Value = snapshot.json().await.expect("the snapshot is whole");
    let results = snapshot["results"].as_array().expect("results is a list");
    assert_eq!(results.len(), RESULTS);
    for result in results {
        let text = result["rows"][0]["text"].as_str().expect("a text");
        assert!(text.len() == RESULT_BYTES && text.chars().all(|other| other == letter));
    }
}

#[tokio::test]
async fn a_snapshot_that_its_client_does_not_read_lets_the_wal_start_over() {
    /// WALs are checkpointed from 16 MiB on; a batch of results adds 8.
    const WAL_BYTES_MAX: u64 = 96 << 20;
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    write_all(&worker, "a").await;
    let mut unread = Vec::new();
    for _ in 0..3 {
        unread.push(unread_snapshot(&worker).await);
    }
    let wal = site.data_dir().join("results.db-wal");
    for letter in ["b", "c", "d", "e"] {
        write_all(&worker, letter).await;
        let bytes = wal.metadata().expect("results.db has a WAL").len();
        assert!(bytes < WAL_BYTES_MAX, "the WAL has grown to {bytes} bytes");
    }
    for snapshot in unread {
        assert_whole(snapshot, 'a').await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn clients_that_do_not_read_their_snapshots_hold_up_no_other() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    write_all(&worker, "a").await;
    let mut unread = Vec::new();
    for _ in 0..12 {
        unread.push(unread_snapshot(&worker).await);
    }
    assert_whole(unread_snapshot(&worker).await, 'a').await;
    drop(unread);
    worker.stop().await;
}
