//! The status of a child: whether it is accepted, finds what it refers to, and runs.

use jiff::Timestamp;
use litejoin_crds::Reason;
use litejoin_crds::kind::{Kind, SINK_KINDS, SOURCE_KINDS};
use litejoin_crds::status::ChildStatus;

use super::condition::{Fact, Holds, conditions, is_reference, message, read, ready, summary};
use super::findings::Findings;
use crate::controller::build::is_at_rest;
use crate::controller::object::{Object, PROGRAMMED};
use crate::controller::worker::WorkerReport;

/// The status of the child with this index among the observed ones.
pub(super) fn status(index: usize, child: &Object, findings: &Findings<'_>, now: Timestamp) -> ChildStatus {
    let Findings { observed, verdict, report, .. } = *findings;
    let before: ChildStatus = read(&child.status);
    let complaints = verdict.refused.get(&index).map(Vec::as_slice).unwrap_or_default();
    let by_worker = match report {
        WorkerReport::Runs { left_out, .. } => {
            left_out.iter().find(|other| is_of(&other.kind, &other.name, child))
        }
        _ => None,
    };
    let (mut references, others): (Vec<_>, Vec<_>) = complaints.iter().cloned().partition(is_reference);
    let lacks = verdict.lacking.get(&index).map(Vec::as_slice).unwrap_or_default();
    references.extend(lacks.iter().cloned());
    let accepted = match (others.first(), by_worker) {
        (Some(first), _) => Fact::new("Accepted", Holds::Never, first.reason.as_str(), message(&others)),
        (None, Some(left_out)) => {
            Fact::new("Accepted", Holds::Never, Reason::InvalidQuery.as_str(), &left_out.message)
        }
        (None, None) => Fact::yes("Accepted", "Accepted"),
    };
    let resolved = match references.is_empty() {
        true => Fact::yes("ResolvedRefs", "ResolvedRefs"),
        false => Fact::not_yet("ResolvedRefs", "RefNotFound", message(&references)),
    };
    let was_programmed = child.is_programmed();
    // Rest that somebody has asked for is an end, and nothing to wait for.
    let rest = if is_at_rest(&observed.spec()) {
        Some(("Suspended", "the pipeline is at rest"))
    } else if observed.is_paused() && !was_programmed {
        Some(("Paused", "spec.reconciliationPaused of the Pipeline holds it back"))
    } else {
        None
    };
    let programmed = match (rest, report) {
        _ if accepted.holds != Holds::Yes || !complaints.is_empty() => {
            Fact::not_yet(PROGRAMMED, "LeftOut", "the pipeline runs without it")
        }
        (Some((reason, message)), _) => Fact::not_yet(PROGRAMMED, reason, message),
        (None, WorkerReport::Runs { .. }) => Fact::yes(PROGRAMMED, "Programmed"),
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
    let gates: Vec<Fact> = facts.iter().cloned().chain(failing).collect();
    let ready = match rest {
        Some((reason, message)) if facts[..2].iter().all(|fact| fact.holds == Holds::Yes) => {
            Fact::new("Ready", Holds::Yes, reason, message)
        }
        _ => ready(&gates),
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
