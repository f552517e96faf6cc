//! How far a change of `shardCount` is: its part of the Pipeline's status, its condition, and why the Pipeline is not
//! ready because of it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use litejoin_crds::reshard::ReshardStrategy;
use litejoin_crds::status::ReshardStatus;
use litejoin_crds::worker_status::ReshardReport;

use super::condition::{Fact, Holds, seconds};
use super::findings::Findings;
use super::pod::why_not_running;
use crate::controller::build::is_at_rest;
use crate::controller::names;
use crate::controller::reshard::{
    Held, JobState, Phase, Reshard, Seen, Wish, begun, has_volume, is_foreign, job_state, last_words,
    worker_state,
};
use crate::controller::slot::Slot;
use crate::controller::worker::WorkerReport;

const KIND: &str = "Resharding";

/// What a status says of a change of `shardCount`.
#[derive(Default)]
pub(super) struct ReshardNews {
    pub(super) status: Option<ReshardStatus>,
    pub(super) condition: Option<Fact>,
    /// Why the Pipeline is not ready.
    pub(super) gate: Option<Fact>,
    /// Whether the worker is to start with other shards.
    pub(super) is_switching: bool,
    /// The numbers of shards before and after a change that has just ended.
    pub(super) ended: Option<(u32, u32)>,
}

/// Decides on the next phase, and says what follows from it.
pub(super) fn news(findings: &Findings<'_>, before: Option<ReshardStatus>, now: Timestamp) -> ReshardNews {
    let Some(reshard) = &findings.verdict.reshard else {
        return ReshardNews { status: before, ..ReshardNews::default() };
    };
    let seen = seen(findings, reshard);
    // A Pipeline that is wrong changes nothing, and what is under way goes on.
    let next = if findings.verdict.config.is_ok() { reshard.next(&seen) } else { reshard.phase };
    let ended = next == Some(Phase::Done) && reshard.phase.is_some_and(Phase::is_active);
    let ended = ended.then_some((reshard.has, reshard.to));
    let is_unconsented = match ended {
        Some((_, has)) => reshard.wanted != has,
        None => reshard.wish == Wish::Unconsented && !next.is_some_and(Phase::is_active),
    };
    let has = ended.map_or(reshard.has, |(_, has)| has);
    let status = next.map(|phase| status(findings, reshard, phase, &seen, before.unwrap_or_default(), now));
    let gate = if is_unconsented {
        Some(unconsented(has, reshard.wanted))
    } else {
        status.as_ref().zip(next).and_then(|(status, phase)| gate(status, phase, &seen))
    };
    let condition = match (&gate, next) {
        (Some(gate), _) if is_unconsented => Some(Fact { kind: KIND, ..gate.clone() }),
        (_, Some(phase)) => status.as_ref().map(|status| condition(status, phase)),
        (_, None) => None,
    };
    let is_switching = next == Some(Phase::Switching);
    ReshardNews { status, condition, gate, is_switching, ended }
}

/// Reads from the findings what the next phase follows from.
fn seen(findings: &Findings<'_>, reshard: &Reshard) -> Seen {
    let Findings { observed, report, .. } = *findings;
    let (spec, job) = (observed.spec(), observed.built.get(&Slot::Job));
    let held = if observed.is_paused() {
        Some(Held::Paused)
    } else if is_at_rest(&spec) {
        Some(Held::AtRest)
    } else {
        let wants_job = reshard.strategy == ReshardStrategy::Job;
        (wants_job && is_foreign(job, &observed.pipeline)).then_some(Held::NameTaken)
    };
    let told = told(findings, reshard).and_then(|report| match report.phase.as_str() {
        "Copying" => Some(Phase::Copying),
        "Verifying" | "Verified" => Some(Phase::Verifying),
        "Switching" => Some(Phase::Switching),
        "Failed" => Some(Phase::Failed),
        // The copy follows the data before it is compared, and after it.
        _ => None,
    });
    let runs = matches!(report, WorkerReport::Runs { .. });
    Seen {
        held,
        worker: worker_state(observed.built.get(&Slot::StatefulSet), observed.pod.as_ref(), runs),
        job: job_state(job, &observed.job_pods),
        shard_count: report.news().and_then(|news| news.shard_count),
        has_volume: has_volume(&spec, &observed.pipeline.status, observed.volume_claim.as_ref()),
        told,
    }
}

