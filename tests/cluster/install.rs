//! From the charts to a joined result, and through failures, in one cluster.

use std::cell::RefCell;
use std::process::Command;

use expect_test::expect_file;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::{Client, ResourceExt};
use litejoin_tests::certificates::{Authority, Identity};
use litejoin_tests::kubernetes::image;
use litejoin_tests::kubernetes::node::{self, Node};
use litejoin_tests::programs::repository;
use litejoin_tests::stores::litestream;
use litejoin_tests::wait::until;
use litejoin_tests::worker::program;
use serde_json::Value;

use crate::{losses, reshard, servers};

pub(crate) const NAMESPACE: &str = "shop";

/// The first lines of the transcript.
const TITLE: &str = "\
<!-- Written by `UPDATE_EXPECT=1 cargo test --workspace --test cluster`, which runs all of it. -->
# Orders and customers on Kubernetes
";

/// A join in a document of its own.
pub(crate) const SPENT: &str = "\
apiVersion: litejoin.io/v1alpha1
kind: Join
metadata: {name: spent}
spec:
  pipelineRef: {name: orders}
  query: SELECT payload->>'customer_id' AS id, sum(payload->>'amount') AS spent FROM orders GROUP BY 1
  sinks: [live]
";

/// A window in a document of its own. Its sessions last longer than the test, unless the gap is made shorter.
pub(crate) const VISITS: &str = "\
apiVersion: litejoin.io/v1alpha1
kind: Window
metadata: {name: visits}
spec:
  pipelineRef: {name: orders}
  type: session
  gap: 1h
  topic: orders
  partitionBy: payload->>'customer_id'
  query: SELECT payload->>'customer_id' AS customer, count(*) AS visits FROM orders
  emit: update
  sinks: [live]
";

/// A pipeline whose admin address needs a token and uses TLS.
const GUARDED: &str = "\
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: guarded}
spec:
  storage: {retainOnDelete: false}
  admin:
    auth: {bearer: {secretKeyRef: {name: door, key: token}}}
    tls: {cert: {secretKeyRef: {name: door, key: tls.crt}}, key: {secretKeyRef: {name: door, key: tls.key}}}
";

#[tokio::test]
async fn orders_on_kubernetes() {
    if !node::inside("install::orders_on_kubernetes") {
        return;
    }
    let cluster = Cluster::start().await;
    cluster.shell();
    let first = the_example_runs(&cluster).await;
    a_join_comes_and_goes(&cluster, &first).await;
    a_mistake_is_told(&cluster).await;
    a_window_comes_and_goes(&cluster, &first).await;
    the_data_outlives_pods(&cluster, &first).await;
    an_admin_address_is_closed(&cluster).await;
    the_volume_grows(&cluster).await;
    reshard::the_number_of_shards_changes(&cluster).await;
    reshard::whoever_dies_nothing_is_lost(&cluster).await;
    losses::secrets_come_turn_and_go(&cluster).await;
    losses::a_lost_claim_waits_for_consent(&cluster).await;
    servers::come_and_go(&cluster).await;
    an_upgrade_restarts_no_worker(&cluster).await;

    cluster.say("What happened is told as Events:");
    cluster.show(&["get", "events", "--field-selector=involvedObject.kind=Join", "-o", EVENT_COLUMNS]);
    cluster.say("Nothing waits for the operator when everything is removed, not even if it is gone.");
    cluster.node.kubectl(&["-n", "litejoin", "scale", "deployment/litejoin-operator", "--replicas=0"]);
    cluster.remove_shell();
    cluster.node.kubectl(&["delete", "namespace", NAMESPACE, "--wait=true", "--timeout=60s"]);
    expect_file!["../../examples/orders/kubernetes.md"].assert_eq(&stable(&cluster.text.borrow()));
}

/// Returns the arguments that post a message from within the cluster.
fn post(message: &str) -> Vec<String> {
    let ingest = format!("http://orders.{NAMESPACE}:8080/ingest");
    let (header, data) = ("--header=Content-Type: application/json", format!("--post-data={message}"));
    ["exec", "shell", "--", "wget", "-qO-", header, &data, &ingest].map(str::to_owned).to_vec()
}

