//! A change of `shardCount` that a Pipeline consents to, as a state machine.
//!
//! With `strategy: Job` a Job copies the data while no worker runs:
//!
//! ```text
//! Pending ─► Pausing ─► Copying ─► Verifying ─► Switching ─► Done
//!    │          └──────────┴─────┬─────┤             │ (only while the worker can't start)
//!    └─► Cancelled ◄─ Cancelling ◄┘     └─► Failed    └─► Cancelling
//! ```
//!
//! With `strategy: Online` the worker does all of it, and tells how far it is:
//!
//! ```text
//! Pending ─► Copying ─► Verifying ─► Switching ─► Done
//!    │          └───────────┴────┬───────┴─► Failed
//!    └─► Cancelled ◄─ Cancelling ◄┴──────────────┘
//! ```
//!
//! The phase in the status decides which objects are wanted: the shards in the config, the pod of the StatefulSet, and
//! the Job. What is observed then decides on the next phase. So a phase is stored before anything is done for it, and a
//! reconcile that dies anywhere is made good by the next. The config is the one decision: a worker that starts with the
//! new number takes the copy, one that starts with the old number forgets it. Beside a worker that serves, the data decides:
//! the worker tells how many shards there are, and any config that it gets meanwhile consents to both numbers.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSetStatus;
use k8s_openapi::api::batch::v1::JobStatus;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt;
use kube::api::DynamicObject;
use litejoin_crds::PipelineSpec;
use litejoin_crds::reshard::ReshardStrategy;
use litejoin_crds::status::{PipelineStatus, ReshardStatus};
use serde_json::{Value, json};

use super::object::{Object, hash, is_ours, is_up};

#[cfg(test)]
mod tests;

/// The shortest and the longest wait before a Job is asked again how far it is.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Between these bounds, the wait is this part of the time that the change has taken.
const ASK_AGAIN_PART: u32 = 10;
/// How soon something is looked at again that should go by itself: a read may be older than the event that led to it.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The step that a change of `shardCount` is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Something holds it back.
    Pending,
    /// The worker stops, for a Job.
    Pausing,
    /// The Job copies, or the worker does.
    Copying,
    /// The same one compares the copy with the data.
    Verifying,
    /// The worker starts with the new number, or pauses to take it. From here on, the copy counts.
    Switching,
    /// The worker runs with the new number.
    Done,
    /// The move stops, so that the old number goes on.
    Cancelling,
    /// The old number goes on, as somebody wanted.
    Cancelled,
    /// The old number goes on, since the move has failed.
    Failed,
}

impl Phase {
    const ALL: [Self; 9] = [
        Self::Pending,
        Self::Pausing,
        Self::Copying,
        Self::Verifying,
        Self::Switching,
        Self::Done,
        Self::Cancelling,
        Self::Cancelled,
        Self::Failed,
    ];

    /// The word for it in statuses and conditions.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Pausing => "Pausing",
            Self::Copying => "Copying",
            Self::Verifying => "Verifying",
            Self::Switching => "Switching",
            Self::Done => "Done",
            Self::Cancelling => "Cancelling",
            Self::Cancelled => "Cancelled",
            Self::Failed => "Failed",
        }
    }

    fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    /// Whether the change is under way: the pipeline does not run as it did before, and not yet as it will.
    pub(crate) fn is_active(self) -> bool {
        self.copies() || matches!(self, Self::Pausing | Self::Switching | Self::Cancelling)
    }

    /// Whether the data is copied or compared.
    pub(crate) fn copies(self) -> bool {
        matches!(self, Self::Copying | Self::Verifying)
    }
}

/// What the spec says about the number of shards that the data has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// That number.
    Same,
    /// Another one, with consent to move the data this way.
    Other(ReshardStrategy),
    /// Another one without consent to just this change. An API server refuses it, unless the change came too late.
    Unconsented,
}

impl Wish {
    fn strategy(self) -> ReshardStrategy {
        match self {
            Self::Other(strategy) => strategy,
            _ => ReshardStrategy::default(),
        }
    }
}

