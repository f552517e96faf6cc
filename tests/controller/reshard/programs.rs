//! The real worker and the real program of the Job, under the steps of the operator.

use super::*;

use litejoin_tests::ingest::message;

use crate::settled::orders;
use crate::site::Ports;

#[tokio::test]
async fn rows_and_results_are_those_of_before() {
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
    let shards = Shards { site, operator, programs };
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
    shards.site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    assert_eq!(shards.pipeline().await.data["status"]["layout"]["shardCount"], 3);
    let epoch = worker.ingest().send(&[message("customers", "c1", json!({ "name": "Ada" }))]).await;
    let (_, after) = worker.snapshot("live", "enriched", epoch).await;
    assert_eq!(after.rows.keys().collect::<Vec<_>>(), before.rows.keys().collect::<Vec<_>>());
    worker.stop().await;
    shards.operator.stop().await;
}
