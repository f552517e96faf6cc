//! What Argo CD makes of our documents, by its own program: the scripts in `charts/argocd` have the form of those that it
//! has built in, with the same kind of tests.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use expect_test::expect_file;
use litejoin_crds::GROUP;
use litejoin_crds::kind::Kind;
use litejoin_tests::programs::{argocd, repository, run};
use serde_json::{Value, json};

use crate::site::documents;

const NOTE: &str = "\
# The health and the actions of LiteJoin's kinds, for Argo CD:
#   kubectl -n argocd patch configmap argocd-cm --patch-file charts/argocd/argocd-cm.yaml
# Written from resource_customizations by `UPDATE_EXPECT=1 cargo test --workspace --test controller`; do not edit.
";

/// Actions of a Pipeline.
const ACTIONS: [&str; 4] = ["restart", "resume", "retry-dead-letters", "suspend"];

/// A file among the scripts.
fn script(path: &str) -> PathBuf {
    repository().join("charts/argocd/resource_customizations/litejoin.io").join(path)
}

fn text(path: &str) -> String {
    fs::read_to_string(script(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The tests that lie beside a script.
fn cases(path: &str, list: &str) -> Vec<Value> {
    let all = documents(&text(path)).remove(0);
    all[list].as_array().unwrap_or_else(|| panic!("{path} has no {list}")).clone()
}

/// Runs `argocd admin settings resource-overrides` with the settings of the snippet.
fn overrides(arguments: &[&str]) -> String {
    let settings = repository().join("charts/argocd/argocd-cm.yaml");
    let home = tempfile::tempdir().expect("a folder can be made");
    let mut command = Command::new(argocd());
    command.env("HOME", home.path()).args(["admin", "settings", "resource-overrides"]).args(arguments);
    run(command.arg("--argocd-cm-path").arg(settings))
}

#[test]
fn the_snippet_has_the_scripts() {
    let mut data = serde_json::Map::new();
    for kind in Kind::ALL {
        data.insert(
            format!("resource.customizations.health.{GROUP}_{}", kind.as_str()),
            json!(text("_/health.lua")),
        );
    }
    let definition = |name: &str| json!({ "name": name, "action.lua": text(&format!("Pipeline/actions/{name}/action.lua")) });
    let actions = json!({
        "discovery.lua": text("Pipeline/actions/discovery.lua"),
        "definitions": ACTIONS.map(definition),
    });
    let actions = serde_yaml::to_string(&actions).expect("it is plain data");
    data.insert(format!("resource.customizations.actions.{GROUP}_Pipeline"), json!(actions));
    // Argo CD knows its settings by this label.
    let snippet = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "argocd-cm", "labels": { "app.kubernetes.io/part-of": "argocd" } },
        "data": data,
    });
    let mut written = NOTE.to_owned();
    write!(written, "{}", serde_yaml::to_string(&snippet).expect("it is plain data")).expect("a text grows");
    expect_file!["../../charts/argocd/argocd-cm.yaml"].assert_eq(&written);
}

#[test]
fn argo_cd_shows_the_health_of_each_state() {
    let cases = cases("_/health_test.yaml", "tests");
    assert!(!cases.is_empty(), "there are cases");
    for case in cases {
        let input = case["inputPath"].as_str().expect("a path");
        let path = script("_").join(input);
        let answer = overrides(&["health", path.to_str().expect("a path of ours")]);
        let [status, message] =
            ["status", "message"].map(|field| case["healthStatus"][field].as_str().unwrap_or_default());
        assert_eq!(answer.trim(), format!("STATUS: {status}\nMESSAGE: {message}").trim(), "{input}");
    }
}

#[test]
fn argo_cd_offers_and_runs_the_actions() {
    for case in cases("Pipeline/actions/action_test.yaml", "discoveryTests") {
        let input = case["inputPath"].as_str().expect("a path");
        let path = script("Pipeline/actions").join(input);
        let answer = overrides(&["list-actions", path.to_str().expect("a path of ours")]);
        for action in case["result"].as_array().expect("a list") {
            let (name, is_disabled) = (action["name"].as_str().expect("a name"), action["disabled"] == true);
            let line = answer.lines().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("no action {name} in\n{answer}"));
            assert_eq!(line.contains("true"), is_disabled, "{input}: {answer}");
        }
    }
    for case in cases("Pipeline/actions/action_test.yaml", "actionTests") {
        let [action, input, output] =
            ["action", "inputPath", "expectedOutputPath"].map(|field| case[field].as_str().expect("a text"));
        let path = script("Pipeline/actions").join(input);
        let answer = overrides(&["run-action", path.to_str().expect("a path of ours"), action]);
        // The program shows the lines that an action changes.
        let [before, after] = [input, output].map(|path| text(&format!("Pipeline/actions/{path}")));
        let lines = after.lines().filter(|line| !before.lines().any(|other| other == *line));
        let expected: Vec<String> = lines.map(|line| format!("> {line}")).collect();
        let added: Vec<&str> = answer.lines().filter(|line| line.starts_with('>')).collect();
        assert_eq!(added, expected, "{action}: {answer}");
    }
    // These write the time.
    let running = script("Pipeline/actions").join("testdata/running.yaml");
    for (action, field) in [("restart", "restartNonce"), ("retry-dead-letters", "retryNonce")] {
        let answer = overrides(&["run-action", running.to_str().expect("a path of ours"), action]);
        let mut added = answer.lines().filter_map(|line| line.strip_prefix('>'));
        let written = added.find_map(|line| line.trim().strip_prefix(&format!("{field}: ")));
        let written = written.unwrap_or_else(|| panic!("{action} writes no {field}: {answer}"));
        assert!(written.trim_matches('"').trim_matches('\'').starts_with("20"), "{action}: {written}");
    }
}
