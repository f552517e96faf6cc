//! Loss of files, or of their newest part as under `synchronous: normal` when a machine loses its power. The rows that
//! are left count: results are those of the query over them, and clients that got more are sent the difference.

use litejoin_tests::results::Event;
use litejoin_tests::server::Server;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::json;

use super::run::{FaultRun, LiveWorker};

/// The databases that an evaluation reads or writes.
const ALL: [&str; 4] = ["shard_0.db", "shard_1.db", "shard_2.db", "results.db"];

/// Steps of a repair.
const REPAIR: [&str; 8] = [
    "loss-noticed",
    "loss-noted",
    "copied",
    "evaluated-in-background",
    "result-stored",
    "results-written",
    "results-committed",
    "outbox-settled",
];

/// Points at which a worker dies in a test of this file.
pub(super) fn points() -> impl Iterator<Item = &'static str> {
    REPAIR.into_iter().chain(["lineage-renewed"])
}

/// A run that is called `what`, with a worker that has stored and delivered something and is at rest.
async fn begin(what: &str) -> (FaultRun, LiveWorker) {
    let mut run = FaultRun::new("10m");
    run.what = what.to_owned();
    let live = run.start_well().await;
    run.load(&live, 20).await;
    let live = run.check(live).await;
    (run, live)
}

