//! The objects that a pipeline can have, one for each slot: their kinds and names.

use kube::api::ApiResource;

use super::{kinds, names};

/// The place of one object of a pipeline. Objects are written in the order of the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    ServiceAccount,
    Secret,
    ConfigMap,
    HeadlessService,
    Service,
    NetworkPolicy,
    PodMonitor,
    StatefulSet,
    CronJob,
    Job,
}

impl Slot {
    pub(crate) const ALL: [Self; 10] = [
        Self::ServiceAccount,
        Self::Secret,
        Self::ConfigMap,
        Self::HeadlessService,
        Self::Service,
        Self::NetworkPolicy,
        Self::PodMonitor,
        Self::StatefulSet,
        Self::CronJob,
        Self::Job,
    ];

    /// The kind of the object, as the API addresses it.
    pub(crate) fn resource(self) -> ApiResource {
        match self {
            Self::ServiceAccount => ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()),
            Self::Secret => ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&()),
            Self::ConfigMap => ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()),
            Self::HeadlessService | Self::Service => {
                ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&())
            }
            Self::NetworkPolicy => ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&()),
            Self::PodMonitor => kinds::pod_monitor(),
            Self::StatefulSet => ApiResource::erase::<k8s_openapi::api::apps::v1::StatefulSet>(&()),
            Self::CronJob => ApiResource::erase::<k8s_openapi::api::batch::v1::CronJob>(&()),
            Self::Job => ApiResource::erase::<k8s_openapi::api::batch::v1::Job>(&()),
        }
    }

    /// The name of the object for a pipeline of this name.
    pub(crate) fn name(self, pipeline: &str) -> String {
        match self {
            Self::HeadlessService => names::headless_service(pipeline),
            Self::Secret => names::gathered_secret(pipeline),
            Self::Job => names::reshard_job(pipeline),
            _ => pipeline.to_owned(),
        }
    }
}
