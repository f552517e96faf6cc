//! The data of a pipeline goes to another number of shards: by the command, and by a start that finds consent.

mod full_disk;
mod load;
pub(crate) mod online;

use expect_test::{Expect, expect};
use litejoin_tests::client::client;
use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::ports::PortBlock;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get, program};
use serde_json::{Value, json};

const QUERY: &str = "SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'name' AS name
                     FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'";

fn manifest(storage: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{{storage}}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders, customers]}}}}
  joins:
    - name: enriched
      query: |
        {QUERY}
      sinks: [live]
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

fn order(number: usize) -> Value {
    message("orders", &format!("o{number}"), json!({ "n": number, "customer": format!("c{}", number % 7) }))
}

/// A stopped pipeline of two shards with 100 orders of which some were deleted, and the id of its last event.
async fn stored() -> (WorkerSite, String) {
    let site = WorkerSite::with(&manifest("shardCount: 2"));
    let worker = site.start().await;
    let mut messages: Vec<Value> = (0..100).map(order).collect();
    messages
        .extend((0..7).map(|n| message("customers", &format!("c{n}"), json!({ "name": format!("n{n}") }))));
    worker.ingest().send(&messages).await;
    let deleted: Vec<Value> = (0..10).map(|n| message("orders", &format!("o{n}"), Value::Null)).collect();
    let epoch = worker.ingest().send(&deleted).await;
    worker.snapshot("live", "enriched", epoch).await;
    let mut client = Subscription::open(worker.address("sink live"), "join=enriched&replay=true", None).await;
    client.replayed().await;
    let id = client.last_event_id.clone().expect("events have ids");
    worker.stop().await;
    (site, id)
}

/// Runs `litejoin reshard` and holds its exit code and all that it prints to what is expected. Sizes, times and the folder
/// of the site are left out.
async fn reshard(site: &WorkerSite, arguments: &[&str], code: i32, expected: Expect) {
    let ended = site.command(["reshard"].into_iter().chain(arguments.iter().copied())).end().await;
    let said = ended.stderr.lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n"));
    let text = ended.stdout.clone() + &said.collect::<String>();
    let text = text.replace(&site.path().display().to_string(), "<site>");
    expected.assert_eq(&without_figures(&text));
    assert_eq!(ended.code, Some(code), "{}", ended.stderr);
}

