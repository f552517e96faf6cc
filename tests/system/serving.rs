//! The addresses that the worker serves (ingest, SSE, admin): tokens, certificates, and clients that are too many or too
//! slow.

use std::net::SocketAddr;

use expect_test::expect;
use futures::future::join_all;
use litejoin_tests::certificates::{Authority, Identity};
use litejoin_tests::client::{client, client_with};
use litejoin_tests::ingest::message;
use litejoin_tests::sse::Subscription;
use litejoin_tests::wait::{TIMEOUT, until};
use litejoin_tests::worker::{Worker, WorkerSite};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A pipeline that serves all its addresses with these fields.
fn manifest(serving: &str) -> String {
    let comma = if serving.is_empty() { "" } else { ", " };
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"{comma}{serving}}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]{comma}{serving}}}}}
  joins:
    - {{name: all_orders, query: "SELECT key, payload FROM orders", sinks: [live]}}
  sinks:
    - {{name: live, sse: {{addr: "127.0.0.1:0", heartbeatInterval: 50ms{comma}{serving}}}}}
"#
    )
}

/// The servers of a worker: the name, a path that is guarded, and one that shows health.
const SERVED: [(&str, &str, &str); 3] = [
    ("admin", "/status", "/readyz"),
    ("source ingest", "/ingest", "/health"),
    ("sink live", "/snapshot?join=all_orders", "/health"),
];

#[tokio::test]
async fn requests_without_the_token_are_refused() {
    let site = WorkerSite::with(&manifest("auth: {bearer: {secretKeyRef: {name: worker, key: token}}}"));
    std::fs::create_dir_all(site.path().join("secrets/worker")).expect("a folder can be made");
    site.write("secrets/worker/token", "s3cret\n");
    let worker = site.run(["--secrets-dir", "secrets"]).start().await;
    let ask = async |what: &str, path: &str, token: Option<&str>| {
        let request = match path {
            "/ingest" => client().post(worker.url(what, path)).json(&message("orders", "o1", json!(1))),
            _ => client().get(worker.url(what, path)),
        };
        let request = match token {
            Some(token) => request.header("authorization", token),
            None => request,
        };
        let response = request.timeout(TIMEOUT).send().await.expect("an answer comes");
        let challenge = response.headers().contains_key("www-authenticate");
        (response.status().as_u16(), challenge, response.text().await.expect("a text"))
    };
    for (what, path, health) in SERVED {
        assert_eq!(ask(what, health, None).await.0, 200, "{what}");
        let (status, challenge, text) = ask(what, path, None).await;
        assert_eq!((status, challenge), (401, true), "{what}");
        assert_eq!(text, r#"{"error":"a token is needed; send it as Authorization: Bearer"}"#);
        for wrong in ["Bearer other", "Bearer s3cre", "Bearer", "Basic s3cret", "s3cret"] {
            assert_eq!(ask(what, path, Some(wrong)).await.0, 401, "{what} {wrong}");
        }
        for right in ["Bearer s3cret", "bearer  s3cret"] {
            assert_eq!(ask(what, path, Some(right)).await.0, 200, "{what} {right}");
        }
        assert_eq!(ask(what, "/metrics", None).await.0, 401, "{what}: also what is not there");
    }
    // A browser sends a preflight without a token, and learns that it may send one.
    let preflight = client()
        .request(reqwest::Method::OPTIONS, worker.url("sink live", "/subscribe"))
        .header("origin", "http://app.example")
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization")
        .send()
        .await
        .expect("an answer comes");
    assert_eq!(preflight.status(), 200);
    let allowed = preflight.headers()["access-control-allow-headers"].to_str().expect("a text").to_owned();
    assert!(allowed.contains("authorization"), "{allowed}");
    // A token that is rotated counts at once; without the file no request is let in.
    site.write("secrets/worker/token", "n3w");
    assert_eq!(ask("admin", "/status", Some("Bearer s3cret")).await.0, 401);
    assert_eq!(ask("admin", "/status", Some("Bearer n3w")).await.0, 200);
    std::fs::remove_file(site.path().join("secrets/worker/token")).expect("the file is there");
    assert_eq!(ask("admin", "/status", Some("Bearer n3w")).await.0, 503);
    let log = worker.stop().await.stderr;
    assert!(!log.contains("s3cret") && !log.contains("n3w"), "{log}");
}

/// A client that trusts one authority, and shows an identity where it has one.
fn tls_client(authority: &Authority, identity: Option<&Identity>) -> reqwest::Client {
    client_with(|builder| {
        let ca = reqwest::Certificate::from_pem(authority.pem().as_bytes()).expect("a certificate");
        let builder = builder.tls_certs_only([ca]);
        match identity {
            None => builder,
            Some(Identity { cert, key }) => {
                let pem = format!("{cert}{key}");
                builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).expect("an identity"))
            }
        }
    })
}

