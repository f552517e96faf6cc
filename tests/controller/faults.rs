//! Each write of a create, an update and a removal is disturbed in each way, one at a time: the caller dies before or
//! after it, it is refused, it fails, its answer is lost, or reads after it are stale. The end is the same as without.

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

/// Another query, another port, a restart, and one more of each child that is left.
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

/// Nothing listens any more, so the Service for clients goes, as does the service account.
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

/// What a scenario is: what is there before, and what is done.
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
    // What takes time is waiting for Leases: all faults of a write wait at once, and two scenarios.
    let lane = async |scenarios: [Scenario; 2]| {
        for scenario in scenarios {
            check(scenario).await;
        }
    };
    tokio::join!(lane([create, update]), lane([removal, deletion]));
}

/// What there is before and after a scenario.
struct Known {
    before: Value,
    end: Value,
}

/// Runs the scenario undisturbed, and then with each fault at each write.
async fn check(scenario: Scenario) {
    let (_, known) = run(scenario, None, None).await;
    for number in 1.. {
        let faults = Fault::ALL.map(|fault| run(scenario, Some((number, fault)), Some(&known)));
        // All faults of a write at once: most of it is waiting for the Lease of one who died.
        let struck = join_all(faults).await.into_iter().any(|(struck, _)| struck);
        if !struck {
            assert!(number > 1, "nothing was written at all");
            break;
        }
    }
}

/// Runs the scenario with a fault; returns whether there was a write to disturb, and what there was.
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

/// Waits until all is as expected, or, if that isn't known, until every status is about the present, one of them has
/// this reason, and nothing moves.
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
                quiet = if same && told(&found, reason) { quiet + 1 } else { 0 };
                quiet > QUIET_LOOKS
            }
        };
        *last.found.borrow_mut() = found.clone();
        done.then_some(found)
    })
    .await
}

/// How often nothing may have moved before it is settled: some seconds, as each look takes a few calls.
const QUIET_LOOKS: usize = 40;

/// Whether every status is about the generation that it stands beside, and one of them has this reason.
fn told(found: &Value, reason: &str) -> bool {
    let objects = found.as_array().expect("a list");
    found.to_string().contains(&format!("\"reason\":\"{reason}\""))
        && objects.iter().all(|object| {
            object["apiVersion"] != litejoin_crds::API_VERSION
                || object["status"]["observedGeneration"] == object["metadata"]["generation"]
        })
}

/// Prints how what was found last differs from what was expected, if the test fails.
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

/// All that there is of pipelines in the namespace, without what differs from run to run.
async fn found(site: &ControllerSite) -> Option<Value> {
    let mut resources: Vec<ApiResource> = Kind::ALL.map(|kind| resource_of(kind)).to_vec();
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

/// Takes out times, addresses, the namespace's name and hashes of it, and what the StatefulSet's controller says.
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
