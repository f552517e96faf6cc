//! Reads documents into types: the kind and the name of each, and all fields that have the form of their schema.

use std::collections::{BTreeSet, HashSet};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::complaint::{Complaint, Reason, list, nearest};
use crate::document::Document;
use crate::join::JoinBody;
use crate::kind::{API_VERSION, DATA_ANNOTATION, GROUP, Kind};
use crate::part;
use crate::path;
use crate::pipeline::PipelineSpec;
use crate::plan::Place;
use crate::sink::SinkBody;
use crate::source::SourceBody;
use crate::structure::{self, Finding};
use crate::validate::complaints::Complaints;
use crate::window::WindowBody;

/// The contents of the documents, as far as they could be read.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) pipeline: Option<PipelineDocument>,
    pub(crate) sources: Vec<Named<SourceBody>>,
    pub(crate) joins: Vec<Named<JoinBody>>,
    pub(crate) windows: Vec<Named<WindowBody>>,
    pub(crate) sinks: Vec<Named<SinkBody>>,
    /// Names of things that could not be read, so that no complaint says that they do not exist.
    pub(crate) unread: Vec<(Kind, String)>,
    /// Names of parts that are left out: who refers to one is told so.
    left_out: Vec<(Kind, String)>,
    /// Places whose form was complained about.
    marred: Vec<Place>,
}

/// The Pipeline of the documents.
pub(crate) struct PipelineDocument {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) document: usize,
    /// See [`DATA_ANNOTATION`].
    pub(crate) data_on_claim: Option<String>,
    /// The settings of the Pipeline; its lists are read item by item into `Contents`.
    pub(crate) spec: PipelineSpec,
}

/// A source, join, window or sink.
pub(crate) struct Named<T> {
    pub(crate) name: String,
    /// The object that holds its fields.
    pub(crate) place: Place,
    /// Where its name was written.
    pub(crate) name_path: String,
    pub(crate) body: T,
}

impl<T> Named<T> {
    /// Whether it was written inside a Pipeline.
    pub(crate) fn inline(&self) -> bool {
        self.place.path != "spec"
    }

    /// Where its name was written.
    pub(crate) fn name_place(&self) -> Place {
        Place { document: self.place.document, path: self.name_path.clone() }
    }
}

impl Contents {
    /// Names of a kind, those of things that could not be read included.
    pub(crate) fn names(&self, kind: Kind) -> Vec<&str> {
        let mut names: Vec<&str> = match kind {
            Kind::Source => self.sources.iter().map(|named| named.name.as_str()).collect(),
            Kind::Join => self.joins.iter().map(|named| named.name.as_str()).collect(),
            Kind::Window => self.windows.iter().map(|named| named.name.as_str()).collect(),
            Kind::Sink => self.sinks.iter().map(|named| named.name.as_str()).collect(),
            Kind::Pipeline => self.pipeline.iter().map(|pipeline| pipeline.name.as_str()).collect(),
        };
        names.extend(self.unread.iter().filter(|(unread, _)| *unread == kind).map(|(_, name)| name.as_str()));
        names
    }

    /// Says that what is called so is left out, if it is; `None` if nothing of these kinds is.
    pub(crate) fn left_out(&self, kinds: &[Kind], name: &str) -> Option<String> {
        let (kind, _) = self.left_out.iter().find(|(kind, other)| kinds.contains(kind) && other == name)?;
        Some(format!("waits for the {} {name:?}, which is wrong itself; put that right first", kind.noun()))
    }

    /// Whether a complaint about values that need each other may come from a value that was taken out.
    pub(crate) fn follows_from_another(&self, complaint: &Complaint) -> bool {
        matches!(complaint.reason, Reason::NotExactlyOne | Reason::Conflict)
            && self.marred.iter().any(|place| {
                place.document == complaint.place.document && complaint.place.path.starts_with(&place.path)
            })
    }
}

