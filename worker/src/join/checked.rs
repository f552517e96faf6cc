//! A join or window whose query was checked: what the rest of the worker knows of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::node;
use super::plan::{Class, ClockUse};
use super::rows::Columns;
use super::window::CheckedWindow;
use crate::results::event::{Emit, Shape};
use crate::status::join::{ClassInForce, ClassName};
use crate::storage::sqlite::quoted;

/// A join whose query was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedJoin {
    pub(crate) name: String,
    /// The SELECT as written, without its final semicolon.
    pub(crate) query: String,
    /// The SELECT as it is run: `_now()` stands for each form of now.
    pub(crate) sql: String,
    pub(crate) columns: Columns,
    /// The columns, for sinks that have tables.
    pub(crate) shape: Arc<Shape>,
    /// Topics that the query reads, also through other joins, in their declared spelling.
    pub(crate) topics: BTreeSet<String>,
    /// Those of the topics whose timestamps the query may read, in whatever spelling.
    pub(crate) timed: BTreeSet<String>,
    /// Other joins that the query names itself.
    pub(crate) reads: BTreeSet<String>,
    /// How the query yields other rows as time passes.
    pub(crate) clock: ClockUse,
    /// How often the query is run if it reads the clock anywhere.
    pub(crate) refresh: Duration,
    pub(crate) result_key: Option<String>,
    /// Whether any sink receives the results.
    pub(crate) has_sinks: bool,
    /// How the join is kept current.
    pub(crate) class: Class,
    /// For a window: how time is cut; `None` for a join.
    pub(crate) window: Option<Arc<CheckedWindow>>,
    /// What is right to SQLite, and likely not what the author means.
    pub(crate) warning: Option<String>,
}

impl CheckedJoin {
    /// Returns whether the query reads a topic, also through other joins.
    pub(crate) fn has_topic(&self, name: &str) -> bool {
        self.topics.iter().any(|topic| topic.eq_ignore_ascii_case(name))
    }

    /// Returns `emit`, or [`Emit::Silent`] for a join without sinks.
    pub(crate) fn emit(&self, emit: Emit) -> Emit {
        if self.has_sinks { emit } else { Emit::Silent }
    }

    /// Returns the class that the join is planned with.
    pub(crate) fn planned_class(&self) -> ClassInForce {
        let name = match &self.window {
            None => self.class.name(),
            Some(window) if window.aggregates.is_some() => ClassName::Accumulated,
            Some(_) => ClassName::Keyed,
        };
        let reason = self.class.reason().filter(|_| self.window.is_none()).map(ToString::to_string);
        ClassInForce { name, reason }
    }

    /// Returns the statement for a view by which other queries read the join or window.
    pub(crate) fn view_sql(&self, quoted_view: &str) -> String {
        if self.window.is_some() {
            return format!("CREATE VIEW {quoted_view} AS {}\n", node::select(self));
        }
        // The bound query would name some columns otherwise.
        let columns = if self.sql == self.query {
            String::new()
        } else {
            let names: Vec<String> = self.shape.columns.iter().map(|(name, _)| quoted(name)).collect();
            format!("({})", names.join(", "))
        };
        format!("CREATE VIEW {quoted_view}{columns} AS {}\n", self.sql)
    }

    /// Returns a text on which stored results depend beside the topics. A change of the text makes the results stale.
    pub(crate) fn definition(&self, joins: &[CheckedJoin]) -> String {
        // Another join that is read, even through others, contributes its own query.
        let mut read = vec![self];
        let mut next = 0;
        while let Some(reader) = read.get(next).copied() {
            next += 1;
            for other in joins.iter().filter(|other| mentions(&reader.query, &other.name)) {
                if read.iter().all(|known| known.name != other.name) {
                    read.push(other);
                }
            }
        }
        read[1..].sort_by_key(|join| &join.name);
        let texts = read.iter().map(|join| format!("{}\n{:?}", join.query, join.columns));
        let window = self.window.iter().map(|window| window.definition());
        texts.chain(window).collect::<Vec<_>>().join("\n")
    }
}

pub(in crate::join) fn mentions(query: &str, name: &str) -> bool {
    query.to_ascii_lowercase().contains(&name.to_ascii_lowercase())
}
