//! Results as a user holds them: the rows of each key of each join, from any sink.

use std::collections::BTreeMap;

use serde_json::Value;

/// A join and a result key, as JSON: 1 and "1" are two keys.
pub type ResultKey = (String, String);

/// The rows of every key that has any; sorted, since their order has no meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Results {
    pub rows: BTreeMap<ResultKey, Vec<String>>,
}

/// A changed result, as every sink sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub query: String,
    pub key: Value,
    pub rows: Vec<Value>,
    pub op: String,
    pub id: String,
    pub epoch: u64,
    /// Whether the event is part of the current state.
    pub is_replay: bool,
    /// The whole event as JSON, including the fields above.
    pub whole: Value,
}

/// The parts of `<lineage>.<epoch>.<n>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventId {
    pub lineage: String,
    pub epoch: u64,
    pub n: u64,
}

impl Event {
    /// Parses an event that a sink has sent.
    pub fn read(json: &str) -> Self {
        let whole: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
        let text = |field: &str| match &whole[field] {
            Value::String(text) => text.clone(),
            other => panic!("{field} is {other}, no text: {json}"),
        };
        Self {
            query: text("query"),
            key: whole.get("key").unwrap_or_else(|| panic!("no key: {json}")).clone(),
            rows: whole["rows"].as_array().unwrap_or_else(|| panic!("no rows: {json}")).clone(),
            op: text("op"),
            id: text("id"),
            epoch: whole["epoch"].as_u64().unwrap_or_else(|| panic!("no epoch: {json}")),
            is_replay: whole["_replay"] == true,
            whole,
        }
    }

    pub fn result_key(&self) -> ResultKey {
        (self.query.clone(), self.key.to_string())
    }
}

impl EventId {
    pub fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.split('.').collect();
        let number = |part: &str| part.parse().unwrap_or_else(|_| panic!("no id: {text}"));
        match parts.as_slice() {
            [lineage, epoch, n] if !lineage.is_empty() => {
                Self { lineage: (*lineage).to_owned(), epoch: number(epoch), n: number(n) }
            }
            _ => panic!("no id: {text}"),
        }
    }

    /// Returns the position among the ids of the lineage.
    pub fn position(&self) -> (u64, u64) {
        (self.epoch, self.n)
    }
}

impl Results {
    /// Sets the rows of a key; no rows remove the key.
    pub fn set<'v>(&mut self, key: ResultKey, rows: impl IntoIterator<Item = &'v Value>) {
        let mut rows: Vec<String> = rows.into_iter().map(Value::to_string).collect();
        rows.sort_unstable();
        if rows.is_empty() {
            self.rows.remove(&key);
        } else {
            self.rows.insert(key, rows);
        }
    }

    /// Returns the state after these events.
    pub fn folded<'e>(events: impl IntoIterator<Item = &'e Event>) -> Self {
        let mut results = Self::default();
        results.fold(events);
        results
    }

    /// Applies events in order.
    pub fn fold<'e>(&mut self, events: impl IntoIterator<Item = &'e Event>) {
        for event in events {
            self.set(event.result_key(), &event.rows);
        }
    }

    /// Adds the results of another join.
    pub fn extend(&mut self, other: Self) {
        self.rows.extend(other.rows);
    }

    /// Returns the keys whose rows differ between `self` and `later`, with the rows in `later`.
    pub fn changes(&self, later: &Self) -> BTreeMap<ResultKey, Vec<String>> {
        let keys = self.rows.keys().chain(later.rows.keys());
        keys.filter(|key| self.rows.get(*key) != later.rows.get(*key))
            .map(|key| (key.clone(), later.rows.get(key).cloned().unwrap_or_default()))
            .collect()
    }

    /// Panics if `self`, which was obtained by `how`, differs from `expected`; shows only the difference.
    pub fn assert_same(&self, expected: &Self, how: &str) {
        let wrong: Vec<String> = expected
            .changes(self)
            .iter()
            .take(20)
            .map(|((join, key), rows)| {
                let wanted = expected.rows.get(&(join.clone(), key.clone()));
                format!("{join} {key}: got {rows:?}, expected {:?}", wanted.cloned().unwrap_or_default())
            })
            .collect();
        assert!(wrong.is_empty(), "{how}: {} keys expected\n{}", expected.rows.len(), wrong.join("\n"));
    }
}
