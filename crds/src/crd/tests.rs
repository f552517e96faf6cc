//! The generated files are committed, and schemas keep what the cluster and our users rely on.

use super::*;

use std::fs;
use std::path::{Path, PathBuf};

/// The generated files: the path of each, and its text.
fn generated() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    let mut schemas = String::new();
    for kind in Kind::ALL {
        let plain = definition(kind);
        let schema = &plain["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        schemas.push_str(&format!("{schema}\n"));
        let note =
            "# Generated from crds/src by `UPDATE_EXPECT=1 cargo test -p litejoin-crds`; do not edit.\n";
        let yaml = format!("{note}{}", serde_yaml::to_string(&plain).unwrap());
        files.push((root.join(format!("crds/{}.yaml", kind.plural())), yaml));
        let mut kept = plain;
        kept["metadata"]["annotations"] = json!({ "helm.sh/resource-policy": "keep" });
        let yaml = serde_yaml::to_string(&kept).unwrap();
        assert!(!yaml.contains("{{"), "Helm would read {{ as its own");
        let yaml = format!("{note}{{{{- if .Values.crds.enabled }}}}\n{yaml}{{{{- end }}}}\n");
        files.push((root.join(format!("charts/litejoin-crds/templates/{}.yaml", kind.plural())), yaml));
    }
    files.push((root.join("crds/schemas.ndjson"), schemas));
    files
}

#[test]
fn committed_definitions_are_the_generated_ones() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    for (path, text) in generated() {
        assert!(text.len() < 200 * 1024, "{} has {} bytes", path.display(), text.len());
        if update {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
        } else {
            let found = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == text,
                "{} differs: run UPDATE_EXPECT=1 cargo test -p litejoin-crds",
                path.display()
            );
        }
    }
}

/// Calls `visit` with every schema in a schema, its path, and whether it is inside a list.
fn walk(schema: &Value, path: &str, in_list: bool, visit: &mut impl FnMut(&str, bool, &Value)) {
    visit(path, in_list, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(property, &format!("{path}.{name}"), in_list, visit);
        }
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}.*"), in_list, visit);
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), true, visit);
    }
}

#[test]
fn schemas_keep_the_house_rules() {
    for kind in Kind::ALL {
        walk(schema(kind), kind.as_str(), false, &mut |path, in_list, schema| {
            assert!(schema["nullable"].is_null(), "{path} is nullable");
            if in_list {
                assert!(schema["default"].is_null(), "{path} has a default inside a list");
            }
            if schema["items"]["type"] == "object" {
                assert!(
                    schema["x-kubernetes-list-type"].is_string(),
                    "{path} is a list of objects without a type"
                );
            }
            let ours =
                !path.contains("resources") && !path.contains("podTemplate") && !path.contains(".status");
            if ours && path.starts_with(&format!("{}.spec", kind.as_str())) {
                assert!(
                    schema["description"].is_string() || path.ends_with("[]") || path.ends_with(".*"),
                    "{path} has no description"
                );
                if schema["type"] == "array" {
                    assert!(schema["maxItems"].is_number(), "{path} has no bound");
                }
                if schema["type"] == "string" && schema["enum"].is_null() && !path.ends_with(".*") {
                    assert!(schema["maxLength"].is_number(), "{path} has no bound");
                }
            }
            let name = path.rsplit('.').next().unwrap_or(path);
            assert!(!["on", "off", "yes", "no", "y", "n"].contains(&name), "{path} is a boolean to YAML 1.1");
        });
    }
}

#[test]
fn rules_arrive_inline_and_stand_alone() {
    let stand_alone = &schema(Kind::Source)["properties"]["spec"]["x-kubernetes-validations"];
    let inline = &schema(Kind::Pipeline)["properties"]["spec"]["properties"]["sources"]["items"]["x-kubernetes-validations"];
    assert_eq!(stand_alone, inline);
    assert_eq!(stand_alone[0]["message"], "a source has exactly one of http, file, api and kafka");
}

#[test]
fn defaults_are_in_the_schema() {
    let spec = &schema(Kind::Pipeline)["properties"]["spec"]["properties"];
    assert_eq!(spec["storage"]["properties"]["shardCount"]["default"], 8);
    assert_eq!(spec["delivery"]["properties"]["dlq"]["properties"]["backoffMultiplier"]["default"], 2.0);
    assert_eq!(spec["retention"]["properties"]["cleanInterval"]["default"], "1m");
    assert!(spec["storage"]["default"].is_null());
    assert!(spec["storage"]["properties"]["reshard"]["default"].is_null());
}
