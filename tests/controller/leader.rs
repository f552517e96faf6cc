//! Of two operators one works. When it is killed, the other takes over and finishes what it was at.

use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::proxy::Fault;
use litejoin_tests::wait::until;

use crate::site::Site;

const PIPELINE: &str = "{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {name: orders}, spec: {storage: {shardCount: 2}}}";

#[tokio::test]
async fn the_second_operator_finishes_what_the_first_began() {
    let site = Site::new().await;
    let leads = |log: String| log.contains("\"message\":\"leads\"");
    let first = site.operator();
    until("a leader", async || leads(first.log()).then_some(())).await;
    let second = site.operator();
    until("a second operator", async || second.log().contains("waits for the Lease").then_some(())).await;
    // The first one dies with the second of its writes.
    site.proxy.reset(Some((2, Fault::CrashAfter)));
    site.apply(PIPELINE).await;
    site.proxy.crash().await;
    assert!(!leads(second.log()), "one leads at a time");
    first.kill().await;
    site.proxy.reset(None);
    site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "False", "Starting").await;
    assert!(leads(second.log()));
    // At a planned end too; the third looks again when the Lease that it has seen would end.
    let third = site.operator();
    until("a third operator", async || third.log().contains("waits for the Lease").then_some(())).await;
    second.stop().await;
    until("the third to lead", async || leads(third.log()).then_some(())).await;
    third.stop().await;
}
