//! The cost of joins: how each is kept current, by which look-ups, with which indexes, and with which warnings.
//! Manifests alone suffice for the plan; a data directory adds the size of indexes, a running worker adds
//! measurements.

mod disk;
mod lookups;
mod text;
mod windows;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use serde::Serialize;
use serde_json::Value;

use self::disk::{Disk, DiskError};
use self::lookups::Probes;
use self::windows::ExplainedTime;
use super::arguments::{Explain, OutputFormat};
use super::client::{AskError, Peer};
use super::{EXIT_INVALID, complain, say};
use crate::join::plan::{Class, Keyed, Link, TimeBound};
use crate::join::{self, CheckedJoin};
use crate::pipeline;
use crate::status::join::ClassName;
use crate::storage::shard::Index;
use crate::storage::topics::fed_by;

/// Prints the cost of each join and its reasons.
pub(crate) fn run(arguments: &Explain) -> ExitCode {
    let (pipeline, complaints) = match pipeline::load(&arguments.files) {
        Ok(loaded) => loaded,
        Err(complaints) => {
            complain(&complaints);
            return ExitCode::from(EXIT_INVALID);
        }
    };
    complain(&complaints);
    let chosen = match join::named(&pipeline.joins, &arguments.joins) {
        Ok(chosen) => chosen,
        Err(wrong) => {
            complain(&format!("error: {wrong}\n"));
            return ExitCode::from(EXIT_INVALID);
        }
    };
    let known = match know(&pipeline.plan, arguments.data_dir.as_deref(), arguments.admin.as_deref()) {
        Ok(known) => known,
        Err(error) => {
            complain(&format!("error: {}\n", chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    let explanation = explain(&pipeline.plan, &chosen, &known, complaints.lines().count());
    say(&match arguments.output {
        OutputFormat::Text => explanation.text(std::io::stdout().is_terminal()),
        OutputFormat::Json => explanation.json(),
    });
    ExitCode::from(u8::from(arguments.deny_warnings && explanation.warnings() > 0))
}

/// Look-ups for one change above which a join gets a warning.
const PROBES_MANY: u64 = 100;

/// The report on a pipeline.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pipeline: String,
    shards: usize,
    joins: Vec<Explained>,
    /// The number of warnings, including those about the manifests.
    warnings: usize,
}

/// The report on one join.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    name: String,
    class: ClassName,
    /// Why the join is evaluated in full.
    reason: Option<String>,
    /// Topics that the join reads, also through other joins.
    topics: Vec<String>,
    /// Other joins that the join reads.
    joins: Vec<String>,
    sinks: Vec<String>,
    /// Each use of a topic; parents come before the uses that are gathered by them.
    occurrences: Vec<Gathered>,
    indexes: Vec<IndexState>,
    /// By topic, the look-ups for a change of one of its rows.
    probes: BTreeMap<String, Probes>,
    /// Comparisons with the clock, each of which is followed row by row.
    in_time: Vec<InTime>,
    /// For a window, its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<ExplainedTime>,
    /// How often the query is run again, in seconds, because no row says when its results change.
    refresh_seconds: Option<f64>,
    measured: Option<Measured>,
    warnings: Vec<String>,
}

/// A comparison of rows with the clock.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InTime {
    comparison: String,
    topic: String,
    /// The value by which an index finds the rows that the clock passes.
    by: String,
}

/// One use of a topic in a query, and how its rows are found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Gathered {
    /// From 1.
    number: usize,
    topic: String,
    by: String,
    from: Vec<From>,
    /// The number of shards that one look-up reads.
    shards: usize,
}

/// The source of the values by which rows are found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct From {
    /// `None` for the result keys.
    occurrence: Option<usize>,
    value: Option<String>,
}

/// An index that a join needs in every shard.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexState {
    topic: String,
    expression: String,
    name: String,
    /// `None` if no data directory is known.
    #[serde(flatten)]
    built: Option<Built>,
}

/// The entries of one index in the shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Built {
    /// The number of shards that have the index.
    built_in: usize,
    entries: u64,
    bytes: u64,
}

/// The counters of a running worker since it started.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Measured {
    evaluations: u64,
    evaluations_full: u64,
    evaluation_seconds: f64,
    probes: u64,
    steps: u64,
    /// Changes of the topics that the join reads.
    changes: u64,
    last_error: Option<String>,
}

/// Sources of an explanation beside the manifests.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Indexes in the shards of a data directory, by name.
    disk: Option<Disk>,
    /// `/status` of a running worker.
    status: Option<Value>,
}

/// Why a data directory or a worker could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KnownError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// Reads a data directory, and the status of a worker: of the one at the URL, or of the one that runs on the
/// directory.
pub(crate) fn know(plan: &Plan, data_dir: Option<&Path>, admin: Option<&str>) -> Result<Known, KnownError> {
    let disk = data_dir.map(|data_dir| disk::look(data_dir, plan)).transpose()?;
    let status = match (admin, data_dir) {
        (Some(url), _) => Some(Peer::admin(url)?.status()?),
        (None, Some(data_dir)) => match Peer::of(data_dir).status() {
            Err(AskError::Nobody { .. }) => None,
            answer => Some(answer?),
        },
        (None, None) => None,
    };
    Ok(Known { disk, status })
}

/// Explains the joins `chosen` of a pipeline. `complaints` is the number of warnings about its manifests.
pub(crate) fn explain(plan: &Plan, chosen: &[&CheckedJoin], known: &Known, complaints: usize) -> Explanation {
    let joins: Vec<Explained> = chosen.iter().map(|join| explained(plan, join, known)).collect();
    let warnings = complaints + joins.iter().map(|join| join.warnings.len()).sum::<usize>();
    Explanation { pipeline: plan.name.clone(), shards: plan.storage.shard_count, joins, warnings }
}

