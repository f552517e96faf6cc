//! The parts of a pipeline: sources, joins, windows and sinks, each an entry of the Pipeline or a document of its own.

use serde_json::{Map, Value};

use crate::document::Document;
use crate::kind::Kind;
use crate::path;
use crate::plan::Place;

/// A source, join, window or sink as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Part<'a> {
    /// The kind of the part.
    pub kind: Kind,
    /// The name of the part; empty if it has none.
    pub name: &'a str,
    /// The root of its document, or the entry of the Pipeline, such as `spec.joins[0]`.
    pub place: Place,
    /// The object with its fields: the entry, or the `spec` of the document.
    pub value: &'a Value,
}

impl Part<'_> {
    /// Whether it is an entry of a Pipeline.
    pub fn is_inline(&self) -> bool {
        !self.place.path.is_empty()
    }

    /// Returns the fields that mean the same in an entry and in a document of its own.
    pub fn body(&self) -> Map<String, Value> {
        let mut body = self.value.as_object().cloned().unwrap_or_default();
        body.remove(self.own_field());
        body
    }

    /// Returns the value with the fields of `body` in place of its own.
    pub(crate) fn with_body(&self, mut body: Map<String, Value>) -> Value {
        let field = self.own_field();
        body.extend(self.value.get(field).map(|own| (field.to_owned(), own.clone())));
        Value::Object(body)
    }

    /// The field that only one of the two forms has.
    fn own_field(&self) -> &'static str {
        if self.is_inline() { "name" } else { "pipelineRef" }
    }
}

/// Returns the parts of the documents, those of a Pipeline by kind and in the order of their lists.
pub fn parts(documents: &[Document]) -> impl Iterator<Item = Part<'_>> {
    documents.iter().enumerate().flat_map(|(document, Document { value })| {
        let kind = value["kind"].as_str().and_then(Kind::from_name);
        match kind {
            None => Vec::new(),
            Some(Kind::Pipeline) => entries(document, value),
            Some(kind) => {
                let name = value["metadata"]["name"].as_str().unwrap_or_default();
                let place = Place { document, path: String::new() };
                vec![Part { kind, name, place, value: &value["spec"] }]
            }
        }
    })
}

/// The entries of a Pipeline.
fn entries(document: usize, pipeline: &Value) -> Vec<Part<'_>> {
    let list = |kind: Kind| {
        let entries = pipeline["spec"][kind.plural()].as_array().into_iter().flatten().enumerate();
        entries.map(move |(index, value)| Part {
            kind,
            name: value["name"].as_str().unwrap_or_default(),
            place: Place { document, path: path::item(&path::field("spec", kind.plural()), index) },
            value,
        })
    };
    Kind::CHILDREN.into_iter().flat_map(list).collect()
}

/// Returns the part of a path of a Pipeline that leads to an entry, such as `spec.joins[0]` of `spec.joins[0].query`;
/// `None` for the path of a setting or of a whole list.
pub fn entry_path(path: &str) -> Option<&str> {
    let lists = Kind::CHILDREN.map(Kind::plural);
    let rest = path.strip_prefix("spec.")?;
    let list = lists.into_iter().find(|list| rest.starts_with(&format!("{list}[")))?;
    let end = rest[list.len()..].find(']')?;
    Some(&path[.."spec.".len() + list.len() + end + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn a_path_in_an_entry_leads_to_it() {
        for (path, entry) in [
            ("spec.joins[0].query", Some("spec.joins[0]")),
            ("spec.sinks[12]", Some("spec.sinks[12]")),
            ("spec.joins", None),
            ("spec.storage.size", None),
            ("metadata.name", None),
        ] {
            assert_eq!(entry_path(path), entry, "{path}");
        }
    }

    #[test]
    fn both_forms_have_the_same_body() {
        let documents = [
            json!({"kind": "Pipeline", "spec": {"sinks": [{"name": "a", "stdout": {}}]}}),
            json!({"kind": "Sink", "metadata": {"name": "a"}, "spec": {"pipelineRef": {"name": "p"}, "stdout": {}}}),
            json!({"kind": "Snik"}),
        ];
        let documents = documents.map(|value| Document { value });
        let parts: Vec<_> = parts(&documents).collect();
        let places: Vec<_> =
            parts.iter().map(|part| (part.place.document, part.place.path.as_str())).collect();
        assert_eq!(places, [(0, "spec.sinks[0]"), (1, "")]);
        assert_eq!(parts[0].body(), parts[1].body());
        assert_eq!(parts[1].with_body(parts[0].body()), *parts[1].value);
    }
}
