//! Watches of our documents, of the objects that were built and of Secrets: a change in one lets its pipeline be
//! reconciled.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DynamicObject};
use kube::runtime::controller::Controller;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use litejoin_crds::kind::Kind;

use super::{kinds, names};

mod children;
mod pending;
mod secrets;

pub(crate) use children::Children;
pub(crate) use pending::PendingReconciles;
pub(crate) use secrets::SecretWatch;

/// The namespaces whose pipelines are reconciled.
pub(crate) enum Scope {
    Cluster,
    Namespace(String),
}

/// The controller with its watches of all objects that may concern a pipeline, but for its children and Secrets.
pub(crate) fn controller(client: &Client, scope: &Scope) -> Controller<DynamicObject> {
    let ours = || watcher::Config::default().labels(names::MANAGED_BY_SELECTOR);
    let of_pipelines = || watcher::Config::default().labels(names::PIPELINE_LABEL);
    let any = watcher::Config::default;
    let pipelines = kinds::resource(Kind::Pipeline);
    Controller::new_with(dynamic(client, scope, Kind::Pipeline), any(), pipelines)
        .owns(typed::<StatefulSet>(client, scope), ours())
        .owns(typed::<ConfigMap>(client, scope), ours())
        .owns(typed::<Service>(client, scope), ours())
        .owns(typed::<ServiceAccount>(client, scope), ours())
        .owns(typed::<NetworkPolicy>(client, scope), ours())
        .owns(typed::<CronJob>(client, scope), ours())
        .owns(typed::<Job>(client, scope), ours())
        .watches(typed::<Pod>(client, scope), of_pipelines(), |pod| by_label(&pod))
        .watches(typed::<PersistentVolumeClaim>(client, scope), of_pipelines(), |claim| by_label(&claim))
}

/// The pipeline that the label of an object names.
fn by_label<K: Resource>(object: &K) -> Option<ObjectRef<DynamicObject>> {
    let name = object.labels().get(names::PIPELINE_LABEL)?;
    object.namespace().map(|namespace| kinds::pipeline_ref(name, &namespace))
}

pub(crate) fn dynamic(client: &Client, scope: &Scope, kind: Kind) -> Api<DynamicObject> {
    let resource = kinds::resource(kind);
    match scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespace(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

pub(crate) fn typed<K>(client: &Client, scope: &Scope) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match scope {
        Scope::Cluster => Api::all(client.clone()),
        Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
    }
}
