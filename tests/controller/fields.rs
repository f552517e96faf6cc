//! Every field of a Pipeline is changed to another value and back: the objects follow, and return as they were.

use std::collections::BTreeMap;
use std::fs;

use expect_test::expect_file;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use litejoin_crds::crd::schema;
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::programs::repository;
use litejoin_tests::wait::until;
use serde_json::{Value, json};

use crate::site::Site;

/// Fields that hold fields of Kubernetes' own, or lists of ours: their tables are elsewhere.
const WHOLE: [&str; 8] = [
    "admin.auth",
    "admin.tls",
    "podTemplate.",
    "resources",
    "storage.reshard",
    "replication.credentialsSecretRef",
    "replication.serverSideEncryption",
    "sources",
];

#[tokio::test]
async fn every_field_is_followed_there_and_back() {
    let text = fs::read_to_string(repository().join("tests/cases/objects/fields.yaml"));
    let table: Vec<(String, Value)> = read(&text.expect("the table is there"));
    let mut known: Vec<&str> = table.iter().map(|(path, _)| path.as_str()).collect();
    let mut all = Vec::new();
    fields(&schema(Kind::Pipeline)["properties"]["spec"], "", &mut all);
    known.sort_unstable();
    all.sort_unstable();
    assert_eq!(known, all, "the table has every field, and no other");

    let site = Site::new().await;
    site.secret("door", &[("token", "t"), ("tls.crt", "c"), ("tls.key", "k")]).await;
    let operator = site.operator();
    let before = follow(&site, &json!({})).await;
    let mut told = String::new();
    for (path, value) in table.iter().filter(|(_, value)| !value.is_null()) {
        let mut spec = json!({});
        let pointer = format!("/{}", path.replace('.', "/"));
        set(&mut spec, pointer.trim_start_matches('/'), value.clone());
        let then = follow(&site, &spec).await;
        let mut changed: Vec<String> = Vec::new();
        for slot in before.keys().chain(then.keys()) {
            if before.get(slot) != then.get(slot) && !changed.contains(slot) {
                changed.push(slot.clone());
            }
        }
        let template = |objects: &BTreeMap<String, Value>| objects["StatefulSet"]["spec"]["template"].clone();
        let restart = if template(&before) == template(&then) { "" } else { " (restart)" };
        told += &format!("{path}: {}{restart}\n", changed.join(", "));
        let after = follow(&site, &json!({})).await;
        assert_eq!(before, after, "all is as it was before {path}");
    }
    expect_file!["../cases/objects/fields.txt"].assert_eq(&told);
    operator.stop().await;
}

/// Lets the Pipeline have this spec, waits until the operator has seen it, and returns what there is by kind and name.
async fn follow(site: &Site, spec: &Value) -> BTreeMap<String, Value> {
    let document = json!({
        "apiVersion": litejoin_crds::API_VERSION, "kind": "Pipeline", "metadata": { "name": "orders" }, "spec": spec,
    });
    let pipelines = site.ours(Kind::Pipeline);
    let applied =
        pipelines.patch("orders", &PatchParams::apply("test").force(), &Patch::Apply(&document)).await;
    applied.unwrap_or_else(|error| panic!("{spec}: {error}"));
    until("the operator to follow", async || {
        let pipeline = pipelines.get("orders").await.ok()?;
        let seen = &pipeline.data["status"]["observedGeneration"];
        (*seen == json!(pipeline.metadata.generation)).then_some(())
    })
    .await;
    let mut objects = BTreeMap::new();
    for (slot, resource, name) in [
        ("ConfigMap", ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()), "orders"),
        ("Service", ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()), "orders"),
        (
            "HeadlessService",
            ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()),
            "orders-headless",
        ),
        ("ServiceAccount", ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()), "orders"),
        ("StatefulSet", ApiResource::erase::<k8s_openapi::api::apps::v1::StatefulSet>(&()), "orders"),
    ] {
        let api: Api<DynamicObject> = Api::namespaced_with(site.client.clone(), &site.namespace, &resource);
        let Some(object) = api.get_opt(name).await.expect("it can be read") else { continue };
        let metadata = &object.metadata;
        let what = json!({
            "annotations": metadata.annotations, "labels": metadata.labels,
            "data": object.data["data"], "spec": object.data["spec"],
        });
        objects.insert(slot.to_owned(), what);
    }
    objects
}

/// The paths of all fields of a schema, as the table names them.
fn fields(schema: &Value, at: &str, all: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let whole =
            WHOLE.iter().any(|whole| path == *whole || (whole.ends_with('.') && path.starts_with(whole)));
        if field["properties"].is_object() && !whole {
            fields(field, &path, all);
        } else {
            all.push(path);
        }
    }
}

/// Sets a field by its path with `/` between.
fn set(spec: &mut Value, path: &str, value: Value) {
    match path.split_once('/') {
        Some((first, rest)) => {
            if !spec[first].is_object() {
                spec[first] = json!({});
            }
            set(&mut spec[first], rest, value);
        }
        None => spec[path] = value,
    }
}

/// The rows of the table in their order.
fn read(text: &str) -> Vec<(String, Value)> {
    let map: serde_yaml::Mapping = serde_yaml::from_str(text).expect("a map");
    map.into_iter()
        .map(|(path, value)| {
            let path = path.as_str().expect("a path is text").to_owned();
            (path, serde_json::to_value(value).expect("YAML of ours is JSON"))
        })
        .collect()
}
