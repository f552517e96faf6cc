//! A PodMonitor is created in a cluster that knows the kind; elsewhere a condition reports it, and the pipeline runs
//! on.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::api_server::{ApiServer, install_definition};
use litejoin_tests::programs::{repository, run};
use litejoin_tests::wait::until;
use serde_json::json;

use crate::fields::pod_monitors;
use crate::site::{ControllerSite, condition_of};

const PIPELINE: &str = "
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec: {podMonitor: {enabled: true}}
";

#[tokio::test]
async fn a_pod_monitor_waits_for_its_kind() {
    let site = ControllerSite::on(Arc::new(ApiServer::start().await)).await;
    let operator = site.operator();
    site.apply(PIPELINE).await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "NoPodMonitors").await;
    let pipelines = site.ours(Kind::Pipeline);
    let pipeline = pipelines.get("orders").await.expect("it is there");
    assert_eq!(
        condition_of(&pipeline, "Degraded").expect("it is told")["message"],
        "spec.podMonitor: this cluster knows no PodMonitor; install the Prometheus operator's definitions, or write \
         enabled: false"
    );
    site.wait_for(Kind::Pipeline, "orders", "ConfigValid", "True", "Valid").await;

    let definition = run(&mut Command::new(repository().join("tests/kubernetes/pod-monitors")));
    install_definition(&site.client, Path::new(definition.trim())).await;
    let touch = json!({ "metadata": { "annotations": { "looked-at": "again" } } });
    let touched = pipelines.patch("orders", &PatchParams::default(), &Patch::Merge(&touch)).await;
    touched.expect("a Pipeline can be annotated");
    let monitors: Api<DynamicObject> =
        Api::namespaced_with(site.client.clone(), &site.namespace, &pod_monitors());
    until("the PodMonitor", async || monitors.get_opt("orders").await.ok()?).await;
    site.wait_without(Kind::Pipeline, "orders", "Degraded").await;
    operator.stop().await;
}
