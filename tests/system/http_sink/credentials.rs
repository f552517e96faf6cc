//! Credentials of the http sink, and the servers that it trusts: secrets stay where they are, and results go to no
//! other server.

use std::collections::BTreeMap;

use base64::Engine as _;
use expect_test::expect;
use hmac::{Hmac, Mac as _};
use litejoin_tests::certificates::Authority;
use litejoin_tests::server::{Received, Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::json;
use sha2::Sha256;

use super::{manifest, sink_status};

/// A worker whose sinks have a credential each, some from variables and some from Secrets.
async fn with_credentials(server: &Server) -> (WorkerSite, Worker) {
    let url = |path: &str| format!(r#"url: "{}""#, server.url(path));
    let site = WorkerSite::with(&manifest(&[
        ("s", format!("{}, auth: {{bearer: {{env: '${{TOKEN}}'}}}}", url("/bearer"))),
        (
            "basic",
            format!(
                "{}, auth: {{basic: {{username: {{secretKeyRef: {{name: api, key: user}}}}, password: {{env: '${{TOKEN}}'}}}}}}",
                url("/basic")
            ),
        ),
        (
            "header",
            format!(
                "{}, auth: {{header: {{name: X-Api-Key, value: {{secretKeyRef: {{name: api, key: token}}}}}}}}",
                url("/header")
            ),
        ),
        ("signed", format!("{}, signingKey: {{env: '${{TOKEN}}'}}", url("/signed"))),
        ("filled", format!(r#"{}, headers: {{X-Key: "v1 ${{KEY}}"}}"#, url("/filled?key=${KEY}"))),
    ]));
    std::fs::create_dir_all(site.path().join("secrets/api")).expect("a folder can be made");
    site.write("secrets/api/user", "ada\n");
    site.write("secrets/api/token", "file-s3cret\n");
    let run = ["--secrets-dir", "secrets"];
    let worker =
        site.run(run).with_variable("TOKEN", "env-s3cret").with_variable("KEY", "key s3cret/1").start().await;
    (site, worker)
}

/// The requests by their targets.
fn by_target(received: Vec<Received>) -> BTreeMap<String, Received> {
    received.into_iter().map(|request| (request.target.clone(), request)).collect()
}

#[tokio::test]
async fn credentials_come_from_secrets_and_variables_and_stay_there() {
    let server = Server::start().await;
    let (site, worker) = with_credentials(&server).await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    let received = by_target(server.wait_for(5).await);
    let authorization = |path: &str| received[path].header("authorization");
    assert_eq!(authorization("/bearer"), Some("Bearer env-s3cret"));
    let pair = base64::engine::general_purpose::STANDARD.encode("ada:env-s3cret");
    assert_eq!(authorization("/basic"), Some(format!("Basic {pair}").as_str()));
    assert_eq!(received["/header"].header("x-api-key"), Some("file-s3cret"));
    assert_eq!(authorization("/header"), None);
    let mut mac = Hmac::<Sha256>::new_from_slice(b"env-s3cret").expect("any key will do");
    mac.update(&received["/signed"].body);
    let signature: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        received["/signed"].header("litejoin-signature"),
        Some(format!("sha256={signature}").as_str())
    );

    assert_eq!(received["/filled?key=key%20s3cret/1"].header("x-key"), Some("v1 key s3cret/1"));

    // A Secret that is rotated is used at once. A server that repeats a credential does not spread it, wherever the
    // worker cuts the answer off.
    site.write("secrets/api/token", "n3w-s3cret");
    server.take();
    server.behave(|request| {
        let got: String = request.headers.values().map(|value| format!("{value} ")).collect();
        Reply::status(422).with_body(format!("got {} {got}", request.target))
    });
    worker.ingest().put("orders", "o1", json!({"n": 2})).await;
    let received = by_target(server.wait_for(5).await);
    assert_eq!(received["/header"].header("x-api-key"), Some("n3w-s3cret"));
    let all_say = async |text: &str| {
        until("all to be refused", async || {
            let sinks = worker.status().await["sinks"].clone();
            sinks
                .as_object()?
                .values()
                .all(|sink| sink["lastError"].as_str().is_some_and(|error| error.contains(text)))
                .then_some(())
        })
        .await;
        worker.status().await.to_string()
    };
    let mut shown = all_say("answered 422 Unprocessable Entity: got ").await;
    for n in 0..2 {
        server.behave(move |request| {
            let names = ["authorization", "x-api-key", "x-key"];
            let value = names.iter().find_map(|name| request.header(name)).unwrap_or_default();
            let credential = value.split_once(' ').map_or(value, |(_, credential)| credential);
            // The text before the credential leaves room for half of it.
            let before = format!("try {n} {}", "-".repeat(294 - credential.len() / 2));
            Reply::status(422).with_body(before + credential)
        });
        worker.ingest().put("orders", "o1", json!({"n": 3 + n})).await;
        shown += &all_say(&format!("answered 422 Unprocessable Entity: try {n} ---")).await;
    }
    let log = worker.stop().await.stderr;
    for text in [&shown, &log] {
        for secret in ["s3cret", "env-s", "n3w", "key s", &pair[..8]] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
}

#[tokio::test]
async fn a_start_without_a_variable_or_credential_says_which() {
    let sink = |http: &str| {
        WorkerSite::with(&manifest(&[("s", format!(r#"url: "http://127.0.0.1:1/${{PART}}", {http}"#))]))
    };
    let mut said = String::new();
    for (http, variable) in [
        ("", "UNSET"),
        ("auth: {bearer: {env: '${TOKEN}'}}", "PART"),
        ("auth: {bearer: {secretKeyRef: {name: api, key: token}}}", "PART"),
        ("tls: {ca: {path: absent.pem}}", "PART"),
        ("signingKey: {env: '${SIGNER}'}", "PART"),
    ] {
        let ended = sink(http).run([]).with_variable(variable, "x").end().await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        said += &ended.stderr;
    }
    expect![[r#"
        error: sink s: url: the environment variable PART is not set; set it where the worker is started
        error: sink s: auth.bearer: the environment variable TOKEN is not set; set it where the worker is started
        error: sink s: auth.bearer: Secret api cannot be looked up: the worker was started without --secrets-dir; give it the folder that holds api/token, or write env in place of secretKeyRef
        error: sink s: tls.ca: could not read absent.pem: No such file or directory (os error 2)
        error: sink s: signingKey: the environment variable SIGNER is not set; set it where the worker is started
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn results_go_to_no_other_server() {
    let (server, other) = (Server::start().await, Server::start().await);
    let elsewhere = other.url("/stolen");
    server.behave(move |request| match (request.path(), request.method.as_str()) {
        ("/moved", _) => Reply::status(307).with_header("location", "/here"),
        ("/seen", "POST") => Reply::status(303).with_header("location", "/here"),
        ("/elsewhere", _) => Reply::status(308).with_header("location", &elsewhere),
        _ => Reply::status(200),
    });
    let url = |path: &str| format!(r#"url: "{}""#, server.url(path));
    let site = WorkerSite::with(&manifest(&[
        ("s", url("/moved")),
        ("seen", url("/seen")),
        ("elsewhere", url("/elsewhere")),
    ]));
    let worker = site.start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    sink_status(&worker, "delivered", &json!(1)).await;
    let status = until("both others to fail", async || {
        let sinks = worker.status().await["sinks"].clone();
        let fails = |name: &str| sinks[name]["lastError"].is_string();
        (fails("seen") && fails("elsewhere")).then_some(sinks)
    })
    .await;
    expect![
        "answered 308 Permanent Redirect, a redirect that is not followed; write the URL that it leads to"
    ]
    .assert_eq(status["elsewhere"]["lastError"].as_str().expect("a text"));
    assert_eq!((&status["seen"]["delivered"], &status["elsewhere"]["delivered"]), (&json!(0), &json!(0)));
    assert_eq!(other.received(), []);
    let here: Vec<Received> = server.take().into_iter().filter(|r| r.path() == "/here").collect();
    assert_eq!(here.iter().map(|r| r.method.as_str()).collect::<Vec<_>>(), ["POST"]);
    worker.kill().await;
}

#[tokio::test]
async fn servers_are_verified_and_get_our_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let site = WorkerSite::new();
    site.write("ca.pem", authority.pem());
    site.write("stranger.pem", stranger.pem());
    stranger.sign(&["worker"]).write(site.path(), "worker");
    let plain = Server::start_tls(authority.server(&authority.sign(&["127.0.0.1"]), None)).await;
    let named = Server::start_tls(authority.server(&authority.sign(&["hooks.example"]), None)).await;
    let mutual = authority.server(&authority.sign(&["127.0.0.1"]), Some(&stranger));
    let mutual = Server::start_tls(mutual).await;
    let ours = "cert: {path: worker.crt}, key: {secretKeyRef: {name: tls, key: worker.key}}";
    std::fs::create_dir_all(site.path().join("secrets/tls")).expect("a folder can be made");
    let key = std::fs::read(site.path().join("worker.key")).expect("the key is there");
    site.write("secrets/tls/worker.key", key);
    let ca = "ca: {path: ca.pem}";
    let sinks = [
        ("trusted", &plain, ca.to_owned(), true),
        ("untrusted", &plain, "ca: {path: stranger.pem}".to_owned(), false),
        ("system", &plain, "serverName: 127.0.0.1".to_owned(), false),
        ("unchecked", &plain, "insecureSkipVerify: true".to_owned(), true),
        ("misnamed", &named, ca.to_owned(), false),
        ("renamed", &named, format!("{ca}, serverName: hooks.example"), true),
        ("nobody", &mutual, ca.to_owned(), false),
        ("known", &mutual, format!("{ca}, {ours}"), true),
    ];
    let written: Vec<(&str, String)> = sinks
        .iter()
        .map(|(name, server, tls, _)| (*name, format!(r#"url: "{}", tls: {{{tls}}}"#, server.url("/hook"))))
        .collect();
    site.write("pipeline.yaml", manifest(&written));
    let worker = site.run(["--secrets-dir", "secrets"]).start().await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    for (name, _, _, takes) in sinks {
        let field = if takes { "delivered" } else { "failed" };
        until(&format!("{name} to count as {field}"), async || {
            let sink = worker.status().await["sinks"][name].clone();
            (sink[field] != 0).then_some(())
        })
        .await;
        let sink = worker.status().await["sinks"][name].clone();
        assert_eq!(sink["delivered"] == 1, takes, "{name}: {sink}");
    }
    // Changed certificates are used: the trusted authority's, and our own.
    let ours = authority.sign(&["worker"]);
    ours.write(site.path(), "worker");
    site.write("secrets/tls/worker.key", &ours.key);
    site.write("stranger.pem", authority.pem());
    until("the new authority to be trusted", async || {
        (worker.status().await["sinks"]["untrusted"]["delivered"] == 1).then_some(())
    })
    .await;
    worker.ingest().put("orders", "o2", json!({"n": 2})).await;
    until("our new certificate to be refused", async || {
        worker.status().await["sinks"]["known"]["lastError"].is_string().then_some(())
    })
    .await;
    worker.kill().await;
}

#[tokio::test]
async fn requests_go_through_the_proxy_of_the_sink_or_of_the_environment() {
    let (written, inherited) = (Server::start().await, Server::start().await);
    let url = r#"url: "http://hooks.example/in""#;
    let site = WorkerSite::with(&manifest(&[
        ("s", format!(r#"{url}, proxy: "http://${{PROXY}}""#)),
        ("inherits", url.to_owned()),
    ]));
    let worker = site
        .run([])
        .with_variable("PROXY", &written.address().to_string())
        .with_variable("HTTP_PROXY", &inherited.url(""))
        .start()
        .await;
    worker.ingest().put("orders", "o1", json!({"n": 1})).await;
    for proxy in [&written, &inherited] {
        let received = proxy.wait_for(1).await;
        assert_eq!(received[0].target, "http://hooks.example/in");
    }
    worker.stop().await;
}
