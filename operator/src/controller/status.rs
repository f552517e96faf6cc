//! What is reported, as a value: conditions as kstatus and Gateway API have them. Pure: what was reported before and
//! the time are arguments, and where nothing turned nothing is new.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSetStatus;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt;
use litejoin_crds::kind::Kind;
use litejoin_crds::status::{ChildStatus, LayoutStatus, PipelineStatus, ReshardStatus};
use litejoin_crds::{Complaint, Reason};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::replication::Drills;
use super::apply::is_written;
use super::build::{CONFIG_BYTES_MAX, Desired, is_at_rest};
use super::names;
use super::node_loss::{self, Answer};
use super::object::{Object, PROGRAMMED, is_ours};
use super::observe::Observed;
use super::replica::place;
use super::slot::Slot;
use super::validate::Verdict;
use super::worker::{Refused, Told};

mod pod;
mod replication;

/// Complaints that a message tells at most.
const COMPLAINTS_TOLD_MAX: usize = 10;
/// The longest message, in characters.
const MESSAGE_LENGTH_MAX: usize = 4_000;

/// By which template a StatefulSet has made a pod.
const CONTROLLER_REVISION_LABEL: &str = "controller-revision-hash";

/// What is reported of a pipeline and its children.
pub(crate) struct Statuses {
    pub(crate) pipeline: PipelineStatus,
    /// In the order of the observed children.
    pub(crate) children: Vec<ChildStatus>,
}

/// What holds or not, without when.
#[derive(Debug, Clone, PartialEq)]
struct Fact {
    kind: &'static str,
    holds: Holds,
    reason: String,
    message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    /// Not yet: time or another document will put it right.
    NotYet,
    /// Not before somebody does something.
    Never,
    /// Nobody has told.
    Unknown,
}

impl Fact {
    fn new(kind: &'static str, holds: Holds, reason: impl Into<String>, message: impl Into<String>) -> Self {
        let message: String = message.into().chars().take(MESSAGE_LENGTH_MAX).collect();
        Self { kind, holds, reason: reason.into(), message }
    }

    fn yes(kind: &'static str, reason: &str) -> Self {
        Self::new(kind, Holds::Yes, reason, "")
    }

    fn not_yet(kind: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self::new(kind, Holds::NotYet, reason, message)
    }
}

/// Says what is to be reported.
pub(crate) fn statuses(
    observed: &Observed,
    verdict: &Verdict,
    desired: Option<&Desired>,
    told: &Told,
    now: Timestamp,
) -> Statuses {
    let children = observed.children.iter().enumerate();
    Statuses {
        pipeline: pipeline(observed, verdict, desired, told, now),
        children: children
            .map(|(index, child)| self::child(index, child, observed, verdict, told, now))
            .collect(),
    }
}