impl Explanation {
    /// Returns the number of warnings.
    pub(crate) fn warnings(&self) -> usize {
        self.warnings
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain fields are always JSON") + "\n"
    }

    /// Returns the text for people, in colours if `colours`.
    pub(crate) fn text(&self, colours: bool) -> String {
        text::render(self, colours)
    }
}

fn explained(plan: &Plan, join: &CheckedJoin, known: &Known) -> Explained {
    let shards = plan.storage.shard_count;
    let keyed = match &join.class {
        Class::Keyed(keyed) => Some(keyed),
        Class::Accumulated(accumulated) => Some(&accumulated.rows),
        Class::Full(_) => None,
    };
    let sinks = plan.outputs().find(|written| written.name == join.name);
    let planned = join.planned_class();
    let mut explained = Explained {
        name: join.name.clone(),
        class: planned.name,
        reason: planned.reason,
        topics: join.topics.iter().map(|topic| fed_by(topic).unwrap_or(topic).to_owned()).collect(),
        joins: join.reads.iter().cloned().collect(),
        sinks: sinks.map(|written| written.sinks.to_vec()).unwrap_or_default(),
        occurrences: keyed.map(|keyed| gathered(keyed, shards)).unwrap_or_default(),
        indexes: indexes(join, known.disk.as_ref()),
        probes: keyed.map(|keyed| lookups::estimate(keyed, shards)).unwrap_or_default(),
        window: join.window.as_ref().map(|window| {
            let reported = known.status.as_ref().and_then(|status| status["joins"].get(&join.name));
            ExplainedTime::new(window, reported)
        }),
        in_time: join.clock.bounds().iter().map(in_time).collect(),
        refresh_seconds: join.clock.is_anywhere().then_some(join.refresh.as_secs_f64()),
        measured: known.status.as_ref().and_then(|status| measured(status, join)),
        warnings: Vec::new(),
    };
    explained.warnings = warnings(&explained, shards);
    explained
}

fn in_time(bound: &TimeBound) -> InTime {
    InTime { comparison: bound.written.clone(), topic: bound.topic.clone(), by: bound.by.sql() }
}

fn gathered(keyed: &Keyed, shards: usize) -> Vec<Gathered> {
    let from = |link: &Link| match link {
        Link::Keys => From { occurrence: None, value: None },
        Link::Parent { index, of, .. } => From { occurrence: Some(index + 1), value: Some(of.sql()) },
    };
    keyed
        .occurrences
        .iter()
        .enumerate()
        .map(|(place, occurrence)| Gathered {
            number: place + 1,
            topic: occurrence.topic.clone(),
            by: occurrence.by.sql(),
            from: occurrence.from.iter().map(from).collect(),
            shards: if occurrence.by.is_key() { 1 } else { shards },
        })
        .collect()
}

fn indexes(join: &CheckedJoin, disk: Option<&Disk>) -> Vec<IndexState> {
    let needs = join::needs(std::slice::from_ref(join));
    let state = |index: Index| {
        let name = index.name();
        let built = disk.map(|disk| disk.indexes.get(&name).copied().unwrap_or_default());
        IndexState { topic: index.topic, expression: index.expression, name, built }
    };
    needs.indexes.into_iter().map(state).collect()
}

fn measured(status: &Value, join: &CheckedJoin) -> Option<Measured> {
    let reported = status["joins"].get(&join.name)?;
    let count = |name: &str| reported[name].as_u64().unwrap_or_default();
    let changed = |topic: &Value| -> u64 {
        let ops = ["created", "updated", "deleted", "expired"];
        ops.iter().filter_map(|op| topic[op].as_u64()).sum()
    };
    let topics = status["topics"].as_object().into_iter().flatten();
    let read = topics.filter(|(name, _)| join.topics.iter().any(|topic| topic.eq_ignore_ascii_case(name)));
    Some(Measured {
        evaluations: count("evaluations"),
        evaluations_full: count("evaluationsFull"),
        evaluation_seconds: reported["evaluationSeconds"].as_f64().unwrap_or_default(),
        probes: count("probes"),
        steps: count("steps"),
        changes: read.map(|(_, topic)| changed(topic)).sum(),
        last_error: reported["lastError"].as_str().map(str::to_owned),
    })
}

fn warnings(join: &Explained, shards: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(reason) = &join.reason {
        let topics = join.topics.join(", ");
        warnings.push(format!("each change of {topics} costs an evaluation over all rows: {reason}"));
    }
    for (topic, probes) in &join.probes {
        if probes.total() >= PROBES_MANY {
            warnings.push(format!(
                "a change of {topic} costs {} probes; a look-up by another value than the key goes to all {shards} \
                 shards, so fewer shards or a chain of fewer topics make it cheaper",
                probes.total()
            ));
        }
    }
    if let Some(measured) = &join.measured {
        if let Some(error) = &measured.last_error {
            warnings.push(format!("it fails, and its results stay as they were: {error}"));
        }
        let by_key = measured.evaluations.saturating_sub(measured.evaluations_full);
        if join.reason.is_none() && measured.evaluations_full > 2 && measured.evaluations_full > by_key {
            warnings.push(format!(
                "{} of {} evaluations were in full, since a change concerned more results than are evaluated by key; \
                 smaller groups of rows make it cheaper",
                measured.evaluations_full, measured.evaluations
            ));
        }
    }
    warnings
}
