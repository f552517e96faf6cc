//! How a query is kept current without running it over all rows: which rows of which topics belong to a result key, in
//! both directions. Pure.
//!
//! The idea: a query for the results of some keys only is the query with that restriction pushed down. The restriction
//! passes through filters, joins (as a semi-join along an equality), GROUP BY and PARTITION BY terms, DISTINCT, UNION
//! and correlated subqueries; where it can't pass, the query is evaluated in full and [`Reason`] says why.
//! [`super::check`] gives a plan up that SQLite refuses, and the evaluator falls back from a plan that a value or a size
//! doesn't fit.
//!
//! ```text
//! SELECT o.key, c.payload->>'name' FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'
//!
//! gather (down):    keys ─► orders BY key ─► its payload->>'customer' ─► customers BY key
//! affected (up):    a changed customer ─► its key ─► orders where payload->>'customer' is that ─► their keys
//! ```
//! Both directions use the same edges. A set of keys that is too large costs time; a set that is too small is a bug.
//! Gathered rows go into tables of their own for each occurrence of a topic, on which the user's query runs unchanged:
//! SQLite alone decides the result.

mod aggregate;
mod grouping;
mod names;
mod parse;
mod print;
mod restrict;
pub(crate) mod row;
mod side;
mod syntax;
mod time;
pub(crate) mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub(crate) use aggregate::Accumulated;
pub(crate) use row::RowExpr;
pub(crate) use time::{Ends, TimeBound};

use self::print::Reads;
use self::restrict::Restricted;
use super::CheckedJoin;
use crate::status::join::ClassName;
use crate::storage::sqlite::quoted;

/// How a join is kept current.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// Only the results that a change can affect are evaluated.
    Keyed(Keyed),
    /// Aggregate states of groups are updated by the rows that came and went.
    Accumulated(Box<Accumulated>),
    /// All rows are evaluated after any change.
    Full(Reason),
}

impl Class {
    /// Returns the name of the class in `/status` and logs.
    pub(crate) fn name(&self) -> ClassName {
        match self {
            Self::Keyed(_) => ClassName::Keyed,
            Self::Accumulated(_) => ClassName::Accumulated,
            Self::Full(_) => ClassName::Full,
        }
    }

    /// Returns why the query is evaluated in full, or `None` if it is not.
    pub(crate) fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Keyed(_) | Self::Accumulated(_) => None,
            Self::Full(reason) => Some(reason),
        }
    }

    /// Returns the plans by which rows are looked up.
    pub(crate) fn plans(&self) -> Vec<&Keyed> {
        match self {
            Self::Keyed(keyed) => vec![keyed],
            Self::Accumulated(accumulated) => accumulated.plans().collect(),
            Self::Full(_) => Vec::new(),
        }
    }

    /// Returns the class of the join without aggregate states.
    pub(crate) fn unaccumulated(self) -> Self {
        match self {
            Self::Accumulated(accumulated) => match accumulated.otherwise {
                Ok(keyed) => Self::Keyed(keyed),
                Err(reason) => Self::Full(reason),
            },
            other => other,
        }
    }
}

/// How a query reads the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClockUse {
    /// Not at all.
    Unread,
    /// In comparisons with values of rows and nowhere else: a row says when results change.
    Bounds(Vec<TimeBound>),
    /// In other ways, too: results may change at any moment.
    Anywhere,
    /// In a form that can't be bound to a moment: two rows may see two moments.
    System,
}

impl ClockUse {
    /// Returns the time bounds, if the rows say when results change.
    pub(crate) fn bounds(&self) -> &[TimeBound] {
        match self {
            Self::Bounds(bounds) => bounds,
            Self::Unread | Self::Anywhere | Self::System => &[],
        }
    }

    /// Returns whether results may change without any row that says when.
    pub(crate) fn is_anywhere(&self) -> bool {
        matches!(self, Self::Anywhere | Self::System)
    }
}

/// The plan of a keyed join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keyed {
    /// The query with each occurrence of a topic read from its own table.
    pub(crate) sql: String,
    /// The query over whole topics that have the same indexes.
    pub(crate) sql_full: String,
    /// Parents come before the occurrences that are linked to them.
    pub(crate) occurrences: Vec<Occurrence>,
}

/// One use of a topic in a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Occurrence {
    pub(crate) topic: String,
    /// The quoted name of the table into which rows are gathered.
    pub(crate) table: String,
    /// The rows that belong to a set of result keys are those whose `by` is one of `from`.
    pub(crate) by: RowExpr,
    pub(crate) from: Vec<Link>,
}