fn pipeline(
    observed: &Observed,
    verdict: &Verdict,
    desired: Option<&Desired>,
    told: &Told,
    now: Timestamp,
) -> PipelineStatus {
    let before: PipelineStatus = read(&observed.pipeline.status);
    let at_rest = is_at_rest(&observed.spec());
    let mut facts = vec![
        config_valid(verdict, desired, told),
        storage_ready(observed.claim.as_ref(), observed.spec().storage.ephemeral),
        node_lost(observed).unwrap_or_else(|| pod::worker_ready(observed.pod.as_ref(), at_rest)),
    ];
    let mut gates: Vec<Fact> = Vec::new();
    gates.extend(names_taken(observed, desired));
    gates.extend(unwritten(observed));
    gates.push(facts[0].clone());
    if !at_rest {
        gates.extend([facts[1].clone(), facts[2].clone()]);
        gates.push(acknowledged(told));
    }
    gates.extend(desired.and_then(|desired| unsettled(observed, desired, at_rest)));
    let mut ready = ready(&gates);
    if at_rest && ready.holds == Holds::Yes {
        ready =
            Fact::new("Ready", Holds::Yes, "Suspended", "at rest as spec.suspend or spec.replicas asks for");
    }
    let drills = Drills::of(observed.built.get(&Slot::CronJob));
    facts.extend(replication::healthy(&observed.spec(), told, &drills));
    facts.extend(paused(observed));
    facts.extend(degraded(observed, verdict, told));
    facts.extend(verdict.reshard.map(|(from, to)| {
        let message = format!(
            "{from} shards go on; moving the data to {to} is consented to, and this version can't do it yet"
        );
        Fact::not_yet("Resharding", "Wanted", message)
    }));
    let mut all = summary(ready);
    all.extend(facts);

    let config = verdict.config.as_ref().ok();
    let runs = matches!(told, Told::Runs { .. });
    let layout = || {
        let shard_count = u32::try_from(config?.plan.storage.shard_count).ok()?;
        runs.then_some(LayoutStatus { shard_count, layout_id: None, manifest_checksum: None })
    };
    let generation = observed.pipeline.generation;
    PipelineStatus {
        observed_generation: Some(generation),
        conditions: conditions(&all, &before.conditions, generation, now),
        layout: before.layout.clone().or_else(layout),
        replication: replication::status(told, place(observed), &drills, before.replication.clone()),
        reshard: reshard(verdict, before.reshard.clone(), now),
        config_hash: config.filter(|_| runs).map(|config| config.hash.clone()).or(before.config_hash.clone()),
        output_version: desired
            .filter(|_| !observed.is_paused())
            .map(|_| env!("CARGO_PKG_VERSION").to_owned())
            .or(before.output_version.clone()),
        ..before
    }
}

fn reshard(verdict: &Verdict, before: Option<ReshardStatus>, now: Timestamp) -> Option<ReshardStatus> {
    let (from, to) = verdict.reshard?;
    let (from_shard_count, to_shard_count) = (u32::try_from(from).ok()?, u32::try_from(to).ok()?);
    let same = |before: &ReshardStatus| {
        (before.from_shard_count, before.to_shard_count) == (from_shard_count, to_shard_count)
    };
    before.filter(same).or_else(|| {
        Some(ReshardStatus {
            phase: "Pending".to_owned(),
            from_shard_count,
            to_shard_count,
            job: None,
            progress: None,
            started_at: Some(Time(seconds(now))),
            message: None,
        })
    })
}

fn config_valid(verdict: &Verdict, desired: Option<&Desired>, told: &Told) -> Fact {
    if let Err(complaints) = &verdict.config {
        // What time won't put right counts first.
        let gravest = complaints.iter().find(|complaint| !is_reference(complaint));
        let reason = gravest.or(complaints.first()).map_or("Invalid", |complaint| complaint.reason.as_str());
        let holds = if gravest.is_some() { Holds::Never } else { Holds::NotYet };
        return Fact::new("ConfigValid", holds, reason, tell(complaints));
    }
    if let Some(bytes) = desired.and_then(|desired| desired.config_bytes_excess) {
        let message = format!(
            "got {bytes} bytes of documents, allowed at most {CONFIG_BYTES_MAX}; the config before stays in force: make a second Pipeline of some"
        );
        return Fact::new("ConfigValid", Holds::Never, "TooLarge", message);
    }
    if let Told::Behind { refusal: Some(refusal), .. } = told {
        return Fact::new("ConfigValid", Holds::Never, "RefusedByWorker", refusal);
    }
    Fact::yes("ConfigValid", "Valid")
}

fn storage_ready(claim: Option<&PersistentVolumeClaim>, ephemeral: bool) -> Fact {
    const KIND: &str = "StorageReady";
    if ephemeral {
        return Fact::yes(KIND, "Ephemeral");
    }
    let Some(claim) = claim else { return Fact::not_yet(KIND, "Pending", "waits for the volume claim") };
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let status = claim.status.as_ref();
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Bound") => {
            let asked = claim
                .spec
                .as_ref()
                .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
            let has = status.and_then(|status| status.capacity.as_ref()?.get("storage"));
            match (asked, has) {
                (Some(asked), Some(has)) if bytes(&asked.0) > bytes(&has.0) => {
                    let message = format!("the volume of {name} grows from {} to {}", has.0, asked.0);
                    Fact::new(KIND, Holds::Yes, "Resizing", message)
                }
                _ => Fact::yes(KIND, "Bound"),
            }
        }
        Some("Lost") => {
            let message =
                format!("the volume of claim {name} is gone; delete the claim to start with an empty one");
            Fact::new(KIND, Holds::Never, "Lost", message)
        }
        _ => {
            let message = format!(
                "the claim {name} has no volume yet; kubectl describe pvc {name} says why, and a driver that can't mount ReadWriteOncePod needs storage.accessMode: ReadWriteOnce in a new Pipeline"
            );
            Fact::not_yet(KIND, "Pending", message)
        }
    }
}

