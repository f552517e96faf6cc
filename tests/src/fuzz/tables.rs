//! What topics hold after messages, by the rules that users are told, and what SQLite makes of joins over them.

use std::cell::RefCell;
use std::collections::HashMap;

use super::schema::Message;
use super::script::Join;
use crate::oracle::Oracle;
use crate::results::Results;

/// The topics of a round.
pub struct Tables {
    oracle: Oracle,
    /// By topic in lower case and key: the payload, none if it was deleted, and its timestamp.
    rows: HashMap<(String, String), (Option<String>, i64)>,
    /// Joins that others can read by name.
    defined: RefCell<Vec<String>>,
}

impl Tables {
    /// Empty topics.
    pub fn new(topics: &[String]) -> Self {
        let oracle = Oracle::new(topics.iter().map(String::as_str));
        Self { oracle, rows: HashMap::new(), defined: RefCell::default() }
    }

    /// Makes these the joins, in place of all before.
    pub fn define(&self, joins: &[Join]) {
        let names = joins.iter().map(|join| join.name.clone()).collect();
        for name in self.defined.replace(names) {
            self.oracle.undefine(&name);
        }
        for join in joins {
            self.oracle.define(&join.name, &join.query);
        }
    }

    /// Has rows come in another order wherever a query leaves it open.
    pub fn reverse(&self) {
        self.oracle.reverse();
    }

    /// Stores a message. One with a time of its own does nothing to what is newer, and the same payload again
    /// changes nothing at all.
    pub fn apply(&mut self, message: &Message) {
        let Message { topic, key, payload, timestamp } = message;
        let payload = payload.as_ref().map(ToString::to_string);
        let stored = self.rows.get(&(topic.to_ascii_lowercase(), key.clone()));
        let time = timestamp.unwrap_or(0);
        match stored {
            Some((_, newest)) if *newest > time => return,
            Some((before, _)) if *before == payload && payload.is_some() => return,
            _ => {}
        }
        match &payload {
            Some(payload) => self.oracle.set(topic, key, payload, time),
            None => self.oracle.apply(topic, key, None),
        }
        self.rows.insert((topic.to_ascii_lowercase(), key.clone()), (payload, time));
    }

    /// The results of a join.
    pub fn results(&self, join: &Join) -> Results {
        self.oracle.results(&join.name, &join.query, join.key_column.as_deref())
    }
}
