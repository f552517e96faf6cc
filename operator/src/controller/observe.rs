//! Reads the state of one pipeline: the Pipeline, its children, the objects that were built, and the Secrets that are
//! named.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{Api, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use litejoin_crds::PipelineSpec;
use litejoin_crds::kind::Kind;
use litejoin_crds::names::is_pipeline;
use tracing::debug;

use super::object::{Object, is_ours};
use super::slot::Slot;
use super::watch::{Children, SecretWatch};
use super::{kinds, names, reshard};
use crate::error::{Doing, Error};

mod secrets;

pub(crate) use secrets::{AdminKeys, SecretValues, secret_keys};

/// How long a StatefulSet may be without a pod before it is asked why, in seconds.
const NO_POD_SECONDS: i64 = 5;

/// The state of one pipeline as it was read; later steps change nothing in it.
pub(crate) struct Observed {
    pub(crate) pipeline: Object,
    /// The children in the order of their creation: where two claim one name, the older has it.
    pub(crate) children: Vec<Object>,
    /// The objects that were built before, and any others of their names.
    pub(crate) built: BTreeMap<Slot, DynamicObject>,
    /// The claim of the pod's volume.
    pub(crate) volume_claim: Option<PersistentVolumeClaim>,
    /// The claim of a second pod, which somebody has let the StatefulSet make.
    pub(crate) leftover_claim: Option<String>,
    /// The pod that our StatefulSet has made.
    pub(crate) pod: Option<Pod>,
    /// Why the StatefulSet could not make the pod last, while there is none: a quota, a policy, a webhook.
    pub(crate) pod_refusal: Option<String>,
    /// The pods of the Job that copies the data to another number of shards.
    pub(crate) job_pods: Vec<Pod>,
    /// Why that Job could not make its pod last, while there is none.
    pub(crate) job_refusal: Option<String>,
    /// Names of the keys of each Secret that a document names; `None` where there is no such Secret.
    pub(crate) secrets: BTreeMap<String, Option<BTreeSet<String>>>,
    /// Whether the cluster knows PodMonitors; `false` without a look if none is wanted.
    pub(crate) pod_monitors_served: bool,
    /// The values of those Secrets.
    pub(crate) secret_values: SecretValues,
    /// Whether the operator may not read Secrets here.
    pub(crate) secrets_forbidden: bool,
    /// The token and certificate for the worker's admin address.
    pub(crate) admin_keys: AdminKeys,
}

impl Observed {
    /// Whether the operator is to change nothing.
    pub(crate) fn is_paused(&self) -> bool {
        self.pipeline.spec["reconciliationPaused"] == true
    }

    /// See [`Object::pipeline_spec`].
    pub(crate) fn spec(&self) -> PipelineSpec {
        self.pipeline.pipeline_spec()
    }

    /// What to do where the operator may not read Secrets.
    pub(crate) fn forbidden_message(&self) -> String {
        let namespace = &self.pipeline.namespace;
        format!(
            "the operator may not read Secrets in this namespace; bind the ClusterRole <release>-operator-secrets of its chart \
             to its ServiceAccount by a RoleBinding in {namespace}"
        )
    }

    /// The UID of the volume claim without which there is no data; `None` where there is none yet, where a replica has it
    /// too, or where its loss is accepted.
    pub(crate) fn claim_of_data(&self) -> Option<String> {
        let PipelineSpec { storage, replication, .. } = self.spec();
        let claim = self.pipeline.status["layout"]["volumeClaimUid"].as_str()?;
        let is_needed =
            !replication.enabled && !storage.ephemeral && storage.accept_loss.as_deref() != Some(claim);
        is_needed.then(|| claim.to_owned())
    }

    /// Where the replica of the pipeline is to be, such as `s3://bucket/prefix/shop/orders`; `None` without one.
    pub(crate) fn replica_place(&self) -> Option<String> {
        let replication = self.spec().replication;
        let Object { namespace, name, .. } = &self.pipeline;
        let identity = replication.identity.unwrap_or_else(|| format!("{namespace}/{name}"));
        let endpoint = replication.endpoint.map(|endpoint| format!("{endpoint} ")).unwrap_or_default();
        let url = replication.replica_url?;
        Some(format!("{endpoint}{}/{identity}", url.trim_end_matches('/')))
    }
}

