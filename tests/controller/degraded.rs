//! A sink whose server is away: its own status says so, and so does its Pipeline's, with a warning, and all others go on.

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::server::Server;
use litejoin_tests::wait::until;
use serde_json::json;

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

#[tokio::test]
async fn a_sink_whose_server_is_away_is_degraded_alone() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let away = Server::start().await.close().await;
    let sink = format!(
        r#"
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {{name: hook}}
spec: {{pipelineRef: {{name: orders}}, joins: [enriched], http: {{url: "http://{away}/hook"}}}}
"#
    );
    site.apply(&(orders(&Ports::free()) + &sink)).await;
    let worker = site.run_pod("orders").await;
    // Nothing is wrong as long as there is nothing to deliver.
    site.wait_for(Kind::Sink, "hook", "Ready", "True", "Ready").await;
    worker.ingest().send(&[message("orders", "o1", json!({ "customer_id": "c1" }))]).await;

    site.wait_for(Kind::Sink, "hook", "Ready", "False", "DeliveryFails").await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "DeliveryFails").await;
    let hook = site.ours(Kind::Sink).get("hook").await.expect("it is there");
    let said = condition_of(&hook, "Ready").expect("it has one")["message"].to_string();
    assert!(said.contains(&away.to_string()), "{said}");
    for (condition, status) in [("Accepted", "True"), ("Programmed", "True"), ("Reconciling", "True")] {
        assert_eq!(condition_of(&hook, condition).expect("it has one")["status"], status, "{condition}");
    }
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Sink, "console", "Ready", "True", "Ready").await;
    worker.wait_for_stdout(1).await;
    for (kind, name) in [(Kind::Sink, "hook"), (Kind::Pipeline, "orders")] {
        warned(&site, kind, name, "DeliveryFails").await;
    }

    let server = Server::start_at(away).await;
    site.wait_for(Kind::Sink, "hook", "Ready", "True", "Ready").await;
    site.wait_without(Kind::Pipeline, "orders", "Degraded").await;
    assert!(!server.received().is_empty(), "the result has come");
    worker.stop().await;
    operator.stop().await;
}

/// Waits for a Warning about a document.
async fn warned(site: &ControllerSite, kind: Kind, name: &str, reason: &str) {
    let events: Api<Event> = site.api();
    until(&format!("a warning about {name}: {reason}"), async || {
        let all = events.list(&ListParams::default()).await.ok()?.items;
        let about_it = |event: &&Event| {
            let regarding = event.regarding.as_ref();
            regarding.is_some_and(|it| {
                it.kind.as_deref() == Some(kind.as_str()) && it.name.as_deref() == Some(name)
            }) && event.reason.as_deref() == Some(reason)
        };
        let event = all.iter().find(about_it)?;
        assert_eq!(event.type_.as_deref(), Some("Warning"), "{event:?}");
        Some(())
    })
    .await;
}