fn https(worker: &Worker, what: &str, path: &str) -> String {
    worker.url(what, path).replacen("http", "https", 1)
}

#[tokio::test]
async fn certificates_are_served_with_and_reloaded() {
    let (old, new) = (Authority::new(), Authority::new());
    let site = WorkerSite::with(&manifest("tls: {cert: {path: server.crt}, key: {path: server.key}}"));
    old.sign(&["127.0.0.1"]).write(site.path(), "server");
    let worker = site.start().await;
    for (what, _, health) in SERVED {
        let answer = tls_client(&old, None).get(https(&worker, what, health)).send().await.expect(what);
        assert_eq!(answer.status(), 200, "{what}");
        assert!(tls_client(&new, None).get(https(&worker, what, health)).send().await.is_err(), "{what}");
        assert!(
            client().get(worker.url(what, health)).send().await.is_err(),
            "{what} is served with TLS only"
        );
    }
    // An open subscription outlives a change of the certificate.
    let url = https(&worker, "sink live", "/subscribe?join=all_orders&replay=true");
    let mut stream = tls_client(&old, None).get(url).send().await.expect("it subscribes");
    assert!(stream.chunk().await.expect("it goes on").is_some());

    let status = https(&worker, "admin", "/healthz");
    let answers = async |authority: &Authority| tls_client(authority, None).get(&status).send().await.is_ok();
    site.write("server.crt", "nonsense");
    until("the complaint", async || worker.log().contains("can't be used").then_some(())).await;
    assert!(answers(&old).await, "what can't be used changes nothing");
    new.sign(&["127.0.0.1"]).write(site.path(), "server");
    until("the new certificate", async || answers(&new).await.then_some(())).await;
    assert!(!answers(&old).await);
    let ingest = https(&worker, "source ingest", "/ingest");
    until("the new certificate of the source", async || {
        let request = tls_client(&new, None).post(&ingest).json(&message("orders", "late", json!(1)));
        request.send().await.is_ok_and(|answer| answer.status() == 200).then_some(())
    })
    .await;
    let mut came = Vec::new();
    while !String::from_utf8_lossy(&came).contains("late") {
        came.extend(stream.chunk().await.expect("it goes on").expect("it does not end"));
    }
    worker.stop().await;
}