fn bytes(quantity: &str) -> u64 {
    litejoin_crds::quantity::parse(quantity).unwrap_or_default()
}

/// Whether the worker is on a node that is gone, and what is done about it.
fn node_lost(observed: &Observed) -> Option<Fact> {
    Some(match node_loss::answer(observed)? {
        Answer::Tell(message) => Fact::new("WorkerReady", Holds::Never, "NodeLost", message),
        Answer::Replace(message) => Fact::not_yet("WorkerReady", "NodeReplaced", message),
    })
}

/// Whether the worker runs what it is to run.
fn acknowledged(told: &Told) -> Fact {
    match told {
        Told::Runs { .. } => Fact::yes("Acknowledged", "Running"),
        Told::Silent { why: Some(why) } => Fact::not_yet("Acknowledged", "WorkerSilent", why),
        Told::Absent | Told::Silent { why: None } => {
            Fact::not_yet("Acknowledged", "WorkerSilent", "waits for the worker to say what it runs")
        }
        Told::Behind { .. } => {
            Fact::not_yet("Acknowledged", "ConfigPending", "waits for the worker to take up the config")
        }
    }
}

/// What keeps the pod from being just the one that the Pipeline asks for now, whatever the one of before says.
fn unsettled(observed: &Observed, desired: &Desired, at_rest: bool) -> Option<Fact> {
    let set = observed.built.get(&Slot::StatefulSet);
    if !is_written(observed, desired, Slot::StatefulSet) {
        return Some(match observed.is_paused() {
            true => {
                Fact::not_yet("Settled", "Paused", "spec.reconciliationPaused holds back what was changed")
            }
            false => {
                Fact::not_yet("Settled", "Applying", "waits for the StatefulSet to have what was changed")
            }
        });
    }
    let pod = observed.pod.as_ref();
    let name = names::pod(&observed.pipeline.name);
    if at_rest {
        return pod.map(|_| Fact::not_yet("Settled", "Stopping", format!("the pod {name} is being stopped")));
    }
    let set = set?;
    let status: StatefulSetStatus = read(&set.data["status"]);
    let revision = pod.and_then(|pod| pod.labels().get(CONTROLLER_REVISION_LABEL));
    let is_seen = status.observed_generation >= set.metadata.generation;
    (!is_seen || revision != status.update_revision.as_ref()).then(|| {
        Fact::not_yet(
            "Settled",
            "RollingOut",
            format!("the pod {name} is replaced by one of what was changed"),
        )
    })
}

/// Objects in our way that are not ours. One of a name that we have no use for is in nobody's way.
fn names_taken(observed: &Observed, desired: Option<&Desired>) -> Option<Fact> {
    let desired = desired?;
    let in_the_way = |(slot, live): &(&Slot, &kube::api::DynamicObject)| {
        let wanted = desired.objects.contains_key(slot) || desired.kept.contains(slot);
        wanted && !is_ours(live, &observed.pipeline.uid)
    };
    let (_, object) = observed.built.iter().find(in_the_way)?;
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let owners = object.metadata.owner_references.as_deref().unwrap_or_default();
    let earlier = owners.iter().any(|owner| owner.kind == "Pipeline" && owner.name == observed.pipeline.name);
    Some(match earlier {
        true => {
            let message = format!("waits for the {kind} {name} of a deleted Pipeline of this name to go");
            Fact::not_yet("Free", "Replacing", message)
        }
        false => {
            let message = format!(
                "there is a {kind} {name} that is not this Pipeline's; delete it, or make a Pipeline of another name"
            );
            Fact::new("Free", Holds::Never, "NameTaken", message)
        }
    })
}

