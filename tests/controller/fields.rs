//! Every field of every document is changed to another value and back: the objects follow, and return to their first
//! state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use expect_test::expect_file;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use litejoin_crds::crd::schema;
use litejoin_crds::kind::Kind;
use litejoin_tests::programs::repository;
use litejoin_tests::wait::until;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::site::{ControllerSite, condition_of};

/// Fields of a Pipeline that hold fields of Kubernetes, or lists of children: other tables cover them.
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

/// Fields of children that are changed as a whole.
const WHOLE_NAMES: [&str; 4] = ["auth", "tls", "sasl", "signingKey"];

#[tokio::test]
async fn every_field_is_followed_there_and_back() {
    let text = fs::read_to_string(repository().join("tests/cases/objects/fields.yaml"));
    let table: serde_yaml::Mapping = serde_yaml::from_str(&text.expect("the table is there")).expect("a map");
    let table = rows(table);
    let known: BTreeSet<String> = table.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(known, fields(Kind::Pipeline), "the table has every field, and no other");

    let site = ControllerSite::new().await;
    site.secret("door", &[("token", "t"), ("tls.crt", "c"), ("tls.key", "k")]).await;
    let operator = site.operator();
    // Fields of an optional part are changed while the part is enabled, and windows while a source fills their topic.
    let optional = |path: &str| {
        let part = ["networkPolicy.", "podMonitor."].iter().any(|field| path.starts_with(field));
        path == "windows" || (part && !path.ends_with("enabled"))
    };
    let (optional, plain) = table.into_iter().partition(|(path, _)| optional(path));
    let mut report = walk(&site, Kind::Pipeline, &json!({}), plain).await;
    let on = json!({
        "networkPolicy": { "enabled": true },
        "podMonitor": { "enabled": true },
        "sources": [{ "name": "ingest", "http": { "addr": ":8080", "topics": ["orders"] } }],
    });
    report += &walk(&site, Kind::Pipeline, &on, optional).await;
    expect_file!["../cases/objects/fields.txt"].assert_eq(&report);
    operator.stop().await;
}

/// The Pipeline of the children in this test.
const PIPELINE: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  sources: [{name: ingest, http: {addr: ":8080", topics: [orders, customers]}}]
  joins: [{name: all, query: SELECT key AS id FROM orders, sinks: [console]}]
  sinks: [{name: console, stdout: {}}]
"#;

/// Fields of children that are changed from one base document.
#[derive(Deserialize)]
struct Section {
    kind: String,
    base: Value,
    fields: serde_yaml::Mapping,
}

#[tokio::test]
async fn every_field_of_a_child_is_followed_there_and_back() {
    let text = fs::read_to_string(repository().join("tests/cases/objects/children.yaml"));
    let sections: Vec<Section> = serde_yaml::from_str(&text.expect("the table is there")).expect("sections");
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for section in &sections {
        let paths = section.fields.keys().filter_map(|path| path.as_str()).map(str::to_owned);
        known.entry(&section.kind).or_default().extend(paths);
    }
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pipeline) {
        assert_eq!(known[kind.as_str()], fields(kind), "the table has every field of a {}", kind.as_str());
    }

    let site = ControllerSite::new().await;
    site.secret("door", &[("token", "t"), ("tls.crt", "c"), ("tls.key", "k")]).await;
    let operator = site.operator();
    site.apply(PIPELINE).await;
    let mut report = String::new();
    for section in sections {
        let kind = Kind::from_name(&section.kind).expect("a kind of ours");
        let mut base = section.base;
        base["pipelineRef"] = json!({ "name": "orders" });
        report += &format!("{}\n", section.kind);
        for line in walk(&site, kind, &base, rows(section.fields)).await.lines() {
            report += &format!("  {line}\n");
        }
        site.ours(kind).delete(name(kind), &DeleteParams::default()).await.expect("it is there");
    }
    expect_file!["../cases/objects/children.txt"].assert_eq(&report);
    operator.stop().await;
}

/// Returns the name of this test's document of a kind.
fn name(kind: Kind) -> &'static str {
    if kind == Kind::Pipeline { "orders" } else { "subject" }
}

