//! Our kinds, and the PodMonitor, as the API names them. Documents are read as they are, without types: what a schema of another version
//! lets pass is then a complaint in a status, and never a list that can't be read.

use kube::api::{ApiResource, DynamicObject};
use kube::runtime::reflector::ObjectRef;
use litejoin_crds::kind::Kind;
use litejoin_crds::{API_VERSION, GROUP, VERSION};

/// What refers to a Pipeline.
pub(crate) const CHILDREN: [Kind; 4] = [Kind::Source, Kind::Join, Kind::Window, Kind::Sink];

/// The address of a kind.
pub(crate) fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: API_VERSION.to_owned(),
        kind: kind.as_str().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

/// A Pipeline as kube's controller names it.
pub(crate) fn pipeline_ref(name: &str, namespace: &str) -> ObjectRef<DynamicObject> {
    ObjectRef::new_with(name, resource(Kind::Pipeline)).within(namespace)
}

/// Group and version of the Prometheus operator's kinds.
pub(crate) const POD_MONITOR_API_VERSION: &str = "monitoring.coreos.com/v1";

/// The address of the kind PodMonitor.
pub(crate) fn pod_monitor() -> ApiResource {
    ApiResource {
        group: "monitoring.coreos.com".to_owned(),
        version: "v1".to_owned(),
        api_version: POD_MONITOR_API_VERSION.to_owned(),
        kind: "PodMonitor".to_owned(),
        plural: "podmonitors".to_owned(),
    }
}
