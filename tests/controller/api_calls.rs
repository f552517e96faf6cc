//! What fifty pipelines on one operator cost the API server, counted in calls: from nothing to settled, for a look that
//! finds nothing new, after a restart of the operator, and at rest. Workers and kubelets are played here, so each
//! pipeline has the same changes every time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use litejoin_crds::Document;
use litejoin_crds::hash::config_hash;
use litejoin_crds::kind::Kind;
use litejoin_crds::worker_status::{ConfigReport, WorkerStatus};
use litejoin_tests::kubernetes::proxy::ApiCall;
use litejoin_tests::wait::{TIMEOUT, pass, until};
use litejoin_tests::worker::Worker;
use serde_json::json;

use crate::site::{ControllerSite, condition_of, documents};

const PIPELINES: usize = 50;

/// Calls that are allowed for a pipeline of five documents from its making to its rest. Counted were 5 writes of objects,
/// 10 of statuses, 10 of Events, and 33 reads, which are three looks.
const START_MAX: CallCounts = CallCounts { objects: 6.0, statuses: 12.0, events: 12.0, reads: 55.0 };

/// Calls that are allowed for a pipeline that has not changed: a look has 11 reads.
const LOOK_MAX: CallCounts = CallCounts { objects: 0.0, statuses: 0.0, events: 0.0, reads: 13.0 };

/// Calls that an operator may make at its start besides those for pipelines: a list and a watch of each kind.
const OPERATOR_START_MAX: usize = 36;

/// Renewals of the Lease during which the rest is watched.
const RENEWALS: usize = 3;

/// Calls a pipeline, by what they are about.
#[derive(Debug, Clone, Copy, PartialEq)]
struct CallCounts {
    objects: f64,
    statuses: f64,
    events: f64,
    reads: f64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_few_for_many_pipelines() {
    let site = ControllerSite::new().await;
    let mut workers = Vec::new();
    for index in 0..PIPELINES {
        workers.push(PlayedWorker::start(&site, &name(index)).await);
    }
    site.proxy.reset(None);
    let operator = site.operator();
    let manifests: Vec<String> = workers.iter().map(PlayedWorker::manifest).collect();
    all(manifests.iter().map(|manifest| site.apply(manifest))).await;
    all((0..PIPELINES).map(|index| run_pod(&site, index))).await;
    settled(&site).await;
    let start = counted(&site, "from nothing to rest", START_MAX);
    rests(&site).await;

    let reconciled = reconciles(&operator).await;
    site.proxy.reset(None);
    let touch = Patch::Merge(json!({ "metadata": { "annotations": { "note": "nothing to us" } } }));
    let pipelines = site.ours(Kind::Pipeline);
    all((0..PIPELINES).map(|index| {
        let (pipelines, touch) = (pipelines.clone(), touch.clone());
        async move {
            let touched = pipelines.patch(&name(index), &PatchParams::default(), &touch).await;
            touched.expect("a Pipeline can be annotated");
        }
    }))
    .await;
    until("a look at each", async || {
        (reconciles(&operator).await >= reconciled + PIPELINES as u64).then_some(())
    })
    .await;
    counted(&site, "a look", LOOK_MAX);
    rests(&site).await;

    operator.stop().await;
    site.proxy.reset(None);
    let operator = site.operator();
    until("the new operator's look at each", async || {
        (reconciles(&operator).await >= PIPELINES as u64).then_some(())
    })
    .await;
    counted(&site, "a restart of the operator", LOOK_MAX);
    rests(&site).await;
    assert!(start.reads > 0.0);
    operator.stop().await;
}

/// Counts the calls since the proxy's last reset, and fails above the bound.
fn counted(site: &ControllerSite, what: &str, most: CallCounts) -> CallCounts {
    let mut calls = site.proxy.calls();
    calls.retain(|call| !call.is_of_lease());
    // Paths of single objects name the pipeline, those of its children too, and Events are of pipelines alone.
    let is_about = |call: &&ApiCall| call.path.contains("p-") || call.path.contains("events");
    let (of_pipelines, others): (Vec<&ApiCall>, Vec<&ApiCall>) = calls.iter().partition(is_about);
    let a_pipeline = |is: &dyn Fn(&ApiCall) -> bool| {
        of_pipelines.iter().filter(|call| is(call)).count() as f64 / PIPELINES as f64
    };
    let is_read = |call: &ApiCall| call.method == "GET";
    let is_event = |call: &ApiCall| call.path.contains("/events");
    let counts = CallCounts {
        objects: a_pipeline(&|call| !is_read(call) && !is_event(call) && !call.path.ends_with("/status")),
        statuses: a_pipeline(&|call| !is_read(call) && call.path.ends_with("/status")),
        events: a_pipeline(&|call| !is_read(call) && is_event(call)),
        reads: a_pipeline(&is_read),
    };
    eprintln!("{what}: {counts:?} a pipeline, {} other calls", others.len());
    let fits = counts.objects <= most.objects
        && counts.statuses <= most.statuses
        && counts.events <= most.events
        && counts.reads <= most.reads;
    assert!(fits, "{what}: {counts:?} a pipeline, allowed {most:?}:\n{}", table(&of_pipelines));
    assert!(others.len() <= OPERATOR_START_MAX, "{what}: {} other calls:\n{}", others.len(), table(&others));
    counts
}

/// The calls by method and path, in which the numbers of pipelines are left out.
fn table(calls: &[&ApiCall]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for ApiCall { method, path, .. } in calls {
        let path = path.replace(|letter: char| letter.is_ascii_digit(), "");
        *counts.entry(format!("{method} {path}")).or_default() += 1;
    }
    counts.iter().fold(String::new(), |mut text, (call, count)| {
        let _ = writeln!(text, "{count:6} {call}");
        text
    })
}

/// Waits until no call was made while the Lease was renewed a few times.
async fn rests(site: &ControllerSite) {
    until("rest", async || {
        site.proxy.reset(None);
        let renewals = async || {
            let calls = site.proxy.calls();
            (calls.iter().filter(|call| call.is_of_lease()).count() >= RENEWALS).then_some(())
        };
        until("renewals of the Lease", renewals).await;
        site.proxy.calls().iter().all(ApiCall::is_of_lease).then_some(())
    })
    .await;
}

/// Runs all of them side by side.
async fn all(work: impl IntoIterator<Item = impl Future<Output = ()>>) {
    let work: FuturesUnordered<_> = work.into_iter().collect();
    work.collect::<()>().await;
}

fn name(index: usize) -> String {
    format!("p-{index:02}")
}

/// Plays kubelet for a pod.
async fn run_pod(site: &ControllerSite, index: usize) {
    let pod = format!("{}-0", name(index));
    let pods: Api<Pod> = site.api();
    until("the pod", async || pods.get_opt(&pod).await.ok()?).await;
    site.bind_claim(&name(index)).await;
    site.set_pod(&pod, "True").await;
}

/// Waits until every document is Ready.
async fn settled(site: &ControllerSite) {
    for (kind, count) in [(Kind::Pipeline, 1), (Kind::Source, 1), (Kind::Join, 2), (Kind::Sink, 1)] {
        until(&format!("each {} to be ready", kind.as_str()), async || {
            let documents = site.ours(kind).list(&ListParams::default()).await.ok()?.items;
            let is_ready =
                |document| condition_of(document, "Ready").is_some_and(|ready| ready["status"] == "True");
            let ready: BTreeSet<String> =
                documents.iter().filter(|document| is_ready(*document)).map(ResourceExt::name_any).collect();
            (ready.len() == count * PIPELINES).then_some(())
        })
        .await;
    }
}

async fn reconciles(operator: &Worker) -> u64 {
    crate::settled::reconciles(operator).await
}

/// A worker that says at once that it runs what is in the ConfigMap, and has no news ever after.
struct PlayedWorker {
    pipeline: String,
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

/// What a played worker needs to answer.
#[derive(Clone)]
struct Played {
    configs: Api<ConfigMap>,
    pipeline: String,
}

impl PlayedWorker {
    async fn start(site: &ControllerSite, pipeline: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Played { configs: site.api(), pipeline: pipeline.to_owned() };
        let router = axum::Router::new().route("/status", axum::routing::get(status)).with_state(state);
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serving never ends by itself");
        });
        Self { pipeline: pipeline.to_owned(), port, task }
    }

