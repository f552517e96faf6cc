//! Of two operators only the leader works. After the leader is killed, the other takes over and finishes its work.

use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::proxy::Fault;
use litejoin_tests::wait::until;

use crate::site::ControllerSite;

const PIPELINE: &str = "{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {name: orders}, spec: {storage: {shardCount: 2}}}";

#[tokio::test]
async fn the_second_operator_finishes_what_the_first_began() {
    let site = ControllerSite::new().await;
    let leads = |log: String| log.contains("\"message\":\"leads\"");
    let first = site.operator();
    until("a leader", async || leads(first.log()).then_some(())).await;
    let second = site.operator();
    until("a second operator", async || second.log().contains("waits for the Lease").then_some(())).await;
    // The first operator dies at its second write.
    site.proxy.reset(Some((2, Fault::CrashAfter)));
    site.apply(PIPELINE).await;
    site.proxy.crash().await;
    assert!(!leads(second.log()), "one leads at a time");
    first.kill().await;
    site.proxy.reset(None);
    site.wait_for(Kind::Pipeline, "orders", "WorkerReady", "False", "Starting").await;
    assert!(leads(second.log()));
    second.stop().await;
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_taken_at_once() {
    let site = ControllerSite::new().await;
    let leads = |log: String| log.contains("\"message\":\"leads\"");
    // The second operator must take over long before this Lease expires.
    let hour = ["--lease-seconds", "3600"];
    let first = site.operator_with(&hour);
    until("a leader", async || leads(first.log()).then_some(())).await;
    let second = site.operator_with(&hour);
    until("a second operator", async || second.log().contains("waits for the Lease").then_some(())).await;
    first.stop().await;
    until("the second to lead", async || leads(second.log()).then_some(())).await;
    second.stop().await;
}