/// Applies the example; returns its pod.
async fn the_example_runs(cluster: &Cluster) -> Pod {
    cluster.say("With both charts installed, the example is applied as it is:");
    let example = repository().join("examples/orders");
    cluster.show_as(&["apply", "-f", "examples/orders"], &["apply", "-f", &example.display().to_string()]);
    cluster.wait_ready("pipeline/orders").await;
    cluster.wait_ready("sink/console").await;
    let first = cluster.pod("orders-0").await;

    cluster.say("The Service has a port for each http source and sse sink. Messages go in at one:");
    cluster
        .reach(&post(r#"{"topic": "orders", "key": "o1", "payload": {"amount": 42, "customer_id": "c1"}}"#))
        .await;
    cluster.show(&words(&post(r#"{"topic": "customers", "key": "c1", "payload": {"name": "Ada"}}"#)));
    cluster.say("and results come out at another, as they change or all at once:");
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;
    let snapshot = format!("http://orders.{NAMESPACE}:9100/snapshot?join=enriched");
    cluster.show(&["exec", "shell", "--", "wget", "-qO-", &snapshot]);
    first
}

/// Adds a join while data flows, and removes it.
async fn a_join_comes_and_goes(cluster: &Cluster, first: &Pod) {
    cluster.say("A join of its own is added while data flows:");
    cluster.text.borrow_mut().push_str(&format!("\n```yaml\n{SPENT}```\n"));
    cluster.apply(SPENT);
    cluster.wait_ready("join/spent").await;
    cluster.result("spent", "c1", r#""spent":42"#).await;
    let then = cluster.pod("orders-0").await;
    assert_eq!(first.uid(), then.uid(), "a join needs no other pod");
    assert_eq!(restarts(&then), 0, "and no other container");
    cluster.show(&["get", "ljp,ljsrc,ljj,ljw,ljsnk"]);
    cluster.say("The pod is the one from before. Taken away again, the join's results go with it:");
    cluster.show(&["delete", "join", "spent"]);
    until("the join to be gone", async || (!cluster.snapshot("spent").contains("spent\":42")).then_some(()))
        .await;
}

/// Applies an invalid join.
async fn a_mistake_is_told(cluster: &Cluster) {
    cluster.say("A mistake is told where it was made, and changes nothing else:");
    cluster.apply(&SPENT.replace("SELECT", "SELEC"));
    until("the mistake to be told", async || {
        cluster.kubectl(&["get", "ljj", "spent"]).contains("InvalidQuery").then_some(())
    })
    .await;
    cluster.show(&["get", "ljp,ljj"]);
    cluster.show(&[
        "get",
        "ljj",
        "spent",
        "-o",
        "jsonpath={.status.conditions[?(@.type=='Accepted')].message}",
    ]);
    cluster.kubectl(&["delete", "join", "spent"]);
}

/// Adds a window while data flows, changes it, makes mistakes in it, and removes it.
async fn a_window_comes_and_goes(cluster: &Cluster, first: &Pod) {
    let told = async |what: &str| {
        until(&format!("the window with {what}"), async || {
            cluster.kubectl(&["get", "ljw", "visits"]).contains(what).then_some(())
        })
        .await;
    };
    let sent = async |what: &str| {
        until(&format!("a visit with {what}"), async || {
            let snapshot = cluster.snapshot("visits");
            (snapshot.contains(r#""customer":"c1""#) && snapshot.contains(what)).then_some(())
        })
        .await;
    };
    cluster.apply(&VISITS.replace("name: orders", "name: elsewhere"));
    told("PipelineNotFound").await;
    cluster.kubectl(&["delete", "window", "visits"]);

    cluster.apply(VISITS);
    cluster.wait_ready("window/visits").await;
    sent(r#""visits":1"#).await;
    sent(r#""final":false"#).await;
    let shorter = VISITS.replace("gap: 1h", "gap: 1s");
    cluster.apply(&shorter);
    cluster.wait_ready("window/visits").await;
    sent(r#""final":true"#).await;

    cluster.apply(&shorter.replace("SELECT", "SELEC"));
    told("InvalidQuery").await;
    cluster.apply(&shorter.replace("topic: orders", "topic: order"));
    told("RefNotFound").await;
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;
    cluster.apply(&shorter);
    cluster.wait_ready("window/visits").await;
    sent(r#""final":true"#).await;
    cluster.kubectl(&["delete", "window", "visits"]);
    until("the window to be gone", async || (!cluster.snapshot("visits").contains("results")).then_some(()))
        .await;
    let then = cluster.pod("orders-0").await;
    assert_eq!((first.uid(), restarts(&then)), (then.uid(), 0), "a window needs no other pod or container");
}

/// Deletes the pod, kills the worker, drains the node.
async fn the_data_outlives_pods(cluster: &Cluster, first: &Pod) {
    cluster.say("The pod is deleted, the worker killed, the node drained: the data is there, and goes on.");
    cluster.show(&["delete", "pod", "orders-0", "--wait=true"]);
    until("another pod", async || (cluster.pod("orders-0").await.uid() != first.uid()).then_some(())).await;
    cluster.wait_ready("pipeline/orders").await;
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;
    let before = restarts(&cluster.pod("orders-0").await);
    kill_worker();
    until("another container", async || {
        let pod = cluster.pod("orders-0").await;
        (restarts(&pod) > before).then_some(())
    })
    .await;
    cluster.wait_ready("pipeline/orders").await;
    cluster
        .reach(&post(r#"{"topic": "orders", "key": "o2", "payload": {"amount": 1, "customer_id": "c1"}}"#))
        .await;
    cluster.result("enriched", "o2", r#""customer":"Ada""#).await;
    let second = cluster.pod("orders-0").await;
    cluster.remove_shell();
    cluster.show(&["drain", "node", "--ignore-daemonsets", "--delete-emptydir-data"]);
    cluster.show(&["uncordon", "node"]);
    cluster.shell();
    until("another pod", async || (cluster.pod("orders-0").await.uid() != second.uid()).then_some(())).await;
    cluster.wait_ready("pipeline/orders").await;
    cluster.result("enriched", "o1", r#""customer":"Ada""#).await;
}

/// Applies a pipeline whose admin address needs a token and uses TLS.
async fn an_admin_address_is_closed(cluster: &Cluster) {
    // kubelet and the operator reach an admin address with a token and TLS.
    let Identity { cert, key } = Authority::new().sign(&["guarded.example"]);
    let literal = |name: &str, value: &str| format!("--from-literal={name}={value}");
    let values = [literal("token", "hunter2"), literal("tls.crt", &cert), literal("tls.key", &key)];
    cluster.kubectl(
        &[&["create", "secret", "generic", "door"], &values.each_ref().map(String::as_str)[..]].concat(),
    );
    cluster.apply(GUARDED);
    cluster.wait_ready("pipeline/guarded").await;
    cluster.kubectl(&["delete", "pipeline", "guarded"]);
}

/// Makes the volume larger.
async fn the_volume_grows(cluster: &Cluster) {
    let size = r#"{"spec": {"storage": {"size": "20Gi"}}}"#;
    cluster.kubectl(&["patch", "pipeline", "orders", "--type=merge", "-p", size]);
    until("the volume to grow", async || {
        let capacity =
            cluster.kubectl(&["get", "pvc", "data-orders-0", "-o", "jsonpath={.status.capacity.storage}"]);
        (capacity == "20Gi").then_some(())
    })
    .await;
}

/// Installs another image of the operator, which must not change the pipeline.
async fn an_upgrade_restarts_no_worker(cluster: &Cluster) {
    let before = cluster.pod("orders-0").await;
    cluster.helm_operator("second");
    cluster.node.kubectl(&[
        "-n",
        "litejoin",
        "rollout",
        "status",
        "deployment/litejoin-operator",
        "--timeout=60s",
    ]);
    cluster.apply(SPENT);
    cluster.wait_ready("join/spent").await;
    let after = cluster.pod("orders-0").await;
    assert_eq!(before.uid(), after.uid(), "an upgrade of the operator restarts no worker");
}

/// Columns of the Events of a re-shard.
pub(crate) const MOVING: &str = "custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message";

/// Columns of Events that are equal in each run.
const EVENT_COLUMNS: &str =
    "custom-columns=TYPE:.type,REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message";

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// Returns the transcript without parts that differ from run to run: ages, ids, epochs, times, and other drained pods.
fn stable(text: &str) -> String {
    let mut lines = Vec::new();
    for line in text.lines().filter(|line| !line.contains("/litejoin-operator-")) {
        let mut line = line.to_owned();
        for (field, value) in
            [("id", "\"0cjq25b6fyc1d.120.7\""), ("epoch", "120"), ("timestamp", "1795320604")]
        {
            let marker = format!("\"{field}\":");
            let mut done = 0;
            while let Some(at) = line[done..].find(&marker).map(|at| done + at + marker.len()) {
                let end = at + line[at..].find([',', '}']).unwrap_or(line.len() - at);
                line.replace_range(at..end, value);
                done = at;
            }
        }
        // An age ends the line of a table.
        if let Some((start, age)) = line.rsplit_once("   ")
            && age.chars().next().is_some_and(|c| c.is_ascii_digit())
            && age.ends_with(['s', 'm'])
        {
            line = format!("{start}   5s");
        }
        lines.push(line.trim_end().to_owned());
    }
    lines.join("\n") + "\n"
}

/// A cluster with LiteJoin installed, and a namespace under the restricted pod security standard.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    /// The transcript of commands and their output.
    text: RefCell<String>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let images = ["litejoin-operator:first", "litejoin-operator:second", "litejoin:first"];
        let cluster = Self::bare(&images).await;
        let node = &cluster.node;
        node.import(&image::of_busybox("localhost/shell:1", &["/bin/sh"], node.folder()));
        let crds = repository().join("charts/litejoin-crds");
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        for namespace in ["litejoin", NAMESPACE] {
            node.kubectl(&["create", "namespace", namespace]);
            node.kubectl(&["label", "namespace", namespace, restricted]);
        }
        node.helm(&["install", "litejoin-crds", &crds.display().to_string(), "-n", "litejoin"]);
        cluster.helm_operator("first");
        cluster
    }

    /// Starts a node without LiteJoin, which has only these images of it.
    pub(crate) async fn bare(images: &[&str]) -> Self {
        let node = Node::start().await;
        let programs = program().parent().expect("a program is in a folder").to_owned();
        let litestream = litestream().parent().expect("a program is in a folder").to_owned();
        for image in images {
            let package = if image.starts_with("litejoin-operator:") { "operator" } else { "worker" };
            let dockerfile = repository().join(package).join("Dockerfile");
            let (name, programs) = (format!("localhost/{image}"), [programs.as_path(), &litestream]);
            node.import(&image::of_dockerfile(&name, &dockerfile, &programs, node.folder()));
        }
        Self { node, text: RefCell::new(TITLE.to_owned()) }
    }

    /// Returns the address of the pipeline's Service, which outlives pods.
    pub(crate) async fn service(&self) -> String {
        let services: Api<Service> = Api::namespaced(Client::clone(&self.node.client), NAMESPACE);
        let service = until("the Service", async || services.get_opt("orders").await.ok()?).await;
        service.spec.and_then(|spec| spec.cluster_ip).expect("it has an address")
    }

    /// Adds a paragraph to the transcript.
    pub(crate) fn say(&self, paragraph: &str) {
        self.text.borrow_mut().push_str(&format!("\n{paragraph}\n"));
    }

    /// Runs kubectl in the namespace, and adds the command and its output to the transcript.
    pub(crate) fn show(&self, arguments: &[&str]) {
        self.show_as(arguments, arguments);
    }

    /// Runs kubectl as [`Self::show`] does, with another command text in the transcript.
    fn show_as(&self, written: &[&str], arguments: &[&str]) {
        self.show_printed(written, &self.kubectl(arguments));
    }

    /// Runs kubectl as [`Self::show`] does, and holds it to fail.
    pub(crate) fn show_refused(&self, arguments: &[&str]) {
        let kubectl = litejoin_tests::kubernetes::programs::program("kubectl");
        let all = [&["-n", NAMESPACE], arguments].concat();
        let done = Command::new(kubectl).env("KUBECONFIG", &self.node.kubeconfig).args(all).output();
        let done = done.expect("kubectl is there");
        assert!(!done.status.success(), "{arguments:?} was to be refused");
        self.show_printed(arguments, &String::from_utf8_lossy(&done.stderr));
    }

    fn show_printed(&self, written: &[&str], printed: &str) {
        let quoted = |word: &&str| match word.contains(|c: char| " \"{}[]?&".contains(c)) {
            true => format!("'{word}'"),
            false => (*word).to_owned(),
        };
        let written: Vec<String> = written.iter().map(quoted).collect();
        let entry = format!("\n```\n$ kubectl {}\n{}\n```\n", written.join(" "), printed.trim_end());
        self.text.borrow_mut().push_str(&entry);
    }

    /// Repeats a request from inside the cluster until a pod accepts it.
    async fn reach(&self, command: &[String]) {
        let command = words(&command[3..]);
        until("a message to be accepted", async || {
            self.in_shell(&command).contains("\"accepted\":1").then_some(())
        })
        .await;
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

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.node.kubectl(&[&["-n", NAMESPACE], arguments].concat())
    }

    pub(crate) fn apply(&self, manifest: &str) {
        let path = self.node.folder().join("applied.yaml");
        std::fs::write(&path, manifest).expect("the folder is ours");
        self.kubectl(&["apply", "-f", &path.display().to_string()]);
    }

    pub(crate) async fn wait_ready(&self, what: &str) {
        until(&format!("{what} to be ready"), async || {
            let found: Value = serde_json::from_str(&self.kubectl(&["get", what, "-o", "json"])).ok()?;
            let current = found["status"]["observedGeneration"] == found["metadata"]["generation"];
            let conditions = found["status"]["conditions"].as_array()?;
            let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            (current && ready).then_some(())
        })
        .await;
    }

    pub(crate) async fn pod(&self, name: &str) -> Pod {
        let pods: Api<Pod> = Api::namespaced(Client::clone(&self.node.client), NAMESPACE);
        until("the pod", async || pods.get_opt(name).await.ok()?).await
    }

    /// Starts a pod to send requests from: names of Services resolve only inside the cluster.
    fn shell(&self) {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: shell}\nspec:\n  terminationGracePeriodSeconds: 1\n\
             \x20 securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}\n\
             \x20 containers:\n  - name: shell\n    image: localhost/shell:1\n    command: [/bin/sleep, \"1000000\"]\n\
             \x20   securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}\n";
        self.apply(pod);
        self.kubectl(&["wait", "pod/shell", "--for=condition=Ready", "--timeout=60s"]);
    }

    fn remove_shell(&self) {
        self.kubectl(&["delete", "pod", "shell", "--wait=true"]);
    }

    fn snapshot(&self, join: &str) -> String {
        let url = format!("http://orders.{NAMESPACE}.svc.cluster.local:9100/snapshot?join={join}");
        self.in_shell(&["wget", "-q", "-O-", &url])
    }

    /// Waits until a client of the SSE Service gets a result of this key that contains a text.
    pub(crate) async fn result(&self, join: &str, key: &str, text: &str) {
        let url =
            format!("http://orders.{NAMESPACE}.svc.cluster.local:9100/subscribe?join={join}&replay=true");
        let listen = format!("timeout 2 wget -q -O- '{url}'");
        until(&format!("{join} {key} with {text}"), async || {
            let received = self.in_shell(&["sh", "-c", &listen]);
            let key = format!("\"key\":\"{key}\"");
            received.lines().any(|line| line.contains(&key) && line.contains(text)).then_some(())
        })
        .await;
    }

    pub(crate) fn in_shell(&self, command: &[&str]) -> String {
        let exec = [&["-n", NAMESPACE, "exec", "shell", "--"], command].concat();
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
            show(&["get", "pods,pvc,ljp,ljj,ljw,ljsnk", "-A", "-o", "wide"]);
            show(&["describe", "pods,ljp", "-n", NAMESPACE]);
            show(&["logs", "-n", "litejoin", "deployment/litejoin-operator", "--tail=40"]);
            show(&["logs", "-n", NAMESPACE, "orders-0", "--tail=40"]);
            eprintln!("{}", self.node.logs());
        }
    }
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.clone().unwrap_or_default();
    status.container_statuses.unwrap_or_default().iter().map(|container| container.restart_count).sum()
}

/// Kills the process of the worker, which the test's PID namespace contains.
pub(crate) fn kill_worker() {
    let killed = Command::new("pkill").args(["-KILL", "-x", "litejoin"]).status();
    assert!(killed.expect("pkill is there").success(), "the worker runs in our PID namespace");
}
