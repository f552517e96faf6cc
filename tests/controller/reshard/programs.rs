//! The real worker, and the real program of the Job, under the steps of the operator.

use super::*;

use litejoin_tests::ingest::message;
use litejoin_tests::results::ResultKey;

use crate::settled::orders;
use crate::site::Ports;

/// A pipeline whose real worker has some rows, and the keys of their results.
async fn with_rows() -> (Shards, Worker, Vec<ResultKey>) {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    let rows: Vec<_> =
        (0..300).map(|n| message("orders", &format!("o{n}"), json!({ "customer_id": "c1" }))).collect();
    let epoch = worker.ingest().send(&rows).await;
    let (_, before) = worker.snapshot("live", "enriched", epoch).await;
    assert_eq!(before.rows.len(), rows.len());
    let programs = PlayedPrograms::new(site.api());
    (Shards { site, operator, programs }, worker, before.rows.into_keys().collect())
}

impl Shards {
    /// Waits until the data has 3 shards, holds the worker to results with the same keys, and stops all.
    async fn end_with_3(self, worker: Worker, before: Vec<ResultKey>) {
        self.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
        assert_eq!(self.pipeline().await.data["status"]["layout"]["shardCount"], 3);
        let epoch = worker.ingest().send(&[message("customers", "c1", json!({ "name": "Ada" }))]).await;
        let (_, after) = worker.snapshot("live", "enriched", epoch).await;
        assert_eq!(after.rows.into_keys().collect::<Vec<_>>(), before);
        worker.stop().await;
        self.operator.stop().await;
    }
}

#[tokio::test]
async fn a_job_moves_rows_and_results() {
    let (shards, worker, before) = with_rows().await;
    shards.consent(2, 3).await;
    shards.phase("Copying").await;
    worker.stop().await;
    shards.job_pod().await;
    shards.site.mount("orders").await;
    let arguments = ["--data-dir", "data", "--to", "3", "--no-switch", "--serve", "--secrets-dir", "secrets"];
    let copied = shards.site.folder.command(["reshard", "-f", "pipeline.yaml"].into_iter().chain(arguments));
    let copied = copied.end().await;
    assert_eq!(copied.code, Some(0), "{}", copied.stderr);
    shards.end_job(0, "").await;
    shards.phase("Switching").await;
    until("the worker to be wanted", async || (shards.replicas().await == 1).then_some(())).await;
    let worker = shards.site.run_pod("orders").await;
    shards.phase("Done").await;
    shards.end_with_3(worker, before).await;
}

#[tokio::test]
async fn a_worker_that_serves_moves_rows_and_results() {
    let (shards, worker, before) = with_rows().await;
    let consent = json!({ "fromShardCount": 2, "toShardCount": 3, "strategy": "Online" });
    shards.consent_online(2, 3).await;
    shards.config_with(3, &consent).await;
    shards.site.mount("orders").await;
    let status = shards.phase("Done").await;
    assert!(status["startedAt"].is_string(), "{status}");
    shards.end_with_3(worker, before).await;
}