/// Changes each field and reverts it; returns the objects that followed.
async fn walk(site: &ControllerSite, kind: Kind, base: &Value, table: Vec<(String, Value)>) -> String {
    let name = name(kind);
    let before = follow(site, kind, base).await;
    let mut report = String::new();
    for (path, value) in table.into_iter().filter(|(_, value)| !value.is_null()) {
        let mut spec = base.clone();
        set(&mut spec, &path.replace('.', "/"), value);
        let then = follow(site, kind, &spec).await;
        let slots: BTreeSet<&String> = before.keys().chain(then.keys()).collect();
        let changed = slots.into_iter().filter(|slot| before.get(*slot) != then.get(*slot));
        let changed: Vec<&str> = changed.map(String::as_str).collect();
        let template = |objects: &BTreeMap<String, Value>| objects["StatefulSet"]["spec"]["template"].clone();
        let restart = if template(&before) == template(&then) { "" } else { " (restart)" };
        let document = site.ours(kind).get(name).await.expect("it is there");
        let accepted = condition_of(&document, "Accepted").filter(|accepted| accepted["status"] == "False");
        let refused = accepted
            .map(|accepted| format!(" (refused: {})", accepted["message"].as_str().unwrap_or_default()));
        report += &format!("{path}: {}{restart}{}\n", changed.join(", "), refused.unwrap_or_default());
        let after = follow(site, kind, base).await;
        assert_eq!(before, after, "all is as it was before {path}");
    }
    report
}

/// Applies this spec, waits until the operator has observed it, and returns the objects by kind and name.
async fn follow(site: &ControllerSite, kind: Kind, spec: &Value) -> BTreeMap<String, Value> {
    let document = json!({
        "apiVersion": litejoin_crds::API_VERSION, "kind": kind.as_str(), "metadata": { "name": name(kind) }, "spec": spec,
    });
    let documents = site.ours(kind);
    let applied =
        documents.patch(name(kind), &PatchParams::apply("test").force(), &Patch::Apply(&document)).await;
    applied.unwrap_or_else(|error| panic!("{spec}: {error}"));
    until("the operator to follow", async || {
        let document = documents.get(name(kind)).await.ok()?;
        let seen = &document.data["status"]["observedGeneration"];
        let found = condition_of(&document, "ResolvedRefs").is_none_or(|refs| refs["status"] == "True");
        (found && *seen == json!(document.metadata.generation)).then_some(())
    })
    .await;
    let mut objects = BTreeMap::new();
    for (slot, resource, name) in [
        ("Secret", ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&()), "orders-litejoin"),
        ("ConfigMap", ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()), "orders"),
        ("Service", ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()), "orders"),
        (
            "HeadlessService",
            ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()),
            "orders-headless",
        ),
        ("ServiceAccount", ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()), "orders"),
        (
            "NetworkPolicy",
            ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&()),
            "orders",
        ),
        ("PodMonitor", pod_monitors(), "orders"),
        ("CronJob", ApiResource::erase::<k8s_openapi::api::batch::v1::CronJob>(&()), "orders"),
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

/// Returns a kind of the Prometheus operator.
pub(crate) fn pod_monitors() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PodMonitor"))
}

/// Returns the paths of all fields of a kind's spec, as the table names them.
fn fields(kind: Kind) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    below(kind, &schema(kind)["properties"]["spec"], "", &mut all);
    all
}

fn below(kind: Kind, schema: &Value, at: &str, all: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        let whole = match kind {
            Kind::Pipeline => {
                WHOLE.iter().any(|whole| path == *whole || (whole.ends_with('.') && path.starts_with(whole)))
            }
            _ => WHOLE_NAMES.contains(&name.as_str()),
        };
        if field["properties"].is_object() && !whole {
            below(kind, field, &path, all);
        } else {
            all.insert(path);
        }
    }
}

/// Sets a field by its path, whose parts are separated by `/`.
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

/// Returns the rows of a table in order.
fn rows(table: serde_yaml::Mapping) -> Vec<(String, Value)> {
    let row = |(path, value): (serde_yaml::Value, serde_yaml::Value)| {
        let path = path.as_str().expect("a path is text").to_owned();
        (path, serde_json::to_value(value).expect("YAML of ours is JSON"))
    };
    table.into_iter().map(row).collect()
}