/// What the one tells who moves the data, about this move.
fn told<'a>(findings: &Findings<'a>, reshard: &Reshard) -> Option<&'a ReshardReport> {
    let told = match (reshard.strategy, findings.report) {
        (ReshardStrategy::Job, _) => findings.job_report,
        // With another config, the worker may tell of a move of before.
        (ReshardStrategy::Online, WorkerReport::Runs { news, .. }) => news.reshard.as_ref(),
        (ReshardStrategy::Online, _) => None,
    };
    told.filter(|told| (told.from_shard_count, told.to_shard_count) == (reshard.has, reshard.to))
}

fn status(
    findings: &Findings<'_>,
    reshard: &Reshard,
    phase: Phase,
    seen: &Seen,
    before: ReshardStatus,
    now: Timestamp,
) -> ReshardStatus {
    let observed = findings.observed;
    let time = || Some(Time(seconds(now)));
    let turns = reshard.phase != Some(phase);
    let was_active = reshard.phase.is_some_and(Phase::is_active);
    let begins = !was_active && (phase.is_active() || phase == Phase::Pending);
    let mut status = if begins { begun(reshard) } else { before };
    if begins && phase.is_active() {
        status.started_at = time();
    }
    phase.as_str().clone_into(&mut status.phase);
    let has_job = observed.built.contains_key(&Slot::Job) && seen.held != Some(Held::NameTaken);
    let is_online = status.strategy == ReshardStrategy::Online;
    let expects_job = !is_online && (phase.copies() || (turns && phase == Phase::Failed));
    status.job = (has_job || expects_job).then(|| names::reshard_job(&observed.pipeline.name));
    let told = told(findings, reshard);
    match (phase.copies(), told) {
        (true, Some(report)) => progress(&mut status, report, reshard, turns, now),
        (true, None) => {}
        (false, _) => {
            (status.rows, status.progress, status.remaining_seconds, status.progress_time) =
                (None, None, None, None);
        }
    }
    if phase == Phase::Switching && seen.job == JobState::Complete && status.verified_at.is_none() {
        status.verified_at = time();
    }
    let job = observed.built.get(&Slot::Job);
    status.message = match phase {
        Phase::Failed if turns && is_online => told.and_then(|told| told.message.clone()),
        Phase::Failed if turns => Some(last_words(job, &observed.job_pods)),
        Phase::Failed => status.message,
        _ if is_online && phase.is_active() => told.and_then(|told| told.message.clone()),
        _ if phase.copies() => trouble(findings),
        _ => None,
    };
    status.next_step = Some(next_step(findings, reshard, phase, &status, seen));
    status
}

/// Takes over what the Job has told, unless that was done a moment ago: a status write for each row would cost more
/// than the copy.
fn progress(
    status: &mut ReshardStatus,
    report: &ReshardReport,
    reshard: &Reshard,
    turns: bool,
    now: Timestamp,
) {
    let age = status.progress_time.as_ref().map(|time| now.as_second() - time.0.as_second());
    let is_new = age.is_some_and(|age| age < reshard.ask_again_after(now).as_secs() as i64);
    if is_new && !turns {
        return;
    }
    let numbers = (Some(report.rows), Some(report.rows_total), report.remaining_seconds);
    if numbers != (status.rows, status.rows_total, status.remaining_seconds) {
        status.progress_time = Some(Time(seconds(now)));
    }
    (status.rows, status.rows_total, status.remaining_seconds) = numbers;
    let share = report.rows.saturating_mul(100).checked_div(report.rows_total).unwrap_or(100);
    status.progress = u32::try_from(share.min(100)).ok();
    let verified_at = report.verified_at.and_then(|at| Timestamp::from_second(at).ok()).map(Time);
    status.verified_at = verified_at.or(status.verified_at.take());
}

/// Why the pod of the Job does not run, if it should.
fn trouble(findings: &Findings<'_>) -> Option<String> {
    let observed = findings.observed;
    if let Some(refusal) = &observed.job_refusal {
        return Some(format!("the pod of the Job may not be made: {refusal}"));
    }
    let (reason, message) = observed.job_pods.iter().find_map(why_not_running)?;
    Some(format!("{reason}: {message}"))
}

