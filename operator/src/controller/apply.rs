//! Writes the objects that differ, and nothing else. A pure function decides on the writes; each is one call that can
//! be repeated: server-side apply under our field manager, or a deletion of the very object that was seen.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use litejoin_crds::quantity;
use serde_json::{Map, Value, json};
use tracing::info;

use super::build::Desired;
use super::names::{self, FIELD_MANAGER};
use super::object::{hash, is_ours};
use super::observe::Observed;
use super::slot::Slot;
use crate::error::{Doing, Error};

/// One write.
#[derive(Debug)]
pub(crate) enum Change {
    /// Server-side apply: fields of `object` get its values, and fields that were ours before and are not in it go.
    Apply { resource: ApiResource, name: String, object: Value },
    /// A merge patch: fields of `patch` get its values, and all others stay.
    Patch { resource: ApiResource, name: String, patch: Value },
    /// A deletion of the object with this `uid`.
    Delete { resource: ApiResource, name: String, uid: String },
    /// A deletion of the object with this `uid` that ends once all pods of the object are gone.
    DeleteWithPods { resource: ApiResource, name: String, uid: String },
    /// A deletion that does not wait for the kubelet that runs the object, for use when its node is lost.
    Abandon { resource: ApiResource, name: String, uid: String },
}

/// Returns the writes that lead from the observed objects to the desired ones.
pub(crate) fn changes(observed: &Observed, desired: &Desired) -> Vec<Change> {
    let mut changes = Vec::new();
    for slot in Slot::ALL {
        let live = observed.built.get(&slot);
        if desired.kept.contains(&slot) || live.is_some_and(|live| !is_ours(live, &observed.pipeline.uid)) {
            continue;
        }
        let (resource, name) = (slot.resource(), slot.name(&observed.pipeline.name));
        // A Job can't be changed, so another takes its place once it is gone.
        if let Some(live) = live.filter(|_| slot == Slot::Job)
            && !is_job_of(live, desired.objects.get(&slot))
        {
            let uid = live.uid().unwrap_or_default();
            let deletion = Change::DeleteWithPods { resource, name, uid };
            changes.extend(Some(deletion).filter(|_| live.metadata.deletion_timestamp.is_none()));
            continue;
        }
        match (desired.objects.get(&slot), live) {
            (Some(object), _) if !is_written(observed, desired, slot) => {
                changes.push(Change::Apply { resource, name, object: signed(object) });
            }
            (Some(wanted), Some(live)) if slot == Slot::StatefulSet && has_foreign_settings(live, wanted) => {
                let patch = json!({ "spec": { "template": { "spec": own_containers(wanted) } } });
                changes.push(Change::Patch { resource, name, patch });
            }
            (None, Some(live)) if live.metadata.deletion_timestamp.is_none() => {
                changes.push(Change::Delete { resource, name, uid: live.uid().unwrap_or_default() });
            }
            _ => {}
        }
    }
    changes
        .extend(desired.volume_size.as_deref().and_then(|size| grow(observed.volume_claim.as_ref()?, size)));
    changes
}

/// Whether a live Job is the one that is wanted, and not on its way out.
fn is_job_of(live: &DynamicObject, wanted: Option<&Value>) -> bool {
    let made_for = |wanted: &Value| {
        let settings = &wanted["metadata"]["annotations"][names::SETTINGS_ANNOTATION];
        live.annotations().get(names::SETTINGS_ANNOTATION).is_some_and(|live| settings == live.as_str())
    };
    live.metadata.deletion_timestamp.is_none() && wanted.is_some_and(made_for)
}

