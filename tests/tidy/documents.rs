//! Documents that say the same as the code: the reference of the worker's metrics, the paths that documents name, and the
//! blocks that they take from a file.

use std::collections::{BTreeMap, BTreeSet};

use crate::{assert_none, source, tree};

/// The table of metrics, as the worker writes them.
const METRICS: &str = "worker/src/status/prometheus.rs";

/// The table of metrics, as users read it.
const REFERENCE: &str = "worker/src/status/README.md";

/// Documents that tell newcomers where things are; so does every README in the folders of [`CODE`].
const GUIDES: [&str; 3] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"];

/// Folders whose READMEs tell where things are.
const CODE: [&str; 4] = ["crds/", "operator/", "tests/", "worker/"];

/// Endings by which a word without a slash is the name of a file of ours.
const ENDINGS: [&str; 4] = [".md", ".rs", ".toml", ".txt"];

/// Stands before a block that is taken from a file; the file follows, then ` -->`.
const TAKEN: &str = "<!-- from: ";

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
                // An ellipsis leaves the rest of a name to the reader, and `::` follows the name of a crate.
                let is_other = line[at + end..].starts_with('…') || line[at + end..].starts_with("::");
                if !known.contains(name) && !is_other {
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

#[test]
fn paths_in_documents_exist() {
    let files = tree::files();
    let mut complaints = Vec::new();
    for document in files.iter().filter(|file| is_guide(file)) {
        for (line, word) in quoted_words(&tree::text(document).expect("a document is text")) {
            if looks_like_a_path(&word) && !is_there(&files, document, &word) {
                complaints.push(format!(
                    "{document}:{line}: there is no {word}; name a path from the root, or from the folder of this document"
                ));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let files = tree::files();
    let mut complaints = Vec::new();
    for document in files.iter().filter(|file| file.ends_with(".md")) {
        for (line, target) in links(&tree::text(document).expect("a document is text")) {
            let (path, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path = if path.is_empty() { document.clone() } else { joined(folder_of(document), path) };
            let is_heading = || {
                let text = tree::text(&path).unwrap_or_default();
                text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            };
            if !exists(&files, &path) {
                complaints.push(format!("{document}:{line}: there is no {path}; mend the link"));
            } else if !heading.is_empty() && !is_heading() {
                complaints
                    .push(format!("{document}:{line}: {path} has no heading #{heading}; mend the link"));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn blocks_are_those_of_their_files() {
    let mut complaints = Vec::new();
    for document in tree::files().iter().filter(|file| file.ends_with(".md")) {
        let text = tree::text(document).expect("a document is text");
        for (at, _) in text.match_indices(TAKEN) {
            let (file, rest) = text[at + TAKEN.len()..].split_once(" -->").expect("a comment ends");
            let (_, block) = rest.split_once("```").expect("a block follows");
            let (_, block) = block.split_once('\n').expect("a block has lines");
            let (block, _) = block.split_once("```").expect("a block ends");
            if !tree::text(file).is_some_and(|written| written.contains(block)) {
                let line = text[..at].lines().count() + 1;
                complaints.push(format!("{document}:{line}: the block is not in {file}; copy it from there"));
            }
        }
    }
    assert_none(&complaints);
}

fn is_guide(file: &str) -> bool {
    let is_readme = file.ends_with("/README.md");
    GUIDES.contains(&file) || is_readme && CODE.iter().any(|folder| file.starts_with(folder))
}

/// Words in backquotes with their lines, from 1; blocks of code are left out.
fn quoted_words(text: &str) -> Vec<(usize, String)> {
    let mut is_code = false;
    let mut words = Vec::new();
    for (index, line) in text.lines().enumerate() {
        is_code ^= line.trim_start().starts_with("```");
        if !is_code && !line.trim_start().starts_with("```") {
            words.extend(line.split('`').skip(1).step_by(2).map(|word| (index + 1, word.to_owned())));
        }
    }
    words
}

/// Whether a word names a file or a folder of this repository. Commands, addresses, absolute paths and paths below
/// the folder in which a user works do not; nor do placeholders.
fn looks_like_a_path(word: &str) -> bool {
    let is_elsewhere = word.starts_with(['/', '~']) || word.starts_with("./") || word.contains("://");
    let is_plain = |letter: char| source::is_word(letter) || "./-*".contains(letter);
    word.chars().all(is_plain)
        && !is_elsewhere
        && !word.contains("NAME")
        && (word.contains('/') || ENDINGS.iter().any(|ending| word.ends_with(ending)))
}

/// Whether a path exists from the root, from the folder of its document, or from the folder around that, where the file
/// of a module lies; a mere name may be that of any file below. Of a pattern, the folder counts.
fn is_there(files: &[String], document: &str, word: &str) -> bool {
    let word = match word.split_once('*') {
        Some((before, _)) => before.rsplit_once('/').map_or("", |(folder, _)| folder),
        None => word.trim_end_matches('/'),
    };
    let folder = folder_of(document);
    let below =
        |file: &String| file.strip_prefix(folder).is_some_and(|rest| rest.rsplit('/').next() == Some(word));
    ["", folder, folder_of(folder)].iter().any(|base| exists(files, &joined(base, word)))
        || !word.contains('/') && files.iter().any(below)
}

/// Whether there is a file or a folder of that path.
fn exists(files: &[String], path: &str) -> bool {
    let path = path.trim_end_matches('/');
    files
        .iter()
        .any(|file| file.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// The folder that a file or folder lies in; empty for the root.
fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A path from a folder, with `..` followed.
fn joined(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Targets of links that lead to no other host, with their lines, from 1: `[…](target)` and `[…]: target`.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut is_code = false;
    let mut targets = Vec::new();
    for (index, line) in text.lines().enumerate() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            continue;
        }
        let inline =
            line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        let reference =
            line.strip_prefix('[').and_then(|line| line.split_once("]: ")).map(|(_, target)| target);
        let own = inline.chain(reference).filter(|target| !target.contains("://"));
        targets.extend(own.map(|target| (index + 1, target.to_owned())));
    }
    targets
}

/// The name by which a link leads to a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
}

#[test]
fn paths_and_links_are_told_from_other_words() {
    for word in ["worker/src/join.rs", "tests/run", "restrict.rs", ".cargo/config.toml", "cases/join/*.yaml"]
    {
        assert!(looks_like_a_path(word), "{word}");
    }
    for word in
        ["/status", "./data", "~/.ssh/config", "POST /ingest", "results.db", "s3://a/b", "sink/NAME.rs"]
    {
        assert!(!looks_like_a_path(word), "{word}");
    }
    let files = ["a/b.rs", "a/b/README.md", "a/b/c/d.rs"].map(str::to_owned);
    for word in ["a/b.rs", "b.rs", "c/d.rs", "d.rs", "a/b/c/", "c/*.rs", "../b.rs"] {
        assert!(is_there(&files, "a/b/README.md", word), "{word}");
    }
    for word in ["c.rs", "b/d.rs", "d/*.rs"] {
        assert!(!is_there(&files, "a/b/README.md", word), "{word}");
    }
    let links = links("[a](b.md#c) `x` [d](http://e)\n```\n[f](g)\n```\n[h]: i.md\n");
    assert_eq!(links, [(1, "b.md#c".to_owned()), (5, "i.md".to_owned())]);
    assert_eq!(anchor("## What can be lost, or seen twice"), "what-can-be-lost-or-seen-twice");
}