    /// A Pipeline with a source, two joins and a sink of their own.
    fn manifest(&self) -> String {
        let Self { pipeline, port, .. } = self;
        let child = |kind: &str, name: &str, spec: &str| {
            format!(
                "---\napiVersion: litejoin.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {pipeline}-{name}}}\n\
                 spec: {{pipelineRef: {{name: {pipeline}}}, {spec}}}\n"
            )
        };
        let sink = format!("{pipeline}-live");
        format!(
            "apiVersion: litejoin.io/v1alpha1\nkind: Pipeline\nmetadata: {{name: {pipeline}}}\n\
             spec: {{admin: {{addr: \":{port}\"}}}}\n{}{}{}{}",
            child("Source", "ingest", "http: {addr: \":8080\", topics: [orders]}"),
            child("Join", "keys", &format!("query: SELECT key AS id FROM orders, sinks: [{sink}]")),
            child(
                "Join",
                "rows",
                &format!("query: \"SELECT key AS id, payload FROM orders\", sinks: [{sink}]")
            ),
            child("Sink", "live", "sse: {addr: \":9100\"}"),
        )
    }
}

impl Drop for PlayedWorker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn status(State(played): State<Played>, headers: HeaderMap) -> Response {
    if headers.contains_key(header::IF_NONE_MATCH) {
        // There is no news: the answer comes when the operator's question ends.
        pass(TIMEOUT).await;
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let Ok(config) = played.configs.get(&played.pipeline).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let text = &config.data.expect("it has data")["pipeline.yaml"];
    let documents: Vec<Document> = documents(text).into_iter().map(|value| Document { value }).collect();
    let config = ConfigReport { hash: config_hash(&documents), ..ConfigReport::default() };
    let status = WorkerStatus { config, ..WorkerStatus::default() };
    ([(header::ETAG, "\"a\"")], axum::Json(status)).into_response()
}
