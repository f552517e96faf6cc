//! Messages that can't be taken: each is refused with its place and a reason, and the others of its request are stored.

use expect_test::expect;
use litejoin_tests::client::client;
use litejoin_tests::ingest::{Answer, Ingest, message};
use litejoin_tests::worker::{Worker, WorkerSite};
use serde_json::{Value, json};

const MANIFEST: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 2}
  admin: {addr: "127.0.0.1:0"}
  sources:
    - name: ingest
      http: {addr: "127.0.0.1:0", topics: [orders]}
    - name: open
      http: {addr: "127.0.0.1:0", topics: [], maxBodyBytes: 1Mi}
  joins:
    - {name: all_orders, query: "SELECT key, payload FROM orders", sinks: [live]}
  sinks:
    - name: live
      sse: {addr: "127.0.0.1:0"}
"#;

const JSON: Option<&str> = Some("application/json");
const LINES: Option<&str> = Some("application/x-ndjson");

/// The status and the body of an answer, on one line, without the number of the epoch.
fn shown(mut answer: Answer) -> String {
    if let Some(epoch) = answer.body.get_mut("epoch") {
        *epoch = json!("E");
    }
    format!("{} {}\n", answer.status, answer.body)
}

/// Keys of all orders that the join has, after one more message.
async fn keys(worker: &Worker) -> Vec<String> {
    let epoch = worker.ingest().put("orders", "last", json!({})).await;
    let (_, results) = worker.snapshot("live", "all_orders", epoch).await;
    results.rows.into_keys().map(|(_, key)| key).collect()
}

