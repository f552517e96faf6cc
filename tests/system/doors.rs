//! The same nasty input at every door: http, a file, Kafka and an API. A row of the table has one outcome at all doors, or the
//! reason why a door differs stands in [`DIFFERENCES`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use expect_test::expect_file;
use litejoin_tests::kafka;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::server::{Reply, Server};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};

use crate::kafka::{caught_up, unique};

/// A key as JSON writes it, and a payload in which `KEY` stands for it and `N` for the number of the row.
struct Nasty {
    name: &'static str,
    key: &'static str,
    payload: Vec<u8>,
}

/// Doors at which an input has another outcome than by http, and why.
const DIFFERENCES: [(&str, &str, &str); 9] = [
    (
        "both halves of a character",
        "api",
        "a record is written anew, its fields sorted, so that the same one is no change",
    ),
    (
        "a payload null",
        "file",
        "null has no fields, so no key; a line without a payload of its own deletes nothing",
    ),
    ("a payload null", "api", "null has no fields, so no key; deletes are found by detectDeletes"),
    ("JSON in a text", "file", "a text has no fields, so no key"),
    (
        "JSON in a text",
        "kafka",
        "a value is taken as it is: the key is the record's own, and a text is JSON too",
    ),
    ("JSON in a text", "api", "a text has no fields, so no key"),
    (
        "a bare text",
        "kafka",
        "a value is taken as it is: the key is the record's own, and a text is JSON too",
    ),
    ("nothing", "file", "an empty line is no line"),
    ("nothing", "api", "an empty list has no records"),
];

