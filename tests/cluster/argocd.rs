//! The example of Argo CD on a real node, with the real Argo CD: from one commit to a pipeline, through good and bad edits
//! in Git and edits by hand, to its removal. All the while a client posts orders, and none that was acknowledged is lost.

mod customer;

use std::path::PathBuf;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use litejoin_tests::argocd::ArgoCd;
use litejoin_tests::argocd::git::GitRepository;
use litejoin_tests::kubernetes::node;
use litejoin_tests::programs::repository;
use litejoin_tests::wait::{TIMEOUT, until, until_within};
use serde_json::{Value, json};

use self::customer::Customer;
use crate::install::{Cluster, NAMESPACE, SPENT, VISITS, kill_worker, restarts};

/// The Applications of the example.
const ROOT: &str = "root";
const LITEJOIN: &str = "litejoin";
const ORDERS: &str = "orders";
const ALL: [&str; 3] = [ROOT, LITEJOIN, ORDERS];

/// The manifest of the pipeline in Git, that of its later join and window, and one in a later wave.
const PIPELINE: &str = "examples/orders/pipeline.yaml";
const MORE: &str = "examples/orders/more.yaml";
const AFTER: &str = "examples/orders/after.yaml";

/// An object in the wave after the pipeline's.
const NEXT_WAVE: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: after
  annotations: {argocd.argoproj.io/sync-wave: \"1\"}
data: {reached: \"true\"}
";

/// Hard refreshes in a row, after each of which everything is still Synced.
const REFRESHES: usize = 20;

/// How the Applications of the example compare and apply, and the other way to do so.
const COMPARE: (&str, &str) = ("ServerSideDiff=true", "ServerSideDiff=false");
const APPLY: (&str, &str) = ("ServerSideApply=true", "ServerSideApply=false");

/// A mistake in Git, and what Argo CD shows of it.
struct BadEdit {
    what: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    tells: &'static str,
    /// How it shows the Application.
    sync: &'static str,
    health: &'static str,
}

const BAD_EDITS: [BadEdit; 4] = [
    BadEdit {
        what: "an invalid query in a Join",
        file: MORE,
        from: "query: SELECT payload",
        to: "query: SELEC payload",
        tells: r#"spec.query: near "SELEC": syntax error"#,
        sync: "Synced",
        health: "Degraded",
    },
    BadEdit {
        what: "a sink that is not there",
        file: MORE,
        from: "sinks: [live]",
        to: "sinks: [life]",
        tells: r#"spec.sinks[0]: no sink is called "life"; did you mean "live"?"#,
        sync: "Synced",
        health: "Progressing",
    },
    BadEdit {
        what: "a bare edit of the number of shards",
        file: PIPELINE,
        from: "shardCount: 8",
        to: "shardCount: 16",
        tells: "storage.shardCount cannot simply be edited: the data must be moved. Add storage.reshard: ",
        sync: "Unknown",
        health: "Healthy",
    },
    BadEdit {
        what: "a misspelt field",
        file: MORE,
        from: "  sinks:",
        to: "  sink:",
        tells: ".spec.sink: field not declared in schema",
        sync: "Unknown",
        health: "Healthy",
    },
];

// The second thread serves clients while kubectl blocks the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn argo_cd_runs_the_example() {
    if !node::inside("argocd::argo_cd_runs_the_example") {
        return;
    }
    let site = GitSite::start().await;
    let customer = site.comes_from_one_commit().await;
    site.a_join_and_a_window_come().await;
    site.nothing_drifts().await;
    for edit in &BAD_EDITS {
        site.is_told_and_healed(edit, &customer).await;
    }
    site.edits_by_hand_are_taken_back().await;
    site.a_passing_fault_passes(&customer).await;
    site.a_suspended_pipeline_holds_up_no_wave(&customer).await;
    site.the_data_goes_to_other_shards_by_one_commit(&customer).await;
    site.what_git_drops_goes().await;
    let count = customer.has_lost_nothing().await;
    eprintln!("all of {count} acknowledged orders came out again");
    site.the_pipeline_goes_and_its_volume_stays().await;
}

/// A node with Argo CD, and a repository that it follows.
struct GitSite {
    // Argo CD ends before the cluster that it works on.
    argocd: ArgoCd,
    cluster: Cluster,
    git: GitRepository,
}

impl GitSite {
    /// Starts a node that has nothing of LiteJoin but its images, and an Argo CD that knows our kinds.
    async fn start() -> Self {
        let cluster = Cluster::bare(&["litejoin-operator:0.1.0", "litejoin:0.1.0"]).await;
        let settings = ["charts/argocd/argocd-cm.yaml", "examples/argocd/argocd-cm.yaml"];
        let settings: Vec<PathBuf> = settings.iter().map(|file| repository().join(file)).collect();
        let settings: Vec<_> = settings.iter().map(PathBuf::as_path).collect();
        let argocd = ArgoCd::start(&cluster.node, &settings).await;
        let git = GitRepository::new(cluster.node.folder().join("git"));
        for folder in ["charts", "examples/argocd", "examples/orders"] {
            git.copy(repository(), folder);
        }
        // Users put these two addresses in.
        for application in ["root.yaml", "apps/litejoin.yaml", "apps/orders.yaml"] {
            let file = format!("examples/argocd/{application}");
            let text = git.read(&file).replace("https://git.example.com/litejoin.git", &git.url());
            git.write(&file, &text.replace("registry.example.com/", "localhost/"));
        }
        Self { argocd, cluster, git }
    }

    /// Applies the root alone; returns a customer, whose first order was taken as soon as Argo CD said Healthy.
    async fn comes_from_one_commit(&self) -> Customer {
        let commit = self.git.commit("LiteJoin and a pipeline");
        let root = self.cluster.node.folder().join("git/examples/argocd/root.yaml");
        self.cluster.node.kubectl(&["apply", "-n", "argocd", "-f", &root.display().to_string()]);
        until_within(2 * TIMEOUT, "orders to be Healthy", async || {
            let orders = self.argocd.application(ORDERS).await?;
            (orders["status"]["health"]["status"] == "Healthy").then_some(())
        })
        .await;
        let first = self.takes_an_order("first").await;
        for application in ALL {
            self.argocd.synced(application, &commit).await;
        }
        let seen = self.argocd.since(0, ORDERS).await;
        assert!(seen.iter().any(|state| state.health == "Progressing"), "it was not there at once: {seen:?}");
        assert!(!seen.iter().any(|state| state.health == "Degraded"), "a start is no fault: {seen:?}");
        self.nothing_of_argo_cd_is_copied().await;
        Customer::start(self.cluster.service().await, first).await
    }

    /// Posts an order to the pod, which must take it now; returns its key.
    async fn takes_an_order(&self, key: &str) -> String {
        let pod = self.cluster.pod("orders-0").await;
        let address = pod.status.and_then(|status| status.pod_ip).expect("a pod that serves has an address");
        customer::order(&format!("{address}:8080"), key).await;
        key.to_owned()
    }

    /// What the operator and Kubernetes made has no label or annotation by which Argo CD would take it for its own, or
    /// remove it.
    async fn nothing_of_argo_cd_is_copied(&self) {
        let kinds = "statefulsets,controllerrevisions,pods,services,endpointslices,configmaps,\
                     persistentvolumeclaims,poddisruptionbudgets,networkpolicies,serviceaccounts";
        let listed: Value =
            serde_json::from_str(&self.cluster.kubectl(&["get", kinds, "-o", "json"])).expect("it is JSON");
        let objects = listed["items"].as_array().expect("a list");
        let is_there = |kind: &str| objects.iter().any(|object| object["kind"] == kind);
        assert!(is_there("StatefulSet") && is_there("PersistentVolumeClaim"), "{listed:#}");
        for object in objects {
            let metadata = &object["metadata"];
            let marks = json!([metadata["labels"], metadata["annotations"]]).to_string();
            assert!(!marks.contains("argocd") && !marks.contains("app.kubernetes.io/instance"), "{object:#}");
        }
    }

    /// Lets Argo CD look at Git, and waits until it has brought everything there.
    async fn follows(&self, commit: &str) {
        self.argocd.refresh(&ALL, "normal").await;
        for application in ALL {
            self.argocd.synced(application, commit).await;
        }
    }

    /// Returns the UID of the pod and the restarts of its container.
    async fn pod(&self) -> (Option<String>, i32) {
        let pod = self.cluster.pod("orders-0").await;
        (pod.uid(), restarts(&pod))
    }

    /// Waits until the results of a join, or the lack of them, are as wanted.
    async fn results(&self, join: &str, what: &str, are_so: impl Fn(&str) -> bool) {
        let url = format!("http://{}:9100/snapshot?join={join}", self.cluster.service().await);
        until(&format!("{join} {what}"), async || {
            let (_, text) = litejoin_tests::worker::try_get(&url).await.ok()?;
            are_so(&text).then_some(())
        })
        .await;
    }

    async fn a_join_and_a_window_come(&self) {
        let (moment, pod) = (self.argocd.moment(), self.pod().await);
        self.git.write(MORE, &format!("{SPENT}---\n{VISITS}"));
        self.follows(&self.git.commit("What customers spend, and when they come")).await;
        self.results("spent", "to be there", |text| text.contains(r#""spent":"#)).await;
        self.results("visits", "to be there", |text| text.contains(r#""visits":"#)).await;
        assert_eq!(self.pod().await, pod, "a join and a window need no other pod or container");
        self.never_degraded(moment).await;
    }

    /// Whatever way of applying and comparing Applications choose, each is Synced once and stays so.
    async fn nothing_drifts(&self) {
        let files = ["examples/argocd/apps/litejoin.yaml", "examples/argocd/apps/orders.yaml"];
        let pod = self.pod().await;
        self.stays_synced("as in the example").await;
        for file in files {
            self.git.edit(file, COMPARE.0, COMPARE.1);
        }
        self.follows(&self.git.commit("Compare on the client's side")).await;
        self.stays_synced("server-side apply alone").await;
        for file in files {
            self.git.edit(file, APPLY.0, APPLY.1);
        }
        self.follows(&self.git.commit("Apply on the client's side")).await;
        self.stays_synced("client-side").await;
        for file in files {
            for (example, other) in [COMPARE, APPLY] {
                self.git.edit(file, other, example);
            }
        }
        self.follows(&self.git.commit("As in the example again")).await;
        assert_eq!(self.pod().await, pod, "how it is applied is nothing to the pod");
    }

    async fn stays_synced(&self, how: &str) {
        let (moment, applications) = (self.argocd.moment(), [LITEJOIN, ORDERS]);
        for _ in 0..REFRESHES {
            self.argocd.refresh(&applications, "hard").await;
        }
        for application in applications {
            let seen = self.argocd.since(moment, application).await;
            let looks = seen.iter().filter(|state| state.sync == "Synced").count();
            assert!(looks >= REFRESHES, "{how}: {application} was looked at {looks} times");
            assert_eq!(looks, seen.len(), "{how}: {application} was not Synced: {seen:#?}");
        }
    }

    /// Makes a mistake in Git, and reverts it.
    async fn is_told_and_healed(&self, edit: &BadEdit, customer: &Customer) {
        let pod = self.pod().await;
        self.git.edit(edit.file, edit.from, edit.to);
        self.git.commit(edit.what);
        self.argocd.refresh(&[ORDERS], "normal").await;
        self.argocd.tells(ORDERS, edit.tells).await;
        let shown = format!("orders to be {} and {} by {}", edit.sync, edit.health, edit.what);
        self.argocd
            .wait_for(ORDERS, &shown, |orders| {
                let status = &orders["status"];
                status["sync"]["status"] == edit.sync && status["health"]["status"] == edit.health
            })
            .await;
        customer.goes_on().await;
        self.results("enriched", "to go on", |text| text.contains(r#""customer":"Ada""#)).await;
        self.follows(&self.git.revert()).await;
        customer.goes_on().await;
        assert_eq!(self.pod().await, pod, "{} leaves the pod alone", edit.what);
    }

    /// Edits the Pipeline, which Argo CD puts right, and its StatefulSet, which the operator does.
    async fn edits_by_hand_are_taken_back(&self) {
        let (moment, pod) = (self.argocd.moment(), self.pod().await);
        let query = "jsonpath={.spec.joins[0].query}";
        let before = self.cluster.kubectl(&["get", "pipeline", "orders", "-o", query]);
        let edit = r#"[{"op": "replace", "path": "/spec/joins/0/query", "value": "SELECT key AS order_id FROM orders"}]"#;
        self.cluster.kubectl(&["patch", "pipeline", "orders", "--type=json", "-p", edit]);
        until("the query of Git", async || {
            (self.cluster.kubectl(&["get", "pipeline", "orders", "-o", query]) == before).then_some(())
        })
        .await;

        let sets: Api<StatefulSet> = Api::namespaced(Client::clone(&self.cluster.node.client), NAMESPACE);
        let retention = async || {
            let spec = sets.get("orders").await.ok()?.spec?;
            spec.persistent_volume_claim_retention_policy?.when_deleted
        };
        let edit = r#"{"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}}"#;
        self.cluster.kubectl(&["patch", "statefulset", "orders", "--type=merge", "-p", edit]);
        until("the StatefulSet to keep the volume", async || (retention().await? == "Retain").then_some(()))
            .await;
        for application in ALL {
            self.argocd.wait_for(application, "Synced and Healthy", is_settled).await;
        }
        assert_eq!(self.pod().await, pod, "neither edit needs another pod");
        self.never_degraded(moment).await;
    }

    /// Kills the worker, and deletes its pod: both are Progressing at most.
    async fn a_passing_fault_passes(&self, customer: &Customer) {
        let moment = self.argocd.moment();
        let (uid, before) = self.pod().await;
        kill_worker();
        until("another container", async || (self.pod().await.1 > before).then_some(())).await;
        self.argocd.wait_for(ORDERS, "Synced and Healthy", is_settled).await;
        customer.goes_on().await;
        self.cluster.kubectl(&["delete", "pod", "orders-0"]);
        until("another pod", async || (self.pod().await.0 != uid).then_some(())).await;
        customer.goes_on().await;
        self.argocd.wait_for(ORDERS, "Synced and Healthy", is_settled).await;
        self.never_degraded(moment).await;
    }

    /// Suspends the pipeline by a commit with a wave behind it, and resumes it.
    async fn a_suspended_pipeline_holds_up_no_wave(&self, customer: &Customer) {
        let moment = self.argocd.moment();
        self.git.edit(PIPELINE, "spec:\n", "spec:\n  suspend: true\n");
        self.git.write(AFTER, NEXT_WAVE);
        self.follows(&self.git.commit("Rest, and go on to the next wave")).await;
        let maps: Api<ConfigMap> = Api::namespaced(Client::clone(&self.cluster.node.client), NAMESPACE);
        maps.get("after").await.expect("the next wave is reached");
        let health = self.argocd.health(ORDERS, "Pipeline", "orders").await;
        assert_eq!(health, ("Healthy".to_owned(), "Suspended by spec".to_owned()));
        let pods: Api<Pod> = Api::namespaced(Client::clone(&self.cluster.node.client), NAMESPACE);
        until("no pod", async || pods.get_opt("orders-0").await.ok()?.is_none().then_some(())).await;

        self.follows(&self.git.revert()).await;
        customer.note(self.takes_an_order("resumed").await);
        assert!(maps.get_opt("after").await.expect("it can be asked").is_none(), "it is pruned");
        customer.goes_on().await;
        self.never_degraded(moment).await;
    }

    /// Consents to another number of shards by a commit. The next one is taken back before anything could be copied.
    async fn the_data_goes_to_other_shards_by_one_commit(&self, customer: &Customer) {
        let moment = self.argocd.moment();
        let consent = |from: u32, to: u32| {
            format!("shardCount: {to}, reshard: {{fromShardCount: {from}, toShardCount: {to}}}")
        };
        self.git.edit(PIPELINE, "shardCount: 8", &consent(8, 16));
        self.follows(&self.git.commit("More shards")).await;
        assert_eq!(self.shards(), "16");
        customer.goes_on().await;
        let seen = self.argocd.since(moment, ORDERS).await;
        assert!(seen.iter().any(|state| state.health == "Progressing"), "it is seen to move: {seen:#?}");
        self.never_degraded(moment).await;

        let moment = self.argocd.moment();
        self.cluster.kubectl(&["create", "quota", "no-jobs", "--hard=count/jobs.batch=0"]);
        self.git.edit(PIPELINE, &consent(8, 16), &consent(16, 4));
        self.git.commit("Fewer shards");
        self.argocd.refresh(&[ORDERS], "normal").await;
        let pods: Api<Pod> = Api::namespaced(Client::clone(&self.cluster.node.client), NAMESPACE);
        until("the pipeline to rest", async || pods.get_opt("orders-0").await.ok()?.is_none().then_some(()))
            .await;
        self.follows(&self.git.revert()).await;
        self.cluster.kubectl(&["delete", "quota", "no-jobs"]);
        assert_eq!(self.shards(), "16", "the revert has cancelled it");
        customer.goes_on().await;
        self.never_degraded(moment).await;
    }

    /// The shards that the data has.
    fn shards(&self) -> String {
        self.cluster.kubectl(&["get", "pipeline", "orders", "-o", "jsonpath={.status.layout.shardCount}"])
    }

    async fn what_git_drops_goes(&self) {
        self.git.remove(MORE);
        self.follows(&self.git.commit("No more of this")).await;
        assert_eq!(self.cluster.kubectl(&["get", "joins,windows", "-o", "name"]).trim(), "");
        self.results("spent", "to be gone", |text| !text.contains(r#""spent":"#)).await;
        self.results("visits", "to be gone", |text| !text.contains(r#""visits":"#)).await;
    }

    /// Removes the Application of the pipeline from Git.
    async fn the_pipeline_goes_and_its_volume_stays(&self) {
        self.git.remove("examples/argocd/apps/orders.yaml");
        let commit = self.git.commit("The shop is closed");
        self.argocd.refresh(&[ROOT], "normal").await;
        until_within(2 * TIMEOUT, "the Application to go", async || {
            self.argocd.application(ORDERS).await.is_none().then_some(())
        })
        .await;
        self.argocd.synced(ROOT, &commit).await;
        until("the objects to go", async || {
            let left =
                self.cluster.kubectl(&["get", "pipelines,sinks,statefulsets,pods,services", "-o", "name"]);
            left.trim().is_empty().then_some(())
        })
        .await;
        let claims: Api<PersistentVolumeClaim> =
            Api::namespaced(Client::clone(&self.cluster.node.client), NAMESPACE);
        let claims = claims.list(&ListParams::default()).await.expect("claims can be listed");
        assert_eq!(claims.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["data-orders-0"]);
    }

    async fn never_degraded(&self, moment: usize) {
        let seen = self.argocd.since(moment, ORDERS).await;
        let degraded: Vec<_> = seen
            .iter()
            .filter(|state| {
                state.health == "Degraded" || state.resources.values().any(|health| health == "Degraded")
            })
            .collect();
        assert!(degraded.is_empty(), "what passes by itself is not Degraded: {degraded:#?}");
    }
}

/// Whether an Application is Synced and Healthy.
fn is_settled(application: &Value) -> bool {
    let status = &application["status"];
    status["sync"]["status"] == "Synced" && status["health"]["status"] == "Healthy"
}
