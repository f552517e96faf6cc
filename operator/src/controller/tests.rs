//! The objects that are built for pipelines, and their conditions, held to files.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use expect_test::expect_file;
use litejoin_crds::kind::Kind;
use serde::Deserialize;
use serde_json::{Value, json};

use super::build::{Desired, Operator, build};
use super::object::Object;
use super::observe::{AdminKeys, Observed, SecretValues};
use super::status::{Findings, statuses};
use super::validate::validate;
use super::worker::WorkerReport;

#[test]
fn objects_and_statuses_are_as_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/objects");
    let mut cases: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    assert!(cases.len() >= 10);
    for case in cases {
        let documents = fs::read_to_string(case.join("documents.yaml")).unwrap();
        expect_file![case.join("objects.yaml")].assert_eq(&outcome(&observed(&documents)));
    }
}

#[test]
fn the_same_documents_make_the_same_bytes() {
    let documents =
        "{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {name: p, namespace: n}, spec: {}}";
    assert_eq!(outcome(&observed(documents)), outcome(&observed(documents)));
}

/// The state of a cluster in which these documents were just made.
fn observed(documents: &str) -> Observed {
    let mut objects = serde_yaml::Deserializer::from_str(documents).map(|document| {
        let value = Value::deserialize(document).unwrap();
        let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
        Object {
            kind: Kind::from_name(value["kind"].as_str().unwrap()).unwrap(),
            name: text("name"),
            namespace: text("namespace"),
            uid: "the-uid".to_owned(),
            generation: 1,
            version: None,
            spec: value["spec"].clone(),
            status: value["status"].clone(),
        }
    });
    let pipeline = objects.next().unwrap();
    // A pipeline that has data has its volume.
    let uid = &pipeline.status["layout"]["volumeClaimUid"];
    let claim = json!({ "metadata": { "name": "data", "uid": uid }, "status": { "phase": "Bound" } });
    let volume_claim = uid.is_string().then(|| serde_json::from_value(claim).unwrap());
    Observed {
        pipeline,
        children: objects.collect(),
        built: BTreeMap::new(),
        volume_claim,
        leftover_claim: None,
        pod_refusal: None,
        pod: None,
        job_pods: Vec::new(),
        job_refusal: None,
        secrets: BTreeMap::from([("credentials".to_owned(), Some(BTreeSet::from(["token".to_owned()])))]),
        secret_values: SecretValues::of("credentials", "token", "hunter2"),
        secrets_forbidden: false,
        pod_monitors_served: true,
        admin_keys: AdminKeys::default(),
    }
}

/// Everything that follows from it, as YAML.
fn outcome(observed: &Observed) -> String {
    let verdict = validate(observed);
    let operator =
        Operator { worker_image: "litejoin:of-the-operator".to_owned(), namespace: "litejoin".to_owned() };
    let desired = build(observed, &verdict, &operator);
    let mut text = String::new();
    let written = desired.iter().filter(|_| !observed.is_paused());
    let objects = written.flat_map(|Desired { objects, .. }| objects.values());
    for object in objects {
        write!(text, "---\n{}", serde_yaml::to_string(object).unwrap()).unwrap();
    }
    let now = jiff::Timestamp::UNIX_EPOCH;
    let statuses = statuses(
        &Findings {
            observed,
            verdict: &verdict,
            desired: desired.as_ref(),
            report: &WorkerReport::Absent,
            job_report: None,
            lost_node: None,
            unwritten: None,
        },
        now,
    );
    let said = |name: &str, conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]| {
        let lines =
            conditions.iter().map(|c| format!("{} {} {}: {}", c.type_, c.status, c.reason, c.message));
        json!({ name: lines.collect::<Vec<_>>() })
    };
    let mut all = vec![said(&observed.pipeline.name, &statuses.pipeline.conditions)];
    let children = observed.children.iter().zip(&statuses.children);
    all.extend(children.map(|(child, status)| said(&child.name, &status.conditions)));
    write!(text, "---\n# what is said\n{}", serde_yaml::to_string(&all).unwrap()).unwrap();
    text
}