fn inputs() -> Vec<Nasty> {
    let with_key = |name, key, value: &str| Nasty {
        name,
        key,
        payload: format!(r#"{{"id":KEY,"n":N,"v":{value}}}"#).into_bytes(),
    };
    let value = |name, value: &str| with_key(name, r#""kN""#, value);
    let whole = |name, payload: &[u8]| Nasty { name, key: r#""kN""#, payload: payload.to_vec() };
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    vec![
        value("plain", "1"),
        whole("a byte order mark", "\u{feff}{\"id\":KEY,\"n\":N,\"v\":1}".as_bytes()),
        value("half a character", r#""cut\ud83d""#),
        value("half a character, the other one", r#""\ude00cut""#),
        value("both halves of a character", r#""\ud83d\ude00""#),
        value("an escaped backslash before u", r#""\\ud83d""#),
        value("1e400", "1e400"),
        value("-0.0", "-0.0"),
        value("1.50", "1.50"),
        value("an integer of 20 digits", "89014103211118510720"),
        value("very many digits", &format!("0.{}1", "0".repeat(400))),
        value("a field twice", r#"1,"v":2"#),
        value("NUL in a value", r#""a\u0000b""#),
        value("128 levels", &nested(127)),
        value("129 levels", &nested(128)),
        value("a control character", "\"a\u{1}b\""),
        value("NaN", "NaN"),
        value("a comma too many", "1,"),
        whole("Latin-1", b"{\"id\":KEY,\"n\":N,\"v\":\"caf\xe9\"}"),
        whole("the framing of a schema registry", b"\0\0\0\0\x05{\"id\":KEY,\"n\":N,\"v\":1}"),
        whole("a payload null", b"null"),
        whole("JSON in a text", br#""{\"id\":KEY,\"n\":N,\"v\":1}""#),
        whole("a bare text", br#""text:N,""#),
        whole("nothing", b""),
        with_key("an empty key", r#""""#, "1"),
        with_key("NUL in a key", r#""a\u0000N""#, "1"),
        with_key("half a character in a key", r#""\ud83d""#, "1"),
        with_key("a key of two lines", r#""a\nN""#, "1"),
    ]
}

impl Nasty {
    fn key(&self, number: usize) -> String {
        self.key.replace('N', &number.to_string())
    }

    /// The payload of input `number`.
    fn payload(&self, number: usize) -> Vec<u8> {
        let mut payload = self.payload.clone();
        for (placeholder, text) in [("KEY", self.key(number)), ("N,", format!("{number},"))] {
            while let Some(at) =
                payload.windows(placeholder.len()).position(|found| found == placeholder.as_bytes())
            {
                // Within a text the key is escaped once more.
                let is_text = payload[0] == b'"' && placeholder == "KEY";
                let text = if is_text { text.replace('"', "\\\"") } else { text.clone() };
                payload.splice(at..at + placeholder.len(), text.bytes());
            }
        }
        payload
    }

    /// The payload with its byte order mark taken apart, which stands before all else.
    fn without_mark(&self, number: usize) -> (&'static str, Vec<u8>) {
        const MARK: &str = "\u{feff}";
        let payload = self.payload(number);
        match payload.strip_prefix(MARK.as_bytes()) {
            Some(rest) => (MARK, rest.to_vec()),
            None => ("", payload),
        }
    }

    /// The key in bytes, as Kafka has it.
    fn key_bytes(&self, number: usize) -> Vec<u8> {
        serde_json::from_str::<String>(&self.key(number)).map_or(b"\xed\xa0\xbd".to_vec(), String::into_bytes)
    }
}

fn manifest(kafka: &str, brokers: &str, url: &str, count: usize) -> String {
    let apis = (0..count).fold(String::new(), |mut apis, number| {
        let api = format!("url: \"{url}/{number}\", interval: 1h, keyPath: id");
        let _ = writeln!(apis, "    - {{name: api{number}, topic: api{number}, api: {{{api}}}}}");
        apis
    });
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 2}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [http]}}}}
    - {{name: lines, file: {{path: in.ndjson, topic: file, keyColumns: [id]}}}}
    - {{name: events, topic: kafka, kafka: {{brokers: "{brokers}", topics: ["{kafka}"]}}}}
{apis}  joins:
    - {{name: all_rows, query: "SELECT key, payload FROM http"}}
"#
    )
}

/// The reasons of what was refused, by the places.
fn refusals(site: &WorkerSite) -> BTreeMap<String, String> {
    let letters = rusqlite::Connection::open(site.data_dir().join("dlq.db")).expect("it is a database");
    let mut statement =
        letters.prepare("SELECT source || ' ' || position, reason FROM rejected").expect("a table");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("it can be read");
    rows.map(|row| row.expect("it can be read")).collect()
}

/// Waits until an API source has read its one answer, which has a record, and returns why the answer was refused.
async fn polled(worker: &Worker, name: &str) -> Option<String> {
    until(&format!("{name} to be polled"), async || {
        let source = worker.status().await["sources"][name].clone();
        let error = source["lastError"].as_str().map(str::to_owned);
        (source["accepted"] == 1 || source["refused"] == 1 || error.is_some()).then_some(error)
    })
    .await
}

/// A server that answers each path, a number, with a list of that input.
async fn serve(inputs: &[Nasty]) -> Server {
    let server = Server::start().await;
    let answers: Vec<(&str, Vec<u8>)> =
        inputs.iter().enumerate().map(|(n, input)| input.without_mark(n)).collect();
    server.behave(move |request| {
        let number: usize = request.path().trim_start_matches('/').parse().expect("a number");
        let (mark, payload) = &answers[number];
        Reply::status(200).with_body([mark.as_bytes(), b"[", payload, b"]"].concat())
    });
    server
}

/// Posts the inputs one by one, and returns why each was refused.
async fn post(worker: &Worker, inputs: &[Nasty]) -> Vec<Option<String>> {
    let mut refused = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let (mark, payload) = input.without_mark(number);
        let begin = format!(r#"{mark}{{"topic":"http","key":{},"payload":"#, input.key(number));
        let answer = worker.ingest().post(None, [begin.as_bytes(), &payload, b"}"].concat()).await;
        refused.push(answer.body["error"].as_str().map(str::to_owned));
    }
    refused
}

/// The payload of input `number` as a topic has it.
fn stored(site: &WorkerSite, topic: &str, number: usize) -> Option<String> {
    let marks = [format!("n\":{number},"), format!("n\\\":{number},"), format!("text:{number},")];
    let is_there = marks.map(|mark| format!("instr(payload, '{mark}')")).join(" OR ");
    let oracle = Oracle::read(&site.data_dir(), [topic]);
    let found = oracle.value(&format!("SELECT max(payload) AS p FROM {topic} WHERE {is_there}"));
    found.as_str().map(|payload| format!("stored {}", shortened(payload)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_input_has_the_same_outcome_at_every_door() {
    let inputs = inputs();
    let cluster = kafka::shared().await;
    let topic = unique("doors");
    cluster.create_topic(&topic, 1).await;
    let producer = cluster.producer();
    let mut lines = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let (key, payload) = (input.key_bytes(number), input.payload(number));
        producer.send_with(&topic, Some(0), Some(&key), Some(&payload), &[]).await;
        lines.push(payload);
    }
    let server = serve(&inputs).await;
    let site = WorkerSite::with(&manifest(&topic, &cluster.brokers(), &server.url(""), inputs.len()));
    site.write("in.ndjson", lines.join(&b'\n'));
    let worker = site.start().await;

    let answered = post(&worker, &inputs).await;
    caught_up(&worker, &BTreeMap::from([(format!("{topic}/0"), inputs.len() as u64)])).await;
    until("the end of the file", async || {
        (worker.status().await["sources"]["lines"]["finished"] == true).then_some(())
    })
    .await;
    let mut answers = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let name = format!("api{number}");
        // Nothing tells that an empty list was read.
        answers.push(if input.payload.is_empty() { None } else { polled(&worker, &name).await });
    }
    worker.stop().await;

    let refused = refusals(&site);
    let by = |is_place: &dyn Fn(&str) -> bool| {
        refused.iter().find(|(place, _)| is_place(place)).map(|(_, reason)| reason.clone())
    };
    let mut said = String::new();
    let mut differences = Vec::new();
    for (number, input) in inputs.iter().enumerate() {
        let api = format!("api{number}");
        let doors = [
            ("http", "http", answered[number].clone()),
            ("file", "file", by(&|place| place == format!("lines in.ndjson: line {}", number + 1))),
            ("kafka", "kafka", by(&|place| place.ends_with(&format!("[0] offset {number}")))),
            ("api", &api, by(&|place| place.starts_with(&format!("{api} "))).or(answers[number].clone())),
        ];
        let outcomes = doors.map(|(door, topic, reason)| {
            let refused = reason.map(|reason| format!("refused: {}", shortened(&reason)));
            (door, stored(&site, topic, number).or(refused).unwrap_or("nothing".to_owned()))
        });
        let kind = |outcome: &str| match outcome.starts_with("refused") {
            true => "refused".to_owned(),
            false => outcome.to_owned(),
        };
        let first = &outcomes[0].1;
        let others = outcomes.iter().filter(|(_, outcome)| kind(outcome) != kind(first));
        differences.extend(others.map(|(door, _)| (input.name, *door)));
        let _ = writeln!(said, "{}", input.name);
        match outcomes.iter().all(|(_, outcome)| outcome == first) {
            true => said += &format!("  {first}\n"),
            false => said.extend(outcomes.iter().map(|(door, outcome)| format!("  {door}: {outcome}\n"))),
        }
    }
    expect_file!["doors.txt"].assert_eq(&said);
    let known: Vec<(&str, &str)> = DIFFERENCES.iter().map(|(name, door, _)| (*name, *door)).collect();
    assert_eq!(differences, known);
}

/// A text with its long runs left out.
fn shortened(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= 200 {
        return text.to_owned();
    }
    let begin: String = characters[..80].iter().collect();
    let end: String = characters[characters.len() - 40..].iter().collect();
    format!("{begin}…{end}")
}
