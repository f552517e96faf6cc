//! `litejoin validate`: all errors in manifests, or a summary of valid ones.

use std::process::ExitCode;

use litejoin_crds::plan::{Plan, SinkKind};

use super::arguments::Validate;
use super::{EXIT_INVALID, complain, say};
use crate::pipeline;

/// Prints the errors in manifests, or a summary.
pub(crate) fn run(arguments: &Validate) -> ExitCode {
    match pipeline::load(&arguments.files) {
        Ok((pipeline, warnings)) => {
            complain(&warnings);
            say(&format!("{}\n", summary(&pipeline.plan)));
            if let Some(note) = growth(&pipeline.plan) {
                say(&format!("{note}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(complaints) => {
            complain(&complaints);
            ExitCode::from(EXIT_INVALID)
        }
    }
}

/// Returns the line that names the topics whose rows nothing removes and nothing bounds, if there are any.
fn growth(plan: &Plan) -> Option<String> {
    let filled = plan.sources.iter().flat_map(|source| source.kind.topics());
    let mut topics: Vec<&str> = Vec::new();
    for topic in filled.filter(|topic| plan.retention.of(topic).is_none()) {
        if !topics.iter().any(|named| named.eq_ignore_ascii_case(topic)) {
            topics.push(topic);
        }
    }
    match topics[..] {
        _ if plan.storage.bytes_max.is_some() => None,
        [] => None,
        [topic] => Some(format!(
            "note: the topic {topic} keeps its rows for ever; give it a retention, or bound storage.maxBytes"
        )),
        _ => Some(format!(
            "note: the topics {} keep their rows for ever; give them a retention, or bound storage.maxBytes",
            topics.join(", ")
        )),
    }
}

/// Returns one line about a valid pipeline.
fn summary(plan: &Plan) -> String {
    let count = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let windows = match plan.windows.len() {
        0 => String::new(),
        windows => format!(", {}", count(windows, "window")),
    };
    let fine = format!(
        "pipeline {} is fine: {}, {}{windows}, {}",
        plan.name,
        count(plan.sources.len(), "source"),
        count(plan.joins.len(), "join"),
        count(plan.sinks.iter().filter(|sink| sink.kind != SinkKind::Topic).count(), "sink")
    );
    match &plan.replication {
        None => fine,
        // Litestream's first copy of a file doubles its size on the disk until compaction.
        Some(replication) => format!(
            "{fine}; replicated to {}: give the data directory 2.2 times the size of the data, 64 MiB for each of {} \
             files, and what comes in while the store is away",
            replication.replica_url,
            plan.storage.shard_count + 3
        ),
    }
}
