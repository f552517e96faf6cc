//! The status of a Pipeline: whether it is ready or why not, its volume, its layout and its replica.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSetStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::DynamicObject;
use litejoin_crds::Complaint;
use litejoin_crds::status::{HistoryEntry, LayoutStatus, PipelineStatus};

use super::condition::{
    Fact, Holds, conditions, fact_before, is_reference, message, read, ready, seconds, summary,
};
use super::findings::Findings;
use super::replication::{self, Drills};
use super::{child, inline, pod, reshard};
use crate::controller::apply::is_written;
use crate::controller::build::{Desired, is_at_rest, is_stopped};
use crate::controller::config_map::CONFIG_BYTES_MAX;
use crate::controller::names;
use crate::controller::node_loss::{self, LostNode, NodeLossAction};
use crate::controller::object::is_ours;
use crate::controller::observe::Observed;
use crate::controller::slot::Slot;
use crate::controller::validate::Verdict;
use crate::controller::worker::WorkerReport;

/// Sources and sinks that a message names at most.
const PARTS_SHOWN_MAX: usize = 10;

/// Entries that the history has at most.
const HISTORY_MAX: usize = 5;

/// The status of the Pipeline itself.
pub(super) fn status(findings: &Findings<'_>, now: Timestamp) -> PipelineStatus {
    let Findings { observed, verdict, desired, report, lost_node, unwritten, .. } = *findings;
    let before: PipelineStatus = read(&observed.pipeline.status);
    let at_rest = is_at_rest(&observed.spec());
    let is_stopped = is_stopped(observed, verdict);
    let resharding = reshard::news(findings, before.reshard.clone(), now);
    let mut facts = vec![
        config_valid(findings, &before),
        storage_ready(observed, report),
        worker_ready(findings, is_stopped),
    ];
    let mut gates: Vec<Fact> = Vec::new();
    gates.extend(names_taken(observed, desired));
    gates.extend(unwritten.map(not_written));
    gates.extend(Some(facts[0].clone()).filter(|valid| valid.holds != Holds::Unknown));
    let is_paused = observed.is_paused();
    // While paused nothing is made that is not there.
    let is_made = !is_paused || observed.built.contains_key(&Slot::StatefulSet);
    // While the worker starts with other shards, its troubles tell more.
    let (gate, last) = match resharding.is_switching {
        true => (None, resharding.gate),
        false => (resharding.gate, None),
    };
    gates.extend(gate);
    if is_stopped {
        gates.extend(lost_node.map(|_| facts[2].clone()));
    } else if is_made {
        // Many claims get their volume only with the pod.
        gates.extend(observed.pod_refusal.as_ref().map(|_| facts[2].clone()));
        gates.extend([facts[1].clone(), facts[2].clone()]);
    }
    if !is_stopped && !is_paused {
        gates.push(acknowledged(report, verdict, &before, observed.pipeline.generation));
    }
    if !is_paused {
        gates.extend(desired.and_then(|desired| unsettled(observed, desired, is_stopped)));
    }
    gates.extend(last);
    let mut ready = ready(&gates);
    // Rest that somebody has asked for is an end, and nothing to wait for.
    if ready.holds == Holds::Yes && at_rest {
        ready =
            Fact::new("Ready", Holds::Yes, "Suspended", "at rest as spec.suspend or spec.replicas asks for");
    } else if ready.holds == Holds::Yes && is_paused {
        ready = paused("Ready", observed, desired);
    }
    let drills = Drills::of(observed.built.get(&Slot::CronJob));
    facts.extend(replication::healthy(&observed.spec(), report, &drills));
    facts.extend(is_paused.then(|| paused("Paused", observed, desired)));
    facts.extend(degraded(findings, &before));
    facts.extend(resharding.condition);
    let mut all = summary(ready);
    all.extend(facts);

    let config = verdict.config.as_ref().ok();
    let runs = matches!(report, WorkerReport::Runs { .. });
    let generation = observed.pipeline.generation;
    PipelineStatus {
        observed_generation: Some(generation),
        conditions: conditions(&all, &before.conditions, generation, now),
        layout: layout(findings, &before, resharding.ended),
        replication: replication::status(
            report,
            observed.replica_place(),
            &drills,
            before.replication.clone(),
        ),
        reshard: resharding.status,
        history: history(resharding.ended, &before.history, now),
        config_hash: config.filter(|_| runs).map(|config| config.hash.clone()).or(before.config_hash.clone()),
        output_version: desired
            .filter(|_| !observed.is_paused())
            .map(|_| env!("CARGO_PKG_VERSION").to_owned())
            .or(before.output_version.clone()),
    }
}

