//! The rights in the chart suffice for the operator, and every rule is needed: without each one, some call is
//! forbidden.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{LimitRange, Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::api_server::{ApiServer, install_definition};
use litejoin_tests::kubernetes::operator;
use litejoin_tests::kubernetes::programs::program;
use litejoin_tests::programs::{repository, run};
use litejoin_tests::wait::until;
use serde_json::{Value, json};

use crate::fields::pod_monitors;
use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of, documents};

/// A source that names a Secret, so that the operator must read Secrets.
const WITH_SECRET: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Source
metadata: {name: theirs}
spec:
  pipelineRef: {name: orders}
  topic: theirs
  api: {url: http://a, keyPath: id, interval: 1m, auth: {bearer: {secretKeyRef: {name: s, key: k}}}}
";

/// A pipeline with a scheduled drill.
const WITH_DRILL: &str = r"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: drilled}
spec: {suspend: true, replication: {enabled: true, replicaUrl: s3://bucket/prefix, drill: {schedule: '@daily'}}}
";

/// The namespaces that an operator watches.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Namespace,
    Cluster,
}

#[tokio::test]
async fn every_rule_is_needed_and_all_are_enough() {
    check(ApiServer::shared().await, Scope::Namespace).await;
}

#[tokio::test]
async fn every_rule_of_a_whole_cluster_is_needed_and_all_are_enough() {
    // This test has its own server: its operator would also reconcile the pipelines of other tests.
    let server = ApiServer::start().await;
    let definition = run(&mut Command::new(repository().join("tests/kubernetes/pod-monitors")));
    install_definition(&server.client().await, Path::new(definition.trim())).await;
    check(Arc::new(server), Scope::Cluster).await;
}

#[tokio::test]
async fn the_right_to_secrets_may_be_given_by_namespace() {
    let server = ApiServer::shared().await;
    let site = ControllerSite::on(Arc::clone(&server)).await;
    let is_of_secrets = |(_, rule): &Rule| rule.resources.iter().flatten().any(|kind| kind == "secrets");
    let (secrets, others): (Vec<_>, Vec<_>) = rules(Scope::Namespace).into_iter().partition(is_of_secrets);
    let kubeconfig = kubeconfig(&site, &others).await;
    let operator = operator::start(&site.folder, &kubeconfig, &site.namespace, &["--lease-seconds", "3"]);
    site.secret("s", &[("k", "hunter2")]).await;
    site.apply(&(orders(&Ports::free()) + "---" + WITH_SECRET)).await;
    site.wait_for(Kind::Source, "theirs", "ResolvedRefs", "False", "RefNotFound").await;
    let source = site.ours(Kind::Source).get("theirs").await.expect("it is there");
    let said = condition_of(&source, "ResolvedRefs").expect("it has one")["message"].to_string();
    assert!(said.contains("may not read Secrets in this namespace; bind the ClusterRole"), "{said}");
    // All that needs none goes on.
    site.wait_for(Kind::Pipeline, "orders", "ConfigValid", "True", "Valid").await;
    site.wait_for(Kind::Sink, "console", "ResolvedRefs", "True", "ResolvedRefs").await;

    let rules: Vec<_> = secrets.into_iter().map(|(_, rule)| rule).collect();
    make(site.api::<Role>(), json!({ "metadata": { "name": "secrets" }, "rules": rules })).await;
    let subjects = json!([{ "kind": "ServiceAccount", "name": "operator", "namespace": site.namespace }]);
    let role = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "secrets" });
    let bound = json!({ "metadata": { "name": "secrets" }, "roleRef": role, "subjects": subjects });
    make(site.api::<RoleBinding>(), bound).await;
    site.wait_for(Kind::Source, "theirs", "ResolvedRefs", "True", "ResolvedRefs").await;
    operator.stop().await;
}

async fn check(server: Arc<ApiServer>, scope: Scope) {
    let rules = rules(scope);
    assert!(rules.len() > 5);
    assert_eq!(forbidden(&server, scope, &rules).await, None, "all of the rules are enough");
    for left_out in 0..rules.len() {
        let mut fewer = rules.clone();
        let rule = fewer.remove(left_out);
        let said = forbidden(&server, scope, &fewer).await;
        assert!(said.is_some(), "nothing is forbidden without {rule:?}");
    }
}

/// A rule of the chart, and the kind of its role.
type Rule = (String, PolicyRule);

/// Returns the rules that the chart gives to an operator, including those for the Lease.
fn rules(scope: Scope) -> Vec<Rule> {
    let chart = repository().join("charts/litejoin");
    let mut helm = Command::new(program("helm"));
    helm.args(["template", "litejoin"]).arg(chart).args(["--kube-version", "1.34"]);
    if scope == Scope::Namespace {
        helm.args(["--set", "watchNamespace=here"]);
    }
    let bound = |document: &Value| {
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        document["kind"].as_str().is_some_and(|kind| kind.ends_with("Role"))
            && name.starts_with("litejoin-operator")
    };
    let roles = documents(&run(&mut helm)).into_iter().filter(bound);
    let rules = roles.flat_map(|role| {
        let kind = role["kind"].as_str().expect("it has a kind").to_owned();
        let rules = role["rules"].as_array().expect("a role has rules").clone();
        rules.into_iter().map(move |rule| (kind.clone(), serde_json::from_value(rule).expect("a rule")))
    });
    rules.collect()
}

