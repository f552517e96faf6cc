//! A change of `shardCount` that is disturbed: by a failure, by the death of the operator, by a hand that deletes things,
//! by a config that reaches a pod late.

use super::*;

#[tokio::test]
async fn after_a_failure_the_old_layout_goes_on() {
    let shards = Shards::start(&json!({})).await;
    shards.consent(2, 4).await;
    shards.phase("Copying").await;
    shards.run_job("Copying", 10).await;
    shards
        .end_job(1, "error: data: the copy needs 12 GiB, and the disk has 3 GiB free; raise storage.size\n")
        .await;
    let status = shards.phase("Failed").await;
    assert_eq!(
        status["message"],
        "data: the copy needs 12 GiB, and the disk has 3 GiB free; raise storage.size"
    );
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "True", "Ready").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "ReshardFailed").await;
    assert_eq!(
        shards.condition("Ready").await["message"],
        "2 shards go on, since the data could not be moved to 4: data: the copy needs 12 GiB, and the disk has 3 GiB \
         free; raise storage.size; put right what the message says, in spec.storage, spec.resources or \
         spec.podTemplate, or write another spec.restartNonce, and it is tried again; or put shardCount: 2 back"
    );
    told_in_events(&shards, &["Failed", "ReshardFailed"], "Warning").await;
    let jobs: Api<Job> = shards.site.api();
    let first = jobs.get("orders-reshard").await.expect("its log can be read").uid();

    // Another edit is no new attempt.
    let join = json!({ "name": "all", "query": "SELECT key AS id FROM orders" });
    shards.change(json!({ "joins": [join] })).await.expect("it is valid");
    until("the edit to be in force", async || {
        let pipeline = shards.pipeline().await;
        (pipeline.data["status"]["observedGeneration"].as_i64() == pipeline.metadata.generation).then_some(())
    })
    .await;
    assert_eq!(shards.pipeline().await.data["status"]["reshard"]["phase"], "Failed");
    shards.change(json!({ "restartNonce": "again" })).await.expect("it is valid");
    shards.phase("Copying").await;
    let second = until("another Job", async || {
        jobs.get_opt("orders-reshard")
            .await
            .ok()?
            .and_then(|job| job.uid())
            .filter(|uid| Some(uid) != first.as_ref())
    })
    .await;
    assert_ne!(Some(second), first);
    shards.run_job("Copying", 10).await;
    shards.end_job(1, "error: no").await;
    shards.phase("Failed").await;

    // So is the way back.
    shards.revert().await;
    shards.phase("Cancelled").await;
    shards.no_job().await;
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn an_operator_that_dies_at_any_step_is_followed_by_one_that_goes_on() {
    let mut shards = Shards::start(&json!({})).await;
    let pods: Api<Pod> = shards.site.api();
    hold(&pods, "orders-0", true).await;
    shards.consent(2, 4).await;
    shards.phase("Pausing").await;
    shards.replace_operator().await;
    hold(&pods, "orders-0", false).await;
    shards.phase("Copying").await;
    shards.replace_operator().await;
    // A Job and a pod that somebody deletes are made again.
    let jobs: Api<Job> = shards.site.api();
    let first = until("the Job", async || jobs.get_opt("orders-reshard").await.ok()?).await.uid();
    shards.run_job("Copying", 10).await;
    jobs.delete("orders-reshard", &DeleteParams::background()).await.expect("it is there");
    until("another Job", async || {
        jobs.get_opt("orders-reshard").await.ok()?.filter(|job| job.uid() != first)
    })
    .await;
    let pod = shards.run_job("Verifying", 10).await;
    shards.phase("Verifying").await;
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.expect("it is there");
    shards.end_pod(&pod.name_any(), 143, "").await;
    until("another pod", async || Some(shards.job_pod().await).filter(|other| other.uid() != pod.uid()))
        .await;
    shards.run_job("Verifying", 20).await;
    shards.replace_operator().await;
    shards.end_job(0, "").await;
    shards.phase("Switching").await;
    shards.replace_operator().await;
    // Somebody scales the StatefulSet, and the pod goes: both come back.
    until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await;
    pods.delete("orders-0", &DeleteParams::default()).await.expect("it is there");
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.replace_operator().await;
    until("the new operator's look", async || (reconciles(&shards.operator).await > 0).then_some(())).await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.no_job().await;
    assert_eq!(shards.config().await["shardCount"], 4);
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_pod_that_began_with_the_config_of_before_is_replaced() {
    let shards = Shards::start(&json!({})).await;
    let refusal =
        "pipeline.yaml:9: spec.storage.shardCount: got 4, and the worker runs with 2; restart to apply";
    switch(&shards).await;
    *shards.programs.refusal.lock().unwrap() = Some(refusal.to_owned());
    let pods: Api<Pod> = shards.site.api();
    let first = until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await.uid();
    shards.run_worker().await;
    let is_another = async || pods.get_opt("orders-0").await.ok()?.filter(|pod| pod.uid() != first);
    until("another pod", is_another).await;
    *shards.programs.refusal.lock().unwrap() = None;
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_pipeline_that_is_made_anew_over_other_shards_says_what_to_do() {
    let shards = Shards::start_without_pod(&json!({ "storage": { "shardCount": 4 } })).await;
    let pods: Api<Pod> = shards.site.api();
    until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await;
    shards.site.bind_claim("orders").await;
    let said = "error: data: holds 2 shards, and the pipeline wants storage.shardCount 4; set it back to 2";
    let ended = json!({
        "exitCode": 1, "message": said,
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z",
    });
    let container = json!({
        "name": "worker", "image": "litejoin", "imageID": "", "ready": false, "restartCount": 1,
        "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } },
        "lastState": { "terminated": ended },
    });
    let status = json!({ "status": { "phase": "Running", "containerStatuses": [container] } });
    pods.patch_status("orders-0", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .expect("it has a status");
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "CrashLoopBackOff").await;
    let message = shards.condition("Ready").await["message"].to_string();
    assert!(message.contains(said), "{message}");
    // The remedy is open, and so is consent to move the data.
    shards.consent(2, 4).await;
    assert_eq!(
        until("the consent in the config", async || {
            Some(shards.config().await["reshard"]["fromShardCount"].clone()).filter(|from| !from.is_null())
        })
        .await,
        2
    );
    shards
        .change(json!({ "storage": { "shardCount": 2, "reshard": null } }))
        .await
        .expect("nothing is known yet");
    until("the number of before", async || (shards.config().await["shardCount"] == 2).then_some(())).await;
    shards.operator.stop().await;
}