/// What the config says about `storage.reshard`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Consent {
    /// What the spec says.
    Written,
    /// Nothing.
    Withheld,
    /// This.
    Own(Value),
}

/// The number of shards that a Pipeline has, wants, and is brought to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reshard {
    /// The phase that is stored; `None` where nothing has begun.
    pub(crate) phase: Option<Phase>,
    /// Shards that the data has, as far as the worker has told.
    pub(crate) has: u32,
    /// Shards that the spec asks for.
    pub(crate) wanted: u32,
    /// Shards that the change leads to which is under way or has failed; those that are asked for where none has.
    pub(crate) to: u32,
    pub(crate) wish: Wish,
    /// How the data is moved, or was when that failed; as it is asked for where nothing was begun.
    pub(crate) strategy: ReshardStrategy,
    /// Hash of the settings that decide whether an attempt can go another way than the last one.
    pub(crate) settings: String,
    settings_before: Option<String>,
    started_at: Option<Timestamp>,
}

impl Reshard {
    /// Reads the change from spec and status; `None` where no data is known, so that there is nothing to change.
    pub(crate) fn of(pipeline: &Object) -> Option<Self> {
        let status: PipelineStatus = serde_json::from_value(pipeline.status.clone()).unwrap_or_default();
        let has = status.layout?.shard_count;
        let storage = pipeline.pipeline_spec().storage;
        let wanted = storage.shard_count;
        let is_consent = |from, to| (from, to) == (has, wanted);
        let wish = match &storage.reshard {
            _ if has == wanted => Wish::Same,
            Some(consent) if is_consent(consent.from_shard_count, consent.to_shard_count) => {
                Wish::Other(consent.strategy)
            }
            _ => Wish::Unconsented,
        };
        let stored = status.reshard.as_ref();
        let phase = stored.and_then(|stored| Phase::read(&stored.phase));
        // What an attempt was is known until the next one begins.
        let attempt =
            stored.filter(|_| phase.is_some_and(|phase| phase.is_active() || phase == Phase::Failed));
        let to = attempt.map_or(wanted, |stored| stored.to_shard_count);
        let strategy = attempt.map_or(wish.strategy(), |stored| stored.strategy);
        let settings = settings(&pipeline.spec);
        let settings_before = stored.and_then(|stored| stored.settings.clone());
        let started_at = stored.and_then(|stored| stored.started_at.as_ref()).map(|time| time.0);
        Some(Self { phase, has, wanted, to, wish, strategy, settings, settings_before, started_at })
    }

    /// How often a Job is asked how far it is, which is also how often the status has other numbers.
    pub(crate) fn ask_again_after(&self, now: Timestamp) -> Duration {
        let since = self.started_at.and_then(|start| u64::try_from(now.as_second() - start.as_second()).ok());
        (Duration::from_secs(since.unwrap_or_default()) / ASK_AGAIN_PART).clamp(ASK_AGAIN.0, ASK_AGAIN.1)
    }

    /// The wait before the next look, where no event may tell that there is something to see.
    pub(crate) fn look_again_after(&self, now: Timestamp) -> Option<Duration> {
        match self.phase {
            Some(Phase::Copying | Phase::Verifying) => Some(self.ask_again_after(now)),
            Some(Phase::Pausing | Phase::Cancelling) => Some(LOOK_AGAIN),
            Some(Phase::Switching) if self.strategy == ReshardStrategy::Online => Some(LOOK_AGAIN),
            _ => None,
        }
    }

    /// Whether the worker starts with the new number, as the config then has it.
    pub(crate) fn starts_worker(&self) -> bool {
        self.phase == Some(Phase::Switching) && self.strategy == ReshardStrategy::Job
    }

    /// Whether the worker moves the data, or may do so still.
    pub(crate) fn is_online(&self) -> bool {
        let was_begun = self.phase.is_some_and(|phase| phase.is_active() || phase == Phase::Failed);
        was_begun && self.strategy == ReshardStrategy::Online
    }

