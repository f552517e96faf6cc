//! Decides which of the documents can run. The function is pure: `litejoin_crds` judges, and parts that are wrong are
//! held back.

use std::collections::{BTreeMap, BTreeSet};

use litejoin_crds::credentials::{GATHERED_KEY_LENGTH_MAX, gathered_key};
use litejoin_crds::hash::config_hash;
use litejoin_crds::kind::{DATA_ANNOTATION, Kind};
use litejoin_crds::part::parts;
use litejoin_crds::{Candidate, Complaint, Document, HeldBack, Part, Place, Plan, Reason};
use serde_json::{Value, json};

use super::config_map;
use super::object::Object;
use super::observe::{Observed, secret_keys};
use super::reshard::{Consent, Reshard};

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
const OPERATORS_STORAGE_FIELDS: [&str; 6] =
    ["size", "storageClassName", "accessMode", "retainOnDelete", "ephemeral", "onNodeLoss"];

/// Fields of its `replication` that only the operator reads.
const OPERATORS_REPLICATION_FIELDS: [&str; 2] = ["image", "drill"];

/// The judgement on all documents of a pipeline.
pub(crate) struct Verdict {
    /// The config that is to run, or what is wrong with the Pipeline's own settings.
    pub(crate) config: Result<Config, Vec<Complaint>>,
    /// Parts that don't go into force as they are written.
    pub(crate) held_back: Vec<HeldBack>,
    /// Complaints about parts that run and whose Secret is gone, by their place. Such a Secret is usually being
    /// replaced, and a sink that was left out meanwhile would forget what it has not delivered.
    pub(crate) lacking: BTreeMap<Place, Vec<Complaint>>,
    /// The shards that the data has and gets; `None` where no data is known.
    pub(crate) reshard: Option<Reshard>,
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
    /// The Secrets and keys that documents name.
    pub(crate) secret_keys: BTreeSet<(String, String)>,
}

impl Verdict {
    /// What holds back the child with this index, if anything does.
    pub(crate) fn held_back_child(&self, index: usize) -> Option<&HeldBack> {
        self.held_back.iter().find(|held| held.place == child_place(index))
    }

    /// What is complained about the child with this index though it runs.
    pub(crate) fn lacks(&self, index: usize) -> &[Complaint] {
        self.lacking.get(&child_place(index)).map(Vec::as_slice).unwrap_or_default()
    }
}

/// The place of a child's document: the Pipeline's comes first.
fn child_place(index: usize) -> Place {
    Place { document: index + 1, path: String::new() }
}

/// Judges all documents.
pub(crate) fn validate(observed: &Observed) -> Verdict {
    let mut pipeline = observed.pipeline.document();
    let reshard = Reshard::of(&observed.pipeline);
    if let Some(reshard) = &reshard {
        hold_layout(&mut pipeline, reshard);
    }
    let mut documents = vec![pipeline];
    documents.extend(observed.children.iter().map(Object::document));
    let before = config_map::documents(observed);
    let mut candidate = Candidate::new(documents, &before);
    let (outcome, lacking) = loop {
        let (plan, mut complaints) = match candidate.validate() {
            Ok((plan, _)) => (Some(plan), Vec::new()),
            Err(complaints) => (None, complaints),
        };
        let (lacking, missing) = missing_secrets(&candidate, &before, observed);
        complaints.extend(missing);
        complaints.extend(plan.iter().flat_map(admin::complaints));
        complaints.retain(|complaint| !candidate.is_left_out(&complaint.place));
        match candidate.hold_back(complaints) {
            Ok(true) => {}
            Ok(false) => break (plan.ok_or_else(Vec::new), lacking),
            Err(own) => break (Err(own), lacking),
        }
    };
    let (mut documents, held_back) = candidate.finish();
    if let Some(claim) = observed.claim_of_data() {
        documents[0].value["metadata"]["annotations"] = json!({ DATA_ANNOTATION: claim });
    }
    Verdict { config: outcome.map(|plan| config(documents, plan)), held_back, lacking, reshard }
}

