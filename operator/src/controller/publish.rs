//! Writes statuses where they differ, and an Event for each condition that has turned.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use litejoin_crds::API_VERSION;
use litejoin_crds::error::chain;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::kinds;
use super::names::FIELD_MANAGER;
use super::object::Object;
use super::observe::Observed;
use super::status::{Statuses, is_step, orphan};
use crate::error::{Doing, Error};

/// The longest note that an Event takes, in bytes.
const NOTE_BYTES_MAX: usize = 1024;

/// Writes statuses and Events.
pub(crate) struct Publisher {
    client: Client,
    recorder: Recorder,
}

impl Publisher {
    pub(crate) fn new(client: Client) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: None };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Writes the statuses that differ; returns how many there were.
    pub(crate) async fn publish(&self, observed: &Observed, statuses: Statuses) -> Result<usize, Error> {
        let mut written = 0;
        for (child, status) in observed.children.iter().zip(&statuses.children) {
            written += self.write(child, status, &status.conditions).await?;
        }
        // The Pipeline comes last: a program that waits for its status then finds those of the children written.
        let (pipeline, status) = (&observed.pipeline, &statuses.pipeline);
        Ok(written + self.write(pipeline, status, &status.conditions).await?)
    }

    /// Writes into the statuses of children that their Pipeline does not exist.
    pub(crate) async fn publish_orphans(&self, children: &[Object], pipeline: &str) -> Result<(), Error> {
        for child in children {
            let status = orphan(child, pipeline, Timestamp::now());
            self.write(child, &status, &status.conditions).await?;
        }
        Ok(())
    }

    async fn write(
        &self,
        object: &Object,
        status: &impl Serialize,
        conditions: &[Condition],
    ) -> Result<usize, Error> {
        let status = serde_json::to_value(status).expect("a status is plain data");
        if object.status == status {
            return Ok(0);
        }
        let (kind, namespace, name) = (object.kind.as_str(), &object.namespace, &object.name);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &kinds::resource(object.kind));
        // Without the uid, the write could make a new object if this one was deleted meanwhile.
        let document = json!({
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": { "name": name, "uid": object.uid },
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch_status(name, &parameters, &Patch::Apply(&document)).await {
            // The object was deleted meanwhile. A new one of its name answers with a conflict, and is reconciled anew.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(0),
            written => written.doing(|| format!("write the status of {kind} {namespace}/{name}"))?,
        };
        self.record_turns(object, conditions).await;
        Ok(1)
    }

    /// Records an Event for each of the conditions that people wait for whose status or reason has changed: a warning for
    /// a fault, whether it passes by itself or not.
    async fn record_turns(&self, object: &Object, conditions: &[Condition]) {
        for condition in conditions.iter().filter(|condition| is_news(object, condition)) {
            let (warns, when_fine) = match condition.type_.as_str() {
                "Ready" => (is_fault(condition), "everything runs as written"),
                "ReplicationHealthy" => (is_fault(condition), "the replica follows the data"),
                "Resharding" => (is_fault(condition), ""),
                "Degraded" => (true, ""),
                _ => continue,
            };
            let note = if condition.message.is_empty() { when_fine } else { &condition.message };
            info!(
                kind = object.kind.as_str(),
                namespace = object.namespace,
                name = object.name,
                condition = condition.type_,
                status = condition.status,
                reason = condition.reason,
                message = condition.message,
                "turned"
            );
            let event = Event {
                type_: if warns { EventType::Warning } else { EventType::Normal },
                reason: condition.reason.clone(),
                note: Some(shortened(note)),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            self.record(object, &event).await;
        }
    }

    async fn record(&self, object: &Object, event: &Event) {
        let reference = ObjectReference {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(object.kind.as_str().to_owned()),
            namespace: Some(object.namespace.clone()),
            name: Some(object.name.clone()),
            uid: Some(object.uid.clone()),
            ..ObjectReference::default()
        };
        // A lost Event does no harm: the status says the same, and the Event only shows it in `kubectl describe`.
        if let Err(error) = self.recorder.publish(event, &reference).await {
            warn!(error = chain(&error), "could not tell it as an Event");
        }
    }
}

/// Whether a condition that should hold does not, for another reason than a step on the way.
fn is_fault(condition: &Condition) -> bool {
    condition.status == "False" && !is_step(&condition.reason)
}

/// Whether a condition has another status or reason than before. The status Unknown is no news.
fn is_news(object: &Object, condition: &Condition) -> bool {
    let mut before = object.status["conditions"].as_array().into_iter().flatten();
    let before = before.find(|before| before["type"] == condition.type_.as_str());
    let same = |before: &Value| {
        before["status"] == condition.status.as_str() && before["reason"] == condition.reason.as_str()
    };
    condition.status != "Unknown" && !before.is_some_and(same)
}

/// The text, cut to the length that an Event takes.
fn shortened(note: &str) -> String {
    let mut end = note.len().min(NOTE_BYTES_MAX);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note[..end].to_owned()
}
