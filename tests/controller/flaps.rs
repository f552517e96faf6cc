//! Conditions are written when they have settled: whatever happens, none turns to and fro, and none goes and comes back.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::server::Server;
use litejoin_tests::wait::until;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::settled::{orders, reconciles};
use crate::site::{ControllerSite, Ports, condition_of};

/// The statuses of each condition of each generation of each document, in turn; `-` for one that is not there.
type Turns = BTreeMap<String, Vec<String>>;

/// Watches all documents of a namespace.
struct Recorder {
    turns: Arc<Mutex<Turns>>,
    watches: Vec<JoinHandle<()>>,
}

impl Recorder {
    fn start(site: &ControllerSite) -> Self {
        let turns = Arc::new(Mutex::new(Turns::new()));
        let watches = Kind::ALL.into_iter().map(|kind| {
            let (api, turns) = (site.ours(kind), Arc::clone(&turns));
            tokio::spawn(async move {
                let mut seen = pin!(watcher(api, watcher::Config::default()).applied_objects());
                while let Some(Ok(object)) = seen.next().await {
                    record(&mut turns.lock().expect("no test panics while it records"), kind, &object);
                }
            })
        });
        let watches = watches.collect();
        Self { turns, watches }
    }

    /// Asserts that no condition has had one status twice since the last time.
    fn assert_steady(&self, when: &str) {
        let mut turns = self.turns.lock().expect("no test panics while it records");
        for (condition, statuses) in turns.iter_mut() {
            let last = statuses.last().cloned();
            let mut once = statuses.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), statuses.len(), "{when}: {condition} was in turn {statuses:?}");
            statuses.clear();
            statuses.extend(last);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.watches.iter().for_each(JoinHandle::abort);
    }
}

/// The conditions whose status is told apart. `Reconciling` and `Stalled` are there only while they hold.
const CONDITIONS: [&str; 11] = [
    "Ready",
    "Reconciling",
    "Stalled",
    "Accepted",
    "ResolvedRefs",
    "Programmed",
    "ConfigValid",
    "StorageReady",
    "WorkerReady",
    "Degraded",
    "ReplicationHealthy",
];

fn record(turns: &mut Turns, kind: Kind, object: &DynamicObject) {
    // A document that nobody has looked at yet has conditions of the definition. Each edit begins anew.
    let generation = object.data["status"]["observedGeneration"].as_i64();
    let Some(generation) = generation.filter(|generation| *generation >= 0) else { return };
    let name = object.name_any();
    for condition in CONDITIONS {
        let status = condition_of(object, condition).map_or_else(
            || "-".to_owned(),
            |condition| condition["status"].as_str().unwrap_or_default().to_owned(),
        );
        let condition = format!("{condition} of {} {name} at generation {generation}", kind.as_str());
        let turns = turns.entry(condition).or_default();
        if turns.last() != Some(&status) {
            turns.push(status);
        }
    }
}

fn join(name: &str, query: &str) -> String {
    format!(
        "---\napiVersion: litejoin.io/v1alpha1\nkind: Join\nmetadata: {{name: {name}}}\n\
         spec: {{pipelineRef: {{name: orders}}, query: \"{query}\", sinks: [live]}}\n"
    )
}