/// Starts a worker, and asserts that its results are those of the query.
async fn end(mut run: FaultRun) {
    let live = run.start_well().await;
    run.settle(live).await;
    // A second start succeeds too.
    let live = run.start_well().await;
    run.load(&live, 5).await;
    run.settle(live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_without_its_last_commits_is_what_counts() {
    let (mut run, live) = begin("a shard lost its last commits").await;
    let saved = run.save(&live, &["shard_1.db"]);
    run.load(&live, 20).await;
    run.kill(live).await;
    run.put_back(&saved);
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_repair_of_a_loss_may_be_killed_at_every_step() {
    let (mut run, live) = begin("a shard lost its last commits").await;
    let saved = run.save(&live, &["shard_1.db"]);
    run.load(&live, 20).await;
    run.kill(live).await;
    run.put_back(&saved);
    for point in REPAIR {
        run.what = format!("a shard lost its last commits, then LITEJOIN_FAULT={point}");
        let Some(live) = run.start(Some(("LITEJOIN_FAULT", point))).await else { continue };
        while run.send(&live).await {}
        run.bury(live).await;
    }
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_of_lost_commits_that_are_used_again_are_noticed() {
    let (mut run, live) = begin("a shard lost its last commits, and others took their numbers").await;
    let saved = run.save(&live, &["shard_1.db"]);
    run.load(&live, 20).await;
    run.kill(live).await;
    run.put_back(&saved);
    // The repair does not end, while sources are quick; no client gets a result meanwhile.
    let mut worker = run.site.run([]).with_variable("LITEJOIN_STALL", "copied").spawn();
    assert!(worker.comes_to_run().await, "it stands still and lives");
    run.load_in_vain(&worker, 100).await;
    worker.kill().await;
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_are_about_to_be_taken_back_are_sent_to_no_one() {
    let server = Server::start().await;
    let manifest = json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "ahead"},
        "spec": {
            "storage": {"shardCount": 1},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": ["orders"]}}],
            "joins": [{
                "name": "all",
                "query": "SELECT key AS id, payload->>'n' AS n FROM orders",
                "sinks": ["live", "hook"],
            }],
            "sinks": [
                {"name": "live", "sse": {"addr": "127.0.0.1:0"}},
                {"name": "hook", "http": {"url": server.url("/")}},
            ],
        },
    });
    let site = WorkerSite::with(&manifest.to_string());
    let shard = site.data_dir().join("shard_0.db");
    let put = async |worker: &Worker, key: &str, n: u64| {
        let epoch = worker.ingest().put("orders", key, json!({"n": n})).await;
        worker.snapshot("live", "all", epoch).await.1
    };
    // The server answers requests before the loss, and leaves later ones unanswered.
    let worker = site.run([]).start().await;
    put(&worker, "kept", 1).await;
    server.wait_for(1).await;
    worker.stop().await;
    let saved = std::fs::read(&shard).expect("a file can be read");
    let held = server.hold().await;
    let worker = site.run([]).start().await;
    put(&worker, "blocks the server", 2).await;
    until("a request", async || (server.under_way() == 1).then_some(())).await;
    put(&worker, "kept", 2).await;
    put(&worker, "gone", 2).await;
    worker.kill().await;
    std::fs::write(&shard, saved).expect("a file can be written");
    for name in ["shard_0.db-wal", "shard_0.db-shm"] {
        let _ = std::fs::remove_file(site.data_dir().join(name));
    }
    drop(held);
    until("the request to end", async || (server.under_way() == 0).then_some(())).await;
    server.take();

    let worker = site.run([]).start().await;
    let mut subscription =
        Subscription::open(worker.address("sink live"), "join=all&replay=true", None).await;
    let replayed = subscription.replayed().await;
    assert_eq!(replayed.len(), 1, "{replayed:?}");
    assert_eq!((&replayed[0].key, &replayed[0].rows), (&json!("kept"), &vec![json!({"id": "kept", "n": 1})]));
    assert_eq!(put(&worker, "last", 3).await.rows.len(), 2);
    let is_last = |event: &Event| event.key == "last";
    let sent = until("the last result", async || {
        let received = server.received();
        let sent: Vec<Event> = received.iter().map(|request| Event::read(request.text())).collect();
        sent.iter().any(is_last).then_some(sent)
    })
    .await;
    let with_rows: Vec<_> = sent.iter().filter(|event| !event.rows.is_empty() && !is_last(event)).collect();
    for event in &with_rows {
        assert_eq!((&event.key, &event.rows[0]["n"]), (&json!("kept"), &json!(1)), "{sent:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_goes_back_in_time_leaves_no_ghosts() {
    let (mut run, live) = begin("all files lost their last commits").await;
    let saved = run.save(&live, &ALL);
    run.load(&live, 20).await;
    let live = run.check(live).await;
    run.kill(live).await;
    run.put_back(&saved);
    run.has_ghosts = true;
    run.resets_allowed = true;
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_without_their_last_commits_are_found_anew() {
    let (mut run, live) = begin("results.db lost its last commits").await;
    let saved = run.save(&live, &["results.db"]);
    run.load(&live, 60).await;
    let live = run.check(live).await;
    run.kill(live).await;
    run.put_back(&saved);
    run.resets_allowed = true;
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_results_is_brought_up_to_date() {
    let (mut run, live) = begin("results.db is an older copy").await;
    let saved = run.save(&live, &["results.db"]);
    run.stop(live).await;
    for _ in 0..2 {
        let live = run.start_well().await;
        run.load(&live, 30).await;
        run.settle(live).await;
    }
    run.put_back(&saved);
    run.resets_allowed = true;
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_are_gone_are_made_anew_under_a_new_lineage() {
    let (mut run, live) = begin("results.db is gone").await;
    run.load(&live, 20).await;
    run.kill(live).await;
    run.remove("results.db");
    run.resets_allowed = true;
    let live = run.start(Some(("LITEJOIN_FAULT", "lineage-renewed"))).await;
    assert!(live.is_none(), "it dies as soon as the lineage is renewed");
    end(run).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_log_that_was_trimmed_too_far_is_noticed() {
    for sql in ["DELETE FROM _chg", "DELETE FROM _chg WHERE seq < (SELECT max(seq) FROM _chg)"] {
        let (mut run, live) = begin(sql).await;
        run.kill(live).await;
        // Changes that wait for their evaluation.
        let live = run.start(Some(("LITEJOIN_STALL", "log-read"))).await.expect("it stands still and lives");
        run.load_in_vain(&live.worker, 30).await;
        run.kill(live).await;
        run.meddle("shard_1.db", sql);
        end(run).await;
    }
}
