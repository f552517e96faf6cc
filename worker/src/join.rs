//! Joins: what a query may read, what it yields, and how stored results are brought up to date. No clock, no
//! sockets; the connections on which queries run are handed in.
//!
//! ```text
//! check (at start):   query ─► names and columns, by SQLite itself under an authorizer
//! plan (at start):    query ─► how rows of topics belong to result keys, or why that can't be told
//! keyed (an epoch):   changes ─► affected result keys ─► their rows gathered ─► query ─► differences
//! accumulate:         changes ─► rows that came and went ─► what is kept of their groups ─► differences
//! full (aside):       a copy of the topics ─► query ─► differences; the oracle, the backfill and the repair
//! ```

pub(crate) mod aggregate;
pub(crate) mod aggregate_state;
pub(crate) mod budget;
pub(crate) mod changes;
pub(crate) mod check;
mod climb;
pub(crate) mod diff;
pub(crate) mod full;
pub(crate) mod keyed;
pub(crate) mod lookup;
pub(crate) mod plan;
pub(crate) mod rows;
pub(crate) mod value;
pub(crate) mod workspace;

use std::collections::BTreeSet;

pub(crate) use check::CheckedJoin;
use litejoin_crds::complaint::near_or_allowed;

use self::plan::row::RowExpr;
use crate::status::join::ClassInForce;
use crate::storage::shard::{Index, Needs};

/// The tables and indexes that joins need in every shard.
pub(crate) fn needs(joins: &[CheckedJoin]) -> Needs {
    let topics: BTreeSet<String> = joins.iter().flat_map(|join| join.topics.iter().cloned()).collect();
    let mut indexes = BTreeSet::new();
    for join in joins {
        for plan in join.class.plans() {
            indexes.extend(plan.lookups().iter().map(|(topic, expr)| index(topic, expr)));
        }
    }
    Needs { topics: topics.into_iter().collect(), indexes: indexes.into_iter().collect() }
}

/// The classes of joins by name, as their status tells them.
pub(crate) fn classes(joins: &[CheckedJoin]) -> impl Iterator<Item = (&str, ClassInForce)> {
    joins.iter().map(|join| {
        let (name, reason) = (join.class.name(), join.class.reason().map(ToString::to_string));
        (join.name.as_str(), ClassInForce { name, reason })
    })
}

/// The index by which rows of a topic are looked up by an expression.
fn index(topic: &str, expr: &RowExpr) -> Index {
    Index {
        topic: topic.to_owned(),
        expression: expr.sql(),
        parameters: expr.parameters(),
        fields: expr.fields().cloned(),
    }
}

/// Finds the joins that are asked for; all if none is named. Gives a complaint about a name that there is not.
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
