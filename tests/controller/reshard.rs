//! A change of `shardCount` with consent, step by step: a revert, a failure, a death of the operator and a hand that
//! deletes things at every step. The controllers of StatefulSets and Jobs are those of Kubernetes; the test plays
//! kubelet, the worker, and the Job's program.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use litejoin_crds::Document;
use litejoin_crds::hash::config_hash;
use litejoin_crds::kind::Kind;
use litejoin_crds::worker_status::{ConfigReport, LastReload, ReshardReport, WorkerStatus};
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use serde_json::{Value, json};

use crate::settled::reconciles;
use crate::site::{ControllerSite, condition_of, documents, names};

mod failures;
mod faults;
mod online;
mod programs;
mod reverts;
mod steps;

/// A pipeline of 2 shards with its operator, its worker and its Job.
struct Shards {
    site: ControllerSite,
    operator: Worker,
    programs: PlayedPrograms,
}

/// What answers at the admin address of the pods.
#[derive(Clone)]
struct PlayedPrograms {
    configs: Api<ConfigMap>,
    /// What the Job tells; the worker answers where there is none.
    job: Arc<Mutex<Option<ReshardReport>>>,
    /// What the worker says against the config, if it does not run it.
    refusal: Arc<Mutex<Option<String>>>,
    /// What the worker tells that moves the data while it serves; nothing where it has not read its config yet.
    worker: Arc<Mutex<Option<ServingWorker>>>,
}

/// A worker by its data.
#[derive(Clone)]
struct ServingWorker {
    /// Shards that the data has.
    shard_count: u32,
    reshard: Option<ReshardReport>,
}

impl Shards {
    /// Starts a pipeline with further fields of its spec, and waits until it is ready.
    async fn start(more: &Value) -> Self {
        let shards = Self::start_without_pod(more).await;
        shards.run_worker().await;
        shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        assert_eq!(shards.pipeline().await.data["status"]["layout"]["shardCount"], 2);
        shards
    }

