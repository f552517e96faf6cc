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
    /// Windows as in a Pipeline, without sinks.
    pub windows: Vec<Value>,
    /// `retention.duration`, where the case depends on it.
    pub retention: Option<String>,
    pub steps: Vec<CaseStep>,
    /// Whether the queries read the clock, which then shows `at` of each step.
    pub has_clock: bool,
    /// Whether the messages of a step have to come in one epoch, as they do in one shard.
    pub is_for_one_shard: bool,
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
    /// The source of the messages, in a case with several.
    pub source: Option<String>,
    /// Whether the worker stops before the step, and starts at its time.
    pub restarts: bool,
    /// Windows that replace those of before, ahead of the messages.
    pub reload: Option<Vec<Value>>,
    /// Rows of the results of joins that differ from the step before.
    pub changes: BTreeMap<ResultKey, Vec<String>>,
    /// Results of windows that differ from the step before, in their rows or in `window`.
    pub window_changes: Vec<CaseChange>,
    /// Rows that windows do not take.
    pub dead_letters: Vec<CaseLetter>,
}

/// A changed result of a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseChange {
    pub result_key: ResultKey,
    /// As in the event; `expired` leaves without one.
    pub op: String,
    pub rows: Vec<String>,
    /// As in the event; `None` leaves it open.
    pub window: Option<CaseFrame>,
}

/// The frame of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFrame {
    pub start: i64,
    pub end: i64,
    pub r#final: bool,
}

/// A row that a window does not take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseLetter {
    at: String,
    /// The window; the only one where absent.
    pub join: Option<String>,
    pub key: String,
    /// `too_late` or `no_time`.
    pub reason: String,
    /// The frame and the watermark; `None` leaves them open.
    pub start: Option<i64>,
    pub end: Option<i64>,
    pub watermark: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    query: Option<String>,
    key_column: Option<String>,
    #[serde(default)]
    joins: Vec<CaseJoin>,
    window: Option<Value>,
    #[serde(default)]
    windows: Vec<Value>,
    retention: Option<String>,
    #[serde(default)]
    one_shard: bool,
    /// Times without messages. A case that has the field, or windows, reads the clock.
    ticks: Option<Vec<String>>,
    #[serde(default)]
    restarts: Vec<String>,
    #[serde(default)]
    reloads: Vec<Reload>,
    #[serde(default)]
    input: Vec<Input>,
    #[serde(default)]
    dead_letters: Vec<CaseLetter>,
    expect: Vec<Expected>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reload {
    at: String,
    window: Option<Value>,
    #[serde(default)]
    windows: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    at: String,
    topic: String,
    key: String,
    payload: Value,
    timestamp: Option<i64>,
    source: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    at: String,
    join: Option<String>,
    key: Value,
    rows: Vec<Value>,
    /// Only results of windows have one.
    op: Option<String>,
    window: Option<CaseFrame>,
}

/// Returns the windows of a list, and the one without a name.
fn named_windows(mut windows: Vec<Value>, window: Option<Value>) -> Vec<Value> {
    if let Some(mut window) = window {
        window["name"] = json!(ONLY_JOIN);
        windows.push(window);
    }
    windows
}

/// Returns the step of a time, a new one if there is none.
fn step_at<'s>(steps: &'s mut Vec<CaseStep>, at: &str) -> &'s mut CaseStep {
    let index = steps.iter().position(|step| step.at == at).unwrap_or_else(|| {
        steps.push(CaseStep { at: at.to_owned(), ..CaseStep::default() });
        steps.len() - 1
    });
    &mut steps[index]
}

/// Returns every case of a folder below `tests/cases`, by name.
pub fn cases(folder: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder can be listed").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    assert!(!paths.is_empty(), "{} has no cases", folder.display());
    paths.iter().map(|path| Case::read(path)).collect()
}

/// Writes what is expected into the steps.
fn expect(name: &str, steps: &mut [CaseStep], results: Vec<Expected>, letters: Vec<CaseLetter>) {
    let index_of = |steps: &[CaseStep], at: &str| {
        let index = steps.iter().position(|step| step.at == at);
        index.unwrap_or_else(|| panic!("{name}: nothing comes at {at}"))
    };
    for expected in results {
        let step = index_of(steps, &expected.at);
        let mut rows: Vec<String> = expected.rows.iter().map(Value::to_string).collect();
        rows.sort_unstable();
        let result_key = (expected.join.unwrap_or_else(|| ONLY_JOIN.to_owned()), expected.key.to_string());
        if let Some(op) = expected.op {
            steps[step].window_changes.push(CaseChange { result_key, op, rows, window: expected.window });
        } else {
            steps[step].changes.insert(result_key, rows);
        }
    }
    for letter in letters {
        let step = index_of(steps, &letter.at);
        steps[step].dead_letters.push(letter);
    }
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
            assert!(
                step.messages.is_empty() || step.source == input.source,
                "{name}: two sources at {}, which would be two epochs",
                step.at
            );
            step.source = input.source;
            let mut message = message(&input.topic, &input.key, payload);
            if let Some(timestamp) = input.timestamp {
                message["timestamp"] = json!(timestamp);
            }
            step.messages.push(message);
        }
        let windows = named_windows(file.windows, file.window);
        let has_clock = file.ticks.is_some() || !windows.is_empty() || !file.reloads.is_empty();
        for at in file.ticks.unwrap_or_default() {
            steps.push(CaseStep { at, ..CaseStep::default() });
        }
        for at in file.restarts {
            step_at(&mut steps, &at).restarts = true;
        }
        for reload in file.reloads {
            step_at(&mut steps, &reload.at).reload = Some(named_windows(reload.windows, reload.window));
        }
        if has_clock {
            steps.sort_by_key(CaseStep::moment);
        }
        expect(name, &mut steps, file.expect, file.dead_letters);
        Self {
            name: name.to_owned(),
            joins,
            windows,
            retention: file.retention,
            steps,
            has_clock,
            is_for_one_shard: file.one_shard,
        }
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

    /// Returns whether a join reads a window, or a window reads a join or window, so that results follow later.
    pub fn has_feeds(&self) -> bool {
        let text =
            |window: &Value, field: &str| window[field].as_str().expect("a field of windows").to_owned();
        let names: Vec<String> = self.windows.iter().map(|window| text(window, "name")).collect();
        let is_read = |name: &String| self.joins.iter().any(|join| join.query.contains(name.as_str()));
        let is_fed = |window: &Value| {
            let topic = text(window, "topic");
            names.contains(&topic) || self.joins.iter().any(|join| join.name == topic)
        };
        names.iter().any(is_read) || self.windows.iter().any(is_fed)
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
