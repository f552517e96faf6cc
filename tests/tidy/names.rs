//! One type name, one meaning: within a crate no two types have the same name, private ones included.

use std::collections::BTreeMap;

use crate::{assert_none, source, tree};

/// Crates by the folders of their code.
const CRATES: [&str; 4] = ["crds/", "operator/", "worker/", "tests/"];

/// Names that several types of a crate may have, and why.
const SHARED: [(&str, &str); 0] = [];

#[test]
fn a_type_name_is_declared_once_in_a_crate() {
    let mut complaints = Vec::new();
    for folder in CRATES {
        let mut declared: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in tree::rust_files().iter().filter(|file| file.starts_with(folder)) {
            let code = source::code(&tree::text(file).expect("source is text"));
            for (line, name) in types(&code) {
                declared.entry(name.to_owned()).or_default().push(format!("{file}:{line}"));
            }
        }
        for (name, places) in declared.iter().filter(|(_, places)| places.len() > 1) {
            if !SHARED.iter().any(|(shared, _)| shared == name) {
                complaints.push(format!(
                    "{}: {name} is the name of {} types; name each by what it alone is",
                    places.join(", "),
                    places.len()
                ));
            }
        }
    }
    assert_none(&complaints);
}

/// The types that the code declares, with their lines from 1.
fn types(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut words = line.split(|letter: char| !source::is_word(letter)).filter(|word| !word.is_empty());
        let mut is_start = true;
        while let Some(word) = words.next() {
            match word {
                "pub" | "crate" | "super" | "in" | "unsafe" => {}
                "struct" | "enum" | "trait" | "union" if is_start => {
                    found.extend(words.next().map(|name| (index + 1, name)));
                    break;
                }
                // An associated type has the name of its trait's.
                "type" if is_start && !line.starts_with(' ') => {
                    found.extend(words.next().map(|name| (index + 1, name)));
                    break;
                }
                _ => is_start = false,
            }
        }
    }
    found
}

#[test]
fn types_are_found_where_they_are_declared() {
    let code = "pub(crate) struct A<T>(T);\nenum B { C }\n    pub trait D {\n    type E;\n}\ntype F = A<u8>;\nlet a = struct_of(b);";
    assert_eq!(types(code), [(1, "A"), (2, "B"), (3, "D"), (6, "F")]);
}
