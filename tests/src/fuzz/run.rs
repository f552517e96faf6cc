//! Plays a script to the built worker, and holds what a subscriber is told to SQLite's answers after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::schema::Message;
use super::script::{Fate, Join, Script, Step};
use super::spelling;
use super::tables::Tables;
use crate::ingest::{Ingest, message};
use crate::results::{Event, Results};
use crate::sse::Subscription;
use crate::worker::{Worker, WorkerSite};

/// A topic and a join of our own. A message to them that comes back says that everything before it has come, too.
const MARKS: &str = "lj_marks";
const LAST_MARK: &str = "lj_last_mark";

/// A fault that the worker puts into its engine on demand, to see whether it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Changes are taken in without what was there before.
    NoOldImages,
    /// One of the queries that find affected keys is left out.
    DropKeyQuery,
    /// A topic that a query names twice is looked at once.
    MissingOccurrence,
    /// Groups are found by their text, which tells 5 and 5.0 apart.
    SplitGroups,
}

/// A join whose folded deltas are not what SQLite says.
#[derive(Debug)]
pub struct Mismatch {
    /// The step after which it was seen.
    pub step: usize,
    /// Batches up to there.
    pub batch: usize,
    pub join: Join,
    /// What was told, and what is right.
    pub difference: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, batch, join, difference } = self;
        let Join { name, class, query, key_column, .. } = join;
        let key_column =
            key_column.as_ref().map_or_else(String::new, |column| format!(", keyColumn {column:?}"));
        write!(
            out,
            "batch {batch} (step {step}): join {name:?} of class {class}{key_column}\n{query}\n{difference}"
        )
    }
}

impl Sabotage {
    pub const ALL: [Self; 4] =
        [Self::NoOldImages, Self::DropKeyQuery, Self::MissingOccurrence, Self::SplitGroups];

    /// The value of `LITEJOIN_SABOTAGE` that asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoOldImages => "no-old-images",
            Self::DropKeyQuery => "drop-key-query",
            Self::MissingOccurrence => "missing-occurrence",
            Self::SplitGroups => "split-groups",
        }
    }
}

/// How a worker comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stop,
    Kill,
}

/// The name of the join that is wrong, and what is wrong with it.
type Wrong = (String, String);

/// Plays the script to its end, or to the first mismatch.
///
/// # Panics
/// If the worker fails in another way.
pub async fn run(script: &Script, sabotage: Option<Sabotage>) -> Result<(), Mismatch> {
    let mut run = Run::start(script, sabotage).await;
    let mut batch = 0;
    for (step, what) in script.steps.iter().enumerate() {
        batch += usize::from(matches!(what, Step::Batch { .. }));
        let mut outcome = run.play(what).await;
        let is_seen = !matches!(what, Step::Batch { fate: Fate::Unwatched, .. });
        if outcome.is_ok() && is_seen {
            outcome = run.compare();
        }
        if outcome.is_ok() && step + 1 == script.steps.len() {
            outcome = run.end_round().await;
        }
        if let Err((name, difference)) = outcome {
            let join = run.joins.into_iter().find(|join| join.name == name).expect("a join of the round");
            return Err(Mismatch { step, batch, join, difference });
        }
    }
    run.live.worker.stop().await;
    Ok(())
}

/// One round under way.
struct Run<'s> {
    script: &'s Script,
    sabotage: Option<Sabotage>,
    site: WorkerSite,
    live: Live,
    /// Joins as they are configured now.
    joins: Vec<Join>,
    /// What the deltas of each join fold into.
    told: BTreeMap<String, Results>,
    tables: Tables,
    /// What the clock shows, if the worker is shown one.
    now: Option<i64>,
    /// Marks that were sent.
    marks: u64,
}

/// A worker, and its one subscriber.
struct Live {
    worker: Worker,
    ingest: Ingest,
    client: Subscription,
}

impl Live {
    /// Starts the worker; the subscriber comes back with the last id it saw, if it saw any.
    async fn start(site: &WorkerSite, sabotage: Option<Sabotage>, last_event_id: Option<&str>) -> Self {
        let mut launch = site.run([]);
        if let Some(sabotage) = sabotage {
            launch = launch.with_variable("LITEJOIN_SABOTAGE", sabotage.name());
        }
        let worker = launch.start().await;
        let client = subscribe(&worker, last_event_id).await;
        Self { ingest: worker.ingest(), worker, client }
    }
}