/// The lists of containers in a pod's spec.
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Whether somebody else has given our containers variables or resources: the fields are not ours, so server-side apply
/// leaves them, and the worker would run with settings that stand in no document.
fn has_foreign_settings(live: &DynamicObject, wanted: &Value) -> bool {
    let (live, wanted) = (&live.data["spec"]["template"]["spec"], &wanted["spec"]["template"]["spec"]);
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let has_more = |live: &Value, wanted: &Value| {
        let is_foreign =
            |variable: &Value| !items(&wanted["env"]).iter().any(|other| other["name"] == variable["name"]);
        items(&live["env"]).iter().any(is_foreign) || !contains(&wanted["resources"], &live["resources"])
    };
    CONTAINERS.iter().any(|list| {
        items(&wanted[*list]).iter().any(|wanted| {
            items(&live[*list]).iter().any(|live| live["name"] == wanted["name"] && has_more(live, wanted))
        })
    })
}

/// The containers of a StatefulSet as they are wanted.
fn own_containers(wanted: &Value) -> Value {
    let pod = &wanted["spec"]["template"]["spec"];
    let lists = CONTAINERS.iter().filter(|list| pod[**list].is_array());
    lists.map(|list| ((*list).to_owned(), pod[*list].clone())).collect::<Map<_, _>>().into()
}

/// Whether the observed object has every field of the desired one.
pub(crate) fn is_written(observed: &Observed, desired: &Desired, slot: Slot) -> bool {
    let (live, wanted) = (observed.built.get(&slot), desired.objects.get(&slot));
    wanted.is_none_or(|wanted| live.is_some_and(|live| says(live, &signed(wanted))))
}

/// The object with a hash of itself: the hash differs if a field that was ours is not wanted any more.
fn signed(object: &Value) -> Value {
    let mut signed = object.clone();
    signed["metadata"]["annotations"][names::WRITTEN_ANNOTATION] = json!(hash(object));
    signed
}

/// Whether the live object has every field of `object` with its value.
fn says(live: &DynamicObject, object: &Value) -> bool {
    let live = serde_json::to_value(live).expect("an object is plain data");
    contains(&live, object)
}

/// Whether `live` has all that `wanted` has. Servers leave out empty fields and write quantities in a form of their
/// own.
fn contains(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(field, wanted)| contains(live.get(field).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            let named = |item: &Value| item["name"].is_string();
            if wanted.iter().all(named) {
                return wanted.iter().all(|item| {
                    live.iter().any(|present| present["name"] == item["name"] && contains(present, item))
                });
            }
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| contains(live, wanted))
        }
        (Value::Null, Value::Object(wanted)) => wanted.values().all(|wanted| contains(&Value::Null, wanted)),
        (Value::Null, wanted) => is_empty(wanted),
        (Value::String(live), Value::String(wanted)) => live == wanted || same_quantity(live, wanted),
        (live, wanted) => live == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Whether both are the same amount: `1024Mi` and `1Gi`, `1000m` and `1`.
fn same_quantity(one: &str, other: &str) -> bool {
    fn amount(text: &str) -> Option<f64> {
        match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse::<f64>().ok().map(|number| number / 1000.0),
            None => text.parse().ok().or_else(|| quantity::parse(text).ok().map(|bytes| bytes as f64)),
        }
    }
    amount(one).is_some_and(|one| amount(other) == Some(one))
}

/// The patch of a claim that asks for less than `size`. The template of a StatefulSet can't be changed, but its claim
/// can.
fn grow(claim: &PersistentVolumeClaim, size: &str) -> Option<Change> {
    let requested = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    let (requested, wanted) = (quantity::parse(&requested.0).ok()?, quantity::parse(size).ok()?);
    let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
    let resource = ApiResource::erase::<PersistentVolumeClaim>(&());
    (wanted > requested).then(|| Change::Patch { resource, name: claim.name_any(), patch })
}

/// The patch that annotates a pod, which makes kubelet look at the pod's volumes at once.
pub(crate) fn annotate(pod: &Pod, annotations: Vec<(&str, String)>) -> Change {
    let annotations: BTreeMap<&str, String> = annotations.into_iter().collect();
    let patch = json!({ "metadata": { "uid": pod.uid(), "annotations": annotations } });
    Change::Patch { resource: ApiResource::erase::<Pod>(&()), name: pod.name_any(), patch }
}