#[tokio::test]
async fn no_condition_turns_to_and_fro() {
    let site = ControllerSite::new().await;
    let operator = site.operator_with(&["--log", "debug"]);
    let recorder = Recorder::start(&site);
    let ports = Ports::free();
    let server = Server::start().await;
    let hook = format!(
        "---\napiVersion: litejoin.io/v1alpha1\nkind: Sink\nmetadata: {{name: hook}}\n\
         spec: {{pipelineRef: {{name: orders}}, joins: [enriched], http: {{url: \"{}\"}}}}\n",
        server.url("/hook")
    );
    site.apply(&(orders(&ports) + &hook)).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Sink, "hook", "Ready", "True", "Ready").await;
    recorder.assert_steady("at the start");

    mounted(&site, &join("good", "SELECT key FROM orders"), Kind::Join, "good", "Ready", "True").await;
    recorder.assert_steady("with another join");

    mounted(&site, &join("bad", "SELEC key FROM orders"), Kind::Join, "bad", "Stalled", "True").await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "LeftOut").await;
    recorder.assert_steady("with a join that is wrong");

    let good = join("good", "SELECT key, 1 AS one FROM orders");
    mounted(&site, &good, Kind::Join, "good", "Ready", "True").await;
    recorder.assert_steady("with a change beside a join that is wrong");

    site.ours(Kind::Join).delete("bad", &DeleteParams::default()).await.expect("it is there");
    until("the Pipeline to run with all", async || {
        site.mount("orders").await;
        let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
        condition_of(&pipeline, "Degraded").is_none().then_some(())
    })
    .await;
    recorder.assert_steady("without the join that was wrong");

    let wrong = orders(&ports).replace("FROM orders o LEFT", "FROM ordes o LEFT");
    mounted(&site, &wrong, Kind::Pipeline, "orders", "Stalled", "True").await;
    recorder.assert_steady("with an entry that is wrong");
    mounted(&site, &join("good", "SELECT key FROM orders"), Kind::Join, "good", "Ready", "True").await;
    recorder.assert_steady("with a change beside an entry that is wrong");
    mounted(&site, &orders(&ports), Kind::Pipeline, "orders", "Ready", "True").await;
    recorder.assert_steady("with the entry mended");

    // A server that goes away and comes back turns what is said of its sink once each.
    let away = server.close().await;
    worker.ingest().send(&[message("orders", "o1", json!({ "customer_id": "c1" }))]).await;
    site.wait_for(Kind::Sink, "hook", "Ready", "False", "DeliveryFails").await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "DeliveryFails").await;
    recorder.assert_steady("with a server that is away");
    mounted(&site, &join("good", "SELECT key, 2 AS two FROM orders"), Kind::Join, "good", "Ready", "True")
        .await;
    recorder.assert_steady("with a change while a server is away");

    // A worker that is silent for a while takes nothing back.
    worker.signal("STOP");
    let note = json!({ "metadata": { "annotations": { "note": "look again" } } });
    touch(&site, &note).await;
    until("the operator to hear nothing", async || {
        operator.log().contains("the worker does not answer").then_some(())
    })
    .await;
    worker.signal("CONT");
    touch(&site, &json!({ "metadata": { "annotations": { "note": null } } })).await;
    recorder.assert_steady("with a silent worker");

    operator.stop().await;
    let operator = site.operator();
    until("the operator to look", async || (reconciles(&operator).await > 0).then_some(())).await;
    recorder.assert_steady("with another operator");
    let _server = Server::start_at(away).await;
    site.wait_for(Kind::Sink, "hook", "Ready", "True", "Ready").await;
    site.wait_without(Kind::Pipeline, "orders", "Degraded").await;
    recorder.assert_steady("with the server back");
    worker.stop().await;
    operator.stop().await;
}

async fn touch(site: &ControllerSite, change: &Value) {
    let pipelines = site.ours(Kind::Pipeline);
    let parameters = kube::api::PatchParams::default();
    pipelines
        .patch("orders", &parameters, &kube::api::Patch::Merge(change))
        .await
        .expect("it can be changed");
}

/// Applies a manifest and plays kubelet until a condition of one of its documents is met at the new generation.
async fn mounted(
    site: &ControllerSite,
    manifest: &str,
    kind: Kind,
    name: &str,
    condition: &str,
    status: &str,
) {
    site.apply(manifest).await;
    until(&format!("{condition} of {name} to be {status}"), async || {
        site.mount("orders").await;
        let object = site.ours(kind).get(name).await.ok()?;
        let condition = condition_of(&object, condition)?;
        let is_new = condition["observedGeneration"].as_i64() == object.metadata.generation;
        (is_new && condition["status"] == status).then_some(())
    })
    .await;
}
