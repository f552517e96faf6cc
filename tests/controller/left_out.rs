//! An invalid child never stops the others, whether the operator finds the error or the worker, which alone can ask
//! SQLite.

use litejoin_crds::kind::Kind;
use litejoin_tests::wait::until;

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
    until("the config to follow", async || {
        site.mount("orders").await;
        let join = site.ours(Kind::Join).get("broken").await.ok()?;
        (condition_of(&join, "Ready")?["status"] == "True").then_some(())
    })
    .await;
    let pipeline = site.ours(Kind::Pipeline).get("orders").await.expect("it is there");
    assert_eq!(condition_of(&pipeline, "Degraded"), None);
    operator.stop().await;
    worker.stop().await;
}
