//! Each write of a create, an update and a removal is disturbed in each way, one at a time: the caller dies before or
//! after it, the write is refused, fails, loses its answer, or is followed by stale reads. The outcome must be the
//! same as without a fault.

use std::cell::RefCell;

use futures::future::join_all;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::proxy::Fault;
use litejoin_tests::wait::until;
use serde_json::{Value, json};

use crate::site::ControllerSite;

const START: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  storage: {shardCount: 2}
  sources:
    - {name: ingest, http: {addr: ":8080", topics: [orders]}}
  joins:
    - {name: all, query: SELECT key AS id FROM orders, sinks: [console]}
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {name: console}
spec: {pipelineRef: {name: orders}, stdout: {}}
"#;

/// The Pipeline with another query, another port, a restart, and one more child of each kind.
const GROWN: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  restartNonce: again
  networkPolicy: {enabled: true}
  storage: {shardCount: 2}
  sources:
    - {name: ingest, http: {addr: ":8081", topics: [orders]}}
  joins:
    - {name: all, query: SELECT key AS id FROM orders WHERE key > 'a', sinks: [console]}
---
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: more}
spec: {pipelineRef: {name: orders}, query: SELECT key AS id FROM orders, sinks: [missing]}
"#;

/// The Pipeline without any server, so that the Service for clients goes, as does the service account.
const SHRUNK: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  storage: {shardCount: 2}
  podTemplate: {serviceAccountName: theirs}
  sources:
    - {name: file, file: {path: orders.ndjson, topic: orders, keyColumns: [id]}}
  joins:
    - {name: all, query: SELECT key AS id FROM orders, sinks: [console]}
";

/// A scenario: the documents before, and the change.
#[derive(Clone, Copy)]
struct Scenario {
    before: Option<&'static str>,
    applied: &'static str,
    /// Whether the Pipeline is deleted.
    deleted: bool,
}

#[tokio::test]
async fn every_disturbed_write_ends_alike() {
    let [create, update, removal, deletion] = [
        Scenario { before: None, applied: START, deleted: false },
        Scenario { before: Some(START), applied: GROWN, deleted: false },
        Scenario { before: Some(START), applied: SHRUNK, deleted: false },
        Scenario { before: Some(START), applied: "", deleted: true },
    ];
    // Most of the time is spent on expiring Leases, so all faults of a write run at once, and two scenarios.
    let in_turn = async |scenarios: [Scenario; 2]| {
        for scenario in scenarios {
            check(scenario).await;
        }
    };
    tokio::join!(in_turn([create, update]), in_turn([removal, deletion]));
}

/// The objects before and after a scenario.
struct Known {
    before: Value,
    end: Value,
}

/// Runs the scenario without a fault, and then with each fault at each write.
async fn check(scenario: Scenario) {
    let (_, known) = run(scenario, None, None).await;
    for number in 1.. {
        let faults = Fault::ALL.map(|fault| run(scenario, Some((number, fault)), Some(&known)));
        // All faults of a write run at once: each waits for the Lease of a dead operator most of the time.
        let struck = join_all(faults).await.into_iter().any(|(struck, _)| struck);
        if !struck {
            assert!(number > 1, "nothing was written at all");
            break;
        }
    }
}

/// Runs the scenario with a fault; returns whether there was a write to disturb, and the objects before and after.
async fn run(scenario: Scenario, fault: Option<(usize, Fault)>, known: Option<&Known>) -> (bool, Known) {
    let site = ControllerSite::new().await;
    let mut operator = site.operator();
    let mut before = Value::Null;
    if let Some(manifest) = scenario.before {
        site.apply(manifest).await;
        let expected = known.map(|known| &known.before).ok_or("Starting");
        before = settle(&site, expected, &format!("what is there before {fault:?}")).await;
    }
    site.proxy.reset(fault);
    site.apply(scenario.applied).await;
    if scenario.deleted {
        let pipelines = site.ours(Kind::Pipeline);
        pipelines.delete("orders", &DeleteParams::default()).await.expect("it can be deleted");
    }
    let reason = if scenario.deleted { "PipelineNotFound" } else { "Starting" };
    let expected = known.map(|known| &known.end).ok_or(reason);
    let what = format!("the end after {fault:?}");
    let (struck, end) = tokio::select! {
        () = site.proxy.crash() => {
            operator.kill().await;
            site.proxy.reset(None);
            operator = site.operator();
            (true, settle(&site, expected, &what).await)
        }
        end = settle(&site, expected, &what) => {
            (fault.is_some_and(|(number, _)| site.proxy.writes().len() >= number), end)
        }
    };
    operator.stop().await;
    (struck, Known { before, end })
}

