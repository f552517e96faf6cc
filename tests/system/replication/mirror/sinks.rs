//! A sink of each kind, and the results that its consumer holds: what it was told, folded by result key.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use litejoin_tests::consumers::Subscriber;
use litejoin_tests::kafka::{self, TopicReader};
use litejoin_tests::results::{Event, Results};
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::worker::{Ended, Worker, WorkerSite};
use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

/// Consumers of all kinds of sinks, which outlive the workers.
pub(super) struct Mirrors {
    subscriber: Arc<Subscriber>,
    following: Option<JoinHandle<()>>,
    server: Server,
    posted: Mutex<Results>,
    kafka_topic: String,
    brokers: String,
    reader: TopicReader,
    tables: PathBuf,
    printed: Mutex<Printed>,
}

/// Results on standard output.
#[derive(Default)]
struct Printed {
    results: Results,
    /// Lines of the present worker that are in `results`.
    lines: usize,
}

impl Mirrors {
    pub(super) async fn start(site: &WorkerSite) -> Self {
        let cluster = kafka::shared().await;
        let kafka_topic = format!("mirror-{:08x}", rand::random::<u32>());
        cluster.create_topic(&kafka_topic, 2).await;
        let (server, answers) = (Server::start().await, AtomicUsize::new(0));
        // Every fifth answer says that a result was not taken, though it was: it is sent again.
        server.behave(move |_| match answers.fetch_add(1, Ordering::Relaxed) % 5 {
            4 => Reply::status(500),
            _ => Reply::status(200),
        });
        Self {
            subscriber: Arc::default(),
            following: None,
            server,
            posted: Mutex::default(),
            reader: cluster.follow(&kafka_topic),
            brokers: cluster.brokers(),
            kafka_topic,
            tables: site.path().join("tables.db"),
            printed: Mutex::default(),
        }
    }

    /// The sinks, beside `live`, with names that joins and windows say.
    pub(super) fn sinks(&self) -> Vec<Value> {
        vec![
            json!({"name": "live", "sse": {"addr": "127.0.0.1:0"}}),
            json!({"name": "hook", "http": {"url": self.server.url("/"), "concurrency": 4}}),
            json!({"name": "out", "kafka": {"brokers": self.brokers, "topic": self.kafka_topic}}),
            json!({"name": "tables", "sqlite": {"path": "tables.db"}}),
            json!({"name": "console", "stdout": {}}),
        ]
    }

    /// Lets the subscriber follow this worker, from the last id that it has seen on, until the worker ends.
    pub(super) async fn attach(&mut self, worker: &Worker) {
        if let Some(following) = self.following.take() {
            following.await.expect("a subscriber ends with its worker");
        }
        let (subscriber, address) = (Arc::clone(&self.subscriber), worker.address("sink live"));
        let follow = async move { while subscriber.follow(address, "*").await.is_ok() {} };
        self.following = Some(tokio::spawn(follow));
    }

    /// Takes what a worker has printed up to its end. A worker that was killed may have left half a line, which its
    /// successor prints again.
    pub(super) fn detach(&self, ended: &Ended) {
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        for line in ended.stdout.lines().skip(printed.lines) {
            if serde_json::from_str::<Value>(line).is_ok() {
                printed.results.fold([&Event::read(line)]);
            }
        }
        printed.lines = 0;
    }

    /// The results that each consumer holds of these joins.
    pub(super) fn held(&self, worker: &Worker, joins: &[&str]) -> [(&'static str, Results); 5] {
        [
            ("sse", self.subscriber.results()),
            ("http", self.posted()),
            ("kafka", self.recorded()),
            ("sqlite", self.stored(joins)),
            ("stdout", self.printed(worker)),
        ]
    }

    fn posted(&self) -> Results {
        let mut posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        for request in self.server.take() {
            posted.fold([&Event::read(request.text())]);
        }
        posted.clone()
    }

    /// The last record of each key of each join.
    fn recorded(&self) -> Results {
        let mut kept = BTreeMap::new();
        for record in self.reader.records() {
            let key = (record.headers["query"].clone(), record.key);
            match record.value {
                Some(value) => kept.insert(key, Event::read(&value)),
                None => kept.remove(&key),
            };
        }
        Results::folded(kept.values())
    }

    #[expect(clippy::disallowed_methods, reason = "a reader that is no part of the worker")]
    fn stored(&self, joins: &[&str]) -> Results {
        let mut results = Results::default();
        // Before its first table the file is not there.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let Ok(file) = Connection::open_with_flags(&self.tables, flags) else { return results };
        for join in joins {
            let mut by_key: BTreeMap<String, Vec<Value>> = BTreeMap::new();
            for (key, row) in table(&file, join).unwrap_or_default() {
                by_key.entry(key).or_default().push(row);
            }
            for (key, rows) in by_key {
                results.set(((*join).to_owned(), key), &rows);
            }
        }
        results
    }

    fn printed(&self, worker: &Worker) -> Results {
        let mut printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = worker.stdout_from(printed.lines);
        printed.lines += lines.len();
        printed.results.fold(&lines.iter().map(|line| Event::read(line)).collect::<Vec<_>>());
        printed.results.clone()
    }
}

/// The rows of a table, each with its result key.
fn table(file: &Connection, name: &str) -> rusqlite::Result<Vec<(String, Value)>> {
    let mut statement = file.prepare(&format!("SELECT * FROM \"{name}\""))?;
    let columns: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    let rows = statement.query_map([], |row| {
        let mut fields = Map::new();
        for (index, column) in columns.iter().enumerate() {
            let value = match row.get(index)? {
                SqlValue::Null => Value::Null,
                SqlValue::Integer(integer) => integer.into(),
                SqlValue::Real(real) => real.into(),
                SqlValue::Text(text) => text.into(),
                SqlValue::Blob(_) => panic!("no query yields a BLOB"),
            };
            fields.insert(column.clone(), value);
        }
        let key = fields.remove("_key").expect("each row has its key");
        Ok((key.as_str().expect("a key is a text").to_owned(), Value::Object(fields)))
    })?;
    rows.collect()
}
