//! Evaluation by key: which results the changes of an epoch can concern, and what they are now.
//!
//! ```text
//! affected:  changed rows, old and new image ─► up the plan's links, by indexed look-ups in the shards ─► keys
//! evaluate:  some keys ─► down the links, rows into a table for each occurrence ─► the user's query on them
//!            ─► compared with the stored results of those keys
//! ```
//! A bench is one thread's share: readers of all shards, which see one cut, and a database in memory.

use std::path::Path;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, ErrorCode, Row, StatementStatus, params};

use super::accumulate::AccumulatedJoin;
use super::budget::Budget;
use super::changes::{Changes, Part};
use super::plan::row::RowExpr;
use super::plan::{Keyed, Link, Matching, Occurrence};
use super::rows::{same_rows, write_value};
use super::value::Value;
use super::{CheckedJoin, TopicImage};
use crate::fault::{self, Sabotage};
use crate::results::event::{JoinId, Op};
use crate::results::store::Change;
use crate::storage::hash::shard_index;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::{self, SqliteError, quoted};
use crate::storage::topics::TopicId;

/// Result keys of one join that an epoch evaluates one by one at most; above it everything is evaluated at once.
pub(crate) const KEYS_MAX: usize = 65_536;

/// Driving values whose rows an epoch looks at, before and after, at most.
pub(crate) const DRIVING_MAX: usize = 4 * KEYS_MAX;

/// Rows that are gathered for one share of keys at most.
const GATHERED_ROWS_MAX: usize = 200_000;

/// Bytes of those rows at most.
const GATHERED_BYTES_MAX: usize = 32 << 20;

/// Why an evaluation came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyedError {
    #[error("the query failed: {message}")]
    Query { message: String },
    #[error("the query took more than {steps} steps of SQLite's virtual machine and was stopped")]
    Endless { steps: u64 },
    /// Evaluating everything at once costs less memory, and perhaps less time.
    #[error("too many rows belong together to evaluate them by key")]
    TooLarge,
    /// What is kept of groups is not exact any more.
    #[error("a value can't be accumulated")]
    Unfit,
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error("could not use the tables in memory")]
    Memory(#[from] rusqlite::Error),
}

/// A join and how it is kept current.
#[derive(Debug)]
pub(crate) struct KeyedJoin {
    pub(crate) join: CheckedJoin,
    pub(crate) id: JoinId,
    pub(super) plan: Keyed,
    steps: Vec<Step>,
}

/// The statements of one occurrence.
#[derive(Debug)]
struct Step {
    topic: TopicId,
    /// The value of `by` for a row given as parameters; none for the key itself.
    by: Option<String>,
    /// Rows in a shard by value.
    rows: String,
    insert: String,
    links: Vec<LinkStep>,
}

#[derive(Debug)]
enum LinkStep {
    Keys,
    Parent {
        index: usize,
        matching: Matching,
        /// Values of the gathered rows of the parent.
        gathered: String,
        /// Whether they are the parent's keys.
        of_key: bool,
        /// In a shard: what the parent's rows with a value are gathered by.
        up: String,
    },
}

/// Keys of results that have to be looked at, with whether anybody is to be told of their changes.
pub(crate) type Keys = HashMap<Value, bool>;

/// A result that differs from what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) op: Op,
    /// The result key as JSON.
    pub(crate) key: String,
    /// The rows as a JSON array.
    pub(crate) rows: String,
    /// Whether sinks are told.
    pub(crate) told: bool,
}

impl Difference {
    /// As it is stored, and whether sinks are told.
    pub(crate) fn change(&self) -> (Change<'_>, bool) {
        (Change { op: self.op, key: &self.key, rows: &self.rows }, self.told)
    }
}

/// What an evaluation has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Steps of SQLite's virtual machine.
    pub(crate) steps: u64,
    /// Look-ups in shards.
    pub(crate) probes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.probes += other.probes;
    }
}

/// One thread's share of the work.
pub(crate) struct Bench {
    pub(super) memory: Connection,
    budget: Budget,
    readers: Vec<ShardReader>,
    pub(super) results: Connection,
    pub(super) cost: Cost,
}