/// What comes next, and what to do about it, in one sentence.
fn next_step(
    findings: &Findings<'_>,
    reshard: &Reshard,
    phase: Phase,
    status: &ReshardStatus,
    seen: &Seen,
) -> String {
    let observed = findings.observed;
    let (from, to) = (status.from_shard_count, status.to_shard_count);
    let job = names::reshard_job(&observed.pipeline.name);
    let is_online = status.strategy == ReshardStrategy::Online;
    let cancel = format!("to cancel, put shardCount: {from} back");
    let rests = "spec.suspend or spec.replicas: 0 holds it back; take that back, or put shardCount";
    match (phase, seen.held) {
        (Phase::Pending | Phase::Pausing | Phase::Copying | Phase::Verifying, Some(Held::Paused)) => {
            "spec.reconciliationPaused holds it back; write false to let it go on".to_owned()
        }
        (Phase::Pending | Phase::Copying | Phase::Verifying, Some(Held::AtRest)) => {
            format!("{rests}: {from} back")
        }
        (Phase::Pending, _) => {
            format!(
                "there is a Job {job} that is not this Pipeline's; delete it, or put shardCount: {from} back"
            )
        }
        (Phase::Pausing, _) => {
            format!("waits for the pod {} to stop; {cancel}", names::pod(&observed.pipeline.name))
        }
        (Phase::Copying, _) if is_online => {
            format!("the worker copies the data to {to} shards and serves it meanwhile; {cancel}")
        }
        (Phase::Verifying, _) if is_online => {
            format!(
                "the worker compares the copy in {to} shards with the data, and then pauses for the switch; {cancel}"
            )
        }
        (Phase::Switching, _) if is_online => format!("the worker pauses for the switch to {to} shards"),
        (Phase::Cancelling, _) if is_online => {
            format!("waits for the worker to say that it goes on with {from} shards")
        }
        (Phase::Copying, _) => format!("the Job {job} copies the data to {to} shards; {cancel}"),
        (Phase::Verifying, _) => {
            format!("the Job {job} compares the copy in {to} shards with the data; {cancel}")
        }
        (Phase::Switching, held) => {
            let what = match held {
                Some(_) => format!("the worker takes {to} shards at its next start"),
                None => format!("waits for the worker to start with {to} shards"),
            };
            match reshard.wish {
                Wish::Other(_) => what,
                _ => format!(
                    "{what}: shardCount: {} was put back too late, and counts only if the worker can't start",
                    reshard.wanted
                ),
            }
        }
        (Phase::Cancelling, _) => {
            format!("waits for the Job {job} and its pod to stop; then {from} shards go on")
        }
        (Phase::Cancelled, _) => format!("nothing to do: {from} shards go on"),
        (Phase::Done, _) => format!(
            "nothing to do: {to} shards are in use; to go back, write shardCount: {from} with reshard: \
             {{fromShardCount: {to}, toShardCount: {from}}}"
        ),
        (Phase::Failed, _) => format!(
            "put right what the message says, in spec.storage, spec.resources or spec.podTemplate, or write another \
             spec.restartNonce, and it is tried again; or put shardCount: {from} back"
        ),
    }
}

fn condition(status: &ReshardStatus, phase: Phase) -> Fact {
    let holds = match phase {
        _ if phase.is_active() => Holds::Yes,
        Phase::Failed => Holds::Never,
        _ => Holds::NotYet,
    };
    Fact::new(KIND, holds, phase.as_str(), said(status))
}

/// Why the Pipeline is not ready; `None` where nothing waits for the change.
fn gate(status: &ReshardStatus, phase: Phase, seen: &Seen) -> Option<Fact> {
    let (from, to) = (status.from_shard_count, status.to_shard_count);
    // Rest that somebody has asked for is an end, and nothing to wait for.
    let rests = matches!(seen.held, Some(Held::Paused | Held::AtRest));
    match phase {
        Phase::Failed => {
            let message =
                format!("{from} shards go on, since the data could not be moved to {to}: {}", said(status));
            Some(Fact::new("Sharded", Holds::Never, "ReshardFailed", message))
        }
        Phase::Pending if seen.held == Some(Held::NameTaken) => {
            Some(Fact::new("Sharded", Holds::Never, "NameTaken", said(status)))
        }
        _ if rests || !(phase.is_active() || phase == Phase::Pending) => None,
        _ => {
            let message = format!("from {from} to {to} shards, {}: {}", phase.as_str(), said(status));
            Some(Fact::not_yet("Sharded", "Resharding", message))
        }
    }
}

fn said(status: &ReshardStatus) -> String {
    let parts = [&status.message, &status.next_step];
    parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join("; ")
}

/// The fact that the spec wants other shards than the data has, without consent to just that.
fn unconsented(has: u32, wanted: u32) -> Fact {
    let message = format!(
        "the data has {has} shards, which go on, and spec.storage.shardCount wants {wanted}; write shardCount: {has}, or \
         consent to the change: reshard: {{fromShardCount: {has}, toShardCount: {wanted}}}"
    );
    Fact::new("Sharded", Holds::Never, "ReshardUnconsented", message)
}