async fn subscribe(worker: &Worker, last_event_id: Option<&str>) -> Subscription {
    Subscription::open(worker.address("sink live"), "join=*&replay=true", last_event_id).await
}

impl<'s> Run<'s> {
    async fn start(script: &'s Script, sabotage: Option<Sabotage>) -> Self {
        let site = WorkerSite::with(&manifest(script, &script.joins));
        let mut tables = Tables::new(&script.topics);
        if script.has_clock {
            site.set_clock(0);
            tables.set_now(0);
        }
        let mut live = Live::start(&site, sabotage, None).await;
        let mut told = BTreeMap::<String, Results>::new();
        // A query may have results over nothing: SELECT count(*).
        for event in live.client.replayed().await {
            told.entry(event.query.clone()).or_default().fold([&event]);
        }
        let joins = script.joins.clone();
        tables.define(&joins);
        let now = script.has_clock.then_some(0);
        Self { script, sabotage, site, live, joins, told, tables, now, marks: 0 }
    }

    async fn play(&mut self, step: &Step) -> Result<(), Wrong> {
        match step {
            Step::Batch { messages, fate: Fate::Unwatched } => {
                self.send(messages).await;
                Ok(())
            }
            Step::Batch { messages, fate: Fate::Watched } => {
                let epoch = self.send(messages).await;
                self.catch_up(epoch).await
            }
            Step::Batch { messages, fate: Fate::Killed { moment } } => {
                self.send_to_the_doomed(messages, *moment).await;
                self.end(End::Kill).await?;
                self.begin().await?;
                let epoch = self.send(messages).await;
                self.catch_up(epoch).await
            }
            Step::Clock(now) => {
                self.site.set_clock(*now);
                self.tables.set_now(*now);
                self.now = Some(*now);
                self.catch_up_anew().await
            }
            Step::Stop => {
                self.end(End::Stop).await?;
                self.begin().await
            }
            Step::Kill => {
                self.end(End::Kill).await?;
                self.begin().await
            }
            Step::Configure { joins, by_signal: true } => {
                self.catch_up_anew().await?;
                self.configure(joins);
                self.reload().await
            }
            Step::Configure { joins, by_signal: false } => {
                self.end(End::Stop).await?;
                self.configure(joins);
                self.begin().await
            }
        }
    }

    /// Sends messages, which must all be taken, and returns the epoch in which they are seen.
    async fn send(&mut self, messages: &[Message]) -> u64 {
        let epoch = self.live.ingest.send(&bodies(messages)).await;
        for message in messages {
            self.tables.apply(message);
        }
        epoch
    }

    /// Sends messages, and kills the worker some moments later. Whatever the answer is: what is stored already is
    /// not changed by the same messages.
    async fn send_to_the_doomed(&self, messages: &[Message], moment: u32) {
        let bodies = bodies(messages);
        let kill = async {
            for _ in 0..moment {
                tokio::task::yield_now().await;
            }
            self.live.worker.signal("KILL");
        };
        let _ = tokio::join!(self.live.ingest.try_send(&bodies), kill);
    }

    /// Takes in all that the subscriber is told up to `epoch`. Once every join has come that far, whatever is told
    /// of it comes before a mark that is sent then.
    async fn catch_up(&mut self, epoch: u64) -> Result<(), Wrong> {
        self.live.worker.snapshot("live", LAST_MARK, epoch).await;
        if let Some(now) = self.now {
            for join in self.joins.iter().filter(|join| join.reads_clock) {
                self.live.worker.reaches(&join.name, now).await;
            }
        }
        self.mark("last").await;
        loop {
            let event = self.live.client.expect_next().await.result();
            if event.query == LAST_MARK && event.rows[0]["n"] == self.marks {
                return Ok(());
            }
            self.hear(&event)?;
        }
    }

    /// Sends the next mark. It brings a time of its own, since the clock may be set back.
    async fn mark(&mut self, key: &str) -> u64 {
        self.marks += 1;
        let mut mark = message(MARKS, key, json!({"n": self.marks}));
        mark["timestamp"] = json!(self.marks);
        self.live.ingest.send(&[mark]).await
    }

