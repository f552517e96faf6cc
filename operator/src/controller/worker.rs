//! Asks the worker in the pod which config it runs, at `/status` of its admin address.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ApiResource;
use litejoin_crds::worker_status::{ReshardReport, WorkerStatus};
use tracing::debug;

use super::apply::{Change, annotate};
use super::build::{Desired, admin_port};
use super::names;
use super::object::{hash, is_up};
use super::observe::Observed;
use super::reshard::Reshard;
use super::slot::Slot;
use super::validate::{Config, Verdict};
use super::watch::PendingReconciles;

mod client;
mod follow;
mod replica;
mod report;

use client::{AdminClient, AdminError};
use follow::{Followed, Followers};
pub(crate) use replica::Replica;
#[cfg(test)]
pub(crate) use report::WorkerNews;
pub(crate) use report::WorkerReport;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The page of the admin address that is read.
const STATUS: &str = "/status";

/// Clients of all workers.
pub(crate) struct Workers {
    plain: reqwest::Client,
    followers: Followers,
}

/// A worker that is waited for: its pod, and the hash of what it is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Awaited {
    pod: Option<String>,
    config: Option<String>,
}

impl Awaited {
    pub(crate) fn of(observed: &Observed, verdict: &Verdict) -> Self {
        let config = verdict.config.as_ref().ok().map(|config| config.hash.clone());
        Self { pod: observed.pod.as_ref().and_then(ResourceExt::uid), config }
    }
}

impl Workers {
    /// Workers with news let their pipelines be reconciled.
    pub(crate) fn new(pending: Arc<PendingReconciles>) -> Self {
        Self { plain: client::plain(), followers: Followers::new(pending) }
    }

    /// Asks the worker of a pipeline what it runs, and follows it from then on.
    pub(crate) async fn ask(&self, observed: &Observed, verdict: &Verdict) -> WorkerReport {
        let (report, followed) = self.ask_once(observed, verdict).await;
        self.followers.follow(&observed.pipeline.namespace, &observed.pipeline.name, followed);
        report
    }

    /// Follows the worker of a pipeline no more.
    pub(crate) fn leave(&self, namespace: &str, pipeline: &str) {
        self.followers.follow(namespace, pipeline, None);
    }

    /// Asks the Job that copies the data to another number of shards how far it is; `None` without an answer.
    pub(crate) async fn ask_job(&self, observed: &Observed, verdict: &Verdict) -> Option<ReshardReport> {
        let config = verdict.config.as_ref().ok()?;
        verdict.reshard.as_ref().filter(|reshard| reshard.wants_job())?;
        let authority = observed.job_pods.iter().find_map(|pod| authority(pod, config))?;
        // The numbers move all the time, so the Job is asked by a timetable, and not followed.
        let admin = AdminClient::new(&self.plain, &config.plan, &observed.admin_keys).ok()?;
        let told = status(&admin, &authority).await.ok()?.0.reshard;
        told.filter(|told| Some(told.to_shard_count) == verdict.reshard.as_ref().map(|reshard| reshard.to))
    }

    async fn ask_once(&self, observed: &Observed, verdict: &Verdict) -> (WorkerReport, Option<Followed>) {
        let Ok(config) = &verdict.config else { return (WorkerReport::Absent, None) };
        let Some(authority) = observed.pod.as_ref().and_then(|pod| authority(pod, config)) else {
            return (WorkerReport::Absent, None);
        };
        let admin = match AdminClient::new(&self.plain, &config.plan, &observed.admin_keys) {
            Ok(admin) => admin,
            Err(why) => return (WorkerReport::Silent { why: Some(why) }, None),
        };
        match status(&admin, &authority).await {
            Ok((status, tag)) => {
                let followed = tag.map(|tag| Followed { admin, authority, tag });
                (WorkerReport::of(status, &config.hash), followed)
            }
            Err(AdminError::Refused(why)) => (WorkerReport::Silent { why: Some(why) }, None),
            Err(AdminError::Silent(error)) => {
                debug!(authority, error = litejoin_crds::error::chain(&error), "the worker does not answer");
                (WorkerReport::Silent { why: None }, None)
            }
        }
    }
}

/// `host:port` of the admin address in a pod; `None` while the pod does not run.
fn authority(pod: &Pod, config: &Config) -> Option<String> {
    let address = Some(pod).filter(|pod| is_up(pod)).and_then(pod_ip)?;
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    Some(format!("{host}:{}", admin_port(&config.plan)))
}

/// Returns the worker's status, and the `ETag` of it if it has one.
async fn status(admin: &AdminClient, authority: &str) -> Result<(WorkerStatus, Option<String>), AdminError> {
    let mut response = admin.get(authority, STATUS).await?;
    let tag = response.headers().get(reqwest::header::ETAG).and_then(|tag| tag.to_str().ok());
    let tag = tag.map(str::to_owned);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(AdminError::Silent)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok((serde_json::from_slice(&body).unwrap_or_default(), tag))
}

/// Returns the write that replaces a pod which runs with the number of shards of before. Kubelet may give a pod a config
/// that is a moment old, and no worker changes its shards while it runs.
pub(crate) fn restart(observed: &Observed, verdict: &Verdict, report: &WorkerReport) -> Option<Change> {
    let WorkerReport::Behind { refusal: Some(refusal), .. } = report else { return None };
    let pod = observed.pod.as_ref().filter(|pod| is_up(pod))?;
    let set = observed.built.get(&Slot::StatefulSet)?;
    let is_switching = verdict.reshard.as_ref().is_some_and(Reshard::starts_worker);
    let is_newest = pod.labels().get(names::REVISION_LABEL).map(String::as_str)
        == set.data["status"]["updateRevision"].as_str();
    let is_late = is_switching && is_newest && refusal.contains("spec.storage.shardCount");
    (is_late && !observed.is_paused()).then(|| Change::Delete {
        resource: ApiResource::erase::<Pod>(&()),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    })
}

/// Returns the write that makes kubelet look at once for the config that the worker waits for, and for credentials.
pub(crate) fn nudge(
    observed: &Observed,
    verdict: &Verdict,
    desired: Option<&Desired>,
    report: &WorkerReport,
) -> Option<Change> {
    let (config, pod) = (verdict.config.as_ref().ok()?, observed.pod.as_ref().filter(|pod| is_up(pod))?);
    let behind = matches!(report, WorkerReport::Behind { .. });
    let config = behind.then(|| (names::CONFIG_ANNOTATION, config.hash.clone()));
    let secret = desired.and_then(|desired| desired.objects.get(&Slot::Secret));
    let secret = secret.map(|secret| (names::SECRET_ANNOTATION, hash(secret)));
    let is_new = |(name, value): &(&str, String)| pod.annotations().get(*name) != Some(value);
    let new: Vec<_> = config.into_iter().chain(secret).filter(is_new).collect();
    (!new.is_empty() && !observed.is_paused()).then(|| annotate(pod, new))
}

fn pod_ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}
