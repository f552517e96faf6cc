//! A claim that is deleted takes the data along: nothing begins empty in its place before somebody accepts the loss.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::wait::until;
use serde_json::json;

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

#[tokio::test]
async fn a_volume_that_was_replaced_is_not_begun_on() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    worker.ingest().send(&[message("orders", "o1", json!({ "customer_id": "c1" }))]).await;
    let lost = claim_uid(&site).await;
    until("the claim to be noted", async || {
        let pipeline = site.ours(Kind::Pipeline).get("orders").await.ok()?;
        (pipeline.data["status"]["layout"]["volumeClaimUid"] == lost.as_str()).then_some(())
    })
    .await;
    until("the worker to be told", async || {
        site.mount("orders").await;
        let text = std::fs::read_to_string(site.folder.path().join("pipeline.yaml")).ok()?;
        text.contains(&format!("litejoin.io/data-on-claim: {lost}")).then_some(())
    })
    .await;
    worker.stop().await;

    // The data stays away, and so does its claim.
    delete_claim(&site).await;
    let away = site.folder.path().join("away");
    std::fs::rename(site.folder.data_dir(), &away).expect("it can be moved");
    until("another claim", async || (claim_uid(&site).await != lost).then_some(())).await;
    site.bind_claim("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "StorageReady", "False", "DataLost").await;
    site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "DataLost").await;
    let pipeline = site.ours(Kind::Pipeline).get("orders").await.expect("it is there");
    let said = condition_of(&pipeline, "Ready").expect("it has one")["message"].to_string();
    assert!(said.contains(&format!("write spec.storage.acceptLoss: {lost} to begin empty")), "{said}");
    site.mount("orders").await;
    let ended = site.folder.run(["--leave-out-invalid"]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let remedy = format!("write spec.storage.acceptLoss: {lost} to begin empty");
    assert!(ended.stderr.contains(&remedy), "{}", ended.stderr);

    // The volume of before under another claim is no loss.
    std::fs::remove_dir_all(site.folder.data_dir()).expect("the worker has made it");
    std::fs::rename(&away, site.folder.data_dir()).expect("it can be moved back");
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let (_, results) = worker.snapshot("live", "enriched", 0).await;
    assert_eq!(results.rows.len(), 1);
    let lost = claim_uid(&site).await;
    worker.stop().await;

    // This time the loss is accepted.
    delete_claim(&site).await;
    std::fs::remove_dir_all(site.folder.data_dir()).expect("it is there");
    until("another claim", async || (claim_uid(&site).await != lost).then_some(())).await;
    site.wait_for(Kind::Pipeline, "orders", "StorageReady", "False", "DataLost").await;
    let accepted = json!({ "spec": { "storage": { "acceptLoss": lost } } });
    let pipelines = site.ours(Kind::Pipeline);
    let patched = pipelines.patch("orders", &PatchParams::default(), &Patch::Merge(&accepted)).await;
    patched.expect("a Pipeline can be changed");
    until("the worker to be told", async || {
        site.mount("orders").await;
        let text = std::fs::read_to_string(site.folder.path().join("pipeline.yaml")).ok()?;
        (!text.contains("data-on-claim")).then_some(())
    })
    .await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    worker.stop().await;
    operator.stop().await;
}

/// The UID of the claim; empty while there is none.
async fn claim_uid(site: &ControllerSite) -> String {
    let claims: Api<PersistentVolumeClaim> = site.api();
    let claim = claims.get_opt("data-orders-0").await.expect("claims can be read");
    claim.and_then(|claim| claim.uid()).unwrap_or_default()
}

/// Deletes pod and claim, as somebody does who thinks that the data is elsewhere.
async fn delete_claim(site: &ControllerSite) {
    let (claims, pods): (Api<PersistentVolumeClaim>, Api<Pod>) = (site.api(), site.api());
    let free = json!({ "metadata": { "finalizers": null } });
    let freed = claims.patch("data-orders-0", &PatchParams::default(), &Patch::Merge(&free)).await;
    freed.expect("a claim can be changed");
    claims.delete("data-orders-0", &DeleteParams::default()).await.expect("it is there");
    pods.delete("orders-0", &DeleteParams::default().grace_period(0)).await.expect("it is there");
}
