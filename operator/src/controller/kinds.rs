//! Our kinds, and the PodMonitor, as the API addresses them. Documents are read without types: a document that only a
//! schema of another version lets pass is then a complaint in a status, and not a list that can't be read.

use kube::api::{ApiResource, DynamicObject};
use kube::runtime::reflector::ObjectRef;
use litejoin_crds::kind::Kind;
use litejoin_crds::{API_VERSION, GROUP, VERSION};

/// The kinds of documents that name a Pipeline.
pub(crate) const CHILDREN: [Kind; 4] = [Kind::Source, Kind::Join, Kind::Window, Kind::Sink];

/// A kind of ours as the API addresses it.
pub(crate) fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: kind.as_str().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

/// A Pipeline as kube's controller refers to it.
pub(crate) fn pipeline_ref(name: &str, namespace: &str) -> ObjectRef<DynamicObject> {
    ObjectRef::new_with(name, resource(Kind::Pipeline)).within(namespace)
}

/// Group and version of the Prometheus operator's kinds.
pub(crate) const POD_MONITOR_API_VERSION: &str = "monitoring.coreos.com/v1";

/// The kind PodMonitor as the API addresses it.
pub(crate) fn pod_monitor() -> ApiResource {
    ApiResource {
        group: "monitoring.coreos.com".to_owned(),
        version: "v1".to_owned(),
        api_version: POD_MONITOR_API_VERSION.to_owned(),
        kind: "PodMonitor".to_owned(),
        plural: "podmonitors".to_owned(),
    }
}