/// The source of the values by which an occurrence is gathered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    /// The result keys themselves, NULL included.
    Keys,
    /// Values of `of` over the gathered rows of an occurrence (by index in the list); NULL links nothing.
    Parent { index: usize, of: RowExpr, matching: Matching },
}

/// When a value of an occurrence is linked to a value of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matching {
    /// Both are equal.
    Equal,
    /// The parent has a text, and the value is that text or a number written as that text. So a group of equal numbers
    /// is found whole: the text `5.0` links to all rows with 5, in any spelling.
    AsText,
}

impl Link {
    /// Links numbers, too, that are written as a text of the parent.
    fn match_as_text(&mut self) {
        if let Self::Parent { matching, .. } = self {
            *matching = Matching::AsText;
        }
    }
}

/// Why a query is evaluated in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Reason {
    #[error(
        "{term} reads the clock where no row says when the result changes; compare the value of a row with the clock \
         (timestamp > unixepoch() - 3600)"
    )]
    Clock { term: String },
    #[error("its structure could not be read; write it in plainer SQL")]
    Syntax,
    #[error(
        "a common table expression reads itself or one behind it; a query without recursion could be keyed"
    )]
    Recursive,
    #[error("NATURAL JOIN matches whole rows; name the columns with ON")]
    Natural,
    #[error("FROM holds a join in parentheses; write it without them")]
    NestedFrom,
    #[error("COLLATE makes different values equal; compare lower() of both sides")]
    Collation,
    #[error("IN reads a table as a whole; write IN (SELECT …)")]
    InTable,
    #[error(
        "LIMIT picks among all rows; number them with row_number() OVER (PARTITION BY …) and take the first ones of each key"
    )]
    Limit,
    #[error("it aggregates everything into one row; add GROUP BY with the result key")]
    Global,
    #[error("result key {key} is no GROUP BY term; group by it, or choose another keyColumn")]
    NotGrouped { key: String },
    #[error(
        "result key {key} tells apart what GROUP BY or PARTITION BY holds together (5 and 5.0); group by {key} itself"
    )]
    Spelling { key: String },
    #[error("a window function looks beyond the rows of one result key; add PARTITION BY {key}")]
    Window { key: String },
    #[error("result key {key} does not come from the columns of one topic; choose another keyColumn")]
    KeyOfSeveral { key: String },
    #[error(
        "result key {key} can't be looked up by an index; use a column, a field of the payload, or a simple function"
    )]
    NotIndexable { key: String },
    #[error(
        "result key {key} is computed above a subquery or another join; compute it within, and take that column \
         (SELECT id … FROM (SELECT {key} AS id, … FROM …))"
    )]
    KeyOfSubquery { key: String },
    #[error(
        "result key {key} comes from the optional side of an outer join; take the key of the other side, or \
         coalesce() of both sides of a FULL JOIN's condition"
    )]
    Optional { key: String },
    #[error(
        "{source_name} is tied to the rest by no equality that an index can answer; add one (a = b) to its ON or to WHERE"
    )]
    NoEquality { source_name: String },
    #[error(
        "{source_name} is tied to the rest by IS, which finds NULL equal to NULL, and no index looks that up; write = \
         where NULL need not match"
    )]
    NullSafe { source_name: String },
    #[error(
        "a subquery on {source_name} is tied to its row by no equality; add one (inner = outer) to its WHERE"
    )]
    Uncorrelated { source_name: String },
    #[error("its rewritten form was refused by SQLite: {message}; write it in plainer SQL")]
    Rewritten { message: String },
}

/// Returns the name of the table for occurrence `number` of a topic in a join's query.
fn table_name(join_name: &str, number: usize) -> String {
    quoted(&format!("_{}_{number}", join_name.to_ascii_lowercase()))
}

/// Returns the name of a table for a second query of the join; names of joins have no slash.
fn table_name_of(join_name: &str, part: &str) -> String {
    quoted(&format!("_{}/{part}", join_name.to_ascii_lowercase()))
}