fn config(mut documents: Vec<Document>, plan: Plan) -> Config {
    let named: Vec<_> = documents.iter().flat_map(|document| secret_keys(&document.value["spec"])).collect();
    let secrets = named.iter().map(|(secret, _)| secret.clone()).collect();
    let secret_keys = named.into_iter().filter_map(|(secret, key)| Some((secret, key?))).collect();
    let spec = &mut documents[0].value["spec"];
    remove(spec, &OPERATORS_FIELDS);
    if let Some(storage) = spec.get_mut("storage") {
        remove(storage, &OPERATORS_STORAGE_FIELDS);
    }
    if let Some(replication) = spec.get_mut("replication") {
        remove(replication, &OPERATORS_REPLICATION_FIELDS);
    }
    Config { hash: config_hash(&documents), documents, plan, secrets, secret_keys }
}

fn remove(value: &mut Value, fields: &[&str]) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|field, _| !fields.contains(&field.as_str()));
    }
}

/// Replaces a `shardCount` and a consent that are not to be in force, or not yet, by those that are.
fn hold_layout(pipeline: &mut Document, reshard: &Reshard) {
    let spec = &mut pipeline.value["spec"];
    let shard_count = reshard.shard_count();
    if shard_count != reshard.wanted {
        if !spec["storage"].is_object() {
            spec["storage"] = json!({});
        }
        spec["storage"]["shardCount"] = json!(shard_count);
    }
    let Some(storage) = spec.get_mut("storage") else { return };
    match reshard.consent() {
        // Consent to another number than the one that is written counts for nothing.
        Consent::Written if storage["reshard"]["toShardCount"] == json!(reshard.wanted) => {}
        Consent::Written | Consent::Withheld => remove(storage, &["reshard"]),
        Consent::Own(consent) => storage["reshard"] = consent,
    }
}

/// Complaints by the place of their part.
type Lacking = BTreeMap<Place, Vec<Complaint>>;

/// Complains about each Secret that does not exist, or lacks a key: first about parts that are in force, then about
/// all else.
fn missing_secrets(
    candidate: &Candidate<'_>,
    before: &[Document],
    observed: &Observed,
) -> (Lacking, Vec<Complaint>) {
    let (mut lacking, mut missing) = (Lacking::new(), Vec::new());
    for part in parts(candidate.documents()) {
        let Place { document, path } = &part.place;
        let complaints = complaints_about_secrets(&part.body().into(), observed, |message| {
            let path = if path.is_empty() { "spec" } else { path };
            Complaint::error(*document, path, Reason::UnknownReference, message)
        });
        let is_same = |other: &Part<'_>| {
            (other.kind, other.name) == (part.kind, part.name) && other.body() == part.body()
        };
        match complaints.is_empty() || parts(before).any(|other| is_same(&other)) {
            true if complaints.is_empty() => {}
            true => {
                lacking.insert(part.place, complaints);
            }
            false => missing.extend(complaints),
        }
    }
    let mut settings = candidate.documents()[0].value["spec"].clone();
    remove(&mut settings, &Kind::CHILDREN.map(Kind::plural));
    missing.extend(complaints_about_secrets(&settings, observed, |message| {
        Complaint::error(0, "spec", Reason::UnknownReference, message)
    }));
    (lacking, missing)
}

fn complaints_about_secrets(
    value: &Value,
    observed: &Observed,
    complaint: impl Fn(String) -> Complaint,
) -> Vec<Complaint> {
    let missing = secret_keys(value).into_iter().filter_map(|(secret, key)| {
        if observed.secrets_forbidden {
            return Some(observed.forbidden_message());
        }
        let length = secret.len() + gathered_key("", key.as_deref().unwrap_or_default()).len();
        if length > GATHERED_KEY_LENGTH_MAX {
            return Some(format!(
                "the names of the Secret and of its key have {length} characters with two dots between them, allowed at \
                 most {GATHERED_KEY_LENGTH_MAX}; give one a shorter name"
            ));
        }
        match (observed.secrets.get(&secret).and_then(Option::as_ref), key) {
            (None, _) => Some(format!("there is no Secret {secret:?} in this namespace; create it")),
            (Some(keys), Some(key)) if !keys.contains(&key) => {
                Some(format!("the Secret {secret:?} has no key {key:?}; add it"))
            }
            _ => None,
        }
    });
    missing.map(complaint).collect()
}
