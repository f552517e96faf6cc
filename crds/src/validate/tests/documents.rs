//! Documents: their kinds, their names, and the names that they refer to.

use super::*;

#[test]
fn documents_are_of_our_kinds() {
    check(
        "{apiVersion: v1, kind: Secret, metadata: {name: s}}\n---\n{apiVersion: litejoin.io/v1, kind: Sink, metadata: {name: s}, spec: {}}\n---\n{apiVersion: litejoin.io/v1alpha1, kind: Sinks, metadata: {name: s}}\n---\n{kind: Deployment}\n---\n[1]",
        expect![[r#"
            0 apiVersion: UnknownApiVersion: got "v1" (kind Secret), allowed: litejoin.io/v1alpha1 with kind Pipeline, Source, Join, Window, Sink
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