    /// Whether the worker is to bring the data to the new number while it serves.
    fn moves_online(&self) -> bool {
        let is_ending = matches!(self.phase, Some(Phase::Cancelling | Phase::Failed));
        self.is_online() && !is_ending && self.goes_on()
    }

    /// Shards that the config is to have.
    pub(crate) fn shard_count(&self) -> u32 {
        if self.starts_worker() || self.moves_online() { self.to } else { self.has }
    }

    /// What the config is to say about `storage.reshard`.
    pub(crate) fn consent(&self) -> Consent {
        let consent = |from, to, strategy| {
            Consent::Own(json!({ "fromShardCount": from, "toShardCount": to, "strategy": strategy }))
        };
        let Self { has, to, strategy, .. } = *self;
        match strategy {
            // Consent reaches the worker with the very config that asks for the new number, and not before.
            ReshardStrategy::Job if self.starts_worker() && !self.goes_on() => consent(has, to, strategy),
            ReshardStrategy::Job if self.starts_worker() => Consent::Written,
            ReshardStrategy::Online if self.moves_online() => Consent::Written,
            // Data that has the new number by now goes back, and data that has not stays.
            ReshardStrategy::Online if self.is_online() => consent(to, has, strategy),
            // A block that was carried out.
            _ if self.wish == Wish::Same => Consent::Written,
            _ => Consent::Withheld,
        }
    }

    /// Whether the worker is to stop: a Job is to write to the data, or one of these pods of it may still do so.
    pub(crate) fn stops_worker(&self, job_pods: &[Pod]) -> bool {
        match self.phase {
            _ if self.strategy == ReshardStrategy::Online => false,
            Some(Phase::Pausing | Phase::Copying | Phase::Verifying | Phase::Cancelling) => true,
            Some(Phase::Switching) => !job_pods.iter().all(has_ended),
            _ => false,
        }
    }

    /// Whether there is to be a Job.
    pub(crate) fn wants_job(&self) -> bool {
        self.phase.is_some_and(Phase::copies) && self.strategy == ReshardStrategy::Job
    }

    /// Whether a Job that is there stays, so that its log can be read.
    pub(crate) fn keeps_job(&self) -> bool {
        self.phase == Some(Phase::Failed)
    }

    /// Whether the spec still asks for the change that is under way.
    fn goes_on(&self) -> bool {
        self.wish == Wish::Other(self.strategy) && self.to == self.wanted
    }

    /// Decides on the phase that comes next; the same one if there is nothing to do.
    pub(crate) fn next(&self, seen: &Seen) -> Option<Phase> {
        let Some(phase) = self.phase.filter(|phase| phase.is_active()) else { return self.begin(seen) };
        if self.strategy == ReshardStrategy::Online {
            return Some(self.next_online(phase, seen));
        }
        if phase == Phase::Switching {
            return Some(match (seen.worker, self.goes_on()) {
                (WorkerState::Runs, _) => Phase::Done,
                (WorkerState::Fails, false) if seen.held.is_none() => Phase::Cancelling,
                _ => phase,
            });
        }
        if seen.held == Some(Held::Paused) {
            return Some(phase);
        }
        let is_free = seen.worker == WorkerState::Gone && seen.job == JobState::Gone;
        Some(match phase {
            Phase::Cancelling => {
                if is_free {
                    Phase::Cancelled
                } else {
                    phase
                }
            }
            _ if !self.goes_on() => Phase::Cancelling,
            Phase::Pausing => match (is_free, seen.has_volume) {
                (false, _) => phase,
                (true, true) => Phase::Copying,
                (true, false) => Phase::Switching,
            },
            _ => match seen.job {
                JobState::Complete => Phase::Switching,
                JobState::Failed => Phase::Failed,
                JobState::Gone if !seen.has_volume => Phase::Switching,
                _ => seen.told.unwrap_or(phase),
            },
        })
    }

