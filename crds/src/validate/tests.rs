use super::*;

use expect_test::{Expect, expect};

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

/// Asserts what is said about a manifest, errors or warnings.
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
            admin: Admin {
                addr: ":9090",
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