/// Returns how a join is kept current, and how it reads the clock. `queries` are the texts of all joins, as they are
/// run, by lower-case name.
pub(crate) fn plan(join: &CheckedJoin, queries: &BTreeMap<String, String>) -> (Class, ClockUse) {
    if join.clock == ClockUse::System {
        let term = "an expression around 'now'".to_owned();
        return (Class::Full(Reason::Clock { term }), ClockUse::System);
    }
    let query = match parse::read(&join.sql, queries) {
        Ok(query) => query,
        Err(reason) => return (Class::Full(reason), join.clock.clone()),
    };
    let clock = match &join.clock {
        ClockUse::Unread => ClockUse::Unread,
        _ => match time::bounds(&query) {
            Ok(bounds) => ClockUse::Bounds(declared(bounds, join)),
            Err(term) => return (Class::Full(Reason::Clock { term }), ClockUse::Anywhere),
        },
    };
    (class(join, &query), clock)
}

/// Returns the bounds with the names of topics as they are declared.
fn declared(mut bounds: Vec<TimeBound>, join: &CheckedJoin) -> Vec<TimeBound> {
    for bound in &mut bounds {
        let known = |topic: &&String| topic.eq_ignore_ascii_case(&bound.topic);
        if let Some(topic) = join.topics.iter().find(known) {
            bound.topic.clone_from(topic);
        }
    }
    bounds
}

fn class(join: &CheckedJoin, query: &syntax::Query) -> Class {
    let by_key = restrict::restrict(query, join.columns.key_column())
        .and_then(|restricted| keyed(join, query, restricted, &join.name));
    // If all rows are found by keys, few rows belong to a result, and aggregate states would save nothing.
    let is_cheap = by_key.as_ref().is_ok_and(|keyed| keyed.occurrences.iter().all(|o| o.by.is_key()));
    if !is_cheap {
        let part = |query: &syntax::Query, restricted: Restricted, part: &str| {
            keyed(join, query, restricted, &format!("{}/{part}", join.name))
        };
        // What is made of a group may not change while its state stays.
        let is_timeless = |plan: &Accumulated| !time::reads_now(&plan.results_sql);
        if let Some(plan) = aggregate::accumulate(query, &join.name, by_key.clone(), part).filter(is_timeless)
        {
            return Class::Accumulated(Box::new(plan));
        }
    }
    match by_key {
        Ok(keyed) => Class::Keyed(keyed),
        Err(reason) => Class::Full(reason),
    }
}

/// Assigns tables to the topics of a restricted query, with `prefix` in their names.
fn keyed(
    join: &CheckedJoin,
    query: &syntax::Query,
    restricted: Restricted,
    prefix: &str,
) -> Result<Keyed, Reason> {
    let occurrences: Result<Vec<Occurrence>, Reason> = restricted
        .rules
        .into_iter()
        .map(|rule| {
            let known = |topic: &&String| topic.eq_ignore_ascii_case(&rule.topic);
            let topic = join.topics.iter().find(known).ok_or(Reason::Syntax)?.clone();
            let table = table_name(prefix, rule.number);
            Ok(Occurrence { topic, table, by: rule.by, from: rule.from })
        })
        .collect();
    Ok(Keyed {
        sql: print::print(query, Reads::Occurrences { join_name: prefix }, &restricted.hints),
        sql_full: print::print(query, Reads::Topics, &restricted.hints),
        occurrences: occurrences?,
    })
}

impl Keyed {
    /// Returns the expressions, beside keys, by which rows of topics are looked up: topic and expression.
    pub(crate) fn lookups(&self) -> BTreeSet<(String, RowExpr)> {
        let mut found = BTreeSet::new();
        for occurrence in &self.occurrences {
            found.insert((occurrence.topic.clone(), occurrence.by.clone()));
            for link in &occurrence.from {
                if let Link::Parent { index, of, .. } = link {
                    found.insert((self.occurrences[*index].topic.clone(), of.clone()));
                }
            }
        }
        found.retain(|(_, expr)| !expr.is_key());
        found
    }
}

impl fmt::Display for Keyed {
    /// Writes a line for each occurrence: its topic, and how its rows are gathered.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, occurrence) in self.occurrences.iter().enumerate() {
            write!(formatter, "{}: {} by {} from ", place + 1, occurrence.topic, occurrence.by.sql())?;
            for (index, link) in occurrence.from.iter().enumerate() {
                let and = if index > 0 { " and " } else { "" };
                match link {
                    Link::Keys => write!(formatter, "{and}the result keys")?,
                    Link::Parent { index, of, matching } => {
                        let as_text = if *matching == Matching::AsText { " as text" } else { "" };
                        write!(formatter, "{and}{}: {}{as_text}", index + 1, of.sql())?;
                    }
                }
            }
            writeln!(formatter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
