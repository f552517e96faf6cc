//! The status of a child: whether it is accepted, finds what it refers to, and runs.

use jiff::Timestamp;
use litejoin_crds::Reason;
use litejoin_crds::kind::{Kind, SINK_KINDS, SOURCE_KINDS};
use litejoin_crds::status::ChildStatus;

use super::condition::{
    Fact, Holds, conditions, fact_before, is_reference, is_step, message, read, ready, summary,
};
use super::findings::Findings;
use crate::controller::build::is_at_rest;
use crate::controller::object::{Object, PROGRAMMED};
use crate::controller::worker::WorkerReport;

/// The status of the child with this index among the observed ones.
pub(super) fn status(index: usize, child: &Object, findings: &Findings<'_>, now: Timestamp) -> ChildStatus {
    let Findings { observed, verdict, report, .. } = *findings;
    let before: ChildStatus = read(&child.status);
    let held = verdict.held_back_child(index);
    let complaints = held.map(|held| held.complaints.as_slice()).unwrap_or_default();
    let by_worker = match report {
        WorkerReport::Runs { left_out, .. } => {
            left_out.iter().find(|other| is_of(&other.kind, &other.name, child))
        }
        _ => None,
    };
    let at_rest = is_at_rest(&observed.spec());
    let was_programmed = child.is_programmed();
    // Only the worker can judge a query, and what it said of this one holds until it says something else.
    let is_judged = at_rest || was_programmed || !matches!(child.kind, Kind::Join | Kind::Window);
    let said = (!is_judged && !report.is_judgement()).then(|| earlier(&before, "Accepted", child)).flatten();
    let (mut references, others): (Vec<_>, Vec<_>) = complaints.iter().cloned().partition(is_reference);
    references.extend(verdict.lacks(index).iter().cloned());
    let accepted = match (others.first(), by_worker, said) {
        (Some(first), ..) => Fact::new("Accepted", Holds::Never, first.reason.as_str(), message(&others)),
        (None, Some(left_out), _) => {
            Fact::new("Accepted", Holds::Never, Reason::InvalidQuery.as_str(), &left_out.message)
        }
        (None, None, Some(said)) => said,
        (None, None, None) if is_judged || report.is_judgement() => Fact::yes("Accepted", "Accepted"),
        (None, None, None) => {
            Fact::new("Accepted", Holds::Unknown, "Pending", "waits for the worker to check the query")
        }
    };
    let resolved = match references.is_empty() {
        true => Fact::yes("ResolvedRefs", "ResolvedRefs"),
        false => Fact::not_yet("ResolvedRefs", "RefNotFound", message(&references)),
    };
    // Rest that somebody has asked for is an end, and nothing to wait for.
    let rest = if at_rest {
        Some(("Suspended", "the pipeline is at rest"))
    } else if observed.is_paused() && !was_programmed {
        Some(("Paused", "spec.reconciliationPaused of the Pipeline holds it back"))
    } else {
        None
    };
    let runs_on = held.map(|held| held.runs_on).or(by_worker.map(|left_out| left_out.runs_on));
    let programmed = match (runs_on, rest, report) {
        (Some(true), ..) => Fact::not_yet(PROGRAMMED, "EarlierVersion", "its version of before runs on"),
        (Some(false), ..) => Fact::not_yet(PROGRAMMED, "LeftOut", "the pipeline runs without it"),
        (None, ..) if accepted.holds == Holds::Never => earlier(&before, PROGRAMMED, child)
            .unwrap_or_else(|| Fact::not_yet(PROGRAMMED, "LeftOut", "the pipeline runs without it")),
        (None, Some((reason, message)), _) => Fact::not_yet(PROGRAMMED, reason, message),
        (None, None, WorkerReport::Runs { .. }) => Fact::yes(PROGRAMMED, "Programmed"),
        _ if was_programmed => Fact::yes(PROGRAMMED, "Programmed"),
        _ if verdict.config.is_err() => {
            let message = format!("waits for the Pipeline {} to be valid", observed.pipeline.name);
            Fact::not_yet(PROGRAMMED, "PipelineInvalid", message)
        }
        _ => Fact::not_yet(PROGRAMMED, "Pending", "waits for the worker to take it up"),
    };
    let config_hash = match (&verdict.config, programmed.holds) {
        (_, Holds::Yes) if was_programmed => before.config_hash.clone(),
        (Ok(config), Holds::Yes) => Some(config.hash.clone()),
        _ => None,
    };
    let facts = [accepted, resolved, programmed];
    let part = report.degraded().iter().find(|part| is_of(&part.kind, &part.name, child));
    let failing = part.map(|part| Fact::not_yet("Working", &part.reason, &part.message));
    let gates: Vec<Fact> =
        facts.iter().filter(|fact| fact.holds != Holds::Unknown).cloned().chain(failing).collect();
    let ready = match rest {
        Some((reason, message)) if facts[..2].iter().all(|fact| fact.holds == Holds::Yes) => {
            Fact::new("Ready", Holds::Yes, reason, message)
        }
        // A worker that is silent for a moment takes nothing back.
        _ => match ready(&gates) {
            ready if ready.holds == Holds::Yes && report.is_silence() => {
                earlier(&before, "Ready", child).filter(|fact| !is_step(&fact.reason)).unwrap_or(ready)
            }
            ready => ready,
        },
    };
    let mut all = summary(ready);
    all.extend(facts);
    ChildStatus {
        observed_generation: Some(child.generation),
        conditions: conditions(&all, &before.conditions, child.generation, now),
        kind: variant(child),
        config_hash,
    }
}

/// The status of a child whose Pipeline does not exist.
pub(crate) fn orphan(child: &Object, pipeline: &str, now: Timestamp) -> ChildStatus {
    let before: ChildStatus = read(&child.status);
    let missing =
        format!("there is no Pipeline {pipeline:?} in this namespace; create it, or delete this object");
    let resolved = Fact::not_yet("ResolvedRefs", "PipelineNotFound", &missing);
    let accepted = Fact::not_yet("Accepted", "PipelineNotFound", &missing);
    let programmed = Fact::not_yet(PROGRAMMED, "PipelineNotFound", &missing);
    let mut all = summary(ready(std::slice::from_ref(&accepted)));
    all.extend([accepted, resolved, programmed]);
    ChildStatus {
        observed_generation: Some(child.generation),
        conditions: conditions(&all, &before.conditions, child.generation, now),
        kind: variant(child),
        config_hash: None,
    }
}

/// What a condition said of the child as it is written now, if it did not hold.
fn earlier(before: &ChildStatus, kind: &'static str, child: &Object) -> Option<Fact> {
    fact_before(&before.conditions, kind, child.generation)
}

/// Whether the worker means this child by a kind and a name.
fn is_of(kind: &str, name: &str, child: &Object) -> bool {
    kind == child.kind.as_str() && name == child.name
}

/// The kind of a source, a sink or a window, such as `http` or `tumbling`.
fn variant(child: &Object) -> Option<String> {
    let written = |kinds: &[&str]| {
        let kind = kinds.iter().find(|kind| child.spec[**kind].is_object());
        kind.map(|kind| (*kind).to_owned())
    };
    match child.kind {
        Kind::Source => written(&SOURCE_KINDS),
        Kind::Sink => written(&SINK_KINDS),
        Kind::Window => child.spec["type"].as_str().map(str::to_owned),
        Kind::Join | Kind::Pipeline => None,
    }
}