/// Reads the state of a pipeline; `None` if the Pipeline does not exist or is being deleted. A name becomes a part of
/// an address, so a text that is no name is not asked for.
pub(crate) async fn observe(
    client: &Client,
    children: &Children,
    secret_watch: &SecretWatch,
    namespace: &str,
    name: &str,
) -> Result<Option<Observed>, Error> {
    let pipelines: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), namespace, &kinds::resource(Kind::Pipeline));
    let pipeline = match is_pipeline(name) {
        true => pipelines.get_opt(name).await.doing(|| format!("read Pipeline {namespace}/{name}"))?,
        false => None,
    };
    let Some(pipeline) = pipeline.filter(|pipeline| pipeline.metadata.deletion_timestamp.is_none()) else {
        secret_watch.note(namespace, name, &BTreeSet::new());
        return Ok(None);
    };
    let pipeline = Object::new(Kind::Pipeline, &pipeline);
    let children = children.of(namespace, name);
    let wants_monitor = pipeline.pipeline_spec().pod_monitor.enabled;
    let has_reshard = reshard::is_concerned(&pipeline);
    let claim_named = async |claim: String| {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        claims.get_opt(&claim).await.doing(|| format!("read PersistentVolumeClaim {namespace}/{claim}"))
    };
    let (built, pod_monitors_served, claim, leftover, pod, job_pods) = tokio::try_join!(
        built(client, namespace, name, has_reshard),
        async { if wants_monitor { pod_monitors_served(client).await } else { Ok(false) } },
        claim_named(names::claim(name)),
        claim_named(names::second_claim(name)),
        async {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let pod = names::pod(name);
            pods.get_opt(&pod).await.doing(|| format!("read Pod {namespace}/{pod}"))
        },
        async { if has_reshard { job_pods(client, namespace, name).await } else { Ok(Vec::new()) } },
    )?;
    // The claim and the pod of somebody else's StatefulSet are not ours, even under our names.
    let set = built.get(&Slot::StatefulSet);
    let volume_claim = claim.filter(|_| set.is_none_or(|set| is_ours(set, &pipeline.uid)));
    let is_of_set = |pod: &Pod| {
        set.filter(|set| is_ours(set, &pipeline.uid)).and_then(ResourceExt::uid).is_some_and(|set| {
            pod.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == set)
        })
    };
    let pod = pod.filter(is_of_set);
    let lacks_pod = set.filter(|set| pod.is_none() && wants_pod(set));
    let pod_refusal = refusal(client, namespace, lacks_pod).await?;
    let job = built.get(&Slot::Job).filter(|job| is_ours(job, &pipeline.uid) && is_old(job));
    let job_refusal = refusal(client, namespace, job.filter(|_| job_pods.is_empty())).await?;
    let mut named = BTreeSet::new();
    for object in std::iter::once(&pipeline).chain(&children) {
        named.extend(secret_keys(&object.spec).into_iter().map(|(secret, _)| secret));
    }
    secret_watch.note(namespace, name, &named);
    let read = SecretValues::read(client, namespace, named).await?;
    let secrets_forbidden = read.is_none();
    let secret_values = read.unwrap_or_default();
    let admin_keys = AdminKeys::of(&pipeline.pipeline_spec(), |reference| {
        secret_values.value(&reference.name, &reference.key)
    });
    Ok(Some(Observed {
        pipeline,
        children,
        built,
        volume_claim,
        leftover_claim: leftover
            .filter(|claim| claim.metadata.deletion_timestamp.is_none())
            .map(|claim| claim.name_any()),
        pod,
        pod_refusal,
        job_pods,
        job_refusal,
        secrets: secret_values.keys(),
        secret_values,
        secrets_forbidden,
        pod_monitors_served,
        admin_keys,
    }))
}

/// Whether a StatefulSet should have made its pod by now.
fn wants_pod(set: &DynamicObject) -> bool {
    set.data["spec"]["replicas"] != 0 && is_old(set)
}

/// Whether an object is so old that its pod should be there.
fn is_old(owner: &DynamicObject) -> bool {
    let made = owner.metadata.creation_timestamp.as_ref().map(|made| made.0);
    let age = made.and_then(|made| made.until(jiff::Timestamp::now()).ok());
    age.is_some_and(|age| age.get_seconds() >= NO_POD_SECONDS)
}

/// Returns what the API server last answered to the controller that was to make the pod of this object, which tells it
/// in an Event alone.
async fn refusal(
    client: &Client,
    namespace: &str,
    owner: Option<&DynamicObject>,
) -> Result<Option<String>, Error> {
    let Some(owner) = owner else { return Ok(None) };
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let uid = owner.uid().unwrap_or_default();
    let about_it = ListParams::default().fields(&format!("involvedObject.uid={uid},reason=FailedCreate"));
    let events = match events.list(&about_it).await {
        // An operator with the rights of before has none to this; the status then only says that there is no pod.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            debug!(reason = status.message, "why there is no pod stays unknown");
            return Ok(None);
        }
        events => events.doing(|| format!("read the Events about {namespace}/{}", owner.name_any()))?,
    };
    let last = events.items.into_iter().max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    Ok(last.and_then(|event| event.message))
}

async fn built(
    client: &Client,
    namespace: &str,
    pipeline: &str,
    has_reshard: bool,
) -> Result<BTreeMap<Slot, DynamicObject>, Error> {
    // A Job is looked for only where one may be, since a settled pipeline has none.
    let slots = Slot::ALL.into_iter().filter(|slot| has_reshard || *slot != Slot::Job);
    let reads = slots.map(|slot| async move {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &slot.resource());
        let name = slot.name(pipeline);
        let found = match api.get_opt(&name).await {
            // `get_opt` covers a missing object; a missing kind (PodMonitor) answers 404 in another form.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            // Without the right to Secrets, none is made, and documents that name some are told so.
            Err(kube::Error::Api(status)) if status.code == 403 && slot == Slot::Secret => Ok(None),
            found => found,
        };
        let found = found.doing(|| format!("read {} {namespace}/{name}", slot.resource().kind))?;
        Ok(found.map(|object| (slot, object)))
    });
    Ok(try_join_all(reads).await?.into_iter().flatten().collect())
}

/// Reads the pods of the Job that copies the data to another number of shards.
async fn job_pods(client: &Client, namespace: &str, pipeline: &str) -> Result<Vec<Pod>, Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let of_job = ListParams::default().labels(&names::reshard_pods_selector(pipeline));
    let pods = pods.list(&of_job).await;
    Ok(pods.doing(|| format!("list the Pods of Job {namespace}/{}", names::reshard_job(pipeline)))?.items)
}

/// Whether the cluster knows the Prometheus operator's kind PodMonitor.
async fn pod_monitors_served(client: &Client) -> Result<bool, Error> {
    match client.list_api_group_resources(kinds::POD_MONITOR_API_VERSION).await {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.kind == kinds::pod_monitor().kind)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error).doing(|| format!("ask for the kinds of {}", kinds::POD_MONITOR_API_VERSION)),
    }
}
