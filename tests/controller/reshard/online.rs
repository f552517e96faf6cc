//! A change of `shardCount` that the worker makes while it serves: the operator asks for it, tells how far it is, and makes
//! no other pod.

use super::*;

/// What the worker tells of a move from 2 to 4 shards.
fn report(phase: &str, rows: u64) -> ReshardReport {
    ReshardReport {
        phase: phase.to_owned(),
        from_shard_count: 2,
        to_shard_count: 4,
        rows,
        rows_total: 100,
        ..ReshardReport::default()
    }
}

impl Shards {
    pub(super) async fn consent_online(&self, from: u32, to: u32) {
        let reshard = json!({ "fromShardCount": from, "toShardCount": to, "strategy": "Online" });
        let storage = json!({ "storage": { "shardCount": to, "reshard": reshard } });
        self.change(storage).await.expect("consent is accepted");
    }

    /// Waits until the config has so many shards, and this consent.
    pub(super) async fn config_with(&self, shard_count: u32, reshard: &Value) {
        until("the config that the worker is to have", async || {
            let storage = self.config().await;
            (storage["shardCount"] == shard_count && storage["reshard"] == *reshard).then_some(())
        })
        .await;
    }

    async fn pod_uid(&self) -> String {
        let pods: Api<Pod> = self.site.api();
        pods.get("orders-0").await.expect("there is a pod").uid().expect("it has an UID")
    }
}

#[tokio::test]
async fn the_worker_tells_how_far_it_is_and_its_pod_stays() {
    let shards = Shards::start(&json!({})).await;
    let pod = shards.pod_uid().await;
    let sets: Api<StatefulSet> = shards.site.api();
    let generation = async || sets.get("orders").await.expect("it is there").metadata.generation;
    let before = generation().await;
    shards.consent_online(2, 4).await;
    let status = shards.phase("Copying").await;
    assert_eq!(
        status["nextStep"],
        "the worker copies the data to 4 shards and serves it meanwhile; to cancel, put shardCount: 2 back"
    );
    let consent = json!({ "fromShardCount": 2, "toShardCount": 4, "strategy": "Online" });
    shards.config_with(4, &consent).await;
    shards.programs.serve(2, Some(report("Copying", 10)));
    let status = shards.status_with("rows", |status| status["rows"] == 10).await;
    assert_eq!((&status["progress"], &status["job"]), (&json!(10), &Value::Null));
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "Resharding").await;
    shards.change(json!({ "storage": { "shardCount": 8 } })).await.expect_err("a move is under way");
    for phase in ["CatchingUp", "Verifying", "CatchingUp", "Switching"] {
        shards.programs.serve(2, Some(report(phase, 100)));
        let expected = if phase == "CatchingUp" { None } else { Some(phase) };
        if let Some(phase) = expected {
            shards.phase(phase).await;
        }
        assert_eq!(shards.pipeline().await.data["status"]["layout"]["shardCount"], 2);
    }
    shards.programs.serve(4, Some(report("Done", 100)));
    shards.phase("Done").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    assert_eq!(shards.pipeline().await.data["status"]["layout"]["shardCount"], 4);
    // The block may stay, and may go.
    shards.config_with(4, &consent).await;
    shards.change(json!({ "storage": { "reshard": null } })).await.expect("it was carried out");
    shards.config_with(4, &Value::Null).await;
    shards.programs.serve(4, None);
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    assert_eq!((generation().await, shards.pod_uid().await), (before, pod), "no other pod was made");
    shards.no_job().await;
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_revert_calls_the_worker_off_whatever_it_has_done() {
    let mut shards = Shards::start(&json!({})).await;
    let back = json!({ "fromShardCount": 4, "toShardCount": 2, "strategy": "Online" });
    for phase in ["Copying", "Verifying", "Switching"] {
        shards.consent_online(2, 4).await;
        shards.phase("Copying").await;
        shards.programs.serve(2, Some(report(phase, 10)));
        shards.phase(phase).await;
        // The switch may be made before the worker reads the config that takes it back.
        let has = if phase == "Switching" { 4 } else { 2 };
        shards.programs.hold_back();
        shards.revert().await;
        let status = shards.phase("Cancelling").await;
        assert_eq!(status["nextStep"], "waits for the worker to say that it goes on with 2 shards");
        shards.replace_operator().await;
        shards.config_with(2, &back).await;
        shards.programs.serve(has, None);
        if has == 4 {
            shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "Resharding").await;
            assert_eq!(shards.pipeline().await.data["status"]["reshard"]["phase"], "Cancelling");
            shards.programs.serve(2, None);
        }
        shards.phase("Cancelled").await;
        shards.config_with(2, &Value::Null).await;
        shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    }
    shards.operator.stop().await;
}

#[tokio::test]
async fn a_move_that_fails_is_told_and_tried_again_when_something_is_changed() {
    let shards = Shards::start(&json!({})).await;
    shards.consent_online(2, 4).await;
    shards.phase("Copying").await;
    let message = "data: 5 GiB are needed and 1 GiB is free; the pipeline goes on with 2 shards".to_owned();
    shards.programs.serve(2, Some(ReshardReport { message: Some(message.clone()), ..report("Failed", 0) }));
    let status = shards.phase("Failed").await;
    assert_eq!(status["message"], message);
    shards.site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "ReshardFailed").await;
    shards.config_with(2, &json!({ "fromShardCount": 4, "toShardCount": 2, "strategy": "Online" })).await;
    shards.programs.serve(2, None);
    let storage = json!({ "storage": { "reshard": { "keepOldLayout": "0s" } } });
    shards.change(storage).await.expect("it is another attempt");
    shards.phase("Copying").await;
    shards.programs.serve(4, None);
    shards.phase("Done").await;
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    shards.operator.stop().await;
}