/// Makes the changes in turn; returns their number.
pub(crate) async fn apply(client: &Client, namespace: &str, changes: Vec<Change>) -> Result<usize, Error> {
    let count = changes.len();
    for change in changes {
        let api = |resource: &ApiResource| -> Api<DynamicObject> {
            Api::namespaced_with(client.clone(), namespace, resource)
        };
        match change {
            Change::Apply { resource, name, object } => {
                let parameters = PatchParams::apply(FIELD_MANAGER).force();
                let applied = api(&resource).patch(&name, &parameters, &Patch::Apply(&object)).await;
                applied.doing(|| format!("apply {} {namespace}/{name}", resource.kind))?;
                info!(kind = resource.kind, namespace, name, "applied");
            }
            Change::Patch { resource, name, patch } => {
                let parameters =
                    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
                let patched = api(&resource).patch(&name, &parameters, &Patch::Merge(&patch)).await;
                patched.doing(|| format!("patch {} {namespace}/{name}", resource.kind))?;
                info!(kind = resource.kind, namespace, name, "patched");
            }
            Change::Delete { resource, name, uid } => {
                delete(&api(&resource), &resource, &name, uid, DeleteParams::background()).await?;
            }
            Change::DeleteWithPods { resource, name, uid } => {
                delete(&api(&resource), &resource, &name, uid, DeleteParams::foreground()).await?;
            }
            Change::Abandon { resource, name, uid } => {
                let parameters = DeleteParams::background().grace_period(0);
                delete(&api(&resource), &resource, &name, uid, parameters).await?;
            }
        }
    }
    Ok(count)
}

/// Deletes the object with this `uid`, and no later one of its name.
async fn delete(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    name: &str,
    uid: String,
    parameters: DeleteParams,
) -> Result<(), Error> {
    let preconditions = Preconditions { uid: Some(uid), resource_version: None };
    match api.delete(name, &parameters.preconditions(preconditions)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        deleted => {
            deleted.doing(|| format!("delete {} {name}", resource.kind))?;
        }
    }
    info!(kind = resource.kind, name, "deleted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_others_are_told_from_ours() {
        let set =
            |container: Value| json!({ "spec": { "template": { "spec": { "containers": [container] } } } });
        let wanted = set(
            json!({ "name": "worker", "env": [{ "name": "A" }], "resources": { "limits": { "cpu": "1" } } }),
        );
        for (container, foreign) in [
            (
                json!({ "name": "worker", "env": [{ "name": "A" }], "resources": { "limits": { "cpu": "1" } } }),
                false,
            ),
            (json!({ "name": "worker", "env": [{ "name": "A" }, { "name": "B" }] }), true),
            (json!({ "name": "worker", "resources": { "limits": { "cpu": "1", "memory": "1Gi" } } }), true),
            (json!({ "name": "worker", "resources": { "limits": { "cpu": "1000m" } } }), false),
            (json!({ "name": "theirs", "env": [{ "name": "B" }] }), false),
        ] {
            let mut live = set(container.clone());
            live["metadata"] = json!({ "name": "orders" });
            let live: DynamicObject = serde_json::from_value(live).unwrap();
            assert_eq!(has_foreign_settings(&live, &wanted), foreign, "{container}");
        }
    }

    #[test]
    fn what_a_server_rewrites_is_the_same() {
        for (live, wanted, same) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1}), true),
            (json!({"a": 1}), json!({"a": 1, "b": 2}), false),
            (json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "1000m", "memory": "1024Mi"}), true),
            (json!({"cpu": "1"}), json!({"cpu": "1100m"}), false),
            (json!({}), json!({"emptyDir": {}, "value": "", "tty": false}), true),
            (json!({}), json!({"security": {"drop": ["ALL"]}}), false),
            (json!([{"name": "a", "x": 1}, {"name": "b"}]), json!([{"name": "b"}]), true),
            (json!([{"name": "a", "x": 1}]), json!([{"name": "a", "x": 2}]), false),
            (json!(["a", "b"]), json!(["a"]), false),
        ] {
            assert_eq!(contains(&live, &wanted), same, "{live} {wanted}");
        }
    }
}
