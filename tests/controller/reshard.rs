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
use crate::site::{ControllerSite, condition_of, documents};

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
        let programs = PlayedPrograms { configs: site.api(), job: Arc::default(), refusal: Arc::default() };
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
        }));
        self.site.set_pod(&pod.name_any(), "True").await;
        pod
    }

    /// Ends the program of the Job's pod.
    async fn end_job(&self, code: i32, message: &str) {
        let name = self.job_pod().await.name_any();
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
        let ended = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await;
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
    let reshard = programs.job.lock().expect("it is ours").clone();
    let refusal = programs.refusal.lock().expect("it is ours").clone();
    let hash = config_hash(&documents);
    let config = match (&reshard, refusal) {
        (Some(_), _) => ConfigReport::default(),
        (None, Some(error)) => ConfigReport {
            hash: "of-before".to_owned(),
            last_reload: Some(LastReload { hash: Some(hash), error: Some(error), ..LastReload::default() }),
            ..ConfigReport::default()
        },
        (None, None) => ConfigReport { hash, ..ConfigReport::default() },
    };
    axum::Json(WorkerStatus { config, reshard, ..WorkerStatus::default() }).into_response()
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

#[tokio::test]
async fn data_is_moved_step_by_step() {
    let shards = Shards::start(&json!({})).await;
    let site = &shards.site;
    shards.consent(2, 4).await;
    shards.phase("Copying").await;
    let pods: Api<Pod> = site.api();
    assert_eq!((shards.replicas().await, pods.get_opt("orders-0").await.unwrap().is_none()), (0, true));
    let config = shards.config().await;
    assert_eq!(
        (&config["shardCount"], &config["reshard"]),
        (&json!(2), &Value::Null),
        "the old number counts"
    );
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "Resharding").await;
    site.wait_for(Kind::Pipeline, "orders", "Reconciling", "True", "Resharding").await;

    let pod = shards.run_job("Copying", 50).await;
    let services: Api<Service> = site.api();
    let selector = services.get("orders").await.expect("it is there").spec.expect("it has one").selector;
    for (label, value) in selector.expect("it selects") {
        assert_eq!(pod.labels().get(&label), Some(&value), "clients are led to the Job");
    }
    let status = shards.status_with("numbers", |status| status["progress"] == 25).await;
    assert_eq!(
        (&status["rows"], &status["rowsTotal"], &status["remainingSeconds"]),
        (&json!(50), &json!(200), &json!(7))
    );
    assert_eq!(
        status["nextStep"],
        "the Job orders-reshard copies the data to 4 shards; to cancel, put shardCount: 2 back"
    );
    let refused = shards.change(
        json!({ "storage": { "shardCount": 8, "reshard": { "fromShardCount": 2, "toShardCount": 8 } } }),
    );
    let refused = refused.await.expect_err("no other number while a change is under way");
    assert!(refused.contains("while a re-shard runs, wait for its end"), "{refused}");
    let removed = shards.change(json!({ "storage": null })).await.expect_err("that is another number, too");
    assert!(removed.contains("storage.shardCount cannot simply be edited"), "{removed}");

    shards.run_job("Verifying", 100).await;
    shards.phase("Verifying").await;
    shards.end_job(0, "").await;
    let status = shards.phase("Switching").await;
    assert!(status["verifiedAt"].is_string() && status["progress"].is_null(), "{status}");
    until("the worker to be wanted", async || (shards.replicas().await == 1).then_some(())).await;
    let config = shards.config().await;
    assert_eq!((&config["shardCount"], &config["reshard"]["fromShardCount"]), (&json!(4), &json!(2)));
    shards.no_job().await;
    shards.run_worker().await;
    shards.phase("Done").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Pipeline, "orders", "Resharding", "False", "Done").await;
    let status = shards.pipeline().await.data["status"].clone();
    assert_eq!((&status["layout"]["shardCount"], &status["reshard"]["job"]), (&json!(4), &Value::Null));
    assert_eq!(status["history"][0]["message"], "from 2 to 4 shards");

    // What is left of the consent does nothing, and costs no look at Jobs.
    site.proxy.reset(None);
    let (reconciled, before) =
        (reconciles(&shards.operator).await, pods.get("orders-0").await.unwrap().uid());
    shards.change(json!({ "storage": { "reshard": null } })).await.expect("consent may go");
    until("a look at it", async || (reconciles(&shards.operator).await > reconciled + 1).then_some(())).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    assert_eq!(pods.get("orders-0").await.unwrap().uid(), before, "it makes no other pod");
    let calls = site.proxy.calls();
    assert!(
        !calls.iter().any(|call| call.path.contains("/jobs") || call.path.contains("job-name")),
        "{calls:?}"
    );
    told_in_events(&shards, &["Pausing", "Copying", "Verifying", "Switching", "Done"], "Normal").await;
    shards.operator.stop().await;
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