    /// Folds one delta, which must be one.
    fn hear(&mut self, event: &Event) -> Result<(), Wrong> {
        if event.query == LAST_MARK {
            return Ok(());
        }
        let join = self.joins.iter().find(|join| join.name == event.query && !join.is_hidden);
        let join = join.unwrap_or_else(|| panic!("told of a join that nobody asked for: {event:?}"));
        let results = self.told.entry(event.query.clone()).or_default();
        let before = results.rows.get(&event.result_key()).cloned();
        results.fold([event]);
        let after = results.rows.get(&event.result_key());
        let op = match (&before, after) {
            (None, Some(_)) => "created",
            (Some(before), Some(after)) if before != after => "updated",
            (Some(_), None) => "deleted",
            _ => "nothing",
        };
        if event.op != op {
            return Err((join.name.clone(), format!("{event:?} changes {op}; before it were {before:?}")));
        }
        let key_column = join.key_column.as_ref().unwrap_or(&join.columns[0]);
        if event.rows.iter().any(|row| row[key_column] != event.key) {
            return Err((join.name.clone(), format!("{event:?} holds rows of another key")));
        }
        Ok(())
    }

    /// Ends the worker, and takes in what it has told by then.
    async fn end(&mut self, end: End) -> Result<(), Wrong> {
        match end {
            End::Stop => self.live.worker.signal("TERM"),
            End::Kill => self.live.worker.signal("KILL"),
        }
        let code = self.live.worker.wait().await;
        assert!(end == End::Kill || code == Some(0), "a planned stop ends with 0, not {code:?}");
        for event in self.live.client.rest().await {
            self.hear(&event.result())?;
        }
        Ok(())
    }

    /// Starts the worker again, after its end.
    async fn begin(&mut self) -> Result<(), Wrong> {
        let last_event_id = self.live.client.last_event_id.take();
        self.live = Live::start(&self.site, self.sabotage, last_event_id.as_deref()).await;
        self.catch_up_anew().await
    }

    /// Takes in what a worker tells that has begun to run these joins: all of it comes with the first epoch.
    async fn catch_up_anew(&mut self) -> Result<(), Wrong> {
        let epoch = self.mark("begun").await;
        self.catch_up(epoch).await
    }

    /// Writes other joins into the manifest; from the next start or signal on they are what is told.
    fn configure(&mut self, joins: &[Join]) {
        self.site.write("pipeline.yaml", manifest(self.script, joins));
        self.told.retain(|name, _| joins.iter().any(|join| join.name == *name));
        self.joins = joins.to_vec();
        self.tables.define(joins);
    }

    /// Has the worker read its manifest again. The subscriber comes back to hear of the new joins, too.
    async fn reload(&mut self) -> Result<(), Wrong> {
        let worker = &self.live.worker;
        // The same joins may come again, and then nothing is to be done.
        let config = worker.reload().await;
        assert_ne!(config["lastReload"]["outcome"], "refused", "{config}");
        let last_event_id = self.live.client.last_event_id.take();
        self.live.client = subscribe(worker, last_event_id.as_deref()).await;
        self.catch_up_anew().await
    }

    /// Mends what fails, after which nothing does; then holds the worker to its own audit.
    async fn end_round(&mut self) -> Result<(), Wrong> {
        let mending = self.tables.mending();
        if !mending.is_empty() {
            self.send(&mending).await;
        }
        // The last step may not have waited for its results.
        self.catch_up_anew().await?;
        self.compare()?;
        let failures = self.failures();
        if let Some((join, keys)) = failures.keys.iter().next() {
            return Err((join.clone(), format!("no row is malformed, and these keys fail: {keys:?}")));
        }
        if let Some(join) = failures.joins.first() {
            let status = self.live.worker.status().await;
            let error = &status["joins"][join.as_str()]["lastError"];
            return Err((join.clone(), format!("no row is malformed, and the query fails: {error}")));
        }
        self.audit().await
    }

    /// What the worker says that it can't evaluate.
    fn failures(&self) -> Failures {
        if !self.script.is_poisoned {
            return Failures::default();
        }
        Failures::read(&self.site.data_dir().join("results.db"))
    }

    /// Holds what is stored to what the worker itself finds to be right, hidden joins among it.
    async fn audit(&mut self) -> Result<(), Wrong> {
        let audit = ["audit", "--data-dir", "data", "--output", "json"];
        let ended = self.site.command(audit).end().await;
        let mut is_clean = true;
        for line in ended.stdout.lines() {
            let finding: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let is_different = finding["differences"] != 0;
            if !is_different && finding.get("error").is_none() {
                continue;
            }
            is_clean = false;
            let name = finding["join"].as_str().expect("a finding has its join").to_owned();
            if !is_different || !self.is_left_open(&name).await? {
                return Err((name, format!("an audit says {line}")));
            }
        }
        assert!(!is_clean || ended.code == Some(0), "{}{}", ended.stdout, ended.stderr);
        Ok(())
    }