/// Reads the documents without the parts at some places, complaining about their form.
pub(crate) fn read(
    documents: &[Document],
    left_out: &BTreeSet<Place>,
    complaints: &mut Complaints,
) -> Contents {
    let parts = part::parts(documents).filter(|part| left_out.contains(&part.place));
    let parts = parts.map(|part| (part.kind, part.name.to_owned()));
    let mut contents = Contents { left_out: parts.collect(), ..Contents::default() };
    let mut pipelines: Vec<(usize, String)> = Vec::new();
    let mut references: Vec<(usize, String)> = Vec::new();
    let mut unknown = false;
    for (index, document) in documents.iter().enumerate() {
        let value = &document.value;
        let place = |path: &str| Place { document: index, path: path.to_owned() };
        if left_out.contains(&place("")) {
            continue;
        }
        let Some(kind) = kind(value, index, complaints) else {
            unknown = true;
            continue;
        };
        let mut findings = structure::check(value, kind);
        findings.retain(|finding| {
            part::entry_path(&finding.path).is_none_or(|entry| !left_out.contains(&place(entry)))
        });
        for finding in &findings {
            let complaint = Complaint::error(index, &finding.path, finding.reason, &finding.message);
            complaints.found.push(complaint);
        }
        let name = name(value, kind, index, complaints);
        match kind {
            Kind::Pipeline => {
                pipelines.push((index, name.clone()));
                if contents.pipeline.is_none() {
                    read_pipeline(value, index, name, &findings, left_out, &mut contents);
                }
            }
            _ => {
                if let Some(pipeline) = value["spec"]["pipelineRef"]["name"].as_str() {
                    references.push((index, pipeline.to_owned()));
                }
                let place = Place { document: index, path: "spec".to_owned() };
                let written = Written { name, name_path: "metadata.name".to_owned(), place };
                contents.push(kind, &value["spec"], written, &findings);
            }
        }
    }
    check_pipelines(&pipelines, &references, unknown, complaints);
    check_namespaces(documents, left_out, &contents, complaints);
    contents
}

/// The kind of a document, if it is one of ours.
fn kind(value: &Value, index: usize, complaints: &mut Complaints) -> Option<Kind> {
    let place = Place { document: index, path: String::new() };
    let Some(root) = value.as_object() else {
        let message = "a document is an object with apiVersion, kind, metadata and spec";
        complaints.error(&place, "", Reason::InvalidType, message);
        return None;
    };
    let text = |name: &str| root.get(name).and_then(Value::as_str);
    let kinds = list(&Kind::NAMES);
    match text("apiVersion") {
        Some(API_VERSION) => {}
        Some(other) if other.starts_with(GROUP) || nearest(other, [API_VERSION]).is_some() => {
            let message = format!("got {other:?}, allowed: {API_VERSION}; did you mean {API_VERSION:?}?");
            complaints.error(&place, "apiVersion", Reason::UnknownApiVersion, message);
            return None;
        }
        Some(other) => {
            let kind = text("kind").unwrap_or("?");
            let message = format!("got {other:?} (kind {kind}), allowed: {API_VERSION} with kind {kinds}");
            complaints.error(&place, "apiVersion", Reason::UnknownApiVersion, message);
            return None;
        }
        None => {
            let message = format!("required field is missing; write apiVersion: {API_VERSION}");
            complaints.error(&place, "apiVersion", Reason::MissingField, message);
        }
    }
    let Some(kind) = text("kind") else {
        let message = format!("required field is missing; allowed: {kinds}");
        complaints.error(&place, "kind", Reason::MissingField, message);
        return None;
    };
    let known = Kind::from_name(kind);
    if known.is_none() {
        let near =
            nearest(kind, Kind::NAMES).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        let message = format!("got {kind:?}, allowed: {kinds}{near}");
        complaints.error(&place, "kind", Reason::UnknownKind, message);
    }
    known
}

