//! Many random edits of the config while messages come in, a third of them wrong. After each edit the results of every
//! sink are those of the config in force over the present topics, no acknowledged message is lost, streams
//! of sinks that did not change go on without a gap or a repetition, and no file or memory is left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::{chance, is_long, seeds};
use litejoin_tests::results::{Event, EventId, ResultKey, Results};
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::sync::RwLock;

const TOPICS: [&str; 5] = ["orders", "customers", "files", "marks", "side_rows"];
const KEYS: u64 = 60;

/// Joins that come, change and go.
const JOINS: [&str; 5] = ["j0", "j1", "j2", "j3", "j4"];

/// A join that is there from start to end, and one whose only result shows a reader how far it is.
const STEADY: [(&str, &str); 2] = [
    (
        "steady_join",
        "SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'n' AS customer FROM orders o LEFT JOIN customers c ON \
         c.key = o.payload->>'customer'",
    ),
    ("mark", "SELECT key AS id, payload->>'n' AS n FROM marks"),
];

/// A config, as far as edits change it.
#[derive(Debug, Clone, PartialEq)]
struct Config {
    joins: BTreeMap<&'static str, EditedJoin>,
    /// Heartbeat of a sink that comes and goes, in seconds.
    extra: Option<u32>,
    /// Largest body of a source that comes and goes.
    side: Option<u32>,
    /// Rows a second of a file that comes and goes.
    file: Option<u32>,
    /// Retention in hours.
    retention: u32,
}

#[derive(Debug, Clone, PartialEq)]
struct EditedJoin {
    variant: u32,
    sinks: Vec<&'static str>,
}

/// Addresses that stay the same for all edits of a run.
struct Addresses {
    side: SocketAddr,
    /// Where this test listens itself.
    taken: SocketAddr,
    _listener: TcpListener,
}

impl Addresses {
    fn new() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let address = |listener: &TcpListener| listener.local_addr().expect("a listener has an address");
        let (listener, side) = (free(), free());
        Self { side: address(&side), taken: address(&listener), _listener: listener }
    }
}

impl Config {
    fn base() -> Self {
        Self { joins: BTreeMap::new(), extra: None, side: None, file: Some(1_000), retention: 24 }
    }

    /// The query of each join; joins that it may read come before it.
    fn queries(&self) -> Vec<(&'static str, String)> {
        let mut before = "steady_join";
        let mut queries: Vec<(&str, String)> = STEADY.map(|(name, query)| (name, query.to_owned())).into();
        for (name, join) in &self.joins {
            let query = match join.variant {
                0 => "SELECT key AS id, payload->>'n' AS n FROM orders".to_owned(),
                1 => "SELECT key AS id, payload->>'n' AS n FROM orders WHERE payload->>'n' % 2 = 0".to_owned(),
                2 => "SELECT payload->>'customer' AS id, count(*) AS orders, sum(payload->>'n') AS total FROM orders \
                      GROUP BY payload->>'customer'"
                    .to_owned(),
                3 => "SELECT key AS id, payload->>'n' AS n FROM files".to_owned(),
                4 => format!("SELECT id, 'by' AS way FROM {before}"),
                _ => format!("SELECT c.key AS id, count(b.id) AS n FROM customers c LEFT JOIN {before} b ON b.id = c.key \
                              GROUP BY c.key"),
            };
            queries.push((name, query));
            before = name;
        }
        queries
    }

    /// Names of the joins that a sink takes.
    fn taken_by(&self, sink: &str) -> BTreeSet<String> {
        let joins = self.joins.iter().filter(|(_, join)| join.sinks.contains(&sink)).map(|(name, _)| *name);
        let steady = if sink == "steady" { &STEADY[..] } else { &STEADY[1..] };
        joins.chain(steady.iter().map(|(name, _)| *name)).map(str::to_owned).collect()
    }

