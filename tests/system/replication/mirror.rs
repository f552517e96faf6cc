//! Every sink is a mirror: what it was told, folded by result key, is what `/snapshot` shows, after messages, expiry,
//! reloads, restarts, kills, audits and the loss of the disk, in any order.

mod sinks;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use litejoin_tests::ingest::message;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::results::Results;
use litejoin_tests::stores::Store;
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use self::sinks::Mirrors;
use super::{Replicated, kill_both, ready};

const START: i64 = 1_700_000_000;
/// How long an order stays, in seconds. It is odd and the clock makes even steps, so no order is exactly that old.
const RETENTION: i64 = 86_401;
const SINKS: [&str; 5] = ["live", "hook", "out", "tables", "console"];

/// A join that reads a window, whose results come to it by a sink of the worker's own.
const BUSY: &str = "SELECT customer, orders FROM hourly WHERE orders > 1";

/// What happens between two looks at the mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Messages,
    /// The clock goes on, by seconds or by more than a day.
    Time,
    /// Queries are edited, or put back if they are.
    Edit,
    /// A join comes while the pipeline runs.
    Join,
    /// A join comes while the pipeline is stopped, and its subscribers are away.
    JoinMeanwhile,
    Restart,
    Kill,
    Audit,
    /// Worker, Litestream and disk are lost.
    LostDisk,
}

const TURNS: [Turn; 13] = [
    Turn::Messages,
    Turn::Time,
    Turn::Time,
    Turn::Time,
    Turn::Edit,
    Turn::Edit,
    Turn::Join,
    Turn::JoinMeanwhile,
    Turn::Restart,
    Turn::Kill,
    Turn::Kill,
    Turn::Audit,
    Turn::LostDisk,
];

/// Random orders and customers, and which of them are there.
struct ShopModel {
    chance: StdRng,
    now: i64,
    /// When each order that is there was last written.
    orders: BTreeMap<String, i64>,
    /// The last messages by topic and key since all mirrors agreed.
    unsettled: BTreeMap<(&'static str, String), Value>,
}

impl ShopModel {
    fn new(seed: u64) -> Self {
        Self { chance: chance(seed), now: START, orders: BTreeMap::new(), unsettled: BTreeMap::new() }
    }

    fn messages(&mut self) -> Vec<Value> {
        let count = self.chance.random_range(1..40);
        (0..count).map(|_| self.message()).collect()
    }

    fn message(&mut self) -> Value {
        let mut random = |below: u64| self.chance.random_range(0..below);
        let goes = random(5) == 0;
        let (topic, key, payload) = if random(6) == 0 {
            ("customers", format!("c{}", random(5)), json!({"name": format!("n{}", random(9))}))
        } else {
            let (customer, n) = (format!("c{}", random(7)), random(50));
            ("orders", format!("o{}", random(30)), json!({"customer": customer, "n": n}))
        };
        let payload = if goes { Value::Null } else { payload };
        if topic == "orders" {
            match goes {
                true => self.orders.remove(&key),
                false => self.orders.insert(key.clone(), self.now),
            };
        }
        self.unsettled.insert((topic, key.clone()), payload.clone());
        message(topic, &key, payload)
    }

    /// The messages whose loss with the disk would be no fault: no result of them was shown yet.
    fn again(&self) -> Vec<Value> {
        self.unsettled.iter().map(|((topic, key), payload)| message(topic, key, payload.clone())).collect()
    }

    fn passes(&mut self, seconds: i64) {
        self.now += seconds;
        let now = self.now;
        self.orders.retain(|_, written| now - *written < RETENTION);
    }
}

/// Which queries are in force.
#[derive(Debug, Default)]
struct Queries {
    edited: bool,
    more: Vec<&'static str>,
}

impl Queries {
    fn joins(&self) -> Value {
        let (column, filter) = match self.edited {
            false => ("", ""),
            true => (", o.payload->>'customer' AS customer", "WHERE payload->>'n' > 20"),
        };
        let named = format!(
            "SELECT o.key AS id, o.payload->>'n' AS n, c.payload->>'name' AS name{column} \
             FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'"
        );
        let totals = format!(
            "SELECT payload->>'customer' AS customer, count(*) AS orders, sum(payload->>'n') AS n \
             FROM orders {filter} GROUP BY 1"
        );
        let join = |name: &str, query: &str| json!({"name": name, "query": query, "sinks": SINKS});
        let more =
            self.more.iter().map(|name| join(name, "SELECT id, n FROM named ORDER BY n DESC, id LIMIT 3"));
        let fixed = [join("named", &named), join("totals", &totals), join("busy", BUSY)];
        fixed.into_iter().chain(more).collect()
    }

    fn windows(&self) -> Value {
        let query = "SELECT payload->>'customer' AS customer, count(*) AS orders FROM orders GROUP BY 1";
        let window = |name: &str, emit: &str| {
            json!({"name": name, "type": "tumbling", "size": "1h", "topic": "orders", "keyColumn": "customer",
                   "query": query, "emit": emit, "sinks": SINKS})
        };
        json!([window("hourly", "update"), window("hours", "final")])
    }

    fn names(&self) -> Vec<&'static str> {
        ["named", "totals", "busy", "hourly", "hours"].into_iter().chain(self.more.iter().copied()).collect()
    }
}

/// A pipeline with all kinds of sinks.
struct Gallery {
    pipeline: Replicated,
    mirrors: Mirrors,
    shop: ShopModel,
    queries: Queries,
}

