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

/// Documents among the cases that a server refuses, and only an operator of another version could find.
const REFUSED: [&str; 1] = ["askew"];

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
async fn documents_come_back_as_they_are_written() {
    let site = ControllerSite::new().await;
    let (mut count, mut refused) = (0, Vec::new());
    for file in manifests() {
        let text = fs::read_to_string(repository().join(&file)).expect("it is there");
        let ours = documents(&text).into_iter().filter(|document| document["apiVersion"] == API_VERSION);
        for mut written in ours {
            // The cases say where they are, and what an operator has written.
            written["metadata"].as_object_mut().expect("it has a name").remove("namespace");
            written.as_object_mut().expect("an object").remove("status");
            let api = site.ours(written["kind"].as_str().and_then(Kind::from_name).expect("a kind of ours"));
            let name = written["metadata"]["name"].as_str().expect("a name");
            let parameters = PatchParams::apply("round-trip").force();
            match api.patch(name, &parameters, &Patch::Apply(&written)).await {
                Ok(_) => count += 1,
                Err(kube::Error::Api(status)) if status.code == 422 => {
                    refused.push(name.to_owned());
                    continue;
                }
                Err(error) => panic!("{file}: {error}"),
            }
            let stored = api.get(name).await.expect("it is there");
            // A default inside a list that is written would make the whole list another one.
            let added = added(&file, &written, &stored);
            let in_lists: Vec<_> = added.keys().filter(|path| is_in_a_list(path, &written)).collect();
            assert!(in_lists.is_empty(), "{file}: the server adds {in_lists:?} inside of lists");
            api.delete(name, &DeleteParams::default()).await.expect("it is there");
        }
    }
    assert_eq!(refused, REFUSED, "the server refuses these of the cases");
    assert!(count >= 30, "only {count} documents were found");
}

/// The examples, and documents with every part that there is.
fn manifests() -> Vec<String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let paths = ["examples/*.yaml", "tests/cases/objects/*/documents.yaml"];
    let listed = run(Command::new("git").current_dir(repository()).args(arguments).args(paths));
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
        let came_back = stored.pointer(path);
        // An empty object may be filled with defaults.
        let is_filled = value.as_object().is_some() && came_back.is_some_and(Value::is_object);
        let is_same = is_filled || came_back.is_some_and(|came_back| is_same(came_back, value));
        assert!(is_same, "{file}: {path} was written as {value}, and comes back as {came_back:?}");
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

/// Whether both are one value. Servers write 2.0 as 2, which Git's tools know.
fn is_same(one: &Value, other: &Value) -> bool {
    one == other || one.as_f64().is_some() && one.as_f64() == other.as_f64()
}

/// Whether a path leads into a list of this document.
fn is_in_a_list(path: &str, document: &Value) -> bool {
    path.match_indices('/').any(|(end, _)| document.pointer(&path[..end]).is_some_and(Value::is_array))
}
