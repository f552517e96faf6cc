//! Validation and defaults of a real API server, with the error texts, by the same table that tests `validate`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use expect_test::expect_file;
use kube::api::{DeleteParams, Patch, PatchParams};
use litejoin_crds::Document;
use litejoin_crds::Plan;
use litejoin_crds::crd::schema;
use litejoin_crds::kind::Kind;
use litejoin_tests::programs::repository;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::site::ControllerSite;

#[tokio::test]
async fn documents_are_accepted_or_refused() {
    let site = ControllerSite::new().await;
    let text = fs::read_to_string(repository().join("tests/cases/documents/cases.yaml"));
    let cases: Vec<Value> = serde_yaml::from_str(&text.expect("the table is there")).expect("a list");
    let mut answers = String::new();
    for case in &cases {
        let answer = answer(&site, case).await;
        let (kind, about) = (case["kind"].as_str(), case["about"].as_str());
        answers += &format!("{} {}: {answer}\n", kind.unwrap_or_default(), about.unwrap_or_default());
    }
    expect_file!["../cases/documents/server.txt"].assert_eq(&answers);
    for kind in Kind::ALL {
        let mut rules = BTreeSet::new();
        messages(schema(kind), &mut rules);
        let unheard: Vec<&String> = rules.iter().filter(|message| !answers.contains(*message)).collect();
        assert_eq!(unheard, Vec::<&String>::new(), "a case is refused by each rule of {}", kind.as_str());
    }
}

/// Collects the messages of all rules of a schema.
fn messages(schema: &Value, all: &mut BTreeSet<String>) {
    let rules = schema["x-kubernetes-validations"].as_array().into_iter().flatten();
    all.extend(rules.filter_map(|rule| rule["message"].as_str()).map(str::to_owned));
    for fields in [&schema["properties"], &schema["additionalProperties"]] {
        fields.as_object().into_iter().flatten().for_each(|(_, field)| messages(field, all));
    }
    if schema["items"].is_object() {
        messages(&schema["items"], all);
    }
}

#[tokio::test]
async fn defaults_are_filled_in() {
    let site = ControllerSite::new().await;
    let text = fs::read_to_string(repository().join("tests/cases/documents/smallest.yaml"));
    let cases: Vec<Value> = serde_yaml::from_str(&text.expect("the table is there")).expect("a list");
    let mut filled = String::new();
    let mut left: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for kind in Kind::ALL {
        defaults(&schema(kind)["properties"]["spec"], "", left.entry(kind.as_str()).or_default());
    }
    for case in &cases {
        let kind = case["kind"].as_str().and_then(Kind::from_name).expect("a kind of ours");
        let made = apply(&site, kind, "subject", case["spec"].clone()).await.expect("it is valid");
        let (spec, status) = (&made.data["spec"], &made.data["status"]);
        filled +=
            &serde_yaml::to_string(&json!({ kind.as_str(): spec, "status": status })).expect("it is YAML");
        filled += "---\n";
        let there = |path: &String| spec.pointer(path).is_none();
        left.get_mut(kind.as_str()).expect("it is there").retain(there);
        // Without a server the defaults are the same: a document that states them all has the same plan.
        assert_eq!(read(kind, &case["spec"]), read(kind, spec), "{case}");
        assert_eq!(plan(kind, &case["spec"]), plan(kind, spec), "{case}");
        site.ours(kind).delete("subject", &DeleteParams::default()).await.expect("it is there");
    }
    left.retain(|_, paths| !paths.is_empty());
    assert_eq!(left, BTreeMap::new(), "every default is seen");
    expect_file!["../cases/documents/defaults.yaml"].assert_eq(&filled);
}

/// Collects the places of all defaults of a schema, as JSON pointers.
fn defaults(schema: &Value, at: &str, all: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{at}/{name}");
        if !field["default"].is_null() {
            all.insert(path.clone());
        }
        defaults(field, &path, all);
    }
}