    /// Whether an audit may find another answer than is stored: what was told of the join is one, and there are others.
    async fn is_left_open(&mut self, name: &str) -> Result<bool, Wrong> {
        self.catch_up_anew().await?;
        let join = self.joins.iter().find(|join| join.name == name).expect("an audit is of joins that run");
        self.judge(join, &self.failures())?;
        Ok(self.tables.has_several_answers(join))
    }

    /// Holds what was told to what SQLite says now.
    fn compare(&self) -> Result<(), Wrong> {
        let failures = self.failures();
        self.joins.iter().try_for_each(|join| self.judge(join, &failures))
    }

    /// The same of one join, but for the results that can't be evaluated: they stay as they were. Nobody is told of hidden
    /// ones.
    fn judge(&self, join: &Join, failures: &Failures) -> Result<(), Wrong> {
        if join.is_hidden || failures.joins.contains(&join.name) {
            return Ok(());
        }
        let nothing = Results::default();
        let told = self.told.get(&join.name).unwrap_or(&nothing);
        let answers = self.tables.answers(join).map(|answer| failures.others(&join.name, answer));
        spelling::judge(&failures.others(&join.name, told.clone()), answers)
            .map_err(|difference| (join.name.clone(), difference))
    }
}

/// What a worker says that it can't evaluate, as it is stored.
#[derive(Debug, Default)]
struct Failures {
    /// Joins whose query fails as a whole.
    joins: Vec<String>,
    /// Result keys by join, as JSON with each number spelled one way.
    keys: BTreeMap<String, BTreeSet<String>>,
}

impl Failures {
    #[expect(clippy::disallowed_methods, reason = "the test must not depend on how the worker opens files")]
    fn read(path: &Path) -> Self {
        let read = || -> rusqlite::Result<Self> {
            let file = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            let joins = file.prepare("SELECT name FROM joins WHERE stale = 1")?;
            let joins = { joins }.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let mut failures = Self { joins, keys: BTreeMap::new() };
            let mut failing =
                file.prepare("SELECT name, key FROM failing JOIN joins ON joins.id = join_id")?;
            let mut rows = failing.query([])?;
            while let Some(row) = rows.next()? {
                failures
                    .keys
                    .entry(row.get(0)?)
                    .or_default()
                    .insert(spelling::plain_json(&row.get::<_, String>(1)?));
            }
            Ok(failures)
        };
        read().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Results of a join without those that can't be evaluated.
    fn others(&self, join: &str, mut results: Results) -> Results {
        if let Some(failing) = self.keys.get(join) {
            results.rows.retain(|(_, key), _| !failing.contains(&spelling::plain_json(key)));
        }
        results
    }
}

fn bodies(messages: &[Message]) -> Vec<Value> {
    messages.iter().map(Message::body).collect()
}

fn manifest(script: &Script, joins: &[Join]) -> String {
    let joins = joins.iter().map(|join| {
        let sinks: &[&str] = if join.is_hidden { &[] } else { &["live"] };
        let mut spec = json!({"name": join.name, "query": join.query, "sinks": sinks});
        if let Some(key_column) = &join.key_column {
            spec["keyColumn"] = json!(key_column);
        }
        spec
    });
    let mark = json!({
        "name": LAST_MARK,
        "query": format!("SELECT key, payload->>'n' AS n FROM {MARKS}"),
        "sinks": ["live"],
    });
    let topics = script.topics.iter().map(String::as_str).chain([MARKS]);
    json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": "fuzz"},
        "spec": {
            "storage": {"shardCount": script.shard_count, "flushInterval": "1ms"},
            // Messages bring times of long ago, and shall stay nevertheless.
            "retention": {"cleanInterval": "24h"},
            "admin": {"addr": "127.0.0.1:0"},
            "sources": [{"name": "ingest", "http": {"addr": "127.0.0.1:0", "topics": topics.collect::<Vec<_>>()}}],
            "joins": joins.chain([mark]).collect::<Vec<_>>(),
            "sinks": [{"name": "live", "sse": {"addr": "127.0.0.1:0"}}],
        },
    })
    .to_string()
}
