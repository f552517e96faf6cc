//! Conditions as kstatus and Gateway API have them: whether something holds, why, and since when.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use litejoin_crds::{Complaint, Reason};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Complaints that a message shows at most.
const COMPLAINTS_SHOWN_MAX: usize = 10;
/// The longest message, in characters.
const MESSAGE_LENGTH_MAX: usize = 4_000;

/// A condition without its time and generation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fact {
    pub(super) kind: &'static str,
    pub(super) holds: Holds,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Yes,
    /// It does not hold yet: time or another document will put it right.
    NotYet,
    /// It does not hold before a person does something.
    Never,
    /// The worker has not said so yet.
    Unknown,
}

impl Fact {
    pub(super) fn new(
        kind: &'static str,
        holds: Holds,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let message: String = message.into().chars().take(MESSAGE_LENGTH_MAX).collect();
        Self { kind, holds, reason: reason.into(), message }
    }

    pub(super) fn yes(kind: &'static str, reason: &str) -> Self {
        Self::new(kind, Holds::Yes, reason, "")
    }

    pub(super) fn not_yet(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(kind, Holds::NotYet, reason, message)
    }
}

/// `Ready` from its gates: the first that does not hold.
pub(super) fn ready(gates: &[Fact]) -> Fact {
    match gates.iter().find(|gate| gate.holds != Holds::Yes) {
        Some(gate) => Fact { kind: "Ready", ..gate.clone() },
        None => Fact::yes("Ready", "Ready"),
    }
}

/// `Ready`, and beside it the condition that kstatus wants while `Ready` does not hold.
pub(super) fn summary(ready: Fact) -> Vec<Fact> {
    let beside = match ready.holds {
        Holds::Yes => None,
        Holds::NotYet | Holds::Unknown => Some("Reconciling"),
        Holds::Never => Some("Stalled"),
    };
    let beside = beside.map(|kind| Fact { kind, holds: Holds::Yes, ..ready.clone() });
    std::iter::once(ready).chain(beside).collect()
}

/// The fact that a condition told of this generation, if it was that something does not hold.
pub(super) fn fact_before(before: &[Condition], kind: &'static str, generation: i64) -> Option<Fact> {
    let of_it = |condition: &&Condition| {
        condition.type_ == kind
            && condition.status == "False"
            && condition.observed_generation == Some(generation)
    };
    let condition = before.iter().find(of_it)?;
    let is_stalled = before
        .iter()
        .any(|other| other.type_ == "Stalled" && other.status == "True" && other.reason == condition.reason);
    let holds = if is_stalled { Holds::Never } else { Holds::NotYet };
    Some(Fact::new(kind, holds, &condition.reason, &condition.message))
}

/// Whether a reason for which something does not hold is a step on the way, and no fault that people are warned of.
pub(crate) fn is_step(reason: &str) -> bool {
    matches!(
        reason,
        "Applying"
            | "Cancelled"
            | "ConfigPending"
            | "Done"
            | "FirstCopy"
            | "NoPod"
            | "Pending"
            | "PipelineInvalid"
            | "Replacing"
            | "Resharding"
            | "Restoring"
            | "RollingOut"
            | "Starting"
            | "Stopping"
            | "WorkerSilent"
    )
}

/// The facts as conditions. A condition whose status is the same as before keeps its time.
pub(super) fn conditions(
    facts: &[Fact],
    before: &[Condition],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    facts
        .iter()
        .map(|fact| {
            let status = match fact.holds {
                Holds::Yes => "True",
                Holds::NotYet | Holds::Never => "False",
                Holds::Unknown => "Unknown",
            };
            let same = before.iter().find(|other| other.type_ == fact.kind && other.status == status);
            Condition {
                type_: fact.kind.to_owned(),
                status: status.to_owned(),
                reason: fact.reason.clone(),
                message: fact.message.clone(),
                observed_generation: Some(generation),
                last_transition_time: same
                    .map_or_else(|| Time(seconds(now)), |other| other.last_transition_time.clone()),
            }
        })
        .collect()
}

/// The time in whole seconds, as statuses carry it.
pub(super) fn seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).expect("it was a timestamp before")
}

/// Whether another document, or a Secret, will put this complaint right.
pub(super) fn is_reference(complaint: &Complaint) -> bool {
    complaint.reason == Reason::UnknownReference
}

/// The complaints as one message, with their fields.
pub(super) fn message(complaints: &[Complaint]) -> String {
    let lines =
        complaints.iter().take(COMPLAINTS_SHOWN_MAX).map(|complaint| match complaint.place.path.as_str() {
            "" => complaint.message.clone(),
            path => format!("{path}: {}", complaint.message),
        });
    let more = complaints.len().saturating_sub(COMPLAINTS_SHOWN_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    lines.chain(more).collect::<Vec<_>>().join("; ")
}

/// The status that was reported before; empty if it can't be read.
pub(super) fn read<T: DeserializeOwned + Default>(status: &Value) -> T {
    serde_json::from_value(status.clone()).unwrap_or_default()
}
