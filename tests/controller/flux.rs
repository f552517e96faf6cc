//! The example of Flux against Flux's own definitions, and what it names against what is there. Flux itself is not run:
//! what it makes of our kinds follows from the rules of kstatus, which `rest` tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use litejoin_tests::kubernetes::api_server::{ApiServer, install_definition};
use litejoin_tests::kubernetes::programs::program;
use litejoin_tests::programs::{repository, run};
use serde_json::Value;

use crate::site::documents;

/// The files of the example.
const FILES: [&str; 2] = ["examples/flux/flux.yaml", "examples/flux/releases/releases.yaml"];

#[tokio::test]
async fn flux_takes_the_example() {
    let server = ApiServer::shared().await;
    let client = server.client().await;
    let folders = run(&mut Command::new(repository().join("tests/flux/definitions")));
    for folder in folders.lines() {
        for file in fs::read_dir(folder).expect("it holds definitions") {
            let path = file.expect("it can be listed").path();
            if ["gitrepositories", "kustomizations", "helmreleases"]
                .iter()
                .any(|kind| path.to_string_lossy().ends_with(&format!("_{kind}.yaml")))
            {
                install_definition(&client, &path).await;
            }
        }
    }
    let kubeconfig = server.kubeconfig("flux", &server.url());
    let kubectl = |arguments: &[&str]| {
        run(Command::new(program("kubectl")).env("KUBECONFIG", &kubeconfig).args(arguments))
    };
    for namespace in ["flux-system", "litejoin"] {
        kubectl(&["create", "namespace", namespace]);
    }
    for file in FILES {
        let path = repository().join(file).display().to_string();
        let said = kubectl(&["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", &path]);
        assert_eq!(said.lines().count(), written(file).len(), "{said}");
    }
}

#[test]
fn the_example_names_what_is_there() {
    let all: Vec<Value> = FILES.iter().flat_map(|file| written(file)).collect();
    let is_there = |path: &Value| {
        let path = path.as_str().expect("a path");
        repository().join(path.trim_start_matches("./")).is_dir()
    };
    for document in &all {
        let spec = &document["spec"];
        match document["kind"].as_str().expect("a kind") {
            "Kustomization" => assert!(is_there(&spec["path"]), "{document:#}"),
            "HelmRelease" => {
                assert!(is_there(&spec["chart"]["spec"]["chart"]), "{document:#}");
                render(spec);
            }
            _ => {}
        }
    }
}

/// Renders the chart of a HelmRelease with its values, which the chart's schema must allow.
fn render(spec: &Value) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let values = folder.path().join("values.yaml");
    fs::write(&values, spec["values"].to_string()).expect("the folder is ours");
    let chart = spec["chart"]["spec"]["chart"].as_str().expect("a path").trim_start_matches("./");
    let mut helm = Command::new(program("helm"));
    helm.args(["template", "litejoin", "--kube-version", "1.34"]).arg(repository().join(chart));
    let rendered = documents(&run(helm.arg("--values").arg(&values)));
    assert!(!rendered.is_empty(), "{chart} makes objects");
}

fn written(file: &str) -> Vec<Value> {
    documents(&fs::read_to_string(repository().join(Path::new(file))).expect("the example is there"))
}
