//! The pod: one container that runs the worker over the mounted config, under the restricted pod security standard.

use std::path::Path;

use litejoin_crds::PipelineSpec;
use serde_json::{Map, Value, json};

use super::config_map::FILE;
use super::services;
use crate::controller::names;
use crate::controller::validate::Config;

/// User and group of the worker, in the image and in the pod.
const USER: u32 = 65532;
/// The worker's working directory, from which a relative `dataDir` is reached.
const HOME: &str = "/var/lib/litejoin";
/// The folder where the config is mounted.
pub(super) const CONFIG_FOLDER: &str = "/etc/litejoin/config";
/// The folder where Secrets are mounted: a folder for each, and in it a file for each key.
pub(super) const SECRETS_FOLDER: &str = "/etc/litejoin/secrets";
/// How long a planned stop may take, in which the worker delivers results that are on their way and closes its files.
pub(super) const STOP_SECONDS: u32 = 60;

/// The pod's template, before replication and `podTemplate.overrides` are laid over it.
pub(crate) fn template(config: &Config, spec: &PipelineSpec, image: &str, settings_hash: &str) -> Value {
    let own = &spec.pod_template;
    let mut labels = serde_json::to_value(&own.labels).expect("labels are plain data");
    merge(&mut labels, &names::selector(&config.plan.name));
    let mut annotations = serde_json::to_value(&own.annotations).expect("annotations are plain data");
    merge(&mut annotations, &json!({ names::SETTINGS_ANNOTATION: settings_hash }));
    let mut pod = bare(config, spec);
    pod["terminationGracePeriodSeconds"] = json!(STOP_SECONDS);
    pod["containers"] = json!([container(config, spec, image)]);
    json!({ "metadata": { "labels": labels, "annotations": annotations }, "spec": pod })
}

/// The part of a pod spec that the worker's pod and a drill's share: account, security, volumes and scheduling.
pub(super) fn bare(config: &Config, spec: &PipelineSpec) -> Value {
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
        "volumes": volumes(config, spec),
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
pub(super) fn container(config: &Config, spec: &PipelineSpec, image: &str) -> Value {
    let admin = services::admin_port(&config.plan);
    let mut env = vec![json!({ "name": "LITEJOIN_LOG_FORMAT", "value": "json" })];
    if !config.secrets.is_empty() {
        env.push(json!({ "name": "LITEJOIN_SECRETS_DIR", "value": SECRETS_FOLDER }));
    }
    env.extend(spec.pod_template.env.iter().map(|variable| json!(variable)));
    let mut mounts = vec![
        json!({ "name": "config", "mountPath": CONFIG_FOLDER, "readOnly": true }),
        json!({ "name": names::DATA_VOLUME, "mountPath": data_folder(&config.plan.storage.data_dir) }),
        json!({ "name": "tmp", "mountPath": "/tmp" }),
    ];
    mounts.extend(config.secrets.iter().map(|secret| {
        let folder = format!("{SECRETS_FOLDER}/{secret}");
        json!({ "name": secret_volume(config, secret), "mountPath": folder, "readOnly": true })
    }));
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

fn volumes(config: &Config, spec: &PipelineSpec) -> Vec<Value> {
    let mut volumes = vec![
        json!({ "name": "config", "configMap": { "name": config.plan.name } }),
        json!({ "name": "tmp", "emptyDir": {} }),
    ];
    if spec.storage.ephemeral {
        volumes.push(json!({ "name": names::DATA_VOLUME, "emptyDir": {} }));
    }
    // A Secret that is deleted later must not keep a pod from starting; the child that needs it says so in its status.
    volumes.extend(config.secrets.iter().map(|secret| {
        json!({
            "name": secret_volume(config, secret),
            "secret": { "secretName": secret, "optional": true },
        })
    }));
    volumes
}

/// The name of a Secret's volume. It is numbered, since the name of a Secret may be longer than that of a volume.
pub(super) fn secret_volume(config: &Config, secret: &str) -> String {
    let index = config.secrets.iter().position(|name| name == secret).unwrap_or_default();
    format!("secret-{index}")
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