/// The state of the topics in which rows are gathered.
#[derive(Debug, Clone, Copy)]
pub(super) enum View<'a> {
    /// What the readers see; changed rows, if they are given, need no look-up.
    Now(Option<&'a Changes>),
    /// What was there before the changes, given with [`OldImages`] of each occurrence.
    Before(&'a Changes, &'a [OldImages<'a>]),
}

/// Changed rows as they were, by the value by which an occurrence is gathered; empty if that is the key.
pub(crate) type OldImages<'a> = HashMap<Value, Vec<(&'a str, TopicImage<'a>)>>;

impl<'a> View<'a> {
    /// What a row is, if it need not be looked up.
    fn row(&self, topic: TopicId, key: &str) -> Option<Option<(&'a str, TopicImage<'a>)>> {
        let (changes, is_old) = match self {
            Self::Now(changes) => ((*changes)?, false),
            Self::Before(changes, _) => (*changes, true),
        };
        let row = changes.row(topic, key)?;
        let image = if is_old { row.old } else { row.new };
        Some(image.map(|image| (row.key, image)))
    }

    /// Changed rows of occurrence `index` that have the value, where the readers can't be asked for them.
    fn old(&self, index: usize, value: &Value) -> &'a [(&'a str, TopicImage<'a>)] {
        match self {
            Self::Now(_) => &[],
            Self::Before(_, old) => old[index].get(value).map_or(&[], Vec::as_slice),
        }
    }

    /// Whether what a reader sees of a row is not what it was.
    fn hides(&self, topic: TopicId, key: ValueRef<'_>) -> bool {
        match self {
            Self::Now(_) => false,
            Self::Before(changes, _) => key.as_str().is_ok_and(|key| changes.row(topic, key).is_some()),
        }
    }
}

impl KeyedJoin {
    /// `topic_id` gives the number of a topic.
    pub(crate) fn new(
        join: CheckedJoin,
        id: JoinId,
        plan: Keyed,
        topic_id: impl Fn(&str) -> TopicId,
    ) -> Self {
        let steps =
            plan.occurrences.iter().map(|occurrence| Step::new(occurrence, &plan, &topic_id)).collect();
        Self { join, id, plan, steps }
    }

    /// The topics that it reads.
    pub(crate) fn topics(&self) -> impl Iterator<Item = TopicId> {
        self.steps.iter().map(|step| step.topic)
    }

    /// Those of them whose rows say by an old image where they belonged; the others are found by their key.
    pub(crate) fn looked_back(&self) -> impl Iterator<Item = TopicId> {
        self.steps.iter().filter(|step| step.by.is_some()).map(|step| step.topic)
    }
}

impl Step {
    fn new(occurrence: &Occurrence, plan: &Keyed, topic_id: impl Fn(&str) -> TopicId) -> Self {
        let table = &occurrence.table;
        let columns = "key, payload, timestamp, _change";
        let link = |link: &Link| match link {
            Link::Keys => LinkStep::Keys,
            Link::Parent { index, of, matching } => {
                let parent = &plan.occurrences[*index];
                LinkStep::Parent {
                    index: *index,
                    matching: *matching,
                    gathered: format!("SELECT {} FROM {}", of.sql(), parent.table),
                    of_key: of.is_key(),
                    up: select(&parent.by.sql(), &parent.topic, of),
                }
            }
        };
        Self {
            topic: topic_id(&occurrence.topic),
            by: (!occurrence.by.is_key()).then(|| format!("SELECT {}", occurrence.by.parameters())),
            rows: select(columns, &occurrence.topic, &occurrence.by),
            insert: format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES (?1, ?2, ?3, ?4)"),
            links: occurrence.from.iter().map(link).collect(),
        }
    }
}

/// A query for `terms` over the rows of a topic in a shard for which `by` is parameter 1.
fn select(terms: &str, topic: &str, by: &RowExpr) -> String {
    if by.is_key() {
        format!("SELECT {terms} FROM {} WHERE key = ?1", quoted(topic))
    } else {
        super::index(topic, by).select(terms)
    }
}

impl Bench {
    /// Makes the tables of `joins` in `memory`, an empty database.
    pub(crate) fn new<'a>(
        mut memory: Connection,
        readers: Vec<ShardReader>,
        results: Connection,
        joins: impl Iterator<Item = &'a KeyedJoin>,
        accumulated: impl Iterator<Item = &'a AccumulatedJoin>,
        steps_max: u64,
    ) -> rusqlite::Result<Self> {
        let budget = Budget::guard(&mut memory, steps_max, Arc::default())?;
        let mut keyed: Vec<&KeyedJoin> = joins.collect();
        for join in accumulated {
            memory.execute_batch(&join.plan.table_sql())?;
            keyed.extend(join.keyed());
        }
        for join in keyed {
            for occurrence in &join.plan.occurrences {
                let table = &occurrence.table;
                memory.execute_batch(&super::check::gathered_table_sql(table))?;
                // The user's query finds its neighbours by the same expressions as we do.
                let is_linked = occurrence.from.iter().any(|link| matches!(link, Link::Parent { .. }));
                if is_linked && !occurrence.by.is_key() {
                    let index = quoted(&format!("{table}_by"));
                    memory.execute_batch(&format!(
                        "CREATE INDEX {index} ON {table} ({})",
                        occurrence.by.sql()
                    ))?;
                }
            }
        }
        Ok(Self { memory, budget, readers, results, cost: Cost::default() })
    }

    /// Fixes what the readers of shards see, until [`Self::release`].
    pub(crate) fn hold(&self) -> Result<(), SqliteError> {
        self.readers.iter().try_for_each(ShardReader::hold)
    }

    /// The same of the results: each look-up of its own would take two locks of the file and give them back. Wanted once
    /// we write to them: a reader that is there while Litestream has the file keeps its WAL from ever starting over.
    pub(crate) fn hold_results(&self) -> Result<(), SqliteError> {
        let path = Path::new(self.results.path().unwrap_or_default());
        sqlite::hold(&self.results).map_err(|source| SqliteError::new(path, "begin to read", source))
    }

    pub(crate) fn release(&self) {
        self.readers.iter().for_each(ShardReader::release);
        sqlite::release(&self.results);
    }

    pub(crate) fn readers(&mut self) -> &mut [ShardReader] {
        &mut self.readers
    }

    /// What was spent since this was last asked.
    pub(crate) fn take_cost(&mut self) -> Cost {
        std::mem::take(&mut self.cost)
    }

    /// Finds the keys of the results that `changes` can concern: perhaps too many, never too few.
    pub(crate) fn affected(
        &mut self,
        join: &KeyedJoin,
        changes: &Part,
        keys_max: usize,
    ) -> Result<Keys, KeyedError> {
        let mut cost = Cost::default();
        let mut climb = Climb {
            join,
            readers: &self.readers,
            seen: vec![HashMap::new(); join.steps.len()],
            keys: Keys::default(),
            keys_max,
            cost: &mut cost,
        };
        for (index, step) in join.steps.iter().enumerate() {
            if fault::sabotaged(Sabotage::DropKeyQuery) && index > 0 && index + 1 == join.steps.len() {
                continue;
            }
            let mut by = step.by.as_deref().map(|sql| self.memory.prepare_cached(sql)).transpose()?;
            for row in changes.rows(step.topic) {
                let told = !row.expired;
                match &mut by {
                    None => climb.up(index, Value::Text(row.key.into()), told)?,
                    Some(by) => {
                        let old = row.old.filter(|_| !fault::sabotaged(Sabotage::NoOldImages));
                        for image in old.into_iter().chain(row.new) {
                            climb.up(index, value_of(by, row.key, image)?, told)?;
                        }
                    }
                }
            }
            if let Some(by) = &by {
                climb.cost.steps += steps_of(by);
            }
        }
        let keys = climb.keys;
        self.cost += cost;
        Ok(keys)
    }

    /// Evaluates the results of some keys and appends to `found` what differs from what is stored. Rows in `known`
    /// need no look-up.
    pub(crate) fn evaluate(
        &mut self,
        join: &KeyedJoin,
        keys: &[(Value, bool)],
        known: Option<&Changes>,
        found: &mut Vec<Difference>,
    ) -> Result<(), KeyedError> {
        self.memory.execute_batch("BEGIN")?;
        let outcome = self.gather(join, keys, View::Now(known)).and_then(|()| self.run(join, keys));
        // Rolling back what was only gathered leaves the tables empty, at the price of a few pages.
        self.memory.execute_batch("ROLLBACK")?;
        let fresh = outcome?;
        self.compare(join, keys, fresh, found)
    }

    /// Changed rows as they were, for each occurrence.
    pub(crate) fn old_images<'c>(
        &mut self,
        join: &KeyedJoin,
        changes: &'c Changes,
    ) -> Result<Vec<OldImages<'c>>, KeyedError> {
        let mut all = Vec::with_capacity(join.steps.len());
        for step in &join.steps {
            let mut images = OldImages::new();
            if let Some(by) = &step.by {
                let mut by = self.memory.prepare_cached(by)?;
                for row in changes.rows(step.topic) {
                    if let Some(old) = row.old {
                        images.entry(value_of(&mut by, row.key, old)?).or_default().push((row.key, old));
                    }
                }
                self.cost.steps += steps_of(&by);
            }
            all.push(images);
        }
        Ok(all)
    }

    /// Puts the rows that belong to some keys into the tables of their occurrences.
    pub(super) fn gather(
        &mut self,
        join: &KeyedJoin,
        keys: &[(Value, bool)],
        view: View<'_>,
    ) -> Result<(), KeyedError> {
        let Self { memory, readers, cost, .. } = self;
        let (mut rows, mut bytes) = (0, 0);
        for (index, step) in join.steps.iter().enumerate() {
            if fault::sabotaged(Sabotage::MissingOccurrence) && index > 0 && index + 1 == join.steps.len() {
                continue;
            }
            let mut insert = memory.prepare_cached(&step.insert)?;
            let mut put = |key: ValueRef<'_>, row: &Row<'_>| -> Result<(), KeyedError> {
                if view.hides(step.topic, key) {
                    return Ok(());
                }
                let payload = row.get_ref(1)?;
                rows += 1;
                bytes += key.as_str().map_or(0, str::len) + payload.as_str().map_or(0, str::len);
                if rows > GATHERED_ROWS_MAX || bytes > GATHERED_BYTES_MAX {
                    return Err(KeyedError::TooLarge);
                }
                insert.execute(params![
                    Raw(key),
                    Raw(payload),
                    Raw(row.get_ref(2)?),
                    Raw(row.get_ref(3)?)
                ])?;
                Ok(())
            };
            // In their order, since neighbours in the files are found for less.
            let mut linked: Vec<Value> = Vec::new();
            let mut from_keys = false;
            for link in &step.links {
                match link {
                    LinkStep::Keys => from_keys = true,
                    LinkStep::Parent { gathered, matching, .. } => {
                        let mut statement = memory.prepare_cached(gathered)?;
                        let mut values = statement.query([])?;
                        while let Some(row) = values.next()? {
                            let value = Value::new(row.get_ref(0)?).ok_or(KeyedError::TooLarge)?;
                            if let (Matching::AsText, Value::Text(text)) = (matching, &value) {
                                linked.extend(Value::as_number(text));
                            }
                            if value != Value::Null {
                                linked.push(value);
                            }
                        }
                        drop(values);
                        cost.steps += steps_of(&statement);
                    }
                }
            }
            linked.sort_unstable();
            linked.dedup();
            let mut statements = readers
                .iter()
                .map(|reader| reader.prepare(&step.rows).map_err(|source| lookup_failed(reader, source)))
                .collect::<Result<Vec<_>, _>>()?;
            let own = from_keys.then_some(keys).into_iter().flatten().map(|(key, _)| key);
            let mut known_rows: Vec<(&str, TopicImage<'_>)> = Vec::new();
            for value in own.chain(&linked) {
                if step.by.is_some() {
                    for (statement, reader) in statements.iter_mut().zip(readers.iter()) {
                        cost.probes += 1;
                        look_up(statement, reader, value, &mut put)?;
                    }
                    known_rows.extend(view.old(index, value));
                } else if let Value::Text(key) = value {
                    if let Some(row) = view.row(step.topic, key) {
                        known_rows.extend(row);
                        continue;
                    }
                    cost.probes += 1;
                    let shard = shard_index(key, readers.len());
                    look_up(&mut statements[shard], &readers[shard], value, &mut put)?;
                }
            }
            cost.steps += statements.iter().map(|statement| steps_of(statement)).sum::<u64>();
            for (key, image) in known_rows {
                rows += 1;
                bytes += key.len() + image.payload.len();
                if rows > GATHERED_ROWS_MAX || bytes > GATHERED_BYTES_MAX {
                    return Err(KeyedError::TooLarge);
                }
                insert.execute(params![key, image.payload, image.timestamp, image.change])?;
            }
            cost.steps += steps_of(&insert);
        }
        Ok(())
    }

    /// Runs the user's query on what was gathered: rows by result key, as JSON.
    fn run(
        &mut self,
        join: &KeyedJoin,
        keys: &[(Value, bool)],
    ) -> Result<HashMap<String, String>, KeyedError> {
        let wanted: HashSet<&Value> = keys.iter().map(|(key, _)| key).collect();
        let columns = &join.join.columns;
        let mut fresh: HashMap<String, String> = HashMap::new();
        let (mut key, mut object) = (String::new(), String::new());
        let mut bytes = 0;
        self.query(&join.plan.sql, |row| {
            let value = row.get_ref(columns.key_column())?;
            if !Value::new(value).is_some_and(|value| wanted.contains(&value)) {
                return Ok(());
            }
            columns.write(row, &mut key, &mut object)?;
            bytes += object.len();
            if bytes > GATHERED_BYTES_MAX {
                return Err(KeyedError::TooLarge);
            }
            match fresh.get_mut(&key) {
                Some(rows) => {
                    rows.push(',');
                    rows.push_str(&object);
                }
                None => {
                    let mut rows = String::with_capacity(object.len() + 2);
                    rows.push('[');
                    rows.push_str(&object);
                    fresh.insert(key.clone(), rows);
                }
            }
            Ok(())
        })?;
        fresh.values_mut().for_each(|rows| rows.push(']'));
        Ok(fresh)
    }

    /// Runs a query that comes from a user on the tables in memory, within its budget.
    pub(super) fn query(
        &mut self,
        sql: &str,
        mut each: impl FnMut(&Row<'_>) -> Result<(), KeyedError>,
    ) -> Result<(), KeyedError> {
        let steps = self.budget.steps_max();
        let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => KeyedError::Endless { steps },
            _ => KeyedError::Query { message: super::full::message_of(&source) },
        };
        let mut statement = self.memory.prepare_cached(sql).map_err(failed)?;
        self.budget.open();
        let mut work = || -> Result<(), KeyedError> {
            let mut rows = statement.query([]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                each(row)?;
            }
            Ok(())
        };
        let outcome = work();
        self.budget.close();
        self.cost.steps += steps_of(&statement);
        outcome
    }

    fn compare(
        &mut self,
        join: &KeyedJoin,
        keys: &[(Value, bool)],
        mut fresh: HashMap<String, String>,
        found: &mut Vec<Difference>,
    ) -> Result<(), KeyedError> {
        let mut statement =
            self.results.prepare_cached("SELECT rows FROM results WHERE join_id = ?1 AND key = ?2")?;
        let mut key = String::new();
        for (value, told) in keys {
            for spelling in value.spellings() {
                key.clear();
                write_value(&mut key, spelling);
                let new = fresh.remove(&key);
                let mut stored = statement.query(params![join.id.0, key])?;
                let old = stored.next()?.map(|row| row.get_ref(0)).transpose()?;
                let old = old.map(|old| old.as_str()).transpose().map_err(rusqlite::Error::from)?;
                let (op, rows) = match (old, new) {
                    (None, None) => continue,
                    (Some(old), Some(new)) if same_rows(old, &new) => continue,
                    (Some(_), Some(new)) => (Op::Updated, new),
                    (None, Some(new)) => (Op::Created, new),
                    (Some(_), None) => (Op::Deleted, "[]".to_owned()),
                };
                found.push(Difference { op, key: key.clone(), rows, told: *told && join.join.has_sinks });
            }
        }
        self.cost.steps += steps_of(&statement);
        Ok(())
    }
}

