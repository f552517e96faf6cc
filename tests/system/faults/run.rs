//! One pipeline through many deaths: the load, the clients, and the checks whenever the worker has come to rest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use litejoin_tests::client::client;
use litejoin_tests::ingest::message;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::chance;
use litejoin_tests::results::{Event, EventId, ResultKey, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::TIMEOUT;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

/// Orders of one customer: more results than one share of an epoch holds.
const SHARE: u64 = 2_100;

/// Numbers of shards that the data gets one after the other.
const SHARD_COUNTS: [usize; 4] = [3, 8, 5, 2];

const TOPICS: [&str; 4] = ["orders", "customers", "notes", "marks"];

/// Joins by key and in full, in this order in the manifest. One of them changes between two queries.
const JOINS: [(&str, &str); 6] = [
    (
        "enriched",
        "SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'n' AS customer
         FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'",
    ),
    (
        "totals",
        "SELECT payload->>'customer' AS customer, count(*) AS orders, sum(payload->>'n') AS total
         FROM orders GROUP BY payload->>'customer'",
    ),
    ("noted", "SELECT key AS id, payload->>'n' AS n FROM notes"),
    ("newest", "SELECT key AS id, payload->>'n' AS n FROM orders ORDER BY payload->>'n' DESC, key LIMIT 5"),
    ("all_orders", "SELECT 'all' AS id, count(*) AS orders, sum(payload->>'n') AS total FROM orders"),
    (MARK, "SELECT key AS id, payload->>'n' AS n FROM marks"),
];

/// A join over marks. When the result of a mark comes, all results before it have come too.
const MARK: &str = "mark";

/// An interval longer than any test.
const NEVER: &str = "24h";

/// The join that has two queries.
const CHANGING: &str = "changing";

/// A data directory, with all that clients were ever sent of it.
pub(super) struct FaultRun {
    pub(super) site: WorkerSite,
    /// The present step, for messages.
    pub(super) what: String,
    /// How often the data was asked to be in another number of shards.
    reshards: usize,
    /// Whether that is done while a worker serves.
    is_online: bool,
    /// Whether every batch concerns more results than one share of an epoch holds.
    pub(super) is_wide: bool,
    /// Whether rows may be what they were before.
    values_may_shrink: bool,
    /// Whether a client may get `reset`.
    pub(super) resets_allowed: bool,
    /// Whether results that were sent may be taken back: standard output, which can't be reset, keeps them.
    pub(super) has_ghosts: bool,
    replay_window: &'static str,
    clean_interval: &'static str,
    /// Whether [`CHANGING`] has its second query.
    has_other_query: bool,
    /// The results that the SSE client holds, and those that came on standard output.
    client: ConsumerLog,
    printed: ConsumerLog,
    last_event_id: Option<String>,
    chance: StdRng,
    /// The newest value that was sent.
    n: u64,
    /// The messages that were sent last and not acknowledged.
    unanswered: Vec<Value>,
}

/// A worker, and the client that is connected to it.
pub(super) struct LiveWorker {
    pub(super) worker: Worker,
    client: Subscription,
}

/// Databases as they were.
pub(super) struct Saved {
    names: Vec<String>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

/// The events that a consumer has got.
#[derive(Default)]
struct ConsumerLog {
    lineage: String,
    results: Results,
    events: BTreeMap<String, (Value, Vec<Value>)>,
    positions: BTreeMap<ResultKey, (u64, u64)>,
    values: BTreeMap<ResultKey, i64>,
}

impl FaultRun {
    pub(super) fn new(replay_window: &'static str) -> Self {
        let run = Self {
            site: WorkerSite::new(),
            what: String::new(),
            reshards: 0,
            is_online: false,
            is_wide: false,
            values_may_shrink: false,
            resets_allowed: false,
            has_ghosts: false,
            replay_window,
            clean_interval: NEVER,
            has_other_query: false,
            client: ConsumerLog::default(),
            printed: ConsumerLog::default(),
            last_event_id: None,
            chance: chance(1),
            n: 0,
            unanswered: (0..SHARE).map(|number| order(&format!("b{number}"), 0, "c0", "c1")).collect(),
        };
        run.write_manifest();
        run
    }

    /// Gives one of the joins its other query; for the next start or signal.
    pub(super) fn change_query(&mut self) {
        self.has_other_query = !self.has_other_query;
        self.write_manifest();
    }

    /// Asks for the data to be in another number of shards; for the next start.
    pub(super) fn reshard(&mut self) {
        self.reshards += 1;
        self.write_manifest();
    }

    /// Asks for the same, to be done while the next worker serves.
    pub(super) fn reshard_online(&mut self) {
        self.is_online = true;
        self.reshard();
    }

    /// Has the next start do what is left of it.
    pub(super) fn end_online(&mut self) {
        self.is_online = false;
        self.write_manifest();
    }

    /// The number of shards that was asked for so many changes ago.
    fn shard_count(&self, ago: usize) -> usize {
        SHARD_COUNTS[(self.reshards - ago) % SHARD_COUNTS.len()]
    }

    /// Has rows expire or not; for the next start.
    pub(super) fn expire(&mut self, whether: bool) {
        self.clean_interval = if whether { "100ms" } else { NEVER };
        self.write_manifest();
    }

    /// Starts a worker, which may die of the variable before it runs.
    pub(super) async fn start(&mut self, variable: Option<(&str, &str)>) -> Option<LiveWorker> {
        let mut launch = self.site.run([]);
        if let Some((name, value)) = variable {
            launch = launch.with_variable(name, value);
        }
        let mut worker = launch.spawn();
        let address = worker.comes_to_run().await.then(|| worker.address("sink live"));
        let client = match address {
            Some(address) => {
                Subscription::try_open(address, "join=*&replay=true", self.last_event_id.as_deref())
                    .await
                    .ok()
            }
            None => None,
        };
        if let Some(client) = client {
            return Some(LiveWorker { worker, client });
        }
        // The worker dies, or else it would have answered.
        self.print(&worker.ended().await.stdout);
        None
    }

    /// Copies the files of databases as they are now, as a loss of power leaves them. A running worker
    /// must be at rest, and is held meanwhile.
    pub(super) fn save(&self, live: &LiveWorker, names: &[&str]) -> Saved {
        live.worker.signal("STOP");
        let of_them =
            |name: &str| names.iter().any(|wanted| name == *wanted || name == format!("{wanted}-wal"));
        let files = self.files().into_iter().filter(|path| of_them(&file_name(path)));
        let files =
            files.map(|path| (path.clone(), std::fs::read(path).expect("a file can be read"))).collect();
        live.worker.signal("CONT");
        Saved { names: names.iter().map(|name| (*name).to_owned()).collect(), files }
    }

    /// Puts saved databases back. No worker runs.
    pub(super) fn put_back(&mut self, saved: &Saved) {
        for name in &saved.names {
            self.remove(name);
        }
        for (path, content) in &saved.files {
            std::fs::write(path, content).expect("a file can be written");
        }
        self.values_may_shrink = true;
    }

    /// Removes a database. No worker runs.
    pub(super) fn remove(&self, name: &str) {
        for path in self.files().into_iter().filter(|path| file_name(path).starts_with(name)) {
            std::fs::remove_file(path).expect("a file can be removed");
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.site.data_dir()).expect("a folder can be listed");
        entries.map(|entry| entry.expect("a folder can be listed").path()).collect()
    }

    /// Runs SQL on a shard. No worker runs.
    #[expect(clippy::disallowed_methods, reason = "somebody else than the worker does it")]
    pub(super) fn meddle(&self, file: &str, sql: &str) {
        let connection = Connection::open_with_flags(self.site.data_dir().join(file), OpenFlags::default());
        let done = connection.and_then(|connection| connection.execute_batch(sql));
        done.unwrap_or_else(|error| panic!("{file}: {sql}: {error}"));
    }

    /// Ends a worker as a crash would.
    pub(super) async fn kill(&mut self, live: LiveWorker) {
        live.worker.signal("KILL");
        self.bury(live).await;
    }

    /// Starts a worker that lives.
    pub(super) async fn start_well(&mut self) -> LiveWorker {
        let what = self.what.clone();
        self.start(None).await.unwrap_or_else(|| panic!("{what}: the worker does not start"))
    }

    /// Sends batches, none of which may kill the worker.
    pub(super) async fn load(&mut self, live: &LiveWorker, batches: u32) {
        for _ in 0..batches {
            assert!(self.send(live).await, "{}: the worker dies", self.what);
        }
    }

    /// Sends batches to a worker that evaluates nothing.
    pub(super) async fn load_in_vain(&mut self, worker: &Worker, batches: u32) {
        for _ in 0..batches {
            let batch = self.batch();
            worker.ingest().send(&batch).await;
        }
    }

    /// Sends a batch, and mostly waits for its results; `false` if the worker dies of it. Messages that were not
    /// acknowledged come first.
    pub(super) async fn send(&mut self, live: &LiveWorker) -> bool {
        if self.unanswered.is_empty() {
            self.unanswered = self.batch();
        }
        let answer = match live.worker.ingest().try_send(&self.unanswered).await {
            Ok(answer) if answer.status == 200 => answer,
            // It pauses for the switch, and takes them afterwards.
            Ok(answer) if answer.status == 503 && self.is_online => return true,
            Ok(answer) => panic!("{}: {} {}", self.what, answer.status, answer.body),
            Err(_) => return false,
        };
        self.unanswered.clear();
        if self.chance.random_ratio(1, 4) {
            return true;
        }
        let epoch = answer.body["epoch"].as_u64().expect("an answer has an epoch");
        let url = live.worker.url("sink live", &format!("/snapshot?join={MARK}&minEpoch={epoch}"));
        let request = client().get(url).timeout(TIMEOUT);
        match request.send().await {
            Ok(answer) => answer.bytes().await.is_ok(),
            Err(_) => false,
        }
    }

    /// Takes in the events of a worker that is dead or about to be.
    pub(super) async fn bury(&mut self, mut live: LiveWorker) {
        let code = live.worker.wait().await;
        assert_eq!(code, None, "{}: no signal has ended it", self.what);
        while let Some(event) = live.client.next().await {
            self.hear(&event);
        }
        self.last_event_id = live.client.last_event_id.take();
        self.print(&live.worker.ended().await.stdout);
    }

    /// Lets a worker come to rest, holds its results to SQLite, and stops it.
    pub(super) async fn settle(&mut self, live: LiveWorker) {
        let live = self.check(live).await;
        self.stop(live).await;
        let expected = self.expected();
        if !self.has_ghosts {
            self.printed.results.assert_same(&expected, &format!("{}: standard output", self.what));
        }
    }

    /// Lets a worker come to rest, and holds the results of its clients to SQLite.
    pub(super) async fn check(&mut self, mut live: LiveWorker) -> LiveWorker {
        while !self.unanswered.is_empty() {
            assert!(self.send(&live).await, "{}: the worker dies once more", self.what);
        }
        self.n += 1;
        let epoch = live.worker.ingest().put("marks", "begun", json!({"n": self.n})).await;
        let mut snapshot = Results::default();
        for (join, _) in self.joins() {
            snapshot.extend(live.worker.snapshot("live", join, epoch).await.1);
        }
        snapshot.assert_same(&self.expected(), &format!("{}: the snapshot", self.what));
        self.n += 1;
        live.worker.ingest().put("marks", "last", json!({"n": self.n})).await;
        let rest = tokio::time::timeout(TIMEOUT, async {
            loop {
                let event = live.client.expect_next().await;
                let is_last = event.event == "join_result" && {
                    let event = event.result();
                    event.query == MARK && event.rows.first().is_some_and(|row| row["n"] == self.n)
                };
                self.hear(&event);
                if is_last {
                    break;
                }
            }
        });
        assert!(rest.await.is_ok(), "{}: the subscriber gets no more events", self.what);
        self.client.results.assert_same(&self.expected(), &format!("{}: the subscriber", self.what));
        live
    }

    /// Asks a worker to stop.
    pub(super) async fn stop(&mut self, mut live: LiveWorker) {
        live.worker.signal("TERM");
        while let Some(event) = live.client.next().await {
            self.hear(&event);
        }
        self.last_event_id = live.client.last_event_id.take();
        let ended = live.worker.ended().await;
        assert_eq!(ended.code, Some(0), "{}: a planned stop; the log:\n{}", self.what, ended.stderr);
        self.print(&ended.stdout);
    }

    fn joins(&self) -> Vec<(&'static str, &'static str)> {
        let changing = if self.has_other_query {
            "SELECT o.key AS id, c.payload->>'n' AS n
             FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'second'"
        } else {
            "SELECT c.key AS id, count(o.key) AS n
             FROM customers c LEFT JOIN orders o ON o.payload->>'third' = c.key GROUP BY c.key"
        };
        [(CHANGING, changing)].into_iter().chain(JOINS).collect()
    }

    /// The results of the queries by SQLite, over the rows that the shards hold.
    fn expected(&self) -> Results {
        let oracle = Oracle::read(&self.site.data_dir(), TOPICS);
        let mut expected = Results::default();
        for (join, query) in self.joins() {
            expected.extend(oracle.results(join, query, None));
        }
        expected
    }

    fn hear(&mut self, event: &litejoin_tests::sse::SseEvent) {
        match event.event.as_str() {
            "join_result" => {
                let event = event.result();
                if !self.client.hear(&event, self.values_may_shrink, &self.what) {
                    panic!("{}: the subscriber gets an event twice: {event:?}", self.what);
                }
            }
            "replayed" => {}
            "reset" => {
                assert!(self.resets_allowed, "{}: the subscriber gets {}", self.what, event.data);
                self.client = ConsumerLog::default();
            }
            other => panic!("{}: the subscriber gets {other}: {}", self.what, event.data),
        }
    }

    /// Takes in standard output, of which the last line may have been cut off.
    fn print(&mut self, lines: &str) {
        for line in lines.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()) {
            // After a crash some results are sent again.
            let what = format!("{} (standard output)", self.what);
            self.printed.hear(&Event::read(line), self.values_may_shrink, &what);
        }
    }

    /// Some changes of all kinds. Values only grow.
    fn batch(&mut self) -> Vec<Value> {
        let mut batch = BTreeMap::new();
        let mut put = |topic: &'static str, key: String, message: Value| batch.insert((topic, key), message);
        for _ in 0..self.chance.random_range(1..=5) {
            self.n += 1;
            let key = format!("o{}", self.chance.random_range(0..30));
            let [first, second] = [0; 2].map(|_| format!("c{}", self.chance.random_range(0..6)));
            let mut message = order(&key, self.n, &first, &second);
            if self.chance.random_ratio(1, 5) {
                message["payload"] = Value::Null;
            }
            put("orders", key, message);
        }
        if self.is_wide || self.chance.random_ratio(1, 4) {
            self.n += 1;
            let key = if self.is_wide { 0 } else { self.chance.random_range(0..6) };
            let key = format!("c{key}");
            put("customers", key.clone(), message("customers", &key, json!({"n": self.n})));
        }
        if self.chance.random_ratio(1, 4) {
            self.n += 1;
            // A row that is too old to stay.
            let key = format!("n{}", self.n);
            let mut note = message("notes", &key, json!({"n": self.n}));
            note["timestamp"] = json!(1_000_000);
            put("notes", key, note);
        }
        batch.into_values().collect()
    }

    fn write_manifest(&self) {
        let sinks = ["live", "console"];
        let joins = self.joins().into_iter();
        let joins = joins.map(|(name, query)| json!({"name": name, "query": query, "sinks": sinks}));
        let mut storage = json!({"shardCount": self.shard_count(0), "flushInterval": "1ms"});
        if self.reshards > 0 {
            let (from, to) = (self.shard_count(1), self.shard_count(0));
            let strategy = if self.is_online { "Online" } else { "Job" };
            storage["reshard"] = json!({"fromShardCount": from, "toShardCount": to, "strategy": strategy});
        }
        let manifest = json!({
            "apiVersion": "litejoin.io/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": "faults"},
            "spec": {
                "storage": storage,
                "retention": {"duration": "24h", "cleanInterval": self.clean_interval},
                "delivery": {"replayWindow": self.replay_window},
                "admin": {"addr": "127.0.0.1:0"},
                "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": TOPICS}}],
                "joins": joins.collect::<Vec<_>>(),
                "sinks": [
                    {"name": "live", "sse": {"addr": "127.0.0.1:0"}},
                    {"name": "console", "stdout": {}},
                ],
            },
        });
        self.site.write("pipeline.yaml", manifest.to_string());
    }
}