    async fn start_without_pod(more: &Value) -> Self {
        let site = ControllerSite::new().await;
        let operator = site.operator();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let programs = PlayedPrograms::new(site.api());
        let router = axum::Router::new().route("/status", axum::routing::get(answer));
        let router = router.with_state(programs.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.expect("it never ends by itself") });
        let mut pipeline = json!({
            "apiVersion": litejoin_crds::API_VERSION, "kind": "Pipeline", "metadata": { "name": "orders" },
            "spec": {
                "storage": { "shardCount": 2 },
                "admin": { "addr": format!(":{port}") },
                "sources": [{ "name": "ingest", "http": { "addr": ":8080", "topics": ["orders"] } }],
            },
        });
        merge(&mut pipeline["spec"], more);
        site.apply(&pipeline.to_string()).await;
        Self { site, operator, programs }
    }

    async fn pipeline(&self) -> DynamicObject {
        self.site.ours(Kind::Pipeline).get("orders").await.expect("it is there")
    }

    /// Changes the spec as `kubectl patch` does; returns the API server's message if it refuses.
    async fn change(&self, spec: Value) -> Result<(), String> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let patched = self.site.ours(Kind::Pipeline).patch("orders", &PatchParams::default(), &patch).await;
        patched.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn consent(&self, from: u32, to: u32) {
        let reshard = json!({ "fromShardCount": from, "toShardCount": to });
        let storage = json!({ "storage": { "shardCount": to, "reshard": reshard } });
        self.change(storage).await.expect("consent is accepted");
    }

    /// Does what `git revert` does.
    async fn revert(&self) {
        let storage = json!({ "storage": { "shardCount": 2, "reshard": null } });
        self.change(storage).await.expect("the way back is open");
    }

    /// Waits until the change has this phase; returns its status.
    async fn phase(&self, phase: &str) -> Value {
        self.status_with(&format!("the phase {phase}"), |status| status["phase"] == phase).await
    }

    async fn status_with(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let last = Mutex::new(Value::Null);
        until(&format!("the status of the change with {what}"), async || {
            let reshard = self.pipeline().await.data["status"]["reshard"].clone();
            let mut last = last.lock().expect("it is ours");
            if *last != reshard {
                eprintln!("the change is at {reshard}");
                last.clone_from(&reshard);
            }
            is_it(&reshard).then_some(reshard)
        })
        .await
    }

    /// Plays kubelet for the worker's pod.
    async fn run_worker(&self) {
        let pods: Api<Pod> = self.site.api();
        until("the worker's pod", async || {
            pods.get_opt("orders-0").await.ok()?.filter(|pod| pod.metadata.deletion_timestamp.is_none())
        })
        .await;
        if self.pipeline().await.data["spec"]["storage"]["ephemeral"] != true {
            self.site.bind_claim("orders").await;
        }
        self.programs.tell(None);
        self.site.set_pod("orders-0", "True").await;
    }

    /// Waits for the pod of the Job.
    async fn job_pod(&self) -> Pod {
        let pods: Api<Pod> = self.site.api();
        let of_job = ListParams::default().labels("batch.kubernetes.io/job-name=orders-reshard");
        until("the pod of the Job", async || {
            let pods = pods.list(&of_job).await.ok()?.items;
            let is_new = |pod: &Pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
                pod.metadata.deletion_timestamp.is_none() && phase.as_deref() != Some("Failed")
            };
            pods.into_iter().find(is_new)
        })
        .await
    }

    /// Plays kubelet for the pod of the Job, whose program tells this.
    async fn run_job(&self, phase: &str, rows: u64) -> Pod {
        let pod = self.job_pod().await;
        self.programs.tell(Some(ReshardReport {
            phase: phase.to_owned(),
            from_shard_count: 2,
            to_shard_count: 4,
            rows,
            rows_total: 200,
            remaining_seconds: Some(7),
            verified_at: None,
            message: None,
        }));
        self.site.set_pod(&pod.name_any(), "True").await;
        pod
    }

    /// Ends the program of the Job's pod.
    async fn end_job(&self, code: i32, message: &str) {
        self.end_pod(&self.job_pod().await.name_any(), code, message).await;
    }

    /// Ends the program of this pod.
    async fn end_pod(&self, name: &str, code: i32, message: &str) {
        let terminated = json!({
            "exitCode": code, "message": message, "reason": if code == 0 { "Completed" } else { "Error" },
            "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z",
        });
        let container = json!({
            "name": "reshard", "image": "litejoin", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": terminated },
        });
        let phase = if code == 0 { "Succeeded" } else { "Failed" };
        let status = json!({ "status": { "phase": phase, "containerStatuses": [container] } });
        let pods: Api<Pod> = self.site.api();
        let ended = pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await;
        ended.expect("a pod has a status");
    }

    async fn replicas(&self) -> i32 {
        let sets: Api<StatefulSet> = self.site.api();
        let set = sets.get("orders").await.expect("there is a StatefulSet");
        set.spec.and_then(|spec| spec.replicas).expect("it has a number")
    }

    /// The storage in the config that the worker gets.
    async fn config(&self) -> Value {
        let config: ConfigMap = self.site.api().get("orders").await.expect("there is a config");
        documents(&config.data.expect("it has data")["pipeline.yaml"])[0]["spec"]["storage"].clone()
    }

    /// Asserts that nothing but the old layout counts, and waits for the worker on it.
    async fn goes_on_as_before(&self) {
        until("the worker to be wanted", async || (self.replicas().await == 1).then_some(())).await;
        let config = self.config().await;
        assert_eq!((&config["shardCount"], &config["reshard"]), (&json!(2), &Value::Null));
        self.run_worker().await;
    }

    async fn no_job(&self) {
        let jobs: Api<Job> = self.site.api();
        until("the Job to go", async || jobs.get_opt("orders-reshard").await.ok()?.is_none().then_some(()))
            .await;
    }

    async fn condition(&self, kind: &str) -> Value {
        condition_of(&self.pipeline().await, kind).unwrap_or_default()
    }

    /// Kills the operator as a node that fails does, and starts another.
    async fn replace_operator(&mut self) {
        let next = self.site.operator();
        std::mem::replace(&mut self.operator, next).kill().await;
    }
}

