//! Holds a document against the schema of its kind: every mistake of form at once, before any type reads it.
//!
//! The schema is the one that the cluster has. A part that an API server would drop in silence (an unknown field, a
//! null) is a mistake here: nothing is accepted and ignored.

use serde_json::{Map, Value};

use crate::complaint::{Reason, list, near_or_allowed};
use crate::kind::Kind;
use crate::names::{VARIABLE_MESSAGE, is_variable_reference};
use crate::{crd, duration, names, path, quantity};

/// A mistake of form: a field's path, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The path of the field, such as `spec.joins[0].query`.
    pub path: String,
    /// The kind of mistake.
    pub reason: Reason,
    /// The message: what is wrong, got against allowed, then the remedy.
    pub message: String,
}

/// Returns every mistake of form in a document whose `kind` is known to be `kind`.
pub fn check(document: &Value, kind: Kind) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(root) = document.as_object() else { return findings };
    for (name, value) in root {
        match name.as_str() {
            "apiVersion" | "kind" | "status" => {}
            "metadata" => metadata(value, &mut findings),
            "spec" => walk(value, &crd::schema(kind)["properties"]["spec"], "spec", &mut findings),
            _ => {
                let hint = match crd::schema(kind)["properties"]["spec"]["properties"].get(name) {
                    Some(_) => format!("; write it under spec: spec.{name}"),
                    None => near_or_allowed(name, &["apiVersion", "kind", "metadata", "spec"], ""),
                };
                findings.push(finding(name, Reason::UnknownField, format!("unknown field {name:?}{hint}")));
            }
        }
    }
    if !root.contains_key("spec") {
        findings.push(finding("spec", Reason::MissingField, "required field is missing"));
    }
    findings
}

/// Fields of `metadata` that Kubernetes knows.
const METADATA: [&str; 14] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "generateName",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

/// Checks `metadata`, whose schema is Kubernetes' own and not in ours.
fn metadata(value: &Value, findings: &mut Vec<Finding>) {
    let Some(map) = value.as_object() else {
        findings.push(finding("metadata", Reason::InvalidType, wrong_type(value, "an object")));
        return;
    };
    for (name, value) in map {
        let at = path::field("metadata", name);
        match name.as_str() {
            "name" | "namespace" if !value.is_string() => {
                findings.push(finding(&at, Reason::InvalidType, wrong_type(value, "a text")));
            }
            "labels" | "annotations" if !value.is_null() => {
                let Some(pairs) = value.as_object() else {
                    findings.push(finding(&at, Reason::InvalidType, wrong_type(value, "an object")));
                    continue;
                };
                for (key, value) in pairs.iter().filter(|(_, value)| !value.is_string()) {
                    let message = wrong_type(value, "a text");
                    findings.push(finding(&path::field(&at, key), Reason::InvalidType, message));
                }
            }
            known if METADATA.contains(&known) => {}
            _ => {
                let hint = near_or_allowed(name, &METADATA[..4], "");
                findings.push(finding(&at, Reason::UnknownField, format!("unknown field {name:?}{hint}")));
            }
        }
    }
}

/// Checks a value against its schema.
fn walk(value: &Value, schema: &Value, at: &str, findings: &mut Vec<Finding>) {
    if schema["x-kubernetes-int-or-string"] == true {
        match value {
            Value::String(text) => text_form(text, schema, at, findings),
            Value::Number(number) if number.is_u64() => {}
            Value::Number(_) => {
                findings.push(finding(
                    at,
                    Reason::OutOfRange,
                    format!("got {value}, allowed whole numbers from 0"),
                ));
            }
            _ => findings.push(finding(at, Reason::InvalidType, wrong_type(value, "a number or a text"))),
        }
        return;
    }
    match schema["type"].as_str() {
        Some("object") => match value {
            Value::Object(map) => object(map, schema, at, findings),
            _ => findings.push(finding(at, Reason::InvalidType, wrong_type(value, "an object"))),
        },
        Some("array") => match value {
            Value::Array(items) => array(items, schema, at, findings),
            _ => findings.push(finding(at, Reason::InvalidType, wrong_type(value, "a list"))),
        },
        Some("string") => match value {
            Value::String(text) => text_form(text, schema, at, findings),
            Value::Number(number) if is_duration(&schema["pattern"]) => {
                let message = duration::parse(&number.to_string()).err().unwrap_or_default();
                findings.push(finding(at, Reason::InvalidDuration, message));
            }
            _ => findings.push(finding(at, Reason::InvalidType, wrong_type(value, "a text"))),
        },
        Some("integer") => match value.as_f64() {
            Some(number) if number.fract() == 0.0 => bounds(value, number, schema, at, findings),
            _ => findings.push(finding(at, Reason::InvalidType, wrong_type(value, "a whole number"))),
        },
        Some("number") => match value.as_f64() {
            Some(number) => bounds(value, number, schema, at, findings),
            None => findings.push(finding(at, Reason::InvalidType, wrong_type(value, "a number"))),
        },
        Some("boolean") if !value.is_boolean() => {
            findings.push(finding(at, Reason::InvalidType, wrong_type(value, "true or false")));
        }
        _ => {}
    }
}