/// The layout of the data, by what the worker runs and by a change that has just ended.
fn layout(
    findings: &Findings<'_>,
    before: &PipelineStatus,
    ended: Option<(u32, u32)>,
) -> Option<LayoutStatus> {
    let Findings { observed, verdict, report, .. } = *findings;
    let config = verdict.config.as_ref().ok().filter(|_| matches!(report, WorkerReport::Runs { .. }));
    let of_config = config.map(|config| LayoutStatus {
        shard_count: u32::try_from(config.plan.storage.shard_count).expect("a few shards"),
        volume_claim_uid: observed.volume_claim.as_ref().and_then(ResourceExt::uid),
        ..before.layout.clone().unwrap_or_default()
    });
    // Beside a move, the config has a number that the data may not have yet.
    let moving = verdict.reshard.as_ref().filter(|reshard| reshard.is_online()).map(|reshard| reshard.has);
    let layout = of_config.or(before.layout.clone())?;
    let shard_count = ended.map(|(_, has)| has).or(moving).unwrap_or(layout.shard_count);
    Some(LayoutStatus { shard_count, ..layout })
}

/// The history, with a change of layout that has just ended.
fn history(ended: Option<(u32, u32)>, before: &[HistoryEntry], now: Timestamp) -> Vec<HistoryEntry> {
    let entry = ended.map(|(from, to)| HistoryEntry {
        time: Time(seconds(now)),
        reason: "Resharded".to_owned(),
        message: Some(format!("from {from} to {to} shards")),
    });
    entry.into_iter().chain(before.iter().cloned()).take(HISTORY_MAX).collect()
}

/// Whether the worker is ready, and if not, why.
fn worker_ready(findings: &Findings<'_>, is_stopped: bool) -> Fact {
    let Findings { observed, lost_node, .. } = *findings;
    let at_rest = is_at_rest(&observed.spec());
    if let Some(lost) = node_lost(observed, lost_node) {
        return lost;
    }
    if is_stopped && !at_rest && observed.pod.is_none() {
        return Fact::not_yet("WorkerReady", "Resharding", "the worker rests while the data is moved");
    }
    pod::worker_ready(observed.pod.as_ref(), observed.pod_refusal.as_deref(), at_rest)
}

fn config_valid(findings: &Findings<'_>, before: &PipelineStatus) -> Fact {
    const KIND: &str = "ConfigValid";
    let Findings { observed, verdict, desired, report, .. } = *findings;
    let faulty = |complaints: &[Complaint], message: String| {
        // A complaint that time won't put right counts first.
        let gravest = complaints.iter().find(|complaint| !is_reference(complaint));
        let reason = gravest.or(complaints.first()).map_or("Invalid", |complaint| complaint.reason.as_str());
        let holds = if gravest.is_some() { Holds::Never } else { Holds::NotYet };
        Fact::new(KIND, holds, reason, message)
    };
    if let Err(complaints) = &verdict.config {
        let entries = inline::held_back(observed, verdict, report);
        let of_entries = entries.into_iter().flat_map(|entry| entry.complaints);
        let all: Vec<Complaint> = complaints.iter().cloned().chain(of_entries).collect();
        return faulty(&all, message(&all));
    }
    if let Some(bytes) = desired.and_then(|desired| desired.config_bytes_excess) {
        let message = format!(
            "got {bytes} bytes of documents, allowed at most {CONFIG_BYTES_MAX}; the config before stays in force: make a second Pipeline of some"
        );
        return Fact::new(KIND, Holds::Never, "TooLarge", message);
    }
    if let WorkerReport::Behind { refusal: Some(refusal), .. } = report {
        return Fact::new(KIND, Holds::Never, "RefusedByWorker", refusal);
    }
    let entries = inline::held_back(observed, verdict, report);
    if !entries.is_empty() {
        let complaints: Vec<Complaint> =
            entries.iter().flat_map(|entry| entry.complaints.iter().cloned()).collect();
        return faulty(&complaints, inline::message(&entries));
    }
    // What the worker has said of the documents holds until it says something else.
    if !report.is_judgement()
        && !is_at_rest(&observed.spec())
        && let Some(was) = before.conditions.iter().find(|condition| condition.type_ == KIND)
        && was.status != "True"
    {
        let again = fact_before(&before.conditions, KIND, observed.pipeline.generation);
        return again.unwrap_or_else(|| {
            Fact::new(KIND, Holds::Unknown, "ConfigPending", "waits for the worker to check the config")
        });
    }
    Fact::yes(KIND, "Valid")
}

