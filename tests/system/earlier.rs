//! Data directories and replicas that earlier versions wrote, in `tests/cases/earlier`: this version opens all of them
//! and goes on where the earlier one stopped. Results keep their ids; nothing is evaluated, read or sent again. The
//! manifests that those versions shipped are still valid.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use litejoin_tests::earlier::{self, EarlierVersion};
use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::programs::run;
use litejoin_tests::results::{Event, EventId, Results};
use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::sse::Subscription;
use litejoin_tests::stores::{Store, litestream};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Launch, Worker, WorkerSite, get};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// The joins of each case, with their classes.
const JOINS: [(&str, &str); 3] = [("enriched", "keyed"), ("totals", "accumulated"), ("largest", "full")];

/// Events by join and key, as `/snapshot` of the sink `live` has them.
type Snapshots = BTreeMap<String, Vec<Value>>;

/// A folder in which a pipeline of an earlier version runs, with the server that it asks and sends to.
struct Earlier {
    site: WorkerSite,
    server: Server,
    manifest: Value,
}

/// Copies the content of a folder into another, which is made.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the folder is ours");
    let copied = Command::new("cp").arg("-r").arg(from.join(".")).arg(to).status();
    assert!(copied.expect("cp is there").success(), "{} can't be copied", from.display());
}

/// An API that has two customers and no news.
fn customers(request: &Received) -> Reply {
    match (request.path(), request.query("after")) {
        ("/customers", None) => Reply::json(&json!({
            "rows": [{"id": "c1", "name": "Ada"}, {"id": "c2", "name": "Grace"}],
            "next": "2",
        })),
        ("/customers", Some(_)) => Reply::json(&json!({"rows": []})),
        _ => Reply::status(200),
    }
}

impl Earlier {
    /// Takes the pipeline from a file.
    async fn new(pipeline: &Path) -> Self {
        let text = std::fs::read_to_string(pipeline).expect("there is a pipeline");
        let manifest = Value::deserialize(serde_yaml::Deserializer::from_str(&text)).expect("it is YAML");
        let server = Server::start().await;
        server.behave(customers);
        let site = WorkerSite::with(&text);
        Self { site, server, manifest }
    }

    /// Has the pipeline replicate to a folder of the store.
    fn replicate(&self, store: &Store) {
        let mut manifest = self.manifest.clone();
        manifest["spec"]["replication"] = store.settings("replicas");
        manifest["spec"]["replication"]["mode"] = "embedded".into();
        self.site.write("pipeline.yaml", manifest.to_string());
    }

    fn with_environment(&self, launch: Launch) -> Launch {
        launch
            .with_variable("SERVER", &self.server.url(""))
            .with_variable("LITEJOIN_LITESTREAM", &litestream().display().to_string())
    }

    async fn start(&self) -> Worker {
        self.with_environment(self.site.run([])).start().await
    }

    /// The results of the joins by SQLite, over the topics as they are.
    fn expected(&self) -> Results {
        let oracle = Oracle::read(&self.site.data_dir(), ["orders", "customers"]);
        let mut results = Results::default();
        for join in self.manifest["spec"]["joins"].as_array().expect("the pipeline has joins") {
            let [name, query] = ["name", "query"].map(|field| join[field].as_str().expect("a text"));
            results.extend(oracle.results(name, query, None));
            oracle.define(name, query);
        }
        results
    }

    /// Results that a sink was sent since the server's last [`Server::take`].
    fn sent_to(&self, sink: &str) -> Vec<Event> {
        let path = format!("/{sink}");
        let received = self.server.received().into_iter().filter(|request| request.path() == path);
        received.map(|request| Event::read(request.text())).collect()
    }

    fn sent(&self) -> Vec<Event> {
        self.sent_to("hook")
    }