impl Gallery {
    async fn new(store: &Store, seed: u64) -> Self {
        let pipeline = Replicated::to(store, &json!({"syncInterval": "200ms"}));
        pipeline.site.set_clock(START);
        let mirrors = Mirrors::start(&pipeline.site).await;
        let gallery = Self { pipeline, mirrors, shop: ShopModel::new(seed), queries: Queries::default() };
        gallery.pipeline.change(|manifest| {
            let spec = &mut manifest["spec"];
            spec["sources"] =
                json!([{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": ["orders", "customers"]}}]);
            spec["delivery"] =
                json!({"after": "replicated", "dlq": {"retryInterval": "100ms", "maxBackoff": "1s"}});
            spec["topics"] = json!([{"name": "orders", "retention": format!("{RETENTION}s")}]);
            spec["retention"] = json!({"cleanInterval": "100ms"});
            spec["audit"] = json!({"enabled": false});
            spec["sinks"] = gallery.mirrors.sinks().into();
        });
        gallery.write();
        gallery
    }

    fn write(&self) {
        self.pipeline.change(|manifest| {
            manifest["spec"]["joins"] = self.queries.joins();
            manifest["spec"]["windows"] = self.queries.windows();
        });
    }

    async fn start(&mut self) -> Worker {
        let worker = self.pipeline.start().await;
        self.mirrors.attach(&worker).await;
        worker
    }

    async fn stop(&self, worker: Worker) {
        self.mirrors.detach(&worker.stop().await);
    }

    async fn reload(&self, worker: &Worker) {
        self.write();
        let config = worker.reload().await;
        assert_eq!(config["lastReload"]["error"], Value::Null, "{config}");
    }

    /// Messages come and are not waited for, then `turn` happens.
    async fn turn(&mut self, worker: Worker, turn: Turn) -> Worker {
        worker.ingest().send(&self.shop.messages()).await;
        match turn {
            Turn::Messages => return worker,
            Turn::Time => {
                let steps = [2, 600, 3_600, 4 * 3_600, 25 * 3_600];
                let step = steps[self.shop.chance.random_range(0..steps.len())];
                self.shop.passes(step);
                self.pipeline.site.set_clock(self.shop.now);
                return worker;
            }
            Turn::Edit => {
                self.queries.edited = !self.queries.edited;
                self.reload(&worker).await;
                return worker;
            }
            Turn::Join => {
                self.queries.more.push("first");
                self.reload(&worker).await;
                return worker;
            }
            Turn::Audit => {
                let ended = self.pipeline.site.command(["audit", "--data-dir", "data"]).end().await;
                assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
                return worker;
            }
            Turn::Restart => self.stop(worker).await,
            Turn::JoinMeanwhile => {
                self.stop(worker).await;
                self.queries.more.push("best");
                self.write();
            }
            Turn::Kill => self.mirrors.detach(&worker.kill().await),
            Turn::LostDisk => {
                let ended = kill_both(&self.pipeline, worker, true).await;
                self.mirrors.detach(&ended);
                self.pipeline.lose_disk();
            }
        }
        let worker = self.start().await;
        if turn == Turn::LostDisk {
            worker.ingest().send(&self.shop.again()).await;
        }
        worker
    }

    /// Waits until what each sink was told is what `/snapshot` shows.
    async fn agree(&mut self, worker: &Worker, when: &str) {
        let messages = self.shop.messages();
        let epoch = worker.ingest().send(&messages).await;
        for window in ["hourly", "hours"] {
            worker.reaches(window, self.shop.now).await;
        }
        let mut wrong = String::new();
        let agreed = until("all sinks to agree with /snapshot", async || {
            wrong = self.disagreement(worker, epoch).await;
            wrong.is_empty().then_some(())
        });
        let agreed = AssertUnwindSafe(agreed).catch_unwind().await;
        assert!(agreed.is_ok(), "{when}:{wrong}");
        self.shop.unsettled.clear();
    }

    async fn disagreement(&self, worker: &Worker, epoch: u64) -> String {
        let names = self.queries.names();
        let mut shown = Results::default();
        for name in &names {
            shown.extend(worker.snapshot("live", name, epoch).await.1);
        }
        let named = shown.rows.keys().filter(|(join, _)| join == "named");
        let named: BTreeSet<String> = named.map(|(_, key)| key.trim_matches('"').to_owned()).collect();
        if !named.iter().eq(self.shop.orders.keys()) {
            return format!("\n/snapshot has the orders {named:?}, want {:?}", self.shop.orders.keys());
        }
        let rows = |of: &str| {
            let results = shown.rows.iter().filter(|((join, _), _)| join == of);
            let mut rows: Vec<&String> = results.flat_map(|(_, rows)| rows).collect();
            rows.retain(|row| !row.ends_with("\"orders\":1}"));
            rows.sort_unstable();
            rows
        };
        if rows("hourly") != rows("busy") {
            return format!("\n/snapshot has busy {:?}, want {:?}", rows("busy"), rows("hourly"));
        }
        let mut wrong = String::new();
        for (sink, held) in self.mirrors.held(worker, &names) {
            for ((join, key), rows) in shown.changes(&held) {
                let expected = shown.rows.get(&(join.clone(), key.clone()));
                wrong += &format!("\n{sink} has {rows:?} for {join} {key}, want {expected:?}");
            }
        }
        wrong
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sink_holds_what_a_snapshot_shows_whatever_happens() {
    for seed in seeds(2, 30) {
        let store = Store::file().await;
        let mut gallery = Gallery::new(&store, seed).await;
        let mut worker = gallery.start().await;
        ready(&worker).await;
        let mut turns = TURNS;
        turns.shuffle(&mut gallery.shop.chance);
        for (index, turn) in turns.into_iter().enumerate() {
            worker = gallery.turn(worker, turn).await;
            gallery.agree(&worker, &format!("seed {seed}, {turn:?} after {:?}", &turns[..index])).await;
        }
        gallery.stop(worker).await;
    }
}
