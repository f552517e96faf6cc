//! Starting, stopping, and the admin endpoint meanwhile.

use std::io::{BufRead, BufReader};

use expect_test::expect;
use litejoin_tests::ingest::message;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 2}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - name: ingest
      http: {addr: "127.0.0.1:0", topics: [orders]}
  joins:
    - {name: all_orders, query: "SELECT key, payload->>'n' AS n FROM orders", sinks: [console]}
  sinks:
    - name: console
      stdout: {}
"#;

fn orders(count: u64) -> Vec<Value> {
    (0..count).map(|n| message("orders", &format!("o{n}"), json!({"n": n}))).collect()
}

#[tokio::test]
async fn a_planned_stop_hands_over_all_that_was_acknowledged() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    worker.ingest().send(&orders(5_000)).await;
    let ended = worker.stop().await;
    let events: Vec<Event> = ended.stdout.lines().map(Event::read).collect();
    assert_eq!(Results::folded(&events).rows.len(), 5_000);
    assert!(!site.data_dir().join("scratch.db").exists(), "scratch data is removed");
    // Results that were printed are not printed again.
    let again = site.start().await.stop().await;
    assert_eq!(again.stdout, "");
}

/// Opens connections that announce a large body, and waits until the worker wants to read it.
async fn announce_bodies(worker: &Worker, count: usize) -> Vec<TcpStream> {
    let head = "POST /ingest HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 16777216\r\n\r\n";
    let announce = async || {
        let mut stream = TcpStream::connect(worker.address("source ingest")).await.expect("there is room");
        stream.write_all(head.as_bytes()).await.expect("it is taken");
        let mut answer = [0; 25];
        stream.read_exact(&mut answer).await.expect("an answer comes");
        assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    };
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(announce().await);
    }
    streams
}

#[tokio::test]
async fn bodies_that_do_not_come_hold_up_no_others() {
    let with_file = "  sources:\n    - {name: input, file: {path: in.csv, topic: orders, keyColumns: [id], follow: true}}";
    let site = WorkerSite::with(&MANIFEST.replace("  sources:", with_file));
    site.write("in.csv", "id,n\nf0,0\n");
    let worker = site.start().await;
    worker.wait_for_stdout(1).await;
    let mut slow = announce_bodies(&worker, 4).await;
    // Bodies without a length, of which little has come, hold up no others either.
    let begun = "POST /ingest HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n";
    for _ in 0..4 {
        let mut stream = TcpStream::connect(worker.address("source ingest")).await.expect("there is room");
        stream.write_all(begun.as_bytes()).await.expect("it is taken");
        slow.push(stream);
    }
    worker.ingest().put("orders", "posted", json!({"n": 1})).await;
    site.write("in.csv", "id,n\nf0,0\nf1,1\n");
    worker.wait_for_stdout(3).await;
    worker.ingest().send(&orders(5_000)).await;
    // Neither such bodies nor a request that has only begun spoil a planned stop.
    let mut head = TcpStream::connect(worker.address("source ingest")).await.expect("there is room");
    head.write_all(b"POST /ingest HT").await.expect("it is taken");
    let ended = worker.stop().await;
    let events: Vec<Event> = ended.stdout.lines().map(Event::read).collect();
    assert_eq!(Results::folded(&events).rows.len(), 5_003);
    assert!(!ended.stderr.contains("stopped before all results were handed over"), "{}", ended.stderr);
    let mut answer = String::new();
    slow[0].read_to_string(&mut answer).await.expect("an answer comes");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the worker is stopping"), "{answer}");
}

#[tokio::test]
async fn results_of_a_killed_worker_reach_standard_output_after_its_restart() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    worker.ingest().send(&orders(1_000)).await;
    let before = worker.kill().await.stdout;
    let worker = site.start().await;
    let end = worker.ingest().put("orders", "end", json!({"n": 0})).await;
    let after = worker.stop().await.stdout;
    // A kill may cut a line in two; the whole line comes again.
    let whole = before.split_inclusive('\n').filter(|line| line.ends_with("}\n")).chain(after.lines());
    let events: Vec<Event> = whole.map(Event::read).collect();
    assert_eq!(Results::folded(&events).rows.len(), 1_001);
    assert!(events.iter().all(|event| event.epoch <= end));
}

