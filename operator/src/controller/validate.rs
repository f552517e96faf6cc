//! Decides which of the documents can run. The function is pure: `litejoin_crds::validate` judges, and children that
//! are wrong are left out until the rest can run without them.

use std::collections::{BTreeMap, BTreeSet};

use litejoin_crds::hash::config_hash;
use litejoin_crds::{Complaint, Document, Plan, Reason, Severity, unsupported, validate as judge};
use serde_json::Value;

use super::object::Object;
use super::observe::{Observed, secret_keys};

mod admin;

/// Fields of a Pipeline that only the operator reads.
const OPERATORS_FIELDS: [&str; 9] = [
    "image",
    "replicas",
    "suspend",
    "reconciliationPaused",
    "restartNonce",
    "networkPolicy",
    "podMonitor",
    "resources",
    "podTemplate",
];

/// Fields of its `storage` that only the operator reads.
const OPERATORS_STORAGE_FIELDS: [&str; 7] =
    ["size", "storageClassName", "accessMode", "retainOnDelete", "ephemeral", "onNodeLoss", "reshard"];

/// Fields of its `replication` that only the operator reads.
const OPERATORS_REPLICATION_FIELDS: [&str; 2] = ["image", "drill"];

/// The judgement on all documents of a pipeline.
pub(crate) struct Verdict {
    /// The config that is to run, or what is wrong with the Pipeline itself.
    pub(crate) config: Result<Config, Vec<Complaint>>,
    /// Complaints about children that are left out, by the index of the child.
    pub(crate) refused: BTreeMap<usize, Vec<Complaint>>,
    /// Complaints about children that run and whose Secret is gone, by the index of the child. Such a Secret is usually
    /// being replaced, and a sink that was left out meanwhile would forget what it has not delivered.
    pub(crate) lacking: BTreeMap<usize, Vec<Complaint>>,
    /// A change of `shardCount` that `reshard` consents to and no worker can make yet: from, to.
    pub(crate) reshard: Option<(u64, u64)>,
}

/// The config that a worker is to run.
pub(crate) struct Config {
    /// The documents, the Pipeline first and without the fields that only the operator reads.
    pub(crate) documents: Vec<Document>,
    pub(crate) plan: Plan,
    /// The hash by which the worker names this config.
    pub(crate) hash: String,
    /// Secrets that the worker needs.
    pub(crate) secrets: BTreeSet<String>,
}

/// Judges all documents.
pub(crate) fn validate(observed: &Observed) -> Verdict {
    let mut pipeline = observed.pipeline.document();
    let reshard = hold_layout(&mut pipeline, &observed.pipeline.status);
    let children: Vec<Document> = observed.children.iter().map(Object::document).collect();
    let mut refused: BTreeMap<usize, Vec<Complaint>> = BTreeMap::new();
    loop {
        let kept: Vec<usize> = (0..children.len()).filter(|index| !refused.contains_key(index)).collect();
        let mut documents = vec![pipeline.clone()];
        documents.extend(kept.iter().map(|index| children[*index].clone()));
        let (plan, mut complaints) = match judge(&documents) {
            Ok((plan, _)) => (Some(plan), Vec::new()),
            Err(complaints) => (None, complaints),
        };
        complaints.extend(unsupported(&documents));
        let (lacked, missing): (Vec<_>, Vec<_>) =
            missing_secrets(&documents, observed).into_iter().partition(|complaint| {
                complaint.place.document > 0
                    && observed.children[kept[complaint.place.document - 1]].is_programmed()
            });
        complaints.extend(missing);
        complaints.extend(plan.iter().flat_map(admin::complaints));
        complaints.retain(|complaint| complaint.severity == Severity::Error);
        let (own, theirs): (Vec<_>, Vec<_>) =
            complaints.into_iter().partition(|complaint| complaint.place.document == 0);
        if theirs.is_empty() {
            let config = match plan {
                Some(plan) if own.is_empty() => Ok(config(documents, plan)),
                _ => Err(own),
            };
            let mut lacking: BTreeMap<usize, Vec<Complaint>> = BTreeMap::new();
            for complaint in lacked {
                lacking.entry(kept[complaint.place.document - 1]).or_default().push(complaint);
            }
            return Verdict { config, refused, lacking, reshard };
        }
        for complaint in theirs {
            refused.entry(kept[complaint.place.document - 1]).or_default().push(complaint);
        }
    }
}

fn config(mut documents: Vec<Document>, plan: Plan) -> Config {
    let secrets = documents.iter().flat_map(|document| secret_keys(&document.value["spec"]));
    let secrets = secrets.map(|(secret, _)| secret).collect();
    let spec = &mut documents[0].value["spec"];
    remove(spec, &OPERATORS_FIELDS);
    if let Some(storage) = spec.get_mut("storage") {
        remove(storage, &OPERATORS_STORAGE_FIELDS);
    }
    if let Some(replication) = spec.get_mut("replication") {
        remove(replication, &OPERATORS_REPLICATION_FIELDS);
    }
    Config { hash: config_hash(&documents), documents, plan, secrets }
}

fn remove(value: &mut Value, fields: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|field, _| !fields.contains(&field.as_str()));
    }
}

/// Replaces a `shardCount` that differs from the layout of the data by that of the layout; returns both, the layout's
/// first.
fn hold_layout(pipeline: &mut Document, status: &Value) -> Option<(u64, u64)> {
    let has = status["layout"]["shardCount"].as_u64()?;
    let storage = pipeline.value["spec"].get_mut("storage")?;
    let wanted = storage["shardCount"].as_u64()?;
    remove(storage, &["reshard"]);
    if has == wanted {
        return None;
    }
    storage["shardCount"] = has.into();
    Some((has, wanted))
}

/// Complains about each Secret that does not exist, or lacks a key.
fn missing_secrets(documents: &[Document], observed: &Observed) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        for (secret, key) in secret_keys(&document.value["spec"]) {
            let missing = match (observed.secrets.get(&secret).and_then(Option::as_ref), key) {
                (None, _) => format!("there is no Secret {secret:?} in this namespace; create it"),
                (Some(keys), Some(key)) if !keys.contains(&key) => {
                    format!("the Secret {secret:?} has no key {key:?}; add it")
                }
                _ => continue,
            };
            complaints.push(Complaint::error(index, "spec", Reason::UnknownReference, missing));
        }
    }
    complaints
}
