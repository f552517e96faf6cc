//! Objects of other owners are not changed, even if their names are those that the operator would use; what others have
//! changed in ours is put back; and no other tool takes our objects for its own by what it wrote on a document.

use std::process::Command;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ServiceAccount};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::programs::program;
use litejoin_tests::programs::run;
use litejoin_tests::wait::until;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

async fn make<K>(site: &ControllerSite, object: Value) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + DeserializeOwned,
{
    let api: Api<K> = site.api();
    let object: K = serde_json::from_value(object).expect("it is one");
    api.create(&PostParams::default(), &object).await.expect("it can be made");
    api
}

#[tokio::test]
async fn a_claim_of_somebody_elses_database_is_not_grown() {
    let site = ControllerSite::new().await;
    let labels = json!({"app": "database"});
    let set = json!({"metadata": {"name": "orders"}, "spec": {
        "replicas": 0, "serviceName": "x", "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "x", "image": "x"}]}},
    }});
    make::<StatefulSet>(&site, set).await;
    let claim = json!({"metadata": {"name": "data-orders-0"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    let claims = make::<PersistentVolumeClaim>(&site, claim).await;
    site.bind_claim("orders").await;
    let before = claims.get("data-orders-0").await.expect("it is there").resource_version();

    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "NameTaken").await;
    site.wait_for(Kind::Pipeline, "orders", "StorageReady", "False", "Pending").await;
    assert_eq!(claims.get("data-orders-0").await.expect("it is there").resource_version(), before);
    operator.stop().await;
}

#[tokio::test]
async fn an_account_of_ones_own_may_have_the_name_of_the_pipeline() {
    let site = ControllerSite::new().await;
    let accounts = make::<ServiceAccount>(&site, json!({"metadata": {"name": "orders"}})).await;
    let operator = site.operator();
    let named = "spec:\n  podTemplate: {serviceAccountName: orders}\n";
    site.apply(&orders(&Ports::free()).replacen("spec:\n", named, 1)).await;
    let sets: Api<StatefulSet> = site.api();
    until("the StatefulSet", async || sets.get_opt("orders").await.ok()?).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let account = accounts.get("orders").await.expect("it is there");
    assert!(account.owner_references().is_empty(), "{account:?}");
    worker.stop().await;
    operator.stop().await;
}

#[tokio::test]
async fn what_a_hand_has_changed_is_put_back() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    let sets: Api<StatefulSet> = site.api();
    until("the StatefulSet", async || sets.get_opt("orders").await.ok()?).await;
    site.bind_claim("orders").await;
    let made = async || sets.get("orders").await.expect("it is there").spec.expect("it has one").template;
    let before = made().await;

    let worker = json!({
        "name": "worker",
        "env": [{ "name": "MALLOC_CONF", "value": "prof:true" }],
        "resources": { "limits": { "memory": "64Mi" } },
    });
    let by_hand = json!({
        "metadata": { "labels": { "team": "shop" }, "annotations": { "note": "by hand" } },
        "spec": { "template": { "spec": { "containers": [worker] } } },
    });
    let patched = sets.patch("orders", &PatchParams::default(), &Patch::Strategic(&by_hand)).await;
    let generation = patched.expect("it can be changed").metadata.generation;
    until("the template of before", async || {
        let set = sets.get("orders").await.ok()?;
        (set.metadata.generation > generation && set.spec?.template == before).then_some(())
    })
    .await;
    let metadata = sets.get("orders").await.expect("it is there").metadata;
    assert_eq!(metadata.labels.expect("it has labels")["team"], "shop");
    assert_eq!(metadata.annotations.expect("it has annotations")["note"], "by hand");

    // A second pod goes again, and its claim is named.
    let second: Api<PersistentVolumeClaim> = site.api();
    let by_hand = json!({ "spec": { "replicas": 2 } });
    sets.patch("orders", &PatchParams::default(), &Patch::Merge(&by_hand)).await.expect("it can be changed");
    until("one replica", async || (sets.get("orders").await.ok()?.spec?.replicas == Some(1)).then_some(()))
        .await;
    // The StatefulSet's controller may not have seen it.
    let claim = second.get("data-orders-0").await.expect("it is there");
    let left = json!({
        "metadata": { "name": "data-orders-1", "labels": claim.metadata.labels },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    });
    let left = serde_json::from_value(left).expect("it is a claim");
    let _ = second.create(&PostParams::default(), &left).await;
    until("the claim to be named", async || {
        let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
        let said = condition_of(&pipeline, "StorageReady")?["message"].to_string();
        let command = format!("kubectl -n {} delete pvc data-orders-1", site.namespace);
        said.contains(&command).then_some(())
    })
    .await;
    operator.stop().await;
}

/// What tools write on the documents that they apply, and find by it what is theirs to remove.
const MARKS: &str = "\
metadata:
  labels: {app.kubernetes.io/instance: marked, kustomize.toolkit.fluxcd.io/name: marked, team: marked}
  annotations:
    argocd.argoproj.io/tracking-id: marked:litejoin.io/Pipeline:shop/orders
    argocd.argoproj.io/sync-options: Prune=marked
  name:";

#[tokio::test]
async fn labels_and_annotations_of_documents_are_not_copied() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let surrounded = "spec:\n  networkPolicy: {enabled: true}\n  podMonitor: {enabled: true}\n";
    let marked = orders(&Ports::free()).replacen("spec:\n", surrounded, 1);
    let marked = marked.replace("metadata: {name: orders}", &format!("{MARKS} orders"));
    let marked = marked.replace("metadata: {name: console}", &format!("{MARKS} console"));
    assert_eq!(marked.matches("Prune=marked").count(), 2, "{marked}");
    site.apply(&marked).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Sink, "console", "Ready", "True", "Ready").await;

    let kinds = [
        "statefulsets",
        "controllerrevisions",
        "pods",
        "persistentvolumeclaims",
        "services",
        "configmaps",
        "networkpolicies",
        "podmonitors",
        "events",
    ];
    let kubeconfig = site.server.kubeconfig(&format!("{}-kubectl", site.namespace), &site.server.url());
    for kind in kinds {
        let mut kubectl = Command::new(program("kubectl"));
        kubectl.env("KUBECONFIG", &kubeconfig).args(["-n", &site.namespace, "get", kind, "-o", "json"]);
        let listed: Value = serde_json::from_str(&run(&mut kubectl)).expect("kubectl prints JSON");
        let objects = listed["items"].as_array().expect("a list");
        assert!(!objects.is_empty(), "there are {kind}");
        for object in objects {
            assert!(!object.to_string().contains("marked"), "{object:#}");
        }
    }
    worker.stop().await;
    operator.stop().await;
}
