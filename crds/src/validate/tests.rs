//! Manifest snippets, each with all complaints about it, whole.

use super::*;

use expect_test::{Expect, expect};
use serde_json::Value;

/// The documents of a YAML text.
fn documents(yaml: &str) -> Vec<Document> {
    use serde::Deserialize;
    serde_yaml::Deserializer::from_str(yaml)
        .map(|document| Document { value: Value::deserialize(document).unwrap() })
        .collect()
}

/// One line a complaint: document, path, reason, message.
fn lines(complaints: &[Complaint]) -> String {
    complaints
        .iter()
        .map(|complaint| {
            let Complaint { place, reason, message, severity } = complaint;
            let warning = if *severity == Severity::Warning { "warning " } else { "" };
            format!("{} {}: {warning}{}: {message}\n", place.document, place.path, reason.as_str())
        })
        .collect()
}

/// Asserts the complaints about a manifest, errors or warnings.
fn check(yaml: &str, expected: Expect) {
    let complaints = match validate(&documents(yaml)) {
        Ok((_, warnings)) => warnings,
        Err(complaints) => complaints,
    };
    expected.assert_eq(&lines(&complaints));
}

/// A Pipeline `p` with these fields of its spec, in one line each.
fn pipeline(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: litejoin.io/v1alpha1\nkind: Pipeline\nmetadata: {{name: p}}\nspec:\n{spec}")
}

/// The cases that a real API server is held to as well, with the complaints about each.
#[test]
fn the_cases_of_the_server_are_judged_alike() {
    let cases = include_str!("../../../tests/cases/documents/cases.yaml");
    let cases: Vec<Value> = serde_yaml::from_str(cases).unwrap();
    let mut said = String::new();
    for case in &cases {
        let (kind, about) = (case["kind"].as_str().unwrap(), case["about"].as_str().unwrap());
        let name = case["name"].as_str().unwrap_or("subject");
        let document = |kind: &str, name: &str, spec: &Value| {
            let value = serde_json::json!({ "apiVersion": crate::API_VERSION, "kind": kind, "metadata": { "name": name }, "spec": spec });
            Document { value }
        };
        let mut documents = vec![document(kind, name, &case["spec"])];
        if kind != "Pipeline" {
            let spec = documents[0].value["spec"].as_object_mut().unwrap();
            spec.entry("pipelineRef").or_insert_with(|| serde_json::json!({ "name": "p" }));
            let filled = serde_json::json!({ "sources": [{ "name": "all", "http": { "addr": ":1", "topics": ["t"] } }] });
            documents.push(document("Pipeline", "p", &filled));
        }
        let complaints = validate(&documents).err().unwrap_or_default();
        let lines = if complaints.is_empty() { "accepted\n".to_owned() } else { lines(&complaints) };
        said += &format!("{kind} {about}: {}", lines.replace('\n', "\n  ").trim_end());
        said.push('\n');
    }
    expect_test::expect_file!["../../../tests/cases/documents/validate.txt"].assert_eq(&said);
}

const ORDERS: &str = r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  storage: {shardCount: 8, dataDir: ./data}
  sources:
    - name: ingest
      http: {addr: ":8080", topics: [orders, customers]}
  joins:
    - name: enriched
      query: |
        SELECT o.key AS order_id, json_extract(o.payload,'$.amount') AS amount, json_extract(c.payload,'$.name') AS customer
        FROM orders o LEFT JOIN customers c ON c.key = json_extract(o.payload,'$.customer_id')
      keyColumn: order_id
      sinks: [live]
  sinks:
    - name: live
      sse: {addr: ":9100"}
---
apiVersion: litejoin.io/v1alpha1
kind: Sink
metadata: {name: console}
spec:
  pipelineRef: {name: orders}
  joins: [enriched]        # a stand-alone sink may say what it takes; a join may name its sinks; both add up
  stdout: {}
"#;