/// The name of a document; empty, with a complaint, if it has none.
fn name(value: &Value, kind: Kind, index: usize, complaints: &mut Complaints) -> String {
    let name = &value["metadata"]["name"];
    if name.is_null() {
        let place = Place { document: index, path: "metadata.name".to_owned() };
        let message = format!(
            "required field is missing; name the {}, for example metadata: {{name: orders}}",
            kind.noun()
        );
        complaints.error(&place, "", Reason::MissingField, message);
    }
    name.as_str().unwrap_or_default().to_owned()
}

/// The name of a thing, and the place where it was written.
struct Written {
    name: String,
    name_path: String,
    place: Place,
}

impl Contents {
    /// Reads the fields of a source, join, window or sink.
    fn push(&mut self, kind: Kind, value: &Value, written: Written, findings: &[Finding]) {
        fn named<T>(body: Option<T>, written: Written, into: &mut Vec<Named<T>>) -> Option<String> {
            let Written { name, name_path, place } = written;
            match body {
                Some(body) => into.push(Named { name, place, name_path, body }),
                None => return Some(name),
            }
            None
        }
        let at = written.place.path.clone();
        if findings.iter().any(|finding| finding.path.starts_with(&at)) {
            self.marred.push(written.place.clone());
        }
        let unread = match kind {
            Kind::Source => named(salvage(value, &at, findings), written, &mut self.sources),
            Kind::Join => named(salvage(value, &at, findings), written, &mut self.joins),
            Kind::Window => named(salvage(value, &at, findings), written, &mut self.windows),
            Kind::Sink => named(salvage(value, &at, findings), written, &mut self.sinks),
            Kind::Pipeline => None,
        };
        self.unread.extend(unread.filter(|name| !name.is_empty()).map(|name| (kind, name)));
    }
}

/// Reads a Pipeline: its settings, and its lists item by item.
fn read_pipeline(
    value: &Value,
    index: usize,
    name: String,
    findings: &[Finding],
    left_out: &BTreeSet<Place>,
    contents: &mut Contents,
) {
    let mut settings = value["spec"].clone();
    for kind in Kind::CHILDREN {
        let list = kind.plural();
        let Some(Value::Array(items)) = settings.as_object_mut().and_then(|spec| spec.remove(list)) else {
            continue;
        };
        for (item_index, item) in items.iter().enumerate() {
            let at = path::item(&path::field("spec", list), item_index);
            let name = item["name"].as_str().unwrap_or_default().to_owned();
            let name_path = path::field(&at, "name");
            let place = Place { document: index, path: at };
            if !left_out.contains(&place) {
                contents.push(kind, item, Written { name, name_path, place }, findings);
            }
        }
    }
    let in_lists =
        |path: &str| Kind::CHILDREN.iter().any(|kind| path.starts_with(&format!("spec.{}", kind.plural())));
    let section = |finding: &Finding| finding.path.split('.').take(2).collect::<Vec<_>>().join(".");
    let whole = || {
        // A section that can't be read without the parts that were taken out is taken out as a whole.
        let sections = findings.iter().map(|finding| Finding { path: section(finding), ..finding.clone() });
        let sections: Vec<Finding> = sections.collect();
        salvage(&settings, "spec", &sections)
    };
    let spec = salvage(&settings, "spec", findings).or_else(whole).unwrap_or_default();
    for finding in findings.iter().filter(|finding| !in_lists(&finding.path)) {
        let mut sections = vec![section(finding)];
        if sections[0] == "spec.replication" {
            // Checks of these sections ask whether there is a replica.
            sections.extend([
                "spec.storage".to_owned(),
                "spec.delivery".to_owned(),
                "spec.sources".to_owned(),
            ]);
        }
        contents.marred.extend(sections.into_iter().map(|path| Place { document: index, path }));
    }
    let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let data_on_claim = value["metadata"]["annotations"][DATA_ANNOTATION].as_str().map(str::to_owned);
    contents.pipeline = Some(PipelineDocument { name, namespace, document: index, data_on_claim, spec });
}

