//! Manifest snippets, each with all complaints about it, whole.

use super::*;

use expect_test::{Expect, expect};
use serde_json::Value;

mod connectors;
mod documents;
mod plan;
mod settings;
mod windows;

/// The documents of a YAML text.
fn documents(yaml: &str) -> Vec<Document> {
    use serde::Deserialize;
    serde_yaml::Deserializer::from_str(yaml)
        .map(|document| Document { value: Value::deserialize(document).unwrap() })
        .collect()
}

/// One line a complaint: document, path, reason, message.
fn lines(complaints: &[Complaint]) -> String {
    complaints
        .iter()
        .map(|complaint| {
            let Complaint { place, reason, message, severity } = complaint;
            let warning = if *severity == Severity::Warning { "warning " } else { "" };
            format!("{} {}: {warning}{}: {message}\n", place.document, place.path, reason.as_str())
        })
        .collect()
}

/// Asserts the complaints about a manifest, errors or warnings.
fn check(yaml: &str, expected: Expect) {
    let complaints = match validate(&documents(yaml)) {
        Ok((_, warnings)) => warnings,
        Err(complaints) => complaints,
    };
    expected.assert_eq(&lines(&complaints));
}

/// A Pipeline `p` with these fields of its spec, in one line each.
fn pipeline(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: litejoin.io/v1alpha1\nkind: Pipeline\nmetadata: {{name: p}}\nspec:\n{spec}")
}

/// The cases that a real API server is held to as well, with the complaints about each.
#[test]
fn the_cases_of_the_server_are_judged_alike() {
    let cases = include_str!("../../../tests/cases/documents/cases.yaml");
    let cases: Vec<Value> = serde_yaml::from_str(cases).unwrap();
    let mut said = String::new();
    for case in &cases {
        let (kind, about) = (case["kind"].as_str().unwrap(), case["about"].as_str().unwrap());
        let name = case["name"].as_str().unwrap_or("subject");
        let document = |kind: &str, name: &str, spec: &Value| {
            let value = serde_json::json!({ "apiVersion": crate::kind::API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec });
            Document { value }
        };
        let mut documents = vec![document(kind, name, &case["spec"])];
        if kind != "Pipeline" {
            let spec = documents[0].value["spec"].as_object_mut().unwrap();
            spec.entry("pipelineRef").or_insert_with(|| serde_json::json!({ "name": "p" }));
            let filled = serde_json::json!({ "sources": [{ "name": "all", "http": { "addr": ":1", "topics": ["t"] } }] });
            documents.push(document("Pipeline", "p", &filled));
        }
        let complaints = validate(&documents).err().unwrap_or_default();
        let lines = if complaints.is_empty() { "accepted\n".to_owned() } else { lines(&complaints) };
        said += &format!("{kind} {about}: {}", lines.replace('\n', "\n  ").trim_end());
        said.push('\n');
    }
    expect_test::expect_file!["../../../tests/cases/documents/validate.txt"].assert_eq(&said);
}

#[test]
fn every_default_is_valid() {
    let (plan, warnings) = validate(&documents(&pipeline("{}"))).unwrap();
    assert_eq!((warnings, plan.storage.shard_count), (vec![], 8));
    for kind in crate::kind::Kind::ALL {
        assert_eq!(crate::structure::check(&defaults_of(kind), kind), []);
    }
}

/// A document in which every default of the schema is written out.
fn defaults_of(kind: crate::kind::Kind) -> Value {
    fn defaults(schema: &Value) -> Option<Value> {
        if let Some(properties) = schema["properties"].as_object() {
            let map: serde_json::Map<String, Value> = properties
                .iter()
                .filter(|(_, schema)| schema["type"] != "object" || schema["required"].is_null())
                .filter_map(|(name, schema)| Some((name.clone(), defaults(schema)?)))
                .collect();
            return Some(Value::Object(map));
        }
        Some(schema["default"].clone()).filter(|value| !value.is_null())
    }
    let mut spec = defaults(&crate::crd::schema(kind)["properties"]["spec"]).unwrap();
    // Fields without a default do not matter here.
    let required = match kind {
        crate::kind::Kind::Join => serde_json::json!({"query": "SELECT 1"}),
        crate::kind::Kind::Window => {
            serde_json::json!({"type": "tumbling", "topic": "t", "query": "SELECT 1"})
        }
        _ => serde_json::json!({}),
    };
    for (name, value) in required.as_object().unwrap() {
        spec[name] = value.clone();
    }
    if kind != crate::kind::Kind::Pipeline {
        spec["pipelineRef"] = serde_json::json!({"name": "p"});
    }
    serde_json::json!({"spec": spec})
}
