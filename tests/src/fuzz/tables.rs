//! What topics hold after messages, by the rules that users are told, and what SQLite makes of joins over them: over
//! the rows as they came, or over the same rows in other orders, where which of 5 and 5.0 a group shows follows from
//! the order.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use serde_json::Value;

use super::queries::INNER;
use super::schema::{self, Message};
use super::script::Join;
use super::spelling;
use crate::oracle::Oracle;
use crate::results::Results;

/// Orders that are drawn, after those that [`RowOrder`] names. Most go by the spelling of a field, so either of two equal
/// numbers comes first in half of them, however rare it is.
const DRAWN: u64 = 40;

/// The topics of a round.
pub struct Tables {
    topics: Vec<String>,
    oracle: Oracle,
    /// By topic in lower case and key: the payload, none if it was deleted, and its timestamp.
    rows: BTreeMap<(String, String), (Option<String>, i64)>,
    /// What the clock shows, if there is one.
    now: Option<i64>,
    /// Joins that others can read by name.
    defined: Vec<Join>,
    /// The same in other orders, each made when it is first wanted, until something changes.
    reordered: RefCell<Vec<Rc<Oracle>>>,
}

/// An order in which rows are stored.
#[derive(Debug, Clone, Copy)]
enum RowOrder {
    ByKey,
    ByKeyBackward,
    /// Those that hold whole reals come last.
    IntegersFirst,
    RealsFirst,
    /// By the spelling of one field, spellings in a random order; else any order. SQLite makes no index for odd ones: it
    /// would put the rows in the order of their payloads.
    Drawn(u64),
}

impl Tables {
    /// Empty topics.
    pub fn new(topics: &[String]) -> Self {
        Self {
            topics: topics.to_vec(),
            oracle: new_oracle(topics),
            rows: BTreeMap::new(),
            now: None,
            defined: Vec::new(),
            reordered: RefCell::default(),
        }
    }

    /// Makes these the joins, in place of all before.
    pub fn define(&mut self, joins: &[Join]) {
        for join in std::mem::replace(&mut self.defined, joins.to_vec()) {
            self.oracle.undefine(&join.name);
        }
        for join in joins {
            self.oracle.define(&join.name, &tolerant(&join.query));
        }
        self.reordered.get_mut().clear();
    }

    /// Sets the moment that queries see as now.
    pub fn set_now(&mut self, now: i64) {
        self.now = Some(now);
        self.oracle.set_now(now);
        for other in self.reordered.get_mut() {
            other.set_now(now);
        }
    }

    /// Has rows come in another order wherever a query leaves it open.
    pub fn reverse(&self) {
        self.oracle.reverse();
    }

    /// Stores a message. One with a time of its own does nothing to what is newer; the same payload again gives its row
    /// this time.
    pub fn apply(&mut self, message: &Message) {
        let Message { topic, key, payload, timestamp } = message;
        let payload = payload.as_ref().map(ToString::to_string);
        let stored = self.rows.get(&(topic.to_ascii_lowercase(), key.clone()));
        let time = timestamp.unwrap_or(0);
        match stored {
            Some((_, newest)) if *newest > time => return,
            _ => {}
        }
        match &payload {
            Some(payload) => self.oracle.set(topic, key, payload, time),
            None => self.oracle.apply(topic, key, None),
        }
        self.rows.insert((topic.to_ascii_lowercase(), key.clone()), (payload, time));
        self.reordered.get_mut().clear();
    }

    /// The results of a join.
    pub fn results(&self, join: &Join) -> Results {
        of(join, &self.oracle)
    }

    /// The results of a join over the same rows in one order after another; the first are [`Self::results`].
    pub fn answers(&self, join: &Join) -> impl Iterator<Item = Results> {
        let named = [RowOrder::ByKey, RowOrder::ByKeyBackward, RowOrder::IntegersFirst, RowOrder::RealsFirst];
        let drawn = (0..DRAWN).map(RowOrder::Drawn);
        let named = named.into_iter().flat_map(|order| [(order, false), (order, true)]);
        let orders = named.chain(drawn.map(|order| (order, false))).enumerate();
        let others = orders.map(|(index, (order, is_reversed))| {
            let known = self.reordered.borrow().get(index).cloned();
            let oracle = known.unwrap_or_else(|| {
                let oracle = Rc::new(self.in_order(order, is_reversed));
                self.reordered.borrow_mut().push(Rc::clone(&oracle));
                oracle
            });
            of(join, &oracle)
        });
        std::iter::once_with(|| self.results(join)).chain(others)
    }

