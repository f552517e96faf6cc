//! Files in, lines out: where fields are, and what is said about files that cannot be read.

use super::*;

use expect_test::{Expect, expect};
use litejoin_crds::validate;
use serde_json::json;

/// A folder with one file `x.yaml`, and its path.
fn folder(text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.yaml");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn load_text(text: &str) -> Manifest {
    let (_folder, path) = folder(text.as_bytes());
    load(&[path]).unwrap()
}

/// Asserts the errors of a file, its folder left out.
fn refused(text: &[u8], expected: Expect) {
    let (folder, path) = folder(text);
    let errors = load(&[path]).unwrap_err();
    let lines: Vec<String> = errors.iter().map(|error| format!("{error}\n")).collect();
    expected.assert_eq(&lines.concat().replace(&format!("{}/", folder.path().display()), ""));
}

fn at(document: usize, path: &str) -> Place {
    Place { document, path: path.to_owned() }
}

const TWO: &str = "\
# the first
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  sources:
    - name: ingest
      http: {addr: \":8080\", topics: [orders]}
  joins:
    - name: totals
      query: |
        SELECT key,
          total
        FROM orders
      sinks: [console]
    - query: >-
        SELECT key
        FROM orders

      name: two
    - {name: three, query: \"SELECT key FROM orders\"}
---
# nothing
---
kind: Sink
metadata:
  labels: {a.b/c: d}
";

#[test]
fn fields_remember_their_lines() {
    let manifest = load_text(TWO);
    assert_eq!(manifest.documents.len(), 2);
    assert_eq!(
        manifest.documents[0].value["spec"]["joins"][0]["query"],
        "SELECT key,\n  total\nFROM orders\n"
    );
    assert_eq!(manifest.documents[0].value["spec"]["joins"][1]["query"], "SELECT key FROM orders");
    let line = |document, path: &str| {
        let location = manifest.locate(&at(document, path)).unwrap();
        (location.line, location.column)
    };
    assert_eq!(line(0, ""), (2, 1));
    assert_eq!(line(0, "metadata.name"), (4, 12));
    assert_eq!(line(0, "spec.sources[0].http.topics[0]"), (8, 38));
    assert_eq!(line(0, "spec.joins[0]"), (10, 7));
    assert_eq!(line(0, "spec.joins[0].query"), (11, 7));
    assert_eq!(line(0, "spec.joins[0].keyColumn"), (10, 7), "what was not written is where its object is");
    assert_eq!(line(0, "spec.windows[3].name"), (5, 1));
    assert_eq!(line(1, "metadata.labels[\"a.b/c\"]"), (27, 12));
    assert_eq!(manifest.locate(&at(2, "")), None);
}

#[test]
fn lines_of_a_block_are_lines_of_the_file() {
    let manifest = load_text(TWO);
    let within = |path: &str, offset| {
        let location = manifest.locate_within(&at(0, path), offset).unwrap();
        (location.line, location.column)
    };
    assert_eq!(within("spec.joins[0].query", 0), (12, 9));
    assert_eq!(within("spec.joins[0].query", 2), (14, 9));
    assert_eq!(within("spec.joins[1].query", 0), (17, 9));
    assert_eq!(within("spec.joins[2].query", 0), (21, 28));
    assert_eq!(within("spec.joins[2].query", 5), (21, 28));
}

#[test]
fn complaints_are_lines_by_file_and_line() {
    let text = "\
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {name: orders}
spec:
  sinks:
    - name: live
      sse: {addr: \"9100\"}
  joins:
    - name: totals
      query: SELECT 1
      sinks: [liev]
  storage:
    shardCount: 100
";
    let (folder, path) = folder(text.as_bytes());
    let manifest = load(&[path]).unwrap();
    let complaints = validate(&manifest.documents).unwrap_err();
    let lines = manifest.render(&complaints).replace(&format!("{}/", folder.path().display()), "");
    expect![[r#"
        x.yaml:7: spec.sinks[0].sse.addr: got "9100", which lacks a colon; write ":9100"
        x.yaml:11: spec.joins[0].sinks[0]: no sink is called "liev"; did you mean "live"?
        x.yaml:13: spec.storage.shardCount: got 100, allowed 1 to 64
    "#]]
    .assert_eq(&lines);
    assert_eq!(manifest.folder(0), folder.path());
}

#[test]
fn text_that_is_no_yaml_is_refused_with_its_line() {
    refused(
        b"a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n",
        expect![[r#"
            x.yaml: no document is of LiteJoin, which begins with apiVersion: litejoin.io/v1alpha1 and kind: Pipeline …; got x.yaml:1 (no apiVersion)
        "#]],
    );
    refused(
        b"a: 1\nb: [1, 2\n",
        expect![[r#"
        x.yaml:3: is no YAML: while parsing a flow sequence, expected ',' or ']'
    "#]],
    );
    refused(
        b"a:\n\tb: 1\n",
        expect![[r#"
        x.yaml:2: is no YAML: tabs disallowed within this context (block indentation); the line begins with a tab, indent with spaces
    "#]],
    );
    refused(
        b"a: 1\nb: caf\xe9\n",
        expect![[r#"
        x.yaml:2: is not UTF-8 (byte 0xe9); save it as UTF-8
    "#]],
    );
    refused(
        b"a: *nothing\n",
        expect![[r#"
        x.yaml:1: is no YAML: while parsing node, found unknown anchor
    "#]],
    );
    refused(
        b"a: &x {b: *x}\n",
        expect![[r#"
        x.yaml:1: the alias names what is not complete yet; write the value out
    "#]],
    );
    refused(
        b"# nothing\n---\n",
        expect![[r#"
        x.yaml: holds no document; write for example examples/orders/pipeline.yaml
    "#]],
    );
}

#[test]
fn yaml_that_no_manifest_needs_is_refused_with_its_line() {
    refused(
        b"spec:\n  sources: !http {addr: x}\n",
        expect![[r#"
            x.yaml: no document is of LiteJoin, which begins with apiVersion: litejoin.io/v1alpha1 and kind: Pipeline …; got x.yaml:1 (no apiVersion)
        "#]],
    );
    refused(
        b"suspend: yes\n",
        expect![[r#"
            x.yaml: no document is of LiteJoin, which begins with apiVersion: litejoin.io/v1alpha1 and kind: Pipeline …; got x.yaml:1 (no apiVersion)
        "#]],
    );
    refused(
        b"a: !!int x\n",
        expect![[r#"
            x.yaml: no document is of LiteJoin, which begins with apiVersion: litejoin.io/v1alpha1 and kind: Pipeline …; got x.yaml:1 (no apiVersion)
        "#]],
    );
    refused(
        b"a: &x {b: 1}\nc:\n  <<: *x\n",
        expect![[r#"
            x.yaml: no document is of LiteJoin, which begins with apiVersion: litejoin.io/v1alpha1 and kind: Pipeline …; got x.yaml:1 (no apiVersion)
        "#]],
    );
    refused(
        b"? [a]\n: b\n",
        expect![[r#"
        x.yaml:1: a key is a text; objects, lists and aliases cannot be one
    "#]],
    );
    refused(
        "[".repeat(100).as_bytes(),
        expect![[r#"
        x.yaml:1: objects and lists are more than 64 deep
    "#]],
    );
    refused(
        "a: [".repeat(100).as_bytes(),
        expect![[r#"
        x.yaml:1: objects and lists are more than 64 deep
    "#]],
    );
}

#[test]
fn aliases_stay_within_their_budget() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let below = format!("*a{}", level - 1);
        text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", ")));
    }
    refused(
        text.as_bytes(),
        expect![[r#"
        x.yaml:6: more than 500000 values; aliases repeat what they name, write less
    "#]],
    );
    let manifest = load_text("a: &x {b: 1}\nc: *x\nkind: Sink\n");
    assert_eq!(manifest.documents[0].value, json!({"a": {"b": 1}, "c": {"b": 1}, "kind": "Sink"}));
    assert_eq!(manifest.locate(&at(0, "c.b")).unwrap().line, 2);
}

#[test]
fn a_large_file_is_refused() {
    let mut text = vec![b'#'; FILE_BYTES_MAX as usize + 1];
    text[0] = b'#';
    refused(
        &text,
        expect![[r#"
        x.yaml: is larger than 8 MiB, which no manifest is
    "#]],
    );
}

#[test]
fn a_folder_stands_for_its_manifests() {
    let (folder, path) = folder(b"kind: Sink\n");
    fs::write(folder.path().join("a.json"), "{\"kind\": \"Join\",\n\t\"spec\": {}}").unwrap();
    fs::write(folder.path().join("notes.md"), "# notes").unwrap();
    fs::create_dir(folder.path().join("deeper.yaml")).unwrap();
    let manifest = load(&[folder.path().to_owned(), path]).unwrap();
    let kinds: Vec<&str> = manifest.documents.iter().filter_map(|d| d.value["kind"].as_str()).collect();
    assert_eq!(kinds, ["Join", "Sink"], "in the order of their names, each once");
    assert_eq!(manifest.locate(&at(0, "spec")).unwrap().line, 2);

    let empty = tempfile::tempdir().unwrap();
    let errors = load(&[empty.path().to_owned(), PathBuf::from("/nowhere/x.yaml")]).unwrap_err();
    let lines: Vec<String> = errors.iter().map(|error| format!("{error}\n")).collect();
    expect![[r#"
        EMPTY: the folder holds no manifest (*.yaml, *.yml, *.json; folders in it are not searched)
        /nowhere/x.yaml: no such file or folder; check the path given to -f
    "#]]
    .assert_eq(&lines.concat().replace(&empty.path().display().to_string(), "EMPTY"));
}
