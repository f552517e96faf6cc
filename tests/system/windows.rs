//! Every golden case of windows through the whole worker: run as it is, stopped half way, and killed half way, in one
//! shard and in eight. However it ran, the results are the same.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;

use futures::{FutureExt, StreamExt, stream};
use litejoin_tests::golden::{Case, CaseChange, CaseFrame, CaseLetter, CaseStep, cases};
use litejoin_tests::ingest::Ingest;
use litejoin_tests::results::{Event, ResultKey};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite, get};
use serde_json::{Value, json};

/// Cases that run at once. Each mostly waits for commits.
const AT_ONCE: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Whole,
    /// SIGTERM and a new start after the first half of the steps.
    Stopped,
    /// SIGKILL right after the last messages of the first half were acknowledged, which are then sent again.
    Killed,
}

/// Results of windows and joins by their key: rows, and the frame of a window's result.
type StepResults = BTreeMap<ResultKey, (Vec<String>, Option<CaseFrame>)>;

#[tokio::test]
async fn results_of_windows_are_those_of_the_case_whatever_way_it_runs() {
    let cases = cases("window");
    let mut runs = Vec::new();
    for case in &cases {
        for shard_count in [1, 8] {
            if case.is_for_one_shard && shard_count > 1 {
                continue;
            }
            for mode in [Course::Whole, Course::Stopped, Course::Killed] {
                if mode == Course::Killed && reads_nodes(case) {
                    // The node that was killed may have fed a part of a batch, and the next comes when it sends again: time
                    // stands until the feed is idle, and the clock of a case does not go on by itself.
                    continue;
                }
                runs.push((case, shard_count, mode));
            }
        }
    }
    let count = runs.len();
    let failed: Vec<String> = stream::iter(runs)
        .map(|(case, shard_count, mode)| async move {
            let outcome = AssertUnwindSafe(run(case, shard_count, mode)).catch_unwind().await;
            outcome.err().map(|_| format!("{} in {shard_count} shards, {mode:?}", case.name))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    assert!(failed.is_empty(), "{} of {count} runs failed:\n{}", failed.len(), failed.join("\n"));
}

/// Whether a window of the case reads another node.
fn reads_nodes(case: &Case) -> bool {
    let names = |name: &str| {
        case.windows.iter().any(|window| window["name"] == name)
            || case.joins.iter().any(|join| join.name == name)
    };
    case.windows.iter().any(|window| window["topic"].as_str().is_some_and(names))
}

async fn run(case: &Case, shard_count: usize, mode: Course) {
    let mut windows = case.windows.clone();
    let site = WorkerSite::with(&manifest(case, &windows, shard_count));
    let first = case.steps.first().expect("a case has steps");
    site.set_clock(first.moment());
    let mut worker = site.start().await;
    let mut client = Subscription::open(worker.address("sink live"), "join=*&replay=true", None).await;
    let mut told: Vec<Event> = client.replayed().await;
    let half = case.steps.len().div_ceil(2);
    let mut before = StepResults::new();
    let mut epoch = 0;
    for (index, step) in case.steps.iter().enumerate() {
        if step.restarts {
            (worker, client) =
                restart(&site, worker, client, Course::Stopped, Some(step.moment()), &mut told).await;
        }
        site.set_clock(step.moment());
        if let Some(reload) = &step.reload {
            windows.clone_from(reload);
            site.write("pipeline.yaml", manifest(case, &windows, shard_count));
            let config = worker.reload().await;
            assert_ne!(config["lastReload"]["outcome"], "refused", "{config}");
        }
        epoch = send(&worker, step).await.unwrap_or(epoch);
        if index + 1 == half && mode == Course::Killed {
            (worker, client) = restart(&site, worker, client, mode, None, &mut told).await;
            // Whoever sends does so again: a source of which the last batch may be in parts holds time back.
            epoch = send(&worker, step).await.unwrap_or(epoch);
        }
        for join in &case.joins {
            if join.reads_clock() {
                worker.reaches(&join.name, step.moment()).await;
            }
        }
        let names: Vec<&str> =
            windows.iter().map(|window| window["name"].as_str().expect("a window has a name")).collect();
        for name in &names {
            worker.reaches(name, step.moment()).await;
            is_current(&worker, name, epoch).await;
        }
        let all: Vec<&str> =
            names.iter().copied().chain(case.joins.iter().map(|join| join.name.as_str())).collect();
        let mut wrong = String::new();
        let what = format!("{} at {}", case.name, step.at);
        // Results that follow from other results are an epoch or more behind.
        let shown = AssertUnwindSafe(until(&what, async || {
            let mut now = StepResults::new();
            for name in &all {
                now.extend(snapshot(&worker, name, epoch).await);
            }
            match hold(&before, &now, step.changes.clone(), &step.window_changes) {
                Ok(()) => Some(Ok(now)),
                Err(why) => {
                    wrong = why;
                    (!case.has_feeds()).then_some(Err(()))
                }
            }
        }));
        let shown = shown.catch_unwind().await.unwrap_or(Err(()));
        before = shown.unwrap_or_else(|()| panic!("{what}: {wrong}"));
        if index + 1 == half && mode == Course::Stopped {
            (worker, client) = restart(&site, worker, client, mode, None, &mut told).await;
        }
    }
    worker.stop().await;
    told.extend(client.rest().await.iter().map(litejoin_tests::sse::SseEvent::result));
    hold_events(case, &told, &before);
    dead_letters(case, &site).await;
}

/// Sends the messages of a step, and returns an epoch in which they are seen; `None` if it has none.
async fn send(worker: &Worker, step: &CaseStep) -> Option<u64> {
    if step.messages.is_empty() {
        return None;
    }
    let source = step.source.as_deref().unwrap_or("ingest");
    Some(Ingest::new(worker.address(&format!("source {source}"))).send(&step.messages).await)
}

/// Holds what subscribers were told to the last state.
fn hold_events(case: &Case, told: &[Event], last: &StepResults) {
    let mut folded = StepResults::new();
    for event in told {
        match event.op.as_str() {
            "deleted" => drop(folded.remove(&event.result_key())),
            _ => drop(folded.insert(event.result_key(), shown(event))),
        }
    }
    let expired =
        case.steps.iter().flat_map(|step| &step.window_changes).filter(|change| change.op == "expired");
    for change in expired {
        folded.remove(&change.result_key);
    }
    assert_eq!(&folded, last, "{}: the events folded", case.name);
}

/// Ends the worker and starts it anew, at another moment if one is given; the client comes back with the last id it saw.
async fn restart(
    site: &WorkerSite,
    worker: Worker,
    mut client: Subscription,
    mode: Course,
    moment: Option<i64>,
    told: &mut Vec<Event>,
) -> (Worker, Subscription) {
    match mode {
        Course::Killed => worker.kill().await,
        Course::Whole | Course::Stopped => worker.stop().await,
    };
    told.extend(client.rest().await.iter().map(litejoin_tests::sse::SseEvent::result));
    if let Some(moment) = moment {
        site.set_clock(moment);
    }
    let worker = site.start().await;
    let last = client.last_event_id;
    let client = Subscription::open(worker.address("sink live"), "join=*&replay=true", last.as_deref()).await;
    (worker, client)
}

/// Waits until a window has taken in an epoch, and the event times of its messages count.
async fn is_current(worker: &Worker, name: &str, epoch: u64) {
    until(&format!("{name} to be current"), async || {
        let window = worker.status().await["joins"][name].clone();
        (window["epoch"].as_u64() >= Some(epoch) && window["window"]["isCurrent"] == true).then_some(())
    })
    .await;
}

async fn snapshot(worker: &Worker, name: &str, min_epoch: u64) -> StepResults {
    let url = worker.url("sink live", &format!("/snapshot?join={name}&minEpoch={min_epoch}"));
    let (status, text) = get(&url).await;
    assert_eq!(status, 200, "{url}: {text}");
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let events = answer["results"].as_array().expect("results is a list").iter();
    events
        .map(|event| Event::read(&event.to_string()))
        .map(|event| (event.result_key(), shown(&event)))
        .collect()
}

fn shown(event: &Event) -> (Vec<String>, Option<CaseFrame>) {
    let mut rows: Vec<String> = event.rows.iter().map(Value::to_string).collect();
    rows.sort_unstable();
    (rows, serde_json::from_value(event.whole["window"].clone()).ok())
}

/// Holds the difference between two states to what a step says.
fn hold(
    before: &StepResults,
    now: &StepResults,
    mut joins: BTreeMap<ResultKey, Vec<String>>,
    windows: &[CaseChange],
) -> Result<(), String> {
    let mut windows: BTreeMap<&ResultKey, &CaseChange> =
        windows.iter().map(|change| (&change.result_key, change)).collect();
    let keys: std::collections::BTreeSet<&ResultKey> = before.keys().chain(now.keys()).collect();
    for key in keys.into_iter().filter(|key| before.get(*key) != now.get(*key)) {
        let (was, is) = (before.get(key), now.get(key));
        let rows = is.map(|(rows, _)| rows.clone()).unwrap_or_default();
        if let Some(expected) = joins.remove(key) {
            if expected != rows {
                return Err(format!("{key:?}: got {rows:?}, expected {expected:?}"));
            }
            continue;
        }
        let Some(change) = windows.remove(key) else {
            return Err(format!("{key:?}: changed from {was:?} to {is:?}, which is not expected"));
        };
        let op = match (was, is) {
            (None, _) => "created",
            (Some(_), Some(_)) => "updated",
            (Some(_), None) => "deleted",
        };
        let is_op = change.op == op || change.op == "expired" && op == "deleted";
        let frame = is.and_then(|(_, frame)| *frame);
        let is_frame = is.is_none() || change.window.is_none() || change.window == frame;
        if !is_op || change.rows != rows || !is_frame {
            return Err(format!("{key:?}: {op} {rows:?} {frame:?}, expected {change:?}"));
        }
    }
    match (joins.first_key_value(), windows.first_key_value()) {
        (None, None) => Ok(()),
        missing => Err(format!("nothing has changed where this is expected: {missing:?}")),
    }
}

/// Holds the dead letters of windows to those of the case.
async fn dead_letters(case: &Case, site: &WorkerSite) {
    let list = ["dlq", "list", "--data-dir", "data", "--output", "json"];
    let ended = site.command(list).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let entries =
        ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let mut found: Vec<(String, String, String)> = entries
        .map(|entry| {
            let position = text(&entry, "position");
            let key = position.split_once('/').map_or(position.clone(), |(_, key)| key.to_owned());
            (text(&entry, "source"), key, text(&entry, "reason"))
        })
        .collect();
    for CaseLetter { join, key, reason, start, end, .. } in
        case.steps.iter().flat_map(|step| &step.dead_letters)
    {
        let window = join.as_deref().unwrap_or("result");
        let words = match reason.as_str() {
            "too_late" => "is late",
            _ => "has no time",
        };
        let fits = |moment: &Option<i64>, reason: &str| {
            moment.is_none_or(|moment| reason.contains(&time_text(moment)))
        };
        let place = found.iter().position(|(of, found_key, reason)| {
            of == window
                && found_key == key
                && reason.contains(words)
                && fits(start, reason)
                && fits(end, reason)
        });
        let place = place.unwrap_or_else(|| panic!("{}: no dead letter of {key}: {found:?}", case.name));
        found.swap_remove(place);
    }
    assert_eq!(found, [], "{}: dead letters that are not expected", case.name);
}

fn time_text(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).expect("a case has times of this century").to_string()
}

fn manifest(case: &Case, windows: &[Value], shard_count: usize) -> String {
    let mut sources: Vec<&str> = case.steps.iter().filter_map(|step| step.source.as_deref()).collect();
    sources.push("ingest");
    sources.sort_unstable();
    sources.dedup();
    let source =
        |name: &&str| json!({"name": name, "http": {"addr": "127.0.0.1:0", "topics": case.topics()}});
    let with_sink = |spec: &Value| {
        let mut spec = spec.clone();
        spec["sinks"] = json!(["live"]);
        spec
    };
    let joins = case.joins.iter().map(|join| {
        let mut spec = json!({"name": join.name, "query": join.query, "sinks": ["live"]});
        if let Some(key_column) = &join.key_column {
            spec["keyColumn"] = json!(key_column);
        }
        spec
    });
    let mut spec = json!({
        "storage": {"shardCount": shard_count, "flushInterval": "1ms"},
        "admin": {"addr": "127.0.0.1:0"},
        "sources": sources.iter().map(source).collect::<Vec<_>>(),
        "joins": joins.collect::<Vec<_>>(),
        "windows": windows.iter().map(with_sink).collect::<Vec<_>>(),
        "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
    });
    let retention = case.retention.as_deref().unwrap_or("8760h");
    spec["retention"] = json!({"duration": retention, "cleanInterval": "100ms"});
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "windows"},
        "spec": spec,
    })
    .to_string()
}