/// Runs an operator with these rules until its work is done or a call is forbidden; returns the forbidden call.
async fn forbidden(server: &Arc<ApiServer>, scope: Scope, rules: &[Rule]) -> Option<String> {
    let site = ControllerSite::on(Arc::clone(server)).await;
    let kubeconfig = kubeconfig(&site, rules).await;
    let arguments = ["--lease-seconds", "3", "--node-loss-seconds", "1", "--log", "debug"];
    let operator = match scope {
        Scope::Namespace => operator::start(&site.folder, &kubeconfig, &site.namespace, &arguments),
        Scope::Cluster => operator::start_everywhere(&site.folder, &kubeconfig, &site.namespace, &arguments),
    };
    let surrounded = "spec:\n  networkPolicy: {enabled: true}\n  podMonitor: {enabled: true}\n";
    site.apply(&orders(&Ports::free()).replacen("spec:\n", surrounded, 1)).await;
    site.apply(WITH_SECRET).await;
    let worker = async {
        let worker = site.run_pod("orders").await;
        site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        // Another config makes the operator annotate the pod; without ports, the Service goes.
        let pipeline = json!({ "spec": {
            "sources": null, "sinks": null, "joins": null, "networkPolicy": null, "podMonitor": null,
        }});
        let pipelines = site.ours(Kind::Pipeline);
        let patched = pipelines.patch("orders", &PatchParams::default(), &Patch::Merge(&pipeline)).await;
        patched.expect("a Pipeline can be changed");
        site.apply(WITH_DRILL).await;
        let drills = site.api::<CronJob>();
        until("the drill", async || drills.get_opt("drilled").await.ok()?).await;
        let services = site.api::<k8s_openapi::api::core::v1::Service>();
        until("the Service to go", async || services.get_opt("orders").await.ok()?.is_none().then_some(()))
            .await;
        let monitors: Api<DynamicObject> =
            Api::namespaced_with(site.client.clone(), &site.namespace, &pod_monitors());
        until("the PodMonitor to go", async || {
            monitors.get_opt("orders").await.ok()?.is_none().then_some(())
        })
        .await;
        site.mount("orders").await;
        site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        worker.stop().await;
        // An operator of one namespace can't read nodes, and relies on the conditions of pods.
        if scope == Scope::Cluster {
            let node = site.lose_node("orders-0").await;
            site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "False", "NodeLost").await;
            let nodes: Api<Node> = Api::all(site.client.clone());
            nodes.delete(&node, &DeleteParams::default()).await.expect("it can be deleted");
        }
        // A pod that may not be made is told by an Event alone.
        let limit = json!({ "type": "Pod", "min": { "memory": "8Gi" } });
        let limits = json!({ "metadata": { "name": "large" }, "spec": { "limits": [limit] } });
        make(site.api::<LimitRange>(), limits).await;
        let pods = site.api::<Pod>();
        let now = DeleteParams::default().grace_period(0);
        until("the pod to be refused", async || {
            // The API server may make one more before it has seen the limit.
            let _ = pods.delete("orders-0", &now).await;
            let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
            (condition_of(&pipeline, "WorkerReady")?["reason"] == "FailedCreate").then_some(())
        })
        .await;
    };
    let complaint = async {
        until("a complaint", async || {
            let log = operator.log();
            log.lines().find(|line| line.contains("is forbidden: User")).map(str::to_owned)
        })
        .await
    };
    let outcome = tokio::select! {
        biased;
        said = complaint => Some(said),
        () = worker => None,
    };
    operator.kill().await;
    // The next operator of a whole cluster must find no documents of this run.
    for kind in Kind::ALL {
        let all = site.ours(kind);
        let deleted = all.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
        deleted.expect("documents can be deleted");
    }
    outcome
}

/// Returns a kubeconfig for a service account with these rules.
async fn kubeconfig(site: &ControllerSite, rules: &[Rule]) -> std::path::PathBuf {
    let account = json!({ "metadata": { "name": "operator" } });
    make(site.api::<ServiceAccount>(), account).await;
    let subjects = json!([{ "kind": "ServiceAccount", "name": "operator", "namespace": site.namespace }]);
    let of = |kind: &str| -> Vec<&PolicyRule> {
        rules.iter().filter(|rule| rule.0 == kind).map(|(_, rule)| rule).collect()
    };
    let bound = |kind: &str, name: &str| {
        let reference = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name });
        json!({ "metadata": { "name": name }, "roleRef": reference, "subjects": subjects })
    };
    let role = |kind: &str, name: &str| json!({ "metadata": { "name": name }, "rules": of(kind) });
    make(site.api::<Role>(), role("Role", "operator")).await;
    make(site.api::<RoleBinding>(), bound("Role", "operator")).await;
    let all = || site.client.clone();
    make(Api::<ClusterRole>::all(all()), role("ClusterRole", &site.namespace)).await;
    make(Api::<ClusterRoleBinding>::all(all()), bound("ClusterRole", &site.namespace)).await;
    let accounts = site.api::<ServiceAccount>();
    let request = TokenRequest::default();
    let token = accounts.create_token_request("operator", &PostParams::default(), &request).await;
    let token = token.expect("a token").status.expect("it is there").token;
    site.server.kubeconfig_with(&format!("{}-operator", site.namespace), &site.server.url(), &token)
}

async fn make<K>(api: Api<K>, object: Value)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(object).expect("an object of its kind");
    api.create(&PostParams::default(), &object).await.expect("it can be made");
}
