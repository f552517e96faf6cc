//! A pod whose node is lost. Kubernetes marks the pod for deletion after some minutes and then waits for a kubelet that
//! does not answer, since the worker may still write; so a StatefulSet never replaces such a pod. With a replica the
//! operator can: the restored worker writes to a prefix of its own, and an old one that comes back finds its claim
//! taken.
//!
//! ```text
//! node silent ──5m──► pod marked for deletion ──its grace, then ours──► lost ──► Wait: say the command
//!                                                                             └► Replace: delete claim and pod
//! ```

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource};
use kube::{Client, ResourceExt};
use litejoin_crds::pipeline::OnNodeLoss;
use litejoin_crds::replication::RestorePolicy;
use litejoin_crds::status::PipelineStatus;
use tracing::debug;

use super::apply::Change;
use super::observe::Observed;
use crate::error::{Doing, Error};

/// How often the operator looks at a pod that should have ended, on a node that answers.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A node that is lost, with a pod of ours on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostNode {
    name: String,
    /// Why it counts as lost.
    sign: String,
}

/// The reaction to a lost node, with a message for the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeLossAction {
    /// The message tells the commands, and a person who knows that the node is off decides.
    AskUser(String),
    /// The pod and its volume are replaced.
    Replace(String),
}

/// The pod's node if it is lost: the pod should have ended `timeout` ago, and the node does not answer.
pub(crate) async fn look(
    client: &Client,
    observed: &Observed,
    timeout: Duration,
    now: Timestamp,
) -> Result<Option<LostNode>, Error> {
    let is_overdue = |pod: &&Pod| overdue_in(pod, timeout, now) == Some(Duration::ZERO);
    let Some(pod) = observed.pod.as_ref().filter(is_overdue) else { return Ok(None) };
    let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { return Ok(None) };
    let nodes: Api<Node> = Api::all(client.clone());
    let sign = match nodes.get_opt(&name).await {
        Ok(node) => silence(node.as_ref()),
        // An operator of one namespace may not read nodes, but a condition of the pod tells what Kubernetes thinks of
        // its node.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            debug!(reason = status.message, "the pod's word is taken for its node's state");
            given_up(pod)
        }
        Err(error) => return Err(error).doing(|| format!("read Node {name}")),
    };
    Ok(sign.map(|sign| LostNode { name, sign }))
}

/// The wait before the next look at a pod that is being deleted; `None` if the pod is not.
pub(crate) fn look_again_after(observed: &Observed, timeout: Duration, now: Timestamp) -> Option<Duration> {
    let wait = overdue_in(observed.pod.as_ref()?, timeout, now)?;
    Some(if wait.is_zero() { LOOK_AGAIN } else { wait + Duration::from_secs(1) })
}

/// How long until a pod that is being deleted should be gone; zero if it should be gone by now.
fn overdue_in(pod: &Pod, timeout: Duration, now: Timestamp) -> Option<Duration> {
    // `deletionTimestamp` is the time at which the grace period ends.
    let due = pod.metadata.deletion_timestamp.as_ref()?.0.as_second() + timeout.as_secs() as i64;
    Some(Duration::from_secs(u64::try_from(due - now.as_second()).unwrap_or(0)))
}

/// Why a node counts as lost; `None` if it answers.
fn silence(node: Option<&Node>) -> Option<String> {
    let Some(node) = node else { return Some("there is no such node any more".to_owned()) };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    let since =
        ready.last_transition_time.as_ref().map_or_else(String::new, |time| format!(" since {}", time.0));
    (ready.status != "True").then(|| format!("it has not been ready{since}"))
}

/// Why the node of this pod counts as lost, if Kubernetes deletes the pod because its node does not answer.
fn given_up(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let given_up = |reason: &str| matches!(reason, "DeletionByTaintManager" | "DeletionByPodGC");
    conditions
        .iter()
        .any(|condition| {
            condition.type_ == "DisruptionTarget" && condition.reason.as_deref().is_some_and(given_up)
        })
        .then(|| "Kubernetes has given its pods up".to_owned())
}