/// Puts `<n>` in the place of sizes, seconds and times.
fn without_figures(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n', '(']);
    let mut before = "";
    let plain = words.map(|word| {
        let number = word.trim_end().trim_start_matches('(');
        let is_size = number.contains('.') && number.parse::<f64>().is_ok();
        let is_time = number.contains('T') && number.ends_with('Z');
        let is_pid = std::mem::replace(&mut before, word) == "process ";
        let number = if is_pid { number.trim_end_matches(';') } else { number };
        if is_size || is_time || is_pid { word.replace(number, "<n>") } else { word.to_owned() }
    });
    plain.collect()
}

/// Holds all results to SQLite over the rows of the shards, and returns the worker's lineage.
async fn assert_whole(site: &WorkerSite, worker: &Worker, orders: usize) -> String {
    let epoch = worker.ingest().put("customers", "c6", json!({ "name": format!("{orders}") })).await;
    let (_, results) = worker.snapshot("live", "enriched", epoch).await;
    let oracle = Oracle::read(&site.data_dir(), ["orders", "customers"]);
    results.assert_same(&oracle.results("enriched", QUERY, None), "after the move");
    assert_eq!(results.rows.len(), orders);
    worker.status().await["lineage"].as_str().expect("it has one").to_owned()
}

#[tokio::test]
async fn the_command_moves_the_data_there_and_back() {
    let (site, _) = stored().await;
    reshard(
        &site,
        &["--data-dir", "data", "--to", "5", "--plan"],
        0,
        expect![[r#"
        data: 97 rows (<n> MiB) go from 2 shards to 5
        it takes up to <n> MiB beside them (<n> MiB are free) and about 1 s, in which the pipeline is stopped
    "#]],
    )
    .await;
    assert!(!site.data_dir().join("reshard").exists(), "a plan does nothing");
    reshard(
        &site,
        &["--data-dir", "data", "--to", "5"],
        0,
        expect![[r#"
        data: 97 rows (<n> MiB) go from 2 shards to 5
        it takes up to <n> MiB beside them (<n> MiB are free) and about 1 s, in which the pipeline is stopped
        copied and verified 97 rows in <n> s
        the data has 5 shards now; the 2 of before are kept until <n> (--undo goes back)
        next: set storage.shardCount to 5 and start the pipeline
    "#]],
    )
    .await;
    reshard(
        &site,
        &["--data-dir", "data", "--to", "5"],
        1,
        expect![[r#"
        error: data: has 5 shards already; nothing is to be done
    "#]],
    )
    .await;
    reshard(
        &site,
        &["--data-dir", "data", "--undo"],
        0,
        expect![[r#"
        data: back to 2 shards
        next: set storage.shardCount to 2 and start the pipeline
    "#]],
    )
    .await;
    reshard(&site, &["--data-dir", "data", "--undo"], 1, expect![[r#"
        error: data: no layout of before is kept; go back by --to with the number of before, which moves the data again
    "#]]).await;
    reshard(
        &site,
        &["--data-dir", "data", "--to", "3"],
        0,
        expect![[r#"
        data: 97 rows (<n> MiB) go from 2 shards to 3
        it takes up to <n> MiB beside them (<n> MiB are free) and about 1 s, in which the pipeline is stopped
        copied and verified 97 rows in <n> s
        the data has 3 shards now; the 2 of before are kept until <n> (--undo goes back)
        next: set storage.shardCount to 3 and start the pipeline
    "#]],
    )
    .await;
}

#[tokio::test]
async fn results_and_subscribers_go_on_after_a_move_and_after_its_undoing() {
    let (site, last_id) = stored().await;
    let lineage = last_id.split('.').next().expect("an id begins with it").to_owned();
    let moved = site.command(["reshard", "--data-dir", "data", "--to", "3"]).end().await;
    assert_eq!(moved.code, Some(0), "{}", moved.stderr);
    site.write("pipeline.yaml", manifest("shardCount: 3"));
    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=enriched", Some(&last_id)).await;
    assert_eq!(assert_whole(&site, &worker, 90).await, lineage, "ids go on");
    let event = client.expect_next().await;
    assert_eq!(event.event, "join_result", "nothing is sent again, and nothing begins anew: {}", event.data);
    let epoch = worker.ingest().send(&[order(100)]).await;
    worker.snapshot("live", "enriched", epoch).await;
    let mut old = message("orders", "o3", json!({ "n": 0 }));
    old["timestamp"] = json!(1_000);
    worker.ingest().send(&[old]).await;
    assert_eq!(assert_whole(&site, &worker, 91).await, lineage, "a tombstone keeps an older message out");
    worker.stop().await;

    reshard(
        &site,
        &["--data-dir", "data", "--undo"],
        0,
        expect![[r#"
        data: back to 2 shards
        next: set storage.shardCount to 2 and start the pipeline
    "#]],
    )
    .await;
    site.write("pipeline.yaml", manifest("shardCount: 2"));
    let worker = site.start().await;
    assert_eq!(assert_whole(&site, &worker, 91).await, lineage, "what came since the move is there");
    worker.stop().await;
}

#[tokio::test]
async fn a_start_with_consent_moves_the_data_or_takes_a_copy_that_is_there() {
    let (site, last_id) = stored().await;
    let consent = |keep: &str| {
        manifest(&format!(
            "shardCount: 4, reshard: {{fromShardCount: 2, toShardCount: 4, keepOldLayout: {keep}}}"
        ))
    };
    site.write("pipeline.yaml", consent("24h"));
    reshard(&site, &["-f", "pipeline.yaml", "--data-dir", "data", "--no-switch"], 0, expect![[r#"
        data: 97 rows (<n> MiB) go from 2 shards to 4
        it takes up to <n> MiB beside them (<n> MiB are free) and about 1 s, in which the pipeline is stopped
        copied and verified 97 rows in <n> s
        nothing is switched yet
        next: start the pipeline with storage.shardCount: 4 and storage.reshard: {fromShardCount: 2, toShardCount: 4}
    "#]]).await;
    reshard(
        &site,
        &["-f", "pipeline.yaml", "--data-dir", "data", "--verify-only"],
        0,
        expect![[r#"
        verified 97 rows in <n> s
        the copy is what the data is
    "#]],
    )
    .await;
    // A start with the number of before goes on with the data of before, and the copy counts no more.
    site.write("pipeline.yaml", manifest("shardCount: 2"));
    let worker = site.start().await;
    assert_whole(&site, &worker, 90).await;
    worker.stop().await;
    assert!(!site.data_dir().join("reshard").exists(), "the copy is gone");
    site.write("pipeline.yaml", consent("24h"));
    reshard(
        &site,
        &["-f", "pipeline.yaml", "--data-dir", "data", "--verify-only"],
        1,
        expect![[r#"
        error: data/reshard: there is no copy of the data as it is now; run it without --verify-only first
    "#]],
    )
    .await;
    reshard(&site, &["-f", "pipeline.yaml", "--data-dir", "data", "--no-switch"], 0, expect![[r#"
        data: 97 rows (<n> MiB) go from 2 shards to 4
        it takes up to <n> MiB beside them (<n> MiB are free) and about 1 s, in which the pipeline is stopped
        copied and verified 97 rows in <n> s
        nothing is switched yet
        next: start the pipeline with storage.shardCount: 4 and storage.reshard: {fromShardCount: 2, toShardCount: 4}
    "#]]).await;
    let worker = site.start().await;
    let lineage = assert_whole(&site, &worker, 90).await;
    assert!(last_id.starts_with(&lineage), "ids go on");
    assert!(site.data_dir().join("previous-layout").exists(), "the layout of before is kept");
    worker.stop().await;
    // What is done is not done again, and the layout of before goes when its time is over.
    let worker = site.start().await;
    assert_whole(&site, &worker, 90).await;
    worker.stop().await;
    let back = "shardCount: 2, reshard: {fromShardCount: 4, toShardCount: 2, keepOldLayout: 0s}";
    site.write("pipeline.yaml", manifest(back));
    let worker = site.start().await;
    assert_whole(&site, &worker, 90).await;
    assert!(!site.data_dir().join("previous-layout").exists(), "it was not to be kept");
    worker.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_said_and_changes_nothing() {
    let (site, _) = stored().await;
    let before = files(&site);
    reshard(
        &site,
        &["--data-dir", "data"],
        2,
        expect![[r#"
        error: the following required arguments were not provided:
          --to <N>

        Usage: litejoin reshard --data-dir <DIR> --to <N>

        For more information, try '--help'.
    "#]],
    )
    .await;
    reshard(
        &site,
        &["--data-dir", "data", "--to", "0"],
        1,
        expect![[r#"
        error: the number of shards: got 0, allowed: 1 to 64
    "#]],
    )
    .await;
    reshard(
        &site,
        &["--data-dir", "data", "--to", "65"],
        1,
        expect![[r#"
        error: the number of shards: got 65, allowed: 1 to 64
    "#]],
    )
    .await;
    reshard(
        &site,
        &["--data-dir", "nowhere", "--to", "4"],
        1,
        expect![[r#"
        error: nowhere: holds no data yet; start the pipeline there, or give the --data-dir of one that ran
    "#]],
    )
    .await;
    reshard(
        &site,
        &["--data-dir", "data", "--to", "4", "--verify-only"],
        1,
        expect![[r#"
        error: data/reshard: there is no copy of the data as it is now; run it without --verify-only first
    "#]],
    )
    .await;
    reshard(&site, &["--data-dir", "data", "--undo"], 1, expect![[r#"
        error: data: no layout of before is kept; go back by --to with the number of before, which moves the data again
    "#]]).await;
    site.write("other.yaml", manifest("shardCount: 4").replace("{name: p}", "{name: q}"));
    reshard(&site, &["-f", "other.yaml", "--data-dir", "data"], 1, expect![[r#"
        error: data: holds the data of pipeline "default/p", and this is "default/q"; give this pipeline its own --data-dir, or write spec.replication.identity: default/p to go on with that data
    "#]]).await;
    assert!(!site.path().join("nowhere").exists(), "no folder was made");
    assert_eq!(files(&site), before);
}

#[tokio::test]
async fn what_is_in_the_way_of_a_copy_goes_and_a_worker_that_runs_is_left_alone() {
    let (site, _) = stored().await;
    // Half of a copy, and a note that can't be read.
    std::fs::create_dir(site.data_dir().join("reshard")).expect("a folder can be made");
    std::fs::write(site.data_dir().join("reshard/shard_0.db"), "half").expect("a file can be written");
    std::fs::write(site.data_dir().join("reshard/copy.json"), "{").expect("a file can be written");
    reshard(
        &site,
        &["--data-dir", "data", "--to", "4"],
        0,
        expect![[r#"
        data: 97 rows (<n> MiB) go from 2 shards to 4
        it takes up to <n> MiB beside them (<n> MiB are free) and about 1 s, in which the pipeline is stopped
        copied and verified 97 rows in <n> s
        the data has 4 shards now; the 2 of before are kept until <n> (--undo goes back)
        next: set storage.shardCount to 4 and start the pipeline
    "#]],
    )
    .await;
    site.write("pipeline.yaml", manifest("shardCount: 4"));
    let worker = site.start().await;
    reshard(&site, &["--data-dir", "data", "--to", "2"], 1, expect![[r#"
        error: data: the data directory is in use by process <n>; stop that one, or give this one its own --data-dir
    "#]]).await;
    assert_whole(&site, &worker, 90).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_disk_without_room_is_told_by_its_numbers_before_anything_is_done() {
    let (site, _) = stored().await;
    let run = "mkdir small && mount -t tmpfs -o size=8m tmpfs small && cp data/*.* small && \
               \"$0\" reshard --data-dir small --to 16; code=$?; ls small | grep -v -e -wal -e -shm >&2; exit $code";
    let mut command = std::process::Command::new("unshare");
    // A test that is not run by root is root in a user namespace.
    command.args(["--mount", "--map-root-user", "sh", "-c", run]).arg(program());
    let ended = site.launch(command).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let lines = ended.stderr.lines().filter(|line| !line.starts_with('{')).map(|line| format!("{line}\n"));
    expect![[r#"
        error: small: the copy takes <n> MiB beside the data, and <n> MiB are free; free some space, or give the volume more (spec.storage.size)
        dlq.db
        in-force.json
        layout.json
        lock
        results.db
        shard_0.db
        shard_1.db
    "#]].assert_eq(&without_figures(&lines.collect::<String>()));
}

/// The names of the files in the data directory.
fn files(site: &WorkerSite) -> Vec<String> {
    let entries = std::fs::read_dir(site.data_dir()).expect("a folder can be listed");
    let names = entries.map(|entry| entry.expect("a folder can be listed").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.ends_with("-shm") && !name.ends_with("-wal"));
    names.sort();
    names
}

#[tokio::test]
async fn addresses_answer_while_the_data_is_moved() {
    let (site, _) = stored().await;
    let ports = PortBlock::free();
    let [ingest, live, admin] = [0, 1, 2].map(|number| format!("127.0.0.1:{}", ports.number(number)));
    let served = manifest("shardCount: 4")
        .replace(r#"admin: {addr: "127.0.0.1:0"}"#, &format!(r#"admin: {{addr: "{admin}"}}"#))
        .replace(r#"sse: {addr: "127.0.0.1:0"}"#, &format!(r#"sse: {{addr: "{live}"}}"#))
        .replace(r#"http: {addr: "127.0.0.1:0""#, &format!(r#"http: {{addr: "{ingest}""#));
    site.write("pipeline.yaml", served);
    let before = files(&site);
    let arguments = ["reshard", "-f", "pipeline.yaml", "--data-dir", "data", "--no-switch", "--serve"];
    let mut mover = site.command(arguments).with_variable("LITEJOIN_STALL", "data-copied").spawn();
    let report = until("the copy to be there", async || {
        let answer = client().get(format!("http://{admin}/status")).send().await.ok()?;
        let status: Value = answer.json().await.ok()?;
        (status["reshard"]["rows"] == 97).then(|| status["reshard"].clone())
    })
    .await;
    assert_eq!([&report["phase"], &report["rowsTotal"]], [&json!("Copying"), &json!(97)]);
    assert_eq!([&report["fromShardCount"], &report["toShardCount"]], [2, 4]);
    assert_eq!(get(&format!("http://{admin}/healthz")).await.0, 200);
    for address in [&format!("{ingest}/ingest"), &format!("{live}/subscribe"), &format!("{admin}/readyz")] {
        let answer = client().get(format!("http://{address}")).send().await.expect("it answers");
        assert_eq!(answer.status(), 503, "{address}");
        assert_eq!(answer.headers()["retry-after"], "5", "{address}");
    }
    mover.signal("TERM");
    assert_eq!(mover.wait().await, Some(143));
    let after: Vec<String> = files(&site).into_iter().filter(|name| name != "reshard").collect();
    assert_eq!(after, before, "the data is as it was");
}