#[tokio::test]
async fn a_second_signal_ends_a_stop_that_takes_too_long() {
    let site = WorkerSite::with(MANIFEST);
    // The other end is not read, so the sink can't deliver.
    let (unread, stdout) = std::io::pipe().expect("a pipe can be made");
    let mut worker = site.run([]).with_stdout(stdout).start().await;
    worker.ingest().send(&orders(5_000)).await;
    worker.signal("TERM");
    until("the stop to begin", async || worker.log().contains("stopping: sources first").then_some(())).await;
    worker.signal("TERM");
    assert_eq!(worker.wait().await, Some(130));
    drop(unread);
    // All results come at the next start.
    let ended = site.start().await.stop().await;
    let events: Vec<Event> = ended.stdout.lines().map(Event::read).collect();
    assert_eq!(Results::folded(&events).rows.len(), 5_000);
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_ends_the_worker() {
    let site = WorkerSite::with(MANIFEST);
    let (read, stdout) = std::io::pipe().expect("a pipe can be made");
    let worker = site.run([]).with_stdout(stdout).start().await;
    let ingest = worker.ingest();
    ingest.send(&orders(1)).await;
    let mut first = String::new();
    BufReader::new(read).read_line(&mut first).expect("a line comes");
    assert_eq!(Event::read(&first).key, "o0");
    // The reader is gone, which the next line finds. The answer to its message may be lost in the stop.
    let _ = ingest.try_send(&orders(100)).await;
    let ended = worker.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[tokio::test]
async fn the_admin_address_shows_health_status_and_metrics() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    worker.ingest().send(&orders(3)).await;
    worker
        .ingest()
        .send(&[message("orders", "o0", json!({"n": 0})), message("orders", "o1", Value::Null)])
        .await;
    worker.wait_for_stdout(4).await;
    let admin = |path: &str| worker.url("admin", path);
    assert_eq!(get(&admin("/healthz")).await, (200, r#"{"status":"ok"}"#.to_owned()));
    assert_eq!(get(&admin("/readyz")).await, (200, r#"{"status":"ready"}"#.to_owned()));
    let status = until("the sink's counters", async || {
        Some(worker.status().await).filter(|status| status["sinks"]["console"]["delivered"] == 4)
    })
    .await;
    let parts =
        [&status["topics"]["orders"], &status["sinks"]["console"]["lagEpochs"], &status["storageError"]];
    expect![[r#"
        {"bytes":18,"created":3,"deleted":1,"expired":0,"replayed":0,"retention":"forever","rows":2,"source":["ingest"],"stale":0,"superseded":0,"unchanged":1,"updated":0}
        0
        null
    "#]]
    .assert_eq(&parts.map(|part| format!("{part}\n")).concat());
    let source = &status["sources"]["ingest"];
    assert_eq!(
        (&source["accepted"], &source["at"]),
        (&json!(5), &json!(worker.address("source ingest").to_string()))
    );
    assert_eq!(status["joins"]["all_orders"]["lastError"], Value::Null);
    assert_eq!((&status["pipeline"], &status["identity"]), (&json!("p"), &json!("default/p")));

    let (code, metrics) = get(&admin("/metrics")).await;
    assert_eq!(code, 200);
    for line in [
        "litejoin_ready{} 1",
        "litejoin_topic_messages_total{topic=\"orders\",op=\"created\"} 3",
        "litejoin_topic_messages_total{topic=\"orders\",op=\"unchanged\"} 1",
        "litejoin_topic_messages_total{topic=\"orders\",op=\"deleted\"} 1",
        "litejoin_source_accepted_total{source=\"ingest\"} 5",
        "litejoin_sink_delivered_total{sink=\"console\"} 4",
        "litejoin_join_failing{join=\"all_orders\"} 0",
        "# EOF",
    ] {
        let found = metrics.lines().any(|found| found.replace(".0", "") == line);
        assert!(found, "no line {line} in\n{metrics}");
    }
}

#[tokio::test]
async fn help_teaches_and_completions_complete() {
    let site = WorkerSite::new();
    let help = site.command(["--help"]).end().await;
    assert_eq!(help.code, Some(0));
    for taught in ["litejoin run -f examples/flights", "litejoin validate -f", "sources fill topics (tables)"]
    {
        assert!(help.stdout.contains(taught), "no {taught:?} in\n{}", help.stdout);
    }
    let run = site.command(["run", "--help"]).end().await;
    for taught in ["--data-dir", "--once", "Exit codes:", "kill -9"] {
        assert!(run.stdout.contains(taught), "no {taught:?} in\n{}", run.stdout);
    }
    let version = site.command(["--version"]).end().await;
    assert_eq!(version.stdout, format!("litejoin {}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        let script = site.command(["completions", shell]).end().await;
        assert!(script.code == Some(0) && script.stdout.contains("data-dir"), "{shell}: {}", script.stdout);
    }
    let nothing = site.command([]).end().await;
    assert_eq!(nothing.code, Some(2));
    let endless = WorkerSite::with(MANIFEST).run(["--once"]).end().await;
    assert_eq!(endless.code, Some(1));
    expect![[r#"
        error: --once needs sources that come to an end, and ingest does not; leave --once out
    "#]]
    .assert_eq(&endless.stderr);
}
