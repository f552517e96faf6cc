//! The Job that copies the data to another number of shards. Its pod is the worker's with another command: the same
//! image, account, volumes and credentials. It has the worker's labels, so that clients who come by the Services get a
//! 503 instead of no answer, and no probes: how far it is stands on its `/status`.

use kube::ResourceExt;
use kube::api::DynamicObject;
use litejoin_crds::PipelineSpec;
use serde_json::{Value, json};

use super::secrets::SecretVolumes;
use super::{overrides, pod, stateful_set};
use crate::controller::config_map::FILE;
use crate::controller::names;
use crate::controller::object::hash;
use crate::controller::reshard::Reshard;
use crate::controller::validate::Config;

/// How often a pod is made anew that has ended in an unforeseen way, such as a crash.
const RETRIES: u32 = 3;
/// The exit codes of a copy that can't be made, and of a config that can't be read: another try would say the same.
const REFUSED: [i32; 2] = [1, 2];
/// The exit code of a copy that was asked to end, as when its pod is evicted.
const TERMINATED: i32 = 143;
/// The name of the container.
const CONTAINER: &str = "reshard";

/// The fields of the Job. A live one keeps its default image, so that an upgrade of the operator does not end it.
pub(super) fn fields(
    config: &Config,
    spec: &PipelineSpec,
    reshard: &Reshard,
    secrets: &SecretVolumes,
    live: Option<&DynamicObject>,
    worker_image: &str,
) -> Value {
    let made_with = live.and_then(|live| live.annotations().get(names::IMAGE_ANNOTATION));
    let default_image = made_with.map_or(worker_image, String::as_str);
    let image = spec.image.as_deref().unwrap_or(default_image);
    let template = template(config, spec, reshard, secrets, image);
    let settings = hash(&template);
    json!({
        "metadata": { "annotations": {
            names::IMAGE_ANNOTATION: default_image,
            names::SETTINGS_ANNOTATION: settings,
        }},
        "spec": {
            "suspend": stateful_set::is_at_rest(spec),
            "backoffLimit": RETRIES,
            // Two pods must never write to one volume.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": { "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": { "containerName": CONTAINER, "operator": "In", "values": REFUSED },
                },
                {
                    "action": "Ignore",
                    "onExitCodes": { "containerName": CONTAINER, "operator": "In", "values": [TERMINATED] },
                },
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            ]},
            "template": template,
        },
    })
}

fn template(
    config: &Config,
    spec: &PipelineSpec,
    reshard: &Reshard,
    secrets: &SecretVolumes,
    image: &str,
) -> Value {
    let own = &spec.pod_template;
    let mut labels = json!(own.labels);
    pod::merge(&mut labels, &names::selector(&config.plan.name));
    let mut pod = pod::bare(config, spec, secrets);
    let mut container = pod::container(config, spec, image, secrets);
    let fields = container.as_object_mut().expect("a container is an object");
    for field in ["startupProbe", "livenessProbe", "readinessProbe"] {
        fields.remove(field);
    }
    container["name"] = json!(CONTAINER);
    let data = pod::data_folder(&config.plan.storage.data_dir);
    let file = format!("{}/{FILE}", pod::CONFIG_FOLDER);
    let to = reshard.to.to_string();
    container["args"] =
        json!(["reshard", "-f", file, "--data-dir", data, "--to", to, "--no-switch", "--serve"]);
    pod["containers"] = json!([container]);
    pod["restartPolicy"] = json!("Never");
    let claim = json!({ "claimName": names::claim(&config.plan.name) });
    let volume = json!({ "name": names::DATA_VOLUME, "persistentVolumeClaim": claim });
    pod["volumes"].as_array_mut().expect("a pod has volumes").push(volume);
    let mut template =
        json!({ "metadata": { "labels": labels, "annotations": own.annotations }, "spec": pod });
    if let Some(over) = &own.overrides {
        overrides::merge(&mut template, &for_job(over));
    }
    template
}

/// The part of the user's overrides that concerns a pod without sidecars and with another command: a sidecar would keep
/// the Job from ending, and a user or a folder that the worker has must be the Job's too.
fn for_job(over: &Value) -> Value {
    let mut over = over.clone();
    let Some(pod) = over.get_mut("spec").and_then(Value::as_object_mut) else { return over };
    for field in ["initContainers", "restartPolicy", "terminationGracePeriodSeconds"] {
        pod.remove(field);
    }
    let Some(containers) = pod.get_mut("containers").and_then(Value::as_array_mut) else { return over };
    containers.retain(|container| container["name"] == "worker");
    for container in containers.iter_mut() {
        container["name"] = json!(CONTAINER);
        let fields = container.as_object_mut().expect("it has a name");
        for field in ["args", "command", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle"] {
            fields.remove(field);
        }
    }
    over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_of_the_worker_hold_for_the_job_and_sidecars_do_not() {
        let over = json!({ "metadata": { "labels": { "a": "b" } }, "spec": {
            "securityContext": { "runAsUser": 1 },
            "initContainers": [{ "name": "first" }],
            "containers": [
                { "name": "proxy", "image": "p" },
                { "name": "worker", "args": ["run"], "volumeMounts": [{ "name": "ca", "mountPath": "/ca" }] },
            ],
            "volumes": [{ "name": "ca" }],
        }});
        assert_eq!(
            for_job(&over),
            json!({ "metadata": { "labels": { "a": "b" } }, "spec": {
                "securityContext": { "runAsUser": 1 },
                "containers": [{ "name": "reshard", "volumeMounts": [{ "name": "ca", "mountPath": "/ca" }] }],
                "volumes": [{ "name": "ca" }],
            }})
        );
        assert_eq!(for_job(&json!({})), json!({}));
    }
}
