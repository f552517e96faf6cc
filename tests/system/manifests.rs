//! Manifests that are wrong: all errors are shown at once, with file and line, and nothing is run.

use expect_test::{Expect, expect};
use litejoin_tests::worker::WorkerSite;
use serde_json::json;

/// Asserts all that `validate` says about a manifest, and that `run` says the same and stops.
async fn refused(manifest: &str, expected: Expect) {
    let site = WorkerSite::with(manifest);
    let validated = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert_eq!((validated.code, validated.stdout.as_str()), (Some(2), ""), "{}", validated.stderr);
    expected.assert_eq(&validated.stderr);
    let run = site.run([]).end().await;
    assert_eq!((run.code, run.stderr), (Some(2), validated.stderr));
    assert!(!site.data_dir().exists(), "nothing was begun");
}

/// A pipeline with topics `orders` and `customers` and one join.
fn joining(query: &str) -> String {
    let query = query.replace('\n', "\n        ");
    format!(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  admin: {{addr: \"127.0.0.1:0\"}}
  sources:
    - name: ingest
      http: {{addr: \"127.0.0.1:0\", topics: [orders, customers]}}
  joins:
    - name: enriched
      query: |
        {query}
      sinks: [console]
  sinks:
    - name: console
      stdout: {{}}
"
    )
}

#[tokio::test]
async fn unknown_fields_kinds_and_versions() {
    refused(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {shardCount: 8, datadir: ./data}
  sources:
    - name: ingest
      http: {addr: \"127.0.0.1:0\", topic: [orders]}
---
apiVersion: litejoin.io/v1
kind: Sink
metadata: {name: a}
spec: {stdout: {}}
---
apiVersion: litejoin.io/v1alpha1
kind: Snk
metadata: {name: b}
spec: {stdout: {}}
",
        expect![[r#"
            pipeline.yaml:5: spec.storage.datadir: unknown field "datadir"; did you mean "dataDir"?
            pipeline.yaml:8: spec.sources[0].http.topic: unknown field "topic"; did you mean "topics"?
            pipeline.yaml:10: apiVersion: got "litejoin.io/v1", allowed: litejoin.io/v1alpha1; did you mean "litejoin.io/v1alpha1"?
            pipeline.yaml:16: kind: got "Snk", allowed: Pipeline, Source, Join, Window, Sink; did you mean "Sink"?
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_misspelt_topic() {
    refused(&joining("SELECT o.key FROM ordesr o\nJOIN nobody n ON n.key = o.key"), expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: no source fills topic "ordesr", did you mean "orders"; topics and joins: orders, customers
    "#]]).await;
}

#[tokio::test]
async fn two_things_of_one_name() {
    refused(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  sources:
    - name: ingest
      http: {addr: \"127.0.0.1:0\", topics: [orders]}
    - name: ingest
      http: {addr: \"127.0.0.1:0\", topics: [customers]}
  joins:
    - {name: Orders, query: SELECT 1 AS a, sinks: [out]}
  sinks:
    - {name: out, stdout: {}}
    - {name: out, stdout: {}}
",
        expect![[r#"
            pipeline.yaml:8: spec.sources[1].name: two sources are called "ingest"; rename one
            pipeline.yaml:11: spec.joins[0].name: a topic "orders" and a join "Orders" have one name to SQL; topics, joins and windows are tables of one database, rename one
            pipeline.yaml:14: spec.sinks[1].name: two sinks are called "out"; rename one
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_query_that_does_not_parse() {
    refused(
        &joining("SELECT o.key AS id\nFRM orders o"),
        expect![[r#"
        pipeline.yaml:13: spec.joins[0].query: near "FRM": syntax error
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_schema_before_a_name() {
    refused(
        &joining("SELECT key FROM main.orders"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: main.orders names a schema; write orders without main.
    "#]],
    )
    .await;
    refused(
        &joining("SELECT key\nFROM shard_0.orders"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: shard_0.orders names a schema; write orders without shard_0.
    "#]],
    )
    .await;
    refused(&joining("SELECT name FROM sqlite_master"), expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: sqlite_master may not be read; a join reads topics and other joins
    "#]]).await;
}

#[tokio::test]
async fn a_key_column_that_is_there_twice_or_not_at_all() {
    refused(&joining("SELECT o.key, c.key FROM orders o, customers c"), expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: columns 1 and 2 are both called "key"; give one another name with AS
    "#]]).await;
    let missing = joining("SELECT o.key AS order_id FROM orders o");
    refused(&missing.replace("sinks: [console]", "sinks: [console]\n      keyColumn: order"), expect![[r#"
        pipeline.yaml:14: spec.joins[0].keyColumn: the query yields no column "order"; its columns are order_id
    "#]])
        .await;
}

#[tokio::test]
async fn a_query_that_is_no_select() {
    refused(
        &joining("DELETE FROM orders"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: is no SELECT; a join only reads
    "#]],
    )
    .await;
    refused(
        &joining("ATTACH 'x.db' AS x"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: is no SELECT; a join is one SELECT, without ATTACH or PRAGMA
    "#]],
    )
    .await;
    refused(
        &joining("SELECT key FROM orders; SELECT 1"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: holds more than one statement; a join is one SELECT
    "#]],
    )
    .await;
    refused(&joining("SELECT key, random() AS r FROM orders"), expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: random() gives another value each time; results must follow from the topics
    "#]]).await;
    refused(
        &joining("SELECT load_extension('x') AS x"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: not authorized to use function: load_extension
    "#]],
    )
    .await;
}

#[tokio::test]
async fn literals_that_fail_for_every_row_and_the_zone_of_the_machine() {
    refused(
        &joining("SELECT key,\n  payload->>'$x' AS x FROM orders"),
        expect![[r#"
        pipeline.yaml:13: spec.joins[0].query: bad JSON path: '$x'; begin with $, and write a name in double quotes unless it is plain: '$."order id"[0]'
    "#]],
    )
    .await;
    refused(
        &joining("SELECT key, date(timestamp, 'unixepoch', 'localtime') AS day FROM orders"),
        expect![[r#"
        pipeline.yaml:12: spec.joins[0].query: date() with 'localtime' depends on the time zone of the machine, and results must follow from the topics; times are in UTC: write a fixed distance such as '+02:00', or give a Window a timezone
    "#]],
    )
    .await;
}

#[tokio::test]
async fn a_zone_that_a_row_names_is_not_that_of_the_machine() {
    let query = "SELECT key, datetime(timestamp, 'unixepoch', payload->>'zone') AS at FROM orders";
    let site = WorkerSite::with(&joining(query).replace("stdout: {}", "sse: {addr: \"127.0.0.1:0\"}"));
    let worker = site.run([]).with_variable("TZ", "Asia/Tokyo").start().await;
    let epoch = worker.ingest().put("orders", "o1", json!({"zone": "localtime"})).await;
    let (_, stored) = worker.snapshot("console", "enriched", epoch).await;
    let rows = &stored.rows[&("enriched".to_owned(), "\"o1\"".to_owned())];
    assert_eq!(rows.as_slice(), [r#"{"at":null,"key":"o1"}"#]);
    worker.stop().await;
}

#[tokio::test]
async fn a_comment_that_swallows_the_end_of_a_folded_query() {
    let folded = joining("SELECT key\nFROM orders\n-- only the paid ones\nWHERE payload->>'paid' = 1")
        .replace("query: |", "query: >-");
    let site = WorkerSite::with(&folded);
    let warned = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert_eq!(warned.code, Some(0));
    expect![[r#"
        pipeline.yaml:11: warning: spec.joins[0].query: the comment goes on to the end of the query, and "WHERE payload->>'paid' = 1" is a part of it: in a folded text (>) all is one line, so write query: |-, or end the comment (/* … */)
    "#]]
    .assert_eq(&warned.stderr);
    site.write("pipeline.yaml", folded.replace("query: >-", "query: |-"));
    let fine = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert_eq!((fine.code, fine.stderr.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_duration_without_a_unit() {
    refused(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage: {flushInterval: 10}
  retention: {duration: \"24\", cleanInterval: 1 minute}
",
        expect![[r#"
            pipeline.yaml:5: spec.storage.flushInterval: got "10", write a unit: "10s", "10ms", "10m" or "10h"
            pipeline.yaml:6: spec.retention.cleanInterval: got "1 minute", which is no duration; write for example "10ms", "30s", "1h30m" or "168h"
            pipeline.yaml:6: spec.retention.duration: got "24", write a unit: "24s", "24ms", "24m" or "24h", or "forever"
        "#]],
    )
    .await;
}

#[tokio::test]
async fn files_that_are_no_yaml_or_missing() {
    refused(
        "apiVersion: [\nkind: Pipeline\n",
        expect![[r#"
        pipeline.yaml:2: is no YAML: invalid indentation
    "#]],
    )
    .await;
    refused(
        "",
        expect![[r#"
        pipeline.yaml: holds no document; write for example examples/orders/pipeline.yaml
    "#]],
    )
    .await;
    refused(
        "apiVersion: litejoin.io/v1alpha1\nkind: Pipeline\nkind: Sink\n",
        expect![[r#"
        pipeline.yaml:3: the key "kind" stands in line 2 already; remove one
    "#]],
    )
    .await;
    let missing = WorkerSite::new().command(["validate", "-f", "nowhere.yaml"]).end().await;
    assert_eq!(missing.code, Some(2));
    expect![[r#"
        nowhere.yaml: no such file or folder; check the path given to -f
    "#]]
    .assert_eq(&missing.stderr);
}

#[tokio::test]
async fn consent_to_another_number_of_shards_than_the_one_that_is_written() {
    refused(
        "apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: p}
spec:
  storage:
    shardCount: 8
    reshard: {fromShardCount: 8, toShardCount: 16, strategy: Online}
  sources:
    - name: bus
      kafka: {brokers: \"localhost:9092\", topics: [orders]}
",
        expect![[r#"
            pipeline.yaml:7: spec.storage.reshard.toShardCount: the data is to have 16 shards by this, and 8 by storage.shardCount; write the same number in both, or take storage.reshard away
        "#]],
    )
    .await;
}

#[tokio::test]
async fn a_good_manifest_and_one_that_only_deserves_a_warning() {
    let site = WorkerSite::with(&joining("SELECT key FROM orders"));
    let fine = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert_eq!((fine.code, fine.stderr.as_str()), (Some(0), ""));
    expect![[r#"
        pipeline p is fine: 1 source, 1 join, 1 sink
        note: the topics orders, customers keep their rows for ever; give them a retention, or bound storage.maxBytes
    "#]]
    .assert_eq(&fine.stdout);

    site.write("pipeline.yaml", joining("SELECT key FROM orders").replace("sinks: [console]", ""));
    let warned = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert_eq!(warned.code, Some(0));
    expect![[r#"
        pipeline.yaml:10: warning: spec.joins[0]: no sink takes the join "enriched" and no other query reads it; add sinks: [<a sink's name>]
        pipeline.yaml:15: warning: spec.sinks[0]: the sink "console" takes no join; add joins: [<a join's name>], or its name to a join's sinks
        pipeline p is fine: 1 source, 1 join, 1 sink
        note: the topics orders, customers keep their rows for ever; give them a retention, or bound storage.maxBytes
    "#]].assert_eq(&format!("{}{}", warned.stderr, warned.stdout));
}

#[tokio::test]
async fn a_folder_and_several_files_make_one_pipeline() {
    let site = WorkerSite::new();
    std::fs::create_dir(site.path().join("parts")).expect("a folder can be made");
    site.write("parts/a.yaml", joining("SELECT key FROM orders"));
    site.write("parts/notes.txt", "not a manifest");
    site.write(
        "sink.json",
        r#"{"apiVersion": "litejoin.io/v1alpha1", "kind": "Sink", "metadata": {"name": "more"},
            "spec": {"pipelineRef": {"name": "p"}, "joins": ["enrich"], "stdout": {}}}"#,
    );
    let refused = site.command(["validate", "-f", "parts", "-f", "sink.json"]).end().await;
    assert_eq!(refused.code, Some(2));
    expect![[r#"
        sink.json:2: spec.joins[0]: no join or window is called "enrich"; did you mean "enriched"?
    "#]]
    .assert_eq(&refused.stderr);
}

const KUSTOMIZATION: &str = "resources: [pipeline.yaml]\nbuildMetadata: [originAnnotations]\n";

const SECRET: &str = "apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {debug: on, debug: yes}
---
# Another program's words and tags are its own business.
apiVersion: example.com/v1
kind: Pipeline
spec: {mode: 0755, secret: !vault x, <<: {a: b}}
";

#[tokio::test]
async fn documents_of_other_programs_are_passed_over() {
    let site = WorkerSite::new();
    std::fs::create_dir(site.path().join("deploy")).expect("a folder can be made");
    site.write("deploy/kustomization.yaml", KUSTOMIZATION);
    site.write("deploy/pipeline.yaml", joining("SELECT key FROM orders"));
    site.write("deploy/secret.yaml", SECRET);
    site.write("deploy/values.yaml", "image: {tag: 1}\n");
    let note = "note: passed over 4 documents that are not LiteJoin's: deploy/kustomization.yaml:1 (no apiVersion), \
                deploy/secret.yaml:1 (Secret of v1), deploy/secret.yaml:7 (Pipeline of example.com/v1), \
                deploy/values.yaml:1 (no apiVersion)\n";
    let fine = site.command(["validate", "-f", "deploy"]).end().await;
    assert_eq!((fine.code, fine.stderr.as_str()), (Some(0), note), "{}", fine.stdout);
    let explained = site.command(["explain", "-f", "deploy"]).end().await;
    assert_eq!((explained.code, explained.stderr.as_str()), (Some(0), note));

    let rendered = format!("---\n{SECRET}---\n{}", joining("SELECT key FROM orders"));
    site.write("rendered.txt", rendered);
    let rendered = std::fs::File::open(site.path().join("rendered.txt")).expect("the file was written");
    let piped = site.command(["validate", "-f", "-"]).with_stdin_from(rendered).end().await;
    expect![[r#"
        note: passed over 2 documents that are not LiteJoin's: <stdin>:2 (Secret of v1), <stdin>:8 (Pipeline of example.com/v1)
        pipeline p is fine: 1 source, 1 join, 1 sink
        note: the topics orders, customers keep their rows for ever; give them a retention, or bound storage.maxBytes
    "#]]
    .assert_eq(&format!("{}{}", piped.stderr, piped.stdout));

    // What is ours is held to every rule, whatever stands beside it.
    site.write(
        "deploy/sink.yaml",
        "apiVersion: litejoin.oi/v1alpha1\nkind: Sink\nmetadata: {name: s}\nspec: {stdout: {}}\n",
    );
    site.write("deploy/source.yaml", "kind: Source\nmetadata: {name: s}\nspec: {http: {}}\n");
    let refused = site.command(["validate", "-f", "deploy"]).end().await;
    assert_eq!(refused.code, Some(2));
    let told = refused.stderr.strip_prefix(note).expect("the note comes first");
    expect![[r#"
        deploy/sink.yaml:1: apiVersion: got "litejoin.oi/v1alpha1", allowed: litejoin.io/v1alpha1; did you mean "litejoin.io/v1alpha1"?
        deploy/source.yaml:1: apiVersion: required field is missing; write apiVersion: litejoin.io/v1alpha1
        deploy/source.yaml:3: spec.http.addr: required field is missing: address to listen on, `host:port` or `:port`
        deploy/source.yaml:3: spec.pipelineRef: required field is missing: the Pipeline that the source belongs to
    "#]]
    .assert_eq(told);
}

#[tokio::test]
async fn a_folder_without_a_document_of_ours() {
    let site = WorkerSite::new();
    std::fs::create_dir(site.path().join("deploy")).expect("a folder can be made");
    site.write("deploy/kustomization.yaml", KUSTOMIZATION);
    site.write("deploy/secret.yaml", SECRET);
    let refused = site.command(["validate", "-f", "deploy"]).end().await;
    assert_eq!(refused.code, Some(2));
    expect![[r#"
        deploy: no document is of LiteJoin, which begins with apiVersion: litejoin.io/v1alpha1 and kind: Pipeline …; got deploy/kustomization.yaml:1 (no apiVersion), deploy/secret.yaml:1 (Secret of v1), deploy/secret.yaml:7 (Pipeline of example.com/v1)
    "#]]
    .assert_eq(&refused.stderr);
}

#[tokio::test]
async fn a_list_is_read_by_its_items() {
    let pipeline = joining("SELECT key\nFROM ordesr");
    let item = pipeline.trim_end().replace('\n', "\n    ");
    let list = format!(
        "apiVersion: v1
kind: List
metadata: {{resourceVersion: \"\"}}
items:
  - {item}
  - apiVersion: v1
    kind: ConfigMap
    metadata: {{name: c}}
"
    );
    refused(&list, expect![[r#"
        note: passed over a document that is not LiteJoin's: pipeline.yaml:22 (ConfigMap of v1)
        pipeline.yaml:16: spec.joins[0].query: no source fills topic "ordesr", did you mean "orders"; topics and joins: orders, customers
    "#]])
    .await;
}
