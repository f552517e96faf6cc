//! Golden cases: messages in, results out, as `tests/cases/README.md` describes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::ingest::message;
use crate::oracle::Oracle;
use crate::results::{ResultKey, Results};

/// The name of the join of a case with a single join.
const ONLY_JOIN: &str = "result";

/// A golden case.
#[derive(Debug)]
pub struct Case {
    /// The name of its file.
    pub name: String,
    pub joins: Vec<CaseJoin>,
    pub steps: Vec<CaseStep>,
    /// Whether the queries read the clock, which then shows `at` of each step.
    pub has_clock: bool,
}

/// A join of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaseJoin {
    pub name: String,
    pub query: String,
    pub key_column: Option<String>,
    /// Whether the query reads the clock, itself or through another join, in a case that has one.
    #[serde(default = "yes")]
    clock: bool,
}

fn yes() -> bool {
    true
}

/// The moment at which time cases begin: noon on the first of January 2026 (UTC), in seconds since the Unix epoch.
pub const BEGINNING: i64 = 1_767_268_800;

/// The messages of one time, and the results that they change.
#[derive(Debug, Default)]
pub struct CaseStep {
    pub at: String,
    pub messages: Vec<Value>,
    /// Rows of the results that differ from the step before.
    pub changes: BTreeMap<ResultKey, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    query: Option<String>,
    key_column: Option<String>,
    #[serde(default)]
    joins: Vec<CaseJoin>,
    /// Times without messages. A case that has the field reads the clock.
    ticks: Option<Vec<String>>,
    #[serde(default)]
    input: Vec<Input>,
    expect: Vec<Expected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    at: String,
    topic: String,
    key: String,
    payload: Value,
    timestamp: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    at: String,
    join: Option<String>,
    key: Value,
    rows: Vec<Value>,
}

/// Returns every case of a folder below `tests/cases`, by name.
pub fn cases(folder: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder can be listed").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no cases", folder.display());
    paths.iter().map(|path| Case::read(path)).collect()
}

impl CaseJoin {
    /// Returns whether results of the join change with the time by themselves, through this query or one that it reads.
    pub fn reads_clock(&self) -> bool {
        self.clock
    }
}

impl CaseStep {
    /// Returns the moment of the step, in seconds since the Unix epoch; `at` is a number of seconds with its unit.
    pub fn moment(&self) -> i64 {
        let seconds = self.at.strip_suffix('s').and_then(|seconds| seconds.parse::<i64>().ok());
        BEGINNING + seconds.unwrap_or_else(|| panic!("{:?} is no time like 90s", self.at))
    }
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a case has a plain name");
        Self::parse(name, &text)
    }

    /// Parses a case.
    pub fn parse(name: &str, text: &str) -> Self {
        let file: File = serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut joins = file.joins;
        if let Some(query) = file.query {
            joins.push(CaseJoin {
                name: ONLY_JOIN.to_owned(),
                query,
                key_column: file.key_column,
                clock: true,
            });
        }
        let mut steps: Vec<CaseStep> = Vec::new();
        for input in file.input {
            if steps.last().is_none_or(|step| step.at != input.at) {
                steps.push(CaseStep { at: input.at, ..CaseStep::default() });
            }
            // A source parses a string payload as JSON, so a text is sent as a JSON string within the string.
            let payload = match input.payload {
                Value::String(text) => json!(json!(text).to_string()),
                other => other,
            };
            let step = steps.last_mut().expect("just pushed");
            let mut message = message(&input.topic, &input.key, payload);
            if let Some(timestamp) = input.timestamp {
                message["timestamp"] = json!(timestamp);
            }
            step.messages.push(message);
        }
        let has_clock = file.ticks.is_some();
        for at in file.ticks.unwrap_or_default() {
            steps.push(CaseStep { at, ..CaseStep::default() });
        }
        if has_clock {
            steps.sort_by_key(CaseStep::moment);
        }
        for expected in file.expect {
            let step = steps.iter_mut().find(|step| step.at == expected.at);
            let step = step.unwrap_or_else(|| panic!("{name}: nothing comes at {}", expected.at));
            let mut rows: Vec<String> = expected.rows.iter().map(Value::to_string).collect();
            rows.sort_unstable();
            let join = expected.join.unwrap_or_else(|| ONLY_JOIN.to_owned());
            step.changes.insert((join, expected.key.to_string()), rows);
        }
        Self { name: name.to_owned(), joins, steps, has_clock }
    }

    /// Returns the topics that messages go to, in the spelling of the first message.
    pub fn topics(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let messages = self.steps.iter().flat_map(|step| &step.messages);
        messages
            .map(|message| message["topic"].as_str().expect("a topic is text").to_owned())
            .filter(|topic| seen.insert(topic.to_ascii_lowercase()))
            .collect()
    }

    /// Returns the results of every join over the topics in `data_dir`.
    pub fn oracle(&self, data_dir: &Path) -> Results {
        let topics = self.topics();
        let oracle = Oracle::read(data_dir, topics.iter().map(String::as_str));
        if self.has_clock {
            oracle.set_now(self.steps.last().map_or(BEGINNING, CaseStep::moment));
        }
        // A view may name later views, as long as they exist when it is read.
        for join in &self.joins {
            oracle.define(&join.name, &join.query);
        }
        let mut results = Results::default();
        for join in &self.joins {
            results.extend(oracle.results(&join.name, &join.query, join.key_column.as_deref()));
        }
        results
    }
}