impl PlayedPrograms {
    fn new(configs: Api<ConfigMap>) -> Self {
        let worker = ServingWorker { shard_count: 2, reshard: None };
        Self {
            configs,
            job: Arc::default(),
            refusal: Arc::default(),
            worker: Arc::new(Mutex::new(Some(worker))),
        }
    }

    /// Lets the worker take up its config, and tell this of its data.
    fn serve(&self, shard_count: u32, reshard: Option<ReshardReport>) {
        *self.worker.lock().expect("it is ours") = Some(ServingWorker { shard_count, reshard });
    }

    /// Lets the worker run another config than the one that it is to have.
    fn hold_back(&self) {
        *self.worker.lock().expect("it is ours") = None;
    }

    fn tell(&self, report: Option<ReshardReport>) {
        *self.job.lock().expect("it is ours") = report;
    }
}

async fn answer(State(programs): State<PlayedPrograms>) -> Response {
    let Ok(config) = programs.configs.get("orders").await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let text = &config.data.expect("it has data")["pipeline.yaml"];
    let documents: Vec<Document> = documents(text).into_iter().map(|value| Document { value }).collect();
    let of_job = programs.job.lock().expect("it is ours").clone();
    let refusal = programs.refusal.lock().expect("it is ours").clone();
    let worker = programs.worker.lock().expect("it is ours").clone();
    let hash = config_hash(&documents);
    let config = match (&of_job, &worker, refusal) {
        (Some(_), _, _) | (None, None, None) => ConfigReport::default(),
        (None, _, Some(error)) => ConfigReport {
            hash: "of-before".to_owned(),
            last_reload: Some(LastReload { hash: Some(hash), error: Some(error), ..LastReload::default() }),
            ..ConfigReport::default()
        },
        (None, Some(_), None) => ConfigReport { hash, ..ConfigReport::default() },
    };
    let shard_count = worker.as_ref().map(|worker| worker.shard_count);
    let reshard = of_job.or(worker.and_then(|worker| worker.reshard));
    axum::Json(WorkerStatus { config, shard_count, reshard, ..WorkerStatus::default() }).into_response()
}

/// Lays the fields of one object over another's.
fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (Value::Object(into), Value::Object(over)) => {
            for (field, value) in over {
                merge(into.entry(field).or_insert(Value::Null), value);
            }
        }
        (into, over) => *into = over.clone(),
    }
}

/// Waits for the Events about the change.
async fn told_in_events(shards: &Shards, reasons: &[&str], kind: &str) {
    let events: Api<Event> = shards.site.api();
    for reason in reasons {
        until(&format!("an Event {reason}"), async || {
            let all = events.list(&ListParams::default()).await.ok()?.items;
            let is_it = |event: &Event| {
                event.reason.as_deref() == Some(*reason) && event.type_.as_deref() == Some(kind)
            };
            all.iter().any(is_it).then_some(())
        })
        .await;
    }
}

/// Lets a pod that is deleted stay, as one does whose program takes its time, or lets it go. Kubelet's part is to
/// remove a pod; pods without a node go at once.
async fn hold(pods: &Api<Pod>, name: &str, held: bool) {
    const FINALIZER: &str = "litejoin.io/test";
    until("the pod to be held", async || {
        let pod = pods.get_opt(name).await.ok()?;
        let Some(pod) = pod else { return (!held).then_some(()) };
        let mut finalizers = pod.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        finalizers.extend(held.then(|| FINALIZER.to_owned()));
        let patch =
            json!({ "metadata": { "resourceVersion": pod.resource_version(), "finalizers": finalizers } });
        pods.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.ok().map(|_| ())
    })
    .await;
}

/// Brings a change to the switch.
async fn switch(shards: &Shards) {
    shards.consent(2, 4).await;
    shards.phase("Copying").await;
    shards.run_job("Copying", 10).await;
    shards.end_job(0, "").await;
    shards.phase("Switching").await;
}
