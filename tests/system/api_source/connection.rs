//! How the api source reaches its server: TLS, credentials and proxies.

use base64::Engine as _;
use litejoin_tests::certificates::Authority;
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use serde_json::json;

use super::{manifest, wait_for_keys};

#[tokio::test]
async fn the_server_is_verified_and_gets_our_credentials() {
    let (authority, site) = (Authority::new(), WorkerSite::new());
    site.write("ca.pem", authority.pem());
    authority.sign(&["worker"]).write(site.path(), "worker");
    let secure = authority.server(&authority.sign(&["api.example"]), Some(&authority));
    let secure = Server::start_tls(secure).await;
    let tls = "tls: {ca: {path: ca.pem}, cert: {path: worker.crt}, key: {path: worker.key}, serverName: api.example}";
    let pair = base64::engine::general_purpose::STANDARD.encode("ada:t0ken");
    for (auth, header, value) in [
        ("bearer: {env: '${TOKEN}'}", "authorization", "Bearer t0ken".to_owned()),
        (
            "basic: {username: {env: '${WHO}'}, password: {env: '${TOKEN}'}}",
            "authorization",
            format!("Basic {pair}"),
        ),
        (
            "header: {name: X-Key, value: {secretKeyRef: {name: api, key: key}}}",
            "x-key",
            "from-file".to_owned(),
        ),
    ] {
        secure.take();
        secure.behave(|_| Reply::json(&json!([{"id": 1}])));
        site.write("pipeline.yaml", manifest(&secure.url("/"), &format!("{tls}, auth: {{{auth}}}")));
        std::fs::create_dir_all(site.path().join("secrets/api")).expect("a folder can be made");
        site.write("secrets/api/key", "from-file");
        let run = site.run(["--secrets-dir", "secrets"]);
        let worker = run.with_variable("TOKEN", "t0ken").with_variable("WHO", "ada").start().await;
        let request = secure.wait_for(1).await.remove(0);
        assert_eq!(request.header(header), Some(value.as_str()));
        worker.stop().await;
    }
    // A server whose certificate is not verified verifies ours all the same.
    secure.take();
    let unchecked = "tls: {insecureSkipVerify: true, cert: {path: worker.crt}, key: {path: worker.key}}";
    site.write("pipeline.yaml", manifest(&secure.url("/"), unchecked));
    let worker = site.start().await;
    secure.wait_for(1).await;
    worker.stop().await;
    // Without certificates and credentials the server refuses.
    site.write("pipeline.yaml", manifest(&secure.url("/"), ""));
    let worker = site.start().await;
    let error = until("the refusal", async || {
        worker.status().await["sources"]["polled"]["lastError"].as_str().map(str::to_owned)
    })
    .await;
    assert!(error.contains("certificate"), "{error}");
    worker.stop().await;
}

#[tokio::test]
async fn requests_go_through_the_proxy() {
    let proxy = Server::start().await;
    proxy.behave(|_| Reply::json(&json!([{"id": 1}])));
    let site = WorkerSite::with(&manifest("http://api.example/items", r#"proxy: "http://${PROXY}""#));
    let worker = site.run([]).with_variable("PROXY", &proxy.address().to_string()).start().await;
    wait_for_keys(&worker, &["1"]).await;
    assert_eq!(proxy.received()[0].target, "http://api.example/items");
    worker.stop().await;
}
