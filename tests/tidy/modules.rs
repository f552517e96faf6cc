//! Where files lie and what they open with: known folders at the root, no file that nothing declares, a `//!` on
//! each module, no room with a name that says nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{assert_none, source, tree};

/// Folders at the root, beside those that begin with a dot.
const FOLDERS: [&str; 6] = ["charts", "crds", "examples", "operator", "tests", "worker"];

/// Names that would fit any content.
const EMPTY_NAMES: [&str; 9] =
    ["common", "helper", "helpers", "manager", "managers", "misc", "shared", "util", "utils"];

#[test]
fn folders_at_the_root_are_the_known_ones() {
    let mut strangers = BTreeSet::new();
    for file in tree::files() {
        let folder = file.split_once('/').map(|(folder, _)| folder.to_owned());
        strangers.extend(folder.filter(|name| !name.starts_with('.') && !FOLDERS.contains(&name.as_str())));
    }
    let complaint = |name| format!("{name}/: no folder of ours; move its files into one of {FOLDERS:?}");
    assert_none(&strangers.iter().map(complaint).collect::<Vec<_>>());
}

#[test]
fn every_module_opens_with_its_doc() {
    let opens = |file: &String| {
        let text = tree::text(file).expect("source is text");
        text.lines().next().is_some_and(|line| line.starts_with("//! "))
    };
    let mut files = tree::rust_files();
    files.retain(|file| !opens(file));
    let complaint = |file| {
        format!("{file}:1: begin with `//! `: what the room holds, what it keeps out, its one invariant")
    };
    assert_none(&files.iter().map(complaint).collect::<Vec<_>>());
}

#[test]
fn every_file_is_in_the_module_tree() {
    let mut reached = BTreeSet::new();
    for package in tree::metadata()["packages"].as_array().expect("packages is a list") {
        for target in package["targets"].as_array().expect("targets is a list") {
            let root = target["src_path"].as_str().expect("a target has a source file");
            walk(Path::new(root), true, &mut reached);
        }
    }
    let mut complaints = Vec::new();
    for file in tree::rust_files() {
        if !reached.contains(&tree::root().join(&file)) {
            let module = file.trim_end_matches(".rs").trim_end_matches("/mod");
            let name = module.rsplit('/').next().unwrap_or(module);
            complaints.push(format!(
                "{file}:1: nothing declares it; write `mod {name};` in its parent, or delete it"
            ));
        }
    }
    assert_none(&complaints);
}

#[test]
fn rooms_are_named_by_a_noun_the_user_knows() {
    let mut complaints = Vec::new();
    for file in tree::rust_files() {
        let mut names = file.trim_end_matches(".rs").split('/');
        if let Some(name) = names.find(|name| EMPTY_NAMES.contains(name)) {
            complaints
                .push(format!("{file}:1: {name} fits anything; put each function beside the type it serves"));
        }
    }
    assert_none(&complaints);
}

/// Adds the file and all that it declares. The root of a target, like `mod.rs`, has its modules beside it; any
/// other file in the folder of its name.
fn walk(file: &Path, root: bool, reached: &mut BTreeSet<PathBuf>) {
    if !file.is_file() || !reached.insert(file.to_owned()) {
        return;
    }
    let text = std::fs::read_to_string(file).expect("source is text");
    let beside = root || file.file_name().is_some_and(|name| name == "mod.rs");
    let folder = if beside { file.with_file_name("") } else { file.with_extension("") };
    for name in declared(&source::code(&text)) {
        walk(&folder.join(format!("{name}.rs")), false, reached);
        walk(&folder.join(name).join("mod.rs"), false, reached);
    }
}

/// Returns the names in `mod name;`.
fn declared(code: &str) -> Vec<&str> {
    let lines = code.lines().map(str::trim).filter_map(|line| line.strip_suffix(';'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(left, _)| left.ends_with("mod"))
        .map(|(_, n)| n)
        .collect()
}

#[test]
fn declarations_are_found_with_and_without_visibility() {
    let code = "mod a;\npub mod b;\n    pub(crate) mod c;\nuse x::mode;\nmod d { }\n#[cfg(test)] mod tests;";
    assert_eq!(declared(code), ["a", "b", "c", "tests"]);
}