    /// Messages that mend all rows for which queries fail.
    pub fn mending(&self) -> Vec<Message> {
        let mended = |row: &(Option<String>, i64)| {
            let payload = serde_json::from_str(row.0.as_ref()?).expect("a payload is JSON");
            Some((schema::mended(&payload)?, row.1))
        };
        let rows = self.rows.iter().filter_map(|(place, row)| Some((place, mended(row)?)));
        rows.map(|((topic, key), (payload, time))| Message {
            topic: topic.clone(),
            key: key.clone(),
            payload: Some(payload),
            timestamp: (time > 0).then_some(time),
        })
        .collect()
    }

    /// Whether the order of rows is material to a join: more than how numbers are spelled follows from it.
    pub fn has_several_answers(&self, join: &Join) -> bool {
        let mut answers = self.answers(join).map(|results| spelling::plain_results(&results));
        let first = answers.next();
        answers.any(|other| Some(other) != first)
    }

    /// The same topics and joins, whose rows were stored in this order.
    fn in_order(&self, order: RowOrder, is_reversed: bool) -> Oracle {
        let oracle = new_oracle(&self.topics);
        if let Some(now) = self.now {
            oracle.set_now(now);
        }
        if is_reversed {
            oracle.reverse();
        }
        if matches!(order, RowOrder::Drawn(seed) if seed % 2 == 1) {
            oracle.scan();
        }
        let mut rows: Vec<StoredRow<'_>> = self.rows.iter().filter_map(StoredRow::new).collect();
        order.arrange(&mut rows);
        for row in rows {
            oracle.set(row.topic, row.key, row.payload, row.timestamp);
        }
        for join in &self.defined {
            oracle.define(&join.name, &tolerant(&join.query));
        }
        oracle
    }
}

fn of(join: &Join, oracle: &Oracle) -> Results {
    oracle.results(&join.name, &tolerant(&join.query), join.key_column.as_deref())
}

/// The function of oracles that takes the place of calls which fail for some rows.
const TOLERANT: &str = "tolerant";

/// The query as oracles are asked it: it fails for no row.
fn tolerant(query: &str) -> String {
    query.replace(INNER, &format!("{TOLERANT}("))
}

fn new_oracle(topics: &[String]) -> Oracle {
    let oracle = Oracle::new(topics.iter().map(String::as_str));
    oracle.add_tolerant(TOLERANT);
    oracle
}

/// A row of a topic.
struct StoredRow<'t> {
    topic: &'t str,
    key: &'t str,
    payload: &'t str,
    timestamp: i64,
    value: Value,
}

impl<'t> StoredRow<'t> {
    /// None if it was deleted.
    fn new(row: (&'t (String, String), &'t (Option<String>, i64))) -> Option<Self> {
        let ((topic, key), (payload, timestamp)) = row;
        let payload = payload.as_ref()?;
        let value = serde_json::from_str(payload).expect("a payload is JSON");
        Some(Self { topic, key, payload, timestamp: *timestamp, value })
    }
}

impl RowOrder {
    /// Sorts rows that come by their keys.
    fn arrange(self, rows: &mut [StoredRow<'_>]) {
        match self {
            Self::ByKey => {}
            Self::ByKeyBackward => rows.reverse(),
            Self::IntegersFirst => rows.sort_by_cached_key(|row| whole_reals(&row.value)),
            Self::RealsFirst => rows.sort_by_cached_key(|row| std::cmp::Reverse(whole_reals(&row.value))),
            Self::Drawn(seed) => {
                let fields: BTreeSet<String> = rows
                    .iter()
                    .filter_map(|row| row.value.as_object())
                    .flat_map(|o| o.keys().cloned())
                    .collect();
                let field = fields.into_iter().min_by_key(|field| hash((seed, field)));
                rows.sort_by_cached_key(|row| {
                    let by_field =
                        field.as_ref().filter(|_| seed % 4 != 0).map(|field| row.value[field].to_string());
                    (hash((seed, by_field)), hash((seed, row.topic, row.key)))
                });
            }
        }
    }
}

/// How many whole numbers are spelled as reals.
fn whole_reals(value: &Value) -> usize {
    match value {
        Value::Number(_) => usize::from(spelling::plain(value) != *value),
        Value::Array(values) => values.iter().map(whole_reals).sum(),
        Value::Object(fields) => fields.values().map(whole_reals).sum(),
        _ => 0,
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
