//! What is applied comes back from the API server leaf for leaf. A field that the server drops, empties or spells otherwise
//! would be a difference to Git for ever, which Argo CD and Flux would apply again and again.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use litejoin_crds::API_VERSION;
use litejoin_crds::kind::Kind;
use litejoin_tests::programs::{repository, run};
use serde_json::Value;

use crate::site::{ControllerSite, documents};

/// Fields that the server adds to every definition. Argo CD and Flux know them.
const OF_DEFINITIONS: [&str; 2] = ["/spec/conversion/strategy", "/spec/names/listKind"];

#[tokio::test]
async fn definitions_come_back_as_they_are_written() {
    let site = ControllerSite::new().await;
    let resource = ApiResource::erase::<CustomResourceDefinition>(&());
    let definitions: Api<DynamicObject> = Api::all_with(site.client.clone(), &resource);
    for kind in Kind::ALL {
        let file = format!("crds/{}.yaml", kind.plural());
        let written =
            documents(&fs::read_to_string(repository().join(&file)).expect("it is there")).remove(0);
        let name = written["metadata"]["name"].as_str().expect("a name");
        let parameters = PatchParams::apply("round-trip").force();
        let applied = definitions.patch(name, &parameters, &Patch::Apply(&written)).await;
        applied.unwrap_or_else(|error| panic!("{file}: {error}"));
        let stored = definitions.get(name).await.expect("it is there");
        let added = added(&file, &written, &stored);
        let unknown: Vec<_> = added.keys().filter(|path| !OF_DEFINITIONS.contains(&path.as_str())).collect();
        assert!(unknown.is_empty(), "{file}: the server adds {unknown:?}; write them");
    }
}

#[tokio::test]
async fn examples_come_back_as_they_are_written() {
    let site = ControllerSite::new().await;
    let mut count = 0;
    for file in example_files() {
        let text = fs::read_to_string(repository().join(&file)).expect("it is there");
        for written in documents(&text).into_iter().filter(|document| document["apiVersion"] == API_VERSION) {
            let kind = written["kind"].as_str().and_then(Kind::from_name).expect("a kind of ours");
            let name = written["metadata"]["name"].as_str().expect("a name");
            let parameters = PatchParams::apply("round-trip").force();
            let applied = site.ours(kind).patch(name, &parameters, &Patch::Apply(&written)).await;
            applied.unwrap_or_else(|error| panic!("{file}: {error}"));
            let stored = site.ours(kind).get(name).await.expect("it is there");
            // A default inside a list would make the whole list another one.
            let added = added(&file, &written, &stored);
            let in_lists: Vec<_> = added.keys().filter(|path| is_in_a_list(path)).collect();
            assert!(in_lists.is_empty(), "{file}: the server adds {in_lists:?} inside of lists");
            count += 1;
            site.ours(kind).delete(name, &DeleteParams::default()).await.expect("it is there");
        }
    }
    assert!(count >= 8, "only {count} documents were found in examples");
}

/// The manifests of users among the examples.
fn example_files() -> Vec<String> {
    let listed = run(Command::new("git").current_dir(repository()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "examples/*.yaml",
    ]));
    listed.lines().map(str::to_owned).collect()
}

/// Returns the leaves that the server has added.
///
/// # Panics
/// If a leaf is gone, or has another value.
fn added(file: &str, written: &Value, stored: &DynamicObject) -> BTreeMap<String, Value> {
    let mut stored = serde_json::to_value(stored).expect("an object is plain data");
    for field in ["creationTimestamp", "generation", "managedFields", "namespace", "resourceVersion", "uid"] {
        if let Some(metadata) = stored["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    stored.as_object_mut().expect("an object").remove("status");
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves(written, "", &mut before);
    leaves(&stored, "", &mut after);
    for (path, value) in &before {
        assert_eq!(after.get(path), Some(value), "{file}: {path} does not come back");
    }
    after.retain(|path, _| !before.contains_key(path));
    after
}

/// Collects all values that hold no others, as JSON pointers. Empty lists and objects count.
fn leaves(value: &Value, path: &str, all: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                leaves(field, &format!("{path}/{}", name.replace('~', "~0").replace('/', "~1")), all);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                leaves(item, &format!("{path}/{index}"), all);
            }
        }
        _ => {
            all.insert(path.to_owned(), value.clone());
        }
    }
}

fn is_in_a_list(path: &str) -> bool {
    path.split('/').any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}
