//! What windows cost, counted in steps of SQLite's virtual machine and in look-ups: a row costs the same however many
//! frames are open, and however many rows are in its frame where aggregates are kept; a frame that closes costs what is
//! in it, however many closed before; a second in which nothing is due costs next to nothing. Time is told, so nothing here waits for it.

use std::collections::BTreeMap;

use litejoin_tests::golden::BEGINNING;
use litejoin_tests::ingest::message;
use litejoin_tests::repetition::is_long;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

/// Aggregates, which are kept by pane.
const SUMS: &str =
    "SELECT payload->>'customer' AS customer, count(*) AS n, sum(payload->>'amount') AS total FROM orders
                    GROUP BY 1";
const SUM_OF_ALL: &str = "SELECT count(*) AS n, sum(payload->>'amount') AS total FROM orders";

/// Lists can't be kept, so rows are read when their frame closes.
const LISTS: &str =
    "SELECT payload->>'customer' AS customer, group_concat(key) AS numbers FROM orders GROUP BY 1";
const LIST_OF_ALL: &str = "SELECT group_concat(key) AS numbers FROM orders";

/// How far the watermark is behind the newest row, in seconds.
const DELAY: i64 = 100_000;

/// The cost with the most rows or frames, as a multiple of the cost with the fewest, may not exceed this.
const GROWTH_MAX: f64 = 1.5;

/// Steps of an epoch in which time goes on. Whether the time of a message counts in its own epoch or in the next one is a
/// matter of moments.
const EPOCH_STEPS: u64 = 200;

/// Steps that a second without due frames may cost a window.
const QUIET_STEPS_MAX: u64 = 50;

/// Messages in one body.
const BATCH: usize = 5_000;

/// A window and how its frames are evaluated.
struct CostedWindow {
    name: &'static str,
    manifest: Value,
    /// Whether aggregates are kept by pane, so that no rows are read.
    accumulates: bool,
    /// Whether results are told before their frame closes.
    updates: bool,
    /// Whether the clock closes its frames.
    is_by_arrival: bool,
}

/// Steps and look-ups.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct WindowCost {
    steps: u64,
    probes: u64,
    results: u64,
}

/// Costs by window.
type WindowCosts = BTreeMap<&'static str, WindowCost>;