    /// Waits until the sink `late`, which took nothing from the earlier version, has the results of its join.
    async fn late_has(&self, stored: &Snapshots) {
        let results = read(&stored["enriched"]);
        until("what was not delivered", async || {
            let sent = self.sent_to("late");
            let is_sent = |result: &Event| sent.iter().any(|event| event.id == result.id);
            results.iter().all(is_sent).then_some(())
        })
        .await;
        Results::folded(&self.sent_to("late")).assert_same(&Results::folded(&results), "the late sink");
    }

    /// Sends messages, and holds the results to SQLite: in snapshots, at the sink, and in a subscription that goes on
    /// after `last_event_id`, or else begins with the whole.
    async fn goes_on(&self, worker: &Worker, last_event_id: Option<&str>) {
        let before = folded(&snapshots(worker, 0).await);
        let query = if last_event_id.is_some() { "join=enriched" } else { "join=enriched&replay=true" };
        let mut stream = Subscription::open(worker.address("sink live"), query, last_event_id).await;
        let messages = [
            message("orders", "o1", json!({"customer": "c2", "n": 9})),
            message("orders", "o2", Value::Null),
            message("orders", "o9", json!({"customer": "c1", "n": 90})),
        ];
        let epoch = worker.ingest().send(&messages).await;
        let after = folded(&snapshots(worker, epoch).await);
        after.assert_same(&self.expected(), "/snapshot");
        assert_ne!(before, after);
        until("the sink to have it all", async || {
            let mut held = before.clone();
            held.fold(&self.sent());
            (held == after).then_some(())
        })
        .await;
        let mut held = before.clone();
        let is_enriched = |results: &Results| -> BTreeMap<_, _> {
            results.rows.clone().into_iter().filter(|((join, _), _)| join == "enriched").collect()
        };
        while is_enriched(&held) != is_enriched(&after) {
            let event = stream.expect_next().await;
            match event.event.as_str() {
                "join_result" => held.fold([&event.result()]),
                other => assert!(other == "replayed" && last_event_id.is_none(), "{event:?}"),
            }
        }
    }
}

async fn snapshots(worker: &Worker, min_epoch: u64) -> Snapshots {
    let mut snapshots = Snapshots::new();
    for (join, _) in JOINS {
        let url = worker.url("sink live", &format!("/snapshot?join={join}&minEpoch={min_epoch}"));
        let (status, text) = get(&url).await;
        assert_eq!(status, 200, "{url}: {text}");
        let mut answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let Value::Array(events) = answer["results"].take() else { panic!("results is no list: {text}") };
        snapshots.insert(join.to_owned(), events);
    }
    snapshots
}

fn read(events: &[Value]) -> Vec<Event> {
    events.iter().map(|event| Event::read(&event.to_string())).collect()
}

fn folded(snapshots: &Snapshots) -> Results {
    let events: Vec<Event> = snapshots.values().flat_map(|events| read(events)).collect();
    Results::folded(&events)
}

/// The last snapshots that an earlier version answered.
fn written(version: &EarlierVersion) -> Snapshots {
    let text = std::fs::read_to_string(version.path("snapshots.json")).expect("it has snapshots");
    serde_json::from_str(&text).expect("they are JSON")
}

/// Waits for the first poll, which must ask from the mark of the last answer on.
async fn asked_from_the_mark_on(server: &Server) {
    let asked = async || server.received().into_iter().find(|request| request.path() == "/customers");
    let first = until("a poll", asked).await;
    assert_eq!(first.query("after"), Some("2"), "the mark of the earlier version counts");
}

