//! Makes the objects of a pipeline, as values. The function is pure, and the same documents make the same bytes, since
//! any difference in the pod template would be a restart.

use std::collections::{BTreeMap, BTreeSet};

use litejoin_crds::PipelineSpec;
use serde_json::{Value, json};

use super::config_map;
use super::names;
use super::object::is_ours;
use super::observe::Observed;
use super::reshard::has_ended;
use super::slot::Slot;
use super::validate::{Config, Verdict};

mod drill;
mod network_policy;
mod overrides;
mod pod;
mod pod_monitor;
mod replication;
mod reshard_job;
mod secrets;
mod services;
mod stateful_set;

pub(crate) use services::admin_port;
pub(crate) use stateful_set::is_at_rest;

/// The settings of an operator that go into objects.
pub(crate) struct Operator {
    /// Image of workers whose Pipeline names none.
    pub(crate) worker_image: String,
    /// The namespace of the operator's own pods.
    pub(crate) namespace: String,
}

/// The objects that a pipeline is to have.
pub(crate) struct Desired {
    /// The objects by slot; a slot that is missing here is to be empty.
    pub(crate) objects: BTreeMap<Slot, Value>,
    /// Slots whose objects stay as they are.
    pub(crate) kept: BTreeSet<Slot>,
    /// Size of the config, if it is too large to be stored.
    pub(crate) config_bytes_excess: Option<usize>,
    /// The size that the volume is to have; `None` without one.
    pub(crate) volume_size: Option<String>,
}

/// Returns the desired objects; `None` where the Pipeline is wrong, and the objects of before stay.
pub(crate) fn build(observed: &Observed, verdict: &Verdict, operator: &Operator) -> Option<Desired> {
    let config = verdict.config.as_ref().ok()?;
    let spec = observed.spec();
    let owner = Owner { observed, config };
    let mut objects = BTreeMap::new();
    let mut kept = BTreeSet::new();
    if needs_service_account(observed, &spec) {
        objects.insert(
            Slot::ServiceAccount,
            owner.object(
                Slot::ServiceAccount,
                json!({
                    "automountServiceAccountToken": false,
                }),
            ),
        );
    }
    let live = observed.built.get(&Slot::StatefulSet);
    let shards = stateful_set::shards_of_pod(config, &spec, live, verdict.reshard.as_ref());
    let volumes = stateful_set::secret_volumes(config, &spec, live, shards);
    if let Some(gathered) = secrets::gather(config, observed).filter(|_| volumes.are_gathered()) {
        objects.insert(Slot::Secret, owner.object(Slot::Secret, gathered));
    }
    let mut config_bytes_excess = None;
    match config_map::data(&config.documents) {
        Ok(mut data) => {
            replication::expect(&mut data, observed);
            objects.insert(Slot::ConfigMap, owner.object(Slot::ConfigMap, json!({ "data": data })));
        }
        Err(bytes) => {
            config_bytes_excess = Some(bytes);
            kept.insert(Slot::ConfigMap);
        }
    }
    let headless = services::headless(&config.plan);
    objects.insert(Slot::HeadlessService, owner.object(Slot::HeadlessService, json!({ "spec": headless })));
    if let Some(service) = services::client(&config.plan) {
        objects.insert(Slot::Service, owner.object(Slot::Service, json!({ "spec": service })));
    }
    if spec.network_policy.enabled {
        let policy = network_policy::spec(&config.plan, &spec.network_policy, &operator.namespace);
        objects.insert(Slot::NetworkPolicy, owner.object(Slot::NetworkPolicy, json!({ "spec": policy })));
    }
    if spec.pod_monitor.enabled && observed.pod_monitors_served {
        let monitor = pod_monitor::spec(&config.plan, &spec.pod_monitor);
        let mut monitor = owner.object(Slot::PodMonitor, json!({ "spec": monitor }));
        for (label, value) in &spec.pod_monitor.labels {
            // Our own labels win, because objects are found by them.
            let labels = monitor["metadata"]["labels"].as_object_mut().expect("it has labels");
            labels.entry(label).or_insert_with(|| json!(value));
        }
        objects.insert(Slot::PodMonitor, monitor);
    }
    let image = stateful_set::default_image(config, &spec, &volumes, live, shards, &operator.worker_image);
    let pods = u32::from(!is_stopped(observed, verdict));
    let set = stateful_set::spec(config, &spec, &volumes, live, image, shards, pods);
    let mut set = owner.object(Slot::StatefulSet, json!({ "spec": set }));
    set["metadata"]["annotations"] = json!({ names::IMAGE_ANNOTATION: image });
    if shards != config.plan.storage.shard_count {
        set["metadata"]["annotations"][names::SHARDS_ANNOTATION] = json!(shards.to_string());
    }
    objects.insert(Slot::StatefulSet, set);
    if let Some(drill) = &spec.replication.drill {
        let job = drill::spec(config, &spec, drill, &volumes, image);
        objects.insert(Slot::CronJob, owner.object(Slot::CronJob, json!({ "spec": job })));
    }
    if let Some(reshard) = &verdict.reshard {
        let live = observed.built.get(&Slot::Job);
        // A pod that a deleted Job has left behind ends first: two would write to one volume.
        let is_free = live.is_some() || observed.job_pods.iter().all(has_ended);
        if reshard.wants_job() && is_free {
            let job = reshard_job::fields(config, &spec, reshard, &volumes, live, &operator.worker_image);
            objects.insert(Slot::Job, owner.object(Slot::Job, job));
        } else if reshard.wants_job() || reshard.keeps_job() {
            kept.insert(Slot::Job);
        }
    }
    let volume_size = (!spec.storage.ephemeral).then(|| stateful_set::volume_size(&spec));
    Some(Desired { objects, kept, config_bytes_excess, volume_size })
}

/// Whether the pipeline is to have no worker now: it is at rest, or its data is being moved.
pub(crate) fn is_stopped(observed: &Observed, verdict: &Verdict) -> bool {
    let moves = verdict.reshard.as_ref().is_some_and(|reshard| reshard.stops_worker(&observed.job_pods));
    is_at_rest(&observed.spec()) || moves
}

/// Whether the pod's account is ours to make: the spec names none, or names the one that we made.
fn needs_service_account(observed: &Observed, spec: &PipelineSpec) -> bool {
    let pipeline = &observed.pipeline;
    spec.pod_template.service_account_name.as_ref().is_none_or(|name| {
        let live = observed.built.get(&Slot::ServiceAccount);
        *name == Slot::ServiceAccount.name(&pipeline.name)
            && live.is_some_and(|live| is_ours(live, &pipeline.uid))
    })
}

/// The Pipeline that owns the objects.
struct Owner<'a> {
    observed: &'a Observed,
    config: &'a Config,
}

impl Owner<'_> {
    /// Makes an object with these fields, named for its slot and owned by the Pipeline.
    fn object(&self, slot: Slot, fields: Value) -> Value {
        let pipeline = &self.observed.pipeline;
        let resource = slot.resource();
        let mut object = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "name": slot.name(&pipeline.name),
                "namespace": pipeline.namespace,
                "labels": names::labels(&self.config.plan.name),
                "ownerReferences": [{
                    "apiVersion": litejoin_crds::API_VERSION,
                    "kind": "Pipeline",
                    "name": pipeline.name,
                    "uid": pipeline.uid,
                    "controller": true,
                }],
            },
        });
        for (field, value) in fields.as_object().into_iter().flatten() {
            match field.as_str() {
                "metadata" => pod::merge(&mut object["metadata"], value),
                _ => object[field] = value.clone(),
            }
        }
        object
    }
}
