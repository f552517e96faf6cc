//! The StatefulSet of one pod. Fields that can't change after creation are taken from the live one. The default image
//! of a newer operator takes effect with the next restart that has another reason.

use kube::ResourceExt;
use kube::api::DynamicObject;
use litejoin_crds::PipelineSpec;
use litejoin_crds::{defaults, plan};
use serde_json::{Value, json};

use super::secrets::SecretVolumes;
use super::{overrides, pod, replication};
use crate::controller::names;
use crate::controller::object::hash;
use crate::controller::reshard::Reshard;
use crate::controller::validate::Config;

/// The number of shards that the pod is made for. A move beside the worker makes no other pod: the next one is for the new
/// number.
pub(crate) fn shards_of_pod(
    config: &Config,
    spec: &PipelineSpec,
    live: Option<&DynamicObject>,
    reshard: Option<&Reshard>,
) -> usize {
    let of_config = config.plan.storage.shard_count;
    let Some(live) = live.filter(|_| !reshard.is_some_and(Reshard::starts_worker)) else { return of_config };
    let noted = live.annotations().get(names::SHARDS_ANNOTATION).and_then(|shards| shards.parse().ok());
    let before = reshard.filter(|reshard| reshard.is_online()).map(|reshard| reshard.has as usize);
    let forms = [SecretVolumes::each(config), SecretVolumes::gathered(&config.plan)];
    let is_made_for = |shards: &usize| {
        forms.iter().any(|secrets| *settings_of(live) == settings_hash(config, spec, secrets, *shards))
    };
    noted.into_iter().chain(before).find(is_made_for).unwrap_or(of_config)
}

/// The image of a worker whose Pipeline names none: the one that its pod was made with, or the operator's own if the
/// pod is restarted for another reason anyway.
pub(crate) fn default_image<'a>(
    config: &Config,
    spec: &PipelineSpec,
    secrets: &SecretVolumes,
    live: Option<&'a DynamicObject>,
    shards: usize,
    worker_image: &'a str,
) -> &'a str {
    let made_with = live.and_then(|live| {
        let same = *settings_of(live) == settings_hash(config, spec, secrets, shards);
        live.annotations().get(names::IMAGE_ANNOTATION).filter(|_| same)
    });
    made_with.map_or(worker_image, String::as_str)
}

/// The StatefulSet's spec, with so many pods.
pub(crate) fn spec(
    config: &Config,
    spec: &PipelineSpec,
    secrets: &SecretVolumes,
    live: Option<&DynamicObject>,
    default_image: &str,
    shards: usize,
    pods: u32,
) -> Value {
    let image = spec.image.as_deref().unwrap_or(default_image);
    let settings = settings_hash(config, spec, secrets, shards);
    let mut template = pod::template(config, spec, image, secrets, &settings);
    if spec.replication.enabled {
        replication::add(&mut template["spec"], config, spec, secrets, shards);
    }
    if let Some(over) = &spec.pod_template.overrides {
        overrides::merge(&mut template, over);
    }
    let when_deleted = if spec.storage.retain_on_delete { "Retain" } else { "Delete" };
    let mut set = json!({
        "replicas": pods,
        "serviceName": names::headless_service(&config.plan.name),
        // With `OrderedReady`, a pod that can't start would not be replaced by a corrected one.
        "podManagementPolicy": "Parallel",
        "updateStrategy": { "type": "RollingUpdate" },
        "revisionHistoryLimit": 2,
        "persistentVolumeClaimRetentionPolicy": { "whenDeleted": when_deleted, "whenScaled": "Retain" },
        "selector": { "matchLabels": names::selector(&config.plan.name) },
        "template": template,
    });
    if !spec.storage.ephemeral {
        let template = live.and_then(|live| claim_template(&live.data)).unwrap_or_else(|| claim(spec));
        set["volumeClaimTemplates"] = json!([template]);
    }
    set
}

/// The volumes of credentials: those that the pod of an earlier operator has, for as long as nothing else makes another
/// pod.
pub(super) fn secret_volumes(
    config: &Config,
    spec: &PipelineSpec,
    live: Option<&DynamicObject>,
    shards: usize,
) -> SecretVolumes {
    let each = SecretVolumes::each(config);
    let stays = |live: &DynamicObject| {
        !SecretVolumes::are_gathered_in(live)
            && *settings_of(live) == settings_hash(config, spec, &each, shards)
    };
    if live.is_some_and(stays) { each } else { SecretVolumes::gathered(&config.plan) }
}

/// The hash of the settings that the pods of a StatefulSet are made with.
fn settings_of(live: &DynamicObject) -> &Value {
    &live.data["spec"]["template"]["metadata"]["annotations"][names::SETTINGS_ANNOTATION]
}

/// Whether the pipeline is to have no pod.
pub(crate) fn is_at_rest(spec: &PipelineSpec) -> bool {
    spec.suspend || spec.replicas == 0
}

/// Size of the volume.
pub(crate) fn volume_size(spec: &PipelineSpec) -> String {
    spec.storage.size.as_ref().map_or_else(|| defaults::VOLUME_SIZE.to_owned(), |size| size.0.clone())
}

/// The claim of the volume, as a StatefulSet has it.
pub(super) fn claim(spec: &PipelineSpec) -> Value {
    let mut claim = json!({
        "accessModes": [spec.storage.access_mode],
        "resources": { "requests": { "storage": volume_size(spec) } },
    });
    if let Some(class) = &spec.storage.storage_class_name {
        claim["storageClassName"] = json!(class);
    }
    json!({ "metadata": { "name": names::DATA_VOLUME }, "spec": claim })
}

/// The template of the claim in the live StatefulSet, as far as its fields are ours.
fn claim_template(live: &Value) -> Option<Value> {
    let spec = &live["spec"]["volumeClaimTemplates"][0]["spec"];
    let mut claim = json!({ "accessModes": spec["accessModes"], "resources": spec["resources"] });
    if spec["storageClassName"].is_string() {
        claim["storageClassName"] = spec["storageClassName"].clone();
    }
    spec.is_object().then(|| json!({ "metadata": { "name": names::DATA_VOLUME }, "spec": claim }))
}

/// Hash of all settings that a running worker can't change, or can't see change.
fn settings_hash(config: &Config, spec: &PipelineSpec, secrets: &SecretVolumes, shards: usize) -> String {
    // Replication that is off does not count, as in versions that did not have it: their pods stay as they are.
    let counts = |(path, value): &(&str, String)| *path != plan::REPLICATION || value != "none";
    let mut fixed: Vec<_> = config.plan.fixed().into_iter().filter(counts).collect();
    let of_shards = fixed.iter_mut().filter(|(path, _)| *path == plan::SHARD_COUNT);
    of_shards.for_each(|(_, value)| *value = shards.to_string());
    let mut settings = json!({ "fixed": fixed, "nonce": spec.restart_nonce });
    if let SecretVolumes::Each(secrets) = secrets {
        settings["secrets"] = json!(secrets);
    }
    // A worker that ends since its data is gone hears at once that it may begin empty.
    if let Some(accepted) = &spec.storage.accept_loss {
        settings["acceptLoss"] = json!(accepted);
    }
    hash(&settings)
}