fn object(map: &Map<String, Value>, schema: &Value, at: &str, findings: &mut Vec<Finding>) {
    if let Some(max) = schema["maxProperties"].as_u64()
        && map.len() as u64 > max
    {
        findings.push(finding(
            at,
            Reason::OutOfRange,
            format!("got {} entries, allowed at most {max}", map.len()),
        ));
    }
    let properties = schema["properties"].as_object();
    for (name, value) in map {
        let below = path::field(at, name);
        if let Some(schema) = properties.and_then(|properties| properties.get(name)) {
            walk(value, schema, &below, findings);
        } else if schema["additionalProperties"].is_object() {
            walk(value, &schema["additionalProperties"], &below, findings);
        } else if schema["x-kubernetes-preserve-unknown-fields"] != true {
            let allowed: Vec<&str> = properties.into_iter().flat_map(Map::keys).map(String::as_str).collect();
            let hint = near_or_allowed(name, &allowed, "; none is allowed here, write {}");
            findings.push(finding(&below, Reason::UnknownField, format!("unknown field {name:?}{hint}")));
        }
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            let says =
                schema["properties"][name]["description"].as_str().map(first_sentence).unwrap_or_default();
            let message = format!("required field is missing{says}");
            findings.push(finding(&path::field(at, name), Reason::MissingField, message));
        }
    }
}

fn array(items: &[Value], schema: &Value, at: &str, findings: &mut Vec<Finding>) {
    let count = items.len() as u64;
    if let Some(max) = schema["maxItems"].as_u64()
        && count > max
    {
        findings.push(finding(at, Reason::OutOfRange, format!("got {count} items, allowed at most {max}")));
    }
    if let Some(min) = schema["minItems"].as_u64()
        && count < min
    {
        findings.push(finding(at, Reason::OutOfRange, format!("got {count} items, allowed at least {min}")));
    }
    for (index, item) in items.iter().enumerate() {
        let below = path::item(at, index);
        if schema["x-kubernetes-list-type"] == "set" && items[..index].contains(item) {
            findings.push(finding(&below, Reason::DuplicateName, format!("got {item} twice; remove one")));
        } else {
            walk(item, &schema["items"], &below, findings);
        }
    }
}

/// Checks a text's choice, pattern and length.
fn text_form(text: &str, schema: &Value, at: &str, findings: &mut Vec<Finding>) {
    if let Some(choices) = schema["enum"].as_array() {
        let choices: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
        if !choices.contains(&text) {
            let near = crate::complaint::nearest(text, choices.iter().copied());
            let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            let message = format!("got {text:?}, allowed: {}{near}", list(&choices));
            findings.push(finding(at, Reason::InvalidValue, message));
        }
        return;
    }
    if let Some((reason, message)) =
        schema["pattern"].as_str().and_then(|pattern| pattern_trouble(pattern, text))
    {
        findings.push(finding(at, reason, message));
        return;
    }
    let variable = schema["x-kubernetes-validations"][0]["message"] == VARIABLE_MESSAGE;
    if variable && !is_variable_reference(text) {
        findings.push(finding(at, Reason::InvalidValue, VARIABLE_MESSAGE));
        return;
    }
    let length = text.chars().count() as u64;
    if text.is_empty() && schema["minLength"].as_u64().is_some_and(|min| min > 0) {
        findings.push(finding(at, Reason::OutOfRange, "got \"\", must not be empty"));
    }
    if let Some(max) = schema["maxLength"].as_u64()
        && length > max
    {
        let message = format!("got {length} characters, allowed at most {max}");
        findings.push(finding(at, Reason::OutOfRange, message));
    }
}