#[tokio::test]
async fn clients_without_a_certificate_of_the_authority_do_not_come_in() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let site = WorkerSite::with(&manifest(
        "tls: {cert: {path: server.crt}, key: {secretKeyRef: {name: tls, key: key}}, clientCa: {path: clients.pem}}",
    ));
    let identity = servers.sign(&["127.0.0.1"]);
    identity.write(site.path(), "server");
    std::fs::create_dir_all(site.path().join("secrets/tls")).expect("a folder can be made");
    site.write("secrets/tls/key", &identity.key);
    site.write("clients.pem", clients.pem());
    let worker = site.run(["--secrets-dir", "secrets"]).start().await;
    let (known, unknown) = (clients.sign(&["app"]), strangers.sign(&["app"]));
    for (what, _, health) in SERVED {
        let ask = async |identity: Option<&Identity>| {
            tls_client(&servers, identity).get(https(&worker, what, health)).send().await
        };
        assert_eq!(ask(Some(&known)).await.expect(what).status(), 200);
        assert!(ask(None).await.is_err() && ask(Some(&unknown)).await.is_err(), "{what}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_start_without_a_token_or_certificate_says_which() {
    let authority = Authority::new();
    let mut said = String::new();
    for serving in [
        "auth: {bearer: {env: '${TOKEN}'}}",
        "tls: {cert: {path: absent.crt}, key: {path: server.key}}",
        "tls: {cert: {path: server.key}, key: {path: server.key}}",
        "tls: {cert: {path: server.crt}, key: {path: other.key}}",
    ] {
        for place in ["admin: {addr: \"127.0.0.1:0\"", "topics: [orders]", "heartbeatInterval: 50ms"] {
            let site = WorkerSite::with(&manifest("").replacen(place, &format!("{place}, {serving}"), 1));
            authority.sign(&["127.0.0.1"]).write(site.path(), "server");
            authority.sign(&["127.0.0.1"]).write(site.path(), "other");
            let ended = site.run([]).end().await;
            assert_eq!(ended.code, Some(1), "{}", ended.stderr);
            said += ended.stderr.lines().last().unwrap_or_default();
            said.push('\n');
        }
    }
    expect![[r#"
        error: spec.admin: auth.bearer: the environment variable TOKEN is not set; set it where the worker is started
        error: source ingest: auth.bearer: the environment variable TOKEN is not set; set it where the worker is started
        error: sink live: auth.bearer: the environment variable TOKEN is not set; set it where the worker is started
        error: spec.admin: tls.cert: could not read absent.crt: No such file or directory (os error 2)
        error: source ingest: tls.cert: could not read absent.crt: No such file or directory (os error 2)
        error: sink live: tls.cert: could not read absent.crt: No such file or directory (os error 2)
        error: spec.admin: tls.cert: holds no certificate in PEM form
        error: source ingest: tls.cert: holds no certificate in PEM form
        error: sink live: tls.cert: holds no certificate in PEM form
        error: spec.admin: tls.cert: does not go with tls.key: keys may not be consistent: KeyMismatch
        error: source ingest: tls.cert: does not go with tls.key: keys may not be consistent: KeyMismatch
        error: sink live: tls.cert: does not go with tls.key: keys may not be consistent: KeyMismatch
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn there_are_no_more_connections_than_are_allowed() {
    let site = WorkerSite::with(&manifest("maxConnections: 2"));
    let worker = site.start().await;
    for (what, _, health) in SERVED {
        let address = worker.address(what);
        let first = TcpStream::connect(address).await.expect("there is room");
        let _second = TcpStream::connect(address).await.expect("there is room");
        let ask =
            async || client().get(format!("http://{address}{health}")).send().await.expect("an answer comes");
        let answer = until("to be turned away", async || {
            let answer = ask().await;
            (answer.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
        })
        .await;
        assert_eq!(answer.headers()["retry-after"], "1", "{what}");
        assert_eq!(
            answer.text().await.expect("a text"),
            r#"{"error":"too many connections; come back later (maxConnections)"}"#
        );
        drop(first);
        until("room", async || (ask().await.status() == 200).then_some(())).await;
    }
    worker.stop().await;
}

/// Sends bytes, and returns all that comes until the worker closes the connection.
async fn until_closed(address: SocketAddr, sent: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("there is room");
    // The worker may close before all is sent; a reset is an end as well.
    let _ = stream.write_all(sent.as_bytes()).await;
    let mut came = Vec::new();
    let _ =
        tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut came)).await.expect("the connection is closed");
    String::from_utf8(came).expect("a text")
}

#[tokio::test]
async fn slow_clients_are_disconnected_after_the_timeout() {
    let site = WorkerSite::with(&manifest("clientTimeout: 2s"));
    let worker = site.start().await;
    let with_default = WorkerSite::with(&manifest("")).start().await;
    let slow = SERVED.iter().flat_map(|(what, ..)| {
        ["", "GET /health HTTP/1.1\r\nhost: x\r\n"].map(|sent| until_closed(worker.address(what), sent))
    });
    let given_up = tokio::select! {
        biased;
        _ = until_closed(with_default.address("admin"), "") => panic!("a worker with a longer timeout closed the connection before"),
        given_up = join_all(slow) => given_up,
    };
    for came in given_up {
        assert!(came.is_empty() || came.starts_with("HTTP/1.1 408"), "{came}");
    }
    let head =
        "POST /ingest HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let came = until_closed(worker.address("source ingest"), head).await;
    assert!(
        came.starts_with("HTTP/1.1 408") && came.contains("did not arrive within 2s (clientTimeout)"),
        "{came}"
    );
    // A subscriber that reads nothing is disconnected, and one that reads is not.
    let mut reading = Subscription::open(worker.address("sink live"), "join=all_orders", None).await;
    let mut stalled = TcpStream::connect(worker.address("sink live")).await.expect("there is room");
    let request = "GET /subscribe?join=all_orders HTTP/1.1\r\nhost: x\r\n\r\n";
    stalled.write_all(request.as_bytes()).await.expect("it is taken");
    let clients = async || worker.status().await["sinks"]["live"]["clients"].clone();
    until("both clients", async || (clients().await == 2).then_some(())).await;
    let ingest = worker.ingest();
    let text = "x".repeat(1 << 20);
    for number in 0..64 {
        ingest.put("orders", "big", json!({"n": number, "text": text})).await;
        while reading.expect_next().await.result().rows[0]["payload"]
            != json!({"n": number, "text": text}).to_string()
        {}
        if clients().await == 1 {
            break;
        }
    }
    until("the stalled client to be let go", async || (clients().await == 1).then_some(())).await;
    drop(stalled);
    worker.stop().await;
}

#[tokio::test]
async fn heads_have_an_end() {
    let site = WorkerSite::with(&manifest(""));
    let worker = site.start().await;
    for (what, ..) in SERVED {
        let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(1 << 20));
        let came = until_closed(worker.address(what), &long).await;
        assert!(came.is_empty() || came.starts_with("HTTP/1.1 431"), "{what}: {came}");
    }
    worker.stop().await;
}
