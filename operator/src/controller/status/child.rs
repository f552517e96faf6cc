//! The status of a child: whether it is accepted, finds what it refers to, and runs.

use jiff::Timestamp;
use litejoin_crds::kind::{Kind, SINK_KINDS, SOURCE_KINDS};
use litejoin_crds::status::ChildStatus;
use litejoin_crds::worker_status::LeftOut;
use litejoin_crds::{Complaint, Reason};

use super::condition::{
    Fact, Holds, conditions, fact_before, is_reference, is_step, message, read, ready, summary,
};
use super::findings::Findings;
use crate::controller::build::is_at_rest;
use crate::controller::object::{Object, PROGRAMMED};
use crate::controller::validate::Verdict;
use crate::controller::worker::WorkerReport;

/// The status of the child with this index among the observed ones.
pub(super) fn status(index: usize, child: &Object, findings: &Findings<'_>, now: Timestamp) -> ChildStatus {
    let Findings { observed, verdict, report, .. } = *findings;
    let view = View::of(index, child, findings);
    let accepted = view.accepted();
    let resolved = view.resolved(verdict.lacks(index));
    let programmed = view.programmed(&accepted, verdict, &observed.pipeline.name);
    let config_hash = match (&verdict.config, programmed.holds) {
        (_, Holds::Yes) if view.was_programmed => view.before.config_hash.clone(),
        (Ok(config), Holds::Yes) => Some(config.hash.clone()),
        _ => None,
    };
    let facts = [accepted, resolved, programmed];
    let part = report.degraded().iter().find(|part| is_of(&part.kind, &part.name, child));
    let failing = part.map(|part| Fact::not_yet("Working", &part.reason, &part.message));
    let mut all = summary(view.ready(&facts, failing));
    all.extend(facts);
    ChildStatus {
        observed_generation: Some(child.generation),
        conditions: conditions(&all, &view.before.conditions, child.generation, now),
        kind: variant(child),
        config_hash,
    }
}

/// All that the conditions of a child follow from.
struct View<'a> {
    child: &'a Object,
    report: &'a WorkerReport,
    before: ChildStatus,
    /// Complaints of the operator.
    complaints: &'a [Complaint],
    /// Complaints of the worker, which alone can judge a query.
    by_worker: Option<&'a str>,
    /// Whether its version of before runs on, if it is held back.
    runs_on: Option<bool>,
    was_programmed: bool,
    /// Rest that somebody has asked for: an end, and nothing to wait for.
    rest: Option<(&'static str, &'static str)>,
}

impl<'a> View<'a> {
    fn of(index: usize, child: &'a Object, findings: &Findings<'a>) -> Self {
        let Findings { observed, verdict, report, .. } = *findings;
        let held = verdict.held_back_child(index);
        // Where the operator holds a version back, the worker speaks of the one before.
        let by_worker = left_out_by_worker(child, report).filter(|_| held.is_none());
        let was_programmed = child.is_programmed();
        let rest = if is_at_rest(&observed.spec()) {
            Some(("Suspended", "the pipeline is at rest"))
        } else if observed.is_paused() && !was_programmed {
            Some(("Paused", "spec.reconciliationPaused of the Pipeline holds it back"))
        } else {
            None
        };
        Self {
            child,
            report,
            before: read(&child.status),
            complaints: held.map(|held| held.complaints.as_slice()).unwrap_or_default(),
            by_worker: by_worker.map(|left_out| left_out.message.as_str()),
            runs_on: runs_on(index, child, findings),
            was_programmed,
            rest,
        }
    }

