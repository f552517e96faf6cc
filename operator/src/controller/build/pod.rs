//! The pod: one container that runs the worker over the mounted config, under the restricted pod security standard.

use std::path::Path;

use litejoin_crds::PipelineSpec;
use serde_json::{Map, Value, json};

use super::secrets::SecretVolumes;
use super::services;
use crate::controller::config_map::FILE;
use crate::controller::names;
use crate::controller::validate::Config;

/// User and group of the worker, in the image and in the pod.
const USER: u32 = 65532;
/// The worker's working directory, from which a relative `dataDir` is reached.
const HOME: &str = "/var/lib/litejoin";
/// The folder where the config is mounted.
pub(super) const CONFIG_FOLDER: &str = "/etc/litejoin/config";
/// How long a planned stop may take, in which the worker delivers results that are on their way and closes its files.
pub(super) const STOP_SECONDS: u32 = 60;

/// The pod's template, before replication and `podTemplate.overrides` are laid over it.
pub(super) fn template(
    config: &Config,
    spec: &PipelineSpec,
    image: &str,
    secrets: &SecretVolumes,
    settings_hash: &str,
) -> Value {
    let own = &spec.pod_template;
    let mut labels = serde_json::to_value(&own.labels).expect("labels are plain data");
    merge(&mut labels, &names::selector(&config.plan.name));
    let mut annotations = serde_json::to_value(&own.annotations).expect("annotations are plain data");
    merge(&mut annotations, &json!({ names::SETTINGS_ANNOTATION: settings_hash }));
    let mut pod = bare(config, spec, secrets);
    pod["terminationGracePeriodSeconds"] = json!(STOP_SECONDS);
    pod["containers"] = json!([container(config, spec, image, secrets)]);
    json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": pod })
}

/// The part of a pod spec that the worker's pod and a drill's share: account, security, volumes and scheduling.
pub(super) fn bare(config: &Config, spec: &PipelineSpec, secrets: &SecretVolumes) -> Value {
    let own = &spec.pod_template;
    let account = own.service_account_name.as_deref().unwrap_or(&config.plan.name);
    let mut pod = json!({
        "serviceAccountName": account,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumes": volumes(config, spec, secrets),
    });
    let set = |pod: &mut Value, field: &str, value: Value| {
        let empty = value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty);
        if !empty {
            pod[field] = value;
        }
    };
    set(&mut pod, "nodeSelector", json!(own.node_selector));
    set(&mut pod, "tolerations", json!(own.tolerations));
    set(&mut pod, "affinity", json!(own.affinity));
    set(&mut pod, "topologySpreadConstraints", json!(own.topology_spread_constraints));
    set(&mut pod, "priorityClassName", json!(own.priority_class_name));
    set(&mut pod, "imagePullSecrets", json!(own.image_pull_secrets));
    pod
}

/// The worker's container.
pub(super) fn container(config: &Config, spec: &PipelineSpec, image: &str, secrets: &SecretVolumes) -> Value {
    let admin = services::admin_port(&config.plan);
    let mut env = vec![json!({ "name": "LITEJOIN_LOG_FORMAT", "value": "json" })];
    env.extend(secrets.variable());
    env.extend(spec.pod_template.env.iter().map(|variable| json!(variable)));
    let mut mounts = vec![
        json!({ "name": "config", "mountPath": CONFIG_FOLDER, "readOnly": true }),
        json!({ "name": names::DATA_VOLUME, "mountPath": data_folder(&config.plan.storage.data_dir) }),
        json!({ "name": "tmp", "mountPath": "/tmp" }),
    ];
    mounts.extend(secrets.mounts(&config.plan.name));
    let scheme = if config.plan.admin.serving.tls.is_some() { "HTTPS" } else { "HTTP" };
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": admin, "scheme": scheme },
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": "worker",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["run", "--watch", "--leave-out-invalid", "-f", format!("{CONFIG_FOLDER}/{FILE}")],
        "workingDir": HOME,
        "env": env,
        // Ports of sources and sinks come and go without another pod, so none of them is named here.
        "ports": [{ "name": "admin", "containerPort": admin, "protocol": "TCP" }],
        "volumeMounts": mounts,
        "startupProbe": probe("/healthz", 1, 300),
        "livenessProbe": probe("/healthz", 10, 6),
        "readinessProbe": probe("/readyz", 2, 3),
        // The last words of a worker that fails get into the pod's status, and from there into the Pipeline's.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    });
    if let Some(resources) = &spec.resources {
        container["resources"] = json!(resources);
    }
    container
}

fn volumes(config: &Config, spec: &PipelineSpec, secrets: &SecretVolumes) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": "config", "configMap": { "name": config.plan.name } }),
        json!({ "name": "tmp", "emptyDir": {} }),
    ];
    if spec.storage.ephemeral {
        volumes.push(json!({ "name": names::DATA_VOLUME, "emptyDir": {} }));
    }
    volumes.extend(secrets.volumes(&config.plan.name));
    volumes
}

/// The folder where the volume of the data is mounted.
pub(super) fn data_folder(data_dir: &Path) -> String {
    let parts = data_dir.components().filter(|part| *part != std::path::Component::CurDir);
    Path::new(HOME).join(parts.collect::<std::path::PathBuf>()).display().to_string()
}

/// Lays the fields of one object over another's.
pub(super) fn merge(into: &mut Value, from: &Value) {
    for (field, value) in from.as_object().into_iter().flatten() {
        into[field] = value.clone();
    }
}
