//! The hash by which a set of documents is recognised, independent of their order and of the tool that wrote them.

use std::fmt::Write;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::document::Document;

/// Returns the SHA-256, in hex, of what the documents say: apiVersion, kind, name, namespace and spec, with
/// sorted keys. Their order, their status and the rest of their metadata do not count.
pub fn config_hash(documents: &[Document]) -> String {
    let mut texts: Vec<String> =
        documents.iter().map(|document| canonical(&essence(&document.value))).collect();
    texts.sort();
    let digest = Sha256::digest(texts.join("\n"));
    digest.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The part of a document that is its author's choice.
fn essence(document: &Value) -> Value {
    json!({
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "name": document["metadata"]["name"],
        "namespace": document["metadata"]["namespace"],
        "spec": document["spec"],
    })
}

/// JSON with sorted keys and no spaces, whatever map type `serde_json` was built with.
fn canonical(value: &Value) -> String {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<(&String, &Value)> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect::<Map<_, _>>())
            }
            Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    sorted(value).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(value: Value) -> Document {
        Document { value }
    }

    #[test]
    fn order_and_status_do_not_count() {
        let a = document(json!({"kind": "Join", "metadata": {"name": "a"}, "spec": {"x": 1, "y": 2}}));
        let b = document(json!({"kind": "Sink", "metadata": {"name": "b"}, "spec": {}}));
        let observed = document(
            json!({"status": {}, "spec": {"y": 2, "x": 1}, "metadata": {"name": "a", "uid": "u"}, "kind": "Join"}),
        );
        assert_eq!(config_hash(&[a.clone(), b.clone()]), config_hash(&[b.clone(), observed]));
        assert_ne!(config_hash(&[a]), config_hash(&[b]));
    }
}