/// Waits until the objects are as expected. If the expectation is a reason, waits until every status is current, one
/// of them has this reason, and nothing changes.
async fn settle(site: &ControllerSite, expected: Result<&Value, &str>, what: &str) -> Value {
    let shown = expected.ok().cloned().unwrap_or_default();
    let last = Shown { found: RefCell::new(Value::Null), expected: shown };
    let mut writes = site.proxy.writes().len();
    let mut quiet = 0;
    until(what, async || {
        let found = found(site).await?;
        let done = match expected {
            Ok(expected) => found == *expected,
            Err(reason) => {
                let same = *last.found.borrow() == found && writes == site.proxy.writes().len();
                writes = site.proxy.writes().len();
                quiet = if same && is_reported(&found, reason) { quiet + 1 } else { 0 };
                quiet > QUIET_LOOKS
            }
        };
        *last.found.borrow_mut() = found.clone();
        done.then_some(found)
    })
    .await
}

/// How many polls in a row must see no change: some seconds, since each poll takes a few calls.
const QUIET_LOOKS: usize = 40;

/// Returns whether every status is about the generation of its object, and one of them has this reason.
fn is_reported(found: &Value, reason: &str) -> bool {
    let objects = found.as_array().expect("a list");
    found.to_string().contains(&format!("\"reason\":\"{reason}\""))
        && objects.iter().all(|object| {
            object["apiVersion"] != litejoin_crds::API_VERSION
                || object["status"]["observedGeneration"] == object["metadata"]["generation"]
        })
}

/// Prints the difference between the last and the expected objects if the test fails.
struct Shown {
    found: RefCell<Value>,
    expected: Value,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (found, expected) = (format!("{:#}", self.found.borrow()), format!("{:#}", self.expected));
        let lacks = |lines: &str, line: &str| !lines.lines().any(|other| other == line);
        expected.lines().filter(|line| lacks(&found, line)).for_each(|line| eprintln!("- {line}"));
        found.lines().filter(|line| lacks(&expected, line)).for_each(|line| eprintln!("+ {line}"));
    }
}

/// Returns all objects of pipelines in the namespace, without fields that differ from run to run.
async fn found(site: &ControllerSite) -> Option<Value> {
    let mut resources: Vec<ApiResource> = Kind::ALL.map(resource_of).to_vec();
    resources.push(ApiResource::erase::<k8s_openapi::api::core::v1::ServiceAccount>(&()));
    resources.push(ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&()));
    resources.push(ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()));
    resources.push(ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&()));
    resources.push(ApiResource::erase::<k8s_openapi::api::batch::v1::CronJob>(&()));
    resources.push(ApiResource::erase::<k8s_openapi::api::apps::v1::StatefulSet>(&()));
    let mut all = Vec::new();
    for resource in resources {
        let api: Api<DynamicObject> = Api::namespaced_with(site.client.clone(), &site.namespace, &resource);
        let mut objects = api.list(&ListParams::default()).await.ok()?.items;
        objects.retain(|object| object.metadata.deletion_timestamp.is_none());
        objects.sort_by_key(ResourceExt::name_any);
        for mut object in objects {
            let generation = object.metadata.generation;
            object.metadata.managed_fields = None;
            let metadata = &object.metadata;
            let metadata = json!({
                "name": metadata.name, "labels": metadata.labels, "annotations": metadata.annotations,
                "generation": generation, "owners": metadata.owner_references.iter().flatten().count(),
            });
            all.push(json!({
                "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata,
                "data": object.data["data"], "spec": object.data["spec"], "status": object.data["status"],
            }));
        }
    }
    let mut all = Value::Array(all);
    forget(&mut all, &site.namespace);
    Some(all)
}

fn resource_of(kind: Kind) -> ApiResource {
    let kind = kube::api::GroupVersionKind::gvk(litejoin_crds::GROUP, litejoin_crds::VERSION, kind.as_str());
    ApiResource::from_gvk(&kind)
}

/// Fields that differ from run to run.
const FORGOTTEN: [&str; 7] = [
    "lastTransitionTime",
    "clusterIP",
    "clusterIPs",
    "currentRevision",
    "updateRevision",
    "litejoin.io/written",
    "litejoin.io/settings",
];

/// Removes times, addresses, the namespace's name and hashes of it, and the status from the StatefulSet's controller.
fn forget(value: &mut Value, namespace: &str) {
    match value {
        Value::Object(map) => {
            for field in FORGOTTEN {
                map.remove(field);
            }
            if map.get("kind").is_some_and(|kind| kind == "StatefulSet") {
                map.remove("status");
            }
            map.values_mut().for_each(|value| forget(value, namespace));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| forget(item, namespace)),
        Value::String(text) => *text = text.replace(namespace, "NAMESPACE"),
        _ => {}
    }
}