/// What the cluster does not let us write.
fn unwritten(observed: &Observed) -> Option<Fact> {
    let answer = observed.unwritten.as_deref()?;
    Some(Fact::not_yet("Written", "ApplyFailed", format!("{answer}; it is tried again within a minute")))
}

fn paused(observed: &Observed) -> Option<Fact> {
    let message = "spec.reconciliationPaused: nothing is changed until it is false again";
    observed.is_paused().then(|| Fact::new("Paused", Holds::Yes, "Paused", message))
}

fn degraded(observed: &Observed, verdict: &Verdict, told: &Told) -> Option<Fact> {
    let named = |indices: &mut dyn Iterator<Item = &usize>| -> Vec<String> {
        let children = indices.map(|index| &observed.children[*index]);
        children.map(|child| format!("{} {}", child.kind.as_str(), child.name)).collect()
    };
    let mut left_out = named(&mut verdict.refused.keys());
    if let Told::Runs { refused, .. } = told {
        left_out.extend(refused.iter().map(|refused| format!("{} {}", refused.kind, refused.name)));
    }
    let spec = observed.spec();
    if left_out.is_empty() && !verdict.lacking.is_empty() {
        let lacking = named(&mut verdict.lacking.keys());
        let shown: Vec<&str> = lacking.iter().map(String::as_str).collect();
        let message = format!(
            "what {} needs is gone, and its pod can't start anew as it is; their status says what it is",
            litejoin_crds::complaint::list(&shown)
        );
        return Some(Fact::new("Degraded", Holds::Yes, "RefNotFound", message));
    }
    if left_out.is_empty() && spec.pod_monitor.enabled && !observed.pod_monitors_served {
        let message = "spec.podMonitor: this cluster knows no PodMonitor; install the Prometheus operator's definitions, or write enabled: false";
        return Some(Fact::new("Degraded", Holds::Yes, "NoPodMonitors", message));
    }
    let shown: Vec<&str> = left_out.iter().map(String::as_str).collect();
    let message = format!("runs without {}; their status says why", litejoin_crds::complaint::list(&shown));
    (!left_out.is_empty()).then(|| Fact::new("Degraded", Holds::Yes, "LeftOut", message))
}