impl ConsumerLog {
    /// Takes in an event; `false` if it came before.
    fn hear(&mut self, event: &Event, values_may_shrink: bool, what: &str) -> bool {
        let id = EventId::parse(&event.id);
        if self.lineage != id.lineage {
            // Events of the lineage before hold no more.
            *self = Self { lineage: id.lineage.clone(), ..Self::default() };
        }
        let content = (event.key.clone(), event.rows.clone());
        if let Some(before) = self.events.insert(event.id.clone(), content.clone()) {
            assert_eq!(before, content, "{what}: another result has the id {}", event.id);
            return false;
        }
        let key = event.result_key();
        let position = id.position();
        let before = self.positions.insert(key.clone(), position);
        assert!(before.is_none_or(|before| before < position), "{what}: {event:?} comes after {before:?}");
        if event.query == "enriched"
            && let Some(value) = event.rows.first().and_then(|row| row["n"].as_i64())
        {
            let before = self.values.insert(key, value);
            let grows = values_may_shrink || before.is_none_or(|before| before <= value);
            assert!(grows, "{what}: {event:?} is older than {before:?}");
        }
        self.results.fold([event]);
        true
    }
}

fn order(key: &str, n: u64, first: &str, second: &str) -> Value {
    message("orders", key, json!({"n": n, "customer": first, "second": second, "third": first}))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
