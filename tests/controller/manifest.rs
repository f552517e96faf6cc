//! The manifest that installs LiteJoin without Helm: it equals the charts, a server accepts it, and an operator with
//! its rights works.

use std::process::Command;
use std::sync::Arc;

use expect_test::expect_file;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use litejoin_crds::crd::definition;
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::api_server::ApiServer;
use litejoin_tests::kubernetes::operator;
use litejoin_tests::kubernetes::programs::program;
use litejoin_tests::programs::{repository, run};
use serde_json::{Value, json};

use crate::site::{ControllerSite, documents};

/// The namespace of the operator in the manifest.
const NAMESPACE: &str = "litejoin";

const NOTE: &str = "\
# Installs LiteJoin: kubectl apply --server-side -f charts/litejoin.yaml
# Written from crds/ and charts/litejoin by `UPDATE_EXPECT=1 cargo test --workspace --test controller`; do not edit.
";

#[tokio::test]
async fn one_manifest_installs_all() {
    expect_file!["../../charts/litejoin.yaml"].assert_eq(&manifest());

    let server = ApiServer::start().await;
    let kubeconfig = server.kubeconfig("kubectl", &server.url());
    let path = repository().join("charts/litejoin.yaml");
    for time in ["first", "second"] {
        let mut kubectl = Command::new(program("kubectl"));
        kubectl.env("KUBECONFIG", &kubeconfig).args([
            "apply",
            "--server-side",
            "--field-manager",
            "kubectl",
            "-f",
        ]);
        let said = run(kubectl.arg(&path));
        assert_eq!(said.lines().count(), documents(&manifest()).len(), "the {time} time: {said}");
    }

    // The rights of its service account suffice for a pipeline in another namespace.
    let site = ControllerSite::on(Arc::new(server)).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(site.client.clone(), NAMESPACE);
    let request = TokenRequest::default();
    let token = accounts.create_token_request("litejoin-operator", &PostParams::default(), &request).await;
    let token = token.expect("a token").status.expect("it is there").token;
    let kubeconfig = site.server.kubeconfig_with("operator", &site.server.url(), &token);
    let operator = operator::start_everywhere(&site.folder, &kubeconfig, NAMESPACE, &[]);
    site.apply("{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {name: orders}, spec: {}}")
        .await;
    site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "False", "Starting").await;
    operator.stop().await;
}

/// Returns the expected manifest.
fn manifest() -> String {
    let mut all: Vec<Value> = Kind::ALL.map(definition).to_vec();
    all.push(json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { "pod-security.kubernetes.io/enforce": "restricted" } },
    }));
    let chart = repository().join("charts/litejoin");
    let mut helm = Command::new(program("helm"));
    helm.args(["template", "litejoin"]).arg(chart).args(["--kube-version", "1.34", "--namespace", NAMESPACE]);
    all.extend(documents(&run(&mut helm)).into_iter().map(plain));
    let documents = all.iter().map(|document| serde_yaml::to_string(document).expect("JSON is YAML"));
    format!("{NOTE}{}", documents.collect::<Vec<_>>().join("---\n"))
}

/// Returns a document of a chart without its traces of Helm.
fn plain(mut document: Value) -> Value {
    let cluster_wide = document["kind"].as_str().is_some_and(|kind| kind.starts_with("Cluster"));
    let metadata = &mut document["metadata"];
    if !cluster_wide {
        metadata["namespace"] = json!(NAMESPACE);
    }
    let labels = metadata["labels"].as_object_mut().expect("all of ours have labels");
    labels.retain(|label, _| label != "helm.sh/chart" && label != "app.kubernetes.io/managed-by");
    document
}
