//! Documents that say the same as the code: the reference of the worker's metrics.

use std::collections::{BTreeMap, BTreeSet};

use crate::{assert_none, source, tree};

/// The table of metrics, as the worker writes them.
const METRICS: &str = "worker/src/status/prometheus.rs";

/// The table of metrics, as users read it.
const REFERENCE: &str = "worker/src/status/README.md";

/// How the name of each metric of the worker begins.
const PREFIX: &str = "litejoin_";

/// Type and labels of a metric, as they stand in a row of the reference.
type Described = (String, Vec<String>);

#[test]
fn metrics_are_those_of_the_reference() {
    let written = written(&tree::text(METRICS).expect("source is text"));
    let read = read(&tree::text(REFERENCE).expect("a document is text"));
    let mut complaints = Vec::new();
    for (name, described) in &written {
        match read.get(name) {
            None => complaints.push(format!("{REFERENCE}: {name} of {METRICS} has no row; write one")),
            Some(other) if other != described => complaints.push(format!(
                "{REFERENCE}: {name} is described as {other:?}, and {METRICS} writes {described:?}"
            )),
            Some(_) => {}
        }
    }
    for name in read.keys().filter(|name| !written.contains_key(*name)) {
        complaints.push(format!("{REFERENCE}: {METRICS} writes no {name}; take its row away"));
    }
    assert_none(&complaints);
}

#[test]
fn documents_name_metrics_that_there_are() {
    let known: BTreeSet<String> =
        written(&tree::text(METRICS).expect("source is text")).into_keys().collect();
    let mut complaints = Vec::new();
    for file in tree::files().iter().filter(|file| file.ends_with(".md") || file.ends_with(".yaml")) {
        for (index, line) in tree::text(file).unwrap_or_default().lines().enumerate() {
            for (at, _) in line.match_indices(PREFIX) {
                let end = line[at..].find(|letter| !source::is_word(letter)).unwrap_or(line.len() - at);
                let name = &line[at..at + end];
                // An ellipsis leaves the rest of a name to the reader.
                if !known.contains(name) && !line[at + end..].starts_with('…') {
                    complaints
                        .push(format!("{file}:{}: there is no metric {name}; see {REFERENCE}", index + 1));
                }
            }
        }
    }
    assert_none(&complaints);
}

/// The metrics that a table of `Metric { name, kind, labels, … }` lists, by the names that Prometheus sees.
fn written(table: &str) -> BTreeMap<String, Described> {
    let field = |row: &str, name: &str| {
        let begin = row.find(&format!("{name}: ")).expect("a row has all fields") + name.len() + 2;
        row[begin..].split_once('\n').expect("a field is a line").0.trim_end_matches(',').to_owned()
    };
    let rows = table.split("Metric {\n").filter(|row| row.trim_start().starts_with("name: \""));
    rows.map(|row| {
        let kind = field(row, "kind").trim_start_matches("MetricType::").to_lowercase();
        let suffix = if kind == "counter" { "_total" } else { "" };
        let labels = field(row, "labels");
        let labels = labels.split('"').skip(1).step_by(2).map(str::to_owned).collect();
        (format!("{}{suffix}", field(row, "name").trim_matches('"')), (kind, labels))
    })
    .collect()
}

/// The rows ``| `name` | type | `label`, `label` | … |`` of a document.
fn read(document: &str) -> BTreeMap<String, Described> {
    let rows = document.lines().filter(|line| line.starts_with(&format!("| `{PREFIX}")));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
    })
    .collect()
}

#[test]
fn a_metric_is_read_from_the_code_as_from_the_document() {
    let table = "const A: &[Metric] = &[\n    Metric {\n        name: \"litejoin_a\",\n        kind: MetricType::Counter,\n        \
                 labels: &[\"b\", \"c\"],\n        help: \"Name: d\",\n    },\n];\nlet Metric { name, kind } = metric;\n";
    let document = "| Metric | Type | Labels | Counts |\n|---|---|---|---|\n| `litejoin_a_total` | counter | `b`, `c` | D |\n";
    let described = ("counter".to_owned(), vec!["b".to_owned(), "c".to_owned()]);
    let expected = BTreeMap::from([("litejoin_a_total".to_owned(), described)]);
    assert_eq!(written(table), expected);
    assert_eq!(read(document), expected);
}