fn storage_ready(observed: &Observed, report: &WorkerReport) -> Fact {
    const KIND: &str = "StorageReady";
    if observed.spec().storage.ephemeral {
        return Fact::yes(KIND, "Ephemeral");
    }
    let Some(claim) = &observed.volume_claim else {
        return Fact::not_yet(KIND, "Pending", "waits for the volume claim");
    };
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() {
        let message = format!(
            "the claim {name} is being deleted: it goes as soon as the pod does, and the data in it with it, and nothing \
             takes that back; let the pod run until the data is elsewhere (spec.replication, or a copy of the volume)"
        );
        return Fact::new(KIND, Holds::Never, "Terminating", message);
    }
    // A worker that runs has found data.
    if let Some(lost) = observed.claim_of_data().filter(|_| report.is_silence())
        && claim.metadata.uid.as_ref() != Some(&lost)
    {
        let message = format!(
            "the claim {name} is not the one that the data lies on, which had the UID {lost}; put the volume of that one \
             back, or write spec.storage.acceptLoss: {lost} to begin empty"
        );
        return Fact::new(KIND, Holds::Never, "DataLost", message);
    }
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
                _ => match &observed.leftover_claim {
                    None => Fact::yes(KIND, "Bound"),
                    Some(leftover) => {
                        let namespace = &observed.pipeline.namespace;
                        let message = format!(
                            "the claim {leftover} is left from a StatefulSet that was scaled by hand, and nothing uses it: \
                             kubectl -n {namespace} delete pvc {leftover}"
                        );
                        Fact::new(KIND, Holds::Yes, "Bound", message)
                    }
                },
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

/// The fact that the worker's node is lost, and what is done about it.
fn node_lost(observed: &Observed, lost: Option<&LostNode>) -> Option<Fact> {
    Some(match node_loss::action(observed, lost)? {
        NodeLossAction::AskUser(message) => Fact::new("WorkerReady", Holds::Never, "NodeLost", message),
        NodeLossAction::Replace(message) => Fact::not_yet("WorkerReady", "NodeReplaced", message),
    })
}

/// Whether the worker runs the Pipeline as it is written. What it has not taken up yet may be of other documents, whose
/// statuses say so.
fn acknowledged(report: &WorkerReport, verdict: &Verdict, before: &PipelineStatus, generation: i64) -> Fact {
    let hash = verdict.config.as_ref().ok().map(|config| &config.hash);
    let was_ready = before.conditions.iter().any(|condition| {
        condition.type_ == "Ready"
            && condition.status == "True"
            && condition.observed_generation == Some(generation)
    });
    match report {
        WorkerReport::Runs { .. } => Fact::yes("Acknowledged", "Running"),
        WorkerReport::Silent { why: Some(why) } => Fact::not_yet("Acknowledged", "WorkerSilent", why),
        // It has said so before, and kubelet tells whether it serves.
        WorkerReport::Silent { why: None } if hash.is_some() && hash == before.config_hash.as_ref() => {
            Fact::yes("Acknowledged", "Running")
        }
        WorkerReport::Absent | WorkerReport::Silent { why: None } => {
            Fact::not_yet("Acknowledged", "WorkerSilent", "waits for the worker to say what it runs")
        }
        WorkerReport::Behind { .. } if was_ready => Fact::yes("Acknowledged", "Running"),
        WorkerReport::Behind { .. } => {
            Fact::not_yet("Acknowledged", "ConfigPending", "waits for the worker to take up the config")
        }
    }
}

/// Why the pod is not the one that the Pipeline asks for now; `None` if it is. The pod of before may well be ready.
fn unsettled(observed: &Observed, desired: &Desired, at_rest: bool) -> Option<Fact> {
    let set = observed.built.get(&Slot::StatefulSet);
    if !is_written(observed, desired, Slot::StatefulSet) {
        return Some(Fact::not_yet(
            "Settled",
            "Applying",
            "waits for the StatefulSet to have what was changed",
        ));
    }
    let pod = observed.pod.as_ref();
    let name = names::pod(&observed.pipeline.name);
    if at_rest {
        return pod.map(|_| Fact::not_yet("Settled", "Stopping", format!("the pod {name} is being stopped")));
    }
    let set = set?;
    let status: StatefulSetStatus = read(&set.data["status"]);
    let revision = pod.and_then(|pod| pod.labels().get(names::REVISION_LABEL));
    let is_seen = status.observed_generation >= set.metadata.generation;
    (!is_seen || revision != status.update_revision.as_ref()).then(|| {
        Fact::not_yet(
            "Settled",
            "RollingOut",
            format!("the pod {name} is replaced by one of what was changed"),
        )
    })
}

/// An object that is not ours and has the name of one that is wanted.
fn names_taken(observed: &Observed, desired: Option<&Desired>) -> Option<Fact> {
    let desired = desired?;
    let in_the_way = |(slot, live): &(&Slot, &DynamicObject)| {
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

/// The fact that the API server refuses a write, with its answer.
fn not_written(answer: &str) -> Fact {
    Fact::not_yet("Written", "ApplyFailed", format!("{answer}; it is tried again within a minute"))
}

/// The fact that nothing is changed, and whether something would be.
fn paused(kind: &'static str, observed: &Observed, desired: Option<&Desired>) -> Fact {
    let waits = desired
        .is_some_and(|desired| desired.objects.keys().any(|slot| !is_written(observed, desired, *slot)));
    let message = match waits {
        true => "spec.reconciliationPaused holds back what was changed; write false to have it done",
        false => "spec.reconciliationPaused: nothing is changed until it is false again",
    };
    Fact::new(kind, Holds::Yes, "Paused", message)
}

/// The fact that the pipeline runs and a part of it does not; `None` if all of it does.
fn degraded(findings: &Findings<'_>, before: &PipelineStatus) -> Option<Fact> {
    const KIND: &str = "Degraded";
    let Findings { observed, verdict, report, .. } = *findings;
    let fact = |reason: &str, message: String| Some(Fact::new(KIND, Holds::Yes, reason, message));
    let (mut left_out, mut earlier) = (Vec::new(), Vec::new());
    for (index, child) in observed.children.iter().enumerate() {
        let name = format!("{} {}", child.kind.as_str(), child.name);
        match child::runs_on(index, child, findings) {
            Some(true) => earlier.push(name),
            Some(false) => left_out.push(name),
            None => {}
        }
    }
    if !left_out.is_empty() {
        return fact("LeftOut", format!("runs without {}; their status says why", shown(&left_out)));
    }
    if !earlier.is_empty() {
        let message = format!("runs {} as they were before; their status says why", shown(&earlier));
        return fact("EarlierVersion", message);
    }
    if let Some(first) = report.degraded().first() {
        let parts = report.degraded().iter().take(PARTS_SHOWN_MAX);
        let parts = parts.map(|part| format!("{} {}: {}", part.kind, part.name, part.message));
        let message = format!("{}; all others go on", parts.collect::<Vec<_>>().join("; "));
        return fact(&first.reason, message);
    }
    let lacking = inline::names(observed, verdict.lacking.keys());
    if !lacking.is_empty() {
        let message = format!(
            "what {} needs is gone, and its pod can't start anew as it is; their status says what it is",
            shown(&lacking)
        );
        return fact("RefNotFound", message);
    }
    if observed.spec().pod_monitor.enabled && !observed.pod_monitors_served {
        let message = "spec.podMonitor: this cluster knows no PodMonitor; install the Prometheus operator's definitions, or write enabled: false";
        return fact("NoPodMonitors", message.to_owned());
    }
    // What the worker has said of its parts holds until it says something else.
    let said = before.conditions.iter().find(|condition| condition.type_ == KIND)?;
    let is_kept = match said.reason.as_str() {
        "LeftOut" | "EarlierVersion" => !report.is_judgement(),
        "RefNotFound" | "NoPodMonitors" => false,
        _ => report.is_silence(),
    };
    (is_kept && !is_at_rest(&observed.spec()))
        .then(|| Fact::new(KIND, Holds::Yes, &said.reason, &said.message))
}

fn shown(names: &[String]) -> String {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    litejoin_crds::complaint::list(&names)
}
