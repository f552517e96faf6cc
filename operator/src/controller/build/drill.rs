//! A restore drill: now and then a job restores the replica to a volume of its own, checks every file, and ends. The
//! job writes nowhere else, and no selector of the worker's pod finds the job's.

use litejoin_crds::PipelineSpec;
use litejoin_crds::replication::DrillSpec;
use serde_json::{Value, json};

use super::secrets::SecretVolumes;
use super::{pod, stateful_set};
use crate::controller::config_map::FILE;
use crate::controller::names;
use crate::controller::validate::Config;

/// How often a job is tried before it has failed: a store may be away for a moment.
const RETRIES: u32 = 2;
/// How long a job may take, in seconds. A restore that takes longer would be of no use in an emergency.
const SECONDS_MAX: u32 = 6 * 3_600;

/// The CronJob's spec.
pub(super) fn spec(config: &Config, spec: &PipelineSpec, drill: &DrillSpec, default_image: &str) -> Value {
    let image = spec.image.as_deref().unwrap_or(default_image);
    let mut cron = json!({
        "schedule": drill.schedule,
        "suspend": stateful_set::is_at_rest(spec),
        "concurrencyPolicy": "Forbid",
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": { "spec": {
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": SECONDS_MAX,
            "template": template(config, spec, image),
        }},
    });
    if let Some(zone) = &drill.time_zone {
        cron["timeZone"] = json!(zone);
    }
    cron
}

/// The worker's pod with another command and another volume, and without `podTemplate.overrides`.
fn template(config: &Config, spec: &PipelineSpec, image: &str) -> Value {
    let secrets = SecretVolumes::gathered(&config.plan);
    let mut pod = pod::bare(config, spec, &secrets);
    let mut container = pod::container(config, spec, image, &secrets);
    let fields = container.as_object_mut().expect("a container is an object");
    for field in ["ports", "startupProbe", "livenessProbe", "readinessProbe"] {
        fields.remove(field);
    }
    container["name"] = json!("drill");
    container["args"] = json!(["restore", "--verify", "-f", format!("{}/{FILE}", pod::CONFIG_FOLDER)]);
    pod["containers"] = json!([container]);
    pod["restartPolicy"] = json!("Never");
    if !spec.storage.ephemeral {
        let claim = json!({ "spec": stateful_set::claim(spec)["spec"] });
        let volume = json!({ "name": names::DATA_VOLUME, "ephemeral": { "volumeClaimTemplate": claim } });
        pod["volumes"].as_array_mut().expect("a pod has volumes").push(volume);
    }
    let mut labels = json!(spec.pod_template.labels);
    pod::merge(&mut labels, &names::drill_labels(&config.plan.name));
    json!({ "metadata": { "labels": labels, "annotations": spec.pod_template.annotations }, "spec": pod })
}
