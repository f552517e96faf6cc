//! The fields of manifests, one by one: all fields, the fields that a test writes, and a run of a test without one
//! field. With `LITEJOIN_IGNORE=Sink.spec.http.timeout` a site writes its manifests without that field, as if the
//! worker ignored it; with `LITEJOIN_FIELDS=FOLDER` a site notes the fields that it has written, in a file with the
//! name of the test.
//!
//! In both modes manifests are serialized again, so a test that depends on line numbers fails in both. A manifest
//! keeps a field without which it would be refused, and stays unchanged if it is refused anyway.

use std::env::var_os;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use litejoin_crds::crd::schema;
use litejoin_crds::kind::Kind;
use litejoin_crds::{Document, validate};
use serde::Deserialize;
use serde_json::Value;

/// The suffix of a field in the notes of a test whose manifests are refused without it.
pub const NEEDED: &str = " needed";

/// Returns the paths of all fields of a kind, such as `Sink.spec.http.timeout`. The place of a credential or a
/// certificate is one field: the code that reads it doesn't know its purpose.
pub fn all(kind: Kind) -> Vec<String> {
    let mut fields = Vec::new();
    below(&schema(kind)["properties"]["spec"], &format!("{}.spec", kind.as_str()), &mut fields);
    fields
}

fn below(schema: &Value, at: &str, fields: &mut Vec<String>) {
    let items = if schema["items"].is_object() { &schema["items"] } else { schema };
    let properties = items["properties"].as_object();
    for (name, field) in
        properties.filter(|properties| !properties.contains_key("secretKeyRef")).into_iter().flatten()
    {
        let path = format!("{at}.{name}");
        fields.push(path.clone());
        below(field, &path, fields);
    }
}

/// Returns the manifest to write: unchanged, unless the environment says otherwise.
pub(crate) fn written(manifest: &[u8]) -> Vec<u8> {
    let (ignored, noted) = (var_os("LITEJOIN_IGNORE"), var_os("LITEJOIN_FIELDS"));
    let documents = (ignored.is_some() || noted.is_some()).then(|| read(manifest)).flatten();
    let Some(mut documents) = documents.filter(|documents| validate(documents).is_ok()) else {
        return manifest.to_vec();
    };
    if let Some(folder) = noted {
        note(Path::new(&folder), &documents);
    }
    let without = ignored.and_then(|field| without(&documents, field.to_str()?));
    documents = without.filter(|without| validate(without).is_ok()).unwrap_or(documents);
    let documents: Vec<String> = documents.iter().map(|document| document.value.to_string()).collect();
    documents.join("\n---\n").into_bytes()
}

fn read(manifest: &[u8]) -> Option<Vec<Document>> {
    let documents = serde_yaml::Deserializer::from_slice(manifest);
    documents.map(|document| Value::deserialize(document).ok().map(|value| Document { value })).collect()
}

/// Adds the fields of the documents to the notes of the test.
fn note(folder: &Path, documents: &[Document]) {
    let line = |field: String| {
        let needed = if validate(&without(documents, &field)?).is_ok() { "" } else { NEEDED };
        Some(format!("{field}{needed}\n"))
    };
    let lines: String = Kind::ALL.into_iter().flat_map(all).filter_map(line).collect();
    let thread = std::thread::current();
    let test = folder.join(thread.name().expect("a test has a name"));
    let mut file = OpenOptions::new().create(true).append(true).open(test).expect("the folder is there");
    file.write_all(lines.as_bytes()).expect("a file can be written");
}

/// Returns the documents without a field, wherever it is, in a Pipeline's lists too; `None` if it is nowhere.
fn without(documents: &[Document], field: &str) -> Option<Vec<Document>> {
    let path: Vec<&str> = field.split('.').collect();
    let kind = Kind::from_name(path[0]).unwrap_or_else(|| panic!("{field:?} begins with no kind"));
    let inline = [&["spec", kind.plural()], &path[2..]].concat();
    let mut documents = documents.to_vec();
    let removed = documents.iter_mut().filter_map(|Document { value }| {
        let path = if value["kind"] == kind.as_str() { &path[1..] } else { &inline };
        remove(value, path).then_some(())
    });
    (removed.count() > 0).then_some(documents)
}

/// Removes a field, and each parent that is empty then.
fn remove(value: &mut Value, path: &[&str]) -> bool {
    match value {
        Value::Array(items) => items.iter_mut().fold(false, |removed, item| removed | remove(item, path)),
        Value::Object(fields) => match path {
            [] => false,
            [last] => fields.remove(*last).is_some(),
            [first, rest @ ..] => {
                let Some(field) = fields.get_mut(*first) else { return false };
                let removed = remove(field, rest);
                if removed && field.as_object().is_some_and(|fields| fields.is_empty()) {
                    fields.remove(*first);
                }
                removed
            }
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_is_removed_wherever_it_is() {
        let document = |value| Document { value };
        let sink = json!({"name": "s", "http": {"url": "u", "auth": {"bearer": {"env": "${X}"}}}});
        let bare = json!({"name": "s", "http": {"url": "u"}});
        let documents = |sink: &Value| {
            vec![
                document(json!({"kind": "Pipeline", "spec": {"sinks": [{"name": "t"}, sink]}})),
                document(json!({"kind": "Sink", "spec": sink})),
                document(json!({"kind": "Source", "spec": sink})),
            ]
        };
        let removed = without(&documents(&sink), "Sink.spec.http.auth.bearer").expect("it is there");
        assert_eq!(removed[..2], documents(&bare)[..2]);
        assert_eq!(removed[2], documents(&sink)[2]);
        assert_eq!(without(&removed, "Sink.spec.http.auth.bearer"), None);
    }

    #[test]
    fn all_fields_are_known() {
        let sinks = all(Kind::Sink);
        for field in ["Sink.spec.http.auth.basic.password", "Sink.spec.sse.tls.cert", "Sink.spec.joins"] {
            assert!(sinks.iter().any(|known| known == field), "{field} is not among {sinks:?}");
        }
        assert!(!sinks.iter().any(|field| field.ends_with(".secretKeyRef")), "{sinks:?}");
    }
}
