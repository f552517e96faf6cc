//! The containers that a replicated pipeline's pod has besides the worker: one that claims the replica and restores
//! missing files before anything else runs, and Litestream as a sidecar, which kubelet ends after the worker.
//!
//! ```text
//! restore (runs to its end) ─► litestream (sidecar, until the worker has ended) ─► worker
//!    claim, files, litestream.yml ─────────► all in the data directory ◄──── control socket
//! ```

use litejoin_crds::PipelineSpec;
use litejoin_crds::defaults::REPLICATION_LAST_SYNC_SECONDS;
use litejoin_crds::replication::{FILES_BESIDE_SHARDS, ReplicationMode};
use serde_json::{Value, json};

use super::pod;
use super::secrets::SecretVolumes;
use crate::controller::config_map::FILE;
use crate::controller::names;
use crate::controller::observe::Observed;
use crate::controller::validate::Config;

/// Litestream's configuration in the data directory, written by the worker before Litestream runs.
const LITESTREAM_CONFIG: &str = "litestream.yml";
/// The variable that says that there is a replica, with which the worker never starts empty if it finds none.
const EXPECT_REPLICA: &str = "LITEJOIN_EXPECT_REPLICA";
/// The key of the ConfigMap that [`EXPECT_REPLICA`] comes from. A changed ConfigMap, unlike a changed template, makes
/// no new pod.
const EXPECT_REPLICA_KEY: &str = "expect-replica";
/// How long the end of a pod may take beyond the worker's and Litestream's.
const MARGIN_SECONDS: u32 = 5;

/// Lays replication over a pod of one container, the worker.
pub(super) fn add(
    pod: &mut Value,
    config: &Config,
    spec: &PipelineSpec,
    secrets: &SecretVolumes,
    shards: usize,
) {
    let expected = json!({
        "name": EXPECT_REPLICA,
        "valueFrom": { "configMapKeyRef": { "name": config.plan.name, "key": EXPECT_REPLICA_KEY, "optional": true } },
    });
    let worker = &mut pod["containers"][0];
    // The user's own variables come later and so may override this one.
    worker["env"].as_array_mut().expect("a worker has variables").insert(0, expected);
    let mut before = vec![restore(worker)];
    if spec.replication.mode == ReplicationMode::Sidecar {
        before.push(litestream(worker, config, spec, secrets));
    }
    pod["initContainers"] = json!(before);
    pod["terminationGracePeriodSeconds"] = json!(stop_seconds(shards));
}

/// Adds to the ConfigMap's data that there is a replica, once the worker has said so.
pub(super) fn expect(data: &mut Value, observed: &Observed) {
    let status = &observed.pipeline.status["replication"];
    if observed.spec().replication.enabled && status["incarnation"].is_i64() {
        data[EXPECT_REPLICA_KEY] = json!("true");
    }
}

/// How long a pod may take to end: the worker's time, then Litestream's, which tries one file after another if the
/// store is away.
fn stop_seconds(shards: usize) -> u32 {
    let shards = u32::try_from(shards).expect("a few shards");
    let files = shards + FILES_BESIDE_SHARDS;
    pod::STOP_SECONDS + files * REPLICATION_LAST_SYNC_SECONDS + MARGIN_SECONDS
}

/// The container that restores and ends, with the worker's image. A restore may take long, so the container has no
/// probe.
fn restore(worker: &Value) -> Value {
    let mut container = json!({
        "name": "restore",
        "args": ["replication", "prepare", "-f", format!("{}/{FILE}", pod::CONFIG_FOLDER)],
    });
    copy(worker, &mut container, &["workingDir", "env", "resources"]);
    container["volumeMounts"] = worker["volumeMounts"].clone();
    container
}

/// Litestream beside the worker, over the same files.
fn litestream(worker: &Value, config: &Config, spec: &PipelineSpec, secrets: &SecretVolumes) -> Value {
    let data = pod::data_folder(&config.plan.storage.data_dir);
    let mut container = json!({
        "name": "litestream",
        "command": ["litestream"],
        "args": ["replicate", "-no-expand-env", "-config", format!("{data}/{LITESTREAM_CONFIG}")],
        "env": spec.pod_template.env,
        // With `Always`, an init container is a sidecar: it runs beside the worker and ends after it.
        "restartPolicy": "Always",
    });
    copy(worker, &mut container, &[]);
    if let Some(image) = &spec.replication.image {
        container["image"] = json!(image);
    }
    let mut mounted = vec![names::DATA_VOLUME.to_owned(), "tmp".to_owned()];
    if let Some(secret) = &spec.replication.credentials_secret_ref {
        container["envFrom"] = json!([{ "secretRef": { "name": secret.name, "optional": true } }]);
        // Some keys are read as files, such as those of SSH.
        mounted.push(secrets.of_credentials(&secret.name));
    }
    let mounts = worker["volumeMounts"].as_array().expect("a worker has volumes").iter();
    let mounts = mounts.filter(|mount| mounted.iter().any(|name| mount["name"] == name.as_str()));
    container["volumeMounts"] = mounts.cloned().collect();
    container
}

/// Copies the fields that all containers here share with the worker, and `more`.
fn copy(worker: &Value, container: &mut Value, more: &[&str]) {
    const ALWAYS: [&str; 4] = ["image", "imagePullPolicy", "securityContext", "terminationMessagePolicy"];
    for field in ALWAYS.iter().chain(more) {
        if !worker[*field].is_null() {
            container[*field] = worker[*field].clone();
        }
    }
}