#[tokio::test]
async fn bad_messages_are_refused_one_by_one() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let ingest = worker.ingest();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let very_deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: Vec<(&str, Option<&str>, Vec<u8>)> = vec![
        ("broken JSON amid lines", LINES, b"{\"topic\":\"orders\",\"key\":\"a\",\"payload\":1}\n{\"topic\":\"orders\",\"key\":\"b\",\"pay\n{\"topic\":\"orders\",\"key\":\"c\",\"payload\":1}\n".to_vec()),
        ("broken JSON amid lines, guessed", None, b"{\"topic\":\"orders\",\"key\":\"d\",\"payload\":1}\nnonsense\n{\"topic\":\"orders\",\"key\":\"e\",\"payload\":1}".to_vec()),
        ("broken array", JSON, b"[{\"topic\":\"orders\",\"key\":\"f\",\"payload\":1},".to_vec()),
        ("no JSON", JSON, b"hello".to_vec()),
        ("nothing", JSON, Vec::new()),
        ("a number", JSON, b"1".to_vec()),
        ("empty key", JSON, message("orders", "", json!(1)).to_string().into()),
        ("NUL in key", JSON, message("orders", "a\0b", json!(1)).to_string().into()),
        ("long key", JSON, message("orders", &"k".repeat(5000), json!(1)).to_string().into()),
        ("number as key", JSON, br#"{"topic":"orders","key":1,"payload":1}"#.to_vec()),
        ("no payload", JSON, br#"{"topic":"orders","key":"x"}"#.to_vec()),
        ("unknown field", JSON, br#"{"topic":"orders","key":"x","payload":1,"ttl":5}"#.to_vec()),
        ("text that is no JSON", JSON, message("orders", "x", json!("text")).to_string().into()),
        ("deep", JSON, format!(r#"{{"topic":"orders","key":"x","payload":{deep}}}"#).into()),
        ("very deep", JSON, format!(r#"{{"topic":"orders","key":"x","payload":{very_deep}}}"#).into()),
        ("deep in a string", JSON, message("orders", "x", json!(deep)).to_string().into()),
        ("no UTF-8", JSON, b"{\"topic\":\"orders\",\"key\":\"\xff\",\"payload\":1}".to_vec()),
        ("no UTF-8 amid lines", LINES, b"{\"topic\":\"orders\",\"key\":\"\xff\",\"payload\":1}\n{\"topic\":\"orders\",\"key\":\"g\",\"payload\":1}".to_vec()),
        ("gzip", JSON, b"\x1f\x8b\x08\0\0\0\0\0".to_vec()),
        ("half a surrogate", JSON, br#"{"topic":"orders","key":"\ud800","payload":1}"#.to_vec()),
        ("unknown topic", JSON, message("order", "x", json!(1)).to_string().into()),
        ("milliseconds", JSON, br#"{"topic":"orders","key":"x","payload":1,"timestamp":1700000000000}"#.to_vec()),
        ("one of two in an array", JSON, Value::from(vec![message("orders", "h", json!(1)), message("nope", "x", json!(1))]).to_string().into()),
    ];
    let mut said = String::new();
    for (name, content_type, body) in bodies {
        let answer = ingest.post(content_type, body).await;
        said += &format!("{name}: {}", shown(answer));
    }
    expect![[r#"
        broken JSON amid lines: 400 {"accepted":2,"epoch":"E","error":"1 of 3 messages were refused; line 2: EOF while parsing a string at line 1 column 32","refused":[{"error":"EOF while parsing a string at line 1 column 32","item":1,"line":2}]}
        broken JSON amid lines, guessed: 400 {"accepted":2,"epoch":"E","error":"1 of 3 messages were refused; line 2: expected ident at line 1 column 2","refused":[{"error":"expected ident at line 1 column 2","item":1,"line":2}]}
        broken array: 400 {"accepted":0,"error":"the body is no JSON: EOF while parsing a value at line 1 column 42"}
        no JSON: 400 {"accepted":0,"error":"the body is no JSON: expected value at line 1 column 1"}
        nothing: 400 {"accepted":0,"error":"the body is empty; send {\"topic\":…,\"key\":…,\"payload\":…}, an array of them, or one a line"}
        a number: 400 {"accepted":0,"error":"invalid type: integer `1`, expected an object {topic, key, payload} at line 1 column 1","refused":[{"error":"invalid type: integer `1`, expected an object {topic, key, payload} at line 1 column 1","item":0}]}
        empty key: 400 {"accepted":0,"error":"key is empty; every message needs one","refused":[{"error":"key is empty; every message needs one","item":0}]}
        NUL in key: 400 {"accepted":0,"error":"key has a NUL character; SQLite would cut it short there, so leave it out","refused":[{"error":"key has a NUL character; SQLite would cut it short there, so leave it out","item":0}]}
        long key: 400 {"accepted":0,"error":"key has 5000 bytes; at most 4096 are allowed","refused":[{"error":"key has 5000 bytes; at most 4096 are allowed","item":0}]}
        number as key: 400 {"accepted":0,"error":"invalid type: integer `1`, expected a string at line 1 column 25","refused":[{"error":"invalid type: integer `1`, expected a string at line 1 column 25","item":0}]}
        no payload: 400 {"accepted":0,"error":"missing field `payload` at line 1 column 28","refused":[{"error":"missing field `payload` at line 1 column 28","item":0}]}
        unknown field: 400 {"accepted":0,"error":"unknown field `ttl`, expected one of `topic`, `key`, `payload`, `timestamp` at line 1 column 45","refused":[{"error":"unknown field `ttl`, expected one of `topic`, `key`, `payload`, `timestamp` at line 1 column 45","item":0}]}
        text that is no JSON: 400 {"accepted":0,"error":"payload is a string that holds no JSON (expected ident at line 1 column 2); send the JSON itself, or a string of it","refused":[{"error":"payload is a string that holds no JSON (expected ident at line 1 column 2); send the JSON itself, or a string of it","item":0}]}
        deep: 400 {"accepted":0,"error":"payload is nested 200 levels deep; at most 128 are allowed","refused":[{"error":"payload is nested 200 levels deep; at most 128 are allowed","item":0}]}
        very deep: 400 {"accepted":0,"error":"payload is nested 100000 levels deep; at most 128 are allowed","refused":[{"error":"payload is nested 100000 levels deep; at most 128 are allowed","item":0}]}
        deep in a string: 400 {"accepted":0,"error":"payload is nested 200 levels deep; at most 128 are allowed","refused":[{"error":"payload is nested 200 levels deep; at most 128 are allowed","item":0}]}
        no UTF-8: 400 {"accepted":0,"error":"the body is no UTF-8 (first bad byte at 25)"}
        no UTF-8 amid lines: 400 {"accepted":1,"epoch":"E","error":"1 of 2 messages were refused; line 1: no UTF-8 (first bad byte at 25)","refused":[{"error":"no UTF-8 (first bad byte at 25)","item":0,"line":1}]}
        gzip: 400 {"accepted":0,"error":"the body is packed by gzip; send it unpacked"}
        half a surrogate: 400 {"accepted":0,"error":"\\ud800 at byte 25 has no other half, so it is no Unicode; send the whole character, or leave it out","refused":[{"error":"\\ud800 at byte 25 has no other half, so it is no Unicode; send the whole character, or leave it out","item":0}]}
        unknown topic: 400 {"accepted":0,"error":"this source takes no topic \"order\"; it takes orders","refused":[{"error":"this source takes no topic \"order\"; it takes orders","item":0}]}
        milliseconds: 400 {"accepted":0,"error":"timestamp 1700000000000 is no time in seconds since 1970; milliseconds must be divided by 1000","refused":[{"error":"timestamp 1700000000000 is no time in seconds since 1970; milliseconds must be divided by 1000","item":0}]}
        one of two in an array: 400 {"accepted":1,"epoch":"E","error":"1 of 2 messages were refused; item 1: this source takes no topic \"nope\"; it takes orders","refused":[{"error":"this source takes no topic \"nope\"; it takes orders","item":1}]}
    "#]].assert_eq(&said);
    let stored = ["a", "c", "d", "e", "g", "h", "last"].map(|key| format!("\"{key}\""));
    assert_eq!(keys(&worker).await, stored);
    let status = worker.status().await;
    assert_eq!(status["sources"]["ingest"]["refused"], 23, "{status}");
}

#[tokio::test]
async fn a_body_that_is_too_large() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let hundred_megabytes = vec![b' '; 100 << 20];
    let answer = worker.ingest().post(JSON, hundred_megabytes).await;
    expect![[r#"
        413 {"error":"the body is larger than the 16777216 bytes that maxBodyBytes allows; send it in pieces"}
    "#]]
    .assert_eq(&shown(answer));
    // The body is sent in pieces, so that its length is not known before.
    let pieces = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 19])));
    let open = Ingest::new(worker.address("source open"));
    let answer = open.post(JSON, reqwest::Body::wrap_stream(pieces)).await;
    expect![[r#"
        413 {"error":"the body is larger than the 1048576 bytes that maxBodyBytes allows; send it in pieces"}
    "#]]
    .assert_eq(&shown(answer));
    assert_eq!(keys(&worker).await, ["\"last\""]);
}

#[tokio::test]
async fn a_body_that_breaks_off_stores_nothing() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let begin =
        b"{\"topic\":\"orders\",\"key\":\"a\",\"payload\":1}\n{\"topic\":\"orders\",\"key\":\"b\",".to_vec();
    let pieces = futures::stream::iter([Ok(begin), Err(std::io::Error::other("the client is gone"))]);
    let outcome = worker.ingest().try_post(LINES, reqwest::Body::wrap_stream(pieces)).await;
    assert!(outcome.is_err(), "{outcome:?}");
    assert_eq!(keys(&worker).await, ["\"last\""]);
}

#[tokio::test]
async fn a_source_that_takes_any_topic_takes_a_hundred() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let open = Ingest::new(worker.address("source open"));
    let messages: Vec<Value> = (0..105).map(|n| message(&format!("t{n}"), "k", json!(n))).collect();
    let answer = open.try_send(&messages).await.expect("an answer");
    expect![[r#"
        400 {"accepted":99,"epoch":"E","error":"6 of 105 messages were refused; item 99: topic \"t99\" would be one more than the 100 allowed; use one of the present ones","refused":[{"error":"topic \"t99\" would be one more than the 100 allowed; use one of the present ones","item":99},{"error":"topic \"t100\" would be one more than the 100 allowed; use one of the present ones","item":100},{"error":"topic \"t101\" would be one more than the 100 allowed; use one of the present ones","item":101},{"error":"topic \"t102\" would be one more than the 100 allowed; use one of the present ones","item":102},{"error":"topic \"t103\" would be one more than the 100 allowed; use one of the present ones","item":103},{"error":"topic \"t104\" would be one more than the 100 allowed; use one of the present ones","item":104}]}
    "#]].assert_eq(&shown(answer));
    let mut said = String::new();
    for topic in ["two words", "1st", "_mine", "sqlite_x", "all_orders", "", "ORDERS", "T5"] {
        let answer = open.try_send(&[message(topic, "k", json!(1))]).await.expect("an answer");
        said += &format!("{topic:?}: {}", shown(answer));
    }
    expect![[r#"
        "two words": 400 {"accepted":0,"error":"topic \"two words\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","refused":[{"error":"topic \"two words\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","item":0}]}
        "1st": 400 {"accepted":0,"error":"topic \"1st\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","refused":[{"error":"topic \"1st\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","item":0}]}
        "_mine": 400 {"accepted":0,"error":"topic \"_mine\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","refused":[{"error":"topic \"_mine\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","item":0}]}
        "sqlite_x": 400 {"accepted":0,"error":"topic \"sqlite_x\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","refused":[{"error":"topic \"sqlite_x\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","item":0}]}
        "all_orders": 400 {"accepted":0,"error":"topic \"all_orders\" is the name of a join; send to another topic","refused":[{"error":"topic \"all_orders\" is the name of a join; send to another topic","item":0}]}
        "": 400 {"accepted":0,"error":"topic \"\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","refused":[{"error":"topic \"\" is no plain name; use a letter, then letters, digits and _, 63 at most, and no sqlite_ in front","item":0}]}
        "ORDERS": 200 {"accepted":1,"epoch":"E"}
        "T5": 200 {"accepted":1,"epoch":"E"}
    "#]].assert_eq(&said);
}

#[tokio::test]
async fn a_body_that_says_that_it_is_packed_is_told_to_come_unpacked() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let url = worker.url("source ingest", "/ingest");
    let body = message("orders", "x", json!(1)).to_string();
    let request = client().post(&url).header("Content-Encoding", "gzip").body(body);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 415);
    expect![[r#"{"error":"the body has Content-Encoding \"gzip\"; send it unpacked, without that header"}"#]]
        .assert_eq(&response.text().await.expect("a body"));
    assert_eq!(keys(&worker).await, ["\"last\""]);
}

#[tokio::test]
async fn a_page_on_another_site_can_not_make_a_browser_send() {
    let site = WorkerSite::with(MANIFEST);
    let worker = site.start().await;
    let url = worker.url("source ingest", "/ingest");
    let body = message("orders", "x", json!(1)).to_string();
    let request = client().post(&url).header("Origin", "http://elsewhere.example").body(body);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 415);
    expect![[r#"{"error":"a browser must send Content-Type: application/json or application/x-ndjson"}"#]]
        .assert_eq(&response.text().await.expect("a body"));
    assert_eq!(keys(&worker).await, ["\"last\""]);
}
