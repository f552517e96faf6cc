//! Turns the documents of one pipeline into a plan, or says everything that is wrong with them at once.
//!
//! Three steps: `read` holds each document against its schema and types it, the rooms below look at meaning
//! (names, references, values that need each other), and `plan` puts the parsed values together. A value that
//! the first step refused is taken out, so that one mistake makes one complaint. SQL is not looked at here:
//! the worker asks SQLite.

use std::collections::BTreeSet;

use crate::complaint::{Complaint, Severity};
use crate::document::Document;
use crate::hash::config_hash;
use crate::plan::{Place, Plan};

mod complaints;
mod connections;
mod gjson;
mod joins;
mod kafka;
mod listeners;
mod names;
mod read;
mod scope;
mod settings;
mod sinks;
mod sources;
mod topics;
mod windows;

use complaints::Complaints;
use read::Contents;

/// Returns the plan of the pipeline that the documents make, with warnings; or every complaint, in the order of
/// the documents. A place in a complaint or in the plan is an index into `documents` and a path in that one.
pub fn validate(documents: &[Document]) -> Result<(Plan, Vec<Complaint>), Vec<Complaint>> {
    validate_without(documents, &BTreeSet::new())
}

/// Does as [`validate`] does with the documents as they would be without the parts at some places: the root of a
/// document, or an entry of a Pipeline.
pub fn validate_without(
    documents: &[Document],
    left_out: &BTreeSet<Place>,
) -> Result<(Plan, Vec<Complaint>), Vec<Complaint>> {
    let mut complaints = Complaints::default();
    let contents = read::read(documents, left_out, &mut complaints);
    let plan = plan(&contents, config_hash(documents), &mut complaints);
    let mut found = complaints.found;
    found.retain(|complaint| !contents.follows_from_another(complaint));
    found.sort_by_key(|complaint| complaint.place.document);
    let refused = found.iter().any(|complaint| complaint.severity == Severity::Error);
    match plan {
        Some(plan) if !refused => {
            let mut warnings = Complaints::default();
            joins::unused(&plan, &mut warnings);
            sinks::unused(&plan, &mut warnings);
            sinks::shared_keys(&plan, &mut warnings);
            found.extend(warnings.found);
            Ok((plan, found))
        }
        _ => Err(found),
    }
}

/// Puts the plan together. Its values are to be trusted only if there are no complaints.
fn plan(contents: &Contents, config_hash: String, complaints: &mut Complaints) -> Option<Plan> {
    names::check(contents, complaints);
    listeners::check(contents, complaints);
    let sources = sources::plan(contents, complaints);
    let joins = joins::plan(contents, complaints);
    let windows = windows::plan(contents, complaints);
    let sinks = sinks::plan(contents, &joins, &windows, complaints);
    let pipeline = contents.pipeline.as_ref()?;
    let settings = settings::plan(pipeline, contents, complaints);
    windows::check_retention(&windows, &settings.retention, complaints);
    let own_identity = format!("{}/{}", pipeline.namespace, pipeline.name);
    Some(Plan {
        name: pipeline.name.clone(),
        namespace: pipeline.namespace.clone(),
        identity: pipeline.spec.replication.identity.clone().unwrap_or(own_identity),
        data_on_claim: pipeline.data_on_claim.clone(),
        config_hash,
        storage: settings.storage,
        retention: settings.retention,
        delivery: settings.delivery,
        replication: settings.replication,
        audit: settings.audit,
        admin: settings.admin,
        sources,
        joins,
        windows,
        sinks,
    })
}

#[cfg(test)]
mod tests;