    fn accepted(&self) -> Fact {
        const KIND: &str = "Accepted";
        let others: Vec<_> =
            self.complaints.iter().filter(|complaint| !is_reference(complaint)).cloned().collect();
        if let Some(first) = others.first() {
            return Fact::new(KIND, Holds::Never, first.reason.as_str(), message(&others));
        }
        if let Some(said) = self.by_worker {
            return Fact::new(KIND, Holds::Never, Reason::InvalidQuery.as_str(), said);
        }
        let has_query = matches!(self.child.kind, Kind::Join | Kind::Window);
        if !has_query || self.was_programmed || self.rest.is_some() || self.report.is_judgement() {
            return Fact::yes(KIND, "Accepted");
        }
        // What the worker has said of this query holds until it says something else.
        self.earlier(KIND).unwrap_or_else(|| {
            Fact::new(KIND, Holds::Unknown, "Pending", "waits for the worker to check the query")
        })
    }

    fn resolved(&self, lacks: &[Complaint]) -> Fact {
        let missing = self.complaints.iter().filter(|complaint| is_reference(complaint)).chain(lacks);
        let missing: Vec<_> = missing.cloned().collect();
        match missing.is_empty() {
            true => Fact::yes("ResolvedRefs", "ResolvedRefs"),
            false => Fact::not_yet("ResolvedRefs", "RefNotFound", message(&missing)),
        }
    }

    fn programmed(&self, accepted: &Fact, verdict: &Verdict, pipeline: &str) -> Fact {
        let left_out = || Fact::not_yet(PROGRAMMED, "LeftOut", "the pipeline runs without it");
        match (self.runs_on, self.rest, self.report) {
            (Some(true), ..) => Fact::not_yet(PROGRAMMED, "EarlierVersion", "its version of before runs on"),
            (Some(false), ..) => left_out(),
            (None, ..) if accepted.holds == Holds::Never => self.earlier(PROGRAMMED).unwrap_or_else(left_out),
            (None, Some((reason, message)), _) => Fact::not_yet(PROGRAMMED, reason, message),
            (None, None, WorkerReport::Runs { .. }) => Fact::yes(PROGRAMMED, "Programmed"),
            _ if self.was_programmed => Fact::yes(PROGRAMMED, "Programmed"),
            _ if verdict.config.is_err() => {
                let message = format!("waits for the Pipeline {pipeline} to be valid");
                Fact::not_yet(PROGRAMMED, "PipelineInvalid", message)
            }
            _ => Fact::not_yet(PROGRAMMED, "Pending", "waits for the worker to take it up"),
        }
    }

    /// The summary of the facts; `failing` is that it runs and can't do its work.
    fn ready(&self, facts: &[Fact; 3], failing: Option<Fact>) -> Fact {
        if let Some((reason, message)) = self.rest
            && facts[..2].iter().all(|fact| fact.holds == Holds::Yes)
        {
            return Fact::new("Ready", Holds::Yes, reason, message);
        }
        let known = facts.iter().filter(|fact| fact.holds != Holds::Unknown).cloned();
        let ready = ready(&known.chain(failing).collect::<Vec<_>>());
        // A worker that is silent for a moment takes nothing back.
        let earlier = || self.earlier("Ready").filter(|fact| !is_step(&fact.reason));
        match ready.holds == Holds::Yes && self.report.is_silence() {
            true => earlier().unwrap_or(ready),
            false => ready,
        }
    }

    /// What a condition said of the child as it is written now, if it did not hold.
    fn earlier(&self, kind: &'static str) -> Option<Fact> {
        fact_before(&self.before.conditions, kind, self.child.generation)
    }
}

/// Whether a version of before of the child runs on, if the child is held back.
pub(super) fn runs_on(index: usize, child: &Object, findings: &Findings<'_>) -> Option<bool> {
    let held = findings.verdict.held_back_child(index).map(|held| held.runs_on);
    let by_worker = left_out_by_worker(child, findings.report).map(|left_out| left_out.runs_on);
    match (held, by_worker) {
        (Some(held), Some(by_worker)) => Some(held && by_worker),
        (held, by_worker) => held.or(by_worker),
    }
}

fn left_out_by_worker<'r>(child: &Object, report: &'r WorkerReport) -> Option<&'r LeftOut> {
    let WorkerReport::Runs { left_out, .. } = report else { return None };
    left_out.iter().find(|other| is_of(&other.kind, &other.name, child))
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
