//! What a real API server accepts, refuses with which words, and fills in, by the table that `validate` is held to too.

use std::fs;

use expect_test::expect_file;
use kube::api::{DeleteParams, Patch, PatchParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::programs::repository;
use serde_json::{Value, json};

use crate::site::Site;

#[tokio::test]
async fn documents_are_accepted_or_refused() {
    let site = Site::new().await;
    let text = fs::read_to_string(repository().join("tests/cases/documents/cases.yaml"));
    let cases: Vec<Value> = serde_yaml::from_str(&text.expect("the table is there")).expect("a list");
    let mut answers = String::new();
    for case in &cases {
        let answer = answer(&site, case).await;
        let (kind, about) = (case["kind"].as_str(), case["about"].as_str());
        answers += &format!("{} {}: {answer}\n", kind.unwrap_or_default(), about.unwrap_or_default());
    }
    expect_file!["../cases/documents/server.txt"].assert_eq(&answers);
}

#[tokio::test]
async fn defaults_are_filled_in() {
    let site = Site::new().await;
    let mut filled = String::new();
    for (kind, spec) in [
        (
            Kind::Pipeline,
            json!({ "storage": {}, "retention": {}, "delivery": { "dlq": {} }, "audit": {}, "admin": {} }),
        ),
        (Kind::Source, json!({ "http": { "addr": ":8080" } })),
        (
            Kind::Source,
            json!({ "topic": "t", "api": { "url": "http://a", "keyPath": "id", "interval": "1m" } }),
        ),
        (Kind::Sink, json!({ "sse": { "addr": ":9100" } })),
        (Kind::Window, json!({ "type": "tumbling", "size": "1m", "topic": "t", "query": "SELECT 1" })),
    ] {
        let made = apply(&site, kind, "defaults", spec).await.expect("it is valid");
        filled += &serde_yaml::to_string(
            &json!({ kind.as_str(): made.data["spec"], "status": made.data["status"] }),
        )
        .expect("JSON is YAML");
        filled += "---\n";
        site.ours(kind).delete("defaults", &DeleteParams::default()).await.expect("it is there");
    }
    expect_file!["../cases/documents/defaults.yaml"].assert_eq(&filled);
}

/// What the server says of a case.
async fn answer(site: &Site, case: &Value) -> String {
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
    // What was refused may be there from before.
    let _ = site.ours(kind).delete(name, &DeleteParams::default()).await;
    answer
}

/// Replaces a document, as `kubectl apply` of another version of it does.
async fn apply(
    site: &Site,
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

/// Says of the data what the operator would have said.
async fn tell(site: &Site, name: &str, case: &Value) {
    let Some(shards) = case["layout"].as_u64() else { return };
    let mut status = json!({ "layout": { "shardCount": shards } });
    if let Some(phase) = case["reshard"].as_str() {
        status["reshard"] = json!({ "phase": phase, "fromShardCount": shards, "toShardCount": 2 * shards });
    }
    let told = site.ours(Kind::Pipeline);
    let told =
        told.patch_status(name, &PatchParams::default(), &Patch::Merge(&json!({ "status": status }))).await;
    told.expect("a Pipeline has a status");
}
