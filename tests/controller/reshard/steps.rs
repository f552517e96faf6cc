//! A change of `shardCount` from consent to its end, and what holds it back.

use super::*;

#[tokio::test]
async fn data_is_moved_step_by_step() {
    let shards = Shards::start(&json!({})).await;
    let site = &shards.site;
    shards.consent(2, 4).await;
    shards.phase("Copying").await;
    let pods: Api<Pod> = site.api();
    assert_eq!((shards.replicas().await, pods.get_opt("orders-0").await.unwrap().is_none()), (0, true));
    let config = shards.config().await;
    assert_eq!(
        (&config["shardCount"], &config["reshard"]),
        (&json!(2), &Value::Null),
        "the old number counts"
    );
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "Resharding").await;
    site.wait_for(Kind::Pipeline, "orders", "Reconciling", "True", "Resharding").await;

    let pod = shards.run_job("Copying", 50).await;
    let services: Api<Service> = site.api();
    let selector = services.get("orders").await.expect("it is there").spec.expect("it has one").selector;
    for (label, value) in selector.expect("it selects") {
        assert_eq!(pod.labels().get(&label), Some(&value), "clients are led to the Job");
    }
    let status = shards.status_with("numbers", |status| status["progress"] == 25).await;
    assert_eq!(
        (&status["rows"], &status["rowsTotal"], &status["remainingSeconds"]),
        (&json!(50), &json!(200), &json!(7))
    );
    assert_eq!(
        status["nextStep"],
        "the Job orders-reshard copies the data to 4 shards; to cancel, put shardCount: 2 back"
    );
    let refused = shards.change(
        json!({ "storage": { "shardCount": 8, "reshard": { "fromShardCount": 2, "toShardCount": 8 } } }),
    );
    let refused = refused.await.expect_err("no other number while a change is under way");
    assert!(refused.contains("while a re-shard runs, wait for its end"), "{refused}");
    let removed = shards.change(json!({ "storage": null })).await.expect_err("that is another number, too");
    assert!(removed.contains("storage.shardCount cannot simply be edited"), "{removed}");

    shards.run_job("Verifying", 100).await;
    shards.phase("Verifying").await;
    shards.end_job(0, "").await;
    let status = shards.phase("Switching").await;
    assert!(status["verifiedAt"].is_string() && status["progress"].is_null(), "{status}");
    until("the worker to be wanted", async || (shards.replicas().await == 1).then_some(())).await;
    let config = shards.config().await;
    assert_eq!((&config["shardCount"], &config["reshard"]["fromShardCount"]), (&json!(4), &json!(2)));
    shards.no_job().await;
    shards.run_worker().await;
    shards.phase("Done").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Pipeline, "orders", "Resharding", "False", "Done").await;
    let status = shards.pipeline().await.data["status"].clone();
    assert_eq!((&status["layout"]["shardCount"], &status["reshard"]["job"]), (&json!(4), &Value::Null));
    assert_eq!(status["history"][0]["message"], "from 2 to 4 shards");

    // What is left of the consent does nothing, and costs no look at Jobs.
    site.proxy.reset(None);
    let (reconciled, before) =
        (reconciles(&shards.operator).await, pods.get("orders-0").await.unwrap().uid());
    shards.change(json!({ "storage": { "reshard": null } })).await.expect("consent may go");
    until("a look at it", async || (reconciles(&shards.operator).await > reconciled + 1).then_some(())).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    assert_eq!(pods.get("orders-0").await.unwrap().uid(), before, "it makes no other pod");
    let calls = site.proxy.calls();
    assert!(
        !calls.iter().any(|call| call.path.contains("/jobs") || call.path.contains("job-name")),
        "{calls:?}"
    );
    told_in_events(&shards, &["Pausing", "Copying", "Verifying", "Switching", "Done"], "Normal").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_bare_edit_is_refused_once_there_is_data() {
    let shards = Shards::start(&json!({})).await;
    for storage in [
        json!({ "shardCount": 4 }),
        json!({ "shardCount": 4, "reshard": { "fromShardCount": 3, "toShardCount": 4 } }),
    ] {
        let refused =
            shards.change(json!({ "storage": storage })).await.expect_err("there is no consent to it");
        assert!(
            refused.contains(
                "storage.shardCount cannot simply be edited: the data must be moved. Add storage.reshard: \
                 {fromShardCount: <status.layout.shardCount>, toShardCount: <the new number>} in the same change, or put \
                 the old number back; while a re-shard runs, wait for its end"
            ),
            "{refused}"
        );
    }
    shards.operator.stop().await;
}

#[tokio::test]
async fn what_rests_or_is_paused_is_moved_later() {
    let shards = Shards::start(&json!({})).await;
    let site = &shards.site;
    shards.change(json!({ "suspend": true })).await.expect("it is valid");
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Suspended").await;
    shards.consent(2, 4).await;
    let status = shards.phase("Pending").await;
    assert_eq!(
        status["nextStep"],
        "spec.suspend or spec.replicas: 0 holds it back; take that back, or put shardCount: 2 back"
    );
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Suspended").await;
    shards.change(json!({ "suspend": false })).await.expect("it is valid");
    shards.phase("Copying").await;
    shards.run_job("Copying", 10).await;

    // Rest takes the pod of the Job, too.
    shards.change(json!({ "suspend": true })).await.expect("it is valid");
    let pods: Api<Pod> = site.api();
    let of_job = ListParams::default().labels("batch.kubernetes.io/job-name=orders-reshard");
    until("the pod of the Job to go", async || pods.list(&of_job).await.ok()?.items.is_empty().then_some(()))
        .await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Suspended").await;
    shards.change(json!({ "suspend": false })).await.expect("it is valid");
    shards.run_job("Copying", 10).await;

    // While the operator is to change nothing, a Job that ends changes nothing either.
    shards.change(json!({ "reconciliationPaused": true })).await.expect("it is valid");
    shards
        .status_with("the word that it is held back", |status| {
            status["nextStep"] == "spec.reconciliationPaused holds it back; write false to let it go on"
        })
        .await;
    shards.end_job(0, "").await;
    let jobs: Api<Job> = site.api();
    until("the Job to be complete", async || {
        let status = jobs.get("orders-reshard").await.ok()?.status?;
        status.conditions?.iter().any(|c| c.type_ == "Complete" && c.status == "True").then_some(())
    })
    .await;
    let reconciled = reconciles(&shards.operator).await;
    until("looks at it", async || (reconciles(&shards.operator).await > reconciled + 1).then_some(())).await;
    assert_eq!(shards.pipeline().await.data["status"]["reshard"]["phase"], "Copying");
    shards.change(json!({ "reconciliationPaused": false })).await.expect("it is valid");
    shards.phase("Switching").await;
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn without_a_volume_the_worker_moves_the_data_at_its_start() {
    let replication = json!({ "enabled": true, "replicaUrl": "s3://bucket/prefix" });
    let shards =
        Shards::start(&json!({ "storage": { "ephemeral": true }, "replication": replication })).await;
    let pods: Api<Pod> = shards.site.api();
    let before = pods.get("orders-0").await.expect("it is there").uid();
    shards.consent(2, 4).await;
    shards.phase("Switching").await;
    until("another pod", async || pods.get_opt("orders-0").await.ok()?.filter(|pod| pod.uid() != before))
        .await;
    let config = shards.config().await;
    assert_eq!((&config["shardCount"], &config["reshard"]["fromShardCount"]), (&json!(4), &json!(2)));
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let jobs: Api<Job> = shards.site.api();
    assert!(jobs.get_opt("orders-reshard").await.unwrap().is_none());
    shards.operator.stop().await;
}