    fn yaml(&self, addresses: &Addresses) -> String {
        let mut yaml = format!(
            "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 3, flushInterval: 2ms}}
  admin: {{addr: \"127.0.0.1:0\"}}
  retention: {{duration: {}h}}
  sources:
    - {{name: ingest, http: {{addr: \"127.0.0.1:0\", topics: [{}]}}}}\n",
            self.retention,
            TOPICS.join(", ")
        );
        if let Some(bytes) = self.side {
            let addr = addresses.side;
            let _ = writeln!(
                yaml,
                "    - {{name: side, http: {{addr: \"{addr}\", topics: [side_rows], maxBodyBytes: {bytes}}}}}"
            );
        }
        if let Some(rate) = self.file {
            let _ = writeln!(
                yaml,
                "    - {{name: rows, file: {{path: rows.ndjson, format: ndjson, topic: files, keyColumns: [id], \
                                    follow: true, rate: {rate}}}}}"
            );
        }
        yaml += "  joins:\n";
        for (name, query) in self.queries() {
            let sinks = match self.joins.get(name) {
                Some(join) => join.sinks.join(", "),
                None if name == "mark" => "steady, live, console".to_owned(),
                None => "steady".to_owned(),
            };
            let sinks = if sinks.is_empty() { String::new() } else { format!(", sinks: [{sinks}]") };
            let _ = writeln!(yaml, "    - {{name: {name}, query: \"{query}\"{sinks}}}");
        }
        yaml += "  sinks:
    - {name: steady, sse: {addr: \"127.0.0.1:0\"}}
    - {name: live, sse: {addr: \"127.0.0.1:0\"}}
    - {name: console, stdout: {}}\n";
        if let Some(heartbeat) = self.extra {
            let _ = writeln!(
                yaml,
                "    - {{name: extra, joins: [mark], sse: {{addr: \"127.0.0.1:0\", heartbeatInterval: {heartbeat}s}}}}"
            );
        }
        yaml
    }

    /// Changes one to three things.
    fn edit(&self, chance: &mut StdRng) -> Self {
        let mut edited = self.clone();
        for _ in 0..chance.random_range(1..=3) {
            match chance.random_range(0..8) {
                0 => edited.extra = chance.random_ratio(2, 3).then(|| chance.random_range(1..=3)),
                1 => edited.side = chance.random_ratio(2, 3).then(|| 1_000 * chance.random_range(1..=3)),
                2 => edited.file = chance.random_ratio(2, 3).then(|| 1_000 * chance.random_range(1..=3)),
                3 => edited.retention = chance.random_range(24..=26),
                _ => {
                    let name = JOINS[chance.random_range(0..JOINS.len())];
                    let sinks = [vec!["live", "console"], vec!["live"], vec!["console"], vec![]];
                    let sinks = sinks[chance.random_range(0..4)].clone();
                    match chance.random_range(0..3) {
                        0 => drop(edited.joins.remove(name)),
                        _ => drop(
                            edited
                                .joins
                                .insert(name, EditedJoin { variant: chance.random_range(0..6), sinks }),
                        ),
                    }
                }
            }
        }
        edited
    }
}

/// Makes a manifest wrong, on top of an edit that could be made.
fn spoil(yaml: &str, addresses: &Addresses, chance: &mut StdRng) -> String {
    match chance.random_range(0..8) {
        0 => yaml.replace("spec:", "spec: {"),
        1 => yaml.replace("retention:", "retentoin:"),
        2 => yaml.replace("SELECT key AS id, payload->>'n' AS n FROM marks", "SELECT key AS id, FROM marks"),
        3 => yaml.replace("FROM marks", "FROM merks"),
        4 => yaml.replace("shardCount: 3", "shardCount: 4"),
        5 => yaml.replace("name: mark,", "name: orders,"),
        6 => format!("{yaml}    - {{name: late, joins: [mark], sse: {{addr: \"{}\"}}}}\n", addresses.taken),
        _ => yaml.replace(
            "  joins:\n",
            "  joins:\n    - {name: a1, query: \"SELECT id FROM a2\"}\n    - {name: a2, query: \"SELECT id \
                                         FROM a1\"}\n",
        ),
    }
}

/// The events that a reader of a sink has got, in their order.
#[derive(Clone, Default)]
struct Reader {
    events: Arc<Mutex<Vec<Event>>>,
    ended: Arc<AtomicBool>,
}

impl Reader {
    /// Reads a stream to its end.
    fn of(mut stream: Subscription) -> Self {
        let reader = Self::default();
        let filled = reader.clone();
        tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                filled.lock().push(event.result());
            }
            filled.ended.store(true, Ordering::Relaxed);
        });
        reader
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the reader has had that mark, and takes all that came before it.
    async fn take_to(&self, mark: u64) -> Vec<Event> {
        let is_mark = |event: &Event| event.query == "mark" && event.rows[0]["n"] == mark;
        let what = format!("mark {mark}");
        until(&what, async || {
            let mut events = self.lock();
            let at = events.iter().position(is_mark)?;
            Some(events.drain(..=at).collect())
        })
        .await
    }
}

/// A reader's copy of the results, and what it must never see.
#[derive(Default)]
struct Copy {
    results: Results,
    /// By join and key, the place of the newest result.
    newest: BTreeMap<ResultKey, (u64, u64)>,
}

impl Copy {
    /// Takes results in. A result that is there already, or older than one that was, is a disturbance.
    fn take(&mut self, events: &[Event], who: &str) {
        for event in events {
            let place = EventId::parse(&event.id).position();
            let before = self.newest.insert(event.result_key(), place);
            assert!(before.is_none_or(|before| before < place), "{who} got {event:?} after {before:?}");
        }
        self.results.fold(events);
    }

    /// Drops the results of joins that the sink no longer takes: no event says that they end, and a join that comes
    /// back is sent as a whole.
    fn keep(&mut self, joins: &BTreeSet<String>) {
        self.results.rows.retain(|(join, _), _| joins.contains(join));
        self.newest.retain(|(join, _), _| joins.contains(join));
    }
}

/// A lock that writers share for each request; a check that wants them to rest holds it alone.
type Rest = Arc<RwLock<()>>;

/// Sends random messages until `stopping` is set. The source `ingest` must take each; `side`, a source that comes and
/// goes, may refuse. Returns the keys that `side` has taken.
async fn load(
    ingest: Ingest,
    side: Ingest,
    number: u64,
    seed: u64,
    rest: Rest,
    stopping: Arc<AtomicBool>,
) -> BTreeSet<String> {
    let mut chance = chance(seed * 1_000 + number);
    let mut taken = BTreeSet::new();
    for turn in 0_u64.. {
        if stopping.load(Ordering::Relaxed) {
            break;
        }
        let _resting = rest.read().await;
        let messages: Vec<Value> =
            (0..chance.random_range(1..=5)).map(|_| random_message(&mut chance)).collect();
        ingest.send(&messages).await;
        let key = format!("a{number}_{turn}");
        if let Ok(answer) = side.try_send(&[message("side_rows", &key, json!({"n": turn}))]).await
            && answer.status == 200
        {
            taken.insert(key);
        }
    }
    taken
}

fn random_message(chance: &mut StdRng) -> Value {
    let n = chance.random_range(0..1_000);
    let customer = format!("c{}", chance.random_range(0..KEYS / 4));
    let order = format!("o{}", chance.random_range(0..KEYS));
    match chance.random_range(0..10) {
        0 => message("orders", &order, Value::Null),
        1 => message("customers", &customer, json!({"n": n})),
        _ => message("orders", &order, json!({"n": n, "customer": customer})),
    }
}

/// A worker under load, and the readers that watch it.
struct EditRun {
    site: WorkerSite,
    worker: Worker,
    ingest: Ingest,
    rest: Rest,
    /// Rows that were appended to the file.
    rows: u64,
    mark: u64,
    steady: (Reader, Copy),
    live: (Reader, Copy),
    console: (Reader, Copy),
    console_lines: usize,
}

impl EditRun {
    /// Starts a worker with this config, and readers of all its sinks.
    async fn start(yaml: &str) -> Self {
        let site = WorkerSite::with(yaml);
        site.write("rows.ndjson", "");
        let worker = site.start().await;
        let ingest = worker.ingest();
        let reader = async |sink: &str| {
            let address = worker.address(&format!("sink {sink}"));
            Reader::of(Subscription::open(address, "join=*", None).await)
        };
        let (steady, live) = (reader("steady").await, reader("live").await);
        Self {
            site,
            ingest,
            rest: Rest::default(),
            rows: 0,
            mark: 0,
            steady: (steady, Copy::default()),
            live: (live, Copy::default()),
            console: (Reader::default(), Copy::default()),
            console_lines: 0,
            worker,
        }
    }

    /// Lets the worker read this config while rows are appended, and returns what `/status` says of the config.
    async fn reload(&mut self, yaml: &str) -> Value {
        self.site.write("pipeline.yaml", yaml);
        self.append_rows();
        self.worker.reload().await
    }

    /// Asserts that a config is refused, and that the config in force stays.
    async fn refuse(&mut self, yaml: &str, what: &str) {
        let hash = self.worker.status().await["config"]["hash"].clone();
        let after = self.reload(yaml).await;
        assert_eq!(after["lastReload"]["outcome"], "refused", "{what}: {after}\n{yaml}");
        assert_eq!(after["hash"], hash, "{what}");
    }

    /// Asserts that a config is taken, with this outcome.
    async fn apply(&mut self, yaml: &str, outcome: &str, what: &str) {
        let after = self.reload(yaml).await;
        assert_eq!(after["lastReload"]["outcome"], outcome, "{what}: {after}\n{yaml}");
    }

    /// Appends some rows to the file, whether a source reads it or not.
    fn append_rows(&mut self) {
        let path = self.site.path().join("rows.ndjson");
        let mut file = OpenOptions::new().append(true).open(path).expect("the file is there");
        for _ in 0..3 {
            writeln!(file, "{}", json!({"id": format!("r{}", self.rows), "n": self.rows}))
                .expect("a row can be appended");
            self.rows += 1;
        }
    }

    /// Lets everything come to rest, and asserts that all results are those of this config.
    async fn check(&mut self, config: &Config, what: &str) {
        let rest = Arc::clone(&self.rest);
        let _rest = rest.write().await;
        if config.file.is_some() {
            let stored =
                async || Oracle::read(&self.site.data_dir(), TOPICS).value("SELECT count(*) FROM files");
            until("the rows of the file", async || (stored().await == self.rows).then_some(())).await;
        }
        // All results before the first mark are there with it, and with the second comes the second alone.
        let first = self.ingest.put("marks", "m", json!({"n": self.mark + 1})).await;
        self.worker.snapshot("live", "mark", first).await;
        self.mark += 2;
        let last = self.ingest.put("marks", "m", json!({"n": self.mark})).await;
        let oracle = Oracle::read(&self.site.data_dir(), TOPICS);
        let mut expected = BTreeMap::new();
        for (name, query) in config.queries() {
            oracle.define(name, &query);
            expected.insert(name.to_owned(), oracle.results(name, &query, None));
        }
        for sink in ["steady", "live"] {
            for join in config.taken_by(sink) {
                let (_, results) = self.worker.snapshot(sink, &join, last).await;
                results.assert_same(&expected[&join], &format!("{what}: the snapshot of {join} by {sink}"));
            }
        }
        self.read_console(self.mark).await;
        for (sink, (reader, copy)) in
            [("steady", &mut self.steady), ("live", &mut self.live), ("console", &mut self.console)]
        {
            let events = reader.take_to(self.mark).await;
            assert!(!reader.ended.load(Ordering::Relaxed), "{what}: the stream of {sink} has ended");
            copy.take(&events, &format!("{what}: the reader of {sink}"));
            let joins = config.taken_by(sink);
            copy.keep(&joins);
            let mut all = Results::default();
            joins.iter().for_each(|join| all.extend(expected[join].clone()));
            copy.results.assert_same(&all, &format!("{what}: the results that {sink} has sent"));
        }
    }

    /// Reads standard output up to a mark.
    async fn read_console(&mut self, mark: u64) {
        let (worker, reader, lines) = (&self.worker, &self.console.0, &mut self.console_lines);
        until("the mark on standard output", async || {
            let new = worker.stdout_from(*lines);
            *lines += new.len();
            let mut events = reader.lock();
            events.extend(new.iter().map(|line| Event::read(line)));
            events.iter().any(|event| event.query == "mark" && event.rows[0]["n"] == mark).then_some(())
        })
        .await;
    }

    /// The files that the worker has open, by name, with the number of times. Numbers of sockets and the like don't
    /// count.
    fn open_files(&self) -> BTreeMap<String, usize> {
        let mut open = BTreeMap::new();
        let entries = fs::read_dir(format!("/proc/{}/fd", self.worker.pid())).expect("the worker runs");
        for link in entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()) {
            let name = link.display().to_string();
            let name = name.split_once(":[").map_or(name.as_str(), |(kind, _)| kind);
            *open.entry(name.to_owned()).or_default() += 1;
        }
        open
    }

    /// Memory that the worker holds, in kB.
    fn resident_kilobytes(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.worker.pid())).expect("the worker runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number of kB")
    }

    /// Waits until no more files are open than there were in `open_files`.
    async fn wait_for_files_to_close(&self, open_files: &BTreeMap<String, usize>) {
        let left = || -> BTreeMap<String, usize> {
            // While other connections have a file open, SQLite can't close a descriptor and keeps it for the next one.
            // A file with a WAL keeps as many as were ever needed at once: twice as many while a reload has the new
            // readers beside the old. The descriptors of the WAL show how many are in use.
            let more = |(name, count): &(String, usize)| {
                let is_kept = open_files.contains_key(&format!("{name}-wal"));
                open_files
                    .get(name)
                    .is_none_or(|before| before + 8.max(if is_kept { *before } else { 0 }) < *count)
            };
            self.open_files().into_iter().filter(more).collect()
        };
        let mut shown = BTreeMap::new();
        until("files to be closed", async || {
            let left = left();
            if left != shown {
                eprintln!("open before: {open_files:?}, and now more: {left:?}");
                shown.clone_from(&left);
            }
            left.is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_under_load_leave_no_trace_but_what_they_say() {
    for seed in seeds(1, 1) {
        run(seed, if is_long() { 200 } else { 25 }).await;
    }
}

async fn run(seed: u64, edits: u64) {
    eprintln!("seed {seed}");
    let mut chance = chance(seed);
    let addresses = Addresses::new();
    let mut config = Config::base();
    let mut run = EditRun::start(&config.yaml(&addresses)).await;
    let stopping = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
        .map(|number| {
            let (rest, stopping) = (Arc::clone(&run.rest), Arc::clone(&stopping));
            tokio::spawn(load(run.ingest.clone(), Ingest::new(addresses.side), number, seed, rest, stopping))
        })
        .collect();
    run.check(&config, "before any edit").await;
    let open_files = run.open_files();

    let (mut refused, mut kilobytes) = (0, Vec::new());
    for edit in 1..=edits {
        let what = format!("seed {seed}, edit {edit}");
        let next = config.edit(&mut chance);
        let yaml = next.yaml(&addresses);
        if chance.random_ratio(1, 3) {
            run.refuse(&spoil(&yaml, &addresses, &mut chance), &what).await;
            refused += 1;
        } else {
            let outcome = if next == config { "unchanged" } else { "applied" };
            run.apply(&yaml, outcome, &what).await;
            config = next;
        }
        run.check(&config, &what).await;
        kilobytes.push(run.resident_kilobytes());
    }

    // With the first config in force again, the worker has no more files open than then.
    config = Config::base();
    run.site.write("pipeline.yaml", config.yaml(&addresses));
    run.worker.reload().await;
    run.check(&config, "back at the start").await;
    run.wait_for_files_to_close(&open_files).await;
    stopping.store(true, Ordering::Relaxed);
    let mut sent = BTreeSet::new();
    for writer in writers {
        sent.extend(writer.await.expect("everything was taken"));
    }
    run.check(&config, "at the end").await;
    let oracle = Oracle::read(&run.site.data_dir(), TOPICS);
    let stored = oracle.results("side_rows", "SELECT key FROM side_rows", None);
    for key in &sent {
        let key = ("side_rows".to_owned(), json!(key).to_string());
        assert!(stored.rows.contains_key(&key), "{key:?} was acknowledged and is lost");
    }
    let quarter = kilobytes.len() / 4;
    let mean = |sample: &[u64]| sample.iter().sum::<u64>() / sample.len().max(1) as u64;
    let (early, late) = (mean(&kilobytes[quarter..2 * quarter]), mean(&kilobytes[3 * quarter..]));
    eprintln!(
        "{edits} edits, {refused} refused; {} side_rows; memory {early} kB, later {late} kB",
        sent.len()
    );
    if is_long() {
        assert!(late <= early + early / 10 + 4_096, "memory grows from {early} to {late} kB: {kilobytes:?}");
    }
    run.worker.stop().await;
}
