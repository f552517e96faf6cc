//! Mistakes of form: each is found, at its path, with what to write instead.

use super::*;

use expect_test::{Expect, expect};
use serde_json::json;

/// Asserts every finding about a document of ours.
fn check_findings(kind: Kind, document: Value, expected: Expect) {
    let findings = check(&document, kind);
    let lines: Vec<String> =
        findings.iter().map(|f| format!("{}: {}: {}\n", f.path, f.reason.as_str(), f.message)).collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn every_mistake_is_found_at_once() {
    let document = json!({
        "apiVersion": "litejoin.io/v1alpha1",
        "kind": "Pipeline",
        "metadata": {"name": 5, "lables": {}, "labels": {"a": 1}},
        "storage": {},
        "specs": {},
        "spec": {
            "storage": {"shard_count": 8, "shardCount": 65, "flushInterval": "10", "synchronous": "FULL", "size": "10GB", "dataDir": null},
            "retention": {"duration": 24, "emitExpiry": "true"},
            "delivery": {"guarantee": "exactly_once", "outboxMaxBytes": -1, "dlq": {"backoffMultiplier": "2", "maxRetries": 1.5}},
            "joins": {"name": "x"},
            "sources": [
                {"name": "in", "http": {"addr": 8080, "topics": ["orders", "order-lines", "orders"]}},
                {"name": "_in", "file": {"format": "json", "keyColumns": "id"}},
                {"http": {"port": 80}}
            ],
            "sinks": [{"name": "live", "sse": null}, {"name": "out", "stdout": {"color": true}}, "console"],
            "suspend": "yes",
            "podTemplate": {"labels": {"team": 1}, "affinity": {"anything": [1]}}
        }
    });
    check_findings(
        Kind::Pipeline,
        document,
        expect![[r#"
            metadata.labels.a: InvalidType: got the number 1, want a text; put it in quotes: "1"
            metadata.lables: UnknownField: unknown field "lables"; did you mean "labels"?
            metadata.name: InvalidType: got the number 5, want a text; put it in quotes: "5"
            spec.delivery.dlq.backoffMultiplier: InvalidType: got the text "2", want a number; remove the quotes
            spec.delivery.dlq.maxRetries: InvalidType: got the number 1.5, want a whole number
            spec.delivery.guarantee: InvalidValue: got "exactly_once", allowed: best_effort, at_least_once
            spec.delivery.outboxMaxBytes: OutOfRange: got -1, allowed whole numbers from 0
            spec.joins: InvalidType: got an object, want a list
            spec.podTemplate.labels.team: InvalidType: got the number 1, want a text; put it in quotes: "1"
            spec.retention.duration: InvalidDuration: got "24", write a unit: "24s", "24ms", "24m" or "24h"
            spec.retention.emitExpiry: InvalidType: got the text "true", want true or false; remove the quotes
            spec.sinks[0].sse: InvalidType: got nothing, want an object; write {} or remove the line
            spec.sinks[1].stdout.color: UnknownField: unknown field "color"; none is allowed here, write {}
            spec.sinks[2]: InvalidType: got the text "console", want an object
            spec.sources[0].http.addr: InvalidType: got the number 8080, want a text; put it in quotes: "8080"
            spec.sources[0].http.topics[1]: InvalidName: got "order-lines", a topic is a table: letters, digits and _, a letter first; write for example "order_lines"
            spec.sources[0].http.topics[2]: DuplicateName: got "orders" twice; remove one
            spec.sources[1].file.format: InvalidValue: got "json", allowed: csv, ndjson
            spec.sources[1].file.keyColumns: InvalidType: got the text "id", want a list; put it in brackets: ["id"]
            spec.sources[1].file.path: MissingField: required field is missing: the file, relative to the folder of the manifest; `-` is standard input
            spec.sources[1].name: InvalidName: got "_in", names that begin with _ are LiteJoin's own; write for example "in"
            spec.sources[2].http.port: UnknownField: unknown field "port"; allowed: addr, auth, clientTimeout, maxBodyBytes, maxConnections, tls, topics
            spec.sources[2].http.addr: MissingField: required field is missing: address to listen on, `host:port` or `:port`
            spec.sources[2].name: MissingField: required field is missing: name of the source, unique among the sources of the pipeline
            spec.storage.dataDir: InvalidType: got nothing, want a text; write one or remove the line
            spec.storage.flushInterval: InvalidDuration: got "10", write a unit: "10s", "10ms", "10m" or "10h"
            spec.storage.shardCount: OutOfRange: got 65, allowed 1 to 64
            spec.storage.shard_count: UnknownField: unknown field "shard_count"; did you mean "shardCount"?
            spec.storage.size: InvalidValue: got "10GB", which is no amount of bytes; did you mean "10G"?
            spec.storage.synchronous: InvalidValue: got "FULL", allowed: normal, full; did you mean "full"?
            spec.suspend: InvalidType: got the text "yes", want true or false
            specs: UnknownField: unknown field "specs"; did you mean "spec"?
            storage: UnknownField: unknown field "storage"; write it under spec: spec.storage
        "#]],
    );
}

#[test]
fn a_credential_in_the_wrong_place_is_not_repeated() {
    let document = json!({"spec": {"pipelineRef": {"name": "p"}, "http": {"url": "https://x", "auth": {"bearer": {"env": "s3cr3t"}}}}});
    check_findings(
        Kind::Sink,
        document,
        expect![[r#"
        spec.http.auth.bearer.env: InvalidValue: names no environment variable; write for example ${API_TOKEN}, never the credential itself
    "#]],
    );
}

#[test]
fn every_pattern_has_a_reader() {
    fn visit(schema: &Value) {
        if let Some(pattern) = schema["pattern"].as_str() {
            assert!(pattern_trouble(pattern, "\u{1}").is_some(), "{pattern} has no reader");
        }
        match schema {
            Value::Object(map) => map.values().for_each(visit),
            Value::Array(items) => items.iter().for_each(visit),
            _ => {}
        }
    }
    for kind in Kind::ALL {
        visit(crd::schema(kind));
    }
}