    /// Decides on the phase that comes next where the worker moves the data.
    fn next_online(&self, phase: Phase, seen: &Seen) -> Phase {
        let has = |shard_count| seen.shard_count == Some(shard_count);
        match phase {
            _ if self.goes_on() && has(self.to) => Phase::Done,
            Phase::Cancelling if seen.worker == WorkerState::Runs && has(self.has) => Phase::Cancelled,
            Phase::Cancelling => Phase::Cancelling,
            _ if seen.held == Some(Held::Paused) => phase,
            _ if !self.goes_on() => Phase::Cancelling,
            _ => seen.told.unwrap_or(phase),
        }
    }

    /// Whether the settings differ from those of the attempt that has failed.
    fn is_new_attempt(&self) -> bool {
        self.settings_before.as_ref().is_some_and(|before| *before != self.settings)
    }

    /// Decides whether a change begins where none is under way.
    fn begin(&self, seen: &Seen) -> Option<Phase> {
        match (self.phase, self.wish) {
            (Some(Phase::Failed), Wish::Other(_)) if !self.is_new_attempt() => Some(Phase::Failed),
            (_, Wish::Other(_)) if seen.held.is_some() => Some(Phase::Pending),
            (_, Wish::Other(ReshardStrategy::Online)) => Some(Phase::Copying),
            (_, Wish::Other(ReshardStrategy::Job)) if seen.has_volume => Some(Phase::Pausing),
            // Without a volume no Job can copy anything: the worker restores first, and then does all of it.
            (_, Wish::Other(ReshardStrategy::Job)) => Some(Phase::Switching),
            (Some(Phase::Failed), _) if self.strategy == ReshardStrategy::Online => Some(Phase::Cancelling),
            (Some(Phase::Pending | Phase::Failed), _) => Some(Phase::Cancelled),
            (phase, _) => phase,
        }
    }
}

/// What holds back the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// `spec.reconciliationPaused`.
    Paused,
    /// `spec.suspend` or `spec.replicas`.
    AtRest,
    /// A Job of our name that is somebody else's.
    NameTaken,
}

/// What is seen of the Job and its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobState {
    /// Neither it nor a pod of it that may still write.
    Gone,
    /// It may still write.
    There,
    Complete,
    Failed,
}

/// What is seen of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// There is no pod, and none comes.
    Gone,
    /// There may be one.
    There,
    /// It can't start.
    Fails,
    /// It runs with the config that was written for it.
    Runs,
}

/// What the next phase follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) held: Option<Held>,
    pub(crate) worker: WorkerState,
    pub(crate) job: JobState,
    /// Shards that the data has, where the worker tells.
    pub(crate) shard_count: Option<u32>,
    /// Whether there is the volume that the data lies on, which the Job can mount.
    pub(crate) has_volume: bool,
    /// The phase that the one has told who moves the data.
    pub(crate) told: Option<Phase>,
}

/// Whether the objects of a change have to be read: one is wanted, or under way, or its Job may be left.
pub(crate) fn is_concerned(pipeline: &Object) -> bool {
    let stored = &pipeline.status["reshard"];
    Reshard::of(pipeline).is_some_and(|reshard| {
        matches!(reshard.wish, Wish::Other(_))
            || reshard.phase.is_some_and(Phase::is_active)
            || stored["job"].is_string()
    })
}

/// The state of the Job, from its status and its pods.
pub(crate) fn job_state(job: Option<&DynamicObject>, pods: &[Pod]) -> JobState {
    let Some(job) = job else {
        return if pods.iter().all(has_ended) { JobState::Gone } else { JobState::There };
    };
    let status: JobStatus = serde_json::from_value(job.data["status"].clone()).unwrap_or_default();
    let has = |kind: &str| {
        status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    };
    match job.metadata.deletion_timestamp.is_some() {
        true => JobState::There,
        false if has("Complete") => JobState::Complete,
        false if has("Failed") => JobState::Failed,
        false => JobState::There,
    }
}

