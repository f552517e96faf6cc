//! A document of ours as the API server has it, read without a type; and what is asked of any object of the cluster:
//! whether it is ours, whether it runs, and a hash of it.

use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DynamicObject;
use litejoin_crds::kind::Kind;
use litejoin_crds::status::ChildStatus;
use litejoin_crds::{Document, PipelineSpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::names;

/// The condition of a child that says whether the worker runs it.
pub(crate) const PROGRAMMED: &str = "Programmed";

/// A document of ours as the API server has it.
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// `resourceVersion` as a number, which grows with each write; `None` where the API server has other texts.
    pub(crate) version: Option<u64>,
    pub(crate) spec: Value,
    pub(crate) status: Value,
}

impl Object {
    pub(crate) fn new(kind: Kind, object: &DynamicObject) -> Self {
        Self {
            kind,
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            version: version(object),
            spec: object.data["spec"].clone(),
            status: object.data["status"].clone(),
        }
    }

    /// Whether this is an older state of the document than `other`.
    pub(crate) fn is_before(&self, other: &DynamicObject) -> bool {
        self.version.zip(version(other)).is_some_and(|(here, other)| here < other)
    }

    /// Whether the status of a child says that the worker runs it as it is written now.
    pub(crate) fn is_programmed(&self) -> bool {
        let status: ChildStatus = serde_json::from_value(self.status.clone()).unwrap_or_default();
        status.conditions.iter().any(|condition| {
            condition.type_ == PROGRAMMED
                && condition.status == "True"
                && condition.observed_generation == Some(self.generation)
        })
    }

    /// The spec of a Pipeline as a type; its defaults where it can't be read as one, which `validate` complains about.
    pub(crate) fn pipeline_spec(&self) -> PipelineSpec {
        serde_json::from_value(self.spec.clone()).unwrap_or_default()
    }

    /// The document without its status and other fields that its author did not write.
    pub(crate) fn document(&self) -> Document {
        let metadata = json!({ "name": self.name, "namespace": self.namespace });
        let (api_version, kind) = (litejoin_crds::API_VERSION, self.kind.as_str());
        Document {
            value: json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": self.spec }),
        }
    }
}

fn version(object: &DynamicObject) -> Option<u64> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}

/// Whether an object is ours to write: its owner is this Pipeline, or it has no owner and our label says that we made
/// it.
pub(crate) fn is_ours(live: &DynamicObject, pipeline_uid: &str) -> bool {
    match live.owner_references().iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) => owner.uid == pipeline_uid,
        None => names::is_managed(live),
    }
}

/// Whether a pod runs and is to go on so.
pub(crate) fn is_up(pod: &Pod) -> bool {
    let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    running && pod.metadata.deletion_timestamp.is_none()
}

/// A short hash of a value: 16 hex digits.
pub(crate) fn hash(value: &Value) -> String {
    Sha256::digest(value.to_string()).iter().take(8).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