/// Costs by what has happened.
type Told = Vec<(&'static str, WindowCosts)>;

/// An event whose cost is looked at.
enum Happening {
    Messages(&'static str, Vec<Value>),
    /// Seconds by which the clock goes on.
    Pass(&'static str, i64),
}

/// Windows of every kind, with frames of so many seconds; those of sliding windows are three times as long.
fn windows(size: i64) -> Vec<CostedWindow> {
    let mut windows = Vec::new();
    let mut add = |name, spec: &[(&str, Value)], query: &str, accumulates: bool| {
        let mut manifest = json!({
            "name": name,
            "topic": "orders",
            "query": query,
            "sinks": ["live"],
            "eventTime": {
                "path": "$.at", "unit": "seconds", "watermarkDelay": format!("{DELAY}s"), "idleTimeout": "8760h",
            },
        });
        for (field, value) in spec {
            manifest[field] = value.clone();
        }
        let updates = manifest["emit"] == "update";
        let is_by_arrival = manifest["eventTime"].is_null();
        if is_by_arrival {
            manifest.as_object_mut().expect("it is one").remove("eventTime");
        }
        windows.push(CostedWindow { name, manifest, accumulates, updates, is_by_arrival });
    };
    let seconds = |count: i64| json!(format!("{count}s"));
    let tumbling = [("type", json!("tumbling")), ("size", seconds(size))];
    let sliding = [("type", json!("sliding")), ("size", seconds(3 * size)), ("slide", seconds(size))];
    let session = [("type", json!("session")), ("gap", seconds(size)), partition_by()];
    let with = |spec: &[(&'static str, Value)], more: &[(&'static str, Value)]| [spec, more].concat();
    let (key, update) = (("keyColumn", json!("customer")), ("emit", json!("update")));
    let arrival = ("eventTime", Value::Null);

    add("sums", &with(&tumbling, &[key.clone()]), SUMS, true);
    add("sums_updated", &with(&tumbling, &[key.clone(), update.clone()]), SUMS, true);
    add("sums_by_partition", &with(&tumbling, &[partition_by()]), SUM_OF_ALL, true);
    add("sum_of_all", &tumbling, SUM_OF_ALL, true);
    add("sum_of_all_updated", &with(&tumbling, &[update.clone()]), SUM_OF_ALL, true);
    add("sums_sliding", &with(&sliding, &[key.clone()]), SUMS, true);
    add("sums_sliding_updated", &with(&sliding, &[key.clone(), update.clone()]), SUMS, true);
    add("sums_by_arrival", &with(&tumbling, &[key.clone(), arrival.clone()]), SUMS, true);
    add("lists", &with(&tumbling, &[key.clone()]), LISTS, false);
    add("lists_updated", &with(&tumbling, &[key.clone(), update.clone()]), LISTS, false);
    add("lists_by_partition", &with(&tumbling, &[partition_by()]), LIST_OF_ALL, false);
    add("list_of_all", &tumbling, LIST_OF_ALL, false);
    add("lists_sliding", &with(&sliding, &[key]), LISTS, false);
    add("sessions", &session, SUM_OF_ALL, false);
    add("sessions_updated", &with(&session, &[update]), SUM_OF_ALL, false);
    add("sessions_by_arrival", &with(&session, &[arrival]), SUM_OF_ALL, false);
    windows
}

fn partition_by() -> (&'static str, Value) {
    ("partitionBy", json!("payload->>'customer'"))
}

fn manifest(windows: &[CostedWindow]) -> String {
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "windows"},
        "spec": {
            "storage": {"shardCount": 8, "flushInterval": "1ms"},
            "retention": {"duration": "87600h"},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": ["orders"]}}],
            "windows": windows.iter().map(|window| window.manifest.clone()).collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}

/// Returns an order of a customer, placed so many seconds after the beginning.
fn order(key: &str, customer: u64, at: i64, amount: u64) -> Value {
    message(
        "orders",
        key,
        json!({"customer": format!("c{customer}"), "amount": amount, "at": BEGINNING + at}),
    )
}

fn without(order: &Value) -> Value {
    message("orders", order["key"].as_str().expect("a key"), Value::Null)
}

/// Stores rows, and returns what each happening costs after that.
async fn costs(
    windows: &[CostedWindow],
    stored: impl Iterator<Item = Value>,
    happenings: Vec<Happening>,
) -> Told {
    let site = WorkerSite::with(&manifest(windows));
    let mut clock = BEGINNING;
    site.set_clock(clock);
    let worker = site.start().await;
    let mut stored = stored.peekable();
    let mut epoch = 0;
    while stored.peek().is_some() {
        let batch: Vec<Value> = stored.by_ref().take(BATCH).collect();
        epoch = worker.ingest().send(&batch).await;
    }
    let mut before = current(windows, &worker, epoch, clock).await;
    let mut told = Told::new();
    for happening in happenings {
        let what = match happening {
            Happening::Messages(what, messages) => {
                epoch = worker.ingest().send(&messages).await;
                what
            }
            Happening::Pass(what, seconds) => {
                clock += seconds;
                site.set_clock(clock);
                what
            }
        };
        let after = current(windows, &worker, epoch, clock).await;
        let cost = |(name, after): (&&'static str, &WindowCost)| {
            let before = before[name];
            let cost = WindowCost {
                steps: after.steps - before.steps,
                probes: after.probes - before.probes,
                results: after.results - before.results,
            };
            (*name, cost)
        };
        told.push((what, after.iter().map(cost).collect()));
        before = after;
    }
    let status = worker.status().await;
    for CostedWindow { name, accumulates, .. } in windows {
        let class = if *accumulates { "accumulated" } else { "keyed" };
        assert_eq!(status["joins"][name]["class"], class, "{name}");
        assert_eq!(status["joins"][name]["window"]["refused"], 0, "{name}");
    }
    worker.stop().await;
    told
}

/// Waits until each window has taken in an epoch, and has come to a moment of the clock; returns what each has cost so far.
async fn current(windows: &[CostedWindow], worker: &Worker, epoch: u64, moment: i64) -> WindowCosts {
    let status = until("all windows to be current", async || {
        let status = worker.status().await;
        let is_current = |CostedWindow { name, .. }: &CostedWindow| {
            let window = &status["joins"][name];
            window["epoch"].as_u64() >= Some(epoch)
                && window["asOf"] == moment
                && window["window"]["isCurrent"] == true
        };
        windows.iter().all(is_current).then_some(status)
    })
    .await;
    let cost = |CostedWindow { name, .. }: &CostedWindow| {
        let window = &status["joins"][name];
        assert_eq!(window["lastError"], Value::Null, "{name}");
        let count =
            |what: &str| window[what].as_u64().unwrap_or_else(|| panic!("{name} has no {what}: {window}"));
        (
            *name,
            WindowCost { steps: count("steps"), probes: count("probes"), results: count("resultsChanged") },
        )
    };
    windows.iter().map(cost).collect()
}

/// Asserts that no cost grows, and that quiet seconds cost next to nothing. Prints all; read it with `--nocapture`.
fn hold(few: &Told, many: &Told, of: &str) {
    let mut wrong = Vec::new();
    for ((what, few), (_, many)) in few.iter().zip(many) {
        for (name, few) in few {
            let many = many[name];
            let text = format!(
                "{name}, {what}: {} steps and {} look-ups, then {} and {}, for {of}",
                few.steps, few.probes, many.steps, many.probes
            );
            if many.steps > 0 {
                eprintln!("{text}");
            }
            let grows = |few: u64, many: u64| many as f64 > few as f64 * GROWTH_MAX;
            let more_steps = many.steps.saturating_sub(EPOCH_STEPS);
            let is_loud = *what == QUIET && few.steps.max(many.steps) > QUIET_STEPS_MAX;
            if grows(few.steps, more_steps) || grows(few.probes, many.probes) || is_loud {
                wrong.push(text);
            }
        }
    }
    assert!(wrong.is_empty(), "windows cost too much:\n{}", wrong.join("\n"));
}

const QUIET: &str = "a quiet second";

/// Changes of one row of each kind at a moment, and a quiet second.
fn changes(customer: u64, at: i64) -> Vec<Happening> {
    let placed = order("changed", customer, at, 3);
    let corrected = order("changed", customer, at, 5);
    let gone = without(&placed);
    vec![
        Happening::Messages("a row comes", vec![placed]),
        Happening::Messages("a row has another amount", vec![corrected]),
        Happening::Messages("a row goes", vec![gone]),
        Happening::Pass("the first second", 1),
        Happening::Pass(QUIET, 1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_costs_the_same_however_many_frames_are_open() {
    let mut windows = windows(1);
    // These rows arrive in one frame.
    windows.retain(|window| !window.is_by_arrival);
    let measure = async |frames: i64| {
        // Between two rows is room for the gap of a session.
        let rows = (0..frames).map(|n| order(&format!("o{n}"), 1, 4 * n, 1));
        costs(&windows, rows, changes(1, 4 * (frames / 2))).await
    };
    let few = measure(10).await;
    let many = measure(10_000).await;
    hold(&few, &many, "10 open frames and 10,000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_costs_the_same_however_many_customers_have_sessions_and_frames() {
    let windows = windows(60);
    let measure = async |customers: u64| {
        let rows = (0..customers).map(|n| order(&format!("o{n}"), n, 0, 1));
        costs(&windows, rows, changes(customers / 2, 0)).await
    };
    let few = measure(10).await;
    let many = measure(10_000).await;
    hold(&few, &many, "10 customers and 10,000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_costs_the_same_however_many_are_in_its_frame_where_aggregates_are_kept() {
    let mut windows = windows(3_600);
    windows.retain(|window| window.accumulates || window.name.starts_with("list") && !window.updates);
    let measure = async |count: i64| {
        let rows = (0..count).map(|n| order(&format!("o{n}"), 1, n % 3_600, 1));
        costs(&windows, rows, changes(1, 1_800)).await
    };
    let few = measure(10).await;
    let many = measure(if is_long() { 100_000 } else { 20_000 }).await;
    hold(&few, &many, "a frame of 10 rows and a large one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_closes_costs_what_is_in_it() {
    let mut windows = windows(60);
    windows.retain(|window| !window.is_by_arrival);
    // Ten customers have an order each in a frame of the first minute, the others all come later.
    let measure = async |others: i64| {
        let first = (0..10).map(|n| order(&format!("f{n}"), n, 30, 1));
        let others = (0..others).map(|n| order(&format!("o{n}"), 5 + n.unsigned_abs() % 10, 600 + n % 60, 1));
        let push = |at: i64| vec![order("push", 99, DELAY + at, 1)];
        let happenings = vec![
            Happening::Messages("no frame closes", push(20)),
            Happening::Messages("a frame closes", push(200)),
        ];
        costs(&windows, first.chain(others), happenings).await
    };
    let few = measure(10).await;
    let many = measure(10_000).await;
    let closes = &few[1].1;
    let silent: Vec<_> = closes.iter().filter(|(_, cost)| cost.results == 0).map(|(name, _)| *name).collect();
    assert!(silent.is_empty(), "no result of {silent:?} was told as final");
    hold(&few, &many, "10 rows in other frames and 10,000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_closes_costs_the_same_however_many_results_are_stored() {
    let mut windows = windows(1);
    windows.retain(|window| !window.is_by_arrival);
    // All frames of the first rows are closed by the last of them; ten customers have an order each in a later one.
    let measure = async |frames: i64| {
        let push = |at: i64| order("push", 99, DELAY + at, 1);
        let end = 4 * frames;
        let closed = (0..frames).map(|n| order(&format!("o{n}"), 1, 4 * n, 1)).chain([push(end)]);
        let later: Vec<Value> = (0..10).map(|n| order(&format!("l{n}"), n, end + 100, 1)).collect();
        let happenings = vec![
            Happening::Messages("rows come", later),
            Happening::Messages("a frame closes", vec![push(end + 200)]),
        ];
        costs(&windows, closed, happenings).await
    };
    let few = measure(10).await;
    let many = measure(1_000).await;
    hold(&few, &many, "10 closed frames and 1,000");
}
