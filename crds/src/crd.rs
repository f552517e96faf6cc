//! The CustomResourceDefinitions: kube derives them from the types, and parts that it cannot derive are patched in.
//!
//! The same schemas check documents on a laptop (`structure`). `crds/*.yaml`, `crds/schemas.ndjson` and the chart
//! `litejoin-crds` are written by the test below, never by hand.

use std::sync::OnceLock;

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::join::Join;
use crate::kind::Kind;
use crate::pipeline::Pipeline;
use crate::rules;
use crate::sink::Sink;
use crate::source::Source;
use crate::window::Window;

#[cfg(test)]
mod tests;

/// Fields that are younger than documents in clusters, or whose defaults are, as paths in the schema of their kind. An API server would write
/// their defaults into stored documents, and each pipeline would get another config, which its worker need not know.
const WITHOUT_DEFAULT: [(Kind, &str); 5] = [
    (Kind::Join, "/properties/spec/properties/refresh"),
    (Kind::Pipeline, "/properties/spec/properties/retention/properties/duration"),
    (Kind::Pipeline, "/properties/spec/properties/retention/properties/emitExpiry"),
    (Kind::Pipeline, "/properties/spec/properties/storage/properties/reshard/properties/strategy"),
    (Kind::Pipeline, "/properties/spec/properties/storage/properties/reshard/properties/keepOldLayout"),
];

/// Returns the definition of a kind, as applied to a cluster.
pub fn definition(kind: Kind) -> Value {
    let derived = match kind {
        Kind::Pipeline => serde_json::to_value(Pipeline::crd()),
        Kind::Source => serde_json::to_value(Source::crd()),
        Kind::Join => serde_json::to_value(Join::crd()),
        Kind::Window => serde_json::to_value(Window::crd()),
        Kind::Sink => serde_json::to_value(Sink::crd()),
    };
    let mut definition = derived.expect("a definition is plain data");
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    tidy(schema, false);
    for (_, path) in WITHOUT_DEFAULT.iter().filter(|(of, _)| *of == kind) {
        let field = schema.pointer_mut(path).and_then(Value::as_object_mut);
        field.and_then(|field| field.remove("default")).expect("it is a field with a default");
    }
    schema["properties"]["status"]["default"] = pending_status(kind);
    match kind {
        Kind::Pipeline => {
            schema["x-kubernetes-validations"] = rules::pipeline_root();
            let spec = &mut schema["properties"]["spec"]["properties"];
            for list in ["topics", "sources", "joins", "windows", "sinks"] {
                keyed_by_name(&mut spec[list]);
            }
            keyed_by_name(&mut spec["podTemplate"]["properties"]["env"]);
            keyed_by_name(&mut spec["resources"]["properties"]["claims"]);
            spec["podTemplate"]["properties"]["imagePullSecrets"]["x-kubernetes-list-type"] = json!("atomic");
        }
        _ => schema["x-kubernetes-validations"] = rules::child_root(),
    }
    definition
}

/// Returns the schema of a kind's documents. The schema is read from the generated file: deriving it takes longer than
/// the rest of a start.
pub fn schema(kind: Kind) -> &'static Value {
    /// A line for each kind, in their order.
    const WRITTEN: &str = include_str!("../schemas.ndjson");
    static SCHEMAS: [OnceLock<Value>; Kind::ALL.len()] = [const { OnceLock::new() }; Kind::ALL.len()];
    SCHEMAS[kind as usize].get_or_init(|| {
        let line = WRITTEN.lines().nth(kind as usize).unwrap_or_default();
        serde_json::from_str(line).expect("what is written is what was derived")
    })
}

/// Names of the list's items tell them apart, so that two writers can each own some of them.
fn keyed_by_name(list: &mut Value) {
    list["x-kubernetes-list-type"] = json!("map");
    list["x-kubernetes-list-map-keys"] = json!(["name"]);
}

/// The status before the operator has seen an object, so that no tool takes the object for ready.
fn pending_status(kind: Kind) -> Value {
    let types: &[&str] = match kind {
        Kind::Pipeline => &["Ready"],
        _ => &["Ready", "Accepted", "Programmed"],
    };
    let conditions: Vec<Value> = types
        .iter()
        .map(|kind| {
            json!({
                "type": kind,
                "status": "Unknown",
                "reason": "Pending",
                "message": "waiting for the operator",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            })
        })
        .collect();
    json!({ "observedGeneration": -1, "conditions": conditions })
}

/// Takes out parts that an API server warns about or would act on against our will: `nullable` (a null counts as
/// absent), formats it does not know, defaults of objects and lists, and every default inside a list.
fn tidy(schema: &mut Value, in_list: bool) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("nullable");
    let formats = ["int32", "int64", "double", "float", "date-time", "byte"];
    if map.get("format").and_then(Value::as_str).is_some_and(|format| !formats.contains(&format)) {
        map.remove("format");
    }
    let default_is_plain = map.get("default").is_some_and(|value| !value.is_object() && !value.is_null());
    let default_is_empty = map.get("default").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if in_list || !default_is_plain || default_is_empty {
        map.remove("default");
    }
    for bound in ["minimum", "maximum"] {
        whole(map, bound);
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|property| tidy(property, in_list));
    }
    if let Some(values) = map.get_mut("additionalProperties") {
        tidy(values, in_list);
    }
    if let Some(items) = map.get_mut("items") {
        tidy(items, true);
    }
}

/// Writes a bound without a fraction as a whole number.
fn whole(map: &mut Map<String, Value>, bound: &str) {
    if let Some(number) = map.get(bound).and_then(Value::as_f64)
        && number.fract() == 0.0
    {
        map.insert(bound.to_owned(), json!(number as i64));
    }
}
