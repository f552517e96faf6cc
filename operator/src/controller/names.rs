//! Names, labels and annotations of objects. Labels of the user's documents are never copied: tools that watch by
//! labels would take our objects for theirs, and remove them.

use kube::ResourceExt;
use serde_json::{Value, json};

/// The field manager, under whose name the API server remembers which fields are ours.
pub(crate) const FIELD_MANAGER: &str = "litejoin-operator";
/// Label that names the program which made an object.
const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// `app.kubernetes.io/name` of the operator's own pods, as the chart writes it.
pub(crate) const OPERATOR: &str = "litejoin-operator";
/// Label that names the pipeline; StatefulSets select their pods by it.
pub(crate) const PIPELINE_LABEL: &str = "litejoin.io/pipeline";
/// Selects the objects that this operator has made.
pub(crate) const MANAGED_BY_SELECTOR: &str = "app.kubernetes.io/managed-by=litejoin-operator";
/// Annotation of a pod template: hash of the settings that hold from a worker's start to its end.
pub(crate) const SETTINGS_ANNOTATION: &str = "litejoin.io/settings";
/// Annotation of an object: hash of its fields as they were written, which differs if one is not wanted any more.
pub(crate) const WRITTEN_ANNOTATION: &str = "litejoin.io/written";
/// Annotation of a StatefulSet: the image that its worker has while its Pipeline names none.
pub(crate) const IMAGE_ANNOTATION: &str = "litejoin.io/default-image";
/// Annotation of a StatefulSet: the number of shards that its pod is made for, where the data has another one by now.
pub(crate) const SHARDS_ANNOTATION: &str = "litejoin.io/shards";
/// Annotation of a pod: hash of the config that kubelet is to look for at once.
pub(crate) const CONFIG_ANNOTATION: &str = "litejoin.io/config";

/// Annotation of a pod: hash of the gathered Secret that kubelet is to look for at once.
pub(crate) const SECRET_ANNOTATION: &str = "litejoin.io/secret";

/// Label of a pod that names the revision of the template which its StatefulSet made it from.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

/// The volume of the data.
pub(crate) const DATA_VOLUME: &str = "data";

/// Whether the object has the label of what this operator made.
pub(crate) fn is_managed(object: &impl ResourceExt) -> bool {
    object.labels().get(MANAGED_BY_LABEL).is_some_and(|manager| manager == FIELD_MANAGER)
}

/// Labels of every object that is built for a pipeline.
pub(crate) fn labels(pipeline: &str) -> Value {
    json!({
        "app.kubernetes.io/name": "litejoin",
        MANAGED_BY_LABEL: FIELD_MANAGER,
        PIPELINE_LABEL: pipeline,
    })
}

/// Labels by which a pipeline's pods are found; they never change.
pub(crate) fn selector(pipeline: &str) -> Value {
    json!({ "app.kubernetes.io/name": "litejoin", PIPELINE_LABEL: pipeline })
}

/// Labels of a pod that restores for a drill. No selector of the worker's pod finds a drill's.
pub(crate) fn drill_labels(pipeline: &str) -> Value {
    json!({ "app.kubernetes.io/name": "litejoin-drill", PIPELINE_LABEL: pipeline })
}

/// The headless Service, which gives the pod its name in DNS.
pub(crate) fn headless_service(pipeline: &str) -> String {
    format!("{pipeline}-headless")
}

/// The Secret in which the keys are gathered that the worker reads.
pub(crate) fn gathered_secret(pipeline: &str) -> String {
    format!("{pipeline}-litejoin")
}

/// The Job that copies the data to another number of shards.
pub(crate) fn reshard_job(pipeline: &str) -> String {
    format!("{pipeline}-reshard")
}

/// Selects the pods of that Job.
pub(crate) fn reshard_pods_selector(pipeline: &str) -> String {
    format!("batch.kubernetes.io/job-name={}", reshard_job(pipeline))
}

/// The only pod of the StatefulSet.
pub(crate) fn pod(pipeline: &str) -> String {
    format!("{pipeline}-0")
}

/// The claim of a second pod, which there is only if somebody has scaled the StatefulSet.
pub(crate) fn second_claim(pipeline: &str) -> String {
    format!("{DATA_VOLUME}-{pipeline}-1")
}

/// The claim of the pod's volume, as the StatefulSet names it.
pub(crate) fn claim(pipeline: &str) -> String {
    format!("{DATA_VOLUME}-{pipeline}-0")
}