/// Whether a pod runs no more.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The state of the worker, as StatefulSet and pod have it; `runs` says that it has told so itself.
pub(crate) fn worker_state(set: Option<&DynamicObject>, pod: Option<&Pod>, runs: bool) -> WorkerState {
    match pod {
        Some(_) if runs => WorkerState::Runs,
        Some(pod) if is_up(pod) && fails(pod) => WorkerState::Fails,
        Some(_) => WorkerState::There,
        None => {
            let status = |set: &DynamicObject| -> StatefulSetStatus {
                serde_json::from_value(set.data["status"].clone()).unwrap_or_default()
            };
            // The StatefulSet's controller may be about to make a pod, until it has seen that none is wanted.
            let makes_none = set.is_some_and(|set| {
                set.data["spec"]["replicas"] == 0
                    && status(set)
                        .observed_generation
                        .is_some_and(|seen| Some(seen) >= set.metadata.generation)
            });
            if makes_none { WorkerState::Gone } else { WorkerState::There }
        }
    }
}

/// Whether a container of the pod has ended with an error, and none is ready.
fn fails(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let containers = || status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let has_failed = |state: Option<&ContainerState>| {
        state.and_then(|state| state.terminated.as_ref()).is_some_and(|ended| ended.exit_code != 0)
    };
    let is_ready = status.container_statuses.iter().flatten().any(|c| c.name == "worker" && c.ready);
    !is_ready && containers().any(|c| has_failed(c.state.as_ref()) || has_failed(c.last_state.as_ref()))
}

/// The claim of the volume is there to stay, and is the one that the data lies on.
pub(crate) fn has_volume(
    spec: &PipelineSpec,
    status: &Value,
    claim: Option<&k8s_openapi::api::core::v1::PersistentVolumeClaim>,
) -> bool {
    let of_data = status["layout"]["volumeClaimUid"].as_str();
    !spec.storage.ephemeral
        && claim.is_some_and(|claim| {
            claim.metadata.deletion_timestamp.is_none()
                && of_data.is_none_or(|uid| claim.uid().as_deref() == Some(uid))
        })
}

/// Whether the Job of a change is somebody else's.
pub(crate) fn is_foreign(job: Option<&DynamicObject>, pipeline: &Object) -> bool {
    job.is_some_and(|job| !is_ours(job, &pipeline.uid))
}

/// The last words of the pod of a Job that has failed, or why it has failed.
pub(crate) fn last_words(job: Option<&DynamicObject>, pods: &[Pod]) -> String {
    let said = |pod: &Pod| {
        let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
        let ended = containers.iter().find_map(|container| container.state.as_ref()?.terminated.clone())?;
        let message = ended.message.as_deref().unwrap_or_default().trim().to_owned();
        let message = match (message.is_empty(), ended.reason.as_deref()) {
            (_, Some("OOMKilled")) => "it ran out of memory; raise spec.resources.limits.memory".to_owned(),
            (true, _) => format!("it ended with exit code {}", ended.exit_code),
            (false, _) => match message.rsplit_once("error: ") {
                // Without a message of its own, kubelet takes the end of the log.
                Some((before, error)) if before.is_empty() || before.ends_with('\n') => error.to_owned(),
                _ => message,
            },
        };
        Some((ended.finished_at.map(|time| time.0), message))
    };
    let last = pods.iter().filter_map(said).max_by_key(|(time, _)| *time).map(|(_, message)| message);
    let condition = || {
        let conditions = job?.data["status"]["conditions"].as_array()?;
        let failed = conditions.iter().find(|condition| condition["type"] == "Failed")?;
        failed["message"].as_str().filter(|message| !message.is_empty()).map(str::to_owned)
    };
    last.or_else(condition).unwrap_or_else(|| "its Job has failed and said nothing".to_owned())
}

/// The status of a change that begins.
pub(crate) fn begun(reshard: &Reshard) -> ReshardStatus {
    ReshardStatus {
        from_shard_count: reshard.has,
        to_shard_count: reshard.wanted,
        strategy: reshard.wish.strategy(),
        settings: Some(reshard.settings.clone()),
        ..ReshardStatus::default()
    }
}

/// Hash of the settings by which an attempt may succeed where the one before has failed.
fn settings(spec: &Value) -> String {
    let fields = ["storage", "image", "resources", "podTemplate", "restartNonce"];
    hash(&fields.map(|field| json!(spec[field])).into())
}