/// Says what is wrong with a text that does not match the pattern of its schema. Each pattern of our schemas has a
/// reader that says more than the pattern could.
fn pattern_trouble(pattern: &str, text: &str) -> Option<(Reason, String)> {
    match pattern {
        duration::PATTERN => duration::parse(text).err().map(|message| (Reason::InvalidDuration, message)),
        duration::AGE_PATTERN if text == duration::FOREVER => None,
        duration::AGE_PATTERN => duration::parse(text)
            .err()
            .map(|message| (Reason::InvalidDuration, format!("{message}, or \"{}\"", duration::FOREVER))),
        quantity::PATTERN => quantity::parse(text).err().map(|message| (Reason::InvalidValue, message)),
        names::TOPIC_PATTERN => names::topic_trouble(text).map(|message| (Reason::InvalidName, message)),
        names::NAME_PATTERN => names::name_trouble(text).map(|message| (Reason::InvalidName, message)),
        names::PIPELINE_PATTERN => {
            names::pipeline_trouble(text).map(|message| (Reason::InvalidName, message))
        }
        names::SECRET_PATTERN => names::secret_trouble(text).map(|message| (Reason::InvalidName, message)),
        _ => None,
    }
}

fn bounds(value: &Value, number: f64, schema: &Value, at: &str, findings: &mut Vec<Finding>) {
    let (min, max) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
    if min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max) {
        return;
    }
    let allowed = match (min, max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, max) => format!("at most {}", max.unwrap_or_default()),
    };
    findings.push(finding(at, Reason::OutOfRange, format!("got {value}, allowed {allowed}")));
}

/// Says what a value is, what is wanted, and how to write it.
fn wrong_type(value: &Value, wanted: &str) -> String {
    let got = match value {
        Value::Null if wanted == "an object" => {
            return "got nothing, want an object; write {} or remove the line".into();
        }
        Value::Null if wanted == "a list" => {
            return "got nothing, want a list; write [] or remove the line".into();
        }
        Value::Null => return format!("got nothing, want {wanted}; write one or remove the line"),
        Value::Bool(value) => format!("{value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => {
            let unquoted = matches!(wanted, "a whole number" | "a number" if text.parse::<f64>().is_ok())
                || (wanted == "true or false" && matches!(text.as_str(), "true" | "false"));
            if unquoted {
                return format!("got the text {text:?}, want {wanted}; remove the quotes");
            }
            format!("the text {:?}", shortened(text))
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    match value {
        Value::Bool(_) | Value::Number(_) if wanted == "a text" => {
            format!("got {got}, want a text; put it in quotes: \"{value}\"")
        }
        _ if wanted == "a list" && !value.is_object() => {
            format!("got {got}, want a list; put it in brackets: [{}]", shortened(&value.to_string()))
        }
        _ => format!("got {got}, want {wanted}"),
    }
}

/// The first forty characters.
fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    if text.chars().count() <= SHOWN_MAX {
        return text.to_owned();
    }
    text.chars().take(SHOWN_MAX).chain(['…']).collect()
}

/// A description's first sentence as the end of another: `: address to listen on`.
fn first_sentence(description: &str) -> String {
    let line = description.replace('\n', " ");
    let sentence = line.split(". ").next().unwrap_or(&line).trim_end_matches('.');
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) => format!(": {}{}", first.to_lowercase(), letters.as_str()),
        None => String::new(),
    }
}

fn finding(path: &str, reason: Reason, message: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), reason, message: message.into() }
}

/// Whether texts of a pattern are durations.
fn is_duration(pattern: &Value) -> bool {
    *pattern == duration::PATTERN || *pattern == duration::AGE_PATTERN
}

#[cfg(test)]
mod tests;