#[tokio::test]
async fn a_revert_before_the_switch_cancels() {
    let shards = Shards::start(&json!({})).await;
    // The worker's pod takes its time.
    let pods: Api<Pod> = shards.site.api();
    hold(&pods, "orders-0", true).await;
    shards.consent(2, 4).await;
    shards.phase("Pausing").await;
    shards.revert().await;
    let status = shards.phase("Cancelling").await;
    assert_eq!(
        status["nextStep"],
        "waits for the Job orders-reshard and its pod to stop; then 2 shards go on"
    );
    hold(&pods, "orders-0", false).await;
    shards.phase("Cancelled").await;
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;

    for phase in ["Copying", "Verifying"] {
        shards.consent(2, 4).await;
        shards.phase("Copying").await;
        let pod = shards.run_job(phase, 10).await;
        shards.phase(phase).await;
        hold(&pods, &pod.name_any(), true).await;
        shards.revert().await;
        shards.phase("Cancelling").await;
        assert_eq!(shards.replicas().await, 0, "the Job may still write");
        hold(&pods, &pod.name_any(), false).await;
        shards.phase("Cancelled").await;
        shards.goes_on_as_before().await;
        shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        shards.no_job().await;
    }
    told_in_events(&shards, &["Cancelling", "Cancelled"], "Normal").await;
    shards.operator.stop().await;
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

#[tokio::test]
async fn a_revert_after_the_switch_takes_consent_of_its_own() {
    let shards = Shards::start(&json!({})).await;
    switch(&shards).await;
    shards.revert().await;
    shards
        .status_with("the word that it came too late", |status| {
            status["nextStep"]
                .as_str()
                .is_some_and(|step| step.contains("shardCount: 2 was put back too late"))
        })
        .await;
    assert_eq!(shards.config().await["shardCount"], 4);
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "ReshardUnconsented").await;
    assert_eq!(
        shards.condition("Ready").await["message"],
        "the data has 4 shards, which go on, and spec.storage.shardCount wants 2; write shardCount: 4, or consent to the \
         change: reshard: {fromShardCount: 4, toShardCount: 2}"
    );
    assert_eq!(shards.config().await["shardCount"], 4);
    shards.consent(4, 2).await;
    shards.phase("Copying").await;
    let pod = shards.job_pod().await;
    let arguments = pod.spec.expect("it has a spec").containers.remove(0).args.expect("it has some");
    assert!(
        arguments.join(" ").ends_with("--data-dir /var/lib/litejoin/data --to 2 --no-switch --serve"),
        "{arguments:?}"
    );
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_worker_that_cannot_start_with_other_shards_can_be_taken_back() {
    let shards = Shards::start(&json!({})).await;
    switch(&shards).await;
    let pods: Api<Pod> = shards.site.api();
    until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await;
    let ended = json!({
        "exitCode": 1, "message": "error: the disk is short",
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z",
    });
    let container = json!({
        "name": "worker", "image": "litejoin", "imageID": "", "ready": false, "restartCount": 1,
        "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } },
        "lastState": { "terminated": ended },
    });
    let status = json!({ "status": { "phase": "Running", "containerStatuses": [container] } });
    pods.patch_status("orders-0", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .expect("it has a status");
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "CrashLoopBackOff").await;
    assert_eq!(
        shards.pipeline().await.data["status"]["reshard"]["phase"],
        "Switching",
        "nobody wants it back"
    );
    shards.revert().await;
    shards.phase("Cancelled").await;
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_pod_that_began_with_the_config_of_before_is_replaced() {
    let shards = Shards::start(&json!({})).await;
    let refusal =
        "pipeline.yaml:9: spec.storage.shardCount: got 4, and the worker runs with 2; restart to apply";
    switch(&shards).await;
    *shards.programs.refusal.lock().unwrap() = Some(refusal.to_owned());
    let pods: Api<Pod> = shards.site.api();
    let first = until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await.uid();
    shards.run_worker().await;
    let is_another = async || pods.get_opt("orders-0").await.ok()?.filter(|pod| pod.uid() != first);
    until("another pod", is_another).await;
    *shards.programs.refusal.lock().unwrap() = None;
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn after_a_failure_the_old_layout_goes_on() {
    let shards = Shards::start(&json!({})).await;
    shards.consent(2, 4).await;
    shards.phase("Copying").await;
    shards.run_job("Copying", 10).await;
    shards
        .end_job(1, "error: data: the copy needs 12 GiB, and the disk has 3 GiB free; raise storage.size\n")
        .await;
    let status = shards.phase("Failed").await;
    assert_eq!(
        status["message"],
        "data: the copy needs 12 GiB, and the disk has 3 GiB free; raise storage.size"
    );
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "True", "Ready").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "ReshardFailed").await;
    assert_eq!(
        shards.condition("Ready").await["message"],
        "2 shards go on, since the data could not be moved to 4: data: the copy needs 12 GiB, and the disk has 3 GiB \
         free; raise storage.size; put right what the message says, in spec.storage, spec.resources or \
         spec.podTemplate, or write another spec.restartNonce, and it is tried again; or put shardCount: 2 back"
    );
    told_in_events(&shards, &["Failed", "ReshardFailed"], "Warning").await;
    let jobs: Api<Job> = shards.site.api();
    let first = jobs.get("orders-reshard").await.expect("its log can be read").uid();

    // Another edit is no new attempt.
    let join = json!({ "name": "all", "query": "SELECT key AS id FROM orders" });
    shards.change(json!({ "joins": [join] })).await.expect("it is valid");
    until("the edit to be in force", async || {
        let pipeline = shards.pipeline().await;
        (pipeline.data["status"]["observedGeneration"].as_i64() == pipeline.metadata.generation).then_some(())
    })
    .await;
    assert_eq!(shards.pipeline().await.data["status"]["reshard"]["phase"], "Failed");
    shards.change(json!({ "restartNonce": "again" })).await.expect("it is valid");
    shards.phase("Copying").await;
    let second = until("another Job", async || {
        jobs.get_opt("orders-reshard")
            .await
            .ok()?
            .and_then(|job| job.uid())
            .filter(|uid| Some(uid) != first.as_ref())
    })
    .await;
    assert_ne!(Some(second), first);
    shards.run_job("Copying", 10).await;
    shards.end_job(1, "error: no").await;
    shards.phase("Failed").await;

    // So is the way back.
    shards.revert().await;
    shards.phase("Cancelled").await;
    shards.no_job().await;
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_bare_edit_is_refused_once_there_is_data() {
    let shards = Shards::start(&json!({})).await;
    for storage in [
        json!({ "shardCount": 4 }),
        json!({ "shardCount": 4, "reshard": { "fromShardCount": 3, "toShardCount": 4 } }),
    ] {
        let refused =
            shards.change(json!({ "storage": storage })).await.expect_err("there is no consent to it");
        assert!(
            refused.contains(
                "storage.shardCount cannot simply be edited: the data must be moved. Add storage.reshard: \
                 {fromShardCount: <status.layout.shardCount>, toShardCount: <the new number>} in the same change, or put \
                 the old number back; while a re-shard runs, wait for its end"
            ),
            "{refused}"
        );
    }
    shards.operator.stop().await;
}

#[tokio::test]
async fn an_operator_that_dies_at_any_step_is_followed_by_one_that_goes_on() {
    let mut shards = Shards::start(&json!({})).await;
    let pods: Api<Pod> = shards.site.api();
    hold(&pods, "orders-0", true).await;
    shards.consent(2, 4).await;
    shards.phase("Pausing").await;
    shards.replace_operator().await;
    hold(&pods, "orders-0", false).await;
    shards.phase("Copying").await;
    shards.replace_operator().await;
    // A Job and a pod that somebody deletes are made again.
    let jobs: Api<Job> = shards.site.api();
    let first = until("the Job", async || jobs.get_opt("orders-reshard").await.ok()?).await.uid();
    shards.run_job("Copying", 10).await;
    jobs.delete("orders-reshard", &DeleteParams::background()).await.expect("it is there");
    until("another Job", async || {
        jobs.get_opt("orders-reshard").await.ok()?.filter(|job| job.uid() != first)
    })
    .await;
    let pod = shards.run_job("Verifying", 10).await;
    shards.phase("Verifying").await;
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.expect("it is there");
    until("another pod", async || Some(shards.job_pod().await).filter(|other| other.uid() != pod.uid()))
        .await;
    shards.run_job("Verifying", 20).await;
    shards.replace_operator().await;
    shards.end_job(0, "").await;
    shards.phase("Switching").await;
    shards.replace_operator().await;
    // Somebody scales the StatefulSet, and the pod goes: both come back.
    until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await;
    pods.delete("orders-0", &DeleteParams::default()).await.expect("it is there");
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.replace_operator().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.no_job().await;
    assert_eq!(shards.config().await["shardCount"], 4);
    shards.operator.stop().await;
}

#[tokio::test]
async fn what_rests_or_is_paused_is_moved_later() {
    let shards = Shards::start(&json!({})).await;
    let site = &shards.site;
    shards.change(json!({ "suspend": true })).await.expect("it is valid");
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Suspended").await;
    shards.consent(2, 4).await;
    let status = shards.phase("Pending").await;
    assert_eq!(
        status["nextStep"],
        "spec.suspend or spec.replicas: 0 holds it back; take that back, or put shardCount: 2 back"
    );
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Suspended").await;
    shards.change(json!({ "suspend": false })).await.expect("it is valid");
    shards.phase("Copying").await;
    shards.run_job("Copying", 10).await;

    // Rest takes the pod of the Job, too.
    shards.change(json!({ "suspend": true })).await.expect("it is valid");
    let pods: Api<Pod> = site.api();
    let of_job = ListParams::default().labels("batch.kubernetes.io/job-name=orders-reshard");
    until("the pod of the Job to go", async || pods.list(&of_job).await.ok()?.items.is_empty().then_some(()))
        .await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Suspended").await;
    shards.change(json!({ "suspend": false })).await.expect("it is valid");
    shards.run_job("Copying", 10).await;

    // While the operator is to change nothing, a Job that ends changes nothing either.
    shards.change(json!({ "reconciliationPaused": true })).await.expect("it is valid");
    shards
        .status_with("the word that it is held back", |status| {
            status["nextStep"] == "spec.reconciliationPaused holds it back; write false to let it go on"
        })
        .await;
    shards.end_job(0, "").await;
    let jobs: Api<Job> = site.api();
    until("the Job to be complete", async || {
        let status = jobs.get("orders-reshard").await.ok()?.status?;
        status.conditions?.iter().any(|c| c.type_ == "Complete" && c.status == "True").then_some(())
    })
    .await;
    let reconciled = reconciles(&shards.operator).await;
    until("looks at it", async || (reconciles(&shards.operator).await > reconciled + 1).then_some(())).await;
    assert_eq!(shards.pipeline().await.data["status"]["reshard"]["phase"], "Copying");
    shards.change(json!({ "reconciliationPaused": false })).await.expect("it is valid");
    shards.phase("Switching").await;
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn without_a_volume_the_worker_moves_the_data_at_its_start() {
    let replication = json!({ "enabled": true, "replicaUrl": "s3://bucket/prefix" });
    let shards =
        Shards::start(&json!({ "storage": { "ephemeral": true }, "replication": replication })).await;
    let pods: Api<Pod> = shards.site.api();
    let before = pods.get("orders-0").await.expect("it is there").uid();
    shards.consent(2, 4).await;
    shards.phase("Switching").await;
    until("another pod", async || pods.get_opt("orders-0").await.ok()?.filter(|pod| pod.uid() != before))
        .await;
    let config = shards.config().await;
    assert_eq!((&config["shardCount"], &config["reshard"]["fromShardCount"]), (&json!(4), &json!(2)));
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let jobs: Api<Job> = shards.site.api();
    assert!(jobs.get_opt("orders-reshard").await.unwrap().is_none());
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_pipeline_that_is_made_anew_over_other_shards_says_what_to_do() {
    let shards = Shards::start_without_pod(&json!({ "storage": { "shardCount": 4 } })).await;
    let pods: Api<Pod> = shards.site.api();
    until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await;
    shards.site.bind_claim("orders").await;
    let said = "error: data: holds 2 shards, and the pipeline wants storage.shardCount 4; set it back to 2";
    let ended = json!({
        "exitCode": 1, "message": said,
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z",
    });
    let container = json!({
        "name": "worker", "image": "litejoin", "imageID": "", "ready": false, "restartCount": 1,
        "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } },
        "lastState": { "terminated": ended },
    });
    let status = json!({ "status": { "phase": "Running", "containerStatuses": [container] } });
    pods.patch_status("orders-0", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .expect("it has a status");
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "CrashLoopBackOff").await;
    let message = shards.condition("Ready").await["message"].to_string();
    assert!(message.contains(said), "{message}");
    // The remedy is open, and so is consent to move the data.
    shards.consent(2, 4).await;
    assert_eq!(
        until("the consent in the config", async || {
            Some(shards.config().await["reshard"]["fromShardCount"].clone()).filter(|from| !from.is_null())
        })
        .await,
        2
    );
    shards
        .change(json!({ "storage": { "shardCount": 2, "reshard": null } }))
        .await
        .expect("nothing is known yet");
    until("the number of before", async || (shards.config().await["shardCount"] == 2).then_some(())).await;
    shards.operator.stop().await;
}