#[test]
fn the_first_example_becomes_its_plan() {
    let (plan, warnings) = validate(&documents(ORDERS)).unwrap();
    assert_eq!(warnings, []);
    expect![[r#"
        Plan {
            name: "orders",
            namespace: "default",
            identity: "default/orders",
            config_hash: "32fdbd5d5e8de44d1347ec6b21b8fcf0b4773d0b124183adeb77e3f335e4c7b3",
            storage: Storage {
                shard_count: 8,
                data_dir: "./data",
                reader_pool_size: 4,
                batch_messages_max: 1000,
                flush_interval: 10ms,
                synchronous: Normal,
            },
            retention: Retention {
                duration: 86400s,
                clean_interval: 60s,
                emit_expiry: false,
                tombstone_duration: 86400s,
            },
            delivery: Delivery {
                guarantee: AtLeastOnce,
                replay_window: 600s,
                outbox_bytes_max: 1073741824,
                circuit_failures: 5,
                dlq: Dlq {
                    path: None,
                    retry_interval: 30s,
                    retries_max: None,
                    backoff_multiplier: 2.0,
                    backoff_max: 300s,
                    ttl: 259200s,
                    bytes_max: 524288000,
                    cleanup_interval: 3600s,
                },
            },
            replication: None,
            audit: Audit {
                enabled: true,
                idle_after: 60s,
                interval: 600s,
                repair: true,
            },
            admin: Admin {
                addr: ":9090",
                serving: Serving {
                    bearer: None,
                    tls: None,
                    connections_max: 2000,
                    client_timeout: 60s,
                },
            },
            sources: [
                Source {
                    name: "ingest",
                    place: Place {
                        document: 0,
                        path: "spec.sources[0]",
                    },
                    kind: Http(
                        HttpSource {
                            addr: ":8080",
                            topics: [
                                "orders",
                                "customers",
                            ],
                            body_bytes_max: 16777216,
                            waits_for_replica: false,
                            serving: Serving {
                                bearer: None,
                                tls: None,
                                connections_max: 2000,
                                client_timeout: 60s,
                            },
                        },
                    ),
                },
            ],
            joins: [
                Join {
                    name: "enriched",
                    place: Place {
                        document: 0,
                        path: "spec.joins[0]",
                    },
                    query: "SELECT o.key AS order_id, json_extract(o.payload,'$.amount') AS amount, json_extract(c.payload,'$.name') AS customer\nFROM orders o LEFT JOIN customers c ON c.key = json_extract(o.payload,'$.customer_id')\n",
                    key_column: Some(
                        "order_id",
                    ),
                    result_key: None,
                    sinks: [
                        "live",
                        "console",
                    ],
                },
            ],
            sinks: [
                Sink {
                    name: "live",
                    place: Place {
                        document: 0,
                        path: "spec.sinks[0]",
                    },
                    kind: Sse(
                        SseSink {
                            addr: ":9100",
                            cors_origins: [
                                "*",
                            ],
                            heartbeat_interval: 15s,
                            clients_max: 1000,
                            serving: Serving {
                                bearer: None,
                                tls: None,
                                connections_max: 2000,
                                client_timeout: 60s,
                            },
                        },
                    ),
                    joins: [
                        "enriched",
                    ],
                },
                Sink {
                    name: "console",
                    place: Place {
                        document: 1,
                        path: "spec",
                    },
                    kind: Stdout,
                    joins: [
                        "enriched",
                    ],
                },
            ],
        }
    "#]].assert_debug_eq(&plan);
}

#[test]
fn documents_are_of_our_kinds() {
    check(
        "{apiVersion: v1, kind: Secret, metadata: {name: s}}\n---\n{apiVersion: litejoin.io/v1, kind: Sink, metadata: {name: s}, spec: {}}\n---\n{apiVersion: litejoin.io/v1alpha1, kind: Sinks, metadata: {name: s}}\n---\n{kind: Deployment}\n---\n[1]",
        expect![[r#"
            0 apiVersion: UnknownApiVersion: got "v1" (kind Secret), allowed: litejoin.io/v1alpha1 with kind Pipeline, Source, Join, Window, Sink; move other documents to a file of their own
            1 apiVersion: UnknownApiVersion: got "litejoin.io/v1", allowed: litejoin.io/v1alpha1; did you mean "litejoin.io/v1alpha1"?
            2 kind: UnknownKind: got "Sinks", allowed: Pipeline, Source, Join, Window, Sink; did you mean "Sink"?
            3 apiVersion: MissingField: required field is missing; write apiVersion: litejoin.io/v1alpha1
            3 kind: UnknownKind: got "Deployment", allowed: Pipeline, Source, Join, Window, Sink
            4 : InvalidType: a document is an object with apiVersion, kind, metadata and spec
        "#]],
    );
    check(
        "{apiVersion: litejoin.io/v1alpha1, metadata: {name: s}}",
        expect![[r#"
        0 kind: MissingField: required field is missing; allowed: Pipeline, Source, Join, Window, Sink
    "#]],
    );
}

#[test]
fn one_pipeline_and_all_belong_to_it() {
    let sink = "{apiVersion: litejoin.io/v1alpha1, kind: Sink, metadata: {name: s}, spec: {pipelineRef: {name: order}, stdout: {}}}";
    check(
        sink,
        expect![[r#"
        0 : NoPipeline: no Pipeline among the documents; add one: {apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {name: order}, spec: {}}
    "#]],
    );
    check(
        &format!(
            "{sink}\n---\n{{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {{name: orders, namespace: a}}, spec: {{}}}}\n---\n{{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {{name: other}}, spec: {{}}}}"
        ),
        expect![[r#"
            0 spec.pipelineRef.name: UnknownReference: no Pipeline is called "order"; did you mean "orders"?
            2 metadata.name: SeveralPipelines: got a second Pipeline "other" beside "orders"; a run takes one, keep the other in a file of its own
        "#]],
    );
    let elsewhere = "{apiVersion: litejoin.io/v1alpha1, kind: Sink, metadata: {namespace: b}, spec: {pipelineRef: {name: x}, stdout: {}}}";
    check(
        &format!(
            "{{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {{name: Orders_1, namespace: a}}, spec: {{}}}}\n---\n{elsewhere}"
        ),
        expect![[r#"
            0 metadata.name: InvalidName: got "Orders_1", the name of an object has lower-case letters, digits and -, a letter first and no - last; write for example "orders-1"
            1 metadata.name: MissingField: required field is missing; name the sink, for example metadata: {name: orders}
            1 spec.pipelineRef.name: UnknownReference: no Pipeline is called "x"; the Pipeline of these documents is "Orders_1"
            1 metadata.namespace: Conflict: got "b", the Pipeline is in "a"; pipelineRef reaches only its own namespace
        "#]],
    );
    check(
        "{apiVersion: litejoin.io/v1alpha1, kind: Pipeline, metadata: {}}",
        expect![[r#"
        0 spec: MissingField: required field is missing
        0 metadata.name: MissingField: required field is missing; name the pipeline, for example metadata: {name: orders}
    "#]],
    );
}

#[test]
fn names_are_used_once() {
    let manifest = pipeline(
        r#"sources:
- {name: in, http: {addr: ":0", topics: [orders, Users]}}
- {name: in, file: {path: a.ndjson, topic: users, keyColumns: [id]}}
- {name: again, file: {path: b.ndjson, topic: orders, keyColumns: [id, id]}}
joins:
- {name: ORDERS, query: SELECT 1, sinks: [out]}
- {name: two, query: SELECT 1, sinks: [out]}
- {name: two, query: SELECT 1, sinks: [out]}
- {name: sqlite_x, query: SELECT 1, sinks: [out]}
windows:
- {name: two, type: tumbling, size: 1m, topic: orders, query: SELECT 1}
sinks:
- {name: out, stdout: {}}
- {name: out, stdout: {}}"#,
    );
    check(
        &format!(
            "{manifest}\n---\n{{apiVersion: litejoin.io/v1alpha1, kind: Join, metadata: {{name: Three_x}}, spec: {{pipelineRef: {{name: p}}, query: SELECT 1}}}}"
        ),
        expect![[r#"
            0 spec.joins[3].name: InvalidName: got "sqlite_x", names that begin with sqlite_ are SQLite's own; write for example "x"
            0 spec.sources[1].name: DuplicateName: two sources are called "in"; rename one
            0 spec.sinks[1].name: DuplicateName: two sinks are called "out"; rename one
            0 spec.sources[1].file.topic: DuplicateName: two topics are called "Users" and "users", which is one name to SQL; topics, joins and windows are tables of one database, rename one
            0 spec.joins[0].name: DuplicateName: a topic "orders" and a join "ORDERS" have one name to SQL; topics, joins and windows are tables of one database, rename one
            0 spec.joins[2].name: DuplicateName: two joins are called "two"; topics, joins and windows are tables of one database, rename one
            0 spec.windows[0].name: DuplicateName: a join and a window are both called "two"; topics, joins and windows are tables of one database, rename one
            0 spec.sources[2].file.keyColumns[1]: DuplicateName: got column "id" twice; remove one
            1 metadata.name: InvalidName: got "Three_x", the name of an object has lower-case letters, digits and -, a letter first and no - last; write for example "three-x"
        "#]],
    );
}

#[test]
fn references_lead_somewhere() {
    check(
        &pipeline(
            r#"joins:
- {name: totals, query: SELECT 1, sinks: [consle, nowhere]}
- {name: broken, sinks: [console]}
sinks:
- {name: console, stdout: {}, joins: [total, broken, "*"]}"#,
        ),
        expect![[r#"
            0 spec.joins[1].query: MissingField: required field is missing: one SELECT
            0 spec.joins[0].sinks[0]: UnknownReference: no sink is called "consle"; did you mean "console"?
            0 spec.joins[0].sinks[1]: UnknownReference: no sink is called "nowhere"; allowed: console
            0 spec.sinks[0].joins[0]: UnknownReference: no join or window is called "total"; did you mean "totals"?
            0 spec.sinks[0].joins[2]: UnknownReference: no join or window is called "*"; allowed: totals, broken
        "#]],
    );
    check(
        &pipeline("joins: [{name: totals, query: SELECT 1, sinks: [console]}]"),
        expect![[r#"
        0 spec.joins[0].sinks[0]: UnknownReference: no sink is called "console"; there is none, add one to spec.sinks or as a Sink of its own
    "#]],
    );
}

#[test]
fn what_nobody_takes_is_a_warning() {
    check(
        &pipeline(
            r#"joins:
- {name: base, query: SELECT 1 AS a}
- {name: lost, query: SELECT 1 AS baseline}
- {name: top, query: SELECT a FROM BASE, sinks: [out]}
sinks:
- {name: out, stdout: {}}
- {name: idle, stdout: {}}"#,
        ),
        expect![[r#"
            0 spec.joins[1]: warning Unused: no sink takes the join "lost" and no other query reads it; add sinks: [<a sink's name>]
            0 spec.sinks[1]: warning Unused: the sink "idle" takes no join; add joins: [<a join's name>], or its name to a join's sinks
        "#]],
    );
}

#[test]
fn sources_have_one_kind_and_what_it_needs() {
    check(
        &pipeline(
            r#"sources:
- {name: none}
- {name: both, http: {addr: ":0"}, file: {path: x.csv, topic: t, keyColumns: [id]}}
- {name: misspelt, htpp: {addr: ":0"}}
- {name: topic, http: {addr: ":0"}, topic: orders}
- {name: keyless, file: {path: x.csv, topic: orders}}
- {name: bare, file: {path: x.csv}}
- {name: keys, file: {path: x.jsonl, keyColumns: [id]}}
- {name: stdin, file: {path: "-"}}
- {name: again, file: {path: "-", format: ndjson}}
- {name: text, file: {path: data.txt, topic: orders, keyColumns: [id]}}
- {name: rate, file: {path: x.ndjson, rate: 0}}
- {name: acked, http: {addr: ":0"}, ack: replicated}
- {name: told, file: {path: x.ndjson}, ack: replicated}
- {name: tiny, http: {addr: ":0", maxBodyBytes: 10}}"#,
        ),
        expect![[r#"
            0 spec.sources[2].htpp: UnknownField: unknown field "htpp"; did you mean "http"?
            0 spec.sources[10].file.rate: OutOfRange: got 0, allowed 1 to 10000000
            0 spec.sources[0]: NotExactlyOne: says nothing to read; add exactly one of http, file, api and kafka
            0 spec.sources[1]: NotExactlyOne: got http and file; a source has exactly one, make others of the rest
            0 spec.sources[3].topic: Conflict: topic belongs to api and kafka sources; write http.topics instead
            0 spec.sources[4].file.keyColumns: Conflict: topic needs keyColumns; add the columns whose values are the key, such as keyColumns: [id]
            0 spec.sources[5].file.topic: Conflict: a csv file needs topic and keyColumns; its lines carry neither topic nor key
            0 spec.sources[6].file.keyColumns: Conflict: keyColumns needs topic; without it each line brings its own topic and key
            0 spec.sources[7].file.format: Conflict: standard input has no ending that says its format; add format: csv or format: ndjson
            0 spec.sources[8].file.path: Conflict: sources "stdin" and "again" both read standard input; give one a file
            0 spec.sources[9].file.format: Conflict: the ending of "data.txt" says no format (.csv, .ndjson, .jsonl); add format: csv or format: ndjson
            0 spec.sources[11].ack: Conflict: replicated needs replication.enabled: true in the Pipeline; else write committed
            0 spec.sources[12].ack: Conflict: an api or file source acknowledges nothing to anybody: how far it is lies with its rows, and both come back together, so replicated would change nothing; write committed
            0 spec.sources[13].http.maxBodyBytes: OutOfRange: got 10 bytes, allowed at least 64
        "#]],
    );
}

#[test]
fn sinks_have_one_kind_and_what_it_needs() {
    check(
        &pipeline(
            r#"sinks:
- {name: none, joins: []}
- {name: both, sse: {addr: ":0"}, stdout: {}}
- {name: origins, sse: {addr: ":0", corsOrigins: ["*", "https://a.example", "a.example/x"], heartbeatInterval: 0s, maxClients: 0}}
- {name: post, http: {url: "ftp://x", headers: {Authorization: x, "a b": y}, auth: {bearer: {}, basic: {username: {env: "${U}"}, password: {env: "${P}", secretKeyRef: {name: s, key: k}}}}}}
- {name: creds, http: {url: "https://me:pw@x.example/"}}
- {name: topic, kafka: {brokers: "a:9092, b", topic: t, tls: {cert: {path: c.pem}}}}"#,
        ),
        expect![[r#"
            0 spec.sinks[2].sse.maxClients: OutOfRange: got 0, allowed 1 to 1000000
            0 spec.sinks[0]: NotExactlyOne: says nowhere to deliver to; add exactly one of sse, stdout, http, kafka and sqlite
            0 spec.sinks[1]: NotExactlyOne: got sse and stdout; a sink has exactly one, make others of the rest
            0 spec.sinks[2].sse.corsOrigins[2]: InvalidValue: got "a.example/x", write scheme and host as a browser sends them, such as "https://app.example.com"
            0 spec.sinks[2].sse.heartbeatInterval: InvalidDuration: got "0s", allowed only more than zero
            0 spec.sinks[3].http.url: InvalidValue: is no URL; write for example https://api.example.com/orders
            0 spec.sinks[3].http.headers.Authorization: InvalidValue: a credential has no place among the headers; use auth, which takes a Secret or ${ENV}
            0 spec.sinks[3].http.headers["a b"]: InvalidName: got "a b", which is no name of a header; write for example "Accept"
            0 spec.sinks[3].http.auth: NotExactlyOne: got bearer and basic; write exactly one of bearer, basic, header
            0 spec.sinks[3].http.auth.bearer: NotExactlyOne: got none of secretKeyRef, env; write exactly one
            0 spec.sinks[3].http.auth.basic.password: NotExactlyOne: got secretKeyRef and env; write exactly one of secretKeyRef, env
            0 spec.sinks[4].http.url: InvalidValue: holds a user or password; remove it and use auth, which takes a Secret or ${ENV}
            0 spec.sinks[5].kafka.brokers: InvalidAddress: got "b", write host:port, with commas between several, such as "kafka-0:9092,kafka-1:9092"
            0 spec.sinks[5].kafka.tls: Conflict: cert and key go together; add the other or remove both
        "#]],
    );
}

#[test]
fn connectors_need_their_companions() {
    check(
        &pipeline(
            r#"sources:
- {name: a, api: {url: "https://x.example", interval: 30s, keyPath: id}}
- {name: b, topic: b, api: {url: "https://x.example", interval: 30s, keyPath: id, body: x, watermark: {strategy: cursor, path: next}, pagination: {type: offset, path: x, sizeParam: limit}}}
- {name: c, topic: c, api: {url: "${URL}", interval: 0s, keyPath: id, watermark: {strategy: etag, param: x}, pagination: {type: cursor}, rateLimit: {requests: 5, per: 0s}}}
- {name: d, kafka: {brokers: "k:9092", topics: [orders.v1, "^x.*", plain], topicNames: {other: not-plain}}}
- {name: e, topic: e, kafka: {brokers: "k:9092", topics: [orders.v1], topicNames: {orders.v1: e}}}
- {name: f, topic: f, api: {url: "https://x.example", interval: 30, keyPath: id, rateLimit: {requests: 0, per: 1s}}}"#,
        ),
        expect![[r#"
            0 spec.sources[5].api.interval: InvalidDuration: got "30", write a unit: "30s", "30ms", "30m" or "30h"
            0 spec.sources[5].api.rateLimit.requests: OutOfRange: got 0, allowed 1 to 1000000
            0 spec.sources[0].topic: Conflict: an api source needs a topic to fill; add topic beside api
            0 spec.sources[1].api.body: Conflict: a GET has no body; remove it or write method: POST
            0 spec.sources[1].api.watermark.param: Conflict: strategy cursor needs param; add api.watermark.param
            0 spec.sources[1].api.pagination.param: Conflict: type offset needs param; add api.pagination.param
            0 spec.sources[1].api.pagination.path: Conflict: type offset has no path; remove it
            0 spec.sources[1].api.pagination.size: Conflict: type offset needs size, the records on a page; add api.pagination.size
            0 spec.sources[1].api.pagination.sizeParam: Conflict: sizeParam needs size, what it sends; add api.pagination.size
            0 spec.sources[2].api.interval: InvalidDuration: got "0s", allowed only more than zero
            0 spec.sources[2].api.watermark.param: Conflict: strategy etag has no param; remove it or write strategy: timestamp or cursor
            0 spec.sources[2].api.pagination.param: Conflict: type cursor needs param; add api.pagination.param
            0 spec.sources[2].api.pagination.path: Conflict: type cursor needs path; add api.pagination.path
            0 spec.sources[2].api.rateLimit.per: InvalidDuration: got "0s", allowed only more than zero
            0 spec.sources[3].kafka.topicNames.other: InvalidName: got "not-plain", a topic is a table: letters, digits and _, a letter first; write for example "not_plain"
            0 spec.sources[3].kafka.topics[0]: InvalidName: the Kafka topic "orders.v1" cannot be a table of that name; add topicNames: {orders.v1: orders_v1}
            0 spec.sources[4].kafka.topicNames: Conflict: topic sends all records to one topic; remove topic or topicNames
        "#]],
    );
}

#[test]
fn kafka_needs_what_its_clients_need() {
    check(
        &pipeline(
            r#"sources:
- {name: a, topic: t, kafka: {brokers: "k:9092", topics: ["^(", "a b", ..], sasl: {mechanism: PLAIN, username: {env: "${U}"}, password: {}}}}
- {name: b, kafka: {brokers: ":9092,k", topics: [t], groupId: ""}}
- {name: c, kafka: {brokers: "k:9092", topics: [t], tls: {serverName: k}}}
sinks:
- {name: s, kafka: {brokers: "k:9092", topic: "a/b", sasl: {mechanism: SCRAM-SHA-1, username: {env: "${U}"}, password: {env: "${P}"}}}}
- {name: t, kafka: {brokers: "k:9092", topic: "a/b", sasl: {mechanism: SCRAM-SHA-256, username: {env: "${U}"}, password: {env: "${P}"}}}}"#,
        ),
        expect![[r#"
            0 spec.sinks[0].kafka.sasl.mechanism: InvalidValue: got "SCRAM-SHA-1", allowed: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; did you mean "SCRAM-SHA-512"?
            0 spec.sources[1].kafka.groupId: OutOfRange: got "", must not be empty
            0 spec.sources[0].kafka.topics[0]: InvalidValue: got "^(", no pattern (unclosed group); write for example "^orders[.].*$"
            0 spec.sources[0].kafka.topics[1]: InvalidName: got "a b", a Kafka topic has letters, digits, '.', '_' and '-', 249 at most
            0 spec.sources[0].kafka.topics[2]: InvalidName: got "..", a Kafka topic has letters, digits, '.', '_' and '-', 249 at most
            0 spec.sources[0].kafka.sasl.password: NotExactlyOne: got none of secretKeyRef, env; write exactly one
            0 spec.sources[0].kafka.sasl.mechanism: Conflict: PLAIN sends the password itself; add kafka.tls, or write SCRAM-SHA-256 or SCRAM-SHA-512
            0 spec.sources[1].kafka.brokers: InvalidAddress: got ":9092", write host:port, with commas between several, such as "kafka-0:9092,kafka-1:9092"
            0 spec.sources[1].kafka.brokers: InvalidAddress: got "k", write host:port, with commas between several, such as "kafka-0:9092,kafka-1:9092"
            0 spec.sources[2].kafka.tls.serverName: Conflict: each broker is checked by the host that it tells; remove serverName, and let the brokers advertise the names of their certificates
            0 spec.sinks[1].kafka.topic: InvalidName: got "a/b", a Kafka topic has letters, digits, '.', '_' and '-', 249 at most
        "#]],
    );
}

#[test]
fn a_kafka_topic_of_several_joins_is_a_warning() {
    check(
        &pipeline(
            r#"joins:
- {name: a, query: "SELECT 1", sinks: [one, both]}
- {name: b, query: "SELECT 1", sinks: [both]}
sinks:
- {name: one, kafka: {brokers: "k:9092", topic: one}}
- {name: both, kafka: {brokers: "k:9092", topic: both}}"#,
        ),
        expect![[r#"
            0 spec.sinks[1].kafka.topic: warning Conflict: the Kafka topic "both" takes several joins, and results of equal keys are records of one key: compaction would keep one of them; give each join a sink with a topic of its own
        "#]],
    );
}

#[test]
fn windows_have_the_durations_of_their_type() {
    check(
        &pipeline(
            r#"sources: [{name: in, http: {addr: ":0", topics: [orders]}}]
windows:
- {name: w1, type: tumbling, topic: orders, query: SELECT 1, gap: 1m}
- {name: w2, type: sliding, topic: orders, query: SELECT 1, size: 1m, slide: 90s}
- {name: w3, type: session, topic: order, query: SELECT 1, gap: 1500ms, size: 1m}
- {name: w4, type: hopping, topic: orders, query: SELECT 1}
- {name: w5, type: tumbling, topic: orders, query: SELECT 1, size: 0s, sinks: [out], eventTime: {path: $.at, idleTimeout: 0s}}"#,
        ),
        expect![[r#"
            0 spec.windows[3].type: InvalidValue: got "hopping", allowed: tumbling, sliding, session
            0 spec.windows[0].size: Conflict: a tumbling window needs size; add for example size: 1m
            0 spec.windows[0].gap: Conflict: a tumbling window has no gap; remove it, its fields are size
            0 spec.windows[1].slide: Conflict: longer than size; write at most "1m"
            0 spec.windows[2].topic: UnknownReference: no source fills the topic "order"; did you mean "orders"?
            0 spec.windows[2].size: Conflict: a session window has no size; remove it, its fields are gap
            0 spec.windows[2].gap: InvalidDuration: got "1500ms", allowed whole seconds; topics carry no finer time
            0 spec.windows[4].sinks[0]: UnknownReference: no sink is called "out"; there is none, add one to spec.sinks or as a Sink of its own
            0 spec.windows[4].size: InvalidDuration: got "0s", allowed only more than zero
            0 spec.windows[4].eventTime.idleTimeout: InvalidDuration: got "0s", allowed only more than zero
        "#]],
    );
}

#[test]
fn settings_keep_their_bounds() {
    check(
        &pipeline(
            r#"replicas: 2
storage: {flushInterval: 5m, ephemeral: true, onNodeLoss: Replace, reshard: {fromShardCount: 8, toShardCount: 8}}
retention: {duration: 100ms, cleanInterval: 0s, tombstoneDuration: 100000h}
delivery: {after: replicated, outboxMaxBytes: 1Ki, dlq: {retryInterval: 10m}}
replication: {replicaUrl: "http://x", identity: "../x", restore: {timestamp: yesterday, fromUrl: "s3://"}}
admin: {addr: "9090"}"#,
        ),
        expect![[r#"
            0 spec.retention.tombstoneDuration: InvalidDuration: got "100000h", allowed at most "87600h" (ten years)
            0 spec.admin.addr: InvalidAddress: got "9090", which lacks a colon; write ":9090"
            0 spec.replicas: OutOfRange: got 2, allowed 0 or 1: one pod holds all shards; give it more cores by resources
            0 spec.storage.reshard: Conflict: from and to are both 8; write the number of shards that the data has and the one it is to have
            0 spec.storage.flushInterval: InvalidDuration: got "5m", allowed at most "1m"
            0 spec.retention.duration: InvalidDuration: got "100ms", allowed at least "1s"
            0 spec.retention.cleanInterval: InvalidDuration: got "0s", allowed only more than zero
            0 spec.delivery.dlq.maxBackoff: Conflict: got "5m", shorter than retryInterval "10m"; write at least as long a time
            0 spec.delivery.outboxMaxBytes: OutOfRange: got 1024 bytes, allowed at least 1048576
            0 spec.replication.replicaUrl: InvalidValue: got "http://x", allowed: s3://…, gcs://…, abs://…, sftp://… or file://…
            0 spec.replication.restore.fromUrl: InvalidValue: got "s3://", allowed: s3://…, gcs://…, abs://…, sftp://… or file://…
            0 spec.replication.restore.timestamp: InvalidValue: got "yesterday", write a time with its zone, such as "2026-05-01T12:00:00Z"
            0 spec.replication.identity: InvalidValue: got "../x", which is no path; write for example "production/orders"
            0 spec.storage.ephemeral: Conflict: needs replication.enabled: true, else every restart loses the data
            0 spec.storage.onNodeLoss: Conflict: Replace needs replication.enabled: true to restore from; else write Wait
            0 spec.delivery.after: Conflict: replicated needs replication.enabled: true; else write committed
        "#]],
    );
    check(
        &pipeline("replication: {enabled: true}\nstorage: {ephemeral: true, onNodeLoss: Replace}"),
        expect![[r#"
            0 spec.replication.enabled: Conflict: replication is enabled without a replicaUrl; add the place the copies go to, such as replicaUrl: s3://bucket/prefix
        "#]],
    );
}

#[test]
fn an_s3_store_is_asked_to_encrypt_by_keys_that_it_can_have() {
    let encrypted = |url: &str, encryption: &str| {
        pipeline(&format!(
            "replication: {{enabled: true, replicaUrl: {url}, serverSideEncryption: {{{encryption}}}}}"
        ))
    };
    check(&encrypted("s3://b/x", "algorithm: sse-c"), expect![[r#""#]]);
    check(&encrypted("s3://b/x", "algorithm: aws:kms, keyId: alias/k"), expect![[r#""#]]);
    check(
        &encrypted("gcs://b/x", "algorithm: sse-c"),
        expect![[r#"
        0 spec.replication.serverSideEncryption: InvalidValue: got algorithm "sse-c" without a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; for others remove this and set the default encryption of the bucket
    "#]],
    );
    check(
        &encrypted("s3://b/x", "algorithm: sse-c, keyId: alias/k"),
        expect![[r#"
        0 spec.replication.serverSideEncryption: InvalidValue: got algorithm "sse-c" with a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; for others remove this and set the default encryption of the bucket
    "#]],
    );
    check(
        &encrypted("s3://b/x", "algorithm: AES256"),
        expect![[r#"
        0 spec.replication.serverSideEncryption: InvalidValue: got algorithm "AES256" without a keyId, allowed: aws:kms with a keyId, or sse-c without one, on s3://; for others remove this and set the default encryption of the bucket
    "#]],
    );
}

#[test]
fn listeners_do_not_meet() {
    check(
        &pipeline(
            r#"sources:
- {name: a, http: {addr: ":9090"}}
- {name: b, http: {addr: "127.0.0.1:8080"}}
- {name: c, http: {addr: ":0"}}
sinks:
- {name: d, sse: {addr: "localhost:8080"}}
- {name: e, sse: {addr: ":0"}}
- {name: f, sse: {addr: "10.0.0.1:8080"}}
- {name: g, sse: {addr: ":99999"}}"#,
        ),
        expect![[r#"
            0 spec.sources[0].http.addr: DuplicateAddress: source "a" and spec.admin both listen on port 9090; give one another port
            0 spec.sinks[0].sse.addr: DuplicateAddress: sink "d" and source "b" both listen on port 8080; give one another port
            0 spec.sinks[3].sse.addr: InvalidAddress: got port 99999, allowed 0 to 65535
        "#]],
    );
}

#[test]
fn results_keep_their_own_fields() {
    check(
        &pipeline(
            r#"joins:
- {name: a, query: " ", resultKey: rows, sinks: [out]}
sinks: [{name: out, stdout: {}}]"#,
        ),
        expect![[r#"
            0 spec.joins[0].query: InvalidValue: got an empty query; write one SELECT
            0 spec.joins[0].resultKey: InvalidName: got "rows", which is a field of every result; choose another name
        "#]],
    );
}

#[test]
fn one_mistake_makes_one_complaint() {
    check(
        &pipeline(
            r#"storage: {shardCount: many, flushInterval: 10}
replication: {enabled: "true"}
delivery: {after: replicated}
sources:
- {name: in, file: {path: x.txt, format: CSV, topic: t, keyColumns: id}}
sinks:
- {name: out, sse: {addr: 9100}}
joins:
- {name: j, query: SELECT 1, sinks: [out]}"#,
        ),
        expect![[r#"
            0 spec.replication.enabled: InvalidType: got the text "true", want true or false; remove the quotes
            0 spec.sinks[0].sse.addr: InvalidType: got the number 9100, want a text; put it in quotes: "9100"
            0 spec.sources[0].file.format: InvalidValue: got "CSV", allowed: csv, ndjson; did you mean "csv"?
            0 spec.sources[0].file.keyColumns: InvalidType: got the text "id", want a list; put it in brackets: ["id"]
            0 spec.storage.flushInterval: InvalidDuration: got "10", write a unit: "10s", "10ms", "10m" or "10h"
            0 spec.storage.shardCount: InvalidType: got the text "many", want a whole number
        "#]],
    );
}

#[test]
fn more_than_a_hundred_topics_are_too_many() {
    let topics: Vec<String> = (0..60).map(|n| format!("t{n}")).collect();
    let others: Vec<String> = (50..120).map(|n| format!("t{n}")).collect();
    check(
        &pipeline(&format!(
            "sources:\n- {{name: a, http: {{addr: \":0\", topics: [{}]}}}}\n- {{name: b, http: {{addr: \":0\", topics: [{}]}}}}",
            topics.join(", "),
            others.join(", ")
        )),
        expect![[r#"
            0 spec.sources[1].http.topics[50]: OutOfRange: the sources fill more than 100 topics; make a second Pipeline of some
        "#]],
    );
}

#[test]
fn what_connectors_cannot_do_together_is_said() {
    check(
        &pipeline(
            r#"admin: {addr: ":0", auth: {bearer: {}}, clientTimeout: 0s}
sources:
- {name: api, topic: items, api: {url: "http://a/", interval: 1s, keyPath: id, detectDeletes: true}}
- {name: also, topic: items, api: {url: "http://a/", interval: 1s, keyPath: id}}
- {name: new, topic: news, api: {url: "http://a/", interval: 1s, keyPath: id, detectDeletes: true, watermark: {strategy: timestamp, path: at, param: since}}}
- {name: push, http: {addr: ":0", topics: [t], tls: {cert: {path: a, secretKeyRef: {name: s, key: k}}, key: {path: b}, clientCa: {}}}}
joins:
- {name: j, query: SELECT key FROM items, sinks: [a, b]}
sinks:
- {name: a, sqlite: {path: out.db}}
- {name: b, sqlite: {path: out.db}}"#,
        ),
        expect![[r#"
            0 spec.sources[1]: Conflict: detectDeletes of "api" removes every row of "items" that its API does not have, also those of "also"; give them topics of their own
            0 spec.sources[2].api.detectDeletes: Conflict: a poll that asks only for what is new does not show what is gone; remove it or the watermark
            0 spec.sources[3].http.tls.cert: NotExactlyOne: got secretKeyRef and path; write exactly one of secretKeyRef, path
            0 spec.sources[3].http.tls.clientCa: NotExactlyOne: got none of secretKeyRef, path; write exactly one
            0 spec.sinks[1].sqlite.path: Conflict: sinks "a" and "b" both write this file; give one another, or let one take all joins
            0 spec.admin.auth.bearer: NotExactlyOne: got none of secretKeyRef, env; write exactly one
            0 spec.admin.clientTimeout: InvalidDuration: got "0s", allowed only more than zero
        "#]],
    );
}

#[test]
fn every_default_is_valid() {
    let (plan, warnings) = validate(&documents(&pipeline("{}"))).unwrap();
    assert_eq!((warnings, plan.storage.shard_count), (vec![], 8));
    for kind in crate::kind::Kind::ALL {
        assert_eq!(crate::structure::check(&defaults_of(kind), kind), []);
    }
}

/// A document in which every default of the schema is written out.
fn defaults_of(kind: crate::kind::Kind) -> Value {
    fn defaults(schema: &Value) -> Option<Value> {
        if let Some(properties) = schema["properties"].as_object() {
            let map: serde_json::Map<String, Value> = properties
                .iter()
                .filter(|(_, schema)| schema["type"] != "object" || schema["required"].is_null())
                .filter_map(|(name, schema)| Some((name.clone(), defaults(schema)?)))
                .collect();
            return Some(Value::Object(map));
        }
        Some(schema["default"].clone()).filter(|value| !value.is_null())
    }
    let mut spec = defaults(&crate::crd::schema(kind)["properties"]["spec"]).unwrap();
    // Fields without a default do not matter here.
    let required = match kind {
        crate::kind::Kind::Join => serde_json::json!({"query": "SELECT 1"}),
        crate::kind::Kind::Window => {
            serde_json::json!({"type": "tumbling", "topic": "t", "query": "SELECT 1"})
        }
        _ => serde_json::json!({}),
    };
    for (name, value) in required.as_object().unwrap() {
        spec[name] = value.clone();
    }
    if kind != crate::kind::Kind::Pipeline {
        spec["pipelineRef"] = serde_json::json!({"name": "p"});
    }
    serde_json::json!({"spec": spec})
}
