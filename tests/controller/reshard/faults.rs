//! Each write of a change of `shardCount` is disturbed in each way, one at a time: the data is moved all the same, and
//! at no moment may two programs write to it.

use super::*;

use futures::future::join_all;
use litejoin_tests::kubernetes::proxy::Fault;

/// The faults that leave different things behind; the others are walked through by `faults.rs` for every other write.
const FAULTS: [Fault; 4] = [Fault::CrashBefore, Fault::CrashAfter, Fault::Conflict, Fault::StaleReads];

#[tokio::test]
async fn every_disturbed_write_of_a_change_ends_alike() {
    for first in (1..).step_by(2) {
        let runs = [first, first + 1].into_iter().flat_map(|number| FAULTS.map(|fault| run(number, fault)));
        // Each waits for the Lease of a dead operator most of the time, so many run at once.
        if !join_all(runs).await.into_iter().all(|was_struck| was_struck) {
            assert!(first > 1, "nothing was written at all");
            break;
        }
    }
}

/// Moves the data with this fault at the write of this number; returns whether there was such a write.
async fn run(number: usize, fault: Fault) -> bool {
    let mut shards = Shards::start(&json!({})).await;
    shards.site.proxy.reset(Some((number, fault)));
    shards.consent(2, 4).await;
    let what = format!("the end of a change with {fault:?} at write {number}");
    let was_struck = tokio::select! {
        () = shards.site.proxy.crash() => None,
        () = moved(&shards, &what) => Some(shards.site.proxy.writes().len() >= number),
    };
    if was_struck.is_none() {
        shards.site.proxy.reset(None);
        shards.replace_operator().await;
        moved(&shards, &what).await;
    }
    until("a look of the operator", async || (reconciles(&shards.operator).await > 0).then_some(())).await;
    shards.no_job().await;
    let config = shards.config().await;
    assert_eq!((&config["shardCount"], shards.replicas().await), (&json!(4), 1), "{what}");
    shards.operator.stop().await;
    was_struck.unwrap_or(true)
}

/// Plays kubelet until the worker runs with other shards.
async fn moved(shards: &Shards, what: &str) {
    let pods: Api<Pod> = shards.site.api();
    until(what, async || {
        let all = pods.list(&ListParams::default()).await.ok()?.items;
        let phase_of =
            |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let (workers, jobs): (Vec<_>, Vec<_>) = all.iter().partition(|pod| pod.name_any() == "orders-0");
        let at_work = jobs.iter().filter(|pod| !matches!(phase_of(pod).as_str(), "Succeeded" | "Failed"));
        let at_work: Vec<_> = at_work.collect();
        assert!(workers.len() + at_work.len() <= 1, "{what}: {:?}", names(&all));
        if let Some(job) = at_work.first() {
            assert_eq!(shards.config().await["shardCount"], 2, "{what}: no worker may begin on the copy yet");
            shards.end_pod(&job.name_any(), 0, "").await;
        }
        if workers.iter().any(|pod| phase_of(pod) == "Pending") {
            shards.site.set_pod("orders-0", "True").await;
        }
        let pipeline = shards.pipeline().await;
        let is_ready = condition_of(&pipeline, "Ready")?["status"] == "True";
        let status = &pipeline.data["status"];
        (is_ready && status["reshard"]["phase"] == "Done" && status["layout"]["shardCount"] == 4)
            .then_some(())
    })
    .await;
}