/// Following links from changed rows to the keys of results.
struct Climb<'a> {
    join: &'a KeyedJoin,
    readers: &'a [ShardReader],
    /// By occurrence: values that were followed already, and whether anybody is to be told.
    seen: Vec<HashMap<Value, bool>>,
    keys: Keys,
    keys_max: usize,
    cost: &'a mut Cost,
}

impl Climb<'_> {
    /// Follows the links of occurrence `index` from rows whose `by` is `value`.
    fn up(&mut self, index: usize, value: Value, told: bool) -> Result<(), KeyedError> {
        if let [LinkStep::Keys] = self.join.steps[index].links.as_slice() {
            return self.key(value, told);
        }
        match self.seen[index].get_mut(&value) {
            Some(before) if *before || !told => return Ok(()),
            Some(before) => *before = true,
            None => {
                self.seen[index].insert(value.clone(), told);
            }
        }
        for link in &self.join.steps[index].links {
            match link {
                LinkStep::Keys => self.key(value.clone(), told)?,
                LinkStep::Parent { index: parent, of_key, up, matching, .. } => {
                    let mut values = HashSet::new();
                    match matching {
                        _ if value == Value::Null => continue,
                        Matching::Equal => self.parents(&value, *of_key, up, &mut values)?,
                        Matching::AsText => {
                            for text in self.texts(&value)? {
                                self.parents(&text, *of_key, up, &mut values)?;
                            }
                        }
                    }
                    for value in values {
                        self.up(*parent, value, told)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks up by what the parent's rows with a value are gathered.
    fn parents(
        &mut self,
        value: &Value,
        of_key: bool,
        up: &str,
        found: &mut HashSet<Value>,
    ) -> Result<(), KeyedError> {
        let readers: &[ShardReader] = match (of_key, value) {
            (true, Value::Text(key)) => {
                let shard = shard_index(key, self.readers.len());
                &self.readers[shard..=shard]
            }
            (true, _) => return Ok(()),
            (false, _) => self.readers,
        };
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(up).map_err(failed)?;
            let mut rows = statement.query([value]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let by = row.get_ref(0).map_err(failed)?;
                found.insert(Value::new(by).ok_or(KeyedError::TooLarge)?);
                if found.len() > KEYS_MAX {
                    return Err(KeyedError::TooLarge);
                }
            }
            drop(rows);
            self.cost.probes += 1;
            self.cost.steps += steps_of(&statement);
        }
        Ok(())
    }

    /// The texts that SQLite makes of a value in its spellings.
    fn texts(&self, value: &Value) -> Result<Vec<Value>, KeyedError> {
        let reader = self.readers.first().expect("there is a shard");
        let failed = |source| lookup_failed(reader, source);
        let mut cast = reader.prepare("SELECT CAST(?1 AS TEXT)").map_err(failed)?;
        let mut text =
            |spelling| cast.query_row([Raw(spelling)], |row| row.get(0).map(String::into_boxed_str));
        value.spellings().map(|spelling| text(spelling).map(Value::Text).map_err(failed)).collect()
    }

    fn key(&mut self, value: Value, told: bool) -> Result<(), KeyedError> {
        *self.keys.entry(value).or_default() |= told;
        if self.keys.len() > self.keys_max { Err(KeyedError::TooLarge) } else { Ok(()) }
    }
}

/// Calls `put` for the rows of one shard that have the value.
fn look_up(
    statement: &mut CachedStatement<'_>,
    reader: &ShardReader,
    value: &Value,
    put: &mut impl FnMut(ValueRef<'_>, &Row<'_>) -> Result<(), KeyedError>,
) -> Result<(), KeyedError> {
    let failed = |source| lookup_failed(reader, source);
    let mut rows = statement.query([value]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        put(row.get_ref(0).map_err(failed)?, row)?;
    }
    Ok(())
}

fn lookup_failed(reader: &ShardReader, source: rusqlite::Error) -> KeyedError {
    SqliteError::new(reader.path(), "look rows up", source).into()
}

/// The value of an expression for a row that is not in a table.
fn value_of(by: &mut CachedStatement<'_>, key: &str, image: TopicImage<'_>) -> Result<Value, KeyedError> {
    let parameters = by.parameter_count();
    for index in 1..=parameters {
        match index {
            1 => by.raw_bind_parameter(index, key)?,
            2 => by.raw_bind_parameter(index, image.payload)?,
            3 => by.raw_bind_parameter(index, image.timestamp)?,
            _ => by.raw_bind_parameter(index, image.change)?,
        }
    }
    let mut rows = by.raw_query();
    let row = rows.next()?.ok_or(KeyedError::TooLarge)?;
    Value::new(row.get_ref(0)?).ok_or(KeyedError::TooLarge)
}

/// Steps since this was last asked.
pub(super) fn steps_of(statement: &rusqlite::Statement<'_>) -> u64 {
    u64::try_from(statement.reset_status(StatementStatus::VmStep)).unwrap_or(0)
}

/// A value on its way from one statement to another.
struct Raw<'a>(ValueRef<'a>);

impl rusqlite::ToSql for Raw<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(self.0))
    }
}
