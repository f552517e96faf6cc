//! Whether the worker is ready, as the status of its pod has it, with a message that says what to do.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::condition::{Fact, Holds};

const KIND: &str = "WorkerReady";

/// Whether the worker is ready, and if not, why. `refusal` says why there is no pod.
pub(super) fn worker_ready(pod: Option<&Pod>, refusal: Option<&str>, at_rest: bool) -> Fact {
    let Some(pod) = pod else {
        return match (at_rest, refusal) {
            (true, _) => Fact::not_yet(KIND, "Suspended", "the pipeline is at rest"),
            (false, Some(refusal)) => {
                Fact::not_yet(KIND, "FailedCreate", format!("the pod may not be made: {refusal}"))
            }
            (false, None) => Fact::not_yet(KIND, "NoPod", "waits for the pod to be made"),
        };
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if pod.metadata.deletion_timestamp.is_some() {
        return Fact::not_yet(KIND, "Stopping", format!("the pod {name} is being stopped"));
    }
    let status = pod.status.clone().unwrap_or_default();
    let condition = |kind: &str| status.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    if condition("Ready").is_some_and(|ready| ready.status == "True") {
        return Fact::yes(KIND, "Ready");
    }
    if let Some(unscheduled) = condition("PodScheduled").filter(|scheduled| scheduled.status == "False") {
        let why = unscheduled.message.as_deref().unwrap_or("no node takes it");
        return Fact::not_yet(KIND, "Unschedulable", format!("no node takes the pod {name}: {why}"));
    }
    // Kubelet takes both back at once; where the node is silent, Kubernetes takes back the pod's alone.
    let mut own = status.container_statuses.iter().flatten();
    if own.any(|container| container.name == "worker" && container.ready) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let message = format!("the node {node} does not answer, so nobody knows whether the pod {name} runs");
        return Fact::not_yet(KIND, "NodeNotReady", message);
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    match containers.into_iter().find_map(trouble) {
        Some((reason, message)) => Fact::new(KIND, Holds::NotYet, reason, message),
        None if restores(&status) => Fact::not_yet(
            KIND,
            "Restoring",
            format!("the pod {name} fetches from the replica what it is missing"),
        ),
        None => Fact::not_yet(KIND, "Starting", format!("the pod {name} is starting")),
    }
}

/// Why the pod of a Job does not run: a reason and a message; `None` if it runs, starts, or has ended.
pub(super) fn why_not_running(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled");
    if let Some(unscheduled) = scheduled.filter(|scheduled| scheduled.status == "False") {
        let why = unscheduled.message.as_deref().unwrap_or("no node takes it");
        return Some(("Unschedulable".to_owned(), format!("no node takes the pod {name}: {why}")));
    }
    status.container_statuses.iter().flatten().find_map(trouble)
}

/// Whether the restoring container is running.
fn restores(status: &PodStatus) -> bool {
    let running = |container: &ContainerStatus| {
        container.name == "restore" && container.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    status.init_container_statuses.iter().flatten().any(running)
}

/// Why a container does not run: a reason and a message.
fn trouble(container: &ContainerStatus) -> Option<(String, String)> {
    let state = container.state.as_ref()?;
    let ended = |state: &k8s_openapi::api::core::v1::ContainerState| {
        let ended = state.terminated.as_ref()?;
        let said = ended.message.as_deref().unwrap_or_default().trim();
        let how = match ended.reason.as_deref() {
            Some("OOMKilled") => "it ran out of memory; raise spec.resources.limits.memory".to_owned(),
            _ => format!("it ended with exit code {}", ended.exit_code),
        };
        Some(if said.is_empty() { how } else { format!("{how} and said: {said}") })
    };
    let last = container.last_state.as_ref().and_then(ended);
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("Waiting");
        if matches!(reason, "ContainerCreating" | "PodInitializing") {
            return None;
        }
        let said = waiting.message.as_deref().unwrap_or_default();
        let message = [Some(format!("container {}: {said}", container.name)), last];
        let message = message.into_iter().flatten().collect::<Vec<_>>().join("; ");
        return Some((reason.to_owned(), message));
    }
    let now = ended(state).filter(|_| container.name == "worker");
    now.map(|how| ("Ended".to_owned(), format!("container {}: {how}", container.name)))
}