fn child(
    index: usize,
    child: &Object,
    observed: &Observed,
    verdict: &Verdict,
    told: &Told,
    now: Timestamp,
) -> ChildStatus {
    let before: ChildStatus = read(&child.status);
    let complaints = verdict.refused.get(&index).map(Vec::as_slice).unwrap_or_default();
    let by_worker = match told {
        Told::Runs { refused, .. } => refused.iter().find(|refused| is_about(refused, child)),
        _ => None,
    };
    let (mut references, others): (Vec<_>, Vec<_>) = complaints.iter().cloned().partition(is_reference);
    let lacks = verdict.lacking.get(&index).map(Vec::as_slice).unwrap_or_default();
    references.extend(lacks.iter().cloned());
    let accepted = match (others.first(), by_worker) {
        (Some(first), _) => Fact::new("Accepted", Holds::Never, first.reason.as_str(), tell(&others)),
        (None, Some(refused)) => {
            Fact::new("Accepted", Holds::Never, Reason::InvalidQuery.as_str(), &refused.message)
        }
        (None, None) => Fact::yes("Accepted", "Accepted"),
    };
    let resolved = match references.is_empty() {
        true => Fact::yes("ResolvedRefs", "ResolvedRefs"),
        false => Fact::not_yet("ResolvedRefs", "RefNotFound", tell(&references)),
    };
    let was_programmed = child.is_programmed();
    let at_rest = is_at_rest(&observed.spec());
    let programmed = match told {
        _ if accepted.holds != Holds::Yes || !complaints.is_empty() => {
            Fact::not_yet(PROGRAMMED, "LeftOut", "the pipeline runs without it")
        }
        _ if at_rest => Fact::not_yet(PROGRAMMED, "Suspended", "the pipeline is at rest"),
        Told::Runs { .. } => Fact::yes(PROGRAMMED, "Programmed"),
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
    let gates = [accepted.clone(), resolved.clone(), programmed.clone()];
    let mut all = summary(ready(&gates));
    all.extend(gates);
    ChildStatus {
        observed_generation: Some(child.generation),
        conditions: conditions(&all, &before.conditions, child.generation, now),
        kind: variant(child),
        config_hash,
    }
}

/// The status of a child whose Pipeline is not there.
pub(crate) fn orphan(child: &Object, pipeline: &str, now: Timestamp) -> ChildStatus {
    let before: ChildStatus = read(&child.status);
    let message =
        format!("there is no Pipeline {pipeline:?} in this namespace; create it, or delete this object");
    let resolved = Fact::not_yet("ResolvedRefs", "PipelineNotFound", &message);
    let accepted = Fact::not_yet("Accepted", "PipelineNotFound", &message);
    let programmed = Fact::not_yet(PROGRAMMED, "PipelineNotFound", &message);
    let mut all = summary(ready(std::slice::from_ref(&accepted)));
    all.extend([accepted, resolved, programmed]);
    ChildStatus {
        observed_generation: Some(child.generation),
        conditions: conditions(&all, &before.conditions, child.generation, now),
        kind: variant(child),
        config_hash: None,
    }
}

fn is_about(refused: &Refused, child: &Object) -> bool {
    refused.kind == child.kind.as_str() && refused.name == child.name
}

/// Which of its kinds is written, such as `http` or `tumbling`.
fn variant(child: &Object) -> Option<String> {
    let written = |kinds: &[&str]| {
        let kind = kinds.iter().find(|kind| child.spec[**kind].is_object());
        kind.map(|kind| (*kind).to_owned())
    };
    match child.kind {
        Kind::Source => written(&litejoin_crds::source::KINDS),
        Kind::Sink => written(&litejoin_crds::sink::KINDS),
        Kind::Window => child.spec["type"].as_str().map(str::to_owned),
        Kind::Join | Kind::Pipeline => None,
    }
}

/// The first of the gates that is not open, as the summary.
fn ready(gates: &[Fact]) -> Fact {
    match gates.iter().find(|gate| gate.holds != Holds::Yes) {
        Some(gate) => Fact { kind: "Ready", ..gate.clone() },
        None => Fact::yes("Ready", "Ready"),
    }
}

/// `Ready`, and what kstatus wants beside it while it isn't.
fn summary(ready: Fact) -> Vec<Fact> {
    let beside = match ready.holds {
        Holds::Yes => None,
        Holds::NotYet | Holds::Unknown => Some("Reconciling"),
        Holds::Never => Some("Stalled"),
    };
    let beside = beside.map(|kind| Fact { kind, holds: Holds::Yes, ..ready.clone() });
    std::iter::once(ready).chain(beside).collect()
}

/// The facts as conditions; what has not turned keeps its time.
fn conditions(facts: &[Fact], before: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
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

/// Statuses carry whole seconds.
fn seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).expect("it was a timestamp before")
}

/// Whether another document, or a Secret, will put it right.
fn is_reference(complaint: &Complaint) -> bool {
    complaint.reason == Reason::UnknownReference
}

/// The complaints as one message, with their fields.
fn tell(complaints: &[Complaint]) -> String {
    let lines =
        complaints.iter().take(COMPLAINTS_TOLD_MAX).map(|complaint| match complaint.place.path.as_str() {
            "" => complaint.message.clone(),
            path => format!("{path}: {}", complaint.message),
        });
    let more = complaints.len().saturating_sub(COMPLAINTS_TOLD_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    lines.chain(more).collect::<Vec<_>>().join("; ")
}

/// What was reported before; a status that can't be read is none.
fn read<T: DeserializeOwned + Default>(status: &Value) -> T {
    serde_json::from_value(status.clone()).unwrap_or_default()
}
