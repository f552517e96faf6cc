//! A source, join, window or sink that is wrong holds up itself alone, inline or as a document of its own, whether the
//! operator finds the error or the worker, which alone can ask SQLite. What it was before runs on.

use litejoin_crds::kind::Kind;
use litejoin_tests::ingest::message;
use litejoin_tests::wait::until;
use serde_json::{Value, json};

use crate::settled::orders;
use crate::site::{ControllerSite, Ports, condition_of};

#[tokio::test]
async fn a_query_that_sqlite_refuses_is_left_out() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    site.apply(&orders(&Ports::free())).await;
    let broken = |query: &str| {
        format!(
            "apiVersion: litejoin.io/v1alpha1\nkind: Join\nmetadata: {{name: broken}}\n\
             spec: {{pipelineRef: {{name: orders}}, query: \"{query}\", sinks: [console]}}\n"
        )
    };
    site.apply(&broken("SELEC key FROM orders")).await;
    // The child is invalid from the first start on, and the worker starts without it.
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Join, "broken", "Accepted", "False", "InvalidQuery").await;
    site.wait_for(Kind::Join, "broken", "Stalled", "True", "InvalidQuery").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "LeftOut").await;
    let join = site.ours(Kind::Join).get("broken").await.expect("it is there");
    let message = condition_of(&join, "Accepted").expect("it is told")["message"].clone();
    assert_eq!(message, "spec.query: near \"SELEC\": syntax error");

    // After its correction the child runs.
    site.apply(&broken("SELECT key FROM orders")).await;
    mounted_until(&site, Kind::Join, "broken", "Ready", "True", "").await;
    site.wait_without(Kind::Pipeline, "orders", "Degraded").await;

    // A mistake in what ran takes nothing away.
    site.apply(&broken("SELECT key FROM ordes")).await;
    mounted_until(
        &site,
        Kind::Join,
        "broken",
        "Accepted",
        "False",
        "no source fills topic \"ordes\", did you mean \"orders\"",
    )
    .await;
    site.wait_for(Kind::Join, "broken", "Programmed", "False", "EarlierVersion").await;
    site.wait_for(Kind::Pipeline, "orders", "Degraded", "True", "EarlierVersion").await;
    assert_eq!(classes(&worker.status().await), ["broken", "enriched"]);
    operator.stop().await;
    worker.stop().await;
}

#[tokio::test]
async fn an_entry_that_is_wrong_holds_up_itself_alone() {
    let site = ControllerSite::new().await;
    let operator = site.operator();
    let ports = Ports::free();
    site.apply(&orders(&ports)).await;
    let worker = site.run_pod("orders").await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;

    let wrong = orders(&ports).replace("FROM orders o LEFT", "FROM ordes o LEFT").replace(
        "  sinks:\n    - name: live",
        "    - {name: unsent, query: SELECT key FROM orders, sinks: [lvie]}\n  sinks:\n    - name: live",
    );
    let more = "---\napiVersion: litejoin.io/v1alpha1\nkind: Join\nmetadata: {name: more}\n\
                spec: {pipelineRef: {name: orders}, query: SELECT key FROM orders, sinks: [live]}\n";
    site.apply(&(wrong + more)).await;
    let said = mounted_until(&site, Kind::Pipeline, "orders", "ConfigValid", "False", "ordes").await;
    for part in [
        "spec.joins[0].query: no source fills topic \"ordes\", did you mean \"orders\"",
        "spec.joins[1].sinks[0]: no sink is called \"lvie\"; did you mean \"live\"?",
        "what was there before runs on where there was something, and all else is in force",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    site.wait_for(Kind::Pipeline, "orders", "Ready", "False", "InvalidQuery").await;
    site.wait_for(Kind::Pipeline, "orders", "Stalled", "True", "InvalidQuery").await;
    // The documents beside it are in force.
    site.wait_for(Kind::Join, "more", "Ready", "True", "Ready").await;
    site.wait_for(Kind::Sink, "console", "Ready", "True", "Ready").await;
    worker.ingest().send(&[message("orders", "o1", json!({ "customer_id": "c1" }))]).await;
    worker.wait_for_stdout(1).await;
    assert_eq!(classes(&worker.status().await), ["enriched", "more"]);

    // Also after a restart of the pod.
    worker.kill().await;
    let worker = site.run_pod("orders").await;
    assert_eq!(classes(&worker.status().await), ["enriched", "more"]);
    worker.ingest().send(&[message("orders", "o2", json!({ "customer_id": "c1" }))]).await;
    worker.wait_for_stdout(1).await;

    site.apply(&orders(&ports)).await;
    mounted_until(&site, Kind::Pipeline, "orders", "Ready", "True", "").await;
    operator.stop().await;
    worker.stop().await;
}

/// The names of the joins that a worker runs.
fn classes(status: &Value) -> Vec<String> {
    status["joins"].as_object().expect("joins by name").keys().cloned().collect()
}

/// Plays kubelet until a condition has this status and a message with this text; returns the message.
async fn mounted_until(
    site: &ControllerSite,
    kind: Kind,
    name: &str,
    condition: &str,
    status: &str,
    text: &str,
) -> String {
    until(&format!("{condition} of {name} to be {status}: {text}"), async || {
        site.mount("orders").await;
        let object = site.ours(kind).get(name).await.ok()?;
        let condition = condition_of(&object, condition)?;
        let message = condition["message"].as_str().unwrap_or_default();
        (condition["status"] == status && message.contains(text)).then(|| message.to_owned())
    })
    .await
}
