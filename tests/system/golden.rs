//! Every golden case through the whole worker: run as it is, stopped half way, and killed half way, in one shard
//! and in eight. However it ran, the results are the same.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use futures::{FutureExt, StreamExt, stream};
use litejoin_tests::golden::{Case, cases};
use litejoin_tests::results::{Event, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::json;

/// Cases that run at once. Each mostly waits for commits.
const AT_ONCE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunMode {
    Whole,
    /// SIGTERM and a new start after the first half of the steps.
    Stopped,
    /// SIGKILL right after the last message of the first half was acknowledged.
    Killed,
}

#[tokio::test]
async fn results_are_those_of_the_case_whatever_way_it_runs() {
    let cases: Vec<Case> = ["join", "time"].into_iter().flat_map(cases).collect();
    let mut runs = Vec::new();
    for case in &cases {
        for shard_count in [1, 8] {
            for way in [RunMode::Whole, RunMode::Stopped, RunMode::Killed] {
                runs.push((case, shard_count, way));
            }
        }
    }
    let count = runs.len();
    let failed: Vec<String> = stream::iter(runs)
        .map(|(case, shard_count, way)| async move {
            let outcome = AssertUnwindSafe(run(case, shard_count, way)).catch_unwind().await;
            outcome.err().map(|_| format!("{} in {shard_count} shards, {way:?}", case.name))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{} of {count} runs failed:\n{}", failed.len(), failed.join("\n"));
}

/// A worker with a client that has seen all its events.
struct Running {
    worker: Worker,
    client: Subscription,
    events: Vec<Event>,
}

async fn run(case: &Case, shard_count: usize, way: RunMode) {
    let site = WorkerSite::with(&manifest(case, shard_count));
    if let Some(step) = case.steps.first().filter(|_| case.has_clock) {
        site.set_clock(step.moment());
    }
    let worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=*&replay=true", None).await;
    // A query may have results over nothing: SELECT count(*).
    let events = client.replayed().await;
    let mut running = Running { worker, client, events };
    let half = case.steps.len().div_ceil(2);
    let mut results = Results::default();
    let mut ends = Vec::new();
    for (index, step) in case.steps.iter().enumerate() {
        if case.has_clock {
            site.set_clock(step.moment());
        }
        let mut epoch = match step.messages.as_slice() {
            [] => ends.last().copied().unwrap_or(0),
            messages => running.worker.ingest().send(messages).await,
        };
        if index + 1 == half && way == RunMode::Killed {
            running = running.restart(&site, way).await;
        }
        let mut now = Results::default();
        for join in &case.joins {
            if case.has_clock && join.reads_clock() {
                running.worker.reaches(&join.name, step.moment()).await;
            }
            let (seen, of_join) = running.worker.snapshot("live", &join.name, epoch).await;
            now.extend(of_join);
            epoch = seen;
        }
        assert_eq!(results.changes(&now), step.changes, "at {}", step.at);
        results = now;
        ends.push(epoch);
        if index + 1 == half && way == RunMode::Stopped {
            running = running.restart(&site, way).await;
        }
    }
    let events = running.end(RunMode::Stopped).await.0;
    Results::folded(&events).assert_same(&results, "the events folded");
    if shard_count == 1 && !case.has_clock {
        // A step is one batch of one shard, so it is one epoch.
        let mut changes: Vec<BTreeMap<_, _>> = vec![BTreeMap::new(); case.steps.len()];
        for event in &events {
            let step = ends.iter().position(|end| event.epoch <= *end).expect("events belong to a step");
            let earlier = changes[step].insert(event.result_key(), sorted(event));
            assert!(earlier.is_none() || step == 0, "one event for a key and an epoch: {event:?}");
        }
        for (step, changes) in case.steps.iter().zip(changes) {
            assert_eq!(changes, step.changes, "the events of subscribers at {}", step.at);
        }
    }
    results.assert_same(&case.oracle(&site.data_dir()), "the last snapshot beside SQLite");
}

impl Running {
    /// Ends the worker, and returns the events of its client up to then and the last id it saw.
    async fn end(mut self, way: RunMode) -> (Vec<Event>, Option<String>) {
        match way {
            RunMode::Killed => self.worker.kill().await,
            RunMode::Whole | RunMode::Stopped => self.worker.stop().await,
        };
        let rest = self.client.rest().await;
        self.events.extend(rest.iter().map(litejoin_tests::sse::SseEvent::result));
        (self.events, self.client.last_event_id)
    }

    /// Ends the worker and starts it anew; the client comes back with the last id it saw.
    async fn restart(self, site: &WorkerSite, way: RunMode) -> Self {
        let (events, last_event_id) = self.end(way).await;
        let worker = site.start().await;
        let client =
            Subscription::open(worker.address("sink live"), "join=*&replay=true", last_event_id.as_deref())
                .await;
        Self { worker, client, events }
    }
}

fn sorted(event: &Event) -> Vec<String> {
    let mut rows: Vec<String> = event.rows.iter().map(ToString::to_string).collect();
    rows.sort_unstable();
    rows
}

fn manifest(case: &Case, shard_count: usize) -> String {
    let joins = case.joins.iter().map(|join| {
        let mut spec = json!({"name": join.name, "query": join.query, "sinks": ["live"]});
        if let Some(key_column) = &join.key_column {
            spec["keyColumn"] = json!(key_column);
        }
        spec
    });
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "golden"},
        "spec": {
            "storage": {"shardCount": shard_count, "flushInterval": "1ms"},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": case.topics()}}],
            "joins": joins.collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}