/// Decides what to do about a lost node, as the Pipeline wants it; `None` without a lost node.
pub(crate) fn action(observed: &Observed, lost: Option<&LostNode>) -> Option<NodeLossAction> {
    let (lost, pod) = (lost?, observed.pod.as_ref()?);
    let spec = observed.spec();
    let what = format!("the node {} of the pod {} is lost: {}", lost.name, pod.name_any(), lost.sign);
    let delete = |kind: &str, name: &str, more: &str| {
        format!("kubectl delete {kind} {name} -n {}{more}", observed.pipeline.namespace)
    };
    let pod_goes = delete("pod", &pod.name_any(), " --force --grace-period=0");
    let by_hand = match &observed.volume_claim {
        Some(claim) => format!(
            "when that node is surely off: {pod_goes}; if its disk is gone too, before that: {}",
            delete("pvc", &claim.name_any(), " --wait=false")
        ),
        None => format!("when that node is surely off: {pod_goes}"),
    };
    if spec.storage.on_node_loss == OnNodeLoss::Wait {
        return Some(NodeLossAction::AskUser(format!("{what}; {by_hand}")));
    }
    Some(match unrestorable(observed) {
        None => {
            NodeLossAction::Replace(format!("{what}; its data comes back from the replica, on another node"))
        }
        Some(why) => NodeLossAction::AskUser(format!("{what}; {why}, so it is not replaced; {by_hand}")),
    })
}

/// Why a new volume would not get back what was on the old one; `None` if it would.
fn unrestorable(observed: &Observed) -> Option<&'static str> {
    let replication = observed.spec().replication;
    let status: PipelineStatus = serde_json::from_value(observed.pipeline.status.clone()).unwrap_or_default();
    let replica = status.replication.unwrap_or_default();
    if !replication.enabled || replica.incarnation.is_none() {
        return Some("there is no whole replica to restore from");
    }
    if replica.place != observed.replica_place() {
        return Some("the replica has moved and is not whole yet at its new place");
    }
    let restores = replication.restore_on_boot && replication.restore.policy != RestorePolicy::Never;
    (!restores).then_some("restoreOnBoot or restore.policy says that nothing is restored")
}

/// Returns the writes that replace pod and volume of a lost node. The claim goes first, or the new pod would wait for
/// the old volume.
pub(crate) fn changes(observed: &Observed, lost: Option<&LostNode>) -> Vec<Change> {
    if !matches!(action(observed, lost), Some(NodeLossAction::Replace(_))) {
        return Vec::new();
    }
    let has_volume = !observed.spec().storage.ephemeral;
    let is_there = |claim: &&PersistentVolumeClaim| claim.metadata.deletion_timestamp.is_none();
    let claim =
        observed.volume_claim.as_ref().filter(is_there).filter(|_| has_volume).map(|claim| Change::Delete {
            resource: ApiResource::erase::<PersistentVolumeClaim>(&()),
            name: claim.name_any(),
            uid: claim.uid().unwrap_or_default(),
        });
    let pod = observed.pod.as_ref().map(|pod| Change::Abandon {
        resource: ApiResource::erase::<Pod>(&()),
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
    });
    claim.into_iter().chain(pod).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::{Value, json};

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_overdue_after_its_grace_and_our_timeout() {
        let deleted: Pod = read(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:01:00Z" } }));
        let at = |text: &str| text.parse().unwrap();
        let minute = Duration::from_secs(60);
        assert_eq!(overdue_in(&deleted, minute, at("2026-01-01T00:01:30Z")), Some(Duration::from_secs(30)));
        assert_eq!(overdue_in(&deleted, minute, at("2026-01-01T00:02:00Z")), Some(Duration::ZERO));
        assert_eq!(overdue_in(&deleted, minute, at("2026-01-01T01:00:00Z")), Some(Duration::ZERO));
        assert_eq!(overdue_in(&Pod::default(), minute, at("2026-01-01T01:00:00Z")), None);
    }

    #[test]
    fn a_node_that_answers_is_not_lost() {
        let node = |status: &str| -> Node {
            let ready =
                json!({ "type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z" });
            read(json!({ "metadata": {}, "status": { "conditions": [ready] } }))
        };
        assert_eq!(silence(Some(&node("True"))), None);
        let silent = Some("it has not been ready since 2026-01-01T00:00:00Z".to_owned());
        assert_eq!(silence(Some(&node("Unknown"))), silent);
        assert_eq!(silence(Some(&node("False"))), silent);
        assert_eq!(silence(None), Some("there is no such node any more".to_owned()));
        // A node without conditions has just been added.
        assert_eq!(silence(Some(&Node::default())), None);
    }

    #[test]
    fn without_a_view_of_nodes_the_pod_says_it() {
        let pod = |reason: &str| -> Pod {
            let condition = json!({ "type": "DisruptionTarget", "status": "True", "reason": reason });
            read(json!({ "metadata": {}, "status": { "conditions": [condition] } }))
        };
        assert!(given_up(&pod("DeletionByTaintManager")).is_some());
        assert!(given_up(&pod("EvictionByEvictionAPI")).is_none());
        assert!(given_up(&Pod::default()).is_none());
    }
}
