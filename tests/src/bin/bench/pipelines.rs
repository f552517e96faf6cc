//! Many Pipelines on a real API server: the time until all are settled, the number of calls, and the memory.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Client, ResourceExt};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::api_server::ApiServer;
use litejoin_tests::kubernetes::operator;
use litejoin_tests::kubernetes::proxy::Proxy;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

use crate::memory::MemoryWatch;
use crate::process;

/// Concurrent requests that create documents.
const CLIENTS: usize = 16;
/// Pause between two polls of all statuses, which cost the API server time too.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Parser)]
pub(crate) struct PipelinesOptions {
    /// Pipelines, each with a source, two joins and a sink of their own
    #[arg(long, default_value_t = 500)]
    pipelines: usize,
}

pub(crate) fn run(options: &PipelinesOptions) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(options))
}

async fn measure(options: &PipelinesOptions) -> Result<()> {
    let server = ApiServer::start().await;
    let client = server.client().await;
    let namespace = server.namespace(&client).await;
    let proxy = Proxy::start(server.client().await).await;
    let site = WorkerSite::new();
    let operator = operator::start(&site, &server.kubeconfig("operator", &proxy.url()), &namespace, &[]);
    until("the operator to lead", async || operator.log().contains("\"leads\"").then_some(())).await;
    let memory = MemoryWatch::start(operator.pid());

    let started = Instant::now();
    let documents: Vec<(Kind, Value)> = (0..options.pipelines).flat_map(documents).collect();
    let made = documents.len();
    stream::iter(documents)
        .map(|(kind, document)| {
            let api = api(&client, &namespace, kind);
            async move {
                let object: DynamicObject = serde_json::from_value(document)?;
                api.create(&PostParams::default(), &object).await.context("could not make a document")?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(CLIENTS)
        .try_collect::<()>()
        .await?;
    let applied = started.elapsed();
    settle(&client, &namespace).await?;
    report(&proxy, made, started, "all made at once")?;
    writeln!(std::io::stdout(), "documents were made within {:.1} s", applied.as_secs_f64())?;

    // A new operator must find nothing to write.
    let cpu = process::cpu_time(operator.pid())?;
    let peak = memory.peak()?;
    writeln!(
        std::io::stdout(),
        "memory at peak {} MB (anonymous {} MB), CPU {:.1} s",
        peak.peak_bytes >> 20,
        peak.anonymous_bytes >> 20,
        cpu.as_secs_f64()
    )?;
    operator.stop().await;
    proxy.reset(None);
    let started = Instant::now();
    let operator = operator::start(&site, &server.kubeconfig("operator", &proxy.url()), &namespace, &[]);
    until("every pipeline to be looked at", async || {
        (reconciles(&operator).await? >= options.pipelines).then_some(())
    })
    .await;
    report(&proxy, made, started, "operator started anew")?;
    ensure!(proxy.writes().is_empty(), "a settled pipeline costs no write, got {:?}", proxy.writes());
    operator.stop().await;
    Ok(())
}

fn report(proxy: &Proxy, documents: usize, since: Instant, what: &str) -> Result<()> {
    let (writes, reads) = (proxy.writes().len(), proxy.reads());
    writeln!(
        std::io::stdout(),
        "{what}: {documents} documents settled after {:.1} s, {writes} writes ({:.1} a document), {reads} reads ({:.1})",
        since.elapsed().as_secs_f64(),
        writes as f64 / documents as f64,
        reads as f64 / documents as f64,
    )?;
    Ok(())
}

/// Returns a Pipeline and four documents that refer to it.
fn documents(index: usize) -> Vec<(Kind, Value)> {
    let pipeline = format!("p{index}");
    let named = |kind: Kind, name: String, mut spec: Value| {
        if kind != Kind::Pipeline {
            spec["pipelineRef"] = json!({ "name": pipeline });
        }
        let (api_version, kind_name) = (litejoin_crds::API_VERSION, kind.as_str());
        (
            kind,
            json!({ "apiVersion": api_version, "kind": kind_name, "metadata": { "name": name }, "spec": spec }),
        )
    };
    let query = |columns: &str| json!({ "query": format!("SELECT {columns} FROM orders"), "sinks": [format!("sink{index}")] });
    vec![
        named(Kind::Pipeline, pipeline.clone(), json!({})),
        named(
            Kind::Source,
            format!("source{index}"),
            json!({ "http": { "addr": ":8080", "topics": ["orders"] } }),
        ),
        named(Kind::Join, format!("keys{index}"), query("key AS id")),
        named(Kind::Join, format!("rows{index}"), query("key AS id, payload")),
        named(Kind::Sink, format!("sink{index}"), json!({ "sse": { "addr": ":9100" } })),
    ]
}

/// Waits until each status is about its generation and knows of the pod.
async fn settle(client: &Client, namespace: &str) -> Result<()> {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    for kind in Kind::ALL {
        let api = api(client, namespace, kind);
        // The timeout of tests does not apply: a measurement may take longer.
        loop {
            let all = api.list(&ListParams::default()).await?.items;
            let behind: BTreeSet<String> =
                all.iter().filter(|object| !is_settled(kind, object)).map(ResourceExt::name_any).collect();
            if behind.is_empty() {
                break;
            }
            looks.tick().await;
        }
    }
    Ok(())
}

fn is_settled(kind: Kind, object: &DynamicObject) -> bool {
    let status = &object.data["status"];
    let current = status["observedGeneration"] == json!(object.metadata.generation);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let has =
        |kind: &str, reason: &str| conditions.iter().any(|c| c["type"] == kind && c["reason"] == reason);
    current
        && match kind {
            Kind::Pipeline => has("WorkerReady", "Starting"),
            _ => has("Accepted", "Accepted") && has("ResolvedRefs", "ResolvedRefs"),
        }
}

fn api(client: &Client, namespace: &str, kind: Kind) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk(litejoin_crds::GROUP, litejoin_crds::VERSION, kind.as_str());
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&kind))
}

/// Returns how many reconciles an operator has finished, by its metrics.
async fn reconciles(operator: &Worker) -> Option<usize> {
    let log: Vec<String> = operator.log().lines().map(str::to_owned).collect();
    let address = litejoin_tests::worker::addresses(&log).get("admin").copied()?;
    let (_, text) = litejoin_tests::worker::get(&format!("http://{address}/metrics")).await;
    let line = text.lines().find_map(|line| line.strip_prefix("litejoin_operator_reconciles_total "));
    line?.parse().ok()
}
