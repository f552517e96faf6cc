//! Evaluation by key: the results that the changes of an epoch can affect, and their rows now.
//!
//! ```text
//! affected:  changed rows, old and new image ─► up the plan's links, by indexed look-ups in the shards ─► keys
//! evaluate:  some keys ─► down the links, rows into a table for each occurrence ─► the user's query on them
//!            ─► compared with the stored results of those keys
//! ```
//! This file has the statements of a keyed join; [`workspace`](super::workspace) and [`climb`](super::climb) run them.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use super::CheckedJoin;
use super::plan::row::RowExpr;
use super::plan::{Keyed, Link, Matching, Occurrence, TimeBound};
use super::value::Value;
use crate::results::event::{Emit, JoinId, ResultChange};
use crate::storage::sqlite::{SqliteError, quoted};
use crate::storage::topics::TopicId;

/// Result keys of one join that an epoch evaluates one by one; above this number the join is evaluated in full.
pub(crate) const KEYS_MAX: usize = 65_536;

/// Driving values whose rows before and after an epoch reads; above this number the join is evaluated in full.
pub(crate) const DRIVING_MAX: usize = 4 * KEYS_MAX;

/// Why an evaluation by key failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyedError {
    #[error("the query failed: {message}")]
    Query { message: String },
    #[error("the query took more than {steps} steps of SQLite's virtual machine and was stopped")]
    StepLimit { steps: u64 },
    /// Full evaluation takes less memory, and perhaps less time.
    #[error("too many rows belong together to evaluate them by key")]
    TooLarge,
    #[error("a value by which rows are looked up is a BLOB")]
    UnsupportedValue,
    /// Full evaluation rebuilds both.
    #[error("the stored results don't follow from the stored aggregate state")]
    StateMismatch,
    #[error(
        "a value can't be accumulated: a real among what is summed, or equal values that are written differently"
    )]
    NotAccumulable,
    #[error(
        "the greatest or least value of a group is gone, and the rows of the group can't be looked up for the next"
    )]
    LostExtreme,
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error("could not use the tables in memory")]
    Memory(#[from] rusqlite::Error),
}

/// A join and the statements that keep it current by key.
#[derive(Debug)]
pub(crate) struct KeyedJoin {
    pub(crate) join: CheckedJoin,
    pub(crate) id: JoinId,
    pub(super) plan: Keyed,
    pub(super) steps: Vec<Step>,
}

/// The statements of one occurrence.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) topic: TopicId,
    /// The query for the value of `by` of a row given as parameters; `None` for the key itself.
    pub(super) by: Option<String>,
    /// The query for a shard's rows by value.
    pub(super) rows: String,
    pub(super) insert: String,
    pub(super) links: Vec<LinkStep>,
    /// By time bound: the query for the values of `by` of a shard's rows in a range; `None` for a bound on another topic.
    pub(super) due: Vec<Option<String>>,
}

#[derive(Debug)]
pub(super) enum LinkStep {
    Keys,
    Parent {
        index: usize,
        matching: Matching,
        /// The query for the values of the parent's gathered rows.
        gathered: String,
        /// Whether these values are the parent's keys.
        of_key: bool,
        /// The query, in a shard, for the values by which the parent's rows with a value are gathered.
        up: String,
    },
}

/// Keys of results to evaluate, and whether their changes emit an event.
pub(crate) type AffectedKeys = HashMap<Value, Emit>;

/// A result to evaluate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AffectedKey {
    pub(crate) value: Value,
    pub(crate) emit: Emit,
}

/// Result keys whose evaluation fails, each with the reason.
pub(crate) type FailingKeys = BTreeMap<Value, String>;

/// The outcome of the evaluation of some keys.
#[derive(Debug, Default)]
pub(crate) struct Evaluated {
    /// The results that differ from the stored ones.
    pub(crate) changes: Vec<ResultChange<'static>>,
    /// The keys whose evaluation failed, each with the reason.
    pub(crate) failed: Vec<(Value, String)>,
    /// The keys that have failed before and fail no more.
    pub(crate) mended: Vec<Value>,
}

impl KeyedJoin {
    /// Prepares the statements of the join. `topic_id` returns the number of a topic.
    pub(crate) fn new(
        join: CheckedJoin,
        id: JoinId,
        plan: Keyed,
        topic_id: impl Fn(&str) -> TopicId,
    ) -> Self {
        let bounds = join.clock.bounds();
        let steps = plan
            .occurrences
            .iter()
            .map(|occurrence| Step::new(occurrence, &plan, bounds, &topic_id))
            .collect();
        Self { join, id, plan, steps }
    }

    /// Returns the topics that the join reads.
    pub(crate) fn topics(&self) -> impl Iterator<Item = TopicId> {
        self.steps.iter().map(|step| step.topic)
    }

    /// Returns the topics of which a row belongs to a result by its own value alone: each result has a row of one of them.
    pub(crate) fn key_topics(&self) -> BTreeSet<TopicId> {
        let has_key = |step: &&Step| step.links.iter().any(|link| matches!(link, LinkStep::Keys));
        self.steps.iter().filter(has_key).map(|step| step.topic).collect()
    }

    /// Returns the topics whose rows are looked up by more than their key, so that their old images are needed.
    pub(crate) fn looked_back(&self) -> impl Iterator<Item = TopicId> {
        self.steps.iter().filter(|step| step.by.is_some()).map(|step| step.topic)
    }
}

impl Step {
    fn new(
        occurrence: &Occurrence,
        plan: &Keyed,
        bounds: &[TimeBound],
        topic_id: impl Fn(&str) -> TopicId,
    ) -> Self {
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
            due: bounds.iter().map(|bound| due(occurrence, bound)).collect(),
        }
    }
}

fn due(occurrence: &Occurrence, bound: &TimeBound) -> Option<String> {
    let (lower, upper) = bound.ends.comparisons();
    let index = super::index(&bound.topic, &bound.by);
    (bound.topic == occurrence.topic).then(|| index.select_between(&occurrence.by.sql(), lower, upper))
}

/// Returns a query for `terms` over a shard's rows of a topic whose `by` is parameter 1.
fn select(terms: &str, topic: &str, by: &RowExpr) -> String {
    if by.is_key() {
        format!("SELECT {terms} FROM {} WHERE key = ?1", quoted(topic))
    } else {
        super::index(topic, by).select(terms)
    }
}
