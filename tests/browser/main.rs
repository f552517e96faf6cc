//! A real browser subscribes with its own EventSource: what the SSE sink sends must suit it, across a crash of the
//! worker too. Needs Debian's chromium and chromium-driver.

mod driver;

use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::{Value, json};

use crate::driver::Browser;

fn manifest(sink_port: u16) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: page}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - name: ingest
      http: {{addr: "127.0.0.1:0", topics: [t]}}
  joins:
    - name: j
      query: SELECT key, payload->>'n' AS n FROM t
      sinks: [live]
  sinks:
    - name: live
      sse: {{addr: "127.0.0.1:{sink_port}"}}
"#
    )
}

/// Subscribes from a page of another origin, and keeps `key=n` of every result and the name of every other event.
const SUBSCRIBE: &str = "
    window.seen = [];
    const source = new EventSource(arguments[0]);
    source.addEventListener('join_result', event => {
        const result = JSON.parse(event.data);
        window.seen.push(result.key + '=' + (result.rows.length ? result.rows[0].n : 'gone'));
    });
    for (const name of ['reset', 'replayed']) {
        source.addEventListener(name, () => window.seen.push(name));
    }";

async fn seen(browser: &Browser, expected: &[&str]) {
    let expected: Vec<Value> = expected.iter().map(|text| json!(text)).collect();
    let mut last = Value::Null;
    until(&format!("the page to see {expected:?}"), async || {
        last = browser.run("return window.seen", json!([])).await;
        let seen = last.as_array().expect("a list");
        assert!(expected.starts_with(&seen[..seen.len().min(expected.len())]), "the page has seen {seen:?}");
        (*seen == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_page_sees_every_result_once_across_a_crash_and_everything_anew_after_a_loss() {
    let site = WorkerSite::with(&manifest(0));
    let worker = site.start().await;
    // After a crash the page comes back to the same address.
    let address = worker.address("sink live");
    site.write("pipeline.yaml", manifest(address.port()));
    let post = async |worker: &litejoin_tests::worker::Worker, key: &str, payload: Value| {
        let answer = worker.ingest().try_send(&[json!({"topic": "t", "key": key, "payload": payload})]).await;
        assert_eq!(answer.expect("an answer").status, 200);
    };
    post(&worker, "a", json!({"n": 1})).await;

    let browser = Browser::start().await;
    // Another port is another origin.
    browser.open(&worker.url("admin", "/healthz")).await;
    let url = format!("http://{address}/subscribe?join=j&replay=true");
    browser.run(SUBSCRIBE, json!([url])).await;
    seen(&browser, &["a=1", "replayed"]).await;
    post(&worker, "a", json!({"n": 2})).await;
    seen(&browser, &["a=1", "replayed", "a=2"]).await;

    worker.kill().await;
    let worker = site.start().await;
    post(&worker, "b", json!({"n": 1})).await;
    post(&worker, "a", Value::Null).await;
    let so_far = ["a=1", "replayed", "a=2", "b=1", "a=gone"];
    seen(&browser, &so_far).await;

    worker.stop().await;
    std::fs::remove_file(site.data_dir().join("results.db")).expect("results.db is there");
    let worker = site.start().await;
    post(&worker, "c", json!({"n": 1})).await;
    let mut all = so_far.to_vec();
    all.push("reset");
    until("the page to start over", async || {
        let seen = browser.run("return window.seen", json!([])).await;
        let seen: Vec<&str> = seen.as_array()?.iter().filter_map(Value::as_str).collect();
        assert!(all.starts_with(&seen[..seen.len().min(all.len())]), "the page has seen {seen:?}");
        let anew = seen.get(all.len()..)?;
        // The replay has the results from before the page came back, and later ones follow it.
        ["b=1", "c=1", "replayed"].iter().all(|wanted| anew.contains(wanted)).then_some(())
    })
    .await;
    worker.stop().await;
}