/// Each join as `/status` has it.
async fn joins(worker: &Worker) -> Value {
    worker.status().await["joins"].clone()
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.id.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_directory_of_an_earlier_version_goes_on() {
    for version in EarlierVersion::all() {
        eprintln!("of {}", version.name());
        data_goes_on(&version).await;
    }
}

async fn data_goes_on(version: &EarlierVersion) {
    let earlier = Earlier::new(&version.path("pipeline.yaml")).await;
    copy(&version.path("data"), &earlier.site.data_dir());
    let worker = earlier.start().await;
    let stored = snapshots(&worker, 0).await;
    assert_eq!(stored, written(version));
    folded(&stored).assert_same(&earlier.expected(), "the stored results");
    asked_from_the_mark_on(&earlier.server).await;
    let joins = joins(&worker).await;
    for (join, class) in JOINS {
        assert_eq!(
            (&joins[join]["class"], &joins[join]["evaluations"]),
            (&json!(class), &json!(0)),
            "{join}: {joins}"
        );
    }
    earlier.late_has(&stored).await;
    // The cursor of the other sink is at the end, and the result that it refused is a dead letter.
    assert_eq!(ids(&earlier.sent()), Vec::<&str>::new());
    until("the dead letter to be counted", async || {
        (worker.status().await["sinks"]["hook"]["deadLetters"] == 1).then_some(())
    })
    .await;
    let listed = earlier.site.command(["dlq", "list", "--output", "json", "--data-dir", "data"]).end().await;
    let refused = stored["totals"].iter().find(|event| event["key"] == "c3").expect("c3 has a result");
    let letter: Value = serde_json::from_str(&listed.stdout).expect("one dead letter");
    assert_eq!((&letter["id"], &letter["sink"]), (&refused["id"], &json!("hook")), "{letter}");
    let last = read(&stored["enriched"]);
    let last =
        last.iter().max_by_key(|event| EventId::parse(&event.id).position()).expect("there are results");
    earlier.goes_on(&worker, Some(&last.id)).await;

    earlier.server.take();
    let retried = earlier.site.command(["dlq", "retry", "--all", "--data-dir", "data"]).end().await;
    assert_eq!(retried.stdout, "1 to be tried again\n", "{}", retried.stderr);
    until("the dead letter to be taken", async || (!earlier.sent().is_empty()).then_some(())).await;
    assert_eq!(ids(&earlier.sent()), [refused["id"].as_str().expect("a text")]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_of_an_earlier_version_is_restored() {
    for version in EarlierVersion::all() {
        eprintln!("of {}", version.name());
        replica_is_restored(&version).await;
    }
}

async fn replica_is_restored(version: &EarlierVersion) {
    let (earlier, store) = (Earlier::new(&version.path("pipeline.yaml")).await, Store::file().await);
    copy(&version.path("replica"), &store.files().join("replicas"));
    earlier.replicate(&store);
    let worker = earlier.start().await;
    // A restored directory gives ids of a new lineage, so each join is evaluated once, and finds nothing to change.
    let joins = until("each join to be evaluated", async || {
        let joins = joins(&worker).await;
        JOINS.iter().all(|(join, _)| joins[join]["evaluations"] != 0).then_some(joins)
    })
    .await;
    for (join, _) in JOINS {
        let counts = ["evaluationsFull", "resultsChanged"].map(|field| joins[join][field].clone());
        assert_eq!(counts, [json!(1), json!(0)], "{join}: {joins}");
    }
    let stored = snapshots(&worker, 0).await;
    let written = written(version);
    folded(&stored).assert_same(&folded(&written), "the restored results");
    folded(&stored).assert_same(&earlier.expected(), "the restored results");
    asked_from_the_mark_on(&earlier.server).await;
    let positions = |snapshots: &Snapshots| -> Vec<(u64, u64)> {
        let events = snapshots.values().flat_map(|events| read(events));
        events.map(|event| EventId::parse(&event.id).position()).collect()
    };
    assert_eq!(positions(&stored), positions(&written));
    earlier.late_has(&stored).await;
    assert_eq!(ids(&earlier.sent()), Vec::<&str>::new());
    earlier.goes_on(&worker, None).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_manifests_of_an_earlier_version_are_valid() {
    for version in EarlierVersion::all() {
        let shipped = version.unpacked("shipped.tar.gz");
        let examples =
            run(Command::new("find").arg(shipped.path().join("examples")).args(["-name", "*.yaml"]));
        assert!(!examples.is_empty(), "{} has no examples", version.name());
        for example in examples.lines() {
            let validated = WorkerSite::new().command(["validate", "-f", example]).end().await;
            assert_eq!(validated.code, Some(0), "{} {example}: {}", version.name(), validated.stderr);
        }
    }
}

/// Writes the case of a version by its own worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes data and a replica of an earlier version; tests/keep runs it"]
async fn the_case_is_written() {
    let (version, programs) = EarlierVersion::to_write();
    let pipeline = earlier::folder().join("pipeline.yaml");
    let earlier = Earlier::new(&pipeline).await;
    let start = async || {
        let mut command = Command::new(programs.join("litejoin"));
        command.args(["run", "-f", "pipeline.yaml", "--data-dir", "data", "--log-format", "json"]);
        earlier.with_environment(earlier.site.launch(command)).start().await
    };
    let worker = start().await;
    earlier.server.behave(|request| match request.path() {
        // What wants to be left alone for so long is pending when the worker stops.
        "/late" => Reply::status(503).with_header("retry-after", "3600"),
        "/hook" if request.text().contains(r#""key":"c3""#) => Reply::status(422),
        _ => customers(request),
    });
    let mut epoch = 0;
    for messages in written_messages().chunks(40) {
        epoch = worker.ingest().send(messages).await;
    }
    let snapshots = until("all results", async || {
        let snapshots = snapshots(&worker, epoch).await;
        (folded(&snapshots) == earlier.expected()).then_some(snapshots)
    })
    .await;
    until("the mark", async || {
        let received = earlier.server.received();
        received.iter().any(|request| request.query("after") == Some("2")).then_some(())
    })
    .await;
    until("the dead letter, and results that wait", async || {
        let sinks = worker.status().await["sinks"].clone();
        let (hook, late) = (&sinks["hook"], &sinks["late"]);
        let is_there = hook["deadLetters"] == 1 && hook["lagEpochs"] == 0;
        (is_there && late["deadLetters"] == 0 && late["lagEpochs"] != 0).then_some(())
    })
    .await;
    worker.stop().await;
    for name in ["data", "replica"] {
        let folder = version.path(name);
        if folder.exists() {
            std::fs::remove_dir_all(folder).expect("the case can be written");
        }
    }
    copy(&earlier.site.data_dir(), &version.path("data"));
    std::fs::copy(pipeline, version.path("pipeline.yaml")).expect("the case can be written");
    write_snapshots(&version, &snapshots);

    let store = Store::file().await;
    earlier.replicate(&store);
    let worker = start().await;
    until("the replica to be READY", async || {
        (worker.status().await["replication"]["ready"] == true).then_some(())
    })
    .await;
    let ended = worker.stop().await;
    assert!(ended.stderr.contains("everything is in the replica"), "{}", ended.stderr);
    copy(&store.files().join("replicas"), &version.path("replica"));
}

/// A hundred orders and more of eight customers, of which some change and some go.
fn written_messages() -> Vec<Value> {
    let order = |n: u64, by: u64| {
        message("orders", &format!("o{n}"), json!({"customer": format!("c{}", n % 8), "n": n * by}))
    };
    let deleted = (40..50).map(|n| message("orders", &format!("o{n}"), Value::Null));
    (1..=130).map(|n| order(n, 10)).chain((1..=20).map(|n| order(n, 7))).chain(deleted).collect()
}

fn write_snapshots(version: &EarlierVersion, snapshots: &Snapshots) {
    let joins = snapshots.iter().map(|(join, events)| {
        let events: Vec<String> = events.iter().map(|event| format!("  {event}")).collect();
        format!("\"{join}\": [\n{}\n]", events.join(",\n"))
    });
    let text = format!("{{\n{}\n}}\n", joins.collect::<Vec<_>>().join(",\n"));
    std::fs::write(version.path("snapshots.json"), text).expect("the case can be written");
}
