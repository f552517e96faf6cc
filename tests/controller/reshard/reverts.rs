//! A change of `shardCount` that is taken back: before the switch it is cancelled, after it the way back takes consent.

use super::*;

#[tokio::test]
async fn a_revert_before_the_switch_cancels() {
    let shards = Shards::start(&json!({})).await;
    // The worker's pod takes its time.
    let pods: Api<Pod> = shards.site.api();
    hold(&pods, "orders-0", true).await;
    shards.consent(2, 4).await;
    shards.phase("Pausing").await;
    shards.revert().await;
    let status = shards.phase("Cancelling").await;
    assert_eq!(
        status["nextStep"],
        "waits for the Job orders-reshard and its pod to stop; then 2 shards go on"
    );
    hold(&pods, "orders-0", false).await;
    shards.phase("Cancelled").await;
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;

    for phase in ["Copying", "Verifying"] {
        shards.consent(2, 4).await;
        shards.phase("Copying").await;
        let pod = shards.run_job(phase, 10).await;
        shards.phase(phase).await;
        hold(&pods, &pod.name_any(), true).await;
        shards.revert().await;
        shards.phase("Cancelling").await;
        assert_eq!(shards.replicas().await, 0, "the Job may still write");
        hold(&pods, &pod.name_any(), false).await;
        shards.phase("Cancelled").await;
        shards.goes_on_as_before().await;
        shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        shards.no_job().await;
    }
    told_in_events(&shards, &["Cancelling", "Cancelled"], "Normal").await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_revert_after_the_switch_takes_consent_of_its_own() {
    let shards = Shards::start(&json!({})).await;
    switch(&shards).await;
    shards.revert().await;
    shards
        .status_with("the word that it came too late", |status| {
            status["nextStep"]
                .as_str()
                .is_some_and(|step| step.contains("shardCount: 2 was put back too late"))
        })
        .await;
    assert_eq!(shards.config().await["shardCount"], 4);
    shards.run_worker().await;
    shards.phase("Done").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "ReshardUnconsented").await;
    assert_eq!(
        shards.condition("Ready").await["message"],
        "the data has 4 shards, which go on, and spec.storage.shardCount wants 2; write shardCount: 4, or consent to the \
         change: reshard: {fromShardCount: 4, toShardCount: 2}"
    );
    assert_eq!(shards.config().await["shardCount"], 4);
    shards.consent(4, 2).await;
    shards.phase("Copying").await;
    let pod = shards.job_pod().await;
    let arguments = pod.spec.expect("it has a spec").containers.remove(0).args.expect("it has some");
    assert!(
        arguments.join(" ").ends_with("--data-dir /var/lib/litejoin/data --to 2 --no-switch --serve"),
        "{arguments:?}"
    );
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_worker_that_cannot_start_with_other_shards_can_be_taken_back() {
    let shards = Shards::start(&json!({})).await;
    switch(&shards).await;
    let pods: Api<Pod> = shards.site.api();
    until("the worker's pod", async || pods.get_opt("orders-0").await.ok()?).await;
    let ended = json!({
        "exitCode": 1, "message": "error: the disk is short",
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
    assert_eq!(
        shards.pipeline().await.data["status"]["reshard"]["phase"],
        "Switching",
        "nobody wants it back"
    );
    shards.revert().await;
    shards.phase("Cancelled").await;
    shards.goes_on_as_before().await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.operator.stop().await;
}
