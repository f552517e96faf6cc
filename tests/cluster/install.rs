//! From the charts to a joined result and through a bad day, in one cluster.

use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::{Client, ResourceExt};
use litejoin_tests::kubernetes::image;
use litejoin_tests::kubernetes::node::{self, Node};
use litejoin_tests::kubernetes::programs::repository;
use litejoin_tests::wait::until;
use litejoin_tests::worker::program;
use serde_json::Value;

const NAMESPACE: &str = "shop";

#[tokio::test]
async fn orders_on_kubernetes() {
    if !node::inside("install::orders_on_kubernetes") {
        return;
    }
    let cluster = Cluster::start().await;
    let node = &cluster.node;

    // $ kubectl apply -f examples/orders
    let example = repository().join("examples/orders");
    cluster.kubectl(&["apply", "-f", &example.display().to_string()]);
    cluster.wait_ready("pipeline/orders").await;
    cluster.wait_ready("sink/console").await;
    let first = cluster.pod("orders-0").await;

    // A message by the Service, its result by the Service, from inside of the cluster.
    cluster.shell();
    cluster.post(r#"{"topic": "orders", "key": "o1", "payload": {"amount": 42, "customer_id": "c1"}}"#).await;
    cluster.post(r#"{"topic": "customers", "key": "c1", "payload": {"name": "Ada"}}"#).await;
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;

    // A join of its own, while it runs: no other pod.
    cluster.apply(
        "apiVersion: litejoin.io/v1alpha1\nkind: Join\nmetadata: {name: spent}\n\
         spec:\n  pipelineRef: {name: orders}\n  sinks: [live]\n\
         \x20 query: SELECT payload->>'customer_id' AS id, sum(payload->>'amount') AS spent FROM orders GROUP BY 1\n",
    );
    cluster.wait_ready("join/spent").await;
    cluster.result("spent", "c1", r#""spent":42"#).await;
    let then = cluster.pod("orders-0").await;
    assert_eq!(first.uid(), then.uid(), "a join needs no other pod");
    assert_eq!(restarts(&then), 0, "and no other container");
    cluster.kubectl(&["delete", "join", "spent"]);
    until("the join to be gone", async || (!cluster.snapshot("spent").contains("spent\":42")).then_some(()))
        .await;

    // The pod is deleted: the data is still there, and goes on.
    cluster.kubectl(&["delete", "pod", "orders-0", "--wait=true"]);
    cluster.wait_ready("pipeline/orders").await;
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;

    // The worker is killed in its container.
    let before = restarts(&cluster.pod("orders-0").await);
    kill_worker();
    until("another container", async || {
        let pod = cluster.pod("orders-0").await;
        (restarts(&pod) > before).then_some(())
    })
    .await;
    cluster.wait_ready("pipeline/orders").await;
    cluster.post(r#"{"topic": "orders", "key": "o2", "payload": {"amount": 1, "customer_id": "c1"}}"#).await;
    cluster.result("enriched", "o2", r#""customer":"Ada""#).await;

    // The node is drained, and comes back.
    let drain = ["drain", "node", "--ignore-daemonsets", "--delete-emptydir-data", "--force"];
    node.kubectl(&drain);
    node.kubectl(&["uncordon", "node"]);
    cluster.shell();
    cluster.wait_ready("pipeline/orders").await;
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;

    // Another operator image: nothing of the pipeline is touched.
    let before = cluster.pod("orders-0").await;
    cluster.helm_operator("second");
    node.kubectl(&["-n", "litejoin", "rollout", "status", "deployment/litejoin-operator", "--timeout=60s"]);
    let after = cluster.pod("orders-0").await;
    assert_eq!(before.uid(), after.uid(), "an upgrade of the operator restarts no worker");

    // What users see.
    let table = cluster.kubectl(&["get", "ljp,ljsnk"]);
    assert!(table.contains("pipeline.litejoin.io/orders   True    Ready"), "{table}");

    // Deleted with the operator gone: nothing holds the namespace.
    node.kubectl(&["-n", "litejoin", "scale", "deployment/litejoin-operator", "--replicas=0"]);
    node.kubectl(&["delete", "namespace", NAMESPACE, "--wait=true", "--timeout=60s"]);
}

/// A cluster with LiteJoin installed, and a namespace under the restricted pod security standard.
struct Cluster {
    node: Node,
}

impl Cluster {
    async fn start() -> Self {
        let node = Node::start().await;
        let operator = program().with_file_name("litejoin-operator");
        node.import(&image::of_program("localhost/litejoin:first", &program(), node.folder()));
        for tag in ["first", "second"] {
            let name = format!("localhost/litejoin-operator:{tag}");
            node.import(&image::of_program(&name, &operator, node.folder()));
        }
        node.import(&image::of_busybox("localhost/shell:1", &["/bin/sh"], node.folder()));
        let crds = repository().join("charts/litejoin-crds");
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        for namespace in ["litejoin", NAMESPACE] {
            node.kubectl(&["create", "namespace", namespace]);
            node.kubectl(&["label", "namespace", namespace, restricted]);
        }
        node.helm(&["install", "litejoin-crds", &crds.display().to_string(), "-n", "litejoin"]);
        let cluster = Self { node };
        cluster.helm_operator("first");
        cluster
    }

    fn helm_operator(&self, tag: &str) {
        let chart = repository().join("charts/litejoin");
        self.node.helm(&[
            "upgrade",
            "--install",
            "litejoin",
            &chart.display().to_string(),
            "-n",
            "litejoin",
            "--set",
            "image.repository=localhost/litejoin-operator",
            "--set",
            &format!("image.tag={tag}"),
            "--set",
            "worker.image=localhost/litejoin:first",
        ]);
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        self.node.kubectl(&[&["-n", NAMESPACE], arguments].concat())
    }

    fn apply(&self, manifest: &str) {
        let path = self.node.folder().join("applied.yaml");
        std::fs::write(&path, manifest).expect("the folder is ours");
        self.kubectl(&["apply", "-f", &path.display().to_string()]);
    }

    async fn wait_ready(&self, what: &str) {
        until(&format!("{what} to be ready"), async || {
            let found: Value = serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).ok()?;
            let current = found["status"]["observedGeneration"] == found["metadata"]["generation"];
            let conditions = found["status"]["conditions"].as_array()?;
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            (current && ready).then_some(())
        })
        .await;
    }

    async fn pod(&self, name: &str) -> Pod {
        let pods: Api<Pod> = Api::namespaced(Client::clone(&self.node.client), NAMESPACE);
        until("the pod", async || pods.get_opt(name).await.ok()?).await
    }

    /// A pod to send requests from, since a cluster's names are known in it alone.
    fn shell(&self) {
        self.node.kubectl(&[
            "run",
            "shell",
            "--image=localhost/shell:1",
            "--image-pull-policy=IfNotPresent",
            "--restart=Never",
            "--command",
            "--",
            "/bin/sleep",
            "1000000",
        ]);
        self.node.kubectl(&["wait", "pod/shell", "--for=condition=Ready", "--timeout=60s"]);
    }

    async fn post(&self, message: &str) {
        let url = format!("http://orders.{NAMESPACE}.svc.cluster.local:8080/ingest");
        let header = "--header=Content-Type: application/json";
        until("a message to be accepted", async || {
            let said = self.in_shell(&["wget", "-q", "-O-", header, &format!("--post-data={message}"), &url]);
            said.contains("\"accepted\":1").then_some(())
        })
        .await;
    }

    fn snapshot(&self, join: &str) -> String {
        let url = format!("http://orders.{NAMESPACE}.svc.cluster.local:9100/snapshot?join={join}");
        self.in_shell(&["wget", "-q", "-O-", &url])
    }

    /// Waits until a client of the SSE Service is told a result of this key that contains a text.
    async fn result(&self, join: &str, key: &str, text: &str) {
        let url =
            format!("http://orders.{NAMESPACE}.svc.cluster.local:9100/subscribe?join={join}&replay=true");
        let listen = format!("timeout 2 wget -q -O- '{url}'");
        until(&format!("{join} {key} with {text}"), async || {
            let told = self.in_shell(&["sh", "-c", &listen]);
            let key = format!("\"key\":\"{key}\"");
            told.lines().any(|line| line.contains(&key) && line.contains(text)).then_some(())
        })
        .await;
    }

    fn in_shell(&self, command: &[&str]) -> String {
        let exec = [&["exec", "shell", "--"], command].concat();
        let kubectl = litejoin_tests::kubernetes::programs::program("kubectl");
        let done = Command::new(kubectl).env("KUBECONFIG", &self.node.kubeconfig).args(exec).output();
        String::from_utf8_lossy(&done.expect("kubectl is there").stdout).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let show = |arguments: &[&str]| {
                let kubectl = litejoin_tests::kubernetes::programs::program("kubectl");
                let _ =
                    Command::new(kubectl).env("KUBECONFIG", &self.node.kubeconfig).args(arguments).status();
            };
            show(&["get", "pods,pvc,ljp,ljj,ljsnk", "-A", "-o", "wide"]);
            show(&["describe", "pods,ljp", "-n", NAMESPACE]);
            show(&["logs", "-n", "litejoin", "deployment/litejoin-operator", "--tail=40"]);
            show(&["logs", "-n", NAMESPACE, "orders-0", "--tail=40"]);
            eprintln!("{}", self.node.logs());
        }
    }
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.clone().unwrap_or_default();
    status.container_statuses.unwrap_or_default().iter().map(|container| container.restart_count).sum()
}

/// Kills the process of the worker, which is one of ours to see.
fn kill_worker() {
    let killed = Command::new("pkill").args(["-KILL", "-x", "litejoin"]).status();
    assert!(killed.expect("pkill is there").success(), "the worker runs in our PID namespace");
}
