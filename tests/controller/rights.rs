//! What the chart lets the operator do is enough, and no rule of it is too much: without each one, something is
//! forbidden.

use std::process::Command;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::operator;
use litejoin_tests::kubernetes::programs::{program, repository, run};
use litejoin_tests::wait::until;
use serde_json::{Value, json};

use crate::settled::orders;
use crate::site::{Ports, Site, documents};

/// Names a Secret, which has to be looked for.
const WITH_SECRET: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {name: theirs}
spec:
  pipelineRef: {name: orders}
  topic: theirs
  api: {url: http://a, keyPath: id, interval: 1m, auth: {bearer: {secretKeyRef: {name: s, key: k}}}}
";

#[tokio::test]
async fn every_rule_is_needed_and_all_are_enough() {
    let rules = rules();
    assert!(rules.len() > 5);
    assert_eq!(forbidden(&rules).await, None, "all of the rules are enough");
    for left_out in 0..rules.len() {
        let mut fewer = rules.clone();
        let rule = fewer.remove(left_out);
        let said = forbidden(&fewer).await;
        assert!(said.is_some(), "nothing is forbidden without {rule:?}");
    }
}

/// The rules that the chart gives to an operator of one namespace, the Lease's among them.
fn rules() -> Vec<PolicyRule> {
    let chart = repository().join("charts/litejoin");
    let mut helm = Command::new(program("helm"));
    let rendered = run(helm.args(["template", "litejoin"]).arg(chart).args([
        "--kube-version",
        "1.34",
        "--set",
        "watchNamespace=here",
    ]));
    let roles = documents(&rendered).into_iter().filter(|document| document["kind"] == "Role");
    let rules = roles.flat_map(|role| role["rules"].as_array().expect("a role has rules").clone());
    rules.map(|rule| serde_json::from_value(rule).expect("a rule")).collect()
}

/// Runs an operator with these rules until its work is done or something is forbidden; returns what that was.
async fn forbidden(rules: &[PolicyRule]) -> Option<String> {
    let site = Site::new().await;
    let kubeconfig = kubeconfig(&site, rules).await;
    let arguments = ["--lease-seconds", "3", "--log", "debug"];
    let operator = operator::start(&site.folder, &kubeconfig, &site.namespace, &arguments);
    site.apply(&orders(&Ports::free())).await;
    site.apply(WITH_SECRET).await;
    let worker = async {
        let worker = site.run_pod("orders").await;
        site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        // Another config, which the pod is told of; and no port, so that the Service goes.
        let pipeline = json!({ "spec": { "sources": null, "sinks": null, "joins": null } });
        let pipelines = site.ours(Kind::Pipeline);
        let patched = pipelines.patch("orders", &PatchParams::default(), &Patch::Merge(&pipeline)).await;
        patched.expect("a Pipeline can be changed");
        let services = site.api::<k8s_openapi::api::core::v1::Service>();
        until("the Service to go", async || services.get_opt("orders").await.ok()?.is_none().then_some(()))
            .await;
        site.mount("orders").await;
        site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        worker.stop().await;
    };
    let complaint = async {
        until("a complaint", async || {
            let log = operator.log();
            log.lines().find(|line| line.contains("is forbidden")).map(str::to_owned)
        })
        .await
    };
    let outcome = tokio::select! {
        biased;
        said = complaint => Some(said),
        () = worker => None,
    };
    operator.kill().await;
    outcome
}

/// A kubeconfig of a service account with these rules.
async fn kubeconfig(site: &Site, rules: &[PolicyRule]) -> std::path::PathBuf {
    async fn make<K>(site: &Site, object: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).expect("an object of its kind");
        site.api().create(&PostParams::default(), &object).await.expect("it can be made")
    }
    make::<ServiceAccount>(site, json!({ "metadata": { "name": "operator" } })).await;
    make::<Role>(site, json!({ "metadata": { "name": "operator" }, "rules": rules })).await;
    make::<RoleBinding>(
        site,
        json!({
            "metadata": { "name": "operator" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator" },
            "subjects": [{ "kind": "ServiceAccount", "name": "operator", "namespace": site.namespace }],
        }),
    )
    .await;
    let accounts = site.api::<ServiceAccount>();
    let request = TokenRequest::default();
    let token = accounts.create_token_request("operator", &PostParams::default(), &request).await;
    let token = token.expect("a token").status.expect("it is there").token;
    site.server.kubeconfig_with(&format!("{}-operator", site.namespace), &site.server.url(), &token)
}
