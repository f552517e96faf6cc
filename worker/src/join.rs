//! Joins: which topics a query reads, which rows it yields, and how stored results are kept current. The folder has no
//! clock and no sockets; callers pass in the connections on which queries run.
//!
//! ```text
//! check (at start):         query ─► names and columns, by SQLite itself under an authorizer
//! plan (at start):          query ─► how rows of topics belong to result keys, or why the query is evaluated in full
//! keyed (an epoch):         changes ─► affected result keys ─► their rows gathered ─► query ─► differences
//! aggregate (an epoch):     changes ─► rows that came and went ─► aggregate states of their groups ─► differences
//! full (in the background): a copy of the topics ─► query ─► differences; the oracle, the backfill and the repair
//! ```

pub(crate) mod aggregate;
pub(crate) mod aggregate_state;
pub(crate) mod budget;
pub(crate) mod changes;
pub(crate) mod check;
pub(crate) mod checked;
mod climb;
pub(crate) mod diff;
pub(crate) mod due;
pub(crate) mod full;
pub(crate) mod keyed;
pub(crate) mod lookup;
pub(crate) mod node;
pub(crate) mod now;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod time_step;
mod tokens;
pub(crate) mod value;
pub(crate) mod window;
pub(crate) mod workspace;

use std::collections::BTreeSet;

pub(crate) use checked::CheckedJoin;
use litejoin_crds::complaint::near_or_allowed;

use self::plan::row::RowExpr;
use crate::status::join::ClassInForce;
use crate::storage::shard::{EventTimes, Index, Needs};

/// Returns the tables and indexes that joins need in every shard.
pub(crate) fn needs(joins: &[CheckedJoin]) -> Needs {
    let topics: BTreeSet<String> = joins.iter().flat_map(|join| join.topics.iter().cloned()).collect();
    let mut indexes = BTreeSet::new();
    for join in joins {
        for plan in join.class.plans() {
            indexes.extend(plan.lookups().iter().map(|(topic, expr)| index(topic, expr)));
        }
        indexes.extend(join.clock.bounds().iter().map(|bound| index(&bound.topic, &bound.by)));
        indexes.extend(join.window.iter().map(|window| window.index()));
    }
    let clocks: BTreeSet<EventTimes> =
        joins.iter().flat_map(|join| &join.window).filter_map(|window| window.event_times()).collect();
    Needs {
        topics: topics.into_iter().collect(),
        indexes: indexes.into_iter().collect(),
        clocks: clocks.into_iter().collect(),
        ordered_by: joins
            .iter()
            .flat_map(|join| &join.window)
            .filter(|window| window.event_time.as_ref().is_some_and(|event_time| event_time.ignores_stale))
            .filter_map(|window| window.event_times())
            .collect(),
        moved_by_time: joins
            .iter()
            .flat_map(|join| {
                let read = join.timed.iter().filter(|name| join.has_topic(name));
                let cut = join.window.iter().filter(|window| window.reads_timestamp());
                read.chain(cut.map(|window| &window.topic)).cloned()
            })
            .collect(),
    }
}

/// Returns the classes of joins by name, as `/status` shows them.
pub(crate) fn classes(joins: &[CheckedJoin]) -> impl Iterator<Item = (&str, ClassInForce)> {
    joins.iter().map(|join| (join.name.as_str(), join.planned_class()))
}

/// Returns the index by which rows of a topic are looked up by an expression.
fn index(topic: &str, expr: &RowExpr) -> Index {
    Index {
        topic: topic.to_owned(),
        expression: expr.sql(),
        parameters: expr.parameters(),
        fields: expr.fields().cloned(),
        time: None,
    }
}

/// Returns the joins with these names, or all joins if `names` is empty. An error is a complaint about an unknown
/// name.
pub(crate) fn named<'j>(joins: &'j [CheckedJoin], names: &[String]) -> Result<Vec<&'j CheckedJoin>, String> {
    if names.is_empty() {
        return Ok(joins.iter().collect());
    }
    names
        .iter()
        .map(|name| {
            joins.iter().find(|join| join.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
                let known: Vec<&str> = joins.iter().map(|join| join.name.as_str()).collect();
                let hint = near_or_allowed(name, &known, "; there are no joins");
                format!("there is no join {name:?}{hint}")
            })
        })
        .collect()
}

/// A row of a topic as queries see it, beside its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TopicImage<'a> {
    pub(crate) payload: &'a str,
    pub(crate) timestamp: i64,
    pub(crate) change: Option<&'a str>,
}