/// Types a value without the parts of it that were complained about; `None` if it cannot do without them.
fn salvage<T: DeserializeOwned>(value: &Value, at: &str, findings: &[Finding]) -> Option<T> {
    let refused: HashSet<&str> = findings.iter().map(|finding| finding.path.as_str()).collect();
    serde_json::from_value(without(value, at, &refused)).ok()
}

/// The value without the parts at some paths.
fn without(value: &Value, at: &str, refused: &HashSet<&str>) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(name, value)| (name, path::field(at, name), value))
                .filter(|(_, below, _)| !refused.contains(below.as_str()))
                .map(|(name, below, value)| (name.clone(), without(value, &below, refused)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .enumerate()
                .map(|(index, item)| (path::item(at, index), item))
                .filter(|(below, _)| !refused.contains(below.as_str()))
                .map(|(below, item)| without(item, &below, refused))
                .collect(),
        ),
        plain => plain.clone(),
    }
}

/// Complains unless there is one Pipeline that everything belongs to.
fn check_pipelines(
    pipelines: &[(usize, String)],
    references: &[(usize, String)],
    unknown: bool,
    complaints: &mut Complaints,
) {
    let Some((_, pipeline)) = pipelines.first() else {
        // A document whose kind is misspelt may be the missing Pipeline.
        if !unknown {
            let name = references.first().map_or("orders", |(_, name)| name.as_str());
            let message = format!(
                "no Pipeline among the documents; add one: {{apiVersion: {API_VERSION}, kind: Pipeline, metadata: {{name: {name}}}, spec: {{}}}}"
            );
            complaints.error(&Place { document: 0, path: String::new() }, "", Reason::NoPipeline, message);
        }
        return;
    };
    for (index, other) in &pipelines[1..] {
        let place = Place { document: *index, path: "metadata.name".to_owned() };
        let message = match other == pipeline {
            true => format!("the Pipeline {pipeline:?} is written twice; remove one"),
            false => format!(
                "got a second Pipeline {other:?} beside {pipeline:?}; a run takes one, keep the other in a file of its own"
            ),
        };
        complaints.error(&place, "", Reason::SeveralPipelines, message);
    }
    for (index, reference) in references {
        if !pipelines.iter().any(|(_, name)| name == reference) {
            let place = Place { document: *index, path: "spec.pipelineRef.name".to_owned() };
            let message = match nearest(reference, [pipeline.as_str()]) {
                Some(near) => format!("no Pipeline is called {reference:?}; did you mean {near:?}?"),
                None => format!(
                    "no Pipeline is called {reference:?}; the Pipeline of these documents is {pipeline:?}"
                ),
            };
            complaints.error(&place, "", Reason::UnknownReference, message);
        }
    }
}

/// Complains about documents in another namespace than their Pipeline.
fn check_namespaces(
    documents: &[Document],
    left_out: &BTreeSet<Place>,
    contents: &Contents,
    complaints: &mut Complaints,
) {
    let Some(pipeline) = &contents.pipeline else { return };
    let written = documents[pipeline.document].value["metadata"]["namespace"].as_str();
    let is_left_out = |document| left_out.contains(&Place { document, path: String::new() });
    for (index, document) in documents.iter().enumerate().filter(|(index, _)| !is_left_out(*index)) {
        let namespace = document.value["metadata"]["namespace"].as_str();
        if let (Some(written), Some(namespace)) = (written, namespace)
            && written != namespace
            && document.value["spec"]["pipelineRef"].is_object()
        {
            let place = Place { document: index, path: "metadata.namespace".to_owned() };
            let message = format!(
                "got {namespace:?}, the Pipeline is in {written:?}; pipelineRef reaches only its own namespace"
            );
            complaints.error(&place, "", Reason::Conflict, message);
        }
    }
}