/// Returns the plan of `litejoin validate` for a document, beside a Pipeline if the document is another kind.
fn plan(kind: Kind, spec: &Value) -> Plan {
    let document = |kind: Kind, name: &str, spec: &Value| Document {
        value: json!({
            "apiVersion": litejoin_crds::API_VERSION, "kind": kind.as_str(), "metadata": { "name": name }, "spec": spec,
        }),
    };
    let mut documents = vec![document(kind, "subject", spec)];
    if kind != Kind::Pipeline {
        documents[0].value["spec"]["pipelineRef"] = json!({ "name": "p" });
        let sources =
            json!({ "sources": [{ "name": "other", "http": { "addr": ":1", "topics": ["other"] } }] });
        documents.push(document(Kind::Pipeline, "p", &sources));
    }
    let (plan, _) = litejoin_crds::validate(&documents).unwrap_or_else(|wrong| panic!("{spec}: {wrong:?}"));
    // The documents themselves differ, so their hash does.
    Plan { config_hash: String::new(), ..plan }
}

/// Returns a spec after both programs' types have read and written it.
fn read(kind: Kind, spec: &Value) -> Value {
    fn through<T: DeserializeOwned + Serialize>(mut spec: Value) -> Value {
        if spec["pipelineRef"].is_null() {
            spec["pipelineRef"] = json!({ "name": "p" });
        }
        let read: T = serde_json::from_value(spec).expect("it is valid");
        serde_json::to_value(read).expect("it is plain data")
    }
    let spec = spec.clone();
    match kind {
        Kind::Pipeline => through::<litejoin_crds::PipelineSpec>(spec),
        Kind::Source => through::<litejoin_crds::SourceSpec>(spec),
        Kind::Join => through::<litejoin_crds::JoinSpec>(spec),
        Kind::Window => through::<litejoin_crds::WindowSpec>(spec),
        Kind::Sink => through::<litejoin_crds::SinkSpec>(spec),
    }
}

/// Returns the server's answer to a case.
async fn answer(site: &ControllerSite, case: &Value) -> String {
    let kind = case["kind"].as_str().and_then(Kind::from_name).expect("a kind of ours");
    let name = case["name"].as_str().unwrap_or("subject");
    if !case["before"].is_null() {
        apply(site, kind, name, case["before"].clone()).await.expect("what is there before is valid");
        tell(site, name, case).await;
    }
    let answer = match apply(site, kind, name, case["spec"].clone()).await {
        Ok(_) => "accepted".to_owned(),
        Err(kube::Error::Api(status)) => status.message.clone(),
        Err(error) => panic!("{case}: {error}"),
    };
    // A refused document may exist from an earlier case.
    let _ = site.ours(kind).delete(name, &DeleteParams::default()).await;
    answer
}

/// Replaces a document, as a second `kubectl apply` does.
async fn apply(
    site: &ControllerSite,
    kind: Kind,
    name: &str,
    mut spec: Value,
) -> Result<kube::api::DynamicObject, kube::Error> {
    if kind != Kind::Pipeline && spec["pipelineRef"].is_null() {
        spec["pipelineRef"] = json!({ "name": "p" });
    }
    let document = json!({
        "apiVersion": litejoin_crds::API_VERSION, "kind": kind.as_str(), "metadata": { "name": name }, "spec": spec,
    });
    site.ours(kind).patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&document)).await
}

/// Sets the layout in the status as the operator would.
async fn tell(site: &ControllerSite, name: &str, case: &Value) {
    let Some(shards) = case["layout"].as_u64() else { return };
    let mut status = json!({ "layout": { "shardCount": shards } });
    if let Some(phase) = case["reshard"].as_str() {
        status["reshard"] = json!({ "phase": phase, "fromShardCount": shards, "toShardCount": 2 * shards });
    }
    let pipelines = site.ours(Kind::Pipeline);
    let patched = pipelines
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&json!({ "status": status })))
        .await;
    patched.expect("a Pipeline has a status");
}
